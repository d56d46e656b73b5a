"""Answer `request/finetune`: queue the request for the learner, which reports with events."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from learners.ipc.requests import LIMIT, FinetuneRequests
from runtime.config.schema import Config
from runtime.mqtt.rpc import Answer, RequestFailed


@dataclass(frozen=True, slots=True)
class FinetuneQueue:
    """The agent's end of the queue of fine-tune requests."""

    config: Config

    async def add(self, task: str | None) -> Answer:
        """Queue a request for one task, or for all (None).

        Raises:
            RequestFailed: no such task, no learner, or the queue is full.
        """
        if not self.config.learner.enabled:
            raise RequestFailed("no learner process is running (learner.enabled is false)")
        if task is not None and task not in self.config.tasks:
            raise RequestFailed(f"{task!r} is not under tasks: {sorted(self.config.tasks)}")
        if not await asyncio.to_thread(self._add, task):
            raise RequestFailed(f"fine-tune queue is full ({LIMIT}); the learner is busy or not running")
        return {"task": task, "state": "asked"}

    def _add(self, task: str | None) -> bool:
        return FinetuneRequests(self.config.state_dir).add(task)
