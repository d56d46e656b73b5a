"""A person's command that begins and ends between two ticks is the action of the tick before it, as recorded and as learned."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gate_world import GateWorld

from actuators.actions import Action, ActionSpace, Continuous
from actuators.config import ContinuousSettings
from actuators.safety.decisions import Proposal
from fakes import FakeClock
from learners.config.rewards import ExpressionReward
from learners.experience.reader import Reader
from learners.experience.store import Store
from learners.experience.transition import Transition
from learners.model.spec import PolicySpec, StreamSpec
from learners.rewards.tick_rewards import TickRewards
from learners.rl.replay_buffer import ReplayBuffer
from runtime.control.inbox import Inbox
from runtime.control.tick import ControlLoop, Utterances
from runtime.gate import ipc
from runtime.gate.agent_channel import outcomes_of
from runtime.process.pacing import Pacer
from sensors.config import TelemetrySettings
from sensors.readings import Observation, Telemetry

PERIOD_S, AT, TICKS = 0.1, 3, 8
SPEC = PolicySpec(
    (StreamSpec("j", "telemetry", 1, 1),), ActionSpace((Continuous("arm", (-1.0,), (1.0,)),)), history=1, gamma=0.5
)


class Daemon:
    """Real gate, tick and store; the policy proposes -0.5 and -0.6 in turn, so that each tick sends a command."""

    def __init__(self, folder: Path, *, reward: str | None = None) -> None:
        self.clock, self.store = FakeClock(0.0), Store(folder)
        self.gate = GateWorld(
            {"arm": ContinuousSettings(kind="continuous", low=(-1.0,), high=(1.0,), safe=(0.0,))}
        ).gate
        own = [ExpressionReward(name="a", kind="expression", value=reward)] if reward else []
        self.inbox = Inbox({"j": TelemetrySettings(kind="telemetry", fields=("a",))})
        self.loop = ControlLoop(
            session="s", pacer=Pacer(PERIOD_S, self.clock), clock=self.clock, wall=self.clock.now, inbox=self.inbox,
            engine=self, gate=self, store=self.store, rewards=TickRewards(own, {"j": ("a",), "arm": 1}),  # type: ignore[arg-type] # as above
            utterances=Utterances(), listeners=[],
        )  # fmt: skip

    async def decide(self, seen: Observation, *, explore: bool) -> Any:
        """Propose."""
        del explore
        actions = {"arm": Action((-0.5 - 0.1 * (seen.tick % 2),), 0.5)}
        tokens = {"j": seen.readings["j"].values.astype(np.float32)[None]}  # type: ignore[union-attr] # it is telemetry
        return SimpleNamespace(
            actions=actions, policy="p", tokens=tokens, encoder_versions={}, value=0.0, not_finite=()
        )

    async def propose(self, proposal: Proposal, patience_s: float) -> ipc.GateVerdict:
        """Let the gate judge, and send its answer through the form of the socket pair."""
        del patience_s
        gate = self.gate
        rulings = gate.judge(proposal, self.clock.now())
        for name in gate.modes:
            gate.acknowledged(name, gate._actuators[name].serial, 0.0)
        verdict = ipc.GateVerdict(
            proposal.decision, gate.armed, gate.stopped, gate.modes, outcomes_of(gate, rulings), overridden=gate.short_overrides
        )  # fmt: skip
        read = ipc.unpack(ipc.pack(verdict))
        assert isinstance(read, ipc.GateVerdict)
        return read

    async def run(self, hold_s: float) -> list[Transition]:
        """Tick; override in the middle after tick `AT`; return the stored rows."""
        for tick in range(TICKS):
            self.inbox.put(Telemetry("j", self.clock.now(), tick, ("a",), np.array([float(tick)])))
            await self.loop.tick(tick)
            self.clock.advance(PERIOD_S / 2)
            if tick == AT:
                assert self.gate.override("arm", [0.7], hold_s, self.clock.now()).sent
                self.clock.advance(hold_s / 2)
                self.gate.tick(self.clock.now())
                self.clock.advance(-hold_s / 2)
            self.clock.advance(PERIOD_S / 2)
        assert self.store.close()
        return [row.transition for row in Reader(self.store.folder).rows(0, 99)]


@pytest.mark.parametrize("rewards", [False, True])
@pytest.mark.parametrize(("hold_s", "overridden"), [(0.0, [AT]), (0.02, [AT]), (0.3, [AT + 1, AT + 2, AT + 3])])
async def test_an_override_is_recorded_and_learned_at_its_ticks(
    tmp_path: Path, hold_s: float, overridden: list[int], *, rewards: bool
) -> None:
    rows = await Daemon(tmp_path, reward="j.a" if rewards else None).run(hold_s)
    assert [row.tick for row in rows] == list(range(TICKS))
    assert [row.tick for row in rows if row.by["arm"] == "override"] == overridden
    assert [row.tick for row in rows if row.intervention] == overridden
    assert {row.actions["arm"] for row in rows if row.intervention} == {(0.7,)}
    assert {row.by["arm"] for row in rows if row.tick not in overridden} == {"policy"}
    assert [row.proposed["arm"] for row in rows] == [(-0.5 - 0.1 * (tick % 2),) for tick in range(TICKS)]
    if rewards:
        assert [row.reward for row in rows] == [*map(float, range(1, TICKS)), 0.0]

    replay = ReplayBuffer(SPEC, max_bytes=1 << 16, steps=3)
    for row in rows:
        replay.append(row)
    batch = replay.ordered(0, TICKS)
    assert batch is not None
    ticks = batch.features.tokens["j"].flatten().int()
    assert ticks[batch.is_expert["arm"]].tolist() == overridden
    assert batch.actions["arm"][batch.is_expert["arm"]].tolist() == [[pytest.approx(0.7)]] * len(overridden)
    if rewards and overridden == [
        AT
    ]:  # what the rescue earned is not the policy's: the sum of tick 1 ends before tick 3
        assert float(batch.rewards[1]) == 2.0 + 0.5 * 3.0
        assert float(batch.discounts[1]) == 0.25


@pytest.mark.parametrize("hold_s", [0.0, 0.02, 0.3])
async def test_a_reward_of_the_action_is_that_of_the_action_in_the_row(tmp_path: Path, hold_s: float) -> None:
    rows = await Daemon(tmp_path, reward="arm[0]").run(hold_s)
    assert [row.by["arm"] for row in rows].count("override") >= 1
    assert [row.reward for row in rows[:-1]] == [row.actions["arm"][0] for row in rows[:-1]]
