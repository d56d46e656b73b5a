"""Carry a version of the group's learner out in waves: publish, wait for verdicts, widen, or withdraw.

`waves.py` decides; this publishes, and notes the state in `wave.json` before and after. A process that is killed between the two
publishes the stage again, under a higher counter. Used by `group_learner.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import orjson
import structlog

from learners.checkpoints.experiment_records import EXPERIMENTS_FILE
from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.store import Checkpoints
from learners.checkpoints.trusted_keys import TrustedKeys
from learners.files import write_atomically
from learners.fleet_data.policy_manifest import wave_position
from runtime.fleet.policy_publisher import PolicyPublisher
from runtime.fleet.server_settings import WaveSettings
from runtime.fleet.topics import AgentReport
from runtime.fleet.waves import VerdictReport, Wave, decide, next_stage, share_of

log = structlog.get_logger(__name__)

PAUSED = "wave-paused"
"""While this file is in the folder of a group, no wave begins and none goes on; one that must stop does."""


@dataclass(slots=True)
class WaveRunner:
    """The waves of one group.

    Args:
        settings: of waves.
        publisher: of the group.
        checkpoints: of the learner.
        agents: the newest report of each agent.
        verdicts: the newest verdict of each agent.
        excluded: agents with verdicts that do not count.
        clock: Unix seconds.
    """

    settings: WaveSettings
    publisher: PolicyPublisher
    checkpoints: Checkpoints
    agents: dict[str, AgentReport]
    verdicts: dict[str, VerdictReport]
    excluded: Callable[[], dict[str, str]] = dict
    clock: Callable[[], float] = time.time
    wave: Wave | None = field(init=False)
    """The newest one."""

    def __post_init__(self) -> None:
        path = self.publisher.folder / "wave.json"
        self.wave = Wave.model_validate_json(path.read_bytes()) if path.exists() else None

    @property
    def is_paused(self) -> bool:
        """Whether a person paused the waves."""
        return (self.publisher.folder / PAUSED).exists()

    async def step(self) -> None:
        """Do what is due.

        Raises:
            MqttLost: the broker does not answer; the next call tries again.
            OSError: the disk refuses.
        """
        wave = self.wave
        if wave is None or not wave.is_open:
            await self._begin()
        elif wave.state == "begun":
            await self._publish(wave)
        else:
            await self._follow(wave)

    async def _begin(self) -> None:
        """Begin the wave of a version that the learner proposes."""
        proposed = self.checkpoints.proposed()
        is_known = self.wave is not None and proposed == self.wave.learner_version
        if proposed is None or is_known or self.is_paused or not self.settings.publish or not self._known_agents():
            return
        self._note(Wave(learner_version=proposed))
        assert self.wave is not None
        await self._publish(self.wave)

    async def _publish(self, wave: Wave) -> None:
        """Publish the present stage."""
        if self.is_paused:
            return
        if wave.version is None:
            directory = self.checkpoints.folder / wave.learner_version
            TrustedKeys(self.publisher.settings.data).remember(self.checkpoints.public)
            try:
                version = await asyncio.to_thread(self.publisher.add, directory, None, lambda _: False)
            except CheckpointRefused as refusal:
                self._note(wave.model_copy(update={"state": "ended", "reason": str(refusal)}))
                return
            wave = wave.model_copy(update={"version": version})
            self._note(wave)
        assert wave.version is not None
        group = self.publisher.settings.group
        share = share_of(wave.stage, group, wave.version, self._known_agents(), self.settings.canaries)
        await self.publisher.publish(share, wave=wave.stage)
        self._note(wave.model_copy(update={"state": "running", "share": share, "since_s": self.clock()}))
        log.info("fleet.wave", version=wave.version, stage=wave.stage, share=share)

    async def _follow(self, wave: Wave) -> None:
        """Widen, end or stop a running wave."""
        assert wave.version is not None
        in_force = await asyncio.to_thread(self.publisher.in_force)
        if in_force != wave.version:
            reason = f"{in_force} was published meanwhile"
            self._note(wave.model_copy(update={"state": "ended", "reason": reason}))
            return
        excluded = self.excluded()
        verdicts = {name: each for name, each in self.verdicts.items() if name not in excluded}
        decision = decide(
            wave,
            self.agents_in(wave),
            verdicts,
            self.clock(),
            hold_s=self.settings.hold_s,
            alpha=self.settings.alpha,
        )
        if decision.step == "stop":
            await self._stop(wave, decision.reason)
        elif decision.step == "end":
            self._note(wave.model_copy(update={"state": "ended", "reason": decision.reason}))
        elif decision.step == "advance" and not self.is_paused:
            following = next_stage(wave.stage)
            if following is None or wave.share >= 1:
                self._pass(wave, decision.reason)
                return
            self._note(wave.model_copy(update={"stage": following, "state": "begun"}))
            assert self.wave is not None
            await self._publish(self.wave)

    async def _stop(self, wave: Wave, reason: str) -> None:
        """Withdraw a version everywhere, and let the learner go on from the one before."""
        assert wave.version is not None
        await self.publisher.withdraw(wave.version)
        try:
            self.checkpoints.rollback(failing=wave.learner_version, by="fleet")
        except CheckpointRefused as refusal:  # no version passed its waves yet
            log.info("fleet.wave_without_earlier_version", reason=str(refusal))
        self._note(wave.model_copy(update={"state": "stopped", "reason": reason}))
        log.warning("fleet.wave_stopped", version=wave.version, stage=wave.stage, reason=reason)

    def _pass(self, wave: Wave, reason: str) -> None:
        """Make the version the one that the learner's next candidates are compared with."""
        try:
            self.checkpoints.promote(wave.learner_version, by="experiment")
        except CheckpointRefused as refusal:
            reason = f"{reason}; {refusal}"
        self._note(wave.model_copy(update={"state": "passed", "reason": reason}))
        log.info("fleet.wave_passed", version=wave.version, reason=reason)

    def _known_agents(self) -> list[str]:
        excluded = self.excluded()
        return [name for name in self.agents if name not in excluded]

    def agents_in(self, wave: Wave) -> list[str]:
        """Return the agents of a wave that are online."""
        group = self.publisher.settings.group
        return [
            name
            for name in self._known_agents()
            if self.agents[name].state == "online" and wave_position(group, str(wave.version), name) < wave.share
        ]

    def _note(self, wave: Wave) -> None:
        trial = {"waiting": wave.learner_version if wave.is_open else None}
        # the record of a daemon's experiment: the learner deletes no version that it names
        write_atomically(self.checkpoints.folder.parent / EXPERIMENTS_FILE, orjson.dumps(trial), mode=0o600)
        write_atomically(self.publisher.folder / "wave.json", wave.model_dump_json().encode(), mode=0o600)
        self.wave = wave
