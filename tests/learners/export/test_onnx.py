"""A policy exported to ONNX gives torch's numbers in onnxruntime, for every action, and does not look at what is missing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actuators.actions import ActionSpace, Choice, Continuous, Utterance
from learners.export import onnx
from learners.model.features import Features
from learners.model.policy import Policy
from learners.model.spec import PolicySpec, StreamSpec

EVERY = ActionSpace(
    (
        Choice("head", ("left", "stay", "right")),
        Choice("lamp", ("OFF", "ON")),
        Continuous("arm", (-1.0, -2.0), (1.0, 2.0)),
        Utterance("say", "assistant"),
    )
)
STREAMS = (
    StreamSpec("front", "image", 9, 24, 3),
    StreamSpec("orders", "text", 1, 16),
    StreamSpec("joints", "telemetry", 1, 3),
)
KINDS: dict[str, dict[str, Any]] = {
    "latent-attention, dqn and crossq, history": {"history": 3},
    "low-rank-bilinear, bandit": {"fusion": "low-rank-bilinear", "gamma": 0.0, "history": 1},
    "latent-attention, xqc": {"algorithm": "xqc", "history": 1},
    "one telemetry stream": {"streams": STREAMS[2:], "history": 2, "algorithm": "sac"},
}


def policy(**fields: Any) -> Policy:
    torch.manual_seed(0)
    made = Policy(PolicySpec(**{"streams": STREAMS, "actions": EVERY, "width": 32, "hidden": (32,), **fields}))
    for normaliser in made.normalisers().values():
        normaliser.observe(torch.randn(64, normaliser.mean.shape[0]) * 2 + 1)
    return made.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_onnxruntime_gives_every_action_and_what_is_missing_does_not_matter(kind: str, tmp_path: Path) -> None:
    made = policy(**KINDS[kind])
    spec = made.spec
    received = onnx.export(made, tmp_path / "p.onnx", version="000001-aa", encoder_versions={"front": "v1"})
    assert received["difference"] <= received["tolerance"] == onnx.TOLERANCE
    assert [entry["name"] for entry in received["outputs"]] == ["scores.head", "scores.lamp", "action.arm", "value"]
    assert {entry["name"]: entry.get("encoder") for entry in received["inputs"]}.get("tokens.front", "v1") == "v1"
    session = onnx.open_session(tmp_path / "p.onnx")

    for batch in (1, 5):
        inputs = onnx.example(spec, 99 + batch, batch=batch)
        found = onnx.run(session, spec, inputs)
        acted = made.act(
            Features(dict(zip(spec.names, inputs[2:], strict=True)), inputs[0], inputs[1]),
            generator=torch.Generator().manual_seed(0),
        )
        for name in ("head", "lamp"):
            assert np.allclose(found[f"scores.{name}"], acted.scores[name].numpy(), atol=1e-4)
            assert np.array_equal(found[f"scores.{name}"].argmax(-1), acted.values[name].numpy())
        assert np.allclose(found["action.arm"], acted.values["arm"].numpy(), atol=1e-4)
        assert np.allclose(found["value"], acted.value.numpy(), atol=1e-4)

    present = inputs[0] & (torch.arange(len(spec.streams)) != 0)
    garbage = [torch.full_like(inputs[2], torch.nan), *inputs[3:]]
    ages = torch.where(present, inputs[1], torch.inf)
    one, two = (onnx.run(session, spec, (present, ages, *tokens)) for tokens in (inputs[2:], garbage))
    assert all(np.array_equal(one[name], two[name]) and np.isfinite(two[name]).all() for name in one)


def test_a_policy_that_only_speaks_is_refused_in_words(tmp_path: Path) -> None:
    made = policy(actions=ActionSpace((Utterance("say", "assistant"),)))
    with pytest.raises(onnx.OnnxExportFailed, match="nothing to score"):
        onnx.export(made, tmp_path / "p.onnx", version="x", encoder_versions={})
    assert not list(tmp_path.iterdir())


def test_a_graph_with_other_numbers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "TOLERANCE", -1.0)
    with pytest.raises(onnx.OnnxExportFailed, match="file deleted"):
        onnx.export(policy(streams=STREAMS[2:], history=1), tmp_path / "p.onnx", version="x", encoder_versions={})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("library", ["onnxscript", "onnxruntime"])
def test_a_missing_library_is_named_with_its_remedy(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, "learners.model.backends.onnxruntime", raising=False)
    with pytest.raises(onnx.OnnxExportFailed, match=f"{library} is missing: pip install 'reflexd\\[export\\]'"):
        onnx.export(policy(streams=STREAMS[2:], history=1), tmp_path / "p.onnx", version="x", encoder_versions={})
    assert not list(tmp_path.iterdir())
