"""Trials run in order and stop at the first failure; slow and not-finite candidates are named with their figures."""

from __future__ import annotations

import time
from typing import Any

import learning
import pytest
import torch
from evaluating import Logged, evaluate

from learners.checkpoints.manifest import Manifest
from learners.config.learner import PromotionSettings
from learners.promotion.integrity import integrity
from learners.promotion.latency import latency
from learners.promotion.step_types import EvaluationContext, StepResult
from learners.promotion.steps import STEPS

torch.set_num_threads(1)


def trial(candidate: Any = None, period_s: float = 0.1, spec: Any = learning.SPEC) -> EvaluationContext:
    return EvaluationContext(
        manifest=Manifest("000001-00000000", None, 0.0, {}),
        spec=spec,
        candidate=candidate or learning.SmallPolicy(learning.SPEC).eval(),
        live=None,
        live_version=None,
        experience=Logged([learning.made(n) for n in range(600)]),
        settings=PromotionSettings.model_validate({}),
        period_s=period_s,
    )


def test_steps_run_in_order_until_one_fails() -> None:
    ran: list[str] = []

    def step(name: str, *, passed: bool) -> Any:
        def run(_: EvaluationContext) -> StepResult:
            ran.append(name)
            return StepResult(passed=passed, figures={"n": len(ran)}, reason="" if passed else "no")

        return run

    steps = {"a": step("a", passed=True), "b": step("b", passed=False), "c": step("c", passed=True)}
    verdict = evaluate(trial(), steps, ("a", "x", "b", "c"))
    assert ran == ["a", "b"]
    assert not verdict.passed
    assert verdict.fields() == {
        "passed": False, "step": "b", "reason": "no", "missing": ["x"], "held": [],
        "steps": {"a": {"n": 1, "passed": True}, "b": {"n": 2, "passed": False}},
    }  # fmt: skip
    assert verdict.results["a"] == StepResult(passed=True, figures={"n": 1})


def test_an_inconclusive_step_is_no_pass_and_ends_nothing() -> None:
    def open_end(_: EvaluationContext) -> StepResult:
        return StepResult(passed=False, inconclusive=True, reason="too little")

    def fails(_: EvaluationContext) -> StepResult:
        return StepResult(passed=False, reason="no")

    def passes(_: EvaluationContext) -> StepResult:
        return StepResult(passed=True)

    held = evaluate(trial(), {"a": open_end, "b": passes}, ("a", "b"))
    assert (held.passed, held.rejected, held.held) == (False, False, ("a",))
    assert list(held.results) == ["a", "b"]
    fields = held.fields()
    assert (fields["passed"], fields["step"], fields["reason"], fields["held"]) == (False, "a", "too little", ["a"])
    failed = evaluate(trial(), {"a": open_end, "b": fails}, ("a", "b"))
    assert failed.rejected
    assert (failed.fields()["step"], failed.fields()["reason"]) == ("b", "no")


def test_a_sound_candidate_passes_both() -> None:
    verdict = evaluate(trial(), STEPS, ("integrity", "latency"))
    assert verdict.passed
    steps = verdict.fields()["steps"]
    weights = learning.SmallPolicy(learning.SPEC).state_dict()
    assert steps["integrity"]["numbers"] == sum(value.numel() for value in weights.values())
    assert 0 < steps["latency"]["median_ms"] < 50.0 == steps["latency"]["limit_ms"]


def test_weights_that_are_not_finite_fail() -> None:
    candidate = learning.SmallPolicy(learning.SPEC)
    candidate.encoder.weight.data[0, 0] = float("nan")
    finding = integrity(trial(candidate))
    assert not finding.passed
    assert "encoder.weight" in finding.reason


def test_values_that_are_not_finite_fail() -> None:
    candidate = learning.SmallPolicy(learning.SPEC).eval()
    candidate.heads.choice = _Infinite(candidate.heads.choice)  # type: ignore[assignment] # a stand-in
    finding = latency(trial(candidate))
    assert not finding.passed
    assert "not finite" in finding.reason


class _Infinite(torch.nn.Module):
    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.epsilon = inner, inner.epsilon

    def forward(self, context: torch.Tensor) -> list[torch.Tensor]:
        return [q * torch.inf for q in self.inner(context)]

    def scores(self, context: torch.Tensor) -> list[torch.Tensor]:
        return [q * torch.inf for q in self.inner.scores(context)]


def test_a_slow_candidate_fails_by_its_own_cpu_time() -> None:
    class Slow(learning.SmallPolicy):
        def encode(self, features: Any, *, generator: Any = None) -> torch.Tensor:
            end = time.thread_time() + 0.004
            while time.thread_time() < end:
                pass
            return super().encode(features)

    finding = latency(trial(Slow(learning.SPEC).eval(), period_s=0.005))
    assert not finding.passed
    assert finding.figures["median_ms"] == pytest.approx(4, abs=3)
    assert "2.5 ms are allowed" in finding.reason
    assert latency(trial(Slow(learning.SPEC).eval(), period_s=1.0)).passed
