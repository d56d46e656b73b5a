"""Graphs of the fused part: kept for the weights they were made of, and not for ever."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from actuators.actions import ActionSpace, Choice
from learners.model.backends import selection
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.selection import BackendSettings, Inputs
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
    convert = selection.convert
    monkeypatch.setattr(selection, "convert", lambda *given: (converted.append(given), convert(*given))[1])
    run, choice = compiled_policy.compile_policy(calibrations, policy(1), example(), first=True)
    assert (converted, choice.backend) == ([], "openvino")
    with torch.inference_mode():
        torch.testing.assert_close(
            run(*example()), compiled_policy.FlatPolicyModule(policy(1)).eval()(*example()), atol=1e-3, rtol=1e-3
        )
        other, _ = compiled_policy.compile_policy(calibrations, policy(2), example(), first=False)
        torch.testing.assert_close(
            other(*example()), compiled_policy.FlatPolicyModule(policy(2)).eval()(*example()), atol=1e-3, rtol=1e-3
        )
    assert len(converted) == 1


def test_the_graphs_of_old_checkpoints_go_and_the_first_stays(tmp_path: Path) -> None:
    calibrations = Calibrations(tmp_path, BackendSettings("openvino", "float32"))
    for seed in range(compiled_policy.MAX_GRAPHS + 3):
        compiled_policy.compile_policy(calibrations, policy(seed), example(), first=seed == 0)
    kept = [path.name for path in (tmp_path / "openvino").iterdir()]
    assert sum(name.startswith(compiled_policy.LATER) for name in kept) == compiled_policy.MAX_GRAPHS
    assert any(compiled_policy.digest(policy(compiled_policy.MAX_GRAPHS + 2)) in name for name in kept)
    assert any(compiled_policy.digest(policy(0)) in name for name in kept)
