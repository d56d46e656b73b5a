"""Run the demo's world as a device behind the broker, in real time: it publishes streams and a reward for every decision.

A command is in force until the next one arrives. The reward of that interval names the decision of the command, so that
the clocks of world and agent may differ. The command of a person or of the gate has no decision; its reward has a stamp.

With `simulated_overrides`, the world corrects the policy on `override/head`, as a person would. It does so in about half of the
episodes of its first two minutes. It publishes its true state on `plant`, for people only; no stream reads that topic.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from actuators.actions import Value
from actuators.sim import panorama_world
from actuators.sim.panorama_score import PanoramaScore
from actuators.sim.panorama_world import RATE_HZ, TICK_S, TURNS, Turn, World
from actuators.sim.plant import Device, jpeg, message
from actuators.wire import DeviceMessage

TAKEOVERS_S = 120.0
TAKEOVER_SHARE = 0.5
HOLD_S = 0.3
"""Of one takeover message; the next one comes every tick."""
TEXT_EVERY_S = 2.0
PUBLISH_EVERY_S = 1.0
LONGEST_S = 1.0
"""A pause of the process counts as at most this much time in the world."""


class PanoramaPlant:
    """A `Plant` that runs the demo's world in real time.

    Args:
        agent: the name in the topics.
        seed: of the world.
        simulated_overrides: whether the world corrects the policy at first.
    """

    def __init__(self, agent: str, seed: int = 0, *, simulated_overrides: bool = False) -> None:
        self.period_s = TICK_S
        self.world = World(seed)
        self.device = Device(f"reflexd/{agent}", "head", _turn)
        self._base = f"reflexd/{agent}"
        self._rng = np.random.default_rng([seed, 1])
        self._score = PanoramaScore(self.world, np.random.default_rng([seed, 2]))
        self._takeovers = simulated_overrides
        self._taking_over = False
        self._lock = threading.Lock()
        self._start_s: float | None = None
        self._now_s = self._from_s = 0.0
        self._from_deg = self.world.distance_deg()
        self._due = True
        """The command in force has not been rewarded yet."""
        self._text_s = self._published_s = float("-inf")

    def subscriptions(self) -> tuple[str, ...]:
        """List the topic of the head's commands."""
        return (self.device.topic,)

    def receive(self, topic: str, payload: bytes, *, retained: bool, now_s: float) -> list[DeviceMessage]:
        """Take a command: reward the previous one, turn the head, report."""
        with self._lock:
            before = self.device.command
            value = self.device.take(payload, retained=retained, now_s=now_s) if topic == self.device.topic else None
            turn = None if value is None else _turn(value)
            if turn is None:
                return self.device.refusal(self.world.head.turn, now_s) if topic == self.device.topic else []
            self._start(now_s)
            self._advance(now_s)
            out = self._reward(before.decision, now_s) if before is not None else []
            self.world.head.turn = turn
            self._interval(now_s)
            return [self.device.report(turn, now_s), *out]

    def step(self, now_s: float) -> list[DeviceMessage]:
        """Advance the world by one tick; return what it publishes."""
        with self._lock:
            out = self._start(now_s)
            self._advance(now_s)
            self._score.tick(now_s)
            command = self.device.command
            ended = self.world.over
            if command is not None and (ended or now_s - self._from_s > 1.5 * TICK_S):
                out += self._reward(command.decision, now_s, truncated=ended)
                self._interval(now_s, due=command.decision is None)
            if ended:
                self._begin(now_s)
            return out + self._streams(now_s) + self._take_over(now_s) + self._publish_state(now_s)

    def _start(self, now_s: float) -> list[DeviceMessage]:
        if self._start_s is not None:
            return []
        self._start_s = self._now_s = self._from_s = now_s
        self._taking_over = self._draws_takeover(now_s)
        return [self.device.report(self.world.head.turn)]

    def _advance(self, now_s: float) -> None:
        seconds = now_s - self._now_s
        if -LONGEST_S < seconds <= 0.0:  # `step` and `receive` read the clock before they wait for each other
            return
        seconds = min(LONGEST_S, max(0.0, seconds))
        self._now_s = now_s
        self.world.advance(seconds)
        self._score.advance(seconds)

    def _begin(self, now_s: float) -> None:
        self.world.begin()
        self._score.begin()
        self._from_deg = self.world.distance_deg()
        self._text_s = float("-inf")
        self._taking_over = self._draws_takeover(now_s)

    def _draws_takeover(self, now_s: float) -> bool:
        early = self._start_s is not None and now_s - self._start_s < TAKEOVERS_S
        return self._takeovers and early and bool(self._rng.random() < TAKEOVER_SHARE)

    def _interval(self, now_s: float, *, due: bool = True) -> None:
        self._from_s, self._from_deg, self._due = now_s, self.world.distance_deg(), due

    def _reward(self, decision: str | None, now_s: float, *, truncated: bool = False) -> list[DeviceMessage]:
        """Reward the interval since `_from_s`; nothing when the decision in force has had its reward.

        An episode only ever runs out of time: the world goes on, so it ends truncated and never done.
        """
        if not self._due:
            return []
        body: dict[str, Any] = {
            "value": panorama_world.reward(self._from_deg, self.world.distance_deg()),
            "truncated": truncated,
            "source": "world",
        }
        credit = {"stamp": (self._from_s + now_s) / 2} if decision is None else {"decision": decision}
        return [message(f"{self._base}/reward", body | credit, qos=1)]

    def _streams(self, now_s: float) -> list[DeviceMessage]:
        world = self.world
        out = [
            DeviceMessage(f"{self._base}/in/front", jpeg(world.view())),
            DeviceMessage(f"{self._base}/in/room", world.voice.listen(round(RATE_HZ * TICK_S)).astype("<i2").tobytes()),
            message(f"{self._base}/in/joints", {"angle": world.head.angle_deg, "speed": world.head.speed_deg_s}),
        ]
        if now_s - self._text_s >= TEXT_EVERY_S:
            self._text_s = now_s
            out.append(DeviceMessage(f"{self._base}/in/orders", world.text.encode(), qos=1))
        return out

    def _take_over(self, _now_s: float) -> list[DeviceMessage]:
        if not self._taking_over:
            return []
        turn = panorama_world.oracle(self.world.distance_deg())
        body = {"value": turn, "hold_s": HOLD_S, "source": "world"}
        return [message(f"{self._base}/override/head", body, qos=1)]

    def _publish_state(self, now_s: float) -> list[DeviceMessage]:
        if now_s - self._published_s < PUBLISH_EVERY_S:
            return []
        self._published_s = now_s
        truth = panorama_world.describe(self.world) | {"takeover": self._taking_over, "stamp": now_s}
        drops = dict(self.device.inbox.drops)
        return [message(f"{self._base}/plant", truth | self._score.figures() | {"drops": drops})]


def _turn(value: Value) -> Turn | None:
    return next((turn for turn in TURNS if turn == value), None)


def settings(agent: str) -> dict[str, Any]:
    """Return a settings file for an agent in this world, as plain values."""
    topic = {"source": "topic"}
    return {
        "agent": agent,
        "tick": {"rate_hz": round(1 / TICK_S)},
        "state_dir": f".reflexd/{agent}",
        "streams": {
            "front": {"kind": "camera", **topic, "max_age_s": 0.5, "required": True, "encoder": "vision"},
            "room": {"kind": "microphone", **topic, "window_s": 2.0, "max_age_s": 1.0, "encoder": "hearing"},
            "orders": {"kind": "text", **topic, "ttl_s": 60, "max_age_s": 60, "encoder": "language"},
            "joints": {"kind": "telemetry", **topic, "fields": ["angle", "speed"], "max_age_s": 0.5, "required": True},
        },
        "encoders": {
            "vision": {"model": "bundled:efficientnet-lite0"},
            "hearing": {"model": "bundled:whisper-tiny.en"},
            "language": {"model": "bundled:minilm-l6"},
        },
        "actuators": {"head": {"kind": "choice", "choices": list(TURNS), "safe": "stay"}},
    }
