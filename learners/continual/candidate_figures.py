"""A trained candidate of a task with its figures, as the decision on it and its report need them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from learners.continual.candidate_training import TrainedCandidate
from learners.continual.evaluation import CandidateMetrics
from learners.continual.old_class_anchor import AnchoredRow


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trained candidate with its figures; `evaluated` where there is a held-out file."""

    trained: TrainedCandidate
    figures: dict[str, Any]
    evaluated: CandidateMetrics | None
    old_classes: dict[str, AnchoredRow] = field(default_factory=dict)
    """Held-out examples of old classes, compared with the best version of each."""
    missing: dict[str, int] = field(default_factory=dict)
    """Labels by part, `held-out` and `validation`, without which no candidate could be shown to be better than chance."""

    @property
    def conclusive(self) -> dict[str, Any]:
        """The figures without an agreement that even a candidate without a mistake could not bring above chance."""
        names = {"held-out": "agreement_low", "validation": "validation_agreement_low"}
        void = {names[part] for part, count in self.missing.items() if count}
        return {name: value for name, value in self.figures.items() if name not in void}
