"""Carry a version of the group's learner out in waves: publish, wait for verdicts, widen, or withdraw.

`waves.py` decides; this publishes, and notes the state in `wave.json` before and after. A process that is killed between the two
looks at the verdicts, and publishes the stage again under a higher counter, or withdraws again. An agent that alone stopped `LONE_STOPS`
waves is named in `lone-stops.json`; its verdicts count no more until a person readmits it. Used by `group_learner.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
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
LONE_STOPS = 3
"""Waves that one agent may stop alone, where the group has further agents, before its verdicts count no more."""
SAVE_S = 30.0
"""Between two notes of how long a stage has lasted."""
MAX_LONE = 1_000


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
        monotonic: seconds of a clock that is never set; a stage lasts by it.
    """

    settings: WaveSettings
    publisher: PolicyPublisher
    checkpoints: Checkpoints
    agents: dict[str, AgentReport]
    verdicts: dict[str, VerdictReport]
    excluded: Callable[[], dict[str, str]] = dict
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    wave: Wave | None = field(init=False)
    """The newest one."""
    readmitted: deque[str] = field(default_factory=deque, init=False)
    """Agents with verdicts that shall count again; any thread may append."""
    _lone_stops: dict[str, list[str]] = field(init=False)
    """By agent, the versions that it alone stopped."""
    _counted_s: float = field(init=False)
    """Up to when `Wave.held_s` counts, by `monotonic`."""

    def __post_init__(self) -> None:
        path = self.publisher.folder / "wave.json"
        self.wave = Wave.model_validate_json(path.read_bytes()) if path.exists() else None
        lone = self.publisher.folder / "lone-stops.json"
        self._lone_stops = orjson.loads(lone.read_bytes()) if lone.exists() else {}
        self._counted_s = self.monotonic()

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
        while self.readmitted:
            if self._lone_stops.pop(self.readmitted.popleft(), None) is not None:
                self._note_lone_stops()
        wave = self.wave
        if wave is None or not wave.is_open:
            await self._begin()
        elif wave.state == "stopping":
            await self._stop(wave)
        elif wave.version is None:
            await self._store(wave)
        else:
            await self._follow(wave, wave.version)

    async def _begin(self) -> None:
        """Begin the wave of a version that the learner proposes."""
        proposed = self.checkpoints.proposed()
        is_known = self.wave is not None and proposed == self.wave.learner_version
        if proposed is None or is_known or self.is_paused or not self.settings.publish or not self._online_agents():
            return
        wave = Wave(learner_version=proposed)
        self._note(wave)
        await self._store(wave)

    async def _store(self, wave: Wave) -> None:
        """Store the version of a wave for publication, and publish it to the canaries."""
        online = self._online_agents()
        if self.is_paused or not online:
            return
        directory = self.checkpoints.folder / wave.learner_version
        TrustedKeys(self.publisher.settings.data).remember(self.checkpoints.public)
        try:
            version = await asyncio.to_thread(self.publisher.add, directory, None, lambda _: False, by="wave")
        except CheckpointRefused as refusal:
            self._note(wave.model_copy(update={"state": "ended", "reason": str(refusal)}))
            return
        group = self.publisher.settings.group
        share = share_of("canary", group, version, online, self.settings.canaries)
        canaries = tuple(name for name in online if wave_position(group, version, name) < share)
        await self._publish(wave.model_copy(update={"version": version, "share": share, "canaries": canaries}))

    async def _publish(self, wave: Wave) -> None:
        """Note a stage that is begun, with its share, and publish it."""
        if wave != self.wave:
            self._note(wave)
        if self.is_paused:
            return
        await self.publisher.publish(wave.share, wave=wave.stage)
        self._counted_s = self.monotonic()
        self._note(wave.model_copy(update={"state": "running", "since_s": self.clock(), "held_s": 0.0}))
        log.info("fleet.wave", version=wave.version, stage=wave.stage, share=wave.share)

    async def _follow(self, wave: Wave, version: str) -> None:
        """Look at the verdicts, and publish, widen, end or stop a wave."""
        in_force = await asyncio.to_thread(self.publisher.in_force)
        if in_force != version:
            reason = f"{in_force} was published meanwhile"
            self._note(wave.model_copy(update={"state": "ended", "reason": reason}))
            return
        if version in self.publisher.withdrawn():
            self._note(wave.model_copy(update={"state": "ended", "reason": f"{version} was withdrawn meanwhile"}))
            return
        wave = self._lasting(wave)
        online = self.agents_in(wave)
        group = self.publisher.settings.group
        members = {name for name in self._known_agents() if wave_position(group, version, name) < wave.share}
        decision = decide(
            wave,
            online,
            self.verdicts,
            wave.held_s,
            hold_s=self.settings.hold_s,
            alpha=self.settings.alpha,
            away=members.difference(online),
            is_compared=bool(self.publisher.trusted()),
        )
        if decision.step == "stop":
            self._count_lone_stop(version, decision.lone)
            wave = wave.model_copy(update={"state": "stopping", "reason": decision.reason})
            self._note(wave)
            await self._stop(wave)
        elif decision.step == "end":
            self._note(wave.model_copy(update={"state": "ended", "reason": decision.reason}))
        elif wave.state == "begun":
            await self._publish(wave)
        elif decision.step == "advance" and not self.is_paused:
            await self._advance(wave, version, decision.reason)

    async def _advance(self, wave: Wave, version: str, reason: str) -> None:
        """Publish the next stage; after the last one the version has passed."""
        following = next_stage(wave.stage)
        if following is None or wave.share >= 1:
            self._pass(wave, version, reason)
            return
        share = share_of(
            following, self.publisher.settings.group, version, self._online_agents(), self.settings.canaries
        )
        # agents that came since must not take a version from those that have it
        update = {"stage": following, "state": "begun", "share": max(share, wave.share)}
        await self._publish(wave.model_copy(update=update))

    def _lasting(self, wave: Wave) -> Wave:
        """Return the wave with the time that its stage has lasted; note it now and then."""
        now_s = self.monotonic()
        held_s = wave.held_s + max(0.0, now_s - self._counted_s)
        if wave.state != "running":
            return wave
        lasting = wave.model_copy(update={"held_s": held_s})
        if now_s - self._counted_s >= SAVE_S:
            self._counted_s = now_s
            self._note(lasting)
        return lasting

    async def _stop(self, wave: Wave) -> None:
        """Withdraw a version everywhere, and let the learner go on from the one before; a repeated call does what is left."""
        assert wave.version is not None
        await self.publisher.withdraw(wave.version)
        try:
            self.checkpoints.rollback(failing=wave.learner_version, by="fleet")
        except CheckpointRefused as refusal:  # no version passed its waves yet
            log.info("fleet.wave_without_earlier_version", reason=str(refusal))
        self._note(wave.model_copy(update={"state": "stopped"}))
        log.warning("fleet.wave_stopped", version=wave.version, stage=wave.stage, reason=wave.reason)

    def _pass(self, wave: Wave, version: str, reason: str) -> None:
        """Make the version the one that the learner's next candidates are compared with."""
        try:
            self.checkpoints.promote(wave.learner_version, by="experiment")
        except CheckpointRefused as refusal:
            reason = f"{reason}; {refusal}"
        self.publisher.note_passed(version)
        self._note(wave.model_copy(update={"state": "passed", "reason": reason}))
        log.info("fleet.wave_passed", version=version, reason=reason)

    def uncounted(self) -> dict[str, str]:
        """Return the agents with verdicts that do not count because they alone stopped several waves, with the reason."""
        return {
            name: f"it alone stopped {len(versions)} waves: {', '.join(versions)}"
            for name, versions in self._lone_stops.items()
            if len(versions) >= LONE_STOPS
        }

    def _count_lone_stop(self, version: str, agent: str | None) -> None:
        """Note which agent stops a wave alone, where the group has others that could have found it."""
        if agent is None or len(self._known_agents()) <= 1:
            return
        stopped = self._lone_stops.setdefault(agent, [])
        if version not in stopped:
            stopped.append(version)
            del stopped[:-LONE_STOPS]
            while len(self._lone_stops) > MAX_LONE:
                del self._lone_stops[next(iter(self._lone_stops))]
            self._note_lone_stops()
            if len(stopped) == LONE_STOPS:
                log.warning("fleet.agent_not_counted", agent=agent, reason=self.uncounted()[agent])

    def _note_lone_stops(self) -> None:
        path = self.publisher.folder / "lone-stops.json"
        write_atomically(path, orjson.dumps(self._lone_stops), mode=0o600)

    def _known_agents(self) -> list[str]:
        """Return the agents with verdicts that count."""
        left_out = {**self.excluded(), **self.uncounted()}
        return [name for name in self.agents if name not in left_out]

    def _online_agents(self) -> list[str]:
        return [name for name in self._known_agents() if self.agents[name].state == "online"]

    def agents_in(self, wave: Wave) -> list[str]:
        """Return the agents of a wave that are online."""
        if wave.version is None:
            return []
        group = self.publisher.settings.group
        return [name for name in self._online_agents() if wave_position(group, wave.version, name) < wave.share]

    def _note(self, wave: Wave) -> None:
        trial = {"waiting": wave.learner_version if wave.is_open else None}
        # the record of a daemon's experiment: the learner deletes no version that it names
        write_atomically(self.checkpoints.folder.parent / EXPERIMENTS_FILE, orjson.dumps(trial), mode=0o600)
        write_atomically(self.publisher.folder / "wave.json", wave.model_dump_json().encode(), mode=0o600)
        self.wave = wave
