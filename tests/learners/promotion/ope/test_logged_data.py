"""What counts as a policy's own decision, and how probable a policy makes what another one did."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import learning
import numpy as np
import pytest
import torch

from actuators.actions import ActionSpace, Choice, Continuous
from learners.experience.transition import Transition
from learners.model.features import recorded
from learners.model.heads import Heads
from learners.model.policy import Policy
from learners.model.spec import PolicySpec, StreamSpec
from learners.promotion.ope.features import compare
from learners.promotion.ope.logged_data import Logged
from learners.promotion.ope.propensities import densities, motions, preferences, taken
from learners.promotion.step_types import working
from learners.rl.replay_buffer import ReplayBuffer

torch.set_num_threads(1)
ARM = ActionSpace((Choice("head", ("left", "stay", "right")), Continuous("arm", (-2.0, 0.0), (2.0, 1.0))))
SPEC = PolicySpec((StreamSpec("joints", "telemetry", 1, 2),), ARM, history=2, gamma=0.9)


def finished(work: Any) -> Any:
    """What a generator of parts returns."""
    run = working(work)
    while True:
        try:
            next(run)
        except StopIteration as end:
            return end.value


def tick(n: int, **fields: Any) -> Transition:
    """One tick of both actuators."""
    rng = np.random.default_rng(n)
    joints = rng.normal(size=(1, 2)).astype(np.float32)
    made = Transition(
        session="s", tick=n, decision=f"s-{n}", stamp_s=n / 10, policy="p", tokens={"joints": joints},
        present={"joints": True}, ages_s={"joints": 0.0},
        actions={"head": ("left", "stay", "right")[int(rng.integers(3))], "arm": (float(rng.uniform(-2, 2)), 0.5)},
        probabilities={"head": 0.25, "arm": 0.7}, by={"head": "policy", "arm": "policy"}, reward=float(rng.normal()),
    )  # fmt: skip
    return replace(made, **fields)


def test_only_what_the_policy_drew_itself_is_its_own() -> None:
    rows = [
        tick(0),
        tick(1, by={"head": "override", "arm": "policy"}),
        tick(2, by={"head": "gate", "arm": "none"}),
        tick(3, by={"head": "policy", "arm": "policy"}, probabilities={"head": 1.0, "arm": 1.0}),
        tick(4, actions={}),
        tick(5, probabilities={}),
        tick(6, actions={"head": "up", "arm": (0.0,)}),
    ]
    logged = Logged(SPEC, rows)
    assert logged.own["head"].tolist() == [True, False, False, True, False, False, False]
    assert logged.own["arm"].tolist() == [True, True, False, False, False, False, False]  # 1: drawn without noise
    assert logged.probability["head"].tolist() == [0.25, 1, 1, 1, 1, 1, 1]
    assert logged.any_own.tolist() == [True, True, False, True, False, False, False]
    assert logged.acted_N.tolist() == [True, True, False, True, False, True, True]


def test_a_successor_is_the_next_tick_of_the_same_session() -> None:
    rows = [tick(0), tick(2), tick(3, done=True), tick(4), tick(9), tick(10, session="t")]
    assert Logged(SPEC, rows).follows_N.tolist() == [True, True, False, False, False, False]


def test_features_are_those_of_replay_with_the_history() -> None:
    rows = [tick(n, done=n == 69) for n in range(100)]
    logged = Logged(SPEC, rows)
    assert list(logged.chunks(64)) == [slice(0, 64), slice(64, 100)]
    replay = ReplayBuffer(SPEC, max_bytes=1 << 20, max_rows=200)
    for row in rows:
        replay.append(row)
    wanted = replay.newest(100)
    assert wanted is not None
    seen = logged.seen(logged.history(slice(0, 100)))
    assert seen.lead == (100, 2)
    assert torch.equal(seen.tokens["joints"], wanted.tokens["joints"])
    assert torch.equal(seen.present, wanted.present)
    assert logged.history(slice(68, 72)).tolist() == [[67, 68], [68, 69], [69, 70], [70, 71]]


def test_contexts_are_those_of_encoding_each_history() -> None:
    torch.manual_seed(0)
    streams = (StreamSpec("joints", "telemetry", 1, 2), StreamSpec("orders", "text", 2, 8))
    spec = PolicySpec(streams, ARM, width=16, heads=2, history=3, gamma=0.9)
    policy = Policy(spec).eval()
    rng = np.random.default_rng(0)
    rows = []
    for n in range(30):
        orders = rng.normal(size=(2, 8)).astype(np.float16)
        tokens = {**tick(n).tokens, **({"orders": orders} if n % 4 else {})}
        rows.append(tick(n, tokens=tokens, present=dict.fromkeys(tokens, True), done=n == 11))
    logged = Logged(spec, rows)
    with torch.no_grad():
        for part in (slice(0, 7), slice(7, 30)):
            whole = policy.encode(logged.seen(logged.history(part)))
            torch.testing.assert_close(logged.contexts(policy, part), whole)


def test_tokens_of_another_encoder_are_missing() -> None:
    rows = [tick(n, encoder_versions={"joints": "old" if n < 3 else "new"}) for n in range(6)]
    assert Logged(SPEC, rows).seen(np.arange(6)).present[:, 0].tolist() == [False] * 3 + [True] * 3


@pytest.mark.parametrize(("algorithm", "gamma"), [("dqn", 0.9), ("bandit", 0.0), ("sac", 0.9)])
def test_probabilities_are_those_that_acting_logs(algorithm: Any, gamma: float) -> None:
    torch.manual_seed(0)
    heads = Heads(ARM, 6, algorithm, gamma=gamma, hidden=(16,)).eval()
    if heads.choice is not None:
        heads.choice.epsilon.fill_(0.3)
    assert heads.continuous is not None
    heads.continuous.epsilon.fill_(0.4)
    context = torch.randn(200, 6)
    out = heads.act(context, generator=torch.Generator().manual_seed(1), explore=True)
    found = taken(heads, context, out.values)
    torch.testing.assert_close(found["head"].float(), out.probabilities["head"])
    torch.testing.assert_close(found["arm"], out.probabilities["arm"], rtol=1e-3, atol=1e-9)
    for preference in preferences(heads, context).values():
        torch.testing.assert_close(preference.probabilities.sum(-1), torch.ones(200))


def test_a_density_integrates_to_one() -> None:
    torch.manual_seed(0)
    heads = Heads(ActionSpace((Continuous("arm", (-2.0,), (2.0,)),)), 3, gamma=0.9, hidden=(8,)).eval()
    head = heads.continuous
    assert head is not None
    head.epsilon.fill_(0.2)
    units = torch.linspace(-0.99999, 0.99999, 40_001).unsqueeze(-1)
    density = densities(head, torch.randn(1, 3).expand(len(units), -1), units)[:, 0]
    assert torch.trapezoid(density.float(), 2.0 * units[:, 0]) == pytest.approx(1.0, abs=5e-3)


def test_motions_are_drawn_from_that_density() -> None:
    torch.manual_seed(0)
    heads = Heads(ActionSpace((Continuous("arm", (-2.0,), (2.0,)),)), 3, gamma=0.9, hidden=(8,)).eval()
    head = heads.continuous
    assert head is not None
    head.epsilon.fill_(0.2)
    context = torch.randn(1, 3)
    drawn = motions(head, context, 20_000, torch.Generator().manual_seed(0))[:, 0, 0]
    units = torch.linspace(-0.99999, 0.99999, 40_001).unsqueeze(-1)
    density = densities(head, context.expand(len(units), -1), units)[:, 0]
    below = torch.trapezoid(density[:20_001].float(), 2.0 * units[:20_001, 0])
    assert (drawn < 0).float().mean() == pytest.approx(float(below), abs=0.02)


def test_comparing_multiplies_only_what_was_the_policys_own() -> None:
    torch.manual_seed(0)
    candidate, live = Policy(SPEC).eval(), Policy(SPEC).eval()
    rows = [tick(n) for n in range(3)] + [tick(3, by={"head": "override", "arm": "gate"})]
    rows[1] = tick(1, by={"head": "policy", "arm": "override"})
    both = finished(compare(candidate, live, Logged(SPEC, rows)))
    assert both.logged.tolist() == pytest.approx([0.25 * 0.7, 0.25, 0.25 * 0.7, 1.0])
    features = recorded(SPEC, [rows[0].tokens], [rows[0].present], [rows[0].ages_s])
    head = candidate.heads
    index = torch.tensor([("left", "stay", "right").index(str(rows[0].actions["head"]))])
    motion = torch.tensor([rows[0].actions["arm"]])
    alone = taken(head, candidate.encode(features), {"head": index, "arm": motion})
    assert both.candidate[0] == pytest.approx(float(alone["head"] * alone["arm"]), rel=1e-4)
    assert both.candidate[3] == 1.0
    assert both.taken.shape == both.by_candidate.shape == both.by_live.shape
    assert np.isfinite(both.taken).all()


def test_comparing_a_policy_with_itself_makes_no_difference() -> None:
    policy = learning.SmallPolicy(learning.SPEC).eval()
    both = finished(compare(policy, policy, Logged(learning.SPEC, [learning.made(n) for n in range(150)])))
    assert np.array_equal(both.candidate, both.live)
    assert np.array_equal(both.by_candidate, both.by_live)
    assert np.allclose(both.logged, 1 / 3)
