"""Define what a promotion step receives and returns.

A step is a function of an `EvaluationContext` that returns a `StepResult`. It may also be a generator that returns one. The
generator yields True if it has more work at once, and False if it waits for new ticks. Used by the steps, the pipeline and the
learner's candidates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from torch import Tensor

from learners.checkpoints.manifest import Manifest
from learners.config.learner import PromotionSettings
from learners.experience.transition import Transition
from learners.model.features import Features
from learners.model.heads import Heads
from learners.model.spec import PolicySpec
from learners.promotion.feeding_tasks import FeedingTasks
from learners.promotion.ope.logged_data import Logged
from learners.promotion.recent_experience import RecentExperience

MAX_TICK_SHARE = 0.5
"""Share of a tick's period that the fused policy may take; the rest is for encoders, gate and network."""


class PolicyLike(Protocol):
    """What a promotion step needs of a policy."""

    heads: Heads

    def encode(self, features: Features) -> Tensor:
        """Return contexts B,C of features [B, H]."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights."""


@dataclass(frozen=True, slots=True)
class EvaluationContext:
    """A candidate, the live policy, and the experience that the steps evaluate both on."""

    manifest: Manifest
    spec: PolicySpec
    candidate: PolicyLike
    live: PolicyLike | None
    live_version: str | None
    experience: RecentExperience
    settings: PromotionSettings
    period_s: float
    """Of a tick."""
    reward_delay_ticks: int = 0
    """Number of newest transitions that may still receive rewards."""
    encoder_versions: Mapping[str, str] = field(default_factory=dict)
    """By stream, the encoder version that the candidate was trained with."""
    live_encoder_versions: Mapping[str, str] = field(default_factory=dict)
    """By stream, the encoder version that the live policy acts with."""
    tasks: FeedingTasks = field(default_factory=lambda: FeedingTasks({}))
    """The tasks that feed the policy."""
    task_versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of these tasks that fed the live policy when it was written."""
    clock: Callable[[], float] = time.monotonic

    def logged(self, transitions: Sequence[Transition]) -> Logged:
        """Return logged decisions in which each policy sees the tokens of its own encoders."""
        made = Logged(self.spec, transitions, dict(self.encoder_versions))
        before = self.live_encoder_versions
        differs = any(before.get(stream, version) != version for stream, version in self.encoder_versions.items())
        if self.live is not None and differs:
            made.show_to(self.live, Logged(self.spec, self.experience.as_logged(transitions), dict(before)))
        return made


@dataclass(frozen=True, slots=True)
class StepResult:
    """Whether one step passed, and the figures it rests on.

    `inconclusive`: the step neither passed nor failed; the candidate is held to the live experiment.
    """

    passed: bool
    figures: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    inconclusive: bool = False


Working = Generator[bool, None, StepResult]
"""A step that takes its time; see the module."""
Step = Callable[[EvaluationContext], StepResult | Working]
Result = TypeVar("Result")


def working(parts: Generator[None, None, Result]) -> Generator[bool, None, Result]:
    """Yield True after every part of some work; return what the work returns."""
    while True:
        try:
            next(parts)
        except StopIteration as end:
            result: Result = end.value
            return result
        yield True
