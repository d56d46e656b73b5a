"""List the promotion steps by name, in order: `integrity`, `latency`, `sanity`, `held_out`, `ope`, `shadow`.

The live experiment is no step: the agent runs it with what passed the steps.
"""

from __future__ import annotations

from collections.abc import Mapping

from learners.promotion.held_out import held_out
from learners.promotion.integrity import integrity
from learners.promotion.latency import latency
from learners.promotion.ope_step import ope
from learners.promotion.sanity import sanity
from learners.promotion.shadow import shadow
from learners.promotion.step_types import Step

STEPS: Mapping[str, Step] = {
    "integrity": integrity,
    "latency": latency,
    "sanity": sanity,
    "held_out": held_out,
    "ope": ope,
    "shadow": shadow,
}
"""All steps."""
