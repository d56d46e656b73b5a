"""Ask a slow model which goal fits the present state, and put its answer in force as the stream and the topic `goal`.

Everything here runs on the event loop beside the tick, and the model runs in another process: a model that is slow, wrong, silent or
gone costs no tick. Without an answer the goal lasts `ttl_s`, then the default goal is in force. The policy reads the goal as an
ordinary stream; the deliberator has no way to an actuator.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, MutableMapping
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

from actuators.expressions import Expression, ExpressionError, Known
from learners.goal_models.answers import GoalAnswer, GoalQuestion
from learners.goal_models.config import DeliberatorSettings
from learners.rewards.tick_rewards import expression_values
from learners.task_serving.results import Result
from runtime.control.tick import TickResult
from runtime.deliberation.goal_in_force import GoalInForce
from runtime.deliberation.order_steps import OrderSteps, restored, same_order, steps_of
from runtime.deliberation.question_schedule import LONGEST_S, QuestionSchedule
from runtime.deliberation.reward_judge import RewardJudge
from runtime.deliberation.state_text import (
    MOST_ORDERS,
    MOST_TEXT,
    KnownState,
    Order,
    OrderStep,
    TaskResult,
    one_line,
    state_text,
)
from runtime.deliberation.task_goals import TaskGoals
from runtime.mqtt import Message
from runtime.mqtt.topics import GoalOverride, Refused, decode
from runtime.process.emit import Emit
from runtime.process.state_file import StateFile, StateUnreadable
from sensors.readings import Observation, Telemetry, Text
from sensors.streams.task_output import TaskOutputSensor

CHECK_S = 0.2
REPORT_S = 60.0
"""Between two events about failures."""
FEED_S = 1.0
"""Between two readings of the stream `goal` while nothing changes."""
LATE_S = 5.0
"""Beyond `timeout_s`, for the models process to report a failure before it counts as one."""
OPEN_S = 120.0
"""From the first question to its answer: the model may have to load."""
MOST_RESULTS = 32
MOST_LEARNED = 2_000
"""Characters of a text that a person's goal labels."""
FILE = "goal.json"
OBEYED = frozenset({"changed", "confirmed", "close"})
"""What an answer leads to that the goal in force follows."""
SAVE_EVERY_S = 30.0


class GoalModel(Protocol):
    """What takes the questions: the client of the models process, or a task."""

    @property
    def connected(self) -> bool:
        """Whether a question can be answered now."""

    def ask_goal(self, question: GoalQuestion) -> None:
        """Take a question; the answer or the failure follows, perhaps at once."""


class Correction(Protocol):
    """What stores a person's goal as a label."""

    def __call__(self, *, text: str, goal: str, source: str) -> object:
        """Store that `goal` was right for `text`, as `source` says."""


@dataclass(slots=True)
class Deliberator:
    """Connects streams, model and goal. Create it inside the running loop.

    Args:
        settings: goals, limits and backend.
        known: the names that conditions may use.
        model_of: makes what takes the questions, from the receivers of answers and of failures.
        stream: the stream `goal`: the probability of the goal in force, 0 for every other.
        publish: takes the body of the retained topic `goal`.
        emit: publishes events.
        degraded: the agent's reasons for a degraded status; the key `deliberator` belongs to this component.
        drifting: returns the names of what drifts now.
        ttl_s: by text stream, how long an order is known.
        clock: monotonic seconds.
        wall: Unix seconds.
        correct: stores a person's goal as a label of the newest text; None where no task learns from them.
        state_dir: where the goal in force is stored, so that it survives a restart.
    """

    settings: DeliberatorSettings
    known: Known
    model_of: Callable[[Callable[[GoalAnswer], None], Callable[[int, str], None]], GoalModel]
    stream: TaskOutputSensor
    publish: Callable[[dict[str, Any]], object]
    emit: Emit
    degraded: MutableMapping[str, str]
    drifting: Callable[[], Collection[str]] = tuple
    ttl_s: Mapping[str, float] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    correct: Correction | None = None
    state_dir: Path = field(kw_only=True)
    judge: RewardJudge | None = field(init=False, default=None)
    """Asks for the rewards of kind `decision`; None without any."""
    file: StateFile = field(init=False)
    model: GoalModel = field(init=False)
    goal: GoalInForce = field(init=False)
    schedule: QuestionSchedule = field(init=False)
    counts: Counter[str] = field(init=False, default_factory=Counter)
    """Answers by what they led to, `failed` and `unanswered` questions, `stale` answers, and `condition_failed`."""
    _conditions: dict[str, Expression] = field(init=False)
    _orders: deque[Text] = field(init=False, default_factory=lambda: deque(maxlen=MOST_ORDERS))
    """Newest first."""
    _steps: OrderSteps | None = field(init=False, default=None)
    """Of the newest order; None where it has one step."""
    _obeyed: Text | None = field(init=False, default=None)
    """The newest order in the question that put the goal in force, or confirmed it."""
    _results: dict[str, tuple[TaskResult, float]] = field(init=False, default_factory=dict)
    """By task: the newest result, and when it was received."""
    _numbers: dict[str, float] = field(init=False, default_factory=dict)
    _asked: tuple[GoalQuestion, float] | None = field(init=False, default=None)
    """The question on its way, and when it was asked."""
    _number: int = field(init=False, default=0)
    _words: tuple[object, ...] = field(init=False, default=())
    """Of the state at the last answer."""
    _was_drifting: frozenset[str] = field(init=False, default=frozenset())
    _ended: bool = field(init=False, default=False)
    """Whether a goal ended since the last answer."""
    _asked_about: tuple[tuple[object, ...], frozenset[str]] = field(init=False, default=((), frozenset()))
    """Words and drifts of the newest question; they are dealt with when it is answered."""
    _asked_step: tuple[int, int] | None = field(init=False, default=None)
    """The step of the newest question, as `OrderSteps.now`."""
    _asked_order: Text | None = field(init=False, default=None)
    """The newest order of the newest question."""
    _withdrawn: int = field(init=False, default=-1)
    """The number of a question about orders that a person replaced by a goal."""
    _done: set[str] = field(init=False, default_factory=set)
    """Goals that are done while their condition holds and no other order came: they are not chosen again."""
    _failure_reported: bool = field(init=False, default=False)
    _failure_s: float = field(init=False, default=float("-inf"))
    _again_s: float = field(init=False, default=float("inf"))
    """When a goal that an answer would have replaced may be replaced."""
    _fed_s: float = field(init=False, default=float("-inf"))
    _requested: str = field(init=False, default="")
    """The state of the last request for a person's choice."""
    _answered: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.model = self.model_of(self.answered, self.failed)
        self.goal = GoalInForce(self.settings, self.clock())
        self.schedule = QuestionSchedule(self.settings.every_s, self.settings.calls_per_hour)
        self._conditions = {goal: Expression(text, self.known) for goal, text in self.settings.conditions.items()}
        self._number = time.monotonic_ns()
        self.file = StateFile(self.state_dir / FILE, self._dump, self._restore, SAVE_EVERY_S, self.emit)
        try:
            self.file.load()
        except StateUnreadable as error:
            self.emit("goal_state_unreadable", {"reason": str(error)})

    def _dump(self) -> dict[str, Any]:
        now_s, unix_s = self.clock(), self.wall()
        order = None if self._steps is None else self._steps.dump(now_s, unix_s)
        return self.goal.dump(now_s, unix_s) | {"order": order, "budget": self.schedule.dump(now_s, unix_s)}

    def _restore(self, body: dict[str, Any]) -> None:
        now_s, unix_s, order = self.clock(), self.wall(), body.get("order")
        if (budget := body.get("budget")) is not None:  # files of before have none
            self.schedule.restore(budget, now_s, unix_s)
        by_task = isinstance(self.model, TaskGoals)  # it reads whole texts
        steps = None if order is None or by_task else restored(order, self.settings.then, now_s, unix_s)
        if self.goal.restore(body, now_s, unix_s):
            self._again_s = max(now_s, self.goal.held_until_s)
        if steps is not None:
            self._steps, self._obeyed = steps, steps.order
            self._orders.appendleft(steps.order)
            steps.goal = steps.goal if steps.goal == self.goal.goal else ""

    # --- what is known

    def ticked(self, ticked: TickResult) -> None:
        """Note what a tick observed, and end a goal when its condition holds."""
        observation = ticked.observation
        for name in sorted(observation.fresh):
            reading = observation.readings[name]
            if isinstance(reading, Text):
                if one_line(reading.text):
                    self._hear(reading)
            elif isinstance(reading, Telemetry) and name != "goal":
                for field_name, value in zip(reading.fields, reading.values.tolist(), strict=True):
                    self._numbers[f"{name}.{field_name}"] = value
        self._done -= {goal for goal in self._done if not self._holds(self._conditions[goal], observation, ticked)}
        ended = self.goal.goal
        condition = self._conditions.get(ended)
        if condition is not None and self._holds(condition, observation, ticked):
            self._done.add(ended)
            self.goal.is_done(self.clock())
            self._carried_out(ended)
            self._ended = True
            self._announce("done")

    def _hear(self, text: Text) -> None:
        """Note a new order; one that is sent again while its steps are carried out begins no second time."""
        if self._steps is not None and self._steps.repeats(text):
            self._orders[0] = self._steps.order = text
            return
        had_steps = self._steps is not None
        self._orders.appendleft(text)
        by_task = isinstance(self.model, TaskGoals)  # it reads whole texts
        self._steps = None if by_task else steps_of(text, self.settings.then)
        self._done.clear()
        if had_steps or self._steps is not None:
            self.file.changed(urgent=True)

    def _carried_out(self, goal: str) -> None:
        """Go on to the next step of the newest order where `goal` was its step; else the orders that led to it are carried out.

        An order that came later, and to which no answer was obeyed yet, goes on.
        """
        if self._steps is not None:
            if self._steps.goal != goal:
                return  # the goal of an earlier order
            if self._steps.finish():
                return
            self._obeyed = self._steps.order
            self._steps = None
        newer = takewhile(lambda text: text is not self._obeyed, self._orders)
        left = [text for text in newer if self._obeyed is None or not same_order(text, self._obeyed)]
        self._orders = deque(left, MOST_ORDERS)

    def result(self, result: Result) -> None:
        """Note the newest result of a task."""
        task, prediction = result.task, result.prediction
        if task in self._results or len(self._results) < MOST_RESULTS:
            noted = TaskResult(task, str(prediction.value)[:MOST_TEXT], prediction.confidence, 0.0)
            self._results[task] = (noted, self.clock())
        if isinstance(self.model, TaskGoals):
            self.model.take(result)
            if task == self.settings.correction_task:
                self._again_s = min(self._again_s, self.clock())

    def _holds(self, condition: Expression, observation: Observation, ticked: TickResult) -> bool:
        try:
            return bool(condition.evaluate(expression_values(observation, ticked.executed)))
        except ExpressionError:  # a stream is missing: nothing is known, so the goal goes on
            self.counts["condition_failed"] += 1
            return False

    def state(self) -> KnownState:
        """Return what is known now; an order is known as long as its stream's `ttl_s`."""
        now_s = self.clock()
        valid = [text for text in self._orders if now_s - text.stamp_s <= self.ttl_s.get(text.stream, float("inf"))]
        self._orders = deque(valid, MOST_ORDERS)
        if self._steps is not None and self._steps.order not in valid:
            self._steps = None
        return KnownState(
            tuple(Order(text.stream, text.text, now_s - text.stamp_s) for text in self._orders),
            tuple(
                TaskResult(one.task, one.value, one.confidence, now_s - received_s)
                for one, received_s in self._results.values()
            ),
            self._numbers,
            self.goal.goal,
            now_s - self.goal.since_s,
            tuple(self.goal.past),
            None if self._steps is None else OrderStep(self._steps.step, self._steps.due + 1, len(self._steps.steps)),
        )

    # --- questions and answers

    async def run(self) -> None:
        """Ask, expire and publish until cancelled."""
        self._announce("started")
        while True:
            self.step()
            if self.judge is not None:
                self.judge.step()
            await asyncio.sleep(CHECK_S)

    def step(self) -> None:
        """Do what is due now."""
        now_s = self.clock()
        if self.goal.expire(now_s):
            self._announce("expired")
        if self._asked is not None:
            turns = 1 if self.judge is None else 2  # a question for a reward may be under way at the same model
            limit_s = (turns * self.settings.timeout_s if self._answered else OPEN_S) + LATE_S
            if now_s - self._asked[1] > limit_s:
                self.failed(self._asked[0].number, f"no answer within {limit_s:g} s")
        if (
            self._asked is None and self.model.connected
        ):  # else the state is `degraded: models`, and the goal's time runs
            self._ask(now_s)
        if now_s - self._fed_s >= FEED_S:
            self._feed(now_s)

    def _ask(self, now_s: float) -> None:
        state = self.state()
        drifting = frozenset(self.drifting())
        on, surprised = self.settings.on, drifting - self._was_drifting
        self._was_drifting &= drifting
        urgent = (
            ("orders" in on and state.words != self._words)
            or ("goal_done" in on and self._ended)
            or ("surprise" in on and bool(surprised))
            or now_s >= self._again_s
        )
        longest_s = LONGEST_S if self.goal.goal == self.settings.default else min(LONGEST_S, self.settings.ttl_s / 2)
        if not self.schedule.ask(now_s, urgent=urgent, longest_s=longest_s):
            return
        self._number += 1
        orders = tuple(one_line(order.text) for order in state.orders)
        if state.step is not None:  # a model that reads the newest order alone is asked about the step
            orders = (one_line(state.step.text), *orders[1:])
        stamp_s = self._orders[0].stamp_s if self._orders else 0.0
        question = GoalQuestion(self._number, state_text(state), orders, self.goal.goal, stamp_s)
        self._asked_about = (state.words, drifting)
        self._asked_step = None if self._steps is None else self._steps.now
        self._asked_order = self._orders[0] if self._orders else None
        self._asked = (question, now_s)
        self.file.changed(urgent=True)  # the budget that is left survives a restart
        self.model.ask_goal(question)

    def answered(self, answer: GoalAnswer) -> None:
        """Take an answer; one to another question than the last is counted and not used."""
        if self._asked is None or answer.number != self._asked[0].number:
            self.counts["stale"] += 1
            return
        question, _ = self._asked
        self._asked, self._answered = None, True
        (self._words, self._was_drifting), self._ended, self._again_s = self._asked_about, False, self._after_hold()
        if self._failure_reported:
            self._failure_reported = False
            self.emit("deliberation_recovered", {"failures": self.schedule.failures})
        self.schedule.answered()
        self.degraded.pop("deliberator", None)
        if answer.number == self._withdrawn:
            self.counts["stale"] += 1
            return
        best = max(answer.probabilities, key=lambda goal: answer.probabilities[goal], default="")
        verdict = "nothing" if best in self._done else self.goal.take(answer, self.clock())
        if verdict in OBEYED:
            self._obeyed = self._asked_order
        if self._steps is not None and self._steps.now == self._asked_step:
            if best in self._done and answer.probabilities[best] < self.settings.confidence:
                verdict = "unsure"  # a guess ends no step
            self._answer_step(self._steps, best, verdict)
        self.counts[verdict] += 1
        if verdict == "held":
            self._again_s = max(self.goal.held_until_s, self.goal.since_s + self.settings.min_hold_s)
        if verdict == "unsure":
            self._request(question, answer)
        elif verdict != "nothing":
            self._announce(verdict, question, answer)

    def _after_hold(self) -> float:
        """Return when a person's time ends: whatever is answered now, the model chooses then; infinity without one."""
        held_s = self.goal.held_until_s
        return held_s if self.clock() < held_s else float("inf")

    def _answer_step(self, steps: OrderSteps, best: str, verdict: str) -> None:
        """Note the goal of the step that is due; one that is done already ends its step."""
        if verdict in OBEYED:
            steps.goal = self.goal.goal
        elif best in self._done and verdict == "nothing":
            steps.goal = best
            self._carried_out(best)
            self._ended = True
            self.file.changed(urgent=True)

    def failed(self, number: int, reason: str) -> None:
        """Note that a question has no answer; the goal in force goes on until its `ttl_s`."""
        if self._asked is None or number != self._asked[0].number:
            self.counts["stale"] += 1
            return
        self._asked = None
        self.counts["failed"] += 1
        now_s = self.clock()
        paused = self.schedule.failed(now_s)
        if not self._failure_reported and now_s - self._failure_s >= REPORT_S:
            self._failure_reported, self._failure_s = True, now_s
            self.emit("deliberation_failed", {"reason": reason, "goal": self.goal.goal})
        if paused:
            self.degraded["deliberator"] = f"no answer about the goal: {reason}"[:200]

    def set_goal(self, message: Message) -> None:
        """Put a person's goal of `override/goal` in force.

        Raises:
            Refused: it is retained, malformed, or no listed goal.
        """
        if message.retain or message.resumed:
            raise Refused(
                "the broker may have stored this goal, so its age is unknown; publish it again without `retain`"
            )
        wanted = decode(GoalOverride, message.payload)
        try:
            is_other = self.goal.set_by_person(wanted.value, wanted.hold_s, self.clock())
        except ValueError as error:
            raise Refused(str(error)) from None
        self._learn(wanted)
        self._orders.clear()  # an order of before must not end it
        self._steps = self._obeyed = None
        self._withdrawn = self._number
        self._again_s = self.goal.held_until_s
        self.emit("goal_set", {"goal": wanted.value, "hold_s": wanted.hold_s, "source": wanted.source})
        self._announce("changed" if is_other else "confirmed")

    def _learn(self, wanted: GoalOverride) -> None:
        """Store a person's goal as a label of the newest text; without a text there is nothing to learn."""
        if self.correct is None:
            return
        state = self.state()
        if not state.orders:
            self.counts["correction_without_text"] += 1
            return
        self.counts["correction"] += 1
        text = state.orders[0].text if state.step is None else state.step.text
        self.correct(text=text[:MOST_LEARNED], goal=wanted.value, source=wanted.source)

    # --- what is published

    def _request(self, question: GoalQuestion, answer: GoalAnswer) -> None:
        """Request a person's choice, once for the same orders and results."""
        key = repr(self._words)
        if key == self._requested:
            return
        self._requested = key
        likeliest = sorted(answer.probabilities.items(), key=lambda item: -item[1])[:3]
        self.emit(
            "goal_requested",
            {
                "goal": self.goal.goal,
                "candidates": {goal: round(p, 4) for goal, p in likeliest},
                "state": question.state,
            },
        )
        task = self.settings.correction_task
        if task is not None and question.orders:
            confidence = round(max(answer.probabilities.values()), 4)
            asked = {
                "id": f"goal-{question.number}",
                "task": task,
                "confidence": confidence,
                "text": question.orders[0],
            }
            self.emit("label_requested", asked | {"candidates": [goal for goal, _ in likeliest]})

    def _announce(self, why: str, question: GoalQuestion | None = None, answer: GoalAnswer | None = None) -> None:
        """Publish the goal in force, and an event where it changed."""
        now_s, unix_s = self.clock(), self.wall()
        goal = self.goal
        body = {
            "goal": goal.goal, "goals": list(self.settings.goals), "why": why, "confidence": round(goal.confidence, 4),
            "probabilities": {name: round(p, 4) for name, p in goal.probabilities.items()},
            "still": None if answer is None else answer.still, "model": goal.model, "id": str(self._number),
            "since": unix_s - (now_s - goal.since_s), "stamp": unix_s, "ttl_s": self.settings.ttl_s,
            "past": [asdict(past) | {"lasted_s": round(past.lasted_s, 1)} for past in goal.past],
            "held_s": max(0.0, round(goal.held_until_s - now_s, 1)),
            "step": None if self._steps is None else self._step(self._steps),
            "state_sha256": "" if question is None else hashlib.sha256(question.state.encode()).hexdigest(),
            "took_ms": None if answer is None else round(answer.took_s * 1e3, 1),
        }  # fmt: skip
        self.publish(body)
        self.file.changed(urgent=why != "confirmed")
        if why in {"changed", "done", "expired"}:
            self.emit("goal_changed", {"goal": goal.goal, "why": why, "confidence": round(goal.confidence, 4)})
        self._feed(now_s)

    @staticmethod
    def _step(steps: OrderSteps) -> dict[str, Any]:
        return {"number": steps.due + 1, "of": len(steps.steps), "text": one_line(steps.step)}

    def _feed(self, now_s: float) -> None:
        """Publish a reading of the stream `goal`: 0 for each goal that is not in force."""
        self._fed_s = now_s
        confidence = max(self.goal.confidence, 1e-3)
        self.stream.take({name: confidence if name == self.goal.goal else 0.0 for name in self.settings.goals}, now_s)
