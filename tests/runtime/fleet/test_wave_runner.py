"""The waves of one group go on, stop and resume after a kill, with a publisher that only notes what it publishes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import torch

from fakes import FakeClock
from learners.checkpoints.store import Checkpoints, open_checkpoints
from learners.config.learner import PromotionSettings
from learners.fleet_data.device_verdict import VerdictState
from learners.fleet_data.policy_manifest import FleetPolicy, Stage
from runtime.fleet.policy_publisher import PolicyPublisher
from runtime.fleet.server_settings import FleetServerSettings, WaveSettings
from runtime.fleet.topics import AgentReport
from runtime.fleet.wave_runner import LONE_STOPS, PAUSED, WaveRunner
from runtime.fleet.waves import VerdictReport, Wave
from runtime.mqtt import MqttLost


class Killed(BaseException):
    """Ends a step as `kill -9` does."""


@dataclass(slots=True)
class NotedPublisher(PolicyPublisher):
    """Notes each manifest: version in force, share, and withdrawn versions."""

    sent: list[tuple[str | None, float, list[str]]] = field(default_factory=list)
    is_lost: bool = False
    dies: bool = False

    async def publish(
        self,
        share: float,
        *,
        before: Callable[[], object] = lambda: None,
        wave: Stage | Literal["manual"] = "manual",
    ) -> FleetPolicy:
        if self.is_lost:
            raise MqttLost("down")
        before()
        self.sent.append((self.in_force(), share, self.withdrawn()))
        if self.dies:
            raise Killed
        return None  # type: ignore[return-value]  # no caller reads it


@dataclass(slots=True)
class Group:
    """One group of ten agents."""

    folder: Path
    hold_s: float = 0.0
    agents: dict[str, AgentReport] = field(default_factory=dict)
    verdicts: dict[str, VerdictReport] = field(default_factory=dict)
    clock: FakeClock = field(default_factory=FakeClock)
    settings: FleetServerSettings = field(init=False)
    checkpoints: Checkpoints = field(init=False)
    publisher: NotedPublisher = field(init=False)
    runner: WaveRunner = field(init=False)

    def __post_init__(self) -> None:
        waves = WaveSettings.model_validate({"hold_s": self.hold_s})
        self.settings = FleetServerSettings.model_validate({"group": "arms", "data": self.folder, "waves": waves})
        self.checkpoints = open_checkpoints(self.folder / "arms" / "learner", PromotionSettings.model_validate({}))
        for number in range(10):
            self.report(f"arm-{number}")
        self.publisher = NotedPublisher(self.settings)
        self.restart()

    def restart(self) -> None:
        """Begin again from what is on disk."""
        self.publisher.dies = self.publisher.is_lost = False
        self.runner = WaveRunner(
            self.settings.waves, self.publisher, self.checkpoints, self.agents, self.verdicts, monotonic=self.clock.now
        )

    @property
    def wave(self) -> Wave:
        assert self.runner.wave is not None
        return self.runner.wave

    def report(self, agent: str, state: Literal["online", "offline"] = "online") -> None:
        self.agents[agent] = AgentReport.model_validate({"agent": agent, "state": state})

    def candidate(self, number: int) -> str:
        version = self.checkpoints.save({"policy": {"w": torch.full((2,), float(number))}}, {"spec": {}})
        self.checkpoints.propose(version)
        return version

    def say(self, state: VerdictState, *agents: str) -> None:
        for agent in agents:
            fields = {"agent": agent, "version": self.wave.version, "state": state, "pairs": 9}
            self.verdicts[agent] = VerdictReport.model_validate(fields)

    async def begin(self, number: int) -> str:
        """Begin the wave of a new candidate; return its canary."""
        self.candidate(number)
        await self.runner.step()
        (canary,) = self.runner.agents_in(self.wave)
        return canary

    async def passes(self, number: int) -> str:
        """Let a candidate pass all of its waves; return its name in the fleet."""
        await self.begin(number)
        self.say("live", *self.agents)
        for _ in range(3):
            await self.runner.step()
        assert self.wave.state == "passed"
        return str(self.wave.version)


@pytest.mark.parametrize("end", ["rejected", "undecided", "live"])
async def test_a_withdrawal_returns_to_no_version_that_did_not_pass(tmp_path: Path, end: VerdictState) -> None:
    group = Group(tmp_path)
    good = await group.passes(1)
    for number in (2, 3):  # ends without a proof, or is stopped later
        canary = await group.begin(number)
        group.say(end, canary)
        await group.runner.step()
        if end == "live":
            group.say("worse", canary)
            await group.runner.step()
    canary = await group.begin(4)
    bad = str(group.wave.version)
    group.say("worse", canary)
    await group.runner.step()
    version, share, withdrawn = group.publisher.sent[-1]
    assert (version, share) == (good, 1.0)
    assert bad in withdrawn


async def test_without_a_version_that_passed_a_withdrawal_only_withdraws(tmp_path: Path) -> None:
    group = Group(tmp_path)
    canary = await group.begin(1)
    group.say("undecided", canary)
    await group.runner.step()
    assert group.wave.state == "ended"
    canary = await group.begin(2)
    group.say("worse", canary)
    await group.runner.step()
    version, _, withdrawn = group.publisher.sent[-1]
    assert version == group.wave.version
    assert version in withdrawn


async def test_a_version_that_a_person_published_is_returned_to(tmp_path: Path) -> None:
    group = Group(tmp_path)
    by_hand = group.publisher.add(group.checkpoints.folder / group.candidate(1), str(public(group)), lambda _: False)
    group.publisher.note_by_hand(by_hand)
    canary = await group.begin(2)
    group.say("worse", canary)
    await group.runner.step()
    assert group.publisher.sent[-1][0] == by_hand


@pytest.mark.parametrize("state", ["worse", "rolled_back"])
@pytest.mark.parametrize("is_paused", [False, True])
async def test_a_stage_that_was_begun_is_published_only_after_a_look_at_the_verdicts(
    tmp_path: Path, state: VerdictState, is_paused: bool
) -> None:
    group = Group(tmp_path)
    canary = await group.begin(1)
    group.say("live", canary)
    group.publisher.is_lost = True
    with pytest.raises(MqttLost):
        await group.runner.step()
    assert (group.wave.stage, group.wave.state) == ("tenth", "begun")
    group.say(state, canary)
    group.restart()
    if is_paused:
        (tmp_path / "arms" / PAUSED).touch()
    published = len(group.publisher.sent)
    await group.runner.step()
    assert group.wave.state == "stopped"
    assert [withdrawn for _, _, withdrawn in group.publisher.sent[published:]] == [[group.wave.version]]


async def test_a_stop_that_was_killed_is_repeated_until_the_learner_has_it(tmp_path: Path) -> None:
    group = Group(tmp_path)
    await group.passes(1)
    canary = await group.begin(2)
    group.say("worse", canary)
    group.publisher.dies = True
    with pytest.raises(Killed):
        await group.runner.step()
    group.verdicts.clear()
    group.restart()
    await group.runner.step()
    assert (group.wave.state, group.wave.reason) == ("stopped", f"{canary}: worse, ")
    assert group.wave.learner_version in group.checkpoints.live().failed
    assert group.checkpoints.proposed() is None


async def test_a_rollback_by_hand_ends_a_stage_that_was_begun(tmp_path: Path) -> None:
    group = Group(tmp_path)
    good = await group.passes(1)
    canary = await group.begin(2)
    group.say("live", canary)
    group.publisher.is_lost = True
    with pytest.raises(MqttLost):
        await group.runner.step()
    group.publisher.is_lost = False
    assert group.publisher.go_back() == good
    published = len(group.publisher.sent)
    await group.runner.step()
    assert group.wave.state == "ended"
    assert len(group.publisher.sent) == published


async def test_kills_before_a_version_is_noted_leave_one_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(tmp_path)
    group.candidate(1)
    note = WaveRunner._note

    def killed(runner: WaveRunner, wave: Wave) -> None:
        if wave.version is not None:
            raise Killed
        note(runner, wave)

    monkeypatch.setattr(WaveRunner, "_note", killed)
    for _ in range(3):
        with pytest.raises(Killed):
            await group.runner.step()
        group.restart()
    monkeypatch.undo()
    await group.runner.step()
    assert group.publisher._checkpoints().live().promoted == (group.wave.version,)


async def test_the_share_of_a_stage_is_noted_before_it_is_published(tmp_path: Path) -> None:
    group = Group(tmp_path)
    group.candidate(1)
    group.publisher.dies = True
    with pytest.raises(Killed):
        await group.runner.step()
    group.restart()
    (canary,) = group.runner.agents_in(group.wave)
    group.agents.clear()  # no report has come since the restart
    await group.runner.step()
    group.report(canary)
    shares = {share for _, share, _ in group.publisher.sent}
    assert shares == {group.wave.share}
    assert group.wave.share < 1


async def test_a_stage_lasts_by_the_monotonic_clock_also_over_a_restart(tmp_path: Path) -> None:
    group = Group(tmp_path, hold_s=100.0)
    canary = await group.begin(1)
    group.say("live", canary)
    group.clock.advance(60.0)
    await group.runner.step()
    group.clock.advance(1e6)  # the server was off
    group.restart()
    await group.runner.step()
    assert group.wave.stage == "canary"
    group.clock.advance(41.0)
    await group.runner.step()
    assert group.wave.stage == "tenth"


async def test_canaries_are_drawn_from_agents_that_are_online(tmp_path: Path) -> None:
    group = Group(tmp_path)
    for number in range(8):
        group.report(f"arm-{number}", "offline")
    assert await group.begin(1) in {"arm-8", "arm-9"}
    assert group.wave.canaries[0] in {"arm-8", "arm-9"}


async def test_an_agent_that_alone_stops_several_waves_is_named_and_does_not_count(tmp_path: Path) -> None:
    group = Group(tmp_path)
    liar = "arm-3"
    for number in range(LONE_STOPS):
        await group.begin(number)
        group.say("live", *group.agents)
        group.say("worse", liar)
        for _ in range(3):
            await group.runner.step()
            group.say("worse", liar)
        assert group.wave.state == "stopped"
    assert list(group.runner.uncounted()) == [liar]
    group.restart()
    assert list(group.runner.uncounted()) == [liar]
    await group.begin(LONE_STOPS)
    group.say("live", *group.agents)
    group.say("worse", liar)
    for _ in range(3):
        await group.runner.step()
    assert group.wave.state == "passed"
    group.runner.readmitted.append(liar)
    await group.runner.step()
    assert not group.runner.uncounted()


def public(group: Group) -> Path:
    """Return the file of the learner's public key."""
    from learners.checkpoints.signing import public_pem

    path = group.folder / "learner.pem"
    path.write_bytes(public_pem(group.checkpoints.public))
    return path
