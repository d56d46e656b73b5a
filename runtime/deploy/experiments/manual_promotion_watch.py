"""Notice at once when a version that a person made live earns far less than the trusted version did.

Mean rewards of each second of acting, before and after the change, in an anytime-valid test (`learners/experiment_statistics/sequential_tests.py`).
This is weaker evidence than pairs: a world that became harder at that moment looks the same. It only serves versions that no
experiment has judged, and only for `ALONE_S` seconds; pairs decide afterwards.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from learners.experiment_statistics.sequential_tests import Baseline, MixtureSprt
from learners.safeguards.reward_ledger import LedgerEntry

ALONE_S = 30.0
"""Seconds that such a version acts alone, before it takes turns with the trusted one."""
ALPHA = 0.01
SECONDS = 300
VERSIONS = 4


@dataclass(slots=True)
class RewardDropCheck:
    """Takes settled decisions; see the module."""

    seconds: OrderedDict[str, deque[float]] = field(default_factory=OrderedDict)
    """Mean rewards of the last seconds of acting, by version."""
    watched: str | None = None
    acted_s: int = 0
    """Seconds of acting of the watched version."""
    _test: MixtureSprt | None = None
    _second: int = -1
    _version: str = ""
    _total: float = 0.0
    _count: int = 0

    def begin(self, version: str, reference: str) -> None:
        """Watch a version from now on, against what the reference earned."""
        self.watched, self.acted_s = version, 0
        known = Baseline.of(self.seconds.get(reference, ()))
        self._test = None if known is None else MixtureSprt(known, ALPHA, 0.0)

    def settled(self, entries: Iterable[LedgerEntry], without: frozenset[str]) -> bool:
        """Take settled decisions, oldest first; return whether the watched version fell."""
        fell = False
        for entry in entries:
            if not entry.acted:
                continue
            second = int(entry.stamp_s)
            if (second, entry.version) != (self._second, self._version):
                fell |= self._complete()
                self._second, self._version, self._total, self._count = second, entry.version, 0.0, 0
            self._total += entry.total(without) or 0.0
            self._count += 1
        return fell

    def _complete(self) -> bool:
        """Close a second; return whether the test rejects."""
        if not self._count:
            return False
        mean = self._total / self._count
        self.seconds.setdefault(self._version, deque(maxlen=SECONDS)).append(mean)
        while len(self.seconds) > VERSIONS:
            self.seconds.popitem(last=False)
        if self._version != self.watched:
            return False
        self.acted_s += 1
        return self._test is not None and self._test.update(mean)
