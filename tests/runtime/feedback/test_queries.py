"""Questions about decisions: when the lead of the best choice is smaller than usual, and what an answer does."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import soundfile

from actuators.actions import Action
from learners.config.rewards import TopicReward
from learners.experience.reader import Reader
from learners.experience.store import Store
from learners.experience.transition import Transition
from runtime.control.tick import TickResult, executed_actions
from runtime.feedback.queries import ASK_EVERY_S, MIN_MARGINS, UncertaintyQueries
from runtime.feedback.receiver import Feedback
from runtime.gate import ipc
from runtime.inference.decision import InferenceResult
from sensors.codecs.readings import summarize_reading
from sensors.drivers import opencv
from sensors.readings import Frame, Observation, Sound, Telemetry, Text

ORDER = Text("orders", 0.0, 0, "find the cat")


def ticked(n: int, lead: float, *, policy: str = "v1", by: Any = "policy", tick_s: float = 0.1) -> TickResult:
    observation = Observation(n, n * tick_s, {"orders": ORDER}, {"orders": 0.0})
    decided = InferenceResult(
        policy, {"head": Action("left", 0.6)}, 0.0, {}, {}, {"head": [0.5, 0.5 + lead, 0.1]}, 0.0,
        choices={"head": {"left": 0.6, "stay": 0.3, "right": 0.1}},
    )  # fmt: skip
    outcomes = {"head": ipc.Outcome(True, None, "left", by)}
    verdict = ipc.GateVerdict(f"s-{n}", True, False, {"head": "autonomous"}, outcomes)
    executed, by_name = executed_actions(decided.actions, verdict)
    return TickResult(
        observation=observation, decided=decided, verdict=verdict, decision=f"s-{n}", executed=executed, by=by_name,
        stamp_unix_s=0.0, latency_s=0.0, stored=True, mode="autonomous", explore=False, answered_s=0.0,
    )  # fmt: skip


def asking(share: float | None = 0.2) -> tuple[UncertaintyQueries, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []

    def emit(kind: str, data: dict[str, Any]) -> None:
        assert kind == "label_requested"
        events.append(data)

    return UncertaintyQueries(share, emit), events


def usual(one: UncertaintyQueries) -> None:
    for n in range(MIN_MARGINS):
        one.ticked(ticked(n, 0.2))


def test_it_asks_when_it_is_less_sure_than_usual_and_not_too_often() -> None:
    one, events = asking()
    one.ticked(ticked(0, 0.01))
    assert not events, "the usual margin is unknown"
    usual(one)
    one.ticked(ticked(MIN_MARGINS, 0.05))
    assert not events, "a quarter of the usual lead is enough"
    one.ticked(ticked(MIN_MARGINS + 1, 0.02))
    assert events == [
        {
            "id": f"s-{MIN_MARGINS + 1}", "task": "head", "actuator": "head", "value": "left", "confidence": 0.1,
            "candidates": [
                {"label": "left", "probability": 0.6},
                {"label": "stay", "probability": 0.3},
                {"label": "right", "probability": 0.1},
            ],
            "reading": {"orders": {"text": "find the cat"}}, "answer": "override/head",
        }
    ]  # fmt: skip
    one.ticked(ticked(MIN_MARGINS + 2, 0.02))
    assert len(events) == 1, "one in ten seconds"
    one.ticked(ticked(MIN_MARGINS + 1 + round(ASK_EVERY_S / 0.1), 0.02))
    assert len(events) == 2
    assert one.executed(f"s-{MIN_MARGINS + 1}", "head") == "left"
    assert one.executed(f"s-{MIN_MARGINS + 1}", "arm") is None
    assert one.executed("s-3", "head") is None


def test_choices_that_the_gate_would_refuse_count_neither_as_close_nor_as_candidates() -> None:
    one, events = asking()
    usual(one)

    def at(n: int, scores: list[float], *allowed: str) -> TickResult:
        tick = ticked(n, 0.2)
        observation = replace(tick.observation, allowed={"head": allowed})
        return replace(tick, observation=observation, decided=replace(tick.decided, scores={"head": scores}))

    one.ticked(at(MIN_MARGINS, [0.5, 0.505, 0.1], "left", "right"))
    assert not events, "`stay` is as good, but the gate would refuse it"
    one.ticked(at(MIN_MARGINS + 1, [0.5, 0.505, 0.1], "left"))
    assert not events, "there is nothing to choose"
    one.ticked(at(MIN_MARGINS + 2, [0.5, 0.9, 0.49], "left", "right"))
    assert [each["label"] for each in events[0]["candidates"]] == ["left", "right"]


def test_it_does_not_ask_untrained_or_where_others_act_or_when_no_one_wants_it() -> None:
    for changed in ({"policy": "untrained"}, {"by": "override"}, {"by": "gate"}):
        one, events = asking()
        usual(one)
        one.ticked(ticked(MIN_MARGINS, 0.001, **changed))
        assert not events
    one, events = asking(None)
    usual(one)
    one.ticked(ticked(MIN_MARGINS, 0.001))
    assert not events


def test_readings_are_shown_as_a_person_can_take_them() -> None:
    picture = summarize_reading(Frame("front", 0.0, 0, np.zeros((360, 640, 3), np.uint8)))
    assert opencv.decode(base64.b64decode(picture["jpeg"])).shape == (180, 320, 3)
    sound = summarize_reading(Sound("room", 0.0, 0, np.zeros(160, np.float32)))
    assert soundfile.read(io.BytesIO(base64.b64decode(sound["flac"])))[1] == 16_000
    joints = Telemetry("joints", 0.0, 0, ("q",), np.array([0.5], np.float32))
    assert summarize_reading(joints) == {"values": {"q": 0.5}}


def test_a_confirmed_decision_becomes_a_demonstration_and_another_answer_gets_a_remedy(tmp_path: Path) -> None:
    one, events = asking()
    usual(one)
    one.ticked(ticked(MIN_MARGINS, 0.001))
    requested = events[0]["id"]
    store = Store(tmp_path / "experience")
    assert store.append(Transition("s", MIN_MARGINS, requested, 1.0, "v1", actions={"head": "left"}))
    reported: list[dict[str, Any]] = []
    feedback = Feedback(
        store,
        SimpleNamespace(),  # type: ignore[arg-type]
        SimpleNamespace(names=lambda: frozenset({"label:mallory"})),  # type: ignore[arg-type]
        one,
        lambda _, data: reported.append(data),
        (TopicReward(name="r", kind="topic"),),
        frozenset({"intents"}),
        lambda: 0.0,
        lambda: 0.0,
    )

    def answer(label: str, decision: str = requested, source: str = "anna") -> None:
        feedback.label(orjson.dumps({"task": "head", "label": label, "id": decision, "source": source}))

    answer("left", source="mallory")
    answer("right")
    answer("left", decision="s-1")
    assert feedback.counts == {"label_quarantined": 1, "label_action_mismatch": 1, "label_unknown_task": 1}
    assert "override/head" in reported[0]["reason"]
    answer("left")
    assert store.flush()
    (row,) = Reader(tmp_path / "experience").newest(1)
    assert row.transition.demonstration
    assert feedback.counts["decision_confirmed"] == 1
    assert store.close()
