"""Monitor a newly promoted version for a while (probation), and roll it back if it is worse than the version before.

Three figures are compared with the version before:

- the rewards of its own decisions, in blocks of one second of acting, against the last minutes;
- how often the gate rejects its actions, in the same blocks;
- the returns of its episodes, if rewards have `done`, against the last episodes of versions that passed.

`sequential_tests.py` contains the tests. They share alpha, so that together they roll back an equally good version with
probability at most alpha. A version is also rolled back if the agent died twice during its probation. Without a version before,
or with too little data about it, nothing is compared, and the figures report that.

This module only decides. `runtime/deploy/probation_monitor.py` acts in the agent, which continues when the learner fails, and stores the
state in a file. The learner reads there whether a version is on probation, and proposes no other candidate meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from learners.safeguards.reward_ledger import LedgerEntry
from learners.safeguards.version_comparison import VersionComparison
from learners.safeguards.version_statistics import BLOCK_S, CompletedBlock, VersionStatistics

CONFIRMED = 64
"""Names of versions that passed, the newest."""
SEEN_EPISODES = 3
"""Whole episodes that a probation waits for, where there are episodes."""
MAX_CRASHES = 2
FILE = "probation.json"
"""In the state folder."""
PATIENCE = 2.0
"""Longest probation, as a multiple of its seconds of acting: the wait for a policy that may not act ends then."""
IDLE_S = 15.0
"""A version that has not acted after so long, such as in shadow mode, is not waited for at all."""
FORMAT = 1


@dataclass(frozen=True, slots=True)
class ProbationVerdict:
    """The end of a probation."""

    version: str
    before: str | None
    passed: bool
    why: str
    """`rewards`, `returns`, `refusals`, `crashes`; `time` when it is over without any of these."""
    figures: dict[str, Any]


@dataclass(slots=True)
class Trial:
    """One version on probation."""

    version: str
    before: str | None
    begun_s: float
    """Unix seconds."""
    crashes: int = 0
    seconds: int = 0
    """Of acting so far."""
    watched: VersionStatistics = field(default_factory=VersionStatistics)
    compared: VersionComparison = field(default_factory=VersionComparison)


@dataclass(slots=True)
class Probation:
    """See the module.

    Args:
        lasts_s: seconds of acting; 0 ends it at once.
        margin: how much the mean reward of a decision may be lower.
        alpha: how probably an equal version is taken out.
    """

    lasts_s: float = 60.0
    margin: float = 0.05
    alpha: float = 0.05
    good: str | None = None
    """The last version that passed: what a rollback goes back to."""
    known: VersionStatistics = field(default_factory=VersionStatistics)
    """What came of the good version's decisions."""
    confirmed: deque[str] = field(default_factory=lambda: deque(maxlen=CONFIRMED))
    trial: Trial | None = None

    def acts(self, version: str, now_s: float) -> Trial | None:
        """Record that a version acts from now on; return its trial, if one begins."""
        if self.trial is not None and self.trial.version == version:
            return None
        if version == self.good or version in self.confirmed or self.lasts_s <= 0:
            self.trust(version)
            return None
        if self.good is None and self.trial is not None:
            self.trust(self.trial.version)  # no version has passed yet: use the one that acted before
        self.trial = Trial(version, self.good, now_s)
        self.known.interrupt()
        self._arm(self.trial)
        return self.trial

    def trust(self, version: str) -> None:
        """Record that a version is good: it passed, or is one that did."""
        if version != self.good:
            before, self.known = self.known, VersionStatistics()
            if self.trial is not None and self.trial.version == version:
                self.known = self.trial.watched
                self.known.follow(before)
            self.good = version
        if version not in self.confirmed:
            self.confirmed.append(version)
        self.trial = None

    def crashed(self) -> ProbationVerdict | None:
        """Record an unexpected end of the agent; return the verdict if it is one too many."""
        trial = self.trial
        if trial is None:
            return None
        trial.crashes += 1
        return self._verdict("crashes") if trial.crashes >= MAX_CRASHES and trial.before is not None else None

    def observe(self, entries: Iterable[LedgerEntry], without: frozenset[str] = frozenset()) -> ProbationVerdict | None:
        """Take settled decisions, oldest first; rewards of the sources in `without` do not count."""
        for entry in entries:
            verdict = self._take(entry, entry.total(without))
            if verdict is not None:
                return verdict
        return None

    def _take(self, entry: LedgerEntry, reward: float | None) -> ProbationVerdict | None:
        trial = self.trial
        watched, version = (self.known, self.good) if trial is None else (trial.watched, trial.version)
        if not entry.acted or entry.version != version:
            watched.interrupt()
            return None
        done = watched.add(entry.stamp_s, reward, refused=entry.refused, done=entry.done)
        return None if trial is None else self._judge(trial, done)

    def _judge(self, trial: Trial, done: CompletedBlock) -> ProbationVerdict | None:
        """Evaluate what a decision of the version on probation completed."""
        trial.seconds += done.refused is not None
        worse = trial.compared.update(done)
        if worse is not None:
            return self._verdict(worse)
        return self._verdict("time") if self._over(trial) else None

    def _over(self, trial: Trial) -> bool:
        """It has acted long enough, and for some episodes where there are any."""
        so_far_s = trial.seconds * BLOCK_S
        episodic = bool(self.known.returns or trial.watched.returns)
        enough = not episodic or len(trial.watched.returns) >= SEEN_EPISODES
        return so_far_s >= self.lasts_s * (1.0 if enough else PATIENCE)

    def _verdict(self, why: str) -> ProbationVerdict:
        trial = self.trial
        assert trial is not None
        return ProbationVerdict(trial.version, trial.before, why == "time", why, self.figures())

    def _arm(self, trial: Trial) -> None:
        """Set up the tests against what is known of the good version."""
        if trial.before is None:
            trial.compared = VersionComparison(reason="no earlier version to compare with or to roll back to")
        else:
            trial.compared = VersionComparison.of(self.known, trial.watched, margin=self.margin, alpha=self.alpha)

    def figures(self) -> dict[str, Any]:
        """Return the probation's numbers so far; empty if there is none."""
        trial = self.trial
        if trial is None:
            return {}
        figures: dict[str, Any] = {"seconds": trial.seconds, "lasts_s": self.lasts_s, "crashes": trial.crashes}
        figures["rewarded_s"] = len(trial.watched.rewards)
        return figures | trial.compared.figures() | {"alpha": self.alpha}

    def dump(self) -> dict[str, Any]:
        """Return the state as plain data."""
        trial = self.trial
        return {
            "format": FORMAT,
            "lasts_s": self.lasts_s,
            "good": self.good,
            "confirmed": list(self.confirmed),
            "known": self.known.dump(),
            "trial": None
            if trial is None
            else {
                **{name: getattr(trial, name) for name in ("version", "before", "begun_s", "crashes", "seconds")},
                "watched": trial.watched.dump(),
            },
        }

    def restore(self, body: dict[str, Any]) -> None:
        """Restore the state that `dump` returned; the tests are computed again from the blocks.

        Raises:
            KeyError, TypeError, ValueError: the body is malformed.
        """
        if body["format"] != FORMAT:
            raise ValueError(f"format {body['format']!r}; this program reads {FORMAT}")
        known, trial = VersionStatistics.of(body["known"]), None
        if body["trial"] is not None:
            fields = dict(body["trial"])
            watched = VersionStatistics.of(fields.pop("watched"))
            trial = Trial(**fields, watched=watched)
        self.good, self.known, self.trial = body["good"], known, trial
        self.confirmed.extend(body["confirmed"])
        if trial is not None:
            self._arm(trial)
            trial.compared.replay(trial.watched)


def on_probation(state_dir: Path, now_s: float) -> bool:
    """Return whether a version is on probation at a Unix time, by the agent's file; without a file, False."""
    try:
        body = orjson.loads((state_dir / FILE).read_bytes())
        trial = body["trial"]
        if trial is None:
            return False
        so_far_s = now_s - float(trial["begun_s"])
        return so_far_s < (PATIENCE * float(body["lasts_s"]) if trial["seconds"] else IDLE_S)
    except (FileNotFoundError, orjson.JSONDecodeError, KeyError, TypeError):
        return False
