"""What was acknowledged is there, late rewards find their tick, the size is bounded, and a broken file stops nothing."""

from __future__ import annotations

import errno
import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fakes import Contention, wait_for
from learners.config.learner import ExperienceSettings
from learners.experience import database, schema, writer
from learners.experience import store as store_module
from learners.experience.reader import Reader
from learners.experience.store import Label, Mark, Raw, Store, Transition
from learners.experience.transition import checksum, encode

BATCH = store_module._BATCH
Events = list[tuple[str, dict[str, Any]]]


def tick(n: int, session: str = "s", **fields: Any) -> Transition:
    rng = np.random.default_rng(n)
    values: dict[str, Any] = {
        "session": session, "tick": n, "decision": f"{session}-{n}", "stamp_s": 1_000.0 + n / 10, "policy": "p0",
        "tokens": {
            "front": rng.normal(size=(4, 32)).astype(np.float16),
            "joints": rng.normal(size=(1, 3)).astype(np.float32),
        },
        "encoder_versions": {"front": "v1"}, "present": {"front": True, "joints": True, "room": False},
        "ages_s": {"front": 0.02, "joints": 0.01, "room": float("inf")},
        "actions": {"head": "left", "arm": (0.5, -1.0)}, "probabilities": {"head": 0.4, "arm": 1.7},
        "by": {"head": "policy", "arm": "override"}, "reward": 0.25, "value": 1.5,
    }  # fmt: skip
    return Transition(**{**values, **fields})


def settings(**fields: Any) -> ExperienceSettings:
    return ExperienceSettings.model_validate(fields)


@pytest.fixture
def events() -> Events:
    return []


@pytest.fixture
def store(tmp_path: Path, events: Events) -> Any:
    made = Store(
        tmp_path, settings(), on_event=lambda kind, fields: events.append((kind, fields)), clock=lambda: 1_000.0
    )
    yield made
    made.close()


def same(one: Transition, two: Transition) -> None:
    for name in Transition.__dataclass_fields__:
        if name != "tokens":
            assert getattr(one, name) == getattr(two, name), name
    assert one.tokens.keys() == two.tokens.keys()
    for name, array in one.tokens.items():
        assert array.dtype == two.tokens[name].dtype
        np.testing.assert_array_equal(array, two.tokens[name])


def test_a_transition_comes_back_as_it_went(tmp_path: Path, store: Store) -> None:
    store.append(tick(1))
    store.append(tick(2, actions={}, by={}, probabilities={}, intervention=True))
    assert store.flush()
    with Reader(tmp_path) as reader:
        one, two = reader.rows(0, 100)
        same(one.transition, tick(1))
        assert two.transition.actions == {}
        assert (reader.count(), reader.first_row(), reader.last_row()) == (2, one.row, two.row)
        assert [row.row for row in reader.newest(1)] == [two.row]
        assert [row.row for row in reader.pick([two.row, 99, one.row])] == [two.row, one.row]
        assert [row.row for row in reader.rows(0, 100) if row.transition.intervention] == [two.row]


def test_a_late_reward_reaches_its_decision_or_the_tick_it_falls_in(
    tmp_path: Path, store: Store, events: Events
) -> None:
    for n in range(20):
        store.append(tick(n, reward=0.0))
    store.credit(2.0, decision="s-3", source="judge")
    store.credit(-1.0, stamp_s=1_000.75, done=True)  # within tick 7, which began at 1000.7
    store.credit(0.5, decision="s-3")
    store.credit(1.0, decision="never")
    store.credit(1.0, stamp_s=900.0)
    store.credit(1.0, stamp_s=5_000.0)
    assert store.flush()
    with Reader(tmp_path) as reader:
        rewards = {row.transition.tick: row.transition for row in reader.rows(0, 100)}
        assert rewards[3].reward == 2.5
        assert (rewards[7].reward, rewards[7].done, rewards[7].failure) == (-1.0, True, False)
        assert sum(abs(t.reward) for t in rewards.values()) == 3.5
        assert [(c.before["reward"], c.after["reward"]) for c in reader.changes(0)] == [(0, 2), (0, -1), (2, 2.5)]
        assert reader.last_change() == 3
        assert len(reader.changes(1, 2)) == 1
        assert next((r.value, r.source) for r in reader.rewards()) == (2.0, "judge")
    assert [kind for kind, _ in events] == ["unknown_decision"] * 3
    assert events[0][1] == {"decision": "never", "source": "default"}
    assert store.drops["unknown"] == 3


def test_a_reward_without_a_decision_belongs_to_the_newest_pass_of_a_clock_that_was_set_back(
    tmp_path: Path, store: Store
) -> None:
    for n in range(20):
        store.append(tick(n, reward=0.0))
    for n in range(15):
        store.append(tick(n, session="t", stamp_s=1_000.03 + n / 10, reward=0.0))
        store.credit(1.0, stamp_s=1_000.12 + n / 10)  # the other pass has a tick at 1000.1
    assert store.flush()
    with Reader(tmp_path) as reader:
        assert [row.transition.reward for row in reader.rows(0, 100)] == [0.0] * 20 + [1.0] * 15


def test_rows_that_come_one_by_one_are_committed_together_and_a_flush_does_not_wait_for_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store.flush()
    monkeypatch.setattr(store_module, "GATHER_S", 30.0)
    commits: list[int] = []
    commit = store._writer.commit

    def counted(batch: Any, *, trim: bool) -> bool:
        commits.append(len(batch))
        return commit(batch, trim=trim)

    monkeypatch.setattr(store._writer, "commit", counted)
    for n in range(5):
        store.append(tick(n))
    assert store.flush(5.0)
    assert [count for count in commits if count] == [5]
    assert store.committed == 5
    for n in range(5, 5 + 2 * BATCH):  # a queue that fills is not left to wait
        store.append(tick(n))
    wait_for(lambda: store.committed >= 5 + BATCH, "a full batch", 10.0)
    for n in range(BATCH + 40):  # what a flush waits for may not fit into one batch
        store.append(tick(1_000 + n))
    assert store.flush(5.0)
    store.append(tick(5_000))
    assert store.close(10.0)
    assert store.committed == 46 + 3 * BATCH


def test_an_outcome_and_a_time_limit_are_stored_as_they_were_sent(tmp_path: Path, store: Store) -> None:
    for n in range(4):
        store.append(tick(n, reward=0.0))
    store.credit(1.0, decision="s-0", truncated=True)
    store.credit(1.0, decision="s-1", done=True, outcome="success")
    store.credit(1.0, decision="s-2", outcome="failure")
    assert store.flush()
    with Reader(tmp_path) as reader:
        rows = [row.transition for row in reader.rows(0, 100)]
    assert [(t.done, t.truncated, t.outcome) for t in rows] == [
        (False, True, None),
        (True, False, "success"),
        (False, False, "failure"),
        (False, False, None),
    ]


def test_marks_and_quarantine_change_the_row_and_can_be_taken_back(tmp_path: Path, store: Store) -> None:
    store.append(tick(1, reward=0.5))
    store.credit(1.0, decision="s-1", source="good")
    store.credit(-5.0, decision="s-1", source="bad")
    store.mark(Mark("s-1", intervention=True))
    store.mark(Mark("s-1", intervention=True))  # nothing new: no change is logged
    store.mark(Mark("s-9", failure=True))
    store.quarantine("bad")
    store.quarantine("bad")
    store.credit(-7.0, decision="s-1", source="bad")
    assert store.flush()
    with Reader(tmp_path) as reader:
        (row,) = reader.rows(0, 10)
        assert (row.transition.reward, row.transition.intervention) == (1.5, True)
        assert reader.quarantined() == ["bad"]
        store.quarantine("bad", on=False)
        assert store.flush()
        assert reader.rows(0, 10)[0].transition.reward == pytest.approx(0.5 + 1 - 5 - 7)
        assert reader.quarantined() == []


def test_a_quarantined_source_ends_no_episode(tmp_path: Path, store: Store) -> None:
    """Neither before nor while it is quarantined; what others and marks say holds, and a release puts all of it back."""
    for n in range(4):
        store.append(tick(n, done=n == 3))
    store.credit(-5.0, decision="s-0", source="liar", done=True, outcome="failure")
    store.credit(1.0, decision="s-1", source="good", truncated=True, outcome="success")
    store.credit(-5.0, decision="s-1", source="liar", done=True, outcome="failure")
    store.mark(Mark("s-2", success=True))
    store.quarantine("liar")
    store.credit(-5.0, decision="s-2", source="liar", done=True, outcome="failure")
    store.credit(-5.0, decision="s-3", source="liar", truncated=True)

    def rows() -> list[tuple[float, bool, bool, str | None]]:
        assert store.flush()
        with Reader(tmp_path) as reader:
            found = [row.transition for row in reader.rows(0, 10)]
        return [(t.reward, t.done, t.truncated, t.outcome) for t in found]

    own = tick(0).reward
    assert rows() == [
        (own, False, False, None),
        (own + 1.0, False, True, "success"),
        (own, False, False, "success"),
        (own, True, False, None),
    ]
    store.quarantine("liar", on=False)
    assert rows() == [
        (own - 5.0, True, False, "failure"),
        (own - 4.0, True, True, "failure"),
        (own - 5.0, True, False, "failure"),
        (own - 5.0, True, True, None),
    ]


def test_labels_and_raw_readings(tmp_path: Path) -> None:
    now = [1_000.0]
    store = Store(tmp_path, settings(raw_retention_s=60), clock=lambda: now[0])
    store.add_label(Label("intents", "lamp_on", text="turn it on", source="ann", stamp_s=5.0))
    store.add_label(Label("tags", ("a", "b"), decision="s-1"))
    store.add_raw(Raw("front", 990.0, "jpeg", b"\xff\xd8old"))
    assert store.flush()
    with Reader(tmp_path) as reader:
        (label,) = reader.labels("intents")
        assert (label.label, label.text, label.source, label.id) == ("lamp_on", "turn it on", "ann", 1)
        assert reader.labels("tags")[0].label == ("a", "b")
        assert reader.labels("intents", since=label.id) == []
        assert reader.raw("front", 0, 2_000)[0].data == b"\xff\xd8old"
    store.close()
    now[0] = 1_100.0
    again = Store(tmp_path, settings(raw_retention_s=60), clock=lambda: now[0])
    again.add_raw(Raw("front", 1_099.0, "jpeg", b"new"))
    assert again.flush()
    again.close()
    with Reader(tmp_path) as reader:
        assert [raw.data for raw in reader.raw("front", 0, 2_000)] == [b"new"]
    assert Reader(tmp_path / "nowhere").raw("front", 0, 1) == []


def test_refused_and_overflowing_items_are_counted_and_block_nothing(tmp_path: Path, events: Events) -> None:
    gate = threading.Event()
    holding: Callable[[str, dict[str, Any]], None] = lambda kind, fields: (events.append((kind, fields)), gate.wait(60))  # type: ignore[func-returns-value, assignment, return-value]  # noqa: E731 - a one-off
    store = Store(tmp_path, settings(), on_event=holding, limit=8)
    bad = tick(0, tokens={"front": np.full((1, 2), np.nan, np.float32)})
    store.append(bad)
    while not events:
        threading.Event().wait(0.01)
    started, contention = time.perf_counter(), Contention()
    taken = sum(store.append(tick(n)) for n in range(1, 100))
    assert time.perf_counter() - started < 0.5 + contention.s
    assert taken == 8
    assert store.drops["full"] == 91
    assert not store.flush(timeout_s=0.05)
    gate.set()
    assert store.flush()
    assert store.drops["refused"] == 1
    assert (events[0][0], events[0][1]["reason"]) == ("transition_rejected", "tokens of front are not finite")
    assert store.close()
    assert store.committed == 8
    assert not store.append(tick(200))
    assert store.drops["closed"] == 1


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"reward": float("nan")}, "not finite"),
        ({"probabilities": {"head": float("inf")}}, "not finite"),
        ({"tokens": {"front": np.zeros(3, np.float32)}}, "float32 (3,)"),
        ({"tokens": {"front": np.zeros((1, 3), np.int64)}}, "int64"),
    ],
)
def test_what_is_not_whole_is_refused(tmp_path: Path, store: Store, events: Events, fields: Any, reason: str) -> None:
    store.append(tick(1, **fields))
    assert store.flush()
    assert events[0][0] == "transition_rejected"
    assert reason in events[0][1]["reason"]
    assert Reader(tmp_path).count() == 0


def test_the_oldest_goes_first_but_the_reserve_stays(tmp_path: Path) -> None:
    wide = {"front": np.zeros((4, 500), np.float16)}  # 4 kB a row
    with_reserve = settings(max_gb=2e-3, reserved_fraction=0.25)  # 2 MB: about 450 rows
    writer = database.Database(tmp_path, max_bytes=int(with_reserve.max_gb * 1e9), reserve=0.25, raw_retention_s=1)
    for start in range(0, 3_000, 100):
        with writer:
            for n in range(start, start + 100):
                writer.add(tick(n, tokens=wide, intervention=n == 40, done=n == 200))
            writer.trim(0.0)
        writer.compact()
        assert writer.bytes <= 2_000_000
    writer.close()
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size < 4_500_000
    with Reader(tmp_path) as reader:
        ticks = [row.transition.tick for row in reader.rows(0, 10_000)]
    assert {40, 200} <= set(ticks)
    assert set(range(35, 45)) <= set(ticks)  # its neighbours too
    assert set(range(2_700, 3_000)) <= set(ticks)
    assert 1_000 not in ticks


def test_reserved_rows_beyond_the_reserve_go_too(tmp_path: Path) -> None:
    writer = database.Database(tmp_path, max_bytes=1_000_000, reserve=0.25, raw_retention_s=1)
    with writer:
        for n in range(1_000):
            writer.add(tick(n, tokens={"front": np.zeros((4, 500), np.float16)}, demonstration=True))
    with writer:
        writer.trim(0.0)
    assert writer.bytes <= 1_000_000
    writer.close()
    with Reader(tmp_path) as reader:
        ticks = [row.transition.tick for row in reader.rows(0, 10_000)]
    assert ticks == list(range(ticks[0], 1_000))
    assert len(ticks) > 150


def test_raw_readings_take_half_the_budget_at_most(tmp_path: Path) -> None:
    writer = database.Database(tmp_path, max_bytes=1_000_000, reserve=0, raw_retention_s=1e6)
    with writer:
        for n in range(100):
            writer.add_raw(Raw("front", float(n), "jpeg", bytes(20_000)))
        writer.trim(100.0)
    assert writer.bytes <= 500_000
    writer.close()
    assert Reader(tmp_path).raw("front", 0, 200)[-1].stamp_s == 99.0


@pytest.mark.parametrize("damage", ["garbage", "truncated", "page", "header"])
def test_a_broken_file_is_set_aside_and_what_reads_is_carried_over(tmp_path: Path, events: Events, damage: str) -> None:
    store = Store(tmp_path, settings())
    for n in range(400):
        store.append(tick(n))
    assert store.flush()
    store.close()
    path = tmp_path / "experience.db"
    content = bytearray(path.read_bytes())
    if damage == "garbage":
        content = bytearray(np.random.default_rng(0).bytes(len(content)))
    elif damage == "truncated":
        content = content[: len(content) * 2 // 3]
    elif damage == "page":
        content[80 * 4096 : 84 * 4096] = b"\xa5" * 4 * 4096
    else:
        content[:100] = bytes(100)
    path.write_bytes(content)
    again = Store(tmp_path, settings(), on_event=lambda kind, fields: events.append((kind, fields)))
    again.append(tick(1_000))
    assert again.flush()
    again.close()
    (kind, fields), *_ = events
    assert kind == "experience_corrupt"
    assert Path(fields["path"]).read_bytes()[:100] == bytes(content[:100])
    with Reader(tmp_path) as reader:
        ticks = [row.transition.tick for row in reader.rows(0, 1 << 40)]
    assert ticks[-1] == 1_000
    assert len(ticks) - 1 == fields["salvaged"]
    if damage in ("page", "truncated"):
        assert fields["salvaged"] > 200
        assert fields["lost"] == 400 - fields["salvaged"] or damage == "truncated"


@pytest.mark.parametrize("running", [True, False])
def test_damaged_raw_readings_leave_the_experience_alone(tmp_path: Path, events: Events, running: bool) -> None:
    store = Store(tmp_path, settings(raw_retention_s=600), on_event=lambda kind, fields: events.append((kind, fields)))
    for n in range(50):
        store.append(tick(n))
        store.add_raw(Raw("front", time.time(), "jpeg", bytes(5_000)))
    assert store.flush()
    if not running:
        store.close()
    path = tmp_path / "raw.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path.write_bytes(path.read_bytes()[:100] + np.random.default_rng(0).bytes(path.stat().st_size - 100))
    if not running:
        store = Store(
            tmp_path, settings(raw_retention_s=600), on_event=lambda kind, fields: events.append((kind, fields))
        )
    for n in range(50, 60):
        store.append(tick(n))
        store.add_raw(Raw("front", time.time(), "jpeg", bytes(5_000)))
        store.flush()
    store.close()
    with Reader(tmp_path) as reader:
        assert [row.transition.tick for row in reader.rows(0, 1_000)] == list(range(60))
    assert {Path(fields["path"]).name.split(".")[0] for kind, fields in events if kind == "experience_corrupt"} <= {
        "raw"
    }
    assert not list(tmp_path.glob("experience.broken*"))


def test_a_flipped_byte_inside_a_row_costs_that_row_alone(tmp_path: Path) -> None:
    store = Store(tmp_path, settings())
    for n in range(200):
        store.append(tick(n))
    assert store.flush()
    store.close()
    path = tmp_path / "experience.db"
    content = bytearray(path.read_bytes())
    at = content.rfind(tick(150).tokens["front"].tobytes()[:64])
    content[at] ^= 0xFF  # one byte inside a stored array: the page is whole for SQLite
    path.write_bytes(content)
    with Reader(tmp_path) as reader:
        ticks = [row.transition.tick for row in reader.rows(0, 1_000)]
        assert 150 not in ticks
        assert (len(ticks), reader.unreadable) == (199, 1)


def test_a_torn_log_costs_only_its_tail(tmp_path: Path) -> None:
    folder, copy = tmp_path / "a", tmp_path / "b"
    store = Store(folder, settings())
    for n in range(50):
        store.append(tick(n))
    assert store.flush()
    copy.mkdir()
    for name in ("experience.db", "experience.db-wal"):
        (copy / name).write_bytes((folder / name).read_bytes())
    store.close()
    log = copy / "experience.db-wal"
    log.write_bytes(log.read_bytes()[:-1_000])
    again = Store(copy, settings())
    again.append(tick(99))
    assert again.flush()
    again.close()
    with Reader(copy) as reader:
        ticks = [row.transition.tick for row in reader.rows(0, 1_000)]
    assert ticks[-1] == 99
    assert ticks[:-1] == list(range(len(ticks) - 1))


def test_the_schema_before_is_read_as_it_is_and_after_its_migration(tmp_path: Path) -> None:
    path = tmp_path / "experience.db"
    old = sqlite3.connect(path)
    old.executescript("".join(schema._STEPS[:2]) + "PRAGMA user_version = 2;")
    head, body = encode(tick(1))
    old.execute(
        "INSERT INTO transitions(session, tick, decision, stamp_s, policy, reward, done, intervention, demonstration,"
        " failure, value, bytes, crc, head, body) VALUES('s', 1, 'd', 0, 'p', 3.0, 1, 0, 0, 1, 0, 0, ?, ?, ?)",
        (checksum("sd", head, body), head, body),
    )
    old.commit()
    old.close()
    with Reader(tmp_path) as reader:
        (before,) = reader.rows(0, 10)
        db = schema.connect(path)
        db.execute("UPDATE transitions SET truncated = 1, success = 1")
        db.close()
        (after,) = reader.rows(0, 10)
    assert (before.transition.done, before.transition.outcome, before.transition.truncated) == (True, None, False)
    assert (after.transition.done, after.transition.outcome, after.transition.truncated) == (True, "success", True)


def test_an_older_schema_is_migrated_and_a_newer_one_left_alone(tmp_path: Path, events: Events) -> None:
    path = tmp_path / "experience.db"
    old = sqlite3.connect(path)
    old.executescript(schema._STEPS[0] + "PRAGMA user_version = 1;")
    old.execute(
        "INSERT INTO transitions(session, tick, decision, stamp_s, policy, reward, done, intervention, demonstration,"
        " failure, value, bytes, crc, head, body) VALUES('s', 1, 'd', 0, 'p', 3.0, 0, 0, 0, 0, 0, 0, 0, x'', x'')"
    )
    old.execute("INSERT INTO rewards(row, value, done, source, stamp_s) VALUES(1, 2.0, 0, 'bad', 0)")
    old.commit()
    old.close()
    assert Reader(tmp_path).last_row() == 0  # not before the writer migrated it
    db = schema.connect(path)
    assert db.execute("SELECT base FROM transitions").fetchone() == (1.0,)
    db.execute(f"PRAGMA user_version = {schema.SCHEMA + 1}")
    db.close()
    store = Store(tmp_path, settings(), on_event=lambda kind, fields: events.append((kind, fields)))
    store.append(tick(1))
    assert not store.flush()
    assert events[0][0] == "experience_write_failed"
    assert "newer" in events[0][1]["reason"]
    assert store.drops["disk"] == 1
    store.close()


def test_a_reader_may_come_before_the_writer(tmp_path: Path) -> None:
    with Reader(tmp_path) as reader:
        assert (reader.count(), reader.last_row(), reader.decision("x")) == (0, 0, None)
        (tmp_path / "experience.db").write_bytes(b"not a database" * 100)
        assert reader.count() == 0


def test_a_broken_file_that_cannot_be_set_aside_costs_no_later_tick(
    tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path, settings(), on_event=lambda kind, fields: events.append((kind, fields)))
    store.append(tick(1))
    assert store.flush()
    errors: list[Exception] = [sqlite3.DatabaseError("a broken page"), OSError(errno.ENOSPC, "No space left on device")]
    add, set_aside = database.Database.add, writer.quarantine_and_recover

    def broken(self: database.Database, row: Transition) -> int:
        if len(errors) == 2:
            raise errors[0]
        return add(self, row)

    def refused(*given: Any) -> Any:
        if len(errors) == 2:
            raise errors.pop()
        return set_aside(*given)

    monkeypatch.setattr(database.Database, "add", broken)
    monkeypatch.setattr(writer, "quarantine_and_recover", refused)
    store.append(tick(2))
    assert store.flush(), "the second try stores it"
    store.close()
    assert [kind for kind, _ in events] == []
    with Reader(tmp_path) as reader:
        assert [row.transition.tick for row in reader.rows(0, 10)] == [1, 2]


def test_a_disk_that_refuses_is_an_event_and_later_ticks_are_stored(
    tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "BUSY_S", 0.1)
    monkeypatch.setattr(writer, "FAILING_PAUSE_S", 0.1)
    store = Store(tmp_path, settings(), on_event=lambda kind, fields: events.append((kind, fields)))
    store.append(tick(1))
    assert store.flush()
    blocker = sqlite3.connect(tmp_path / "experience.db", isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    store.append(tick(2))
    assert not store.flush(timeout_s=60)
    blocker.execute("ROLLBACK")
    blocker.close()
    store.append(tick(3))
    assert store.flush()
    store.close()
    assert [kind for kind, _ in events] == ["experience_write_failed", "experience_recovered"]
    with Reader(tmp_path) as reader:
        assert [row.transition.tick for row in reader.rows(0, 10)] == [1, 3]


FULL = """
import json, resource, signal, sys, time
from pathlib import Path
import numpy as np
from learners.experience.store import Raw, Store
from learners.experience import writer
from learners.experience.transition import Transition

writer.FAILING_PAUSE_S = 0.1
events = []
store = Store(Path(sys.argv[1]), on_event=lambda kind, fields: events.append((kind, fields)))
number = 0

def add(count):
    global number
    for _ in range(count):
        tokens = {"j": np.random.default_rng(number).random((4, 1280)).astype(np.float32)}
        store.append(Transition("s", number, f"s-{number}", 1e9 + number / 10, "v", tokens=tokens, present={"j": True}))
        store.add_raw(Raw("j", 1e9 + number / 10, "utf-8", bytes(100)))
        number += 1

add(20)
found = {"before": store.flush()}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
free = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, free[1]))
for _ in range(5):
    add(20)
    found["full"] = store.flush(30)
resource.setrlimit(resource.RLIMIT_FSIZE, free)
committed = store.committed
add(100)
found |= {"after": store.flush(30), "stored": store.committed - committed, "committed": store.committed}
found |= {"drops": dict(store.drops), "closed": store.close(), "events": events}
print(json.dumps(found))
"""


def test_a_full_disk_costs_what_came_meanwhile_and_nothing_later(tmp_path: Path) -> None:
    """In a process of its own: the limit of file sizes replaces the full disk."""
    ran = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True)
    found = json.loads(ran.stdout)
    assert (found["before"], found["full"], found["after"], found["closed"]) == (True, False, True, True)
    assert found["stored"] == 100
    kinds = [kind for kind, _ in found["events"]]
    assert kinds == ["experience_write_failed", "experience_recovered"]
    assert found["events"][1][1]["total"] == found["drops"]["disk"] > 0
    with Reader(tmp_path) as reader:
        ticks = [row.transition.tick for row in reader.rows(0, 1_000)]
    assert len(ticks) == len(set(ticks)) == found["committed"]
    assert ticks[-100:] == list(range(120, 220))


def test_an_item_that_cannot_be_stored_is_refused_alone(tmp_path: Path, store: Store, events: Events) -> None:
    store.append(tick(1))
    store.add_label(Label("intents", "a", text="\ud800"))
    store.append(tick(2, tick=2**70))
    store.append(tick(3))
    assert store.flush()
    assert store.drops["refused"] == 2
    assert {kind for kind, _ in events} == {"transition_rejected"}
    with Reader(tmp_path) as reader:
        assert [row.transition.tick for row in reader.rows(0, 10)] == [1, 3]
