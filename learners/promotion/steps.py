"""The promotion gate: every step of `evaluate.py`, by name.

In order: `whole`, `fast` (here), `sane` (sanity.py), `labels` (heldout.py), `ope` (ope.py), `shadow` (shadow.py). The last one,
`probation`, only begins when a version is live: its verdict here says so, and the agent watches.
"""

from __future__ import annotations

from collections.abc import Mapping

from learners.promotion.held_out import labels
from learners.promotion.integrity import fast, whole
from learners.promotion.off_policy import ope
from learners.promotion.pipeline import EvaluationContext, Step, StepResult
from learners.promotion.sanity import sane
from learners.promotion.shadow import shadow


def probation(trial: EvaluationContext) -> StepResult:
    """It takes place after the verdict: the agent watches the version for `probation_s` once it acts."""
    return StepResult("probation", passed=True, figures={"begins": "when live", "lasts_s": trial.settings.probation_s})


STEPS: Mapping[str, Step] = {
    "whole": whole,
    "fast": fast,
    "sane": sane,
    "labels": labels,
    "ope": ope,
    "shadow": shadow,
    "probation": probation,
}
"""All of them."""
