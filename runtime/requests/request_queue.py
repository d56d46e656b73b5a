"""Queue requests of one urgency: bounded, answered one after the other, each within a time limit.

Requests of different urgency wait in different lanes, so that an explanation never delays a rollback. In one lane askers take turns, so
that one with many requests never delays another by more than one of them. Knows no verb.
"""

from __future__ import annotations

import asyncio
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from runtime.mqtt import Message, rpc
from runtime.mqtt.rpc import Answer

_LOG = structlog.get_logger(__name__)
Handler = Callable[[bytes], Awaitable[Answer]]
Reply = Callable[[str, Message, Answer], None]
Request = tuple[str, Message]
"""The verb, and the message with the payload."""
DEPTH = 4
"""Innermost frames of an unforeseen error that are logged: a whole traceback takes the event loop seconds to format."""


@dataclass(slots=True)
class RequestQueue:
    """Answers the requests that wait in it.

    Args:
        handlers: the handler of each verb; it takes the payload.
        refusals: exceptions with which a handler refuses a request; their text is the answer's error.
        limit_s: seconds after which a request is answered with an error. Its thread, if it has one, is not ended.
        capacity: requests that may wait.
        newest: requests of one asker that may wait, where a newer one replaces the oldest and is answered first; None where all are
            answered in their order.
    """

    handlers: dict[str, Handler]
    refusals: tuple[type[Exception], ...]
    limit_s: float
    capacity: int
    newest: int | None = None
    _waiting: dict[str, deque[Request]] = field(default_factory=dict, init=False)
    """By asker, in the order of their turns; no asker is here without a request."""
    _arrived: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def put(self, verb: str, message: Message) -> tuple[Request, str] | None:
        """Queue one request.

        Returns:
            The request that will not be answered by its handler, this one or another, and why; None if there is none.
        """
        asker = asker_of(message)
        own = self._waiting.get(asker, deque())
        dropped: tuple[Request, str] | None = None
        if self.newest is not None and len(own) >= self.newest:
            dropped = own.popleft(), f"{verb}: replaced by a newer request of the same asker"
        elif sum(map(len, self._waiting.values())) >= self.capacity:
            reason = f"{self.capacity} requests are waiting; try again"
            longest = max(self._waiting, key=lambda name: len(self._waiting[name]))
            if len(self._waiting[longest]) <= len(own) + 1:
                return (verb, message), reason
            of_longest = self._waiting[longest]
            dropped = (of_longest.pop() if self.newest is None else of_longest.popleft()), reason
        own.append((verb, message))
        self._waiting[asker] = own
        self._arrived.set()
        return dropped

    async def run(self, reply: Reply) -> None:
        """Answer until cancelled."""
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            verb, message = self._next()
            await self._serve(verb, message, reply)

    def _next(self) -> Request:
        """Remove and return the request of the asker that has the turn."""
        asker = next(iter(self._waiting))
        own = self._waiting.pop(asker)
        request = own.popleft() if self.newest is None else own.pop()
        if own:
            self._waiting[asker] = own
        return request

    async def _serve(self, verb: str, message: Message, reply: Reply) -> None:
        """Answer one request; no error of a handler leaves this function: a question must not stop the machine."""
        try:
            reply(verb, message, rpc.ok(await self._answer(verb, message.payload)))
        except self.refusals as refusal:
            reply(verb, message, rpc.error(str(refusal)))
        except TimeoutError:
            _LOG.warning("request.timeout", verb=verb, limit_s=self.limit_s)
            reply(verb, message, rpc.error(f"{verb}: no result within {self.limit_s:g} s"))
        except Exception as error:  # noqa: BLE001 - whatever a handler did not foresee is an answer, not the end of the agent
            where = "".join(traceback.format_exception(error, limit=-DEPTH))
            _LOG.error("request.failed", verb=verb, reason=repr(error), where=where)
            reply(verb, message, rpc.error(f"{verb}: internal error ({type(error).__name__}); see the agent's log"))

    async def _answer(self, verb: str, payload: bytes) -> Answer:
        async with asyncio.timeout(self.limit_s):
            return await self.handlers[verb](payload)


def asker_of(message: Message) -> str:
    """Return who asks: the response topic, since MQTT does not name who published."""
    return message.response_topic or ""
