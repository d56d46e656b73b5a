"""Experience becomes episodes, and episodes a LeRobotDataset v3.0 with the documented columns and types."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from actuators.actions import ActionSpace, Choice, Continuous, Utterance
from learners.config.learner import ExperienceSettings
from learners.experience.episodes import CombinedReadings, Episodes, Step, StoredReadings
from learners.experience.reader import Reader
from learners.experience.store import Raw, Store, Transition
from learners.export.dataset_stats import merged, statistics
from learners.export.lerobot_features import Layout, fitted, size_of
from learners.export.lerobot_writer import DatasetWriter, ExportNeeds
from learners.model.spec import fields_version

ACTIONS = ActionSpace(
    (Choice("head", ("left", "stay", "right")), Continuous("arm", (-1, -1), (1, 1)), Utterance("say", "t"))
)
READ = Path(__file__).parents[2] / "benchmarks" / "read_lerobot.py"
STREAMS = ("front", "orders", "joints")


def picture(shade: int, size: tuple[int, int] = (6, 8)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size[1], size[0]), (shade, 0, 255)).save(out, "PNG")
    return out.getvalue()


def tick(n: int, session: str = "s", **fields: Any) -> Transition:
    values: dict[str, Any] = {
        "session": session, "tick": n, "decision": f"{session}-{n}", "stamp_s": 1_000.0 + n / 10, "policy": "p0",
        "tokens": {"joints": np.array([[n, -n, 0.5]], np.float32)},
        "present": {"front": True, "joints": True, "orders": n > 3}, "ages_s": {"front": 0.02, "joints": 0.01, "orders": 0.3},
        "actions": {"head": "right", "arm": (0.5, -1.0)}, "probabilities": {"head": 0.4, "arm": 1.7},
        "by": {"head": "policy", "arm": "override"}, "reward": float(n), "value": 1.5, "intervention": n == 4,
    }  # fmt: skip
    return Transition(**{**values, **fields})


def remember(folder: Path, ticks: list[Transition], raws: list[Raw]) -> None:
    store = Store(
        folder, ExperienceSettings.model_validate({}), on_event=lambda _kind, _fields: None, clock=lambda: 1_000.0
    )
    assert all([*(store.append(t) for t in ticks), *(store.add_raw(raw) for raw in raws)])
    store.close()


def episodes(folder: Path, cameras: frozenset[str] = frozenset(), **more: Any) -> tuple[list[list[Step]], Episodes]:
    with Reader(folder) as reader:
        walk = Episodes(
            reader, CombinedReadings((StoredReadings(reader, frozenset({"front", "orders"})),)), cameras, **more
        )
        return list(walk), walk


def numbers(found: list[list[Step]]) -> list[list[int]]:
    return [[step.transition.tick for step in episode] for episode in found]


def test_episodes_end_with_done_session_gap_and_length(tmp_path: Path) -> None:
    ticks = [tick(n, done=n == 2) for n in (1, 2, 3, 4, 30, 31)] + [tick(n, "z") for n in range(32, 36)]
    remember(tmp_path, ticks, [])
    received: list[tuple[int, int]] = []
    found, walk = episodes(tmp_path, on_progress=lambda done, total: received.append((done, total)), longest=3)
    assert numbers(found) == [[1, 2], [3, 4], [30, 31], [32, 33, 34], [35]]
    assert received[-1] == (10, 10)
    assert str(walk.tally) == "10 of 10 ticks"
    assert numbers(episodes(tmp_path, window=(1_000.15, 1_000.45))[0]) == [[2], [3, 4]]


@pytest.mark.parametrize("rate_hz", [20, 2, 1, 0.5])
def test_episodes_follow_ticks_and_not_the_clock(tmp_path: Path, rate_hz: float) -> None:
    """At any tick rate, and where the wall clock is set back by five seconds, a hundred ticks are one episode."""
    chance = np.random.default_rng(0)
    stamps = [1e9 + n / rate_hz + chance.normal() * 0.002 - (5 if n > 50 else 0) for n in range(1, 101)]
    remember(tmp_path, [tick(n, stamp_s=stamp_s) for n, stamp_s in enumerate(stamps, 1)], [])
    assert numbers(episodes(tmp_path)[0]) == [list(range(1, 101))]


def test_an_actuator_goes_on_with_what_it_was_commanded_and_ticks_before_are_left_out(tmp_path: Path) -> None:
    ticks = [tick(1, actions={}), tick(2), tick(3, actions={"head": "left"}), tick(4, actions={})]
    remember(tmp_path, [*ticks, tick(5, "z", actions={})], [])
    found, walk = episodes(tmp_path)
    assert [dict(step.actions) for step in found[0]] == [
        {"head": "right", "arm": (0.5, -1.0)},
        *[{"head": "left", "arm": (0.5, -1.0)}] * 2,
    ]
    assert (walk.tally.no_action, len(found)) == (2, 1)


def test_a_tick_has_the_picture_it_saw_or_none(tmp_path: Path) -> None:
    raws = [Raw("front", 1_000.1, "png", picture(1)), Raw("front", 1_000.3, "png", picture(3))]
    raws.append(Raw("orders", 1_000.4, "utf-8", b"find the cat"))
    ages = {1: 0.02, 2: 0.12, 3: 0.02, 4: 0.02, 5: 0.22}  # the picture that tick 4 saw was not stored
    ticks = [tick(n, ages_s={"front": age, "orders": 0.3 + (n - 4) / 10}) for n, age in ages.items()]
    remember(tmp_path, ticks, raws)
    found, walk = episodes(tmp_path, frozenset({"front"}))
    assert numbers(found) == [[1, 2, 3], [5]]
    assert [step.seen["front"] for step in found[0]] == [picture(1), picture(1), picture(3)]
    assert found[1][0].seen["orders"] == "find the cat"
    assert walk.tally.no_picture == 1


def test_a_late_picture_that_was_not_stored_is_not_replaced_by_the_one_before(tmp_path: Path) -> None:
    """Each picture is seen .3 s after its capture: the stored one before came later than the capture of the lost one."""
    raws = [Raw("front", 1_000.0 + n / 10, "png", picture(n)) for n in range(1, 9) if n % 3]
    remember(tmp_path, [tick(n, ages_s={"front": 0.3}) for n in range(1, 9)], raws)
    found, walk = episodes(tmp_path, frozenset({"front"}))
    assert numbers(found) == [[1, 2], [4, 5], [7, 8]]
    assert [step.seen["front"] for episode in found for step in episode] == [picture(n) for n in (1, 2, 4, 5, 7, 8)]
    assert walk.tally.no_picture == 2


def test_ticks_of_other_fields_or_choices_are_left_out(tmp_path: Path) -> None:
    """The numbers of a field, or the index of a choice, never stand for another one."""
    layout = Layout(ACTIONS, {"joints": ("q1", "q2", "q3")}, STREAMS, {})
    ours = {"encoder_versions": {"joints": fields_version(("q1", "q2", "q3"))}}
    swapped = {"encoder_versions": {"joints": fields_version(("q2", "q1", "q3"))}}
    ticks = [
        tick(1, **ours), tick(2, **swapped), tick(3, **swapped, present={"joints": False}, tokens={}),
        tick(4, tokens={"joints": np.zeros((1, 2), np.float32)}), tick(5, actions={"head": "up"}),
        tick(6, actions={"arm": (0.5,)}), tick(7), tick(8, actions={}, **ours),
    ]  # fmt: skip
    remember(tmp_path, ticks, [])
    found, walk = episodes(tmp_path, fits=layout.fits)
    assert numbers(found) == [[1], [3], [7, 8]]
    assert found[2][1].actions == {"head": "right", "arm": (0.5, -1.0)}
    assert str(walk.tally) == "4 of 8 ticks; 4 of other fields or actuators"


def dataset(folder: Path, **more: Any) -> DatasetWriter:
    layout = Layout(ACTIONS, {"joints": ("q1", "q2", "/imu/yaw")}, STREAMS, {"front": (6, 8)}, ("orders",))
    return DatasetWriter(folder, layout, 10, "arm", "reach", **more)


def steps(ticks: range, size: tuple[int, int] = (6, 8)) -> list[Step]:
    seen = [{"front": picture(n, size)} | ({"orders": " find the cat "} if n > 3 else {}) for n in ticks]
    made = [tick(n) for n in ticks]
    return [Step(t, seen, t.actions) for t, seen in zip(made, seen, strict=True)]


def written(folder: Path) -> None:
    writer = dataset(folder, file_mb=0.001)
    for first in (0, 5, 10):
        writer.add(steps(range(first, first + 5)))
    writer.close()


def test_the_files_have_the_formats_columns_and_types(tmp_path: Path) -> None:
    written(tmp_path / "d")
    info = json.loads((tmp_path / "d/meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_frames"], info["total_episodes"]) == ("v3.0", 10, 15, 3)
    files = sorted((tmp_path / "d/data").rglob("*.parquet"))
    assert [file.relative_to(tmp_path / "d").as_posix() for file in files] == [
        info["data_path"].format(chunk_index=0, file_index=n) for n in range(len(files))
    ]
    assert len(files) > 1
    table = pa.concat_tables([pq.read_table(file) for file in files])
    assert set(table.column_names) == set(info["features"])
    for name, feature in info["features"].items():
        kind = table.schema.field(name).type
        if feature["dtype"] == "image":
            assert kind == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
            continue
        plain = pa.bool_() if feature["dtype"] == "bool" else getattr(pa, feature["dtype"])()
        assert kind == (plain if feature["shape"] == [1] else pa.list_(plain, feature["shape"][0])), name
    rows = table.to_pylist()
    assert rows[7]["action"] == [2.0, 0.5, -1.0]
    assert info["features"]["action"]["names"] == ["head", "arm.0", "arm.1"]
    assert info["features"]["action"]["info"]["choices"]["head"] == ["left", "stay", "right"]
    assert rows[7]["observation.state"] == [7.0, -7.0, 0.5]
    assert info["features"]["observation.state"]["names"][2] == "joints./imu/yaw"
    assert rows[7]["observation.images.front"]["bytes"] == picture(7)
    assert rows[7]["timestamp"] == pytest.approx(0.2)
    assert [row["complementary_info.is_intervention"] for row in rows].index(True) == 4
    assert rows[4]["complementary_info.by"] == [1, 2], "policy and override"
    assert (rows[7]["next.reward"], rows[7]["next.done"], rows[7]["index"]) == (7.0, False, 7)


def test_lerobot_itself_reads_every_frame(tmp_path: Path) -> None:
    """`LEROBOT_PYTHON` names an interpreter with lerobot, which needs another torch than this project."""
    python = os.environ.get("LEROBOT_PYTHON", sys.executable)
    found = subprocess.run([python, "-c", "import lerobot"], check=False, capture_output=True)
    if found.returncode:
        pytest.skip("no lerobot: set LEROBOT_PYTHON")
    written(tmp_path / "d")
    ran = subprocess.run([python, READ, tmp_path / "d"], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "3 episodes, 15 frames at 10 Hz" in ran.stdout


def test_tasks_episodes_and_statistics(tmp_path: Path) -> None:
    written(tmp_path / "d")
    meta = tmp_path / "d/meta"
    tasks = pd.read_parquet(meta / "tasks.parquet")
    assert dict(zip(tasks.index, tasks["task_index"], strict=True)) == {"reach": 0, "find the cat": 1}
    rows = pq.read_table(meta / "episodes/chunk-000/file-000.parquet").to_pylist()
    assert [(row["dataset_from_index"], row["dataset_to_index"], row["length"]) for row in rows] == [
        (0, 5, 5),
        (5, 10, 5),
        (10, 15, 5),
    ]
    assert rows[0]["tasks"] == ["reach", "find the cat"]
    assert rows[0]["stats/next.reward/mean"] == [2.0]
    stats = json.loads((meta / "stats.json").read_text())
    assert stats["next.reward"]["mean"] == [7.0]
    assert stats["next.reward"]["std"] == pytest.approx([np.arange(15).std()])
    assert (stats["next.reward"]["max"], stats["next.reward"]["count"]) == ([14.0], [15])
    assert np.array(stats["observation.images.front"]["mean"]).shape == (3, 1, 1)
    assert stats["observation.images.front"]["mean"][2] == [[1.0]]


def test_statistics_of_parts_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    x_NA = rng.normal(size=(90, 3))
    parts = merged([{"x": statistics(x_NA[:20])}, {"x": statistics(x_NA[20:])}])["x"]
    whole = statistics(x_NA)
    for what in ("mean", "std", "min", "max", "count"):
        assert parts[what] == pytest.approx(whole[what])


def test_a_picture_of_another_size_is_fitted() -> None:
    assert fitted(picture(1), (6, 8)) == picture(1)
    assert size_of(fitted(picture(1, (12, 20)), (6, 8))) == (6, 8)


def test_a_missing_library_is_named_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ExportNeeds, match="pip install 'reflexd\\[export\\]'"):
        dataset(tmp_path / "d")
    assert not (tmp_path / "d").exists()
