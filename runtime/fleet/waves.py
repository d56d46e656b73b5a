"""Decide how far a published policy may spread: to a few agents, to a tenth, to all, or back from everywhere.

Each device examines a policy itself and reports what became of it there. A wave goes on once half of its agents have made the version
live and it lasted `hold_s`. It stops at the first agent that found the version worse in its own experiment, or took it back. Running
experiments are pooled: each device reports evidence that holds at all moments, so `1 / evidence` is a p-value, and Fisher's method
combines those of independent devices. A wave that most of its agents reject ends.

Pure: knows no broker, no file and no clock. Source: R. A. Fisher, Statistical Methods for Research Workers, 1925, section 21.1.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from learners.fleet_data.device_verdict import VerdictState
from learners.fleet_data.policy_manifest import Stage, wave_position
from learners.fleet_data.segment import NAME
from runtime.mqtt.topics import Payload

STAGES: tuple[Stage, ...] = ("canary", "tenth", "all")
TENTH = 0.1
PASS_FRACTION = 0.5
"""Of the agents of a wave that have to make a version live, or to reject it."""
SMALLEST_SHARE = 1e-9
_STOPPING: frozenset[VerdictState] = frozenset({"worse", "rolled_back"})
_REJECTING: frozenset[VerdictState] = frozenset({"rejected", "undecided"})


class VerdictReport(Payload):
    """`verdicts/<agent>`: what became of a version of the fleet on one device; retained."""

    agent: str = Field(pattern=NAME)
    version: str = Field(pattern=r"^\d{6,12}-[0-9a-f]{8}$")
    state: VerdictState
    reason: str = Field("", max_length=500)
    worse: float = Field(1.0, ge=1, le=1e15)
    """Evidence that the version earns less than the one before."""
    pairs: int = Field(0, ge=0)


class Wave(BaseModel):
    """How far one version has come; it is saved in `wave.json` of the group."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learner_version: str
    """As the learner calls it."""
    version: str | None = None
    """As the fleet calls it; None before it is stored for publication."""
    stage: Stage = "canary"
    state: Literal["begun", "running", "passed", "stopped", "ended"] = "begun"
    """`begun`: the manifest of this stage is not at the broker yet."""
    share: float = Field(1.0, gt=0, le=1)
    since_s: float = 0.0
    """Unix seconds since the stage is at the broker."""
    reason: str = ""

    @property
    def is_open(self) -> bool:
        """Whether the version may still spread."""
        return self.state in {"begun", "running"}


@dataclass(frozen=True, slots=True)
class WaveDecision:
    """What follows from the verdicts: the wave waits, goes on, stops, or ends without a proof of harm."""

    step: Literal["wait", "advance", "stop", "end"]
    reason: str = ""


def decide(
    wave: Wave,
    agents: Collection[str],
    verdicts: Mapping[str, VerdictReport],
    now_s: float,
    *,
    hold_s: float,
    alpha: float,
) -> WaveDecision:
    """Decide how a running wave goes on.

    Args:
        wave: at the broker.
        agents: of the wave that are online.
        verdicts: of agents, about any version.
        now_s: Unix seconds.
        hold_s: how long a stage lasts at least.
        alpha: probability at which pooled evidence stops a wave of a version that is not worse.
    """
    own = {agent: each for agent, each in verdicts.items() if each.version == wave.version}
    stopping = next((each for each in own.values() if each.state in _STOPPING), None)
    if stopping is not None:
        return WaveDecision("stop", f"{stopping.agent}: {stopping.state}, {stopping.reason}")
    on_trial = [each.worse for each in own.values() if each.pairs]
    if (p_value := pooled(on_trial)) <= alpha:
        return WaveDecision("stop", f"{len(on_trial)} agents together find it worse, p = {p_value:.2g}")
    needed = max(1, math.ceil(PASS_FRACTION * len(agents)))
    rejecting = [each for each in own.values() if each.state in _REJECTING]
    if len(rejecting) > len(agents) - needed and len(rejecting) >= needed:
        return WaveDecision("end", f"{len(rejecting)} of {len(agents)} agents reject it: {rejecting[0].reason}")
    live = sum(each.state == "live" for each in own.values())
    if live >= needed and now_s - wave.since_s >= hold_s:
        return WaveDecision("advance", f"live on {live} of {len(agents)} agents")
    return WaveDecision("wait", f"live on {live} of {len(agents)} agents")


def pooled(evidence: Collection[float]) -> float:
    """Return the p-value of the evidence of several devices together; 1 without any."""
    half = sum(math.log(max(1.0, each)) for each in evidence)  # half of Fisher's statistic
    term, total = 1.0, 0.0
    for number in range(len(evidence)):
        total += term
        term *= half / (number + 1)
    return math.exp(-half) * total if evidence else 1.0


def share_of(stage: Stage, group: str, version: str, agents: Collection[str], canaries: int) -> float:
    """Return the share of a stage: that of the first `canaries` agents, at least a tenth, or all.

    Args:
        stage: which one.
        group: name of the group.
        version: as the fleet calls it.
        agents: that are known.
        canaries: number of agents of the first stage.
    """
    if stage == "all":
        return 1.0
    places = sorted(wave_position(group, version, agent) for agent in agents)
    few = 1.0 if len(places) <= canaries else (places[canaries - 1] + places[canaries]) / 2
    return max(SMALLEST_SHARE, few if stage == "canary" else max(TENTH, few))


def next_stage(stage: Stage) -> Stage | None:
    """Return the stage after one; None after the last."""
    following = STAGES.index(stage) + 1
    return STAGES[following] if following < len(STAGES) else None
