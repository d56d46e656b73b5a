"""What the gate would let pass, the policy knows: it proposes nothing else, explores nothing else, and bootstraps from nothing else."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gate_world import GateWorld

from actuators.actions import ActionSpace, Choice
from actuators.config import ChoiceSettings, ContinuousSettings, GateSettings
from actuators.safety.allowed_choices import MOST_EVALUATIONS
from actuators.safety.decisions import Proposal
from actuators.safety.forbid_rules import Rule
from learners.experience.transition import Transition, decode_head, encode
from learners.model.features import Features
from learners.model.policy import Policy
from learners.model.spec import PolicySpec, StreamSpec
from learners.promotion.ope.logged_data import Logged
from learners.promotion.ope.propensities import taken
from learners.rl.algorithm import Algorithm
from learners.rl.dqn import Dqn
from learners.rl.replay_buffer import ReplayBuffer

MOVES, LAMP = ("left", "stay", "right"), ("OFF", "ON")
RULES = ("head == 'left' and lamp == 'ON'", "lamp == 'ON' and arm[0] > 0.5", "head == 'right' and arm[0] < 0")


def world() -> GateWorld:
    return GateWorld(
        {
            "head": ChoiceSettings(kind="choice", choices=MOVES, safe="stay"),
            "lamp": ChoiceSettings(kind="choice", choices=LAMP, safe="OFF", min_hold_s=0.35),
            "arm": ContinuousSettings(kind="continuous", low=(-1.0,), high=(1.0,), safe=(0.0,)),
        },
        GateSettings(forbid=RULES),
    )


def judged(gate_world: GateWorld, name: str, choice: str) -> bool:
    """Whether the gate takes a choice at the next tick, where nothing else is proposed."""
    gate = copy.deepcopy(gate_world.gate)
    rulings = gate.judge(Proposal(0, "d", "p", gate_world.now_s, {name: choice}), gate_world.now_s + 0.001)
    return all(ruling.rule is None for ruling in rulings if ruling.actuator == name)


def test_the_gate_lets_pass_what_it_named_and_nothing_else() -> None:
    one, rng, masked = world(), np.random.default_rng(0), 0
    for k in range(150):
        actions = {"head": str(rng.choice(MOVES)), "lamp": str(rng.choice(LAMP)), "arm": (float(rng.uniform(-1, 1)),)}
        one.tick(actions, np.zeros(1))
        if k % 50 == 49:  # a person takes the lamp, and the machine is stopped, armed again
            one.gate.override("lamp", "OFF", 0.3, one.now_s)
        named = one.gate.allowed_choices(one.now_s + 0.001)
        for name, choices in (("head", MOVES), ("lamp", LAMP)):
            if one.gate.holds[name] is not None:
                assert name not in named
                continue
            passing = tuple(choice for choice in choices if judged(one, name, choice))
            assert named.get(name, choices) == (passing or choices)
            masked += name in named
    assert masked > 50
    one.gate.stop(one.now_s, engaged=True)
    assert one.gate.allowed_choices(one.now_s) == {}


def test_the_search_is_bounded_whatever_the_rules_are(monkeypatch: pytest.MonkeyPatch) -> None:
    names, choices = [f"a{n}" for n in range(12)], tuple(f"c{n}" for n in range(20))
    rules = [f"{one} == 'c1' and {two} == 'c2'" for one in names for two in names if one < two]
    large = GateWorld(
        {name: ChoiceSettings(kind="choice", choices=choices, safe="c0") for name in names},
        GateSettings(forbid=tuple(rules)),
    )
    asked = [0]
    evaluate = Rule.broken

    def counted(rule: Rule, *given: Any, **more: Any) -> Any:
        asked[0] += 1
        return evaluate(rule, *given, **more)

    monkeypatch.setattr(Rule, "broken", counted)
    assert large.gate.allowed_choices(large.now_s) == {}, "no device has reported: every value is unknown"
    assert asked[0] == 0
    for _ in range(3):
        large.tick(dict.fromkeys(names, "c1"), np.zeros(1))
    asked[0] = 0
    large.gate.allowed_choices(large.now_s)
    assert asked[0] <= MOST_EVALUATIONS


def spec_of(**fields: Any) -> PolicySpec:
    streams = (StreamSpec("s", "telemetry", 1, 2),)
    return PolicySpec(
        streams, ActionSpace((Choice("head", MOVES), Choice("lamp", LAMP))), history=1, hidden=(16,), **fields
    )


@pytest.mark.parametrize("gamma", [0.0, 0.9])
def test_a_policy_that_knows_is_never_refused(gamma: float) -> None:
    """With all exploration, behind rules and a hold; the same policy without masks is refused every other tick."""
    torch.manual_seed(0)
    policy, rng = Policy(spec_of(gamma=gamma)).eval(), np.random.default_rng(0)
    refused = {}
    for masked in (True, False):
        one, generator, rows = world(), torch.Generator().manual_seed(0), []
        one.masked = masked
        for _ in range(120):
            x = rng.normal(size=2).astype(np.float32)
            seen = Features({"s": torch.tensor(x)[None, None]}, torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1))
            masks = {
                n: torch.tensor([[c in a for c in {"head": MOVES, "lamp": LAMP}[n]]]) for n, a in one.allowed.items()
            }
            out = policy.heads.act(policy.encode(seen), generator=generator, explore=1.0, masks=masks)
            chosen = {"head": MOVES[int(out.values["head"][0])], "lamp": LAMP[int(out.values["lamp"][0])]}
            allowed = one.allowed
            if masked:
                assert all(chosen[name] in choices for name, choices in allowed.items())
                one_at_a_time = {name: chosen[name] for name in [("head", "lamp")[one.count % 2]]}
                rows.append(one.tick(one_at_a_time, x))
                assert rows[-1].allowed == allowed
            else:
                rows.append(one.tick(chosen, x))
        refused[masked] = sum(bool(row.refused) for row in rows)
    assert refused[True] == 0
    assert refused[False] > 25


def row(k: int, action: str, allowed: dict[str, tuple[str, ...]], **fields: Any) -> Transition:
    tokens = {"s": np.array([[k % 2, 1.0]], np.float32)}
    actions = {"head": action, "lamp": "OFF"}
    return Transition("s", k, str(k), 0.0, "p", tokens, {}, {"s": True}, {"s": 0.0}, actions, allowed=allowed, **fields)


def test_what_was_allowed_is_stored_and_belongs_to_its_state() -> None:
    rows = [
        row(0, "left", {}),
        row(1, "stay", {"head": ("stay", "right")}),
        row(2, "right", {"lamp": ("OFF",)}),
        row(3, "left", {}),
    ]
    for each in rows:
        assert decode_head(encode(each)[0])["allowed"] == each.allowed
    replay = ReplayBuffer(spec_of(), max_bytes=1 << 16)
    for each in rows:
        replay.append(each)
    batch = replay.ordered(0, 9)
    assert batch is not None
    assert batch.allowed["head"].tolist() == [[True] * 3, [False, True, True], [True] * 3]
    assert batch.masks["head"].tolist() == [[False, True, True], [True] * 3, [True] * 3]
    assert batch.masks["lamp"].tolist() == [[True] * 2, [True, False], [True] * 2]
    free = ReplayBuffer(spec_of(), max_bytes=1 << 16)
    for k in range(3):
        free.append(row(k, "left", {}))
    unmasked = free.ordered(0, 9)
    assert unmasked is not None
    assert unmasked.masks == unmasked.allowed == {}


def test_values_do_not_bootstrap_from_what_the_gate_does_not_let_pass() -> None:
    """`right` earns 1, the others nothing, and is allowed at every second tick only: 1 / (1 - .5 ** 2) where it is allowed."""
    spec = PolicySpec(
        (StreamSpec("s", "telemetry", 1, 2),), ActionSpace((Choice("head", MOVES),)), history=1, gamma=0.5, hidden=(32,)
    )
    replay, rng = ReplayBuffer(spec, max_bytes=1 << 20), np.random.default_rng(0)
    for k in range(1_000):
        allowed = {"head": ("left", "stay")} if k % 2 else {}
        action = str(rng.choice(allowed.get("head", MOVES)))
        replay.append(row(k, action, allowed, reward=float(action == "right")), k)
    torch.manual_seed(0)
    policy = Policy(spec).eval()
    algorithm = Algorithm(policy, torch.Generator().manual_seed(0))
    dqn = next(part for part in algorithm.parts if isinstance(part, Dqn))
    dqn.settings = replace(dqn.settings, track=0.1, rate=3e-3)
    algorithm.optimiser.groups = [replace(group, rate=3e-3) for group in algorithm.optimiser.groups]
    generator = torch.Generator().manual_seed(0)
    for _ in range(400):
        algorithm.update(replay.sample(64, generator))
    seen = replay.newest(2)
    assert seen is not None
    with torch.no_grad():
        found = {
            int(seen.tokens["s"][b, -1, 0, 0]): q.mean(-1)
            for b, q in enumerate(policy.heads.choice(policy.encode(seen))[0])
        }
    assert float(found[0][2]) == pytest.approx(4 / 3, abs=0.15)
    assert float(found[1][0]) == pytest.approx(2 / 3, abs=0.15)
    assert float(found[0][0]) == pytest.approx(1 / 3, abs=0.15)


def test_off_policy_evaluation_has_the_probabilities_of_the_draw() -> None:
    spec = spec_of()
    torch.manual_seed(0)
    policy, generator, rows, drawn = Policy(spec).eval(), torch.Generator().manual_seed(0), [], []
    for k in range(40):
        allowed = {"head": ("left", "right")} if k % 3 else {"lamp": ("OFF",)}
        masks = {n: torch.tensor([[c in a for c in {"head": MOVES, "lamp": LAMP}[n]]]) for n, a in allowed.items()}
        x = torch.tensor([[k % 2, 1.0]])
        seen = Features({"s": x[None]}, torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1))
        out = policy.heads.act(policy.encode(seen), generator=generator, explore=True, masks=masks)
        drawn.append({name: float(p_B[0]) for name, p_B in out.probabilities.items()})
        rows.append(row(k, MOVES[int(out.values["head"][0])], allowed, probabilities=drawn[-1]))
        rows[-1].actions["lamp"] = LAMP[int(out.values["lamp"][0])]  # type: ignore[index] # it is a dict here
    logged = Logged(spec, rows)
    every = slice(0, len(rows))
    again = taken(policy.heads, logged.contexts(policy, every), logged.actions(every), logged.masks(every))
    for name, p_B in again.items():
        assert p_B.tolist() == pytest.approx([each[name] for each in drawn])
