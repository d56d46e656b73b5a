"""Each step of the promotion gate on scripted policies of known worth."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from typing import Any

import learning
import numpy as np
import pytest
import torch
from evaluating import evaluate
from torch import Tensor, nn

from learners.checkpoints.manifest import Manifest
from learners.config.learner import PromotionSettings
from learners.experience.reader import Row
from learners.experience.transition import Transition
from learners.model.features import Features
from learners.model.heads import Heads
from learners.promotion.feeding_tasks import FeedingTasks, HeldOutComparison
from learners.promotion.pipeline import EvaluationRun
from learners.promotion.step_types import EvaluationContext, StepResult
from learners.promotion.steps import STEPS

torch.set_num_threads(1)
ORDER = ("integrity", "latency", "sanity", "held_out", "ope", "shadow")
EPSILON = 0.1


class Scores(nn.Module):
    """The context is the scores themselves."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self.register_buffer("epsilon", torch.tensor(epsilon))

    def forward(self, context_BC: Tensor) -> list[Tensor]:
        return [context_BC.unsqueeze(-1)]

    def scores(self, context_BC: Tensor) -> list[Tensor]:
        return [context_BC]


class Scripted(nn.Module):
    """Scores of `learning.made`'s three choices by a rule on its two numbers."""

    def __init__(self, rule: Callable[[Tensor], Tensor], epsilon: float = EPSILON) -> None:
        super().__init__()
        self.rule = rule
        self.heads = Heads(learning.ACTIONS, 3, gamma=0.9, hidden=(4,), quantiles=1)
        self.heads.choice = Scores(epsilon)  # type: ignore[assignment] # a stand-in

    def encode(self, features: Features) -> Tensor:
        return self.rule(features.tokens["joints"][:, -1, 0])


def right(x_B2: Tensor) -> Tensor:
    """One for the choice that is rewarded."""
    index_B = (x_B2[:, 0] > -0.5).long() + (x_B2[:, 0] > 0.5).long()
    return torch.nn.functional.one_hot(index_B, 3).float()


def nearly_right(x_B2: Tensor) -> Tensor:
    """As `right`, with its borders a little aside."""
    return right(x_B2 + 0.03)


def wrong(x_B2: Tensor) -> Tensor:
    return -right(x_B2)


def always_left(x_B2: Tensor) -> Tensor:
    return torch.tensor([[1.0, 0.0, 0.0]]).repeat(len(x_B2), 1)


class Clock:
    """Moves on by a second whenever it is read."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


class World:
    """A store with rows that grow whenever a trial asks for newer ones."""

    def __init__(self, count: int, grows: int = 0) -> None:
        self.rows = [Row(n + 1, learning.made(n)) for n in range(count)]
        self.grows = grows

    def recent(self, count: int) -> list[Transition]:
        return [row.transition for row in self.rows[-count:]]

    def last_row(self) -> int:
        return len(self.rows)

    def after(self, number: int) -> list[Row]:
        found = self.rows[number : number + 256]
        self.rows += [Row(len(self.rows) + 1 + n, learning.made(len(self.rows) + n)) for n in range(self.grows)]
        return found


class Compared(FeedingTasks):
    """Tasks that changed, and what the comparison found."""

    def __init__(self, found: dict[str, HeldOutComparison]) -> None:
        super().__init__({})
        self.found = found

    def compare(self, before: Mapping[str, str]) -> Generator[None, None, dict[str, HeldOutComparison]]:
        yield
        return self.found


def trial(candidate: Any, live: Any = None, world: World | None = None, **fields: Any) -> EvaluationContext:
    world = world or World(600)
    settings = PromotionSettings.model_validate({"shadow_s": 30.0, **fields})
    return EvaluationContext(
        manifest=Manifest("000002-00000000", None, 0.0, {}),
        spec=learning.SPEC,
        candidate=candidate,
        live=live,
        live_version="000001-00000000" if live is not None else None,
        experience=world,
        settings=settings,
        period_s=0.1,
        reward_delay_ticks=10,
        clock=Clock(),
    )


def run(step: str, one: EvaluationContext) -> StepResult:
    return evaluate(one, STEPS, (step,)).results[step]


def test_before_anything_is_live_a_whole_fast_and_finite_candidate_passes() -> None:
    verdict = evaluate(trial(Scripted(wrong), world=World(30)), STEPS, ORDER)
    assert verdict.passed
    assert not verdict.missing
    steps = verdict.fields()["steps"]
    assert list(steps) == list(ORDER)
    assert [steps[name]["applies"] for name in ("held_out", "ope", "shadow")] == [False] * 3


def test_a_good_candidate_is_held_where_the_log_contains_too_little() -> None:
    verdict = evaluate(trial(Scripted(nearly_right), Scripted(right), World(600, grows=3)), STEPS, ORDER)
    assert not verdict.rejected, verdict
    assert verdict.held == ("ope",)
    steps = verdict.fields()["steps"]
    assert steps["sanity"]["agreement"]["head"] > 0.9
    assert steps["ope"]["finding"] == "inconclusive"  # it hardly differs, and what differs was hardly tried
    assert steps["ope"]["decisions"] == 590  # the newest ten may still wait for their rewards
    assert steps["shadow"]["ticks"] >= 20
    assert steps["shadow"]["outside"] == 0


def test_a_negated_candidate_fails_by_what_was_logged() -> None:
    verdict = evaluate(trial(Scripted(wrong), Scripted(right)), STEPS, ORDER)
    assert not verdict.passed
    fields = verdict.fields()
    assert fields["step"] == "ope"
    assert fields["steps"]["ope"]["estimates"]["doubly_robust"]["upper"] < -0.5
    assert "less reward per tick than the live version" in fields["reason"]


def test_a_much_better_candidate_is_not_worse_after_a_few_hundred_ticks() -> None:
    finding = run("ope", trial(Scripted(right), Scripted(wrong), World(1_500)))
    assert finding.passed, finding
    assert finding.figures["finding"] == "not worse"
    assert finding.figures["lower"] > 0.5


def test_too_little_evidence_says_nothing_and_leaves_the_decision_to_the_experiment() -> None:
    finding = run("ope", trial(Scripted(right), Scripted(wrong), World(1_500), min_effective_samples=1e4))
    assert (finding.passed, finding.inconclusive) == (False, True)
    assert finding.figures["finding"] == "inconclusive"
    assert finding.figures["note"].startswith("at most")
    assert finding.figures["estimator"] is None
    assert run("ope", trial(Scripted(right), Scripted(wrong), World(12))).figures["finding"] == "inconclusive"


def test_what_people_did_is_not_weighed() -> None:
    world = World(600)
    world.rows = [
        Row(row.row, replace(row.transition, by={"head": "override"}, intervention=True)) if n < 300 else row
        for n, row in enumerate(world.rows)
    ]
    finding = run("ope", trial(Scripted(nearly_right), Scripted(right), world))
    assert (finding.figures["decisions"], finding.figures["own"]) == (590, 290)
    assert finding.inconclusive


def test_collapse_is_refused_unless_the_live_one_collapsed() -> None:
    finding = run("sanity", trial(Scripted(always_left), Scripted(right)))
    assert not finding.passed
    assert finding.figures["candidate"] == {"head": {"left": 1.0, "stay": 0.0, "right": 0.0}}
    assert "always takes the same action on head" in finding.reason
    assert run("sanity", trial(Scripted(always_left), Scripted(always_left))).passed
    first = run("sanity", trial(Scripted(always_left)))
    assert first.passed
    assert first.figures["collapsed"] == ["head"]
    assert run("sanity", trial(Scripted(always_left), Scripted(right), World(10))).passed
    assert run("sanity", trial(Scripted(always_left), Scripted(right), World(0))).figures["observations"] == 0


def test_numbers_that_are_not_finite_on_recorded_observations_fail() -> None:
    def rarely_infinite(x_B2: Tensor) -> Tensor:
        return right(x_B2) / (x_B2[:, :1] < 1)  # a division by zero now and then

    finding = run("sanity", trial(Scripted(rarely_infinite), Scripted(right)))
    assert not finding.passed
    assert "not finite" in finding.reason
    finding = run("shadow", trial(Scripted(rarely_infinite), Scripted(right), World(600, grows=5)))
    assert not finding.passed
    assert finding.figures["finite"] is False


def test_held_out_labels_may_not_get_worse() -> None:
    good = HeldOutComparison(before=0.9, after=0.87, examples=40, metric="accuracy")
    bad = HeldOutComparison(before=0.9, after=0.80, examples=40, metric="accuracy")
    passing = replace(trial(Scripted(right)), tasks=Compared({"intents": good}))
    assert run("held_out", passing).passed
    finding = run("held_out", replace(passing, tasks=Compared({"intents": good, "moods": bad})))
    assert not finding.passed
    assert finding.reason == "moods: accuracy 0.800 after 0.900"
    assert finding.figures["tasks"]["intents"]["labels"] == 40
    assert run("held_out", trial(Scripted(right))).figures["note"] == "no held-out file of a task that changed"


def test_shadow_knows_nothing_without_new_ticks() -> None:
    finding = run("shadow", trial(Scripted(right), Scripted(right)))
    assert not finding.passed
    assert finding.reason == "inconclusive: no new tick in 30 s"


def test_shadow_refuses_what_fresh_decisions_show_to_be_worse() -> None:
    finding = run("shadow", trial(Scripted(wrong), Scripted(right), World(100, grows=20), shadow_s=300))
    assert not finding.passed
    assert "on new decisions" in finding.reason
    assert finding.figures["agreement"]["head"] == 0.0


def test_shadow_refuses_what_is_slow_beside_the_live_one() -> None:
    one = replace(trial(Scripted(right), Scripted(right), World(100, grows=5)), period_s=1e-6)
    finding = run("shadow", one)
    assert not finding.passed
    assert "are allowed" in finding.reason


def test_shadow_of_no_duration_does_not_apply() -> None:
    assert run("shadow", trial(Scripted(right), Scripted(right), shadow_s=0)).figures["note"] == "shadow_s is 0"


def test_a_trial_goes_on_a_while_at_a_time_and_can_be_void() -> None:
    world = World(600)
    one = trial(Scripted(right), Scripted(right), world)
    evaluation = EvaluationRun(one, STEPS, ORDER)
    rounds = 0
    while evaluation.step != "shadow":
        assert evaluation.advance(one.clock()) is None  # not a moment more than one part
        rounds += 1
    assert rounds > 20
    assert evaluation.advance() is None  # waits for ticks
    verdict = evaluation.cancel("another version went live")
    assert not verdict.passed
    assert verdict.fields()["step"] == "shadow"
    assert verdict.fields()["reason"] == "another version went live"


def test_a_trial_that_waits_ends_when_its_time_is_over() -> None:
    pauses: list[int] = []
    verdict = evaluate(trial(Scripted(right), Scripted(right)), STEPS, ("shadow",), pause=lambda: pauses.append(1))
    assert not verdict.passed
    assert pauses
    assert pytest.approx(len(pauses), abs=2) == 30


def test_motions_are_distinguished_by_how_much_they_vary() -> None:
    from actuators.actions import ActionSpace, Choice, Continuous
    from learners.model.spec import PolicySpec
    from learners.promotion.ope.greedy_actions import agreement, outside, shares
    from learners.promotion.sanity import collapsed

    arm = Continuous("arm", (-1.0, 0.0), (1.0, 4.0))
    spec = PolicySpec(learning.SPEC.streams, ActionSpace((Choice("head", ("left", "right")), arm)))
    still = {"head": np.zeros(4), "arm": np.tile([0.5, 1.0], (4, 1))}
    moving = {
        "head": np.array([0.0, 1.0, 1.0, 2.0]),
        "arm": np.array([[-1.0, 0.0], [1.0, 4.0], [1.0, 4.0], [1.2, 0.0]]),
    }
    assert collapsed(spec, still) == {"head": True, "arm": True}
    assert collapsed(spec, moving) == {"head": False, "arm": False}
    assert shares(spec, still) == {"head": {"left": 1.0, "right": 0.0}, "arm": {"deviation": 0.0}}
    assert outside(spec, still) == 0
    assert outside(spec, moving) == 2  # a third choice, and 1.2
    assert agreement(spec, still, still) == {"head": 1.0, "arm": 1.0}
    assert agreement(spec, still, moving)["head"] == 0.25
    distances = (0.75 + 0.25 + 0.25 + 0.35 + 0.25 + 0.75 + 0.75 + 0.25) / 8
    assert agreement(spec, still, moving)["arm"] == pytest.approx(1 - distances, abs=1e-4)


def test_continuous_actuators_are_judged_by_their_densities() -> None:
    """An arm with a reward that falls with its distance from the first number; the worse policy goes the other way."""
    from actuators.actions import ActionSpace, Continuous
    from learners.model.spec import PolicySpec

    actions = ActionSpace((Continuous("arm", (-1.0,), (1.0,)),))
    spec = PolicySpec(learning.SPEC.streams, actions, history=1, gamma=0.0, algorithm="sac")

    class Arm(nn.Module):
        def __init__(self, sign: float) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.heads = Heads(actions, 2, "sac", gamma=0.5, hidden=(4,)).eval()
            head = self.heads.continuous
            assert head is not None
            head.epsilon.fill_(0.1)
            head.actor.trunk = nn.Identity()  # type: ignore[assignment] # a linear actor
            head.actor.out = nn.Linear(2, 2)
            head.actor.out.weight.data = torch.tensor([[sign, 0.0], [0.0, 0.0]])
            head.actor.out.bias.data = torch.tensor([0.0, 0.3])

        def encode(self, features: Features) -> Tensor:
            return features.tokens["joints"][:, -1, 0]

    live, worse = Arm(1.0), Arm(-1.0)
    rows = []
    generator = torch.Generator().manual_seed(0)
    for n in range(500):
        made = learning.made(n)
        context = torch.from_numpy(made.tokens["joints"])
        out = live.heads.act(context, generator=generator, explore=True)
        value = float(out.values["arm"][0, 0])
        rows.append(
            Row(
                n + 1,
                replace(
                    made, actions={"arm": (value,)}, probabilities={"arm": float(out.probabilities["arm"][0])},
                    by={"arm": "policy"}, reward=-abs(value - np.tanh(float(context[0, 0]))), done=False,
                ),
            )
        )  # fmt: skip
    world = World(0)
    world.rows = rows
    bad = run("ope", replace(trial(worse, live, world), spec=spec))
    assert not bad.passed
    assert bad.figures["own"] == 490
    assert bad.figures["estimates"]["snips"]["upper"] < 0
    good = run("ope", replace(trial(live, worse, world), spec=spec))
    assert good.passed, good
    assert run("ope", replace(trial(live, live, world), spec=spec)).figures["lower"] == 0.0
