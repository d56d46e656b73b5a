"""Decide whether anything may move at all: stop, arming, the end of the daemon, the broker, and the agent's readiness.

The gate has one `Arming`. Knows no actuator and no clock; times are arguments in monotonic seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from actuators.safety.limits import Refusal

ENDED = Refusal("disarmed", "the daemon is ending")
"""Why nothing moves after the last safe actions."""


@dataclass(slots=True)
class Arming:
    """What must be true before an actuator moves."""

    wanted: bool
    """An operator, or `arm: auto`, requests movement."""
    armed: bool = False
    stopped: bool = False
    """The software stop is engaged."""
    ended: bool = False
    """The daemon is ending: nothing arms again."""
    online: bool = True
    """The broker is connected."""
    deaf: bool = False
    """The broker does not let the gate hear a stop."""
    ready: bool = False
    """The agent's newest proposal is ready."""
    _request_ended_s: float = -math.inf

    def refusal(self) -> Refusal | None:
        """Return why nothing may move now; None if it may."""
        if self.stopped:
            return Refusal("stopped", "the software stop is engaged")
        if self.ended:
            return ENDED
        if not self.armed:
            return Refusal("disarmed", "not armed")
        return None

    def request(self, asked_s: float) -> Refusal | None:
        """Record an operator's request to arm, received at `asked_s`; return why it is refused, or None."""
        if self.stopped:
            return Refusal("stopped", "release the stop first, then arm")
        if self.ended:
            return ENDED
        if asked_s <= self._request_ended_s:
            return Refusal("disarmed", "a stop or a disarming came after this request; send it again")
        self.wanted = True
        return None

    def end_request(self, now_s: float) -> None:
        """End the operator's request to arm, and every one that was received before now."""
        self.wanted = False
        self._request_ended_s = now_s

    def settle(self, *, reconciled: bool) -> None:
        """Arm if it is requested and possible.

        Args:
            reconciled: every device has reported, or had its time to do so.
        """
        possible = self.ready and self.online and not (self.stopped or self.ended or self.deaf) and reconciled
        self.armed = self.armed or (self.wanted and possible)
