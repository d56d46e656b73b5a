"""What an upgrade finds in a state directory: each file in an older and in an unknown format does what docs/operating.md says.

That a whole daemon goes on among all of them at once is shown in end_to_end/test_unknown_state.py.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import learning
import numpy as np
import orjson
import pytest
import torch
from mcap.writer import Writer

from actuators.config import ChoiceSettings, GateSettings
from actuators.safety.gate import Gate
from learners.checkpoints.experiment_records import EXPERIMENTS_FILE, PROBATION_FILE
from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.signing import KeyRefused, load_key
from learners.checkpoints.store import Checkpoints
from learners.config.learner import ExperienceSettings
from learners.continual.trainer_state import TrainerState
from learners.experience import schema
from learners.experience.reader import Reader
from learners.experience.store import Store
from learners.goal_models.config import DeliberatorSettings
from learners.ipc.outbox import Outbox
from learners.ipc.policy_spec import read_policy_spec, spec_path, write_policy_spec
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.fastest_backend import BackendChoice, BackendSettings
from learners.reencoding.token_store import StoredTokens, TokenStore
from learners.safeguards.source_consistency import Quarantine
from learners.task_serving.versions import TaskVersionStore
from learners.worker.journal import Journal, JournalEntry
from runtime.config.schema import DriftSettings
from runtime.deliberation.goal_in_force import GoalInForce
from runtime.deploy.experiments.controller import ExperimentController
from runtime.deploy.experiments.plan_from_settings import ExperimentRules
from runtime.drift.watch import DriftWatch
from runtime.fleet.stop.pending import PendingStops
from runtime.gate import latches
from runtime.recording.reader import Recording, RecordingError

DOCS = Path(__file__).parents[1] / "docs" / "operating.md"
SHOWN: dict[str, Callable[[Path], None]] = {}


def shows(file: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """The row of the table that a function holds true."""

    def note(check: Callable[[Path], None]) -> Callable[[Path], None]:
        SHOWN[file] = check
        return check

    return note


def saved(folder: Path, count: int = 1) -> tuple[Checkpoints, list[str]]:
    versions = Checkpoints(folder, learning.KEY, keep_last=9)
    names = [versions.save({"policy": {"w": torch.full((1,), float(n))}}, {}) for n in range(count)]
    for name in names:
        versions.promote(name)
    return versions, names


def of_format(versions: Checkpoints, version: str, number: int) -> None:
    """As another program would have signed it."""
    folder = versions.folder / version
    body = orjson.dumps(orjson.loads((folder / "manifest.json").read_bytes()) | {"format": number})
    (folder / "manifest.json").write_bytes(body)
    (folder / "manifest.sig").write_bytes(learning.KEY.sign(body))


@shows("experience/experience.db")
def experience(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "experience.db")) as old:
        old.executescript(schema._STEPS[0] + "PRAGMA user_version = 1;")
    reported: list[str] = []
    with closing(Store(folder, ExperienceSettings.model_validate({}))) as store:
        assert store.append(learning.made(1))
        assert store.flush()
    with closing(Reader(folder)) as reader:  # the last connection to close writes to the file
        assert reader.count() == 1
    with closing(sqlite3.connect(folder / "experience.db")) as newer:
        newer.execute(f"PRAGMA user_version = {schema.SCHEMA + 1}")
    before = (folder / "experience.db").read_bytes()
    settings = ExperienceSettings.model_validate({})
    with closing(Store(folder, settings, on_event=lambda kind, data: reported.append(f"{kind} {data}"))) as store:
        assert store.append(learning.made(2))
        assert not store.flush()
    assert reported[0].startswith("experience_write_failed")
    assert "newer" in reported[0]
    assert (folder / "experience.db").read_bytes() == before


@shows("checkpoints/*/manifest.json")
def manifest(folder: Path) -> None:
    versions, names = saved(folder, 3)
    of_format(versions, names[-1], 2)
    refused: list[CheckpointRefused] = []
    loaded = versions.load_live(refused.append)
    assert loaded is not None
    assert loaded.manifest.version == names[-2]
    assert [(each.version, each.reason) for each in refused] == [(names[-1], "unknown_format")]
    assert versions.live().version == names[-1], "only what acts is another; nothing on disk was changed"


@shows("checkpoints/LIVE")
def live(folder: Path) -> None:
    _, names = saved(folder, 2)
    versions = Checkpoints(folder, learning.KEY, passed=lambda: (names[0],))
    for content in (b"{", b'{"format": 2, "now": "x"}'):
        (folder / "LIVE").write_bytes(content)
        loaded = versions.load_live(lambda refusal: pytest.fail(str(refusal)))
        assert loaded is not None
        assert loaded.manifest.version == names[0], "the version that passed, not the newest"


@shows("keys/checkpoint-key.pem")
def key(folder: Path) -> None:
    load_key(folder)
    path = folder / "keys" / "checkpoint-key.pem"
    path.write_text("of some other kind")
    with pytest.raises(KeyRefused, match=rf"{path}.* delete it"):
        load_key(folder)
    path.unlink()
    load_key(folder)


@shows("latches.json")
def stop(folder: Path) -> None:
    head = ChoiceSettings.model_validate({"kind": "choice", "choices": ["a", "b"], "safe": "a"})
    for content in (b"{", b"[1]", b'{"format": 2, "stop": {"engaged": false}}'):
        (folder / "latches.json").write_bytes(content)
        gate = Gate({"head": head}, GateSettings(reconcile_s=0.0), now_s=0.0)
        found = latches.load(folder / "latches.json")
        assert found is not None
        gate.restore(found)
        assert gate.stopped
        gate.stop(1.0, engaged=False)
        assert not gate.armed


@shows("experiments.json")
def experiments(folder: Path) -> None:
    versions, (first, *_) = saved(folder / "checkpoints")
    events: list[str] = []

    def opened() -> ExperimentController:
        made = ExperimentController(
            ExperimentRules(), versions, folder, lambda kind, _data: events.append(kind), lambda: 1.0, Quarantine()
        )
        made.start()
        return made

    versions.promote(first)
    opened().close(clean=True)
    assert opened().state.trust.anchor == first
    path = folder / EXPERIMENTS_FILE
    path.write_bytes(orjson.dumps(orjson.loads(path.read_bytes()) | {"format": 99}))
    assert opened().state.trust.anchor == first
    assert events == ["experiment_state_unreadable"]


@shows("probation.json")
def probation(folder: Path) -> None:
    versions, (first, second) = saved(folder / "checkpoints", 2)
    versions.promote(first)
    versions.promote(second)
    (folder / PROBATION_FILE).write_bytes(orjson.dumps({"good": first, "trial": {"version": second, "before": first}}))
    made = ExperimentController(
        ExperimentRules(), versions, folder, lambda _kind, _data: None, lambda: 1.0, Quarantine()
    )
    made.start()
    assert (made.state.trust.anchor, made.state.trust.previous) == (second, first)


@shows("quarantine.json")
def quarantine(_folder: Path) -> None:
    written = Quarantine().dump()
    Quarantine().restore(written)
    with pytest.raises(ValueError, match="format"):
        Quarantine().restore(written | {"format": written["format"] + 1})


@shows("drift.json")
def drift(folder: Path) -> None:
    reported: list[str] = []
    state: Any = (DriftSettings(), ("s",), lambda: "v", folder, lambda kind, _: reported.append(kind), time.time, None)
    (folder / "drift.json").write_bytes(b'{"format": 2}')
    assert DriftWatch(*state).figures() == {}
    assert reported == ["drift_state_unreadable"]


@shows("goal.json")
def goal(_folder: Path) -> None:
    settings = DeliberatorSettings.model_validate({"goals": {"idle": "rest", "greet": "greet"}, "default": "idle"})
    written = GoalInForce(settings, 1.0)
    written.set_by_person("greet", 60.0, 1.0)
    read = GoalInForce(settings, 1.0)
    assert read.restore(written.dump(1.0, 1e9), 1.0, 1e9)
    assert read.goal == "greet"
    with pytest.raises(ValueError, match="format"):
        read.restore(written.dump(1.0, 1e9) | {"format": 2}, 1.0, 1e9)


@shows("engine.json")
def engine(folder: Path) -> None:
    known, cpu = Calibrations(folder, BackendSettings("torch", "float32")), torch.device("cpu")
    module, examples = torch.nn.Linear(2, 2).eval(), [(torch.ones(1, 2),)]
    _, choice = known.runner(module, examples, "v")
    assert known.recall("v", cpu) == choice
    entries = orjson.loads((folder / "engine.json").read_bytes())
    for content in (b"{", b"[]", orjson.dumps({entry: {"format": 2} for entry in entries})):
        (folder / "engine.json").write_bytes(content)
        assert known.recall("v", cpu) is None
        _, again = known.runner(module, examples, "v")
        assert isinstance(again, BackendChoice)
        assert known.recall("v", cpu) == again


@shows("learner/state/*")
def learner(folder: Path) -> None:
    learning.fill(folder, 0, 60)
    one = learning.make_learner(folder)
    one.ingest()
    version = one.save()
    state = Checkpoints(folder / "learner" / "state", learning.KEY)
    document = state.folder / version / "position.json"
    of_old = orjson.loads(document.read_bytes()) | {"a_field_of_another_version": 1}
    saved_state = state.load(version)
    version = state.save(saved_state.tensors, {**saved_state.documents, "position": of_old})
    state.promote(version)
    one.journal.note(JournalEntry(99, 10**9, row=60))
    two = learning.make_learner(folder)
    assert not two.resume(lambda _: pytest.fail("no version is named"))
    assert [(each.version, each.reason) for each in two.refused] == [(version, "unknown_format")]
    assert "a_field_of_another_version" in two.refused[0].detail
    assert two.position == type(two.position)()
    two.ingest()
    two.save()
    assert learning.make_learner(folder).resume(lambda _: {})
    state.promote(version := state.save(state.load(version).tensors, {"position": of_old}))
    of_format(state, version, 2)
    three = learning.make_learner(folder)
    assert three.resume(lambda _: {}), "the state before is of a known format"
    assert [(each.version, each.reason) for each in three.refused] == [(version, "unknown_format")]


@shows("learner/journal.jsonl")
def journal(folder: Path) -> None:
    stored = Journal(folder / "journal.jsonl")
    stored.note(JournalEntry(1, 10))
    with stored.path.open("ab") as file:
        file.write(b'{"number": 2, "update": 20, "new_in_another_version": 1}\n')
    stored.note(JournalEntry(3, 30))
    assert stored.entries() == [JournalEntry(1, 10)]


@shows("learner/spec.json")
def spec(folder: Path) -> None:
    write_policy_spec(folder, learning.SPEC)
    body = orjson.loads(spec_path(folder).read_bytes())
    spec_path(folder).write_bytes(orjson.dumps(body | {"format": 2}))
    assert read_policy_spec(folder) is None
    assert write_policy_spec(folder, learning.SPEC)
    assert read_policy_spec(folder) == learning.SPEC


@shows("learner/reencoded.db")
def reencoded(folder: Path) -> None:
    path, made = folder / "reencoded.db", [StoredTokens(7, "front", "v1", np.ones((1, 2), np.float16))]
    with closing(TokenStore(path)) as one:
        one.add(made)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 0")  # as before it was numbered
    with closing(TokenStore(path)) as same:
        assert [each.row for each in same.between(0, 9)] == [7]
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 2")
    with closing(TokenStore(path)) as reopened:
        assert reopened.last() == 0
        reopened.add(made)
    path.write_bytes(b"no database at all" * 100)
    with closing(TokenStore(path)) as reopened:
        reopened.add(made)
        assert [each.row for each in reopened.between(0, 9)] == [7]


@shows("learner/outbox/*.json")
def outbox(folder: Path) -> None:
    box = Outbox(folder)
    (folder / "00000000000000000001-000001.json").write_bytes(b'{"format": 2, "type": "x"}')
    box.post("learner_waiting_for_spec", {"for": "x"})
    assert [event.kind for event in box.collect()] == ["learner_waiting_for_spec"]
    assert box.drops["unreadable"] == 1


@shows("uplink/stops.json")
def stops_of_the_fleet(folder: Path) -> None:
    file = PendingStops.of(folder)
    file.save({"1": "a person"})
    assert file.load() == {"1": "a person"}
    for content in (b"{", b'{"format": 2, "stops": {"1": "a person"}}'):
        file.path.write_bytes(content)
        assert list(file.load()) == [""], "one stop, of which nothing is known"


@shows("learner/tasks/*/current.json")
def tasks(folder: Path) -> None:
    for name in ("1-aaaaaaaaaaaa", "2-bbbbbbbbbbbb"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    current = {"version": "2-bbbbbbbbbbbb", "folder": "2-bbbbbbbbbbbb"}
    (folder / "current.json").write_bytes(orjson.dumps(current))
    assert TaskVersionStore(folder).was_live() == ["1-aaaaaaaaaaaa"]
    for content in (b"{", b'{"format": 2, "live": "2"}', b"3"):
        (folder / "current.json").write_bytes(content)
        assert TaskVersionStore(folder).live() is None
        assert [version.name for version in TaskVersionStore(folder).all()] == ["1-aaaaaaaaaaaa", "2-bbbbbbbbbbbb"]


@shows("learner/tasks/*/memory.json")
def memory(folder: Path) -> None:
    del folder
    former = TrainerState.of(
        {"judged": 7, "number": 2, "rejected": [[1, 3]], "tried": 9, "questions": 4, "anchor": "1-a"}
    )
    assert (former.judged, former.anchor, former.old_classes.rows) == (7, "1-a", {})
    newer = orjson.loads(orjson.dumps({**asdict(former), "later": 1}))
    assert TrainerState.of(newer) == former


@shows("recordings/*.mcap")
def recordings(folder: Path) -> None:
    def recorded(**metadata: str) -> dict[str, str]:
        path = folder / "r.mcap"
        with path.open("wb") as file:
            writer: Any = Writer(file)
            writer.start(profile="reflexd", library="reflexd")
            writer.add_metadata("reflexd", metadata)
            writer.finish()
        return Recording(path).metadata()

    assert recorded(session="s") == {"session": "s"}
    assert recorded(session="s", format="1")["format"] == "1"
    with pytest.raises(RecordingError, match=r"r\.mcap: a recording of format 2; this program reads 1"):
        recorded(session="s", format="2")


@pytest.mark.parametrize("file", sorted(SHOWN))
def test_what_is_documented_of_this_file_is_so(file: str, tmp_path: Path) -> None:
    SHOWN[file](tmp_path)  # each asserts what its row of the table promises


def test_the_table_names_just_what_is_shown_here() -> None:
    table = DOCS.read_text().partition("## Upgrading")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)) == set(SHOWN)
