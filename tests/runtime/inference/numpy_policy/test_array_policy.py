"""The policy in numpy decides as the one in torch: contexts, scores, densities and probabilities, on nine kinds of policy."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from actuators.actions import ActionSpace, Choice, Continuous
from learners.experience.transition import Transition
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.checkpoint_graph import StoredGraph
from learners.model.backends.definitions import CPU, BackendChoice, BackendSettings, NotCompiled
from learners.model.backends.graph_libraries import graph_library
from learners.model.backends.graphs import LibraryName
from learners.model.backends.openvino import convert, graph_files
from learners.model.gaussian_actor import unit_log_density
from learners.model.policy import Policy
from learners.model.policy_graph import compile_for_checkpoint
from learners.model.shapley import explain
from learners.model.spec import PolicySpec, StreamSpec
from runtime.inference.compiled_engine import graph_run
from runtime.inference.numpy_policy import sampling
from runtime.inference.numpy_policy.history import Fuse
from runtime.inference.numpy_policy.policy import ArrayPolicy, mean_of
from runtime.inference.numpy_policy.sampling import (
    Exploration,
    bounded,
    draw_index,
    epsilon_greedy,
    generator_of,
    log_shares,
)

JOINTS, MOTORS, WINDS = (StreamSpec(name, "telemetry", 1, 3) for name in ("joints", "motors", "winds"))
PLACES = StreamSpec("front", "image", 4, 8, 2)
ORDERS = StreamSpec("orders", "text", 1, 8)
HEAD, LAMP = Choice("head", ("left", "stay", "right")), Choice("lamp", ("OFF", "ON"))
ARM, WHEELS = Continuous("arm", (-1.0,), (2.0,)), Continuous("wheels", (-3.0, 0.0), (3.0, 1.0))
SMALL: dict[str, Any] = {"width": 16, "latents": 2, "layers": 1, "heads": 2, "history": 3, "hidden": (16, 24)}
SPECS = {
    "plain choice": PolicySpec((JOINTS,), ActionSpace((HEAD, LAMP)), **SMALL),
    "plain crossq": PolicySpec((JOINTS,), ActionSpace((ARM, WHEELS)), algorithm="crossq", **SMALL),
    "fused choice": PolicySpec((ORDERS, JOINTS), ActionSpace((HEAD, LAMP)), **SMALL),
    "fused sac and choice": PolicySpec((ORDERS, JOINTS), ActionSpace((HEAD, ARM, WHEELS)), algorithm="sac", **SMALL),
    "fused xqc": PolicySpec((ORDERS, JOINTS), ActionSpace((HEAD, LAMP, ARM, WHEELS)), algorithm="xqc", **SMALL),
    "plain xqc": PolicySpec((JOINTS,), ActionSpace((HEAD, ARM, WHEELS)), algorithm="xqc", **SMALL),
    "bandit": PolicySpec((ORDERS, JOINTS), ActionSpace((HEAD, LAMP)), gamma=0.0, **SMALL),
    "low-rank-bilinear": PolicySpec(
        (PLACES, ORDERS, JOINTS), ActionSpace((HEAD,)), fusion="low-rank-bilinear", **SMALL | {"history": 1}
    ),
    "joined telemetry": PolicySpec((JOINTS, MOTORS, ORDERS, WINDS), ActionSpace((HEAD, ARM)), **SMALL),
}


def motions(spec: PolicySpec) -> int:
    """The number of components of all continuous actuators."""
    return sum(len(one.low) for one in spec.actions.continuous)


@torch.no_grad()
def trained(spec: PolicySpec, seed: int) -> Policy:
    """Weights of which no part is at its start, so that a part that is left out shows."""
    torch.manual_seed(seed)
    policy = Policy(spec).eval()
    for name, tensor in policy.state_dict().items():
        if name.endswith((".count", "passes")):
            tensor.fill_(50)
        elif name.endswith((".scatter", ".var")):
            tensor.copy_(torch.rand_like(tensor) + 0.5)
        elif name.endswith("covariance"):
            factor = torch.randn_like(tensor) * 0.05
            tensor.copy_(factor @ factor.transpose(-1, -2) + 0.1 * torch.eye(tensor.shape[-1], dtype=tensor.dtype))
        elif name.endswith("epsilon"):
            tensor.fill_(0.25)
        elif name.endswith("highest"):
            tensor.fill_(1.5)
        elif tensor.is_floating_point() and not name.endswith("lowest"):
            tensor.add_(0.1 * torch.randn_like(tensor))
    return policy


def arrays(policy: Policy) -> dict[str, NDArray[Any]]:
    return {name: tensor.numpy() for name, tensor in policy.state_dict().items()}


RUNS: dict[tuple[LibraryName, bytes], Fuse] = {}
"""What runs each graph, by the library and the weights: a test that needs one again does not compile it again."""


def on_graph(policy: Policy, folder: Path, name: LibraryName = "openvino") -> ArrayPolicy:
    """The same weights on the graph that the learner makes."""
    spec = policy.spec
    if spec.plain:
        return ArrayPolicy(spec, arrays(policy), None)
    content = hashlib.sha256(spec.to_json())
    for part, weights in arrays(policy).items():
        content.update(part.encode() + weights.tobytes())
    if (key := (name, content.digest())) not in RUNS:
        library = graph_library(name)
        assert library is not None
        calibrations = Calibrations(folder, BackendSettings(name, "float32"))
        calibrations.remember(hashlib.sha256(spec.to_json()).hexdigest()[:16], CPU, BackendChoice(name, "float32", ()))
        files, _ = compile_for_checkpoint(policy, [], library, threads=1, tolerance=0.02)
        # as the first of a daemon: any later one is compiled at the lowest priority
        RUNS[key], _ = graph_run(calibrations, spec, arrays(policy), first=True, stored=StoredGraph(files, None, ""))
    return ArrayPolicy(spec, arrays(policy), RUNS[key])


def observed(spec: PolicySpec, rows: int) -> list[Transition]:
    chance = np.random.default_rng(7)
    return [
        Transition(
            "s", tick, f"s-{tick}", float(tick), "v",
            tokens={s.name: chance.standard_normal((s.tokens, s.width)).astype(np.float32) for s in spec.streams},
            present=dict.fromkeys(spec.names, True),
            ages_s=dict.fromkeys(spec.names, 0.1),
            actions={a.name: a.choices[0] if isinstance(a, Choice) else a.low for a in spec.actions.actuators},
        )
        for tick in range(rows)
    ]  # fmt: skip


def states(policy: ArrayPolicy, ticks: list[Transition]) -> NDArray[np.float32]:
    spec = policy.spec
    fused = [
        policy.fuse(
            np.ones((1, len(spec.streams)), bool),
            np.full((1, len(spec.streams)), 0.1, np.float32),
            *(tick.tokens[name][None] for name in spec.names),
        )
        for tick in ticks
    ]
    return np.stack(fused, axis=1)


@pytest.mark.parametrize(
    ("name", "library"),
    [
        *((name, "openvino") for name in SPECS),
        *((name, "onnxruntime") for name, spec in SPECS.items() if not spec.plain),
    ],
)
def test_greedy_decisions_are_those_of_torch(name: str, library: LibraryName, tmp_path: Path) -> None:
    spec, count = SPECS[name], 60
    policy = trained(spec, 5)
    compiled, memory = on_graph(policy, tmp_path, library), Exploration(motions(spec))
    ticks = observed(spec, count + spec.history)
    for start in range(count):
        states_BHD = states(compiled, ticks[start : start + spec.history])
        have = compiled.act(states_BHD, generator_of(0, start), memory, explore=False)
        features = [
            [torch.from_numpy(np.stack([t.tokens[n] for t in ticks[start : start + spec.history]]))] for n in spec.names
        ]
        with torch.no_grad():
            shape = (spec.history, len(spec.streams))
            state = policy.estimate(
                [x[0] for x in features], torch.ones(shape, dtype=torch.bool), torch.full(shape, 0.1)
            )
            want = policy.heads.act(policy.context(state[None]), generator=torch.Generator(), explore=False)
        for actuator in spec.actions.choices:
            assert int(have.values[actuator.name][0]) == int(want.values[actuator.name][0])
            reference = want.scores[actuator.name].numpy()
            assert np.abs(have.scores[actuator.name] - reference).max() <= 1e-4 * max(1.0, np.abs(reference).max())
        for motion in spec.actions.continuous:
            np.testing.assert_allclose(have.values[motion.name], want.values[motion.name].numpy(), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(have.value, want.value.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("explore", "masked"), [(True, False), (True, True), (0.4, True)])
def test_probabilities_are_those_of_torch_for_what_was_drawn(
    name: str, explore: bool | float, masked: bool, tmp_path: Path
) -> None:
    spec = SPECS[name]
    policy = trained(spec, 5)
    compiled, memory = on_graph(policy, tmp_path), Exploration(motions(spec))
    ticks = observed(spec, spec.history)
    context = torch.from_numpy(compiled.context(states(compiled, ticks)))
    masks = {a.name: np.arange(len(a.choices)) != 1 for a in spec.actions.choices[:1]} if masked else {}
    drawn = [
        compiled.act(states(compiled, ticks), generator_of(1, n), memory, explore=explore, masks=masks)
        for n in range(20)
    ]
    allowed = {name: torch.from_numpy(mask)[None] for name, mask in masks.items()}
    want = policy.heads.act(context, generator=torch.Generator().manual_seed(0), explore=explore, masks=allowed)
    for actuator in spec.actions.choices:
        np.testing.assert_allclose(drawn[0].choices[actuator.name], want.choices[actuator.name].numpy(), atol=1e-5)
        for out in drawn:
            index = int(out.values[actuator.name][0])
            assert out.probabilities[actuator.name][0] == out.choices[actuator.name][0, index]
            assert index != 1 or actuator.name not in masks
    if (head := policy.heads.continuous) is not None and explore is True:
        for out in drawn:
            values = torch.cat([torch.from_numpy(out.values[a.name]) for a in spec.actions.continuous], -1)
            with torch.no_grad():
                density = head.log_density(context, head.from_units(values)).exp()[0].tolist()
            assert [float(out.probabilities[a.name][0]) for a in spec.actions.continuous] == pytest.approx(
                density, rel=1e-3
            )


def test_an_explanation_is_that_of_torch(tmp_path: Path) -> None:
    for name in ("fused sac and choice", "bandit", "plain choice"):
        spec = SPECS[name]
        policy = trained(spec, 5)
        ticks = observed(spec, 8)
        window, background = ticks[: spec.history], [ticks[n : n + spec.history] for n in range(3)]
        want, have = (explain(one, window, background) for one in (policy, on_graph(policy, tmp_path)))
        assert have.keys() == want.keys()
        for actuator, part in want.items():
            assert have[actuator].streams == pytest.approx(part.streams, rel=1e-3, abs=1e-4)
            assert have[actuator].score == pytest.approx(part.score, rel=1e-3, abs=1e-4)


def test_a_policy_without_a_graph_is_refused(tmp_path: Path) -> None:
    spec = SPECS["fused choice"]
    calibrations = Calibrations(tmp_path, BackendSettings("openvino", "float32"))
    with pytest.raises(NotCompiled, match="no choice of a graph"):
        graph_run(calibrations, spec, arrays(trained(spec, 0)), first=False)


def test_a_graph_that_reads_but_does_not_run_is_not_used(tmp_path: Path) -> None:
    spec = SPECS["fused choice"]
    policy = trained(spec, 0)
    on_graph(policy, tmp_path)
    calibrations = Calibrations(tmp_path, BackendSettings("openvino", "float32"))
    graph = convert(torch.nn.Linear(4, 3).eval(), (torch.ones(1, 4),))  # it has one input
    other = StoredGraph(graph_files(graph), None, "")
    with pytest.raises(NotCompiled, match="its graph does not run"):
        graph_run(calibrations, spec, arrays(policy), first=False, stored=other)


def test_choices_are_drawn_by_their_probabilities_and_never_one_of_zero() -> None:
    probabilities = np.array([0.0, 0.2, 0.5, 0.3, 0.0], np.float32)
    counts = np.bincount([draw_index(probabilities, generator_of(4, tick)) for tick in range(5_000)], minlength=5)
    assert counts[0] == counts[4] == 0
    assert stats.chisquare(counts[1:4], 5_000 * probabilities[1:4]).pvalue > 1e-3


def test_each_tick_has_numbers_of_its_own_and_the_noise_has_its_colour() -> None:
    first = [generator_of(3, tick).random(64).tobytes() for tick in range(50)]
    assert len(set(first)) == 50
    assert first[7] == generator_of(3, 7).random(64).tobytes() != generator_of(4, 7).random(64).tobytes()
    memory = Exploration(200)
    slow = np.stack([memory.wander(generator_of(1, tick)) for tick in range(400)])
    quick = np.stack([memory.noise(generator_of(2, tick)) for tick in range(400)])
    assert slow.std() == pytest.approx(1.0, abs=0.1)
    assert np.corrcoef(slow[:-1].ravel(), slow[1:].ravel())[0, 1] > 0.9
    assert abs(np.corrcoef(quick[:-1].ravel(), quick[1:].ravel())[0, 1]) < 0.05
    free = [memory.is_free(0.3, generator_of(5, tick)) for tick in range(20_000)]
    assert np.mean(free) == pytest.approx(0.3, abs=0.12)
    assert np.count_nonzero(np.diff(np.array(free, int))) < 200


def test_densities_at_the_edges_are_those_of_torch() -> None:
    unit = np.array([-1.0, -0.9995, -0.999, -0.5, 0.0, 0.9989, 0.999, 1.0], np.float32)
    mean, log_std = np.linspace(-2, 2, 8).astype(np.float32), np.linspace(-4, 1, 8).astype(np.float32)
    want = unit_log_density(torch.from_numpy(unit), torch.from_numpy(mean), torch.from_numpy(log_std)).numpy()
    np.testing.assert_allclose(sampling.unit_log_density(unit, mean, log_std), want, rtol=2e-3, atol=2e-3)


def test_exploration_resumes_where_it_was() -> None:
    one, other = Exploration(2), Exploration(2)
    for tick in range(5):
        one.noise(generator_of(0, tick))
        one.wander(generator_of(0, tick))
        one.is_free(0.5, generator_of(0, tick))
    other.restore(one.state())
    for tick in range(5, 9):
        for memory in (one, other):
            memory.wander(generator_of(0, tick))
            memory.is_free(0.5, generator_of(0, tick))
    assert {k: v.tolist() for k, v in one.state().items()} == {k: v.tolist() for k, v in other.state().items()}


@pytest.mark.parametrize("epsilon", [-0.1, 2.0, float("nan")])
def test_an_amount_of_exploration_that_is_no_probability_raises(epsilon: float) -> None:
    with pytest.raises(ValueError, match="not a probability"):
        epsilon_greedy(np.zeros(3, np.float32), epsilon)


@pytest.mark.parametrize("damaged", [float("nan"), float("inf"), -0.5])
def test_nothing_is_drawn_from_damaged_weights(damaged: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        draw_index(np.array([0.5, damaged], np.float32), generator_of(0, 0))
    if damaged > 0 or damaged != damaged:  # noqa: PLR0124 - NaN
        with pytest.raises(ValueError, match="not finite"):
            epsilon_greedy(np.array([0.5, damaged], np.float32), 0.1)


@pytest.mark.parametrize(("seed", "tick"), [(0, 0), (5, 7), (-3, 2**40), (2**70 + 9, 2**63)])
def test_the_generator_of_a_tick_is_philox_with_the_seed_as_key_and_the_tick_as_counter(seed: int, tick: int) -> None:
    want = np.random.Generator(np.random.Philox(key=seed & (2**128 - 1), counter=tick << 64))
    have = generator_of(seed, tick)
    for draw in (lambda g: g.random(5), lambda g: g.standard_normal(9, np.float32), lambda g: g.random(3, np.float32)):
        assert draw(have).tobytes() == draw(want).tobytes()


def test_shorter_ways_to_a_number_give_it_to_the_last_bit() -> None:
    chance = np.random.default_rng(2)
    for width in (1, 3, 8, 64, 101, 256):
        x = (chance.standard_normal((2, width)) * 10.0 ** chance.integers(-3, 4)).astype(np.float32)
        assert mean_of(x, -1).tobytes() == x.mean(-1, keepdims=True).tobytes()
        low, high = np.full(width, -0.5, np.float32), np.full(width, 0.0, np.float32)
        np.testing.assert_array_equal(bounded(x, low, high), np.clip(x, low, high))
    assert np.isnan(bounded(np.full(2, np.nan, np.float32), np.float32(-1), np.float32(1))).all(), "damage still shows"
    assert log_shares(0.0) == (0.0, -math.inf)
    assert log_shares(0.25) == (float(np.log(0.75)), float(np.log(0.25)))


@torch.no_grad()
@pytest.mark.parametrize("kind", SPECS)
def test_a_stream_that_was_never_there_in_training_cannot_make_a_decision_infinite(kind: str, tmp_path: Path) -> None:
    spec = SPECS[kind]
    policy = trained(spec, 5)
    for name, tensor in policy.state_dict().items():
        if ("normalise" in name or name.startswith("telemetry.")) and name.endswith((".count", ".scatter", ".mean")):
            tensor.zero_()
    array = on_graph(policy, tmp_path)
    for number in (3.3e38, -3.3e38, 1e16):
        tokens = [np.full((1, s.tokens, s.width), number, np.float32) for s in spec.streams]
        present, ages = np.ones((1, len(tokens)), bool), np.full((1, len(tokens)), 0.1, np.float32)
        state_BD = array.fuse(present, ages, *tokens)
        expected_BD = policy.estimate(
            [torch.from_numpy(x) for x in tokens], torch.from_numpy(present), torch.from_numpy(ages)
        )
        context_BC = array.context(np.stack([state_BD] * spec.history, axis=1))
        assert np.isfinite(state_BD).all()
        np.testing.assert_allclose(state_BD, expected_BD.numpy(), rtol=1e-3, atol=1e-3 * float(expected_BD.abs().max()))
        scores = array.choice_scores(context_BC) if spec.actions.choices else []
        assert all(np.isfinite(x).all() for x in scores)
