"""Train one policy on the rows of a whole group, and publish its versions in waves.

The learner is that of a daemon (`learners/worker/fleet_loop.py`), in a thread, with its state in `<data>/<group>/learner`. It
resumes exactly after kill -9 at any moment. This module gives it the spec of the group, which a device publishes, and carries its
versions out (`wave_runner.py`). Knows nothing of Ray; `serve.py` runs it as an actor.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import structlog

from learners.checkpoints.store import open_checkpoints
from learners.files import private_folder, write_atomically
from learners.fleet_data.merging.experience_merger import ExperienceMerger, spec_digest
from learners.fleet_data.segment import RowLimits
from learners.fleet_data.trust.agent_trust import AgentTrust
from learners.ipc.policy_spec import read_policy_spec, spec_path
from learners.ipc.settings import LearnerConfig, TickRate
from learners.rl.tokens.sharded import Shards
from learners.worker.fleet_loop import FleetLearnerLoop
from learners.worker.torch_limits import limit_torch
from runtime.fleet.policy_publisher import PolicyPublisher
from runtime.fleet.server_settings import FleetServerSettings
from runtime.fleet.topics import MAX_NAMED, AgentReport, FleetTopics, GroupLearnerReport
from runtime.fleet.wave_runner import WaveRunner
from runtime.fleet.waves import VerdictReport
from runtime.mqtt import Address, Connection, Message, MqttLost, Will
from runtime.mqtt.topics import Refused, decode, encode

log = structlog.get_logger(__name__)

POLL_S = 1.0
REPORT_S = 5.0
MAX_SPEC_BYTES = 262_144
MAX_SPECS = 256
"""Agents with a spec that is remembered until a reference names the one of the group; each has one place."""
MAX_AGENTS = 100_000


def learner_config(settings: FleetServerSettings) -> LearnerConfig:
    """Return the settings of the learner's loop; rewards are settled before a row leaves a device."""
    return LearnerConfig(
        state_dir=settings.data / settings.group / "learner",
        device=settings.device,
        tick=TickRate(rate_hz=settings.rate_hz),
        learner=settings.learner.model_copy(update={"reward_delay_s": 0.0}),
        experience=settings.experience,
        promotion=settings.promotion,
    )


class GroupLearner:
    """The learner of one group; create it inside the loop.

    Args:
        settings: of the server.
        shards: of the replay buffer; needed where the settings have some.

    Raises:
        ValueError: the settings have shards, and none are given.
        OSError: the data folder cannot be created, or a certificate cannot be read.
    """

    def __init__(self, settings: FleetServerSettings, shards: Shards | None = None) -> None:
        if settings.learner.replay_shards and shards is None:
            raise ValueError("learner.replay_shards: the learner runs without Ray")
        self.settings, self.inputs, self._shards = settings, learner_config(settings), shards
        self.group, self.topics = settings.data / settings.group, FleetTopics(settings.group)
        private_folder(self.inputs.state_dir / "learner")
        self.link = Connection(
            Address.of(settings.mqtt, "agent"),
            f"reflexd-{settings.group}-learner-{secrets.token_hex(8)}",
            Will(self.topics.learner, encode({"state": "offline"})),
            max_payload=MAX_SPEC_BYTES,
        )
        self.link.subscribe(self.topics.spec("+"), self._spec_arrived, retained="send")
        self.link.subscribe(self.topics.report("+"), self._report_arrived, retained="send")
        self.link.subscribe(self.topics.verdict("+"), self._verdict_arrived, retained="send")
        self.agents: dict[str, AgentReport] = {}
        self.verdicts: dict[str, VerdictReport] = {}
        self.waves = WaveRunner(
            settings.waves,
            PolicyPublisher(settings),
            open_checkpoints(self.inputs.state_dir, settings.promotion),
            self.agents,
            self.verdicts,
            excluded=lambda: self.excluded,
        )
        self.excluded: dict[str, str] = {}
        """Agents with rows that do not train, with the reason."""
        self.loop: FleetLearnerLoop | None = None
        """The loop that runs."""
        self._specs: dict[str, bytes] = {}
        """By digest, the newest spec of each agent, and that of the group."""
        self._spec_of: dict[str, str] = {}
        """By agent, the digest."""
        self._wanted_spec: str | None = None
        """The digest of the group's spec; None before the first segment."""
        self._stop = threading.Event()

    async def run(self) -> None:
        """Train and publish until cancelled."""
        with ThreadPoolExecutor(1, "learner") as thread:
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self.link.run(), name="learner mqtt")
                    group.create_task(self._report(), name="learner report")
                    group.create_task(self._publish(), name="waves")
                    group.create_task(self._train(thread), name="learner")
            finally:
                self._stop.set()

    async def _train(self, thread: ThreadPoolExecutor) -> None:
        while True:
            if self._follow_spec():
                await asyncio.get_running_loop().run_in_executor(thread, self.train_once)
            await asyncio.sleep(POLL_S)

    def train_once(self) -> None:
        """Train until stopped, or until the spec or the trusted agents change."""
        spec = read_policy_spec(self.inputs.state_dir)
        if spec is None or self._stop.is_set():
            return
        limit_torch(self.inputs.learner.threads)
        merger = ExperienceMerger(
            self.group,
            self.inputs.state_dir / "experience",
            self.settings.experience,
            trust=AgentTrust(self.settings.rate_hz),
            rows=RowLimits(self.settings.max_reward),
            shapes={stream.name: (stream.tokens, stream.width) for stream in spec.streams},
        )
        self.loop = FleetLearnerLoop(self.inputs, spec, self._stop, merger, commands=self._command, shards=self._shards)
        try:
            self.loop.run()
        finally:
            self.loop = None

    def _command(self, merger: ExperienceMerger) -> None:
        """Carry out what a person asked for in files of the group, in the thread of the learner."""
        for path in sorted((self.group / "agents").glob("*/readmit")):
            merger.readmit(path.parent.name)
            self.waves.readmitted.append(path.parent.name)
            path.unlink(missing_ok=True)
        self.excluded = merger.database.excluded()

    def _follow_spec(self) -> bool:
        """Leave the spec of the group for the learner once a device has sent it; return whether it is there."""
        try:
            digest = spec_digest(self.group)
        except (OSError, ValueError) as error:
            log.warning("fleet.reference_unreadable", reason=str(error))
            return False
        path = spec_path(self.inputs.state_dir)
        self._wanted_spec = digest
        if digest is None:
            return False
        if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            return True
        if digest not in self._specs:
            return False
        write_atomically(path, self._specs[digest], mode=0o600)
        return True

    def _spec_arrived(self, message: Message) -> None:
        """Remember the newest spec of each agent, and that of the group, whoever sent it.

        Raises:
            Refused: further agents than are remembered sent other specs.
        """
        agent, digest = message.topic.split("/")[-2], hashlib.sha256(message.payload).hexdigest()
        if agent in self._spec_of or len(self._spec_of) < MAX_SPECS:
            self._spec_of[agent] = digest
        elif digest != self._wanted_spec and digest not in self._specs:
            raise Refused(f"more than {MAX_SPECS} agents sent a spec")
        self._specs[digest] = message.payload
        needed = {*self._spec_of.values(), self._wanted_spec}
        self._specs = {each: payload for each, payload in self._specs.items() if each in needed}

    def _report_arrived(self, message: Message) -> None:
        report = decode(AgentReport, message.payload)
        self._require_author(message, report.agent, self.agents)
        self.agents[report.agent] = report

    def _verdict_arrived(self, message: Message) -> None:
        report = decode(VerdictReport, message.payload)
        self._require_author(message, report.agent, self.verdicts)
        self.verdicts[report.agent] = report

    def _require_author(self, message: Message, agent: str, known: dict[str, Any]) -> None:
        """Refuse what another agent wrote, and further agents than are remembered.

        Raises:
            Refused: with the reason.
        """
        if message.topic.rpartition("/")[2] != agent:
            raise Refused(f"{agent} wrote on {message.topic}")
        if agent not in known and len(known) >= MAX_AGENTS:
            raise Refused(f"more than {MAX_AGENTS} agents")

    async def _publish(self) -> None:
        while True:
            await self.link.up()
            await self.link.caught_up(POLL_S)
            try:
                await self.waves.step()
            except MqttLost as error:
                log.warning("fleet.not_published", reason=str(error))
            await asyncio.sleep(POLL_S)

    async def _report(self) -> None:
        while True:
            await self.link.up()
            self._follow_spec()
            self.link.enqueue(self.topics.learner, encode(self.report()), qos=1, retain=True, keep="latest")
            await asyncio.sleep(REPORT_S)

    def report(self) -> GroupLearnerReport:
        """Return how the learner is."""
        wave = self.waves.wave
        path = self.inputs.state_dir / "learner" / "progress.json"
        version = None if wave is None else wave.version
        states = {name: each.state for name, each in self.verdicts.items() if each.version == version}
        return GroupLearnerReport(
            state="online",
            stamp=time.time(),
            spec=spec_digest(self.group),
            progress=_progress(path),
            wave=None if wave is None else wave.model_dump(),
            paused=self.waves.is_paused,
            verdicts=_first(states),
            verdict_counts=Counter(states.values()),
            excluded=_first(self.excluded),
            excluded_count=len(self.excluded),
            uncounted=_first(self.waves.uncounted()),
        )


def _first(by_agent: Mapping[str, str]) -> dict[str, str]:
    """Return the entries of at most `MAX_NAMED` agents."""
    return {name: by_agent[name] for name in sorted(by_agent)[:MAX_NAMED]}


def _progress(path: Path) -> dict[str, Any]:
    try:
        found = orjson.loads(path.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}
