"""Hold messages on `stop` that the broker stores until what they change is on the disk, and acknowledge them in their order.

The gate and the stop listener each have one. It knows neither payloads nor files.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from runtime.mqtt import Message

MOST = 8
"""Messages of QoS 1 without an acknowledgement; brokers send at least 10 at once, and the next one may be a stop or its release."""


@dataclass(slots=True)
class Unacknowledged:
    """Messages without an acknowledgement, oldest first.

    The newest message decides, so beyond `MOST` the oldest ones are acknowledged: whatever is lost with this process, the
    broker sends the newest again.
    """

    newest: int = 0
    """Number of the newest message."""
    _waiting: deque[tuple[int, Message]] = field(default_factory=deque)

    def add(self, message: Message) -> int:
        """Take a message and return its number; one of QoS 0 needs no acknowledgement."""
        self.newest += 1
        if message.qos:
            self._waiting.append((self.newest, message))
        if len(self._waiting) > MOST:
            self._waiting.popleft()[1].acknowledge()
        return self.newest

    def acknowledge(self, number: int) -> None:
        """Acknowledge the message of this number and all before it."""
        while self._waiting and self._waiting[0][0] <= number:
            self._waiting.popleft()[1].acknowledge()
