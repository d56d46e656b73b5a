"""What the continual trainer of a task stores between runs: what was judged, rejected and tried, and the anchor's scores."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from learners.continual.labels import Labelled
from learners.continual.old_class_anchor import OldClassAnchors

MAX_REJECTIONS = 3
"""Rejected candidates after which a label never trains again."""


@dataclass(slots=True)
class TrainerState:
    """What a trainer stores between runs."""

    judged: int = 0
    """The last label that was trained on, or that may not train again."""
    number: int = 0
    rejected: list[list[int]] = field(default_factory=list)
    """Ranges of rejected label numbers: first excluded, last included."""
    tried: int = 0
    """The last label of a version that did not go live; a new run waits for more."""
    questions: int = 0
    """Candidates that the held-out file has evaluated."""
    anchor: str = ""
    """The last version that was shown to be better than the anchor before it; empty where there is none."""
    anchor_scores: list[float] = field(default_factory=list)
    """Of the anchor, for each example of the held-out file."""
    file: str = ""
    """Digest of the held-out file that `anchor_scores` and `questions` belong to."""
    old_classes: OldClassAnchors = field(default_factory=OldClassAnchors)
    """The best scores of held-out examples of old classes."""

    @classmethod
    def of(cls, body: dict[str, Any]) -> TrainerState:
        """Return the state as it was stored; what this program does not know is left out."""
        old = OldClassAnchors(**body.get("old_classes", {}))
        old.rows = {key: (int(place), float(score)) for key, (place, score) in old.rows.items()}
        names = {one.name for one in fields(cls)}
        return cls(**{name: value for name, value in body.items() if name in names} | {"old_classes": old})

    def counts(self, label: Labelled) -> bool:
        """Return whether a label may train."""
        return sum(low < label.id <= high for low, high in self.rejected) < MAX_REJECTIONS

    def of_file(self, digest: str) -> TrainerState:
        """Return the state for a held-out file: another file has no anchor and was never used."""
        return self if self.file == digest else replace(self, file=digest, questions=0, anchor="", anchor_scores=[])
