"""The deliberator between streams, model and goal: when it asks, what it publishes, and what it does without answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest
from pydantic import ValidationError

from fakes import FakeClock
from learners.goal_models.answers import GoalAnswer, GoalQuestion
from learners.goal_models.config import DeliberatorSettings
from learners.task_kinds import PredictionOfExample
from learners.task_serving.results import Result
from runtime.config.schema import Config
from runtime.deliberation.deliberator import Deliberator
from runtime.deliberation.task_goals import TaskGoals
from runtime.mqtt import Message
from runtime.mqtt.topics import Refused
from sensors.readings import Observation, Reading, Telemetry, Text

GOALS = {
    "idle": "nothing to do",
    "greet": "greet the person",
    "warm": {"means": "warm the room", "done": "room.t > 21"},
}
GOALS_IN_WORDS = {"idle": "nothing to do", "greet": "greet the person", "warm": "warm the room"}
BY_TASK = {"backend": {"kind": "task", "task": "intents"}}


class World:
    """A deliberator with a clock of its own, a model that answers when the test says so, and all that it published."""

    def __init__(self, state_dir: Path = Path("/nonexistent"), now_s: float = 1_000.0, **more: Any) -> None:
        chosen = {"goals": GOALS, "default": "idle", "min_hold_s": 0, "ttl_s": 60} | more
        self.by_task = more.get("backend", {}).get("kind") == "task"
        self.clock = FakeClock(now_s)
        self.questions: list[GoalQuestion] = []
        self.connected = True
        self.fed: list[tuple[dict[str, float], float]] = []
        self.published: list[dict[str, Any]] = []
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.degraded: dict[str, str] = {}
        self.drifting: list[str] = []
        self.labels: list[dict[str, str]] = []
        self.it = Deliberator(
            DeliberatorSettings.model_validate(chosen),
            {"room": ("t",), "lamp": None},
            self.model_of,
            self,
            self.published.append,
            lambda kind, data: self.events.append((kind, data)),
            self.degraded,
            lambda: self.drifting,
            {"orders": 500.0},
            self.clock.now,
            lambda: self.clock.now() + 1e9,
            lambda **label: self.labels.append(label),
            state_dir=state_dir,
        )

    def model_of(self, answered: Any, failed: Any) -> Any:
        return TaskGoals("intents", GOALS_IN_WORDS, answered, failed) if self.by_task else self

    def classified(self, text_stamp_s: float, **probabilities: float) -> None:
        best = max(probabilities, key=lambda goal: probabilities[goal])
        prediction = PredictionOfExample(best, probabilities[best], probabilities)
        self.it.result(Result("intents", "orders", text_stamp_s, "3-1f3a", prediction, 0.01))

    def ask_goal(self, question: GoalQuestion) -> None:
        self.questions.append(question)

    def take(self, values: Mapping[str, float], stamp_s: float) -> None:
        self.fed.append((dict(values), stamp_s))

    def see(self, *readings: Reading) -> None:
        by_name = {reading.stream: reading for reading in readings}
        observation = Observation(1, self.clock.now(), by_name, {}, frozenset(), frozenset(by_name), frozenset())
        self.it.ticked(SimpleNamespace(observation=observation, executed={"lamp": "OFF"}))  # type: ignore[arg-type]

    def hear(self, text: str) -> None:
        self.see(Text("orders", self.clock.now(), 1, text))

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds * 5)):
            self.clock.advance(0.2)
            self.it.step()

    def answer(self, **probabilities: float) -> None:
        found = {goal: probabilities.get(goal, 0.0) for goal in GOALS}
        self.it.answered(GoalAnswer(self.questions[-1].number, found, 0.1, "model@1", 0.3))

    @property
    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]


def test_an_order_is_asked_about_at_once_and_its_goal_reaches_stream_topic_and_events() -> None:
    world = World()
    world.it.step()
    world.answer(idle=1.0)
    world.wait(2)
    world.hear("say hello to the visitor")
    world.wait(0.2)
    question = world.questions[-1]
    assert question.orders == ("say hello to the visitor",)
    assert '"say hello to the visitor"' in question.state
    world.answer(greet=0.8, idle=0.2)
    assert world.fed[-1] == ({"idle": 0.0, "greet": 0.8, "warm": 0.0}, world.clock.now())
    last = world.published[-1]
    assert (last["goal"], last["why"], last["model"], last["took_ms"]) == ("greet", "changed", "model@1", 300.0)
    assert last["probabilities"] == {"idle": 0.2, "greet": 0.8, "warm": 0.0}
    assert last["stamp"] == last["since"] == world.clock.now() + 1e9
    assert len(last["state_sha256"]) == 64
    assert world.events[-1] == ("goal_changed", {"goal": "greet", "why": "changed", "confidence": 0.8})
    fed = len(world.fed)
    world.wait(10)
    assert 9 <= len(world.fed) - fed <= 11


def test_nothing_is_asked_twice_while_a_question_is_on_its_way_and_old_answers_are_not_used() -> None:
    world = World(timeout_s=3.0)
    world.it.step()
    world.hear("hello")
    world.wait(100)
    assert len(world.questions) == 1
    world.wait(30)  # beyond the time for a model to load
    assert len(world.questions) > 1
    late = world.questions[0].number
    world.it.answered(GoalAnswer(late, {"idle": 0.0, "greet": 1.0, "warm": 0.0}))
    assert world.it.goal.goal == "idle"
    assert world.it.counts["stale"] == 1


def test_a_condition_ends_a_goal_at_the_tick_that_sees_it() -> None:
    world = World()
    world.it.step()
    world.answer(warm=1.0)
    room = lambda t: Telemetry("room", world.clock.now(), 1, ("t",), np.array([t]))  # noqa: E731
    world.see(room(20.0))
    world.see()  # the room is missing
    assert world.it.goal.goal == "warm"
    world.see(room(21.5))
    assert world.it.goal.goal == "idle"
    assert world.published[-1]["why"] == "done"
    assert world.it.counts["condition_failed"] == 1
    asked = len(world.questions)
    world.wait(1)
    assert len(world.questions) == asked + 1, "the end of a goal is a reason to ask"
    assert "warm: done after" in world.questions[-1].state
    assert "room.t 21.5" in world.questions[-1].state


def test_without_answers_the_goal_lasts_its_time_then_the_default_is_in_force() -> None:
    world = World(ttl_s=30)
    world.it.step()
    world.answer(greet=1.0)
    began_s = world.clock.now()
    while world.it.goal.goal == "greet":
        world.hear(f"order {world.clock.now()}")
        world.wait(0.2)
        if world.questions[-1].number > world.questions[0].number:
            world.it.failed(world.questions[-1].number, "status 500")
    assert world.clock.now() - began_s == pytest.approx(30, abs=0.3)
    assert world.kinds == ["goal_changed", "deliberation_failed", "goal_changed"]
    assert world.published[-1]["why"] == "expired"
    assert world.degraded == {} or "status 500" in world.degraded["deliberator"]
    for _ in range(6):
        world.hear(f"another {world.clock.now()}")
        world.wait(10.2)
        world.it.failed(world.questions[-1].number, "status 500")
    assert world.degraded == {"deliberator": "no answer about the goal: status 500"}
    world.hear("once more")
    asked = len(world.questions)
    while len(world.questions) == asked:
        world.wait(0.2)
    world.answer(idle=1.0)
    assert world.degraded == {}
    assert world.kinds[-1] == "deliberation_recovered"


def test_nothing_is_asked_while_no_process_is_connected() -> None:
    world = World(ttl_s=30)
    world.connected = False
    world.hear("hello")
    world.wait(100)
    assert (world.questions, world.kinds, world.it.goal.goal) == ([], [], "idle")
    world.connected = True
    world.wait(0.2)
    assert world.questions[0].orders == ("hello",)


def test_an_unsure_answer_requests_a_person_once_for_the_same_words() -> None:
    world = World(confidence=0.9)
    for order in ("hm", "hm", "well"):
        world.hear(order)
        world.wait(10.2)
        world.answer(greet=0.5, idle=0.3, warm=0.2)
    requested = [data for kind, data in world.events if kind == "goal_requested"]
    assert [list(data["candidates"]) for data in requested] == [["greet", "idle", "warm"]] * len(requested)
    assert 2 <= len(requested) <= 3
    assert world.it.goal.goal == "idle"


def test_a_person_sets_a_goal_and_nothing_odd_does() -> None:
    world = World()
    send = lambda body, retain=False: world.it.set_goal(Message("override/goal", orjson.dumps(body), 1, retain))  # noqa: E731
    send({"value": "greet", "hold_s": 20.0, "source": "anna"})
    assert world.it.goal.goal == "greet"
    assert world.kinds == ["goal_set", "goal_changed"]
    assert world.published[-1]["held_s"] == 20.0
    world.it.step()
    world.answer(warm=1.0)
    assert world.it.goal.goal == "greet"
    for body in (
        {"value": "open the door"},
        {"value": 3},
        {"hold_s": 1.0},
        {"value": "warm", "hold_s": -1.0},
        [],
        "warm",
    ):
        with pytest.raises(Refused):
            send(body)
    with pytest.raises(Refused, match="age is unknown"):
        send({"value": "warm"}, retain=True)
    with pytest.raises(Refused, match="age is unknown"):
        world.it.set_goal(Message("override/goal", orjson.dumps({"value": "warm"}), 1, retain=False, resumed=True))
    assert world.it.goal.goal == "greet"


def test_a_drift_is_asked_about_once() -> None:
    world = World()
    world.it.step()
    world.answer(idle=1.0)
    world.wait(11)
    asked = len(world.questions)
    world.answer(idle=1.0)
    world.drifting.append("front")
    world.wait(1)
    assert len(world.questions) == asked + 1
    world.answer(idle=1.0)
    world.wait(8)
    assert len(world.questions) == asked + 1


def test_an_order_within_the_hold_is_asked_about_again_when_it_ends() -> None:
    world = World(min_hold_s=8, every_s=50)
    world.it.step()
    world.answer(warm=1.0)
    world.wait(2)
    world.hear("hello")
    world.wait(0.2)
    world.answer(greet=1.0)
    assert (world.it.goal.goal, world.published[-1]["why"]) == ("warm", "held")
    asked = len(world.questions)
    world.wait(5.4)
    assert len(world.questions) == asked
    world.wait(0.6)
    assert len(world.questions) == asked + 1
    world.answer(greet=1.0)
    assert world.it.goal.goal == "greet"


def test_an_order_that_is_carried_out_does_not_choose_its_goal_again() -> None:
    world = World()
    room = lambda t: Telemetry("room", world.clock.now(), 1, ("t",), np.array([t]))  # noqa: E731
    world.hear("warm the room")
    for _ in range(20):
        world.wait(1)
        world.see(room(22.0))
        if world.questions and world.it._asked is not None:
            world.answer(warm=1.0)
    assert world.kinds.count("goal_changed") == 2, "chosen once, done once"
    world.see(room(20.0))
    world.hear("warm the room again")
    world.wait(1)
    world.answer(warm=1.0)
    assert world.it.goal.goal == "warm"


def test_old_orders_invisible_ones_and_numbers_are_no_reason_to_ask() -> None:
    world = World()
    world.hear("hello")
    world.wait(0.2)
    world.answer(idle=1.0)
    world.clock.advance(501.0)
    assert world.it.state().orders == ()
    world.it.step()
    world.answer(idle=1.0)
    asked = len(world.questions)
    world.hear("\u200b\n")
    for number in range(9):
        prediction = SimpleNamespace(value=2.0 + number / 1e4, confidence=0.9)
        world.it.result(SimpleNamespace(task="level", prediction=prediction))  # type: ignore[arg-type]
        world.wait(1)
    assert len(world.questions) == asked
    assert world.it.state().results[0].value == "2.0008"


def test_failures_and_recoveries_in_turn_are_few_events() -> None:
    world = World(every_s=1.0)
    for number in range(60):
        world.hear(f"order {number}")
        world.wait(1.2)
        if number % 2:
            world.answer(idle=1.0)
        else:
            world.it.failed(world.questions[-1].number, "status 500")
    assert world.kinds == ["deliberation_failed", "deliberation_recovered"] * 2


def person(world: World, goal: str, hold_s: float) -> None:
    world.it.set_goal(Message("override/goal", orjson.dumps({"value": goal, "hold_s": hold_s}), 1, retain=False))


def test_a_restart_continues_a_persons_goal_for_the_rest_of_its_time(tmp_path: Path) -> None:
    before = World(tmp_path)
    person(before, "greet", 600.0)
    before.wait(10)
    before.it.file.write()
    after = World(tmp_path, now_s=before.clock.now() + 100.0)
    assert (after.it.goal.goal, after.it.goal.model) == ("greet", "person")
    after.it.step()
    after.answer(warm=1.0)
    assert after.it.goal.goal == "greet"
    after.wait(488)
    assert after.it.goal.goal == "greet"
    after.wait(4)
    assert (after.it.goal.goal, after.published[-1]["why"]) == ("idle", "expired")
    late = World(tmp_path, now_s=before.clock.now() + 601.0)
    assert late.it.goal.goal == "idle"
    assert late.kinds == []


def test_a_restart_continues_a_models_goal_until_its_ttl(tmp_path: Path) -> None:
    before = World(tmp_path)
    before.it.step()
    before.hear("hello")
    before.answer(greet=0.9, idle=0.1)
    before.wait(20)
    before.it.file.write()
    after = World(tmp_path, now_s=before.clock.now() + 5.0)
    assert (after.it.goal.goal, after.it.goal.model, after.it.goal.confidence) == ("greet", "model@1", 0.9)
    after.wait(34)
    assert after.it.goal.goal == "greet"
    after.wait(2)
    assert after.it.goal.goal == "idle"


def test_a_restart_continues_the_default_goal_that_a_person_holds(tmp_path: Path) -> None:
    before = World(tmp_path)
    person(before, "idle", 600.0)
    before.it.file.write()
    after = World(tmp_path, now_s=before.clock.now() + 100.0, every_s=1_000.0, ttl_s=1_000.0)
    after.it.step()
    after.answer(greet=1.0)
    assert (after.it.goal.goal, after.it.counts["held"]) == ("idle", 1)
    asked = len(after.questions)
    after.wait(499)
    assert (len(after.questions), after.it.goal.goal) == (asked, "idle")
    after.wait(2)
    after.answer(greet=1.0)
    assert after.it.goal.goal == "greet"


def test_restarts_bring_no_new_budget_of_questions(tmp_path: Path) -> None:
    asked, now_s = 0, 1_000.0
    for _ in range(12):
        world = World(tmp_path, now_s=now_s, calls_per_hour=12)
        for number in range(4):
            world.hear(f"order {number} at {world.clock.now()}")
            world.wait(2)
            if world.it._asked is not None:
                world.answer(idle=1.0)
        asked += len(world.questions)
        world.it.file.write()
        now_s = world.clock.now() + 292.0
    assert now_s - 1_000.0 == pytest.approx(3_600.0)
    assert 9 <= asked <= 12


@pytest.mark.parametrize("budget", [{}, {"left": "x", "at": 0}, {"left": 1e400, "at": 0}, 5, []])
def test_a_damaged_budget_is_reported(tmp_path: Path, budget: object) -> None:
    world = World(tmp_path)
    person(world, "greet", 600.0)
    body = orjson.loads(orjson.dumps(world.it._dump())) | {"budget": budget}
    world.it.file.path.parent.mkdir(exist_ok=True)
    world.it.file.path.write_bytes(orjson.dumps(body))
    assert World(tmp_path).kinds == ["goal_state_unreadable"]


def test_an_answer_that_comes_after_a_persons_goal_does_not_put_off_the_question_at_its_end() -> None:
    world = World(every_s=500.0, ttl_s=1_000.0, on=["surprise"])
    world.it.step()
    person(world, "greet", 60.0)
    world.answer(warm=1.0)
    asked = len(world.questions)
    world.wait(62)
    assert len(world.questions) == asked + 1


def test_every_change_is_written_and_a_confirmation_waits(tmp_path: Path) -> None:
    world = World(tmp_path)
    person(world, "greet", 600.0)
    assert world.it.file._wake.is_set()
    world.it.file._wake.clear()
    person(world, "greet", 700.0)
    assert not world.it.file._wake.is_set()
    assert world.it.file._changed


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b"[]", b"{}", b'{"format": 2}', b"\x00" * 100, b'{"format":1,"goal":"greet"}'],
)
def test_a_damaged_goal_is_reported_and_the_default_is_in_force(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "goal.json").write_bytes(content)
    world = World(tmp_path)
    assert world.it.goal.goal == "idle"
    assert world.kinds == ["goal_state_unreadable"]


def test_a_stored_goal_that_is_not_listed_or_from_the_future_is_not_restored(tmp_path: Path) -> None:
    before = World(tmp_path)
    person(before, "greet", 600.0)
    before.it.file.write()
    stored = orjson.loads((tmp_path / "goal.json").read_bytes())
    for change in ({"goal": "fly"}, {"saved": stored["saved"] + 1e6}, {"confirmed": stored["confirmed"] + 1e6}):
        (tmp_path / "goal.json").write_bytes(orjson.dumps(stored | change))
        assert World(tmp_path).it.goal.goal == "idle"
    for wrong in ({"held_s": 1e9}, {"held_s": -1}, {"probabilities": {"greet": 2}}, {"saved": "now"}):
        (tmp_path / "goal.json").write_bytes(orjson.dumps(stored | wrong))
        assert World(tmp_path).kinds == ["goal_state_unreadable"]
    (tmp_path / "goal.json").write_bytes(orjson.dumps(stored | {"probabilities": {"greet": 1.0}}))
    assert World(tmp_path).it.goal.probabilities == {}


def test_a_persons_goal_is_a_label_of_the_newest_text() -> None:
    world = World(corrections="intents")
    person(world, "warm", 1.0)
    assert world.labels == []
    assert world.it.counts["correction_without_text"] == 1
    world.hear("it is freezing in here")
    world.hear("brr " * 1_000)
    world.it.set_goal(Message("override/goal", orjson.dumps({"value": "warm", "source": "anna"}), 1, retain=False))
    text = ("brr " * 1_000)[:2_000]
    assert world.labels == [{"text": text, "goal": "warm", "source": "anna"}]
    with pytest.raises(Refused):
        person(world, "fly", 1.0)
    assert len(world.labels) == 1


def test_a_task_answers_for_the_newest_order_alone_and_a_restless_model_is_not_asked() -> None:
    world = World(**BY_TASK)
    world.it.step()
    assert world.it.goal.goal == "idle"
    world.hear("say hello")
    world.wait(1)
    assert world.it.goal.goal == "idle"
    world.classified(world.clock.now() - 1, greet=0.9, idle=0.06, warm=0.04)
    world.wait(1.2)
    assert (world.it.goal.goal, world.it.goal.model) == ("greet", "task:intents@3-1f3a")
    world.hear("and now something else")
    world.wait(2)
    assert world.it.goal.goal == "greet"  # the result is of the order before
    world.classified(world.clock.now() - 2, warm=0.9, idle=0.06, greet=0.04)
    world.wait(1.2)
    assert world.it.goal.goal == "warm"


def test_an_unsure_task_requests_a_label_once_for_each_order() -> None:
    world = World(**BY_TASK, confidence=0.6)
    for text in ("say hello", "say hello or so"):
        world.hear(text)
        world.classified(world.clock.now(), greet=0.4, idle=0.35, warm=0.25)
        world.wait(5)
    asked = [data for kind, data in world.events if kind == "label_requested"]
    assert [(data["task"], data["text"]) for data in asked] == [
        ("intents", "say hello"),
        ("intents", "say hello or so"),
    ]
    assert asked[0]["candidates"] == ["greet", "idle", "warm"]
    assert world.it.goal.goal == "idle"


def test_a_task_of_other_labels_gives_no_answer() -> None:
    world = World(**BY_TASK)
    world.hear("say hello")
    world.classified(world.clock.now(), greet=0.9, fly=0.1)
    world.wait(1)
    assert world.it.counts["failed"] > 0
    assert world.it.goal.goal == "idle"


def settings_with(task: dict[str, Any], **deliberator: Any) -> dict[str, Any]:
    return {
        "agent": "rooms",
        "state_dir": "/nonexistent",
        "streams": {"orders": {"kind": "text", "source": "topic", "encoder": "words"}},
        "encoders": {"words": {"model": "bundled:minilm-l6"}},
        "actuators": {"lamp": {"kind": "choice", "choices": ["ON", "OFF"], "safe": "OFF"}},
        "tasks": {"intents": {"kind": "text-classification", "model": "bundled:minilm-l6", "stream": "orders"} | task},
        "deliberator": {"goals": GOALS_IN_WORDS, "default": "idle"} | deliberator,
    }


def test_the_task_of_corrections_must_have_the_goals_as_labels() -> None:
    labels = {"labels": list(GOALS_IN_WORDS)}
    good = Config.model_validate(settings_with(labels, **BY_TASK))
    assert good.deliberator is not None
    assert good.deliberator.correction_task == "intents"
    for task, more, words in (
        ({}, BY_TASK, "write labels: \\[idle, greet, warm\\]"),
        ({"labels": ["idle", "greet"]}, {"corrections": "intents"}, "corrections: the labels of tasks.intents"),
        (labels, {"corrections": "moods"}, "'moods' is not under tasks"),
        (labels | {"multi_label": True}, BY_TASK, "one label an example"),
    ):
        with pytest.raises(ValidationError, match=words):
            Config.model_validate(settings_with(task, **more))
