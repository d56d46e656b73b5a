"""Define what one tick belongs to in the live experiment: the version that acts, and its arm, block, pair and coin.

The control loop puts it into the `decision` message and the recording; the experiment reads it back when the tick is over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from learners.experiment_statistics.switchback import Assignment


@dataclass(frozen=True, slots=True)
class TickVersion:
    """The version of one tick, and its place in an experiment."""

    version: str
    experiment: int | None = None
    """Number of the experiment; None where none is running."""
    assignment: Assignment | None = None
    other: str | None = None
    """The version that it is compared with in this pair."""

    def fields(self) -> dict[str, Any] | None:
        """Return the fields of the `decision` message; None outside an experiment."""
        one = self.assignment
        if one is None:
            return None
        return {
            "number": self.experiment,
            "arm": one.arm,
            "kind": one.kind,
            "block": one.block,
            "pair": one.pair,
            "coin": one.coin,
            "unit": one.unit,
            "washout": one.washout,
        }
