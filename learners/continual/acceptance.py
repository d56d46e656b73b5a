"""Decide about a fine-tuned version: promoted, rejected, or inconclusive.

A candidate is promoted if all of this is true on the operator's held-out file:

1. On the classes that it trained on, it agrees with the file better than chance. For single labels, Wilson's lower bound of the
   agreement at 95 % is above the agreement of two independent raters with the same class frequencies, as in Cohen's kappa. For sets
   of labels, tags, spans, texts and turns see `chance_agreement.py`.
2. On the whole file, it is not shown to be worse than the version before, and than the anchor, by more than
   `finetune.max_metric_drop`: the upper bound of the paired difference at 97.5 % is above minus that drop. The anchor is the last version
   that was shown to be better than the anchor before it, so small losses do not add up.
3. On the classes that the version before knew, its metric is at most `finetune.max_forgetting` lower. Of one label, the most
   probable known class is the answer here. The share of these examples that it takes for new classes is at most
   `finetune.max_confusion`.
4. No slice of `finetune.slices` with at least 20 rows is shown to be worse than with the version before by more than
   `finetune.max_slice_drop`, even if the mean is better.

A rule that only rejects what is shown to be worse selects little among equal candidates. So the file's metric stays honest, however often
it is asked; a rule "at least as good on the file" accepts lucky candidates and wears the file out. A new anchor needs more confidence
with every question. The figures contain the number of questions.

Labels can only reject a candidate. They do if the candidate agrees with the validation labels no better than chance: nothing in them
can be learned. They also do if the version before agrees with the labels of its own classes less than chance (upper bound), although
the file confirms that version: they are turned round. Honest labels of hard cases agree at chance level and are not rejected.

Without a file the result is inconclusive, and the candidate is not promoted. The same holds where the held-out or
validation labels are so few that even a candidate without a mistake would not be better than chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import stdtrit

from learners.config.tasks import FinetuneSettings
from learners.finetune.error_analysis.slices import lost

Z95 = 1.645
ROUNDING = 1e-9
"""Of means of scores."""
LEAST_VALIDATION = 8
"""Validation labels below which agreement at chance level says little of the labels."""
CONFIDENCE = 0.975
"""Of the paired bound on the held-out file, one-sided."""
Outcome = Literal["promoted", "rejected", "inconclusive"]
EVENTS: dict[Outcome, str] = {
    "promoted": "task_promoted",
    "rejected": "task_rejected",
    "inconclusive": "task_awaiting_approval",
}


@dataclass(frozen=True, slots=True)
class AcceptanceVerdict:
    """What became of a candidate, with its numbers; `fields` is what an event carries."""

    task: str
    outcome: Outcome
    reason: str
    version: str | None
    """The stored version: live, or waiting for an operator."""
    figures: dict[str, Any]
    held_out: Literal["none", "file", "labels"]
    """Where what judged came from."""
    blamed: tuple[dict[str, Any], ...] = ()
    """The sources of labels that lowered the held-out metric, each with the fields of `source_quarantined`."""

    @property
    def promoted(self) -> bool:
        """Whether it is live."""
        return self.outcome == "promoted"

    @property
    def event(self) -> str:
        """The event's type."""
        return EVENTS[self.outcome]

    @property
    def fields(self) -> dict[str, Any]:
        """Everything, flat; the slices are in the reports only."""
        return {
            "task": self.task,
            "verdict": self.outcome,
            "reason": self.reason,
            "version": self.version,
            "held_out": self.held_out,
            **{name: value for name, value in self.figures.items() if name != "slices"},
        }


def rejection_reason(figures: Mapping[str, Any], settings: FinetuneSettings) -> str | None:
    """Return why a candidate is rejected, by its metrics on the held-out file; None if it passes."""
    if (finding := below_chance(figures, "labels_")) is not None:
        return f"the new labels contradict the live version: {finding}"
    if (finding := by_chance(figures, "validation_")) is not None:
        return f"labels look like noise: validation agreement is at chance level: {finding}"
    if (finding := by_chance(figures, "")) is not None:
        return f"the candidate disagrees with the held-out file on the classes it was trained on: {finding}"
    for name, other in (("before", "the version before"), ("anchor", "the anchor")):
        upper = figures.get(f"{name}_upper")
        if upper is not None and upper < -settings.max_metric_drop:
            return (
                f"worse than {other} on the held-out file: {figures['all_after']:.3f} after {figures[f'all_{name}']:.3f}, "
                f"difference at most {upper:+.3f}"
            )
    return forgetting_reason(figures, settings) or slice_reason(figures, settings)


def slice_reason(figures: Mapping[str, Any], settings: FinetuneSettings) -> str | None:
    """Return a text about the slice that lost most if the loss is shown to be above the limit."""
    found = lost(figures.get("slices", ()), settings.max_slice_drop)
    if not found:
        return None
    worst = found[0]
    others = f", and {len(found) - 1} more" if len(found) > 1 else ""
    return (
        f"the slice {worst['rule']}={worst['value']} lost: {worst['metric']:.3f} after {worst['before']:.3f} on its "
        f"{worst['examples']} held-out rows, difference at most {worst['difference_high']:+.3f}{others}"
    )


def forgetting_reason(figures: Mapping[str, Any], settings: FinetuneSettings) -> str | None:
    """Return a text about the forgetting of a candidate if it is above the limit."""
    if "known_before" not in figures:
        return None
    before, confused = figures["known_before"], figures.get("confused_with_new", 0.0)
    after = figures.get("known_among_after", figures["known_after"])
    new = f"; {confused:.1%} are taken for new classes" if "confused_with_new" in figures else ""
    if after < before - settings.max_forgetting:
        return f"forgetting: metric on known classes fell from {before:.3f} to {after:.3f}{new}"
    if (reason := _lost_since_anchor(figures, settings)) is not None:
        return reason
    if confused > settings.max_confusion:
        return f"confusion: {confused:.1%} of the known classes are taken for new ones; among known classes the metric is {after:.3f}"
    if (low := figures.get("confused_class_low", 0.0)) > settings.max_confusion:
        return f"confusion: at least {low:.1%} of the known class {figures['confused_class']} are taken for new ones"
    return None


def _lost_since_anchor(figures: Mapping[str, Any], settings: FinetuneSettings) -> str | None:
    """Return a text if old classes have lost more than the limit since their best version, over all fine-tunes since then."""
    if "old_anchor" not in figures:
        return None
    best, after = figures["old_anchor"], figures["old_after"]
    if after < best - settings.max_forgetting - ROUNDING:
        return f"forgetting: score on old classes fell from {best:.3f} to {after:.3f} since their best version"
    if (high := figures.get("old_group_high", 0.0)) < -settings.max_forgetting:
        return f"forgetting: a group of old classes lost at least {-high:.3f} since its best version"
    if (low := figures["old_newer_low"]) > settings.max_confusion:
        return f"confusion: at least {low:.1%} of old classes are taken for classes that came after them"
    return None


def by_chance(figures: Mapping[str, Any], of: str) -> str | None:
    """Return a text with the numbers if an agreement is no better than chance; None if it is better or was not measured."""
    low, chance = figures.get(f"{of}agreement_low", 1.0), figures.get(f"{of}chance", 0.0)
    if low > chance:
        return None
    return f"agreement {figures[f'{of}agreement']:.3f} (at least {low:.3f}) against {chance:.3f} by chance"


def below_chance(figures: Mapping[str, Any], of: str) -> str | None:
    """Return a text with the numbers if an agreement is shown to be lower than chance; None otherwise."""
    high, chance = figures.get(f"{of}agreement_high", 1.0), figures.get(f"{of}chance", 0.0)
    if high >= chance:
        return None
    return f"agreement {figures[f'{of}agreement']:.3f} (at most {high:.3f}) against {chance:.3f} by chance"


def labels_at_fault(figures: Mapping[str, Any]) -> bool:
    """Return whether enough validation labels show that nothing in the labels can be learned, or that they are turned round."""
    noise = by_chance(figures, "validation_") is not None and figures.get("validation_labels", 0.0) >= LEAST_VALIDATION
    return noise or below_chance(figures, "labels_") is not None


def inconclusive_reason(task: str, version: str) -> str:
    """Return the reason of an inconclusive result."""
    return (
        f"inconclusive: no held-out file; name one under tasks.{task}.eval_file, or promote it yourself: request/promote"
        f' {{"task": "{task}", "version": "{version}"}}'
    )


def agreement(wanted: Sequence[str], found: Sequence[str]) -> dict[str, float]:
    """Agreement, its bounds (Wilson 1927, one-sided 95 % each), and chance agreement (Cohen 1960).

    With one label alone there is nothing to confuse: chance is then one half.
    """
    n = len(wanted)
    agreed = sum(w == f for w, f in zip(wanted, found, strict=True)) / n
    chance = sum((wanted.count(label) / n) * (list(found).count(label) / n) for label in set(wanted))
    if len(set(wanted)) == 1:
        chance = 0.5
    centre = agreed + Z95**2 / (2 * n)
    spread = Z95 * math.sqrt(agreed * (1 - agreed) / n + Z95**2 / (4 * n * n))
    scale = 1 + Z95**2 / n
    return {
        "agreement": agreed,
        "agreement_low": (centre - spread) / scale,
        "agreement_high": (centre + spread) / scale,
        "chance": chance,
    }


def more_needed(wanted: Sequence[str]) -> int:
    """Return how many more examples of the same class frequencies a candidate without a mistake needs to be better than chance.

    Wilson's lower bound of n right answers of n is n / (n + z^2). 0 where the examples suffice, or where there are none.
    """
    if not wanted:
        return 0
    chance = sum((wanted.count(label) / len(wanted)) ** 2 for label in set(wanted)) if len(set(wanted)) > 1 else 0.5
    return max(0, math.floor(chance * Z95**2 / (1.0 - chance)) + 1 - len(wanted))


def too_few_reason(task: str, version: str, missing: Mapping[str, int]) -> str:
    """Return the reason of a result that is inconclusive because even a candidate without a mistake could not pass."""
    needed = " and ".join(f"about {count} more {part} labels" for part, count in missing.items() if count)
    return (
        f"inconclusive: too few labels to test any candidate: {needed} of the trained classes are needed; label more, or"
        f' promote it yourself: request/promote {{"task": "{task}", "version": "{version}"}}'
    )


def anchor_confidence(question: int) -> float:
    """Return the confidence that a new anchor needs at the n-th question to a file, so that all questions together err in 5 %."""
    return 1.0 - 0.05 * 6.0 / (math.pi * question) ** 2


def paired_bounds(
    after: Sequence[float], before: Sequence[float], confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return lower and upper bound of the mean of after - before, by Student's t on the same examples."""
    differences = np.subtract(after, before)
    count, mean = len(differences), float(np.mean(differences))
    if count < 2:
        return -math.inf, math.inf
    spread = float(stdtrit(count - 1, confidence)) * float(np.std(differences, ddof=1)) / math.sqrt(count)
    return mean - spread, mean + spread
