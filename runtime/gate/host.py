"""Hold the gate's parts together: serve operators, the clock, the connection to the broker, and the end of the daemon.

`actuators/safety/gate.py` decides. `agent_channel.py` connects it to the agent, `devices.py` to the devices, `stop/follower.py` to
the stop listener. `operator_commands.py` reads the requests of operators, `status.py` publishes changes.

Commands, the status and the stop have their own connection, so that no flood of requests and reports can delay them; everything
else uses a second connection. Both run on the supervisor's loop, which does little else, so that a safe action leaves within a
millisecond.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

from actuators.safety.decisions import ActuatorDecision, Mode
from actuators.safety.gate import Gate
from actuators.safety.limits import Refusal
from actuators.wire import CommandWriter
from runtime.config.schema import Config
from runtime.gate.agent_channel import AgentChannel
from runtime.gate.devices import DeviceTraffic
from runtime.gate.hold_publisher import HoldPublisher
from runtime.gate.info import InfoBuilder
from runtime.gate.latches import LatchWriter, Saved
from runtime.gate.status import AgentLiveness, StatusPublisher
from runtime.gate.stop.follower import StopListenerFollower
from runtime.gate.stop.latch import StopLatch
from runtime.mqtt import Connection
from runtime.mqtt.topics import Topics
from runtime.process.machine_sleep import slept_s
from runtime.process.systemd import Feeder

TICK_S = 0.01
"""The gate gets the time at most so often, apart from the dead-man, which is never late."""
LONGEST_S = 0.25
"""It gets the time at least so often: for what announces itself by no call, such as a process that fails or a set clock."""
STOP_AGAIN_S = 0.1
"""Safe actions are sent again at most so often while stop messages go on."""
STALL_S = 1.0
"""After a pause of this process of so long, the messages that waited meanwhile are of unknown age."""
AFTER_STALL_S = 0.5
"""They are read within this time."""
SUSPENDED_S = 0.1
"""A difference between the clocks that count a suspension of the machine and those that do not, above their noise."""
AT_REST_S = 10.0
"""What the disk calls moved and what has been at rest for so long is written: flapping does not wear the disk."""
REST_S = 1.0
"""For the devices to acknowledge the last safe actions at the end of the daemon."""


@dataclass(slots=True)
class GateHost:
    """Gives the gate what happens around it, in the order in which it happens."""

    config: Config
    gate: Gate
    commands: InitVar[CommandWriter]
    safety: Connection
    """Carries commands and status out, and the stop in."""
    connection: Connection
    """Carries reports, overrides and requests in, and events, info, holds and responses out."""
    latch_file: Path
    feeder: Feeder
    info: InfoBuilder
    latched: Mapping[str, object] | None = None
    """The latches as they were loaded."""
    now: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    slept: Callable[[], float] = slept_s
    """Returns for how long the machine was suspended, in all."""
    counts: Counter[str] = field(default_factory=Counter)
    agent: AgentLiveness = field(default_factory=AgentLiveness)
    _stopped_s: float = float("-inf")
    _ticked_s: float = math.inf
    _woken: asyncio.Event = field(default_factory=asyncio.Event)
    """Something happened that the next `tick` publishes, or that changes when it is due."""
    _stalled_s: float = float("-inf")
    _slept_s: float = field(init=False)
    """What `slept` returned last."""
    _denial: str | None = None
    """Why the broker does not grant the subscription to the stop, to the gate or to the stop listener."""
    _rested_s: float = math.inf
    """Since when the disk calls something moved that is at rest."""
    _losses: int = 0
    """Sessions that ended since the broker was lost; 0 while it responds."""
    _dropped: int = 0
    """Messages on the connection of the stop that nothing has read."""
    topics: Topics = field(init=False)
    publisher: StatusPublisher = field(init=False)
    latches: LatchWriter = field(init=False)
    devices: DeviceTraffic = field(init=False)
    channel: AgentChannel = field(init=False)
    listener: StopListenerFollower = field(init=False)
    holds: HoldPublisher = field(init=False)

    def __post_init__(self, commands: CommandWriter) -> None:
        gate, now, wall = self.gate, self.now, self.wall
        self._slept_s = self.slept()
        self.topics = Topics(self.config.agent)
        self.latches = LatchWriter(self.latch_file, lambda: gate.latches, self.latched)
        self.publisher = StatusPublisher(
            gate,
            self.safety,
            self.connection,
            self.topics,
            self.feeder,
            self.agent,
            self.latches,
            self.info,
            now=now,
            wall=wall,
        )
        self.holds = HoldPublisher(gate, self.connection, self.topics, wall)
        self.devices = DeviceTraffic(
            self.config,
            gate,
            commands,
            self.safety,
            self.connection,
            self.topics,
            self.publisher,
            self.counts,
            self._woken,
            now,
            wall,
        )
        self.channel = AgentChannel(
            self.config,
            gate,
            self.devices,
            self.connection,
            self.topics,
            self.publisher,
            self.feeder,
            self.agent,
            self.counts,
            self._woken,
            on_shadow=lambda: self.set_mode("shadow"),
            before_judging=self._notice_suspension,
            now=now,
            wall=wall,
        )
        self.listener = StopListenerFollower(
            gate,
            self.safety,
            StopLatch.of(self.latch_file.parent),
            self._woken,
            engage=lambda reason: self.stop(engaged=True, reason=reason),
            hearing_changed=self._listen_for_stop,
            now=now,
        )
        self.safety.on_connect = self.on_connect
        self.safety.on_connection_change = self.on_connection_change
        self.safety.on_subscription_change = self._listen_for_stop
        self.connection.on_subscription_change = self.wake
        self.safety.when_dropping(self.wake)
        self.connection.on_connect = self._on_other_connect
        self.connection.on_connection_change = lambda _up, _reason: self.wake()
        self.latches.on_written = self.wake
        if gate.stopped and not self.latches.has("stopped", value=True):
            self.publisher.stop_reason = f"{self.latch_file} cannot be read"
            self.latches.changed()
        self.listener.read_latch()
        if gate.restricted:
            self.publisher.event("mode_restricted", {"modes": gate.restricted, "configured": self.config.mode})
        if left := self.latches.moved:
            gone = sorted(left.difference(gate.moved))
            self.publisher.event("left_moving", {"actuators": gate.moved, "unreachable": gone})

    @property
    def ending(self) -> bool:
        """Whether the daemon ends."""
        return self.channel.ending

    # --- operators

    def stop(self, *, engaged: bool, reason: str = "", saved: Saved | None = None) -> None:
        """Engage or release the software stop: safe actions first, then the disk, then the announcement."""
        was, now_s = self.gate.stopped, self.now()
        if engaged and was and now_s - self._stopped_s < STOP_AGAIN_S:
            self.gate.end_request(now_s)
            decisions = []
        else:
            decisions = self.gate.stop(now_s, engaged=engaged)
        self.devices.apply(decisions)
        if decisions:
            self._stopped_s = now_s
        self.latches.release = not engaged
        self.listener.settled(engaged=engaged)
        if engaged != was:
            self.publisher.stop_reason = reason if engaged else ""
        kind, data = ("stopped" if engaged else "stop_released"), ({"reason": reason} if reason else {})

        def announced() -> dict[str, Any] | None:
            return data if engaged != was and self.latches.has("stopped", value=engaged) else None

        self._after_saving(kind, announced, saved)

    def override(self, actuator: str, value: object, hold_s: float) -> ActuatorDecision:
        """Act for an operator."""
        decision = self.gate.override(actuator, value, hold_s, self.now())
        self.devices.apply([decision])
        self.wake()
        return decision

    def end_override(self, actuator: str) -> None:
        """Let the policy act again at once."""
        self.devices.apply(self.gate.end_hold(actuator, self.now()))
        self.holds.publish_changes(self.now())
        self.wake()

    def arm(self, saved: Saved | None = None, asked_s: float = math.inf) -> Refusal | None:
        """Allow movement, as asked at a time of the monotonic clock; returns why it is refused, or None."""
        refusal = self.gate.arm(self.now(), asked_s)
        if refusal is None:
            self.latches.changed(saved)
            self.wake()
        return refusal

    def disarm(self, saved: Saved | None = None) -> None:
        """Allow no movement until an operator arms."""
        self.devices.apply(self.gate.disarm(self.now()))
        self.latches.changed(saved)
        self.wake()

    def set_mode(self, mode: Mode, actuator: str | None = None, saved: Saved | None = None) -> None:
        """Change the mode of one actuator, or of all."""
        self.devices.apply(self.gate.set_mode(mode, self.now(), actuator))
        self._after_saving("mode_changed", lambda: {"modes": self.latches.on_disk["modes"]}, saved)

    def reload(self, info: InfoBuilder, mode: Mode | None = None) -> None:
        """Take new settings: what `info` contains, and the configured mode where it has changed.

        Actuators, gate and tick are those of the start: others need a new daemon.
        """
        self.config = info.config
        self.info = self.publisher.info = info
        self.channel.agreement = info.config.agreement
        self.wake()
        if mode is not None:
            self.devices.apply(self.gate.configure(mode, self.now()))
            self.latches.changed()
            if self.gate.restricted:
                self.publisher.event("mode_restricted", {"modes": self.gate.restricted, "configured": mode})

    def _after_saving(self, kind: str, data: Callable[[], dict[str, Any] | None], saved: Saved | None) -> None:
        """Publish the event, unless its data is None, once the latches are on the disk, and before that why they are not."""
        failed = False

        def tell(error: str | None) -> None:
            nonlocal failed
            if error is not None and not failed:
                failed = True
                self.publisher.event("latches_not_saved", {"change": kind, "reason": error})
            body = data() if error is None else None
            if body is not None:
                self.publisher.event(kind, body)
            if saved is not None:
                saved(error)

        self.latches.changed(tell)
        self.wake()

    # --- time and the broker

    def wake(self) -> None:
        """Have `tick` called: something happened that it publishes, or that changes when it is due."""
        self._woken.set()

    @property
    def is_woken(self) -> bool:
        """Whether `tick` has to be called although nothing is due."""
        return self._woken.is_set()

    def due_s(self) -> float:
        """Return when `tick` is due unless something happens before."""
        return min(min(self._ticked_s, self.now()) + LONGEST_S, self.gate.due_s(), self.listener.due_s())

    async def run(self) -> None:
        """Give the gate the time whenever something is due or has happened, until cancelled or until the end has begun."""
        loop, ticked_s = asyncio.get_running_loop(), -math.inf
        while not self.ending:
            timer = loop.call_later(max(0.0, self.due_s() - self.now()), self.wake)
            try:
                await self._woken.wait()
            finally:
                timer.cancel()
            rest_s = min(ticked_s + TICK_S, self.gate.deadline_s) - self.now()
            if rest_s > 0:
                await asyncio.sleep(rest_s)
            ticked_s = self.now()
            self.tick()

    def tick(self) -> None:
        """Apply what time brings, the dead-man among it, and publish what has changed."""
        self._woken.clear()
        if self.ending:
            return
        now_s = self.now()
        self.has_stalled(now_s)
        self._ticked_s = now_s
        if now_s >= self.gate.deadline_s:
            self.channel.lost("silent")
        if self.safety.dropped_incoming > self._dropped:
            self._dropped = self.safety.dropped_incoming
            self.stop(
                engaged=True, reason="too many messages on `stop` at once: one that was dropped may have been a stop"
            )
        self.listener.tick()
        self._notice_recovery()
        for change in self.publisher.following.changes():
            self.publisher.event(*change)
        self.devices.apply(self.gate.tick(now_s))
        self._save_moved(now_s)
        self.publisher.publish_changes()
        self.holds.publish_changes(now_s)

    def _save_moved(self, now_s: float) -> None:
        """Have the latches name every actuator that moves at once, and call one at rest after `AT_REST_S`."""
        moves, saved = set(self.gate.moved), self.latches.moved
        self._rested_s = min(self._rested_s, now_s) if saved - moves else math.inf
        if self.latches.is_saved and (moves - saved or now_s - self._rested_s >= AT_REST_S):
            self.latches.changed()

    def has_stalled(self, now_s: float) -> bool:
        """Return whether this process, or the machine, has just not run, so that messages may have waited for it."""
        self._notice_suspension()
        if now_s - self._ticked_s > STALL_S:
            self._stalled_s = now_s
        return now_s - self._stalled_s < AFTER_STALL_S

    def _notice_suspension(self) -> None:
        """Have the gate act if the machine was suspended since the last look: no other clock here shows it."""
        slept_s = self.slept()
        suspended_s, self._slept_s = slept_s - self._slept_s, slept_s
        if suspended_s < SUSPENDED_S:
            return
        self._stalled_s = self.now()
        self.devices.apply(self.gate.woke(self.now(), suspended_s))
        self.publisher.event("machine_suspended", {"suspended_s": round(suspended_s, 1)})
        self.wake()

    def _listen_for_stop(self) -> None:
        """Arm nothing while the gate or the stop listener may not hear a stop, and publish when that begins and ends."""
        denial = self.safety.denial(self.topics("stop"))
        if denial is None and self.listener.denial is not None:
            denial = f"the stop listener: {self.listener.denial}"
        self.publisher.listener_denial = self.listener.denial
        self.devices.apply(self.gate.hears_stop(self.now(), heard=denial is None))
        before, self._denial = self._denial, denial
        if denial is not None and before is None:
            self.publisher.event("stop_not_heard", {"reason": denial})
        elif denial is None and before is not None:
            self.publisher.event("stop_heard", {})
        self.wake()

    def on_connect(self) -> None:
        """After every connect: safe actions first, then the status; the devices must report again."""
        self.publisher.invalidate()
        self.gate.connected(self.now())
        self._listen_for_stop()
        self.devices.apply(self.gate.go_safe(self.now(), "connected to the broker"))
        self.listener.catch_up()
        self.publisher.publish_changes()
        self.wake()

    def _on_other_connect(self) -> None:
        self.publisher.invalidate()
        self.holds.invalidate()
        self.wake()

    def on_connection_change(self, up: bool, reason: str) -> None:  # noqa: FBT001 - the connection's callback
        """The connection of the commands came or went."""
        self.wake()
        if not up:
            self.devices.apply(self.gate.disconnected(self.now()))
            self.publisher.following.disconnected()
            self._losses += 1
            if self._losses == 1:  # a session that does not last is no recovery
                self.publisher.event("broker_lost", {"reason": reason})

    def _notice_recovery(self) -> None:
        """Publish that the broker responds again, once its session is in order."""
        if self._losses and self.safety.connected and self.safety.trouble is None:
            self.publisher.event("broker_recovered", {"connects": self.safety.connects, "losses": self._losses})
            self._losses = 0

    # --- the end

    async def go_safe(self, reason: str) -> None:
        """End all movement; returns once the devices have the safe actions, or `REST_S` is over."""
        self.channel.ending = True
        self.devices.apply(self.gate.end(self.now(), reason))
        self.publisher.event("daemon_stopping", {"reason": reason})
        until_s = self.now() + REST_S
        while self.gate.owed() and self.now() < until_s:
            await asyncio.sleep(TICK_S)
            self.devices.apply(self.gate.repeat(self.now()))
        if self.latches.moved.difference(self.gate.moved):
            self.latches.changed()
        await self.connection.drained(1.0)
        await self.latches.finish()

    async def publish_offline(self, reason: str) -> None:
        """Publish the last status."""
        self.channel.detach()
        await self.publisher.publish_offline(reason)
