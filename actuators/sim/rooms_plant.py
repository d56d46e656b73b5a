"""Run the corridor with three rooms as a device behind the broker, in real time: docs/deliberator.md walks through it.

The order goes to the stream `orders` once an episode. The reward of an interval names the decision of the command that was in force.
The true state is on `plant`, for people only, with the share of orders that were carried out; no stream reads that topic.
"""

from __future__ import annotations

import threading
from collections import deque

from actuators.actions import Value
from actuators.device import Command
from actuators.sim import rooms_world
from actuators.sim.plant import Device, message
from actuators.sim.rooms_world import DRIVES, ROOMS, TICK_S, Drive, RoomsWorld
from actuators.wire import DeviceMessage

LONGEST_S = 1.0
"""A pause of the process counts as at most this much time in the world."""
PUBLISH_EVERY_S = 1.0
SHOWN_ORDERS = 20


class RoomsPlant:
    """A `Plant` that runs the corridor in real time.

    Args:
        agent: the name in the topics.
        seed: of the world.
    """

    period_s = TICK_S

    def __init__(self, agent: str, seed: int = 0) -> None:
        self.world = RoomsWorld(seed)
        self._base = f"reflexd/{agent}"
        self.device = Device(self._base, "wheels", _drive)
        self.outcomes: deque[str] = deque(maxlen=SHOWN_ORDERS)
        """Of the newest orders."""
        self._lock = threading.Lock()
        self._now_s: float | None = None
        self._from = (self.world.place_m, self.world.due)
        """Place, and the room that was due, at the begin of the interval."""
        self._rewarded = True
        """Whether the command in force has its reward."""
        self._announced = False
        self._published_s = float("-inf")

    def subscriptions(self) -> tuple[str, ...]:
        """List the topic of the wheels' commands."""
        return (self.device.topic,)

    def receive(self, topic: str, payload: bytes, *, retained: bool, now_s: float) -> list[DeviceMessage]:
        """Take a command: reward the one before, drive, report."""
        if topic != self.device.topic:
            return []
        with self._lock:
            before = self.device.command
            value = self.device.take(payload, retained=retained, now_s=now_s)
            drive = None if value is None else _drive(value)
            if drive is None:
                return self.device.refusal(self.world.drive, now_s)
            self._advance(now_s)
            out = self._reward(before, now_s)
            self.world.drive = drive
            self._from, self._rewarded = (self.world.place_m, self.world.due), False
            return [self.device.report(drive, now_s), *out]

    def step(self, now_s: float) -> list[DeviceMessage]:
        """Advance the world by one tick; return what it publishes."""
        with self._lock:
            out = [self.device.report(self.world.drive)] if self._now_s is None else []
            self._advance(now_s)
            if self.world.outcome:
                out += self._reward(self.device.command, now_s, truncated=True)
                self.outcomes.append(self.world.outcome)
                self.world.begin()
                self._from, self._announced = (self.world.place_m, self.world.due), False
            return out + self._streams() + self._state(now_s)

    def _advance(self, now_s: float) -> None:
        passed_s = 0.0 if self._now_s is None else now_s - self._now_s
        self._now_s = now_s
        self.world.advance(min(LONGEST_S, max(0.0, passed_s)))

    def _reward(self, command: Command | None, now_s: float, *, truncated: bool = False) -> list[DeviceMessage]:
        """Reward the interval of a command; nothing without one, or where it has its reward."""
        if command is None or self._rewarded:
            return []
        self._rewarded = True
        place_m, due = self._from
        before_m, after_m = (0.0, 0.0) if due is None else (ROOMS[due] - at for at in (place_m, self.world.place_m))
        credit = {"stamp": now_s} if command.decision is None else {"decision": command.decision}
        value = rooms_world.reward(before_m, after_m, self.world.drive)
        body = {"value": value, "truncated": truncated, "source": "world"}
        return [message(f"{self._base}/reward", body | credit, qos=1)]

    def _streams(self) -> list[DeviceMessage]:
        body = {"place": self.world.place_m, "stood_s": self.world.stood_s}
        out = [message(f"{self._base}/in/robot", body)]
        if not self._announced:
            self._announced = True
            out.append(DeviceMessage(f"{self._base}/in/orders", self.world.text.encode(), qos=1))
        return out

    def _state(self, now_s: float) -> list[DeviceMessage]:
        if now_s - self._published_s < PUBLISH_EVERY_S:
            return []
        self._published_s = now_s
        done = sum(outcome == "success" for outcome in self.outcomes)
        share = {"carried_out": done / len(self.outcomes) if self.outcomes else None, "orders": len(self.outcomes)}
        return [message(f"{self._base}/plant", rooms_world.describe(self.world) | share | {"stamp": now_s})]


def _drive(value: Value) -> Drive | None:
    return next((drive for drive in DRIVES if drive == value), None)
