"""Decide how far a published policy may spread: to a few agents, to a tenth, to all, or back from everywhere.

Each device examines a policy itself and reports what became of it there. Only verdicts of agents in the wave count. A wave goes on
once half of its agents have made the version live and it lasted `hold_s`; behind the canaries, two further agents are among them. It stops
at the first agent that found the version worse in its own experiment, or took it back. Running experiments are pooled: each
device reports evidence that holds at all moments, so `1 / evidence` is a p-value. Fisher's method combines those of independent
devices, and Bonferroni's finds the one strong result among many weak ones. A wave that most of its agents reject ends.

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
OTHERS = 2
"""Agents beside the canaries that have to make a version live before it goes to all, where the group has them."""
DOUBT = 10.0
"""A wave waits while the evidence against its version is within this factor of `alpha`: no number of live agents outvotes it."""
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
    state: Literal["begun", "running", "stopping", "passed", "stopped", "ended"] = "begun"
    """`begun`: the manifest of this stage may not be at the broker yet. `stopping`: the withdrawal may not be."""
    share: float = Field(1.0, gt=0, le=1)
    """Of the stage; it is noted before the manifest is published."""
    canaries: tuple[str, ...] = Field((), max_length=100_000)
    """Agents that were online in the first stage."""
    since_s: float = 0.0
    """Unix seconds when the stage came to the broker, for people."""
    held_s: float = Field(0.0, ge=0)
    """How long the stage had lasted at the broker when this was saved, by a monotonic clock."""
    reason: str = ""

    @property
    def is_open(self) -> bool:
        """Whether the version may still spread."""
        return self.state in {"begun", "running", "stopping"}


@dataclass(frozen=True, slots=True)
class WaveDecision:
    """What follows from the verdicts: the wave waits, goes on, stops, or ends without a proof of harm."""

    step: Literal["wait", "advance", "stop", "end"]
    reason: str = ""
    lone: str | None = None
    """The agent that stops the wave alone."""


def decide(
    wave: Wave,
    agents: Collection[str],
    verdicts: Mapping[str, VerdictReport],
    held_s: float,
    *,
    hold_s: float,
    alpha: float,
    away: Collection[str] = (),
    is_compared: bool = True,
) -> WaveDecision:
    """Decide how a running wave goes on.

    Args:
        wave: at the broker.
        agents: of the wave that are online.
        verdicts: of agents, about any version.
        held_s: how long the stage has lasted.
        hold_s: how long a stage lasts at least.
        alpha: probability at which pooled evidence stops a wave of a version that is not worse.
        away: agents of the wave that are offline: what they found against the version counts.
        is_compared: whether devices have an earlier version to compare with. If so, live without one pair of blocks is no verdict.
    """
    members = {*agents, *away}
    own = {agent: each for agent, each in verdicts.items() if agent in members and each.version == wave.version}
    evidence = {name: each.worse for name, each in own.items() if each.pairs}
    p_value = against(evidence.values())
    stop = _stop(own, evidence, p_value, alpha)
    if stop is not None:
        return stop
    needed = max(1, math.ceil(PASS_FRACTION * len(agents)))
    present = [own[name] for name in agents if name in own]
    rejecting = [each for each in present if each.state in _REJECTING]
    if len(rejecting) > len(agents) - needed and len(rejecting) >= needed:
        return WaveDecision("end", f"{len(rejecting)} of {len(agents)} agents reject it: {rejecting[0].reason}")
    live = {name for name, each in own.items() if each.state == "live" and (each.pairs or not is_compared)}
    others = members - set(wave.canaries) if wave.stage != "canary" else set()
    reason = f"live on {len(live & set(agents))} of {len(agents)} agents"
    if len(live & set(agents)) < needed or held_s < hold_s:
        return WaveDecision("wait", reason)
    if len(live & others) < min(OTHERS, len(others)):
        return WaveDecision("wait", f"{reason}, of these {len(live & others)} beside the canaries")
    if p_value <= min(0.5, DOUBT * alpha):
        return WaveDecision("wait", f"{reason}, but {len(evidence)} agents find it worse with p = {p_value:.2g}")
    return WaveDecision("advance", reason)


def _stop(
    own: Mapping[str, VerdictReport], evidence: Mapping[str, float], p_value: float, alpha: float
) -> WaveDecision | None:
    """Return why a version is harmful; None if nothing says so."""
    stopping = [each for each in own.values() if each.state in _STOPPING]
    if stopping:
        first = stopping[0]
        lone = first.agent if len(stopping) == 1 else None
        return WaveDecision("stop", f"{first.agent}: {first.state}, {first.reason}", lone)
    if p_value > alpha:  # nan stops, too
        return None
    against_it = [name for name, each in evidence.items() if each > 1]
    reason = f"{len(evidence)} agents together find it worse, p = {p_value:.2g}"
    return WaveDecision("stop", reason, against_it[0] if len(against_it) == 1 else None)


def against(evidence: Collection[float]) -> float:
    """Return the p-value of the evidence of several devices: of all together, or of the strongest one; 1 without any."""
    strongest = len(evidence) / max(evidence) if evidence else 1.0
    return min(1.0, 2 * min(pooled(evidence), strongest)) if len(evidence) > 1 else pooled(evidence)


def pooled(evidence: Collection[float]) -> float:
    """Return the p-value of the evidence of several devices together; 1 without any. Its sum is in logarithms: it is large."""
    half = sum(math.log(max(1.0, each)) for each in evidence)  # half of Fisher's statistic
    if not half > 0:
        return half if math.isnan(half) else 1.0
    terms = [number * math.log(half) - math.lgamma(number + 1) for number in range(len(evidence))]
    top = max(terms)
    return math.exp(min(0.0, top - half + math.log(sum(math.exp(each - top) for each in terms))))


def share_of(stage: Stage, group: str, version: str, agents: Collection[str], canaries: int) -> float:
    """Return the share of a stage: that of the first `canaries` agents; at least a tenth and two further ones; or all.

    Args:
        stage: which one.
        group: name of the group.
        version: as the fleet calls it.
        agents: that are online.
        canaries: number of agents of the first stage.
    """
    if stage == "all":
        return 1.0
    places = sorted(wave_position(group, version, agent) for agent in agents)
    count = canaries if stage == "canary" else canaries + OTHERS
    few = 1.0 if len(places) <= count else (places[count - 1] + places[count]) / 2
    return max(SMALLEST_SHARE, few if stage == "canary" else max(TENTH, few))


def next_stage(stage: Stage) -> Stage | None:
    """Return the stage after one; None after the last."""
    following = STAGES.index(stage) + 1
    return STAGES[following] if following < len(STAGES) else None
