"""Queue requests of one urgency: bounded, answered one after the other, each within a time limit.

Requests of different urgency wait in different lanes, so that an explanation never delays a rollback. Knows no verb.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from runtime.mqtt import Message, rpc
from runtime.mqtt.rpc import Answer

_LOG = structlog.get_logger(__name__)
Handler = Callable[[bytes], Awaitable[Answer]]
Reply = Callable[[str, Message, Answer], None]
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
    """

    handlers: dict[str, Handler]
    refusals: tuple[type[Exception], ...]
    limit_s: float
    capacity: int
    _waiting: asyncio.Queue[tuple[str, Message]] = field(init=False)

    def __post_init__(self) -> None:
        self._waiting = asyncio.Queue(self.capacity)

    def put(self, verb: str, message: Message) -> bool:
        """Queue one request; False when the lane is full."""
        try:
            self._waiting.put_nowait((verb, message))
        except asyncio.QueueFull:
            return False
        return True

    async def run(self, reply: Reply) -> None:
        """Answer until cancelled."""
        while True:
            verb, message = await self._waiting.get()
            await self._serve(verb, message, reply)

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
