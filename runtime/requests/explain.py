"""Answer `request/explain`: the contribution of each stream to a decision, ages, lineage, what was executed and by whom.

Another process computes (`explain_process.py`), so that no tick waits for the interpreter lock. It has low priority, starts with
the first request, ends when none has come for `IDLE_S`, and dies with the agent. It has one request at a time. A process that dies,
or does not answer in time, costs its request an error; the next request starts another one. One that is only slow to start, on a busy
machine, goes on starting for the next request.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.numpy
import structlog
from numpy.typing import NDArray

from runtime.inference.engine import Engine
from runtime.models.messages import BadMessage, Header, packed, receive
from runtime.mqtt.rpc import Answer, RequestFailed
from runtime.process.child import with_parent_death

_LOG = structlog.get_logger(__name__)
START_S, LIMIT_S = 50.0, 15.0
"""Time limits of the first request to a process, which starts meanwhile, and of any other."""
MOST_STARTS = 3
"""Requests that may wait in vain for the start of one process before it is killed."""
STORE_S = 5.0
"""Seconds that a decision of this session may take to the disk."""
IDLE_S = 60.0
"""Seconds without a request after which the process ends: its memory returns to the machine."""
END_S = 5.0
"""Seconds that an idle process has to end before it is killed."""


def description(state_dir: Path, engine: Engine, seed: int) -> Header:
    """Return the first message to the process: what it needs to know of the agent.

    Args:
        state_dir: the daemon's folder.
        engine: of the agent.
        seed: of the untrained weights.
    """
    calibrations = engine.calibrations
    return {
        "state_dir": str(state_dir.absolute()),
        "shared": None if calibrations.shared is None else str(calibrations.shared),
        "spare": None if calibrations.spare is None else str(calibrations.spare),
        "settings": asdict(calibrations.settings),
        "runtime": engine.runtime,
        "spec": engine.spec.to_json().decode(),
        "seed": seed,
    }


@dataclass(slots=True)
class Explainer:
    """Explains any stored decision, in another process.

    Args:
        description: returns the first message to the process, as the function of that name.
        statistics: returns the agent's input statistics.
        is_of_session: returns whether the running agent took a decision, so that it may be on its way to the disk.
        idle_s: seconds without a request after which the process ends.
        start_s: seconds that the first request to a process may take.
        limit_s: seconds that any other may take.
    """

    description: Callable[[], Header]
    statistics: Callable[[], Mapping[str, NDArray[Any]]]
    is_of_session: Callable[[str], bool] = lambda _decision: False
    idle_s: float = IDLE_S
    start_s: float = START_S
    limit_s: float = LIMIT_S
    store_s: float = STORE_S
    """Seconds to wait for a decision of this session that is not stored yet."""
    _process: asyncio.subprocess.Process | None = field(default=None, init=False)
    _owed: asyncio.Task[tuple[Header, bytes]] | None = field(default=None, init=False)
    """Reads the answer to a request that ran out of time while the process was starting."""
    _has_answered: bool = field(default=False, init=False)
    """The process has started: it has answered a request."""
    _in_vain: int = field(default=0, init=False)
    """Requests that waited in vain for the start of the process."""
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _asked: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    @classmethod
    def of(
        cls, state_dir: Path, engine: Engine, seed: int, is_of_session: Callable[[str], bool] = lambda _decision: False
    ) -> Explainer:
        """Return the explainer of an agent."""
        return cls(lambda: description(state_dir, engine, seed), engine.input_statistics, is_of_session)

    @property
    def process(self) -> int | None:
        """The number of the process; None while there is none."""
        return None if self._process is None else self._process.pid

    @property
    def _is_alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def run(self) -> None:
        """End the process when it is idle, until cancelled; then end it at once."""
        try:
            while True:
                self._asked.clear()
                try:
                    async with asyncio.timeout(self.idle_s):
                        await self._asked.wait()
                except TimeoutError:
                    async with self._turn:
                        if not self._asked.is_set():
                            await self._end()
        finally:
            await self._kill()

    async def explain(self, decision: str) -> Answer:
        """Explain one decision.

        Raises:
            RequestFailed: it is not on record or cannot be explained, or the process failed; with the reason.
        """
        async with self._turn:
            self._asked.set()
            wait_s = self.store_s if self.is_of_session(decision) else 0.0
            try:
                answer = await self._ask({"decision": decision, "wait_s": wait_s}, wait_s)
            except (OSError, BadMessage, asyncio.IncompleteReadError) as problem:
                _LOG.warning("explain.process_failed", decision=decision, reason=repr(problem))
                raise RequestFailed(f"{decision}: the process that explains decisions ended; ask again") from None
            finally:
                self._asked.set()
        if "error" in answer:
            raise RequestFailed(str(answer["error"]))
        found: Answer = answer["answer"]
        return found

    async def _ask(self, request: Header, wait_s: float) -> Header:
        """Send a request and return its answer; a process that fails or is late is killed, but not for a slow start.

        Raises:
            RequestFailed: it was late.
            OSError, BadMessage, asyncio.IncompleteReadError: it cannot be started, or failed.
        """
        is_starting = not (self._is_alive and self._has_answered)
        limit_s = wait_s + (self.start_s if is_starting else self.limit_s)
        is_reusable = False
        try:
            async with asyncio.timeout(limit_s):
                process = await self._started()
                if self._owed is not None:
                    await asyncio.shield(self._owed)
                assert process.stdin is not None
                assert process.stdout is not None
                self._owed = asyncio.create_task(receive(process.stdout))
                process.stdin.write(packed(request, safetensors.numpy.save(dict(self.statistics()))))
                await process.stdin.drain()
                answer, _ = await asyncio.shield(self._owed)
                self._owed, self._has_answered, is_reusable = None, True, True
                return answer
        except TimeoutError:
            self._in_vain += 1
            is_reusable = is_starting and self._owed is not None and self._in_vain < MOST_STARTS
            reason = "the process that explains decisions is still starting" if is_reusable else "the machine is busy"
            raise RequestFailed(f"{request['decision']}: no result within {limit_s:g} s; {reason}; ask again") from None
        finally:
            if not is_reusable:
                await self._kill()

    async def _started(self) -> asyncio.subprocess.Process:
        """Return the process; start one if there is none.

        Raises:
            OSError: it cannot be started.
        """
        if self._process is not None and self._is_alive:
            return self._process
        self._has_answered, self._in_vain = False, 0
        self._process = await asyncio.create_subprocess_exec(
            *with_parent_death([sys.executable, "-m", "runtime.requests.explain_process"], priority="background"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(packed(self.description()))
        return self._process

    async def _end(self) -> None:
        """End an idle process."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await process.wait()
        await self._kill()

    async def _kill(self) -> None:
        if self._owed is not None:
            self._owed.cancel()
            with suppress(asyncio.CancelledError, OSError, BadMessage, asyncio.IncompleteReadError):
                await self._owed
            self._owed = None
        if (process := self._process) is None:
            return
        with suppress(ProcessLookupError):
            process.kill()
        with suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await process.wait()
        self._process = None
