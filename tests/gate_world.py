"""A world with the real gate: one tick is a proposal, the gate's verdict, and the transition that the agent stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from actuators.actions import Action, Value
from actuators.config import AnyActuator, GateSettings
from actuators.safety.decisions import ActuatorDecision, Mode, Proposal
from actuators.safety.gate import Gate
from learners.experience.transition import Transition
from runtime.control.tick import executed_actions
from runtime.gate import ipc
from runtime.gate.agent_channel import outcomes_of

PERIOD_S = 0.1


@dataclass
class GateWorld:
    """Ticks of 0.1 s through one gate; `verdict` is the last one."""

    actuators: Mapping[str, AnyActuator]
    settings: GateSettings = field(default_factory=GateSettings)
    mode: Mode = "autonomous"
    masked: bool = False
    """Whether rows say what the gate would have let pass: the caller acts by `allowed`."""
    allowed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """What the gate would let pass at the next tick; empty unless `masked`."""
    count: int = 0
    gate: Gate = field(init=False)
    verdict: ipc.GateVerdict = field(init=False)
    rulings: list[ActuatorDecision] = field(default_factory=list)
    """The last ones, in order."""

    def __post_init__(self) -> None:
        self.gate = Gate(self.actuators, self.settings, period_s=PERIOD_S, now_s=0.0, mode=self.mode)
        self.gate.connected(0.0)
        self.gate.go_safe(0.0)
        for name, each in self.actuators.items():
            safe = each.safe if each.safe != "hold" else [0.0] * len(getattr(each, "low", ()))
            self.gate.reconciled(name, list(safe) if isinstance(safe, tuple) else safe, 0.0)

    @property
    def now_s(self) -> float:
        """Of the next tick."""
        return self.count * PERIOD_S

    def tick(
        self,
        actions: Mapping[str, Value],
        seen: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
        *,
        probability: float = 0.5,
        stale: tuple[str, ...] = (),
    ) -> Transition:
        """Propose, let the gate judge, and return the transition.

        Args:
            actions: the proposal.
            seen: W numbers, the telemetry of the stream `s`.
            probability: of each action.
            stale: streams that are missing at this tick.
        """
        k, now_s = self.count, self.now_s
        proposal = Proposal(tick=k, decision=str(k), policy="p", stamp_s=now_s, actions=actions, stale=stale)
        rulings = self.gate.judge(proposal, now_s + 0.001)
        gate, self.rulings = self.gate, rulings
        self.verdict = ipc.GateVerdict(str(k), gate.armed, gate.stopped, gate.modes, outcomes_of(gate, rulings))
        proposed = {name: Action(value, probability) for name, value in actions.items()}
        executed, by = executed_actions(proposed, self.verdict)
        allowed = self.allowed
        if self.masked:
            self.allowed = gate.allowed_choices(now_s + PERIOD_S + 0.001)
        self.count += 1
        for name in self.actuators:
            self.gate.acknowledged(name, gate._actuators[name].serial, now_s)
        return Transition(
            session="s",
            tick=k,
            decision=str(k),
            stamp_s=now_s,
            policy="p",
            tokens={"s": np.asarray(seen, np.float32)[None]},
            present={"s": True},
            ages_s={"s": 0.0},
            actions=executed,
            proposed=dict(actions),
            refused={name: o.rule for name, o in self.verdict.outcomes.items() if o.rule is not None},
            allowed=allowed,
            probabilities=dict.fromkeys(actions, probability),
            by=by,
            armed=gate.armed and not gate.stopped,
            intervention="override" in by.values(),
        )
