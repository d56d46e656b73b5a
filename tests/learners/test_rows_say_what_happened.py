"""Whatever arrives in whatever order, each row says what happened: the store and the replay buffer against a slow reading.

Short lives of an agent are drawn: ticks of the policy, of a person, refused, stopped; gaps, restarts, new encoders; rewards that are
late, double, by name or by time, of a quarantined source, with `done`, `truncated` or an outcome; marks. `ROW_CASES` sets
the number of rows: 2,000 in `make test`, 100,000 in `make fuzz`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actuators.actions import ActionSpace, Choice
from learners.credit_assignment import MAX_DELAY_S
from learners.experience.database import Database
from learners.experience.reader import Reader
from learners.experience.records import Credit, Mark
from learners.experience.snapshots import ExperienceSnapshots, SnapshotId
from learners.experience.transition import PROPOSAL_RULES, Transition
from learners.model.spec import PolicySpec, StreamSpec
from learners.rl.replay_buffer import MAX_GAP, ReplayBuffer

CASES = int(os.environ.get("ROW_CASES", "2000"))
GAMMA, STEPS = 0.9, 3
WORDS = ("left", "stay", "right")
SOURCES = ("ann", "bob", "world")
SPEC = PolicySpec(
    (StreamSpec("front", "image", 1, 2),), ActionSpace((Choice("head", WORDS),)), history=1, gamma=GAMMA, width=16
)


@dataclass
class Story:
    """One row as reported: the tick, and every report about it, in order."""

    tick: Transition
    reported: list[Credit] = field(default_factory=list)
    shown: bool = False
    """A person confirmed the action."""

    def counted(self, quarantined: set[str]) -> list[Credit]:
        return [each for each in self.reported if each.source not in quarantined]

    def reward(self, quarantined: set[str]) -> float:
        return self.tick.reward + sum(each.value for each in self.counted(quarantined))

    def ends(self, kind: str, quarantined: set[str]) -> bool:
        return any(getattr(each, kind) for each in self.counted(quarantined))

    def outcome(self, quarantined: set[str]) -> str | None:
        return next((each.outcome for each in reversed(self.counted(quarantined)) if each.outcome), None)

    @property
    def action(self) -> str | None:
        """What learning credits: a person's action; the policy's proposal, unless something else blocked it."""
        if not self.tick.armed:
            return None
        if self.tick.by["head"] == "override":
            return str(self.tick.actions["head"])
        blocked = self.tick.refused.get("head")
        return str(self.tick.proposed["head"]) if blocked is None or blocked in PROPOSAL_RULES else None

    @property
    def is_expert(self) -> bool:
        return self.action is not None and (self.tick.by["head"] == "override" or self.shown)


class Life:
    """Makes a case and keeps its books."""

    def __init__(self, seed: int, database: Database) -> None:
        self.rng, self.database, self.seed = np.random.default_rng(seed), database, seed
        self.rows: list[Story] = []
        self.quarantined: set[str] = set()
        self.session, self.tick, self.restarts, self.encoder = f"{seed}-0", 0, 0, 1
        self.now_s = seed * 1_000.0

    def live(self) -> Iterator[None]:
        """Do one thing after another."""
        kinds = (self.act, self.reward, self.reward_by_time, self.mark, self.judge, self.restart, self.swap)
        chances = np.array([12, 7, 3, 1, 1, 0.5, 0.5])
        for kind in self.rng.choice(len(kinds), 24, p=chances / chances.sum()):
            kinds[kind]()
            yield
        for source in sorted(self.quarantined):  # the next case begins without
            if self.rng.random() < 0.5:
                self.release(source)
                yield

    def act(self) -> None:
        self.tick += int(self.rng.choice([1, 1, 1, 2, MAX_GAP, MAX_GAP + 2]))
        self.now_s += 0.1
        proposed, person = (str(self.rng.choice(WORDS)) for _ in range(2))
        kind = self.rng.choice(["policy", "policy", "policy", "override", "forbidden", "stale", "stopped", "nobody"])
        by = {"policy": "policy", "override": "override", "nobody": "none"}.get(kind, "gate")
        executed = {"policy": proposed, "override": person}.get(kind, "stay")
        tick = Transition(
            session=self.session, tick=self.tick, decision=f"{self.session}-{self.tick}", stamp_s=self.now_s, policy="p",
            tokens={"front": np.full((1, 2), len(self.rows), np.float16)}, encoder_versions={"front": f"v{self.encoder}"},
            present={"front": True}, ages_s={"front": 0.0}, actions={} if kind == "nobody" else {"head": executed},
            proposed={"head": proposed}, refused={"head": kind} if kind in {"forbidden", "stale"} else {},
            probabilities={"head": 0.5}, by={"head": by}, armed=kind not in {"stopped", "nobody"},
            reward=float(self.rng.integers(-3, 4)), intervention=kind == "override",
        )  # fmt: skip
        self.rows.append(Story(tick))
        self.database.add(tick)

    def reward(self) -> None:
        if self.rows:
            row = self.rows[-1 - min(int(self.rng.exponential(4)), len(self.rows) - 1)]
            self.say(self.credit(decision=row.tick.decision), row)
        assert not self.database.credit(self.credit(decision=f"unknown-{self.seed}"), 0.0)

    def reward_by_time(self) -> None:
        stamp_s = self.now_s + float(self.rng.uniform(-1.0, 3.0))
        before = [row for row in self.rows if row.tick.stamp_s <= stamp_s]
        row = before[-1] if before and stamp_s - before[-1].tick.stamp_s <= MAX_DELAY_S else None
        self.say(self.credit(stamp_s=stamp_s), row)

    def credit(self, **where: Any) -> Credit:
        end = self.rng.choice(["", "", "", "done", "truncated"])
        outcome = self.rng.choice(["", "", "", "success", "failure"])
        return Credit(
            float(self.rng.integers(-5, 6)), source=str(self.rng.choice(SOURCES)), done=end == "done",
            truncated=end == "truncated", outcome=str(outcome) or None, **where,  # type: ignore[arg-type]
        )  # fmt: skip

    def say(self, credit: Credit, row: Story | None) -> None:
        for _ in range(int(self.rng.choice([1, 1, 2]))):  # a message that arrives twice counts twice
            assert self.database.credit(credit, self.now_s) == (row is not None)
            if row is not None:
                row.reported.append(credit)

    def mark(self) -> None:
        usual = [row for row in self.rows if row.action is not None and row.tick.actions.get("head") == row.action]
        if usual:
            row = usual[int(self.rng.integers(len(usual)))]
            row.shown = True
            assert self.database.mark(Mark(row.tick.decision, demonstration=True))

    def judge(self) -> None:
        source = str(self.rng.choice(SOURCES))
        if source in self.quarantined:
            self.release(source)
        else:
            self.quarantined.add(source)
            self.database.quarantine(source, on=True)

    def release(self, source: str) -> None:
        self.quarantined.discard(source)
        self.database.quarantine(source, on=False)

    def restart(self) -> None:
        self.restarts += 1
        self.session, self.tick = f"{self.seed}-{self.restarts}", 0
        self.now_s += 0.5

    def swap(self) -> None:
        self.encoder += 1

    def expected(self, index: int) -> tuple[float, float, int] | None:
        """The sum of n rewards, the discount, and the row of the next state; None for what is never drawn."""
        rows, quarantined = self.rows, self.quarantined

        def follows(k: int) -> bool:
            if k + 1 >= len(rows) or rows[k].ends("truncated", quarantined):
                return False
            one, two = rows[k].tick, rows[k + 1].tick
            return one.session == two.session and two.tick - one.tick <= MAX_GAP

        def known(k: int) -> bool:
            return rows[k].ends("done", quarantined) or follows(k)

        current = rows[-1].tick.encoder_versions
        if rows[index].action is None or not known(index) or rows[index].tick.encoder_versions != current:
            return None
        total, discount, k = 0.0, 1.0, index
        for _ in range(STEPS):
            total += discount * rows[k].reward(quarantined)
            if rows[k].ends("done", quarantined):
                return total, 0.0, k
            discount *= GAMMA ** (rows[k + 1].tick.tick - rows[k].tick.tick)
            k += 1
            another = rows[k].is_expert and not rows[index].is_expert
            if rows[k].action is None or another or not known(k):
                break
        return total, discount, k


def check_rows(life: Life, reader: Reader, first: int) -> None:
    found = [row.transition for row in reader.rows(first, first + len(life.rows))]
    assert len(found) == len(life.rows)
    for row, stored in zip(life.rows, found, strict=True):
        quarantined = life.quarantined
        assert stored.decision == row.tick.decision
        assert stored.reward == pytest.approx(row.reward(quarantined))
        assert (stored.done, stored.truncated) == tuple(row.ends(kind, quarantined) for kind in ("done", "truncated"))
        assert stored.outcome == row.outcome(quarantined)
        assert stored.credited("head") == row.action


def check_batch(life: Life, replay: ReplayBuffer) -> None:
    wanted = {i: each for i in range(len(life.rows)) if (each := life.expected(i)) is not None}
    batch = replay.ordered(0, len(life.rows))
    if batch is None:
        assert not wanted
        return
    assert batch.features.tokens["front"][:, 0, 0, 0].int().tolist() == list(wanted)
    for b, (i, (total, discount, following)) in enumerate(wanted.items()):
        assert float(batch.rewards[b]) == pytest.approx(total, abs=1e-4)
        assert float(batch.discounts[b]) == pytest.approx(discount, abs=1e-6)
        assert WORDS[int(batch.actions["head"][b])] == life.rows[i].action
        assert bool(batch.is_expert["head"][b]) == life.rows[i].is_expert
        if discount:
            assert int(batch.next_features.tokens["front"][b, 0, 0, 0]) == following


def ingest(replay: ReplayBuffer, source: ExperienceSnapshots, since: SnapshotId) -> SnapshotId:
    until = source.now()
    for change in source.changes(since, until):
        replay.change(change.row, change.after)
    for row in source.rows(since, until):
        replay.versions.update(row.transition.encoder_versions)
        replay.append(row.transition, row.row)
    return until


def test_rows_and_batches_say_what_happened(tmp_path: Path) -> None:
    database = Database(tmp_path, max_bytes=1 << 26, reserve=0.2, raw_retention_s=1.0)
    reader = Reader(tmp_path)
    source = ExperienceSnapshots(reader)
    left: set[str] = set()
    rows = seed = 0
    while rows < CASES:
        seed += 1
        life, since = Life(seed, database), source.now()
        life.quarantined = left
        first, replay = since.row + 1, ReplayBuffer(SPEC, max_bytes=1 << 16, max_rows=100, steps=STEPS)
        with database:
            for _ in life.live():
                if life.rng.random() < 0.15:
                    database.__exit__(None)
                    since = ingest(replay, source, since)
                    database.__enter__()
        ingest(replay, source, since)
        left, rows = life.quarantined, rows + len(life.rows)
        try:
            check_rows(life, reader, first)
            check_batch(life, replay)
        except AssertionError as error:
            raise AssertionError(f"case {seed}: {error}") from error
        if seed % 200 == 199:
            with database:
                database.trim(0.0)
    database.close()
    assert rows >= CASES
