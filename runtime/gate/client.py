"""Send proposals to the gate and receive its verdicts, on the agent's end of the private socket.

A verdict belongs to the proposal with the same decision id. The wait for it has a time limit, because the control loop must
continue without it. End-of-file means that the supervisor has ended, and then the agent ends too.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

import structlog

from actuators.safety.decisions import Proposal
from runtime.gate import ipc

log = structlog.get_logger(__name__)


class GateGone(ConnectionError):  # noqa: N818 - reads as what happened
    """The gate closed its end."""


class GateLink:
    """Sends proposals and matches verdicts to them. Create it inside the running loop.

    Args:
        end: the agent's end of the socket.
        agreement: of the settings that the agent has read, for every proposal.
    """

    def __init__(self, end: socket.socket, agreement: str) -> None:
        self._end, self._agreement = end, agreement
        self._waiting: dict[str, asyncio.Future[ipc.GateVerdict]] = {}
        self.latest: ipc.GateVerdict | None = None
        self.unsent = 0
        """Proposals that found the gate's buffer full (the gate is stuck), or that no message can hold."""
        self._oversized = False
        self.unanswered = 0
        """Number of proposals without a verdict in time."""

    async def propose(self, proposal: Proposal, patience_s: float) -> ipc.GateVerdict | None:
        """Send and wait up to `patience_s` for the verdict; None when there is none in time.

        Raises:
            GateGone: the gate closed its end.
        """
        future: asyncio.Future[ipc.GateVerdict] = asyncio.get_running_loop().create_future()
        self._waiting[proposal.decision] = future
        try:
            if not self.send(proposal):
                return None
            async with asyncio.timeout(patience_s):
                return await future
        except TimeoutError:
            self.unanswered += 1
            return None
        finally:
            self._waiting.pop(proposal.decision, None)

    def send(self, proposal: Proposal) -> bool:
        """Send without waiting for a verdict; False when the gate's buffer is full, or no message can hold the proposal."""
        try:
            self._end.send(ipc.pack(replace(proposal, agreement=self._agreement)))
        except BlockingIOError:
            self.unsent += 1
            return False
        except ValueError as error:
            self.unsent += 1
            if not self._oversized:
                log.warning("gate.proposal_not_sent", reason=str(error))
            self._oversized = True
            return False
        except OSError as error:
            raise GateGone(f"the gate's socket: {error}") from None
        return True

    async def listen(self) -> None:
        """Receive verdicts until the gate is gone.

        Raises:
            GateGone: always, at end-of-file.
        """
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        loop.add_reader(
            self._end.fileno(), self._readable, ended
        )  # a task that receives would cost three calls more each
        try:
            await ended
        finally:
            loop.remove_reader(self._end.fileno())

    def _readable(self, ended: asyncio.Future[None]) -> None:
        """Take what has arrived; at end-of-file, or an error, `ended` raises it."""
        try:
            data = self._end.recv(ipc.MAX_MESSAGE + 1)
            if not data:
                raise GateGone("the gate closed its end of the socket")
            message = ipc.unpack(data)
        except BlockingIOError:
            return
        except (OSError, ValueError) as error:
            if not ended.done():
                ended.set_exception(error)
            return
        if isinstance(message, ipc.GateVerdict):
            self._take(message)

    def _take(self, verdict: ipc.GateVerdict) -> None:
        self.latest = verdict
        future = self._waiting.get(verdict.decision)
        if future is not None and not future.done():
            future.set_result(verdict)
