"""Random lives of an agent, with a slow, obvious reading of what each stored row must say and what is drawn from it.

A life is a sequence of ticks and of what arrives between them. Ticks: an actuator is moved by the policy, as proposed or shortened; by
a person, at the tick or between two; refused by each rule; or not moved, because another one must rest, or because the gate is stopped, disarmed or does not answer.
Streams are missing, choices are masked, ticks are skipped, the agent restarts, encoders change and rows are encoded again, versions are
promoted, the learner dies and refills its buffer. Rewards are late, double, by name or by time, of a quarantined source, with `done`,
`truncated` or an outcome; a person confirms actions. The buffer is small, so that long lives overwrite its main ring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actuators.actions import ActionSpace, Choice, Continuous, Value
from learners.experience.database import Database
from learners.experience.reader import Reader
from learners.experience.records import Credit, Mark
from learners.experience.snapshots import ExperienceSnapshots, SnapshotId
from learners.experience.transition import PROPOSAL_RULES, Transition
from learners.model.spec import PolicySpec, StreamSpec
from learners.rewards.credit_assignment import MAX_DELAY_S
from learners.rl.replay_buffer import MAX_GAP, ReplayBuffer

GAMMA, STEPS, HISTORY = 0.9, 3, 3
WORDS = ("left", "stay", "right")
SOURCES = ("ann", "bob", "world")
ACTUATORS = ("head", "arm")
SPEC = PolicySpec(
    (StreamSpec("front", "image", 1, 2), StreamSpec("joints", "telemetry", 1, 1)),
    ActionSpace((Choice("head", WORDS), Continuous("arm", (-1.0,), (3.0,)))),
    history=HISTORY,
    gamma=GAMMA,
    width=16,
)
MOVED = (
    *("policy", "policy", "policy", "shortened", "override"),
    *("forbidden", "too_fast", "min_hold", "stale", "held", "coupled"),
)
"""What may become of an actuator while the gate lets things move."""
EVENTS = {
    "act": 12.0, "reward": 7.0, "reward_by_time": 3.0, "confirm": 1.0, "judge": 1.0, "restart": 0.5, "swap": 0.4,
    "reencode": 0.6, "promote": 0.3, "refill": 0.3,
}  # fmt: skip
MAX_ROWS = 80
LIVES = 40
"""In one database."""


@dataclass
class Story:
    """One row as reported: the tick, and every report about it, in order."""

    tick: Transition
    reported: list[Credit] = field(default_factory=list)
    shown: bool = False
    """A person confirmed the action."""
    encoder: str = ""
    """The version that made its tokens of `front`."""

    def counted(self, quarantined: set[str]) -> list[Credit]:
        """Return the reports that count."""
        return [each for each in self.reported if each.source not in quarantined]

    def reward(self, quarantined: set[str]) -> float:
        """Return the sum of what the tick earned and of what was reported."""
        return self.tick.reward + sum(each.value for each in self.counted(quarantined))

    def ends(self, kind: str, quarantined: set[str]) -> bool:
        """Return whether a report says `done` or `truncated`."""
        return any(getattr(each, kind) for each in self.counted(quarantined))

    def outcome(self, quarantined: set[str]) -> str | None:
        """Return the outcome of the newest report that has one."""
        return next((each.outcome for each in reversed(self.counted(quarantined)) if each.outcome), None)

    def action(self, name: str) -> Value | None:
        """Return what learning credits: a person's action; the policy's proposal, unless something else blocked it."""
        if not self.tick.armed:
            return None
        if self.tick.by[name] == "override":
            return self.tick.actions[name]
        if self.tick.by[name] == "gate" and name not in self.tick.refused:
            return None  # at rest, because another actuator had to rest
        blocked = self.tick.refused.get(name)
        return self.tick.proposed[name] if blocked is None or blocked in PROPOSAL_RULES else None

    def is_expert(self, name: str) -> bool:
        """Return whether a person set this actuator or confirmed what was executed."""
        action = self.action(name)
        confirmed = self.shown and action is not None and self.tick.actions.get(name) == action
        return action is not None and (self.tick.by[name] == "override" or confirmed)

    @property
    def acted(self) -> bool:
        """Whether policy or person moved anything."""
        return any(self.action(name) is not None for name in ACTUATORS)

    @property
    def expert(self) -> bool:
        """Whether a person set or confirmed anything."""
        return any(self.is_expert(name) for name in ACTUATORS)


class Life:
    """Makes a life and keeps its books.

    Args:
        seed: of everything.
        database: takes the rows; a transaction is open.
        quarantined: sources that are excluded at the beginning.
    """

    def __init__(self, seed: int, database: Database, quarantined: set[str]) -> None:
        self.rng, self.database, self.seed, self.quarantined = np.random.default_rng(seed), database, seed, quarantined
        self.rows: list[Story] = []
        self.session, self.tick, self.restarts, self.encoder, self.policy = f"{seed}-0", 0, 0, 1, 0
        self.now_s = seed * 10_000.0
        self.wanted: set[str] = set()
        """What the caller is to do with the buffer: `reencode`, `refill`."""

    def live(self) -> Iterator[None]:
        """Do one thing after another: a short life, or one that overwrites the buffer."""
        names, chances = list(EVENTS), np.array(list(EVENTS.values()))
        length = int(self.rng.choice([24, 24, 24, 260]))
        for name in self.rng.choice(names, length, p=chances / chances.sum()):
            getattr(self, str(name))()
            yield
        for source in sorted(self.quarantined):  # the next life begins without
            if self.rng.random() < 0.5:
                self.release(source)
                yield

    def act(self) -> None:
        """Make one tick and store it."""
        self.tick += int(self.rng.choice([1, 1, 1, 1, 1, 2, MAX_GAP, MAX_GAP + 1]))
        self.now_s += 0.1
        whole = str(self.rng.choice(["", "", "", "", "", "stopped", "no answer"]))
        proposed: dict[str, Value] = {
            "head": str(self.rng.choice(WORDS)),
            "arm": (float(self.rng.integers(-8, 25)) / 8,),
        }
        fates = {name: whole or str(self.rng.choice(MOVED)) for name in ACTUATORS}
        actions, by, refused = {}, {}, {}
        for name, fate in fates.items():
            person: Value = str(self.rng.choice(WORDS)) if name == "head" else (float(self.rng.integers(-8, 25)) / 8,)
            in_force: Value = "stay" if name == "head" else (0.5,)
            shortened: Value = proposed[name] if name == "head" else (float(proposed[name][0]) / 2,)
            executed = {"policy": proposed[name], "shortened": shortened, "override": person}.get(fate, in_force)
            by[name] = {"policy": "policy", "shortened": "policy", "override": "override", "no answer": "none"}.get(
                fate, "gate"
            )
            if fate != "no answer":
                actions[name] = executed
            if fate in {"forbidden", "too_fast", "min_hold", "stale", "held"}:
                refused[name] = fate
        present = {"front": bool(self.rng.random() < 0.9), "joints": bool(self.rng.random() < 0.9)}
        number = len(self.rows)
        allowed = [word for word in WORDS if word == proposed["head"] or self.rng.random() < 0.7]
        tick = Transition(
            session=self.session, tick=self.tick, decision=f"{self.session}-{self.tick}", stamp_s=self.now_s, policy=f"p{self.policy}",
            tokens={"front": np.full((1, 2), number, np.float16), "joints": np.full((1, 1), number, np.float32)},
            encoder_versions={"front": f"v{self.encoder}"}, present=present, ages_s={"front": number / 8, "joints": 0.0},
            actions=actions, proposed=proposed, refused=refused,
            allowed={"head": tuple(allowed)} if len(allowed) < len(WORDS) and self.rng.random() < 0.5 else {},
            probabilities={"head": float(self.rng.integers(1, 9)) / 8, "arm": float(self.rng.integers(1, 99)) / 8}, by=by,
            armed=not whole, reward=float(self.rng.integers(-3, 4)), intervention="override" in by.values(),
            value=float(self.rng.integers(-9, 9)),
        )  # fmt: skip
        if not whole and self.rng.random() < 0.1:  # a person's command that began and ended before the next tick
            tick = tick.overridden({"head": str(self.rng.choice(WORDS))})
        self.rows.append(Story(tick, encoder=f"v{self.encoder}"))
        self.database.add(tick)

    def reward(self) -> None:
        """Reward one of the last decisions by its name, and one that does not exist."""
        if self.rows:
            row = self.rows[-1 - min(int(self.rng.exponential(4)), len(self.rows) - 1)]
            self.say(self.credit(decision=row.tick.decision), row)
        assert not self.database.credit(self.credit(decision=f"unknown-{self.seed}"), 0.0)

    def reward_by_time(self) -> None:
        """Reward what was in force at a moment."""
        stamp_s = self.now_s + float(self.rng.uniform(-1.0, 3.0))
        before = [row for row in self.rows if row.tick.stamp_s <= stamp_s]
        row = before[-1] if before and stamp_s - before[-1].tick.stamp_s <= MAX_DELAY_S else None
        self.say(self.credit(stamp_s=stamp_s), row)

    def credit(self, **where: Any) -> Credit:
        """Make a report."""
        end = self.rng.choice(["", "", "", "", "", "done", "truncated"])
        outcome = self.rng.choice(["", "", "", "", "success", "failure"])
        return Credit(
            float(self.rng.integers(-5, 6)), source=str(self.rng.choice(SOURCES)), done=end == "done",
            truncated=end == "truncated", outcome=str(outcome) or None, **where,  # type: ignore[arg-type]
        )  # fmt: skip

    def say(self, credit: Credit, row: Story | None) -> None:
        """Report; a message that arrives twice counts twice."""
        for _ in range(int(self.rng.choice([1, 1, 2]))):
            assert self.database.credit(credit, self.now_s) == (row is not None)
            if row is not None:
                row.reported.append(credit)

    def confirm(self) -> None:
        """Let a person confirm a decision."""
        if self.rows:
            row = self.rows[int(self.rng.integers(len(self.rows)))]
            row.shown = True
            assert self.database.mark(Mark(row.tick.decision, demonstration=True))

    def judge(self) -> None:
        """Quarantine a source, or release it."""
        source = str(self.rng.choice(SOURCES))
        if source in self.quarantined:
            self.release(source)
        else:
            self.quarantined.add(source)
            self.database.quarantine(source, on=True)

    def release(self, source: str) -> None:
        """Release a source."""
        self.quarantined.discard(source)
        self.database.quarantine(source, on=False)

    def restart(self) -> None:
        """Restart the agent."""
        self.restarts += 1
        self.session, self.tick = f"{self.seed}-{self.restarts}", 0
        self.now_s += 0.5

    def swap(self) -> None:
        """Change the encoder."""
        self.encoder += 1

    def promote(self) -> None:
        """Let another version act."""
        self.policy += 1

    def reencode(self) -> None:
        """Encode some rows again with the present encoder."""
        self.wanted.add("reencode")

    def refill(self) -> None:
        """Let the learner die."""
        self.wanted.add("refill")

    def follows(self, k: int) -> bool:
        """Return whether the state after a row is known: the next row of the episode, unless ticks are missing."""
        if k + 1 >= len(self.rows) or self.rows[k].ends("truncated", self.quarantined):
            return False
        one, two = self.rows[k].tick, self.rows[k + 1].tick
        return one.session == two.session and two.tick - one.tick <= MAX_GAP

    def known(self, k: int) -> bool:
        """Return whether a row ends the world or its successor is known."""
        return self.rows[k].ends("done", self.quarantined) or self.follows(k)

    def walks(self, index: int) -> list[tuple[float, float, int]]:
        """Return the sum of rewards, the discount and the row of the state that follows, after each step; none for what is never drawn."""
        rows, quarantined = self.rows, self.quarantined
        versions = rows[-1].tick.encoder_versions["front"]
        is_outdated = rows[index].tick.present["front"] and rows[index].encoder != versions
        if not rows[index].acted or not self.known(index) or is_outdated:
            return []
        found, total, discount, k = [], 0.0, 1.0, index
        for _ in range(STEPS):
            total += discount * rows[k].reward(quarantined)
            if rows[k].ends("done", quarantined):
                return [*found, (total, 0.0, k)]
            discount *= GAMMA ** (rows[k + 1].tick.tick - rows[k].tick.tick)
            k += 1
            found.append((total, discount, k))
            if not rows[k].acted or (rows[k].expert and not rows[index].expert) or not self.known(k):
                break
        return found

    def history(self, index: int) -> list[int]:
        """Return the rows that the policy saw at a decision, oldest first."""
        seen = [k for k in range(index + 1) if self.rows[k].tick.session == self.rows[index].tick.session][-HISTORY:]
        return [seen[0]] * (HISTORY - len(seen)) + seen


def check_rows(life: Life, reader: Reader, first: int) -> None:
    """Compare every stored row with its story."""
    found = [row.transition for row in reader.rows(first, first + len(life.rows))]
    assert len(found) == len(life.rows)
    same = (
        "session",
        "tick",
        "decision",
        "stamp_s",
        "policy",
        "present",
        "ages_s",
        "actions",
        "proposed",
        "refused",
        "allowed",
    )
    for row, stored in zip(life.rows, found, strict=True):
        for name in (*same, "probabilities", "by", "armed", "intervention", "value", "encoder_versions"):
            assert getattr(stored, name) == getattr(row.tick, name), name
        assert stored.reward == pytest.approx(row.reward(life.quarantined))
        assert stored.done == row.ends("done", life.quarantined)
        assert stored.truncated == row.ends("truncated", life.quarantined)
        assert stored.outcome == row.outcome(life.quarantined)
        assert stored.demonstration == row.shown
        assert {name: stored.credited(name) for name in ACTUATORS} == {name: row.action(name) for name in ACTUATORS}
        assert stored.at_rest != row.acted


def check_batch(life: Life, replay: ReplayBuffer) -> None:
    """Compare what is drawn of the main ring with the slow reading."""
    oldest = max(0, len(life.rows) - replay.capacity)
    wanted = {i: each[-1] for i in range(oldest, len(life.rows)) if (each := life.walks(i))}
    batch = replay.ordered(0, len(life.rows))
    if batch is None:
        assert not wanted
        return
    numbers = replay.numbers(0, len(life.rows))
    first = numbers[0] - min(wanted)
    assert [number - first for number in numbers] == list(wanted)
    assert batch.rewards.tolist() == pytest.approx([total for total, _, _ in wanted.values()], abs=1e-4)
    assert batch.discounts.tolist() == pytest.approx([discount for _, discount, _ in wanted.values()], abs=1e-6)
    is_masked = any(row.tick.allowed for row in life.rows[oldest:])
    for b, (i, (_, discount, following)) in enumerate(wanted.items()):
        check_step(life, batch, b, i)
        if i - HISTORY + 1 >= oldest:
            check_seen(life, batch.features, b, i)
        if discount and following - HISTORY + 1 >= oldest:
            check_seen(life, batch.next_features, b, following)
        if is_masked:
            assert batch.allowed["head"][b].tolist() == allowed_words(life.rows[i])
            assert batch.masks["head"][b].tolist() == allowed_words(life.rows[following])


def allowed_words(row: Story) -> list[bool]:
    """Return which choices the gate would have let pass, as the policy knew them."""
    return [word in row.tick.allowed.get("head", WORDS) for word in WORDS]


def check_step(life: Life, batch: Any, b: int, i: int) -> None:
    """Compare actions and flags of one row of a batch."""
    row = life.rows[i]
    for name in ACTUATORS:
        action = row.action(name)
        assert bool(batch.acted[name][b]) == (action is not None)
        assert bool(batch.is_expert[name][b]) == row.is_expert(name)
        value = row.tick.actions.get(name) if action is None else action
        if name == "head":
            assert WORDS[int(batch.actions["head"][b])] == (WORDS[0] if value is None else value)
        else:
            assert batch.actions["arm"][b].tolist() == ([1.0] if value is None else list(value))


def check_seen(life: Life, features: Any, b: int, i: int) -> None:
    """Compare what the policy saw at a row with its history."""
    versions = life.rows[-1].tick.encoder_versions["front"]
    for h, k in enumerate(life.history(i)):
        row = life.rows[k]
        there = [row.tick.present["front"] and row.encoder == versions, row.tick.present["joints"]]
        assert features.present[b, h].tolist() == there
        for name, is_there in zip(("front", "joints"), there, strict=True):
            if is_there:
                assert float(features.tokens[name][b, h, 0, 0]) == k % 2048
        if there[0]:
            assert float(features.ages[b, h, 0]) == row.tick.ages_s["front"]


def check_reserve(life: Life, replay: ReplayBuffer, first: int) -> None:
    """Compare what is drawn of the reserve: a chain may be shorter there, but never joins rows that had others between them."""
    lists = replay._sampler.special()
    at = np.concatenate(list(lists.values()))
    at = np.unique(at[at >= replay._main.stop])
    if not len(at):
        return
    batch = replay.batch(at)
    for b, number in enumerate(replay._columns.number_N[at]):
        i = int(number) - first
        found = (float(batch.rewards[b]), float(batch.discounts[b]))
        walks = [(total, discount) for total, discount, _ in life.walks(i)]
        assert any(found == pytest.approx(each, abs=1e-4) for each in walks), (i, found, walks)
        check_step(life, batch, b, i)


class Learned:
    """The learner's buffer over one life: takes what is new, encodes again, dies and refills.

    Args:
        source: moments of the store.
        since: where the life begins.
    """

    def __init__(self, source: ExperienceSnapshots, since: SnapshotId) -> None:
        self.source, self.since, self.first = source, since, since.row + 1
        self.replay = self._empty()

    def _empty(self) -> ReplayBuffer:
        return ReplayBuffer(SPEC, max_bytes=1 << 18, max_rows=MAX_ROWS, steps=STEPS)

    def ingest(self) -> None:
        """Take everything up to now."""
        until = self.source.now()
        for change in self.source.changes(self.since, until):
            self.replay.change(change.row, change.after)
        for row in self.source.rows(self.since, until):
            self.replay.versions.update(row.transition.encoder_versions)
            self.replay.append(row.transition, row.row)
        self.since = until

    def follow(self, life: Life) -> None:
        """Do to the buffer what the life wants."""
        if "refill" in life.wanted:
            held, versions = self.replay.held(), self.replay.versions
            self.replay = self._empty()
            self.replay.versions = versions
            self.replay.refill(held, self.source.pick(sorted({*held.main, *held.reserve}), self.since))
            assert self.replay.held() == held
            for number in (*held.main, *held.reserve):
                row = life.rows[number - self.first]
                if row.tick.present["front"] and row.encoder != row.tick.encoder_versions["front"]:
                    assert self.replay.retoken(number, "front", row.encoder, row.tick.tokens["front"])
        if "reencode" in life.wanted and "front" in self.replay.versions:
            version = self.replay.versions["front"]
            for number in self.replay.stale()["front"]:
                row = life.rows[number - self.first]
                if life.rng.random() < 0.7:
                    assert self.replay.retoken(number, "front", version, row.tick.tokens["front"])
                    row.encoder = version
        life.wanted.clear()


def compare(
    folder: Path, rows: int, first_seed: int = 1, report: Callable[[int, int], None] = lambda _rows, _lives: None
) -> tuple[int, int]:
    """Compare at least `rows` rows of lives with the slow reading; return the numbers of rows and of lives.

    Args:
        folder: for the databases.
        rows: to compare at least.
        first_seed: of the first life; each life has the next one.
        report: called with the rows and lives so far, after each database.

    Raises:
        AssertionError: the first difference, with the seed of its life.
    """
    torch.set_num_threads(1)
    compared = lives = 0
    while compared < rows:  # a quarantine changes every row of a database, so that each one has few lives
        (folder / str(lives)).mkdir()
        compared, lives = _compare(folder / str(lives), rows, compared, lives, first_seed)
        report(compared, lives)
    return compared, lives


def _compare(folder: Path, rows: int, compared: int, lives: int, first_seed: int) -> tuple[int, int]:
    """Compare the lives of one database; return the rows and lives so far."""
    database = Database(folder, max_bytes=1 << 28, reserve=0.2, raw_retention_s=1.0)
    source = ExperienceSnapshots(Reader(folder))
    left: set[str] = set()
    stop = lives + LIVES
    while compared < rows and lives < stop:
        seed = first_seed + lives
        life, learned = Life(seed, database, left), Learned(source, source.now())
        with database:
            for _ in life.live():
                if life.rng.random() < 0.15 or life.wanted:
                    database.__exit__(None)
                    learned.ingest()
                    learned.follow(life)
                    database.__enter__()
        learned.ingest()
        try:
            check_rows(life, source.reader, learned.first)
            if life.rows:
                check_batch(life, learned.replay)
                check_reserve(life, learned.replay, learned.first)
        except AssertionError as error:
            raise AssertionError(f"life {seed}: {error}") from error
        compared, lives = compared + len(life.rows), lives + 1
    with database:
        database.trim(0.0)
    database.close()
    source.reader.close()
    return compared, lives
