"""Remember which version is trusted, why, and what was decided about each version.

Nothing is trusted before a version is proved better than the untrained policy, or a person makes one live. The anchor is the last
version that was proved better (or that a person chose while nothing was proved). The anchor before it remains as a way back.
Pure: knows no file.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

NOTES = 200
"""Versions with a sentence, the newest."""
SHARE_LEVELS = 3
MAX_CRASHES = 2

TRUSTED_BY = {
    "proof": "live and trusted: it was proved better",
    "request": "live and trusted: a person made it live",
    "import": "live and trusted: a person imported it",
    "upgrade": "live and trusted: it was live before the program was upgraded",
}
"""The sentence on the anchor, by why it is trusted."""
_WITHOUT_PROOF = ("untrusted", "unguarded")


def trust_reason(moved_by: str | None) -> str | None:
    """Return why a live version is trusted, a key of `TRUSTED_BY`, by who moved LIVE; None where it went live without a proof.

    An experiment promotes only what is proved, and the guard returns only to what is trusted. An earlier program noted no one.
    """
    if moved_by is None:
        return "upgrade"
    if moved_by in _WITHOUT_PROOF:
        return None
    return moved_by if moved_by in ("request", "import") else "proof"


@dataclass(slots=True)
class Trust:
    """See the module."""

    anchor: str | None = None
    previous: str | None = None
    """The anchor before, for a return."""
    by: str = ""
    """Why the anchor is trusted: `proof`, `request`, `import` or `upgrade`."""
    pace: int = SHARE_LEVELS - 1
    """Index of the share with which the next challenger begins: rises with each proof, falls with each rejection."""
    undecided: int = 0
    """Challengers in succession, since the last promotion, that were ahead but gave way to a newer one without a proof."""
    experiments: int = 0
    """Number of the last experiment."""
    notes: OrderedDict[str, str] = field(default_factory=OrderedDict)
    """By version, one sentence on why it is live or not."""
    judged: deque[str] = field(default_factory=lambda: deque(maxlen=NOTES))
    """Challengers with a verdict: they are not tried again."""
    crashes: Counter[str] = field(default_factory=Counter)
    """Unexpected ends of the agent, by the version that was new then."""

    def note(self, version: str, sentence: str) -> None:
        """Say why a version is live or not."""
        self.notes[version] = sentence
        self.notes.move_to_end(version)
        while len(self.notes) > NOTES:
            self.notes.popitem(last=False)

    def choose(self, version: str, by: str) -> None:
        """Make a version the anchor."""
        if version != self.anchor:
            self.previous = self.anchor
        self.anchor, self.by = version, by
        if by in ("request", "import", "upgrade"):
            self.pace = 0  # it worked before; nothing says that the learner is close

    def forget(self, version: str) -> None:
        """Drop a version that failed; the one before takes its place."""
        if self.previous == version:
            self.previous = None
        if self.anchor == version:
            self.anchor, self.previous = self.previous, None

    def ended(self, version: str, *, promoted: bool, rejected: bool, gave_way: bool = False) -> None:
        """Note the end of an experiment.

        Args:
            version: the challenger.
            promoted: it was proved better.
            rejected: it was worse.
            gave_way: it was ahead, but a newer one took its place before a proof.
        """
        self.judged.append(version)
        self.undecided = 0 if promoted else self.undecided + int(gave_way)
        self.pace = max(0, min(SHARE_LEVELS - 1, self.pace + int(promoted) - int(rejected)))

    def crashed(self, version: str) -> bool:
        """Count an unexpected end of the agent; return whether it is one too many."""
        self.crashes[version] += 1
        return self.crashes[version] >= MAX_CRASHES

    def dump(self) -> dict[str, Any]:
        """Return the state as plain data."""
        return {
            "anchor": self.anchor,
            "previous": self.previous,
            "by": self.by,
            "pace": self.pace,
            "undecided": self.undecided,
            "experiments": self.experiments,
            "notes": dict(self.notes),
            "judged": list(self.judged),
            "crashes": dict(self.crashes),
        }

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Trust:
        """Restore what `dump` returned.

        Raises:
            KeyError, TypeError, ValueError: the body is malformed.
        """
        found = cls(_name(body["anchor"]), _name(body["previous"]), str(body["by"]))
        found.pace, found.experiments = max(0, min(SHARE_LEVELS - 1, int(body["pace"]))), int(body["experiments"])
        found.undecided = max(0, int(body.get("undecided", 0)))  # an earlier program did not count them
        for version, sentence in body["notes"].items():
            found.note(str(version), str(sentence))
        found.judged.extend(str(name) for name in body["judged"])
        found.crashes.update({str(name): int(count) for name, count in body["crashes"].items()})
        return found


def _name(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"a version is a text, not {value!r}")
    return value
