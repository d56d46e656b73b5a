"""`reflexd export` writes what other programs read, whole or not at all, and says in words why not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from export_world import SPEC, config, export, image, lived, recorded, tick
from mcap.reader import make_reader

from learners.checkpoints.store import open_checkpoints
from learners.experience.reader import Reader
from learners.experience.store import Raw, Store
from learners.model.policy import Policy
from learners.model.spec import fields_version
from runtime.cli.main import main
from runtime.config.loader import load
from runtime.recording.export_mcap import TimeWindow, copy_recording
from runtime.recording.reader import Recording
from runtime.recording.recorder import Recorder, TickRecord
from sensors.drivers import opencv
from sensors.readings import Frame, Sound

__all__ = ["config"]


def test_help_teaches() -> None:
    text = CliRunner().invoke(main, ["export", "--help"]).output
    assert "for Foxglove" in text
    assert "reflexd export robot.yaml --format onnx --out policy.onnx" in text


def test_experience_becomes_an_mcap_with_schemas_that_the_mcap_package_reads(config: Path) -> None:
    lived(config, raws=5)
    assert export(config, "mcap", "e.mcap") == (0, f"20 decisions from experience; {config.parent}/e.mcap\n")
    seen: dict[str, list[dict[str, Any]]] = {}
    stamps = []
    with (config.parent / "e.mcap").open("rb") as file:
        for schema, channel, message in make_reader(file).iter_messages(log_time_order=False):
            assert schema is not None
            seen.setdefault(f"{channel.topic} {schema.name}", []).append(json.loads(message.data))
            stamps.append(message.log_time)
    assert {name: len(found) for name, found in seen.items()} == {
        "/in/front foxglove.CompressedImage": 5,
        "/in/orders reflexd.Text": 5,
        "/in/joints reflexd.Telemetry": 20,
        "/decision reflexd.Decision": 20,
        "/reward reflexd.Message": 1,
    }
    assert stamps[:30] == sorted(stamps[:30])
    assert seen["/in/joints reflexd.Telemetry"][7]["values"] == [7.0, -7.0]
    third = seen["/decision reflexd.Decision"][3]
    assert (third["reward"], third["actions"]["head"]) == (1.5, {"value": "left", "probability": 0.5, "by": "policy"})
    assert seen["/reward reflexd.Message"][0]["source"] == "button"
    refused = CliRunner().invoke(main, ["replay", str(config.parent / "e.mcap"), "--config", str(config)])
    assert "not one that reflexd recorded" in refused.output


def test_a_recording_is_copied_whole_and_cut_with_whole_sounds(config: Path) -> None:
    state = lived(config)
    source = recorded(state)
    assert export(config, "mcap", "whole.mcap")[0] == 0
    assert (config.parent / "whole.mcap").read_bytes() == source.read_bytes()
    code, reported = export(config, "mcap", "begin.mcap", "--until", local(1_000.0 + 1))
    assert (code, reported.split(";")[0]) == (0, "r.mcap, 10 decisions")
    assert Recording(config.parent / "begin.mcap").attachments() == {"history": b"\x01"}
    recorded(state, "later", 30)
    assert export(config, "mcap", "cut.mcap", "--recording", "later", "--since", local(1_001.0))[1].startswith(
        "later.mcap, 20"
    )
    ticks = list(Recording(config.parent / "cut.mcap").ticks())
    first = {reading.stream: reading for reading in ticks[0][0]}
    assert set(first) == {"front", "room", "joints", "orders"}
    assert isinstance(first["room"], Sound)
    assert np.array_equal(first["room"].samples, np.sin(np.arange(1_000, 1_800) / 9).astype(np.float32))
    assert [body["tick"] for _, body in ticks] == list(range(10, 30))


def local(stamp_s: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(stamp_s).strftime("%Y-%m-%d %H:%M:%S")  # noqa: DTZ006 - as a person types it


def test_several_recordings_must_be_chosen_from(config: Path) -> None:
    state = lived(config)
    recorded(state, "a")
    recorded(state, "b")
    assert (
        "choose one with --recording, or --experience; there are a.mcap, b.mcap" in export(config, "mcap", "x.mcap")[1]
    )
    assert "no such recording; there are a.mcap, b.mcap" in export(config, "mcap", "x.mcap", "--recording", "c")[1]
    assert export(config, "mcap", "x.mcap", "--experience")[0] == 0


def test_a_dataset_takes_pictures_and_texts_from_raw_readings_and_recordings(config: Path) -> None:
    recorded(lived(config, raws=4), count=4, start=10)
    code, reported = export(config, "lerobot", "d")
    assert (code, reported.split(";")[0]) == (0, "2 episodes, 8 of 20 ticks")
    rows = pq.read_table(config.parent / "d/data/chunk-000/file-000.parquet").to_pylist()
    pictures = [cv2.imdecode(np.frombuffer(r["observation.images.front"]["bytes"], np.uint8), 1).mean() for r in rows]
    assert pictures == pytest.approx([0, 1, 2, 3, 10, 11, 12, 13], abs=1)
    tasks = pq.read_table(config.parent / "d/meta/tasks.parquet").to_pylist()
    assert [row["task"] for row in tasks] == ["look left", "look up"]
    code, reported = export(config, "lerobot", "plain", "--no-pictures", "--task", "reach")
    assert (code, reported.split(";")[0]) == (0, "1 episodes, 20 of 20 ticks")
    info = json.loads((config.parent / "plain/meta/info.json").read_text())
    assert "observation.images.front" not in info["features"]
    assert info["robot_type"] == "arm"


def set_back(n: int) -> float:
    """The wall clock at a tick, which is set back by 50 seconds before tick 10."""
    return 1_000.0 + n / 10 - (50.0 if n >= 10 else 0.0)


@pytest.mark.parametrize("where", ["raw", "recording"])
def test_a_clock_that_is_set_back_loses_no_picture(config: Path, where: str) -> None:
    state = lived(config, count=0)
    with Reader(state / "experience") as reader:
        assert reader.count() == 0
    store = Store(state / "experience", clock=lambda: 1_000.0)
    for n in range(20):
        store.append(replace(tick(n), stamp_s=set_back(n)))
        if where == "raw":
            store.add_raw(Raw("front", set_back(n), "jpeg", opencv.encode(image(5 * n))))
    assert store.close()
    if where == "recording":
        recorder = Recorder(state / "recordings/r.mcap", {"spec": "x", "session": "s"}, 1 << 30)
        recorder.start({})
        for n in range(20):
            body = {"id": f"s-{n}", "tick": n, "used": {"front": n}}
            recorder.put(TickRecord(int(set_back(n) * 1e9), (Frame("front", n / 10, n, image(5 * n)),), body))
        recorder.close()
    assert export(config, "lerobot", "d")[1].startswith("1 episodes, 20 of 20 ticks;")
    rows = pq.read_table(config.parent / "d/data/chunk-000/file-000.parquet").to_pylist()
    shades = [cv2.imdecode(np.frombuffer(r["observation.images.front"]["bytes"], np.uint8), 1).mean() for r in rows]
    assert shades == pytest.approx([5 * n for n in range(20)], abs=1)
    assert export(config, "mcap", "e.mcap", "--experience")[0] == 0
    read = [(topic, body.get("tick")) for topic, _, body in Recording(config.parent / "e.mcap").messages()]
    assert [number for topic, number in read if topic == "/decision"] == list(range(20))
    pictures = 20 if where == "raw" else 0
    assert read.count(("/in/front", None)) == pictures
    if where == "recording":
        window = TimeWindow(stop_s=1_000.45)
        assert (
            copy_recording(Recording(state / "recordings/r.mcap"), config.parent / "s.mcap", window, lambda *_: None)
            == 15
        )
        ticks = list(Recording(config.parent / "s.mcap").ticks())
        assert [body["tick"] for _, body in ticks] == [*range(5), *range(10, 20)]
        assert [[reading.seq for reading in fresh] for fresh, _ in ticks] == [[n] for n in (*range(5), *range(10, 20))]


def test_a_picture_that_a_gap_of_the_recording_swallowed_is_no_older_one(config: Path) -> None:
    state = lived(config, count=3)
    recorder = Recorder(state / "recordings/r.mcap", {"spec": "x", "session": "s"}, 1 << 30)
    recorder.start({})
    for n, fresh in enumerate(((Frame("front", 0.0, 0, image(9)),), (), ())):
        recorder.put(
            TickRecord(int((1_000 + n / 10) * 1e9), fresh, {"id": f"s-{n}", "tick": n, "used": {"front": n // 2}})
        )
    recorder.close()
    assert export(config, "lerobot", "d")[1].startswith("1 episodes, 2 of 3 ticks; 1 without a stored image")


def test_numbers_that_were_stored_under_other_fields_are_not_called_by_these(config: Path) -> None:
    state = lived(config, count=2)
    store = Store(state / "experience")
    for n, fields in enumerate((("q2", "q1"), ("q1", "q2")), start=2):
        store.append(replace(tick(n), encoder_versions={"joints": fields_version(fields)}))
    assert store.close()
    assert export(config, "mcap", "e.mcap")[0] == 0
    found = [
        (b["fields"], b["values"]) for t, _, b in Recording(config.parent / "e.mcap").messages() if t == "/in/joints"
    ]
    assert found == [(["q1", "q2"], [0, 0]), (["q1", "q2"], [1, -1]), (["0", "1"], [2, -2]), (["q1", "q2"], [3, -3])]
    assert export(config, "lerobot", "d", "--no-pictures")[1].startswith(
        "2 episodes, 3 of 4 ticks; 1 of other fields or actuators"
    )


def test_experience_shows_what_was_proposed_beside_what_was_executed(config: Path) -> None:
    state = lived(config, count=1)
    store = Store(state / "experience")
    by = {"head": "gate"}
    store.append(
        replace(tick(1), actions={"head": "stay"}, proposed={"head": "right"}, refused={"head": "stale"}, by=by)
    )
    assert store.close()
    assert export(config, "mcap", "e.mcap")[0] == 0
    found = [body for topic, _, body in Recording(config.parent / "e.mcap").messages() if topic == "/decision"][1]
    assert found["actions"] == {"head": {"value": "stay", "probability": 0.5, "by": "gate"}}
    assert (found["proposed"], found["refused"]) == ({"head": "right"}, {"head": "stale"})


def test_pictures_that_are_not_stored_are_reported(config: Path) -> None:
    lived(config)
    assert "no pictures of front are stored; `reflexd record on` records them" in export(config, "lerobot", "d")[1]
    assert "no experience in this state_dir and window" in export(config, "lerobot", "e", "--since", "2100-01-01")[1]


def test_the_live_policy_becomes_onnx_with_a_manifest(config: Path) -> None:
    lived(config)
    checkpoints = open_checkpoints((c := load(config).config).state_dir, c.promotion)
    torch.manual_seed(0)
    files = {"policy": dict(Policy(SPEC).state_dict())}
    spec = json.loads(SPEC.to_json())
    version = checkpoints.save(files, {"spec": spec}, parent=None, encoder_versions={"front": "v1"})
    assert "no version is live" in export(config, "onnx", "p.onnx")[1]
    checkpoints.promote(version)
    code, reported = export(config, "onnx", "p.onnx")
    assert code == 0, reported
    manifest = json.loads((config.parent / "p.json").read_text())
    assert manifest["policy"] == version
    assert manifest["difference"] <= manifest["tolerance"]
    assert [entry["shape"] for entry in manifest["inputs"]] == [
        ["batch", 2, 3],
        ["batch", 2, 3],
        ["batch", 2, 4, 8],
        ["batch", 2, 1, 8],
        ["batch", 2, 1, 2],
    ]
    assert manifest["outputs"][0] == {
        "name": "scores.head",
        "shape": ["batch", 3],
        "choices": ["left", "stay", "right"],
    }
    assert manifest["encoders"]["front"] == "bundled:efficientnet-lite0"
    assert "`reflexd checkpoints` lists what there is" in export(config, "onnx", "q.onnx", "--version", "000099-x")[1]


def test_what_cannot_be_written_leaves_nothing(config: Path) -> None:
    code, reported = export(config, "mcap", "x.mcap")
    assert (code, "does not exist; `reflexd run` creates it" in reported) == (2, True)
    lived(config)
    (config.parent / "there").write_bytes(b"")
    assert "exists already" in export(config, "mcap", "there")[1]
    assert "no experience in this window" in export(config, "mcap", "x.mcap", "--since", "2100-01-01")[1]
    (config.parent / "state/recordings").mkdir()
    (config.parent / "state/recordings/r.mcap").write_bytes(b"no recording at all")
    assert "not an MCAP file" in export(config, "mcap", "x.mcap")[1]
    assert sorted(path.name for path in config.parent.iterdir()) == ["arm.yaml", "state", "there"]


@pytest.mark.parametrize(
    ("form", "options", "says"),
    [
        ("mcap", ("--since", "yesterday"), "'yesterday' is no time; write 2026-11-24,"),
        ("mcap", ("--since", ""), "is no time"),
        ("mcap", ("--until", "0001-01-01T00:00:00+14:00"), "--since is not before"),
        ("mcap", ("--since", "2026-11-24 25:00"), "is no time"),
        ("mcap", ("--since", "2026-11-24", "--until", "2026-11-24"), "--since is not before --until"),
        ("lerobot", ("--since", "2026-11-24", "--until", "2020-01-01"), "--since is not before --until"),
        ("mcap", ("--since", "2999-01-01"), "widen --since and --until"),
        ("lerobot", ("--since", "2999-01-01"), "widen --since and --until"),
        ("onnx", ("--since", "2026-11-24"), "--since belongs to --format mcap and lerobot, not to onnx"),
        ("mcap", ("--version", "000001-00000000"), "--version belongs to --format onnx"),
        ("lerobot", ("--recording", "r"), "--recording belongs to --format mcap"),
        ("mcap", ("--task", "go"), "--task belongs to --format lerobot"),
        ("mcap", ("--no-pictures",), "--pictures belongs to --format lerobot"),
    ],
)
def test_a_time_or_an_option_that_selects_nothing_is_refused(
    config: Path, form: str, options: tuple[str, ...], says: str
) -> None:
    lived(config, 2)
    code, out = export(config, form, "out", *options)
    assert (code, says in " ".join(out.split())) == (2, True), out
    assert not (config.parent / "out").exists()


@pytest.mark.parametrize(
    "since", ["1970-01-01", "1970-01-01T00:00:01Z", " 1970-01-01 00:00:01.5 ", "1970-01-01T02:00+02:00"]
)
def test_a_time_may_have_an_offset_or_fractions(config: Path, since: str) -> None:
    lived(config, 2)
    assert export(config, "mcap", "out.mcap", "--since", since)[0] == 0
