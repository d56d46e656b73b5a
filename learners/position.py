"""Where training is, and its form in a saved state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from learners.source import Moment


@dataclass(slots=True)
class Position:
    """Where training is."""

    update: int = 0
    owed: float = 0.0
    row: int = 0
    change: int = 0
    entry: int = 0
    """Of the journal."""
    recoded: int = 0
    """The last entry of tokens made anew that was taken in."""
    unobserved: int = 0
    """Transitions in the replay that a part which sees each one once has not seen yet."""

    @property
    def moment(self) -> Moment:
        """What was taken in."""
        return Moment(self.row, self.change)


def document(position: Position, trail: int, versions: Mapping[str, str]) -> dict[str, Any]:
    """The position as it is saved, with the trail of what is held and the encoders' versions."""
    return {**asdict(position), "trail": trail, "versions": versions}


def placed(saved: Mapping[str, Any]) -> tuple[Position, int, dict[str, str]]:
    """Where training was, as saved: the position, the trail of what is held, the encoders' versions.

    Raises:
        KeyError, TypeError, ValueError: another version of this program wrote it, with other fields.
    """
    position = dict(saved)
    trail, versions = int(position.pop("trail")), dict(position.pop("versions"))
    return Position(**position), trail, versions
