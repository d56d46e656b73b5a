"""Ask agents of a group to stop, and collect what each one answers. Used by `reflexd fleet stop` and by the fleet's page.

An agent that is away answers nothing; the broker stores the stop for it. So no answer is not a stop.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Collection
from contextlib import suppress

from runtime.fleet.stop.messages import StopAnswer, StopTopics, stop_payload
from runtime.mqtt import Connection, Message
from runtime.mqtt.topics import Refused, decode

SENT_S = 5.0
"""For the fleet's broker to acknowledge the message."""
MAX_AGENTS = 10_000
"""Names of which the newest answer is remembered."""
ANSWERS_S = 6.0
"""For the answers of all agents: above what a device waits for its broker and its gate."""


class StopCaller:
    """Stops agents over a connection to the fleet's broker, which somebody else runs.

    Args:
        link: with the login of the server.
        topics: of the group.
    """

    def __init__(self, link: Connection, topics: StopTopics) -> None:
        self._link, self._topics = link, topics
        self.newest: dict[str, StopAnswer] = {}
        """By agent, its newest answer to any stop."""
        self._arrived = asyncio.Event()
        link.subscribe(topics.answer("+"), self._answered)

    async def stop(
        self, agent: str | None, known: Collection[str], source: str, timeout_s: float = ANSWERS_S
    ) -> dict[str, StopAnswer]:
        """Stop one agent or all, and return the answers by agent; one that did not answer has `no_answer`.

        Args:
            agent: which one; None for all.
            known: agents that have to answer a stop of all; further ones are stopped, too.
            source: who asks, for the log of the device.
            timeout_s: for the answers; it returns once no answer is missing.

        Raises:
            MqttLost: the fleet's broker does not answer, or refuses the message.
        """
        identifier = secrets.token_hex(16)
        topic = self._topics.of_all if agent is None else self._topics.of(agent)
        await self._link.publish(topic, stop_payload(identifier, source), timeout_s=SENT_S)
        wanted = set(known) if agent is None else {agent}
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not all(each.outcome != "no_answer" for each in self._of(identifier, wanted).values()):
                    self._arrived.clear()
                    await self._arrived.wait()
        found = self._of(identifier, wanted)
        for name, each in self.newest.items():
            if agent is None and identifier in each.ids:
                found[name] = each
        self.newest.update({name: each for name, each in found.items() if name in self.newest or name in known})
        return dict(sorted(found.items()))

    def _of(self, identifier: str, wanted: Collection[str]) -> dict[str, StopAnswer]:
        """Return the answer of each agent to one message; `no_answer` where there is none."""
        missing = (
            "the device is silent; the fleet's broker stores the stop for a day if the device was connected before"
        )
        return {
            name: each
            if (each := self.newest.get(name)) is not None and identifier in each.ids
            else StopAnswer(agent=name, ids=[identifier], outcome="no_answer", reason=missing)
            for name in wanted
        }

    def _answered(self, message: Message) -> None:
        answer = decode(StopAnswer, message.payload)
        if message.topic != self._topics.answer(answer.agent):
            raise Refused(f"{answer.agent} wrote on {message.topic}")
        if answer.agent not in self.newest and len(self.newest) >= MAX_AGENTS:
            raise Refused(f"more than {MAX_AGENTS} names")
        self.newest[answer.agent] = answer
        self._arrived.set()
