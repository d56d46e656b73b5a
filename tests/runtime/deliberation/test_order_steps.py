"""Orders of several steps: how they are divided, and how the deliberator carries them out one after the other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest

from fakes import FakeClock
from learners.goal_models.answers import GoalAnswer, GoalQuestion
from learners.goal_models.config import DeliberatorSettings
from runtime.deliberation.deliberator import LATE_S, Deliberator
from runtime.deliberation.order_steps import MOST_STEPS, steps_of
from runtime.mqtt import Message
from sensors.readings import Observation, Reading, Telemetry, Text

THEN = ("then", "after that", ";", "when it is centred")
GOALS = {
    "rest": "stay where you are",
    "kitchen": {"means": "go to the kitchen", "done": "robot.at > 2"},
    "study": {"means": "go to the study", "done": "robot.at < -2"},
}


def divided(text: str, *separators: str) -> tuple[str, ...]:
    found = steps_of(Text("orders", 0.0, 1, text), separators or THEN)
    return () if found is None else found.steps


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("first the dog, when it is centred the ship, then rest", ("first the dog", "the ship", "rest")),
        ("The kitchen. THEN the study", ("The kitchen", "the study")),
        ("a; b ;; c;", ("a", "b", "c")),
        ("go home  after\nthat sleep", ("go home", "sleep")),
        ("strengthen the roof", ()),
        ("then go home", ()),
        ("then, then; then!", ()),
        ("", ()),
        ("küche then büro", ("küche", "büro")),
    ],
)
def test_an_order_is_divided_at_whole_words(text: str, steps: tuple[str, ...]) -> None:
    assert divided(text) == steps


def test_a_hostile_order_has_few_steps_and_no_separators_mean_one_step() -> None:
    many = divided("go then " * 20_000)
    assert len(many) == MOST_STEPS
    assert steps_of(Text("orders", 0.0, 1, "a then b"), ()) is None
    assert divided("a (x) b", "(x)") == ("a", "b"), "a mark is no pattern"


class Walk:
    """A deliberator for a robot between two rooms; the test answers for the model."""

    def __init__(self, state_dir: Path = Path("/nonexistent"), *, clock: FakeClock | None = None, **more: Any) -> None:
        chosen = {"goals": GOALS, "default": "rest", "min_hold_s": 0, "then": THEN} | more
        self.clock = clock or FakeClock(1_000.0)
        self.questions: list[GoalQuestion] = []
        self.published: list[dict[str, Any]] = []
        self.labels: list[dict[str, str]] = []
        self.connected = True
        self.it = Deliberator(
            DeliberatorSettings.model_validate(chosen), {"robot": ("at",)}, lambda *_: self, self, self.published.append,
            lambda _kind, _data: None, {}, ttl_s={"orders": 60.0}, clock=self.clock.now, wall=self.clock.now,
            correct=lambda **label: self.labels.append(label), state_dir=state_dir,
        )  # fmt: skip

    def ask_goal(self, question: GoalQuestion) -> None:
        self.questions.append(question)

    def take(self, values: Any, stamp_s: float) -> None:
        del values, stamp_s

    def see(self, reading: Reading) -> None:
        readings = {reading.stream: reading}
        observation = Observation(1, self.clock.now(), readings, {}, frozenset(), frozenset(readings), frozenset())
        self.it.ticked(SimpleNamespace(observation=observation, executed={}))  # type: ignore[arg-type]

    def hear(self, text: str) -> None:
        self.see(Text("orders", self.clock.now(), 1, text))

    def at(self, place: float) -> None:
        self.see(Telemetry("robot", self.clock.now(), 1, ("at",), np.array([place], np.float32)))

    def wait(self, seconds: float = 1.2) -> None:
        for _ in range(round(seconds * 5)):
            self.clock.advance(0.2)
            self.it.step()

    def answer(self, goal: str, **weak: float) -> None:
        found = weak or {name: float(name == goal) for name in GOALS}
        self.it.answered(GoalAnswer(self.questions[-1].number, found, None, "m@1", 0.1))

    @property
    def asked(self) -> str:
        return self.questions[-1].orders[0]


def test_the_steps_of_an_order_follow_each_other_as_their_goals_are_done() -> None:
    walk = Walk()
    walk.hear("first the kitchen, then the study, then rest")
    walk.wait()
    assert walk.asked == "first the kitchen"
    assert 'Due now, step 1 of 3 of the newest order: "first the kitchen"' in walk.questions[-1].state
    walk.answer("kitchen")
    assert walk.published[-1]["step"] == {"number": 1, "of": 3, "text": "first the kitchen"}
    walk.at(1.0)
    walk.hear("first the kitchen, then the study, then rest")  # a device that repeats what is in force
    walk.at(3.0)
    assert (walk.it.goal.goal, walk.published[-1]["why"]) == ("rest", "done")
    walk.wait()
    assert walk.asked == "the study"
    walk.answer("study")
    walk.at(3.0)
    assert walk.it.goal.goal == "study"
    walk.at(-3.0)
    walk.wait()
    walk.answer("rest")
    walk.at(-3.0)
    assert (walk.asked, walk.it.goal.goal) == ("rest", "rest")
    walk.clock.advance(61.0)
    walk.it.state()
    assert walk.it._steps is None, "an order is known as long as its stream says"


def test_a_goal_of_an_earlier_order_ends_no_step_and_a_late_answer_neither() -> None:
    walk = Walk()
    walk.hear("the kitchen")
    walk.wait()
    walk.answer("kitchen")
    walk.hear("the study then the kitchen then rest")
    walk.at(3.0)  # the goal of the first order is done before the model has answered about the second one
    assert walk.it.goal.goal == "rest"
    walk.wait()
    assert walk.asked == "the study"
    walk.answer("study")
    walk.wait(11)  # asked again without a reason, and the step is done before that answer comes
    walk.at(-3.0)
    walk.answer("study")
    walk.wait()
    assert walk.asked == "the kitchen"
    walk.answer("kitchen")
    assert walk.published[-1]["step"] == {"number": 2, "of": 3, "text": "the kitchen"}


def test_a_step_that_is_so_already_ends_at_once_and_the_next_one_is_asked_about() -> None:
    walk = Walk()
    walk.hear("the kitchen then the kitchen then the study")
    walk.wait()
    walk.answer("kitchen")
    walk.at(3.0)
    walk.wait()
    walk.answer("kitchen")
    walk.wait()
    assert walk.asked == "the study"


def test_a_person_ends_the_steps_and_labels_the_one_that_was_due() -> None:
    walk = Walk()
    walk.hear("the kitchen then the study")
    walk.wait()
    walk.answer("kitchen")
    walk.at(3.0)
    walk.wait()
    walk.answer("rest")
    walk.it.set_goal(Message("override/goal", orjson.dumps({"value": "study", "hold_s": 5.0}), 1, retain=False))
    assert [(label["text"], label["goal"]) for label in walk.labels] == [("the study", "study")]
    walk.wait(6)
    assert walk.questions[-1].orders == ()
    assert walk.published[-1]["step"] is None


@pytest.mark.parametrize(
    ("first", "second", "asked"),
    [
        ("the kitchen", "the study", "the study"),
        ("the kitchen then the study", "rest please", "rest please"),
        ("the kitchen", "the study then the kitchen", "the study"),
    ],
)
def test_an_order_that_no_answer_followed_yet_outlives_the_goal_before_it(first: str, second: str, asked: str) -> None:
    walk = Walk()
    walk.at(0)
    walk.hear(first)
    walk.wait()
    walk.answer("kitchen")
    walk.hear(second)
    walk.at(3)
    assert walk.it.goal.goal == "rest"
    walk.wait()
    assert walk.questions[-1].orders[0] == asked
    walk.answer("study")
    walk.at(-3)
    walk.wait()
    assert walk.it.goal.goal == "rest"
    assert (walk.it._steps is None) == ("then" not in second)
    if "then" not in second:
        assert not walk.it._orders, "both orders are carried out"


def test_a_guess_ends_no_step() -> None:
    walk = Walk(confidence=0.8)
    walk.at(0)
    walk.hear("the kitchen then the study then rest")
    walk.wait()
    walk.answer("kitchen")
    walk.at(3)
    walk.wait()
    walk.answer("", rest=0.3, kitchen=0.36, study=0.34)
    assert walk.it._steps is not None
    assert walk.it._steps.step == "the study"
    assert walk.it.counts["unsure"] == 1


def test_the_same_words_with_other_spaces_begin_no_second_time_and_only_the_begin_is_read() -> None:
    walk = Walk()
    walk.at(0)
    walk.hear("the kitchen then the study")
    walk.wait()
    walk.answer("kitchen")
    walk.at(3)
    walk.hear(" the kitchen  then the study\n")
    assert walk.it._steps is not None
    assert walk.it._steps.step == "the study"
    assert len(divided("a then b" + " x" * 50_000 + " then c")) == 2


def test_an_answer_to_an_order_that_a_person_replaced_is_not_used() -> None:
    walk = Walk()
    walk.at(0)
    walk.hear("the kitchen then the study")
    walk.wait()
    walk.it.set_goal(Message("override/goal", orjson.dumps({"value": "rest", "hold_s": 0.0}), 0, retain=False))
    walk.answer("kitchen")
    assert (walk.it.goal.goal, walk.it.counts["stale"]) == ("rest", 1)


def test_a_restart_goes_on_with_the_step_that_was_due(tmp_path: Path) -> None:
    walk = Walk(tmp_path)
    walk.at(0)
    walk.hear("the kitchen then the study then the kitchen")
    walk.wait()
    walk.answer("kitchen")
    walk.at(3)
    walk.wait()
    walk.answer("study")
    walk.it.file.write()
    walk.clock.advance(5)
    again = Walk(tmp_path, clock=walk.clock)
    assert (again.it.goal.goal, again.it._steps and again.it._steps.step) == ("study", "the study")
    again.hear("the kitchen then the study then the kitchen")
    again.at(-3)
    again.wait()
    assert again.questions[-1].orders[0] == "the kitchen"
    walk.clock.advance(60)
    late = Walk(tmp_path, clock=walk.clock)
    late.wait()
    assert (late.it._steps, late.questions[-1].orders) == (None, ()), "the order has expired"
    stored = orjson.loads((tmp_path / "goal.json").read_bytes())
    for wrong in ({"due": -1}, {"at": float("inf")}, {"due": "x"}, {}):
        order = stored["order"] | wrong if wrong else {}
        content = orjson.dumps(stored | {"order": order}).replace(b'"at":null', b'"at":1e999')
        (tmp_path / "goal.json").write_bytes(content)
        assert Walk(tmp_path, clock=walk.clock).it._steps is None
    fewer = Walk(tmp_path, clock=walk.clock, then=("after that",))
    assert fewer.it._steps is None


def test_a_goal_may_wait_for_the_answer_to_a_question_about_a_reward() -> None:
    walk = Walk()
    walk.at(0)
    walk.hear("the kitchen")
    walk.wait()
    walk.answer("kitchen")
    walk.hear("the study")
    walk.wait()
    walk.it.judge = SimpleNamespace(step=lambda: None)  # type: ignore[assignment]
    walk.wait(2 * walk.it.settings.timeout_s)
    assert walk.it.counts["failed"] == 0
    walk.answer("study")
    assert walk.it.goal.goal == "study"
    walk.hear("the kitchen")
    walk.wait(2 * walk.it.settings.timeout_s + LATE_S + 2)
    assert walk.it.counts["failed"] == 1
