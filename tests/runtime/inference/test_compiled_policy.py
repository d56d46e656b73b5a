"""Graphs of the fused part: stored for the weights they were made of, and not for ever."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from actuators.actions import ActionSpace, Choice
from learners.model import policy_graph
from learners.model.backends import fastest_backend, openvino
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.fastest_backend import BackendSettings, Inputs, Measured
from learners.model.features import Features
from learners.model.policy import Policy
from learners.model.spec import PolicySpec, StreamSpec
from runtime.inference import compiled_policy

SPEC = PolicySpec(
    streams=(StreamSpec("orders", "text", 1, 8), StreamSpec("joints", "telemetry", 1, 2)),
    actions=ActionSpace((Choice("head", ("left", "right")),)),
    width=16,
    latents=2,
    layers=1,
    heads=2,
    history=2,
)


def policy(seed: int) -> Policy:
    torch.manual_seed(seed)
    return Policy(SPEC).eval()


def example() -> Inputs:
    generator = torch.Generator().manual_seed(0)
    tokens = (torch.randn(1, 1, 8, generator=generator), torch.randn(1, 1, 2, generator=generator))
    return (torch.tensor([[True, True]]), torch.tensor([[0.1, 0.2]]), *tokens)


def test_a_restart_converts_nothing_and_other_weights_never_use_the_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrations = Calibrations(tmp_path, BackendSettings("openvino", "float32"))
    compiled_policy.compile_policy(calibrations, policy(1), example(), first=True)
    converted: list[object] = []
    convert = openvino.convert
    monkeypatch.setattr(openvino, "convert", lambda *given: (converted.append(given), convert(*given))[1])
    run, choice = compiled_policy.compile_policy(calibrations, policy(1), example(), first=True)
    assert (converted, choice.backend) == ([], "openvino")
    with torch.inference_mode():
        torch.testing.assert_close(
            run(*example()), policy_graph.FlatPolicyModule(policy(1)).eval()(*example()), atol=1e-3, rtol=1e-3
        )
        other, _ = compiled_policy.compile_policy(calibrations, policy(2), example(), first=False)
        torch.testing.assert_close(
            other(*example()), policy_graph.FlatPolicyModule(policy(2)).eval()(*example()), atol=1e-3, rtol=1e-3
        )
    assert len(converted) == 1


def test_the_graphs_of_old_checkpoints_go_and_the_first_stays(tmp_path: Path) -> None:
    calibrations = Calibrations(tmp_path, BackendSettings("openvino", "float32"))
    for seed in range(compiled_policy.MAX_GRAPHS + 3):
        compiled_policy.compile_policy(calibrations, policy(seed), example(), first=seed == 0)
    stored = [path.name for path in (tmp_path / "openvino").iterdir()]
    assert sum(name.startswith(compiled_policy.LATER) for name in stored) == compiled_policy.MAX_GRAPHS
    assert any(compiled_policy.digest(policy(compiled_policy.MAX_GRAPHS + 2)) in name for name in stored)
    assert any(compiled_policy.digest(policy(0)) in name for name in stored)


def test_graphs_that_cannot_be_removed_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(compiled_policy.MAX_GRAPHS + 1):
        (tmp_path / f"{compiled_policy.LATER}-{number}-ov1").mkdir()
    removed: list[Path] = []

    def refuse(folder: Path) -> None:
        removed.append(folder)
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(compiled_policy.shutil, "rmtree", refuse)
    compiled_policy._prune(tmp_path)
    assert len(removed) == 1


def windows(count: int) -> list[tuple[Features, ...]]:
    """Recorded observations."""
    chance = torch.Generator().manual_seed(1)
    ticks = [
        Features(
            {"orders": torch.randn(1, 1, 8, generator=chance), "joints": torch.randn(1, 1, 2, generator=chance)},
            torch.tensor([[True, True]]),
            torch.rand(1, 2, generator=chance),
        )
        for _ in range(2 * count)
    ]
    return list(zip(ticks[::2], ticks[1::2], strict=True))


def reduced(folder: Path) -> Calibrations:
    """Calibrations of a machine on which bfloat16 was the fastest."""
    calibrations = Calibrations(folder, BackendSettings("torch", "auto"))
    shape = hashlib.sha256(SPEC.to_json()).hexdigest()[:16]
    measured = tuple(Measured("torch", p, ms, 1.0, 0.0) for p, ms in (("float32", 2.0), ("bfloat16", 1.0)))
    calibrations.remember(shape, torch.device("cpu"), fastest_backend.BackendChoice("torch", "bfloat16", measured))
    return calibrations


def lead(weights: Policy, run: fastest_backend.Run, window: tuple[Features, ...]) -> float:
    """How much better the first choice is than the second, with states computed by `run`."""
    assert weights.heads.choice is not None
    states = [run(tick.present, tick.ages, *(tick.tokens[name] for name in SPEC.names)) for tick in window]
    (scores,) = weights.heads.choice(weights.context(torch.stack(states, dim=1)))
    return float(scores.mean(-1)[0, 0] - scores.mean(-1)[0, 1])


@torch.inference_mode()
def tied(weights: Policy, seen: list[tuple[Features, ...]]) -> Policy:
    """Weights with which the precision decides the choice in one of the observations."""
    module = policy_graph.FlatPolicyModule(weights).eval()
    runs = (module, fastest_backend.torch_run(module, "bfloat16"))
    leads = [[lead(weights, run, window) for run in runs] for window in seen]
    apart = max(leads, key=lambda pair: abs(pair[0] - pair[1]))
    head = weights.heads.choice
    assert head is not None
    head.out.bias[head.quantiles : 2 * head.quantiles] -= sum(apart) / 2
    return weights


def test_a_reduced_precision_is_approved_for_each_version_by_its_decisions(tmp_path: Path) -> None:
    calibrations = reduced(tmp_path)
    seen = windows(64)
    clear = policy(1)
    assert clear.heads.choice is not None
    with torch.no_grad():
        clear.heads.choice.out.bias[16:32] = 5.0  # the left choice is far the better one
    for weights, precision in ((clear, "bfloat16"), (tied(policy(2), seen), "float32")):
        _, choice = compiled_policy.compile_policy(calibrations, weights, example(), first=False, windows=seen)
        assert choice.precision == precision
        _, again = compiled_policy.compile_policy(
            Calibrations(tmp_path, BackendSettings("torch", "auto")), weights, example(), first=False
        )
        assert again.precision == precision, "a restart and a replay have no observations, and run the same"
    _, unseen = compiled_policy.compile_policy(calibrations, policy(3), example(), first=False)
    assert unseen.precision == "float32"
    forced = Calibrations(tmp_path / "forced", BackendSettings("torch", "bfloat16"))
    shape = hashlib.sha256(SPEC.to_json()).hexdigest()[:16]
    forced.remember(shape, torch.device("cpu"), fastest_backend.BackendChoice("torch", "bfloat16", ()))
    assert compiled_policy.compile_policy(forced, policy(3), example(), first=False)[1].precision == "bfloat16"
