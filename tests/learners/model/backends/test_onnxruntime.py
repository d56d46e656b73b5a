"""Graphs in ONNX Runtime: torch's numbers, also with missing streams and other lengths; what it cannot do is refused in words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from actuators.actions import ActionSpace, Choice
from learners.checkpoints.manifest import GraphFiles
from learners.model.backends import graph_libraries, onnxruntime
from learners.model.backends.fastest_backend import BackendSettings, NoBackend, calibrate, candidates
from learners.model.backends.graph_libraries import graph_library, missing_reason
from learners.model.backends.onnxruntime import OnnxRuntime, convert
from learners.model.policy import Policy
from learners.model.policy_graph import example_inputs, module_of
from learners.model.spec import PolicySpec, StreamSpec

LIBRARY = OnnxRuntime()
SENSORS = tuple(StreamSpec(f"sensor-{i}", "telemetry", 1, 2) for i in range(3))
SPEC = PolicySpec(
    (*SENSORS, StreamSpec("orders", "text", 1, 4)), ActionSpace((Choice("lamp", ("OFF", "ON")),)),
    width=16, latents=2, layers=1, heads=2, hidden=(16,),
)  # fmt: skip


class Words(nn.Module):
    """Its second argument is a mask, its third one is not looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor, _times_B: Tensor) -> Tensor:
        weights_BL1 = mask_BL[..., None].to(torch.float32)
        return (self.table(ids_BL) * weights_BL1).sum(1, keepdim=True) / weights_BL1.sum(1, keepdim=True).clamp(min=1)


def words(batch: int, length: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(batch * 100 + length)
    ids_BL = torch.randint(0, 10, (batch, length), generator=generator)
    mask_BL = torch.randint(0, 2, (batch, length), generator=generator)
    return ids_BL, mask_BL, torch.zeros(batch)


def test_batch_and_length_are_free_and_what_is_not_looked_at_may_be_left_out() -> None:
    torch.manual_seed(0)
    module = Words().eval()
    run = LIBRARY.run(convert(module, [words(1, 4), words(1, 8)]), "float32", 1)
    for batch, length in ((1, 4), (1, 31), (5, 8)):
        inputs = words(batch, length)
        torch.testing.assert_close(run(*inputs), module(*inputs).detach(), rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match="the graph takes 3 inputs, not 2"):
        run(*words(1, 4)[:2])
    with pytest.raises(RuntimeError, match="Unexpected input data type"):
        run.arrays(*(x.float().numpy() for x in words(1, 4)))


@torch.inference_mode()
def test_a_policy_with_joined_and_missing_telemetry_computes_what_torch_and_openvino_compute() -> None:
    torch.manual_seed(0)
    policy = Policy(SPEC).eval()
    module, example = module_of(policy), example_inputs(SPEC)
    graph = LIBRARY.convert(module, [example])
    run = LIBRARY.run(LIBRARY.read(LIBRARY.files(graph)), "float32", 1)
    reference = graph_library("openvino")
    assert reference is not None
    other = reference.run(reference.convert(module, [example]), "float32", 1)
    chance = torch.Generator().manual_seed(1)
    for present in ((1, 1, 1, 1), (0, 1, 1, 1), (1, 0, 0, 1), (0, 0, 0, 0)):
        here = torch.tensor([present], dtype=torch.bool)
        ages = torch.where(here, 0.5, torch.inf)
        tokens = [torch.randn(1, s.tokens, s.width, generator=chance) for s in SPEC.streams]
        tokens = [torch.where(here[:, i, None, None], x, torch.nan) for i, x in enumerate(tokens)]
        want = module(here, ages, *tokens)
        assert torch.isfinite(want).all()
        for one in (run, other):
            torch.testing.assert_close(one(here, ages, *tokens), want, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_one_export_serves_all_policies_of_one_structure_with_their_own_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exports = []
    export = onnxruntime._exported
    monkeypatch.setattr(
        onnxruntime, "_exported", lambda *given, **more: exports.append(given) or export(*given, **more)
    )
    outputs = []
    for seed in range(3):
        torch.manual_seed(seed)
        policy = Policy(SPEC).eval()
        for name, values in policy.state_dict().items():
            values.fill_(9) if name.endswith(".count") else values.add_(0.2 * torch.rand(values.shape).to(values.dtype))
        module, example = module_of(policy), example_inputs(SPEC)
        outputs.append(LIBRARY.run(LIBRARY.convert(module, [example]), "float32", 1)(*example))
        torch.testing.assert_close(outputs[-1], module(*example), rtol=1e-4, atol=1e-5)
    assert len(exports) <= 1
    assert (outputs[0] - outputs[1]).abs().max() > 0.1


def test_what_is_no_graph_of_this_library_is_refused() -> None:
    with pytest.raises(RuntimeError, match="is one onnx file, not bin and xml"):
        LIBRARY.read(GraphFiles({"xml": b"", "bin": b""}))
    for content in (b"", b"no protobuf", bytes(1000)):
        with pytest.raises(RuntimeError):
            LIBRARY.run(LIBRARY.read(GraphFiles({"onnx": content})), "float32", 1)
    with pytest.raises(RuntimeError, match="computes in float32 on a CPU"):
        LIBRARY.run(b"", "bfloat16", 1)


def test_threads_sleep_when_they_have_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {}

    class Session:
        def __init__(self, _model: object, options: onnxruntime.onnxruntime.SessionOptions, **more: object) -> None:
            made["options"], made["more"] = options, more

    monkeypatch.setattr(onnxruntime.onnxruntime, "InferenceSession", Session)
    onnxruntime.open_session(b"", 3)
    options = made["options"]
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert made["more"] == {"providers": ["CPUExecutionProvider"]}
    for pool in ("intra_op", "inter_op"):
        assert options.get_session_config_entry(f"session.{pool}.allow_spinning") == "0"


def test_the_exporter_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(NoBackend, match=r"onnxscript is missing: pip install 'reflexd\[onnx\]'"):
        calibrate(Words().eval(), [words(1, 4)], BackendSettings("onnxruntime", "float32"), "v")


def test_the_first_library_that_imports_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(graph_libraries, "_imported", lambda name: None if name == "openvino" else LIBRARY)
    assert graph_library("auto") is LIBRARY
    assert graph_library("openvino") is None
    assert ("onnxruntime", "float32") in candidates(BackendSettings(), cpu)
    assert candidates(BackendSettings("onnxruntime", "bfloat16"), cpu) == []
    monkeypatch.setattr(graph_libraries, "_imported", lambda _name: None)
    assert graph_library("auto") is None
    assert {backend for backend, _ in candidates(BackendSettings(), cpu)} == {"torch"}
    assert missing_reason("auto").endswith("pip install openvino, or pip install 'reflexd[onnx]'")
    with pytest.raises(NoBackend, match="OpenVINO is not installed"):
        calibrate(Words().eval(), [words(1, 4)], BackendSettings("openvino", "float32"), "v")


IMPORT = """
import json, os, sys
from pathlib import Path
from learners.model.backends.onnxruntime import OnnxRun
import numpy as np
OnnxRun(Path(sys.argv[1]).read_bytes(), 1).arrays(np.ones((1, 3), np.float32))
print(json.dumps([os.environ["ORT_DISABLE_TELEMETRY"], sorted({"torch", "onnx", "onnxscript"} & sys.modules.keys())]))
"""


def test_it_reports_nothing_to_its_maker_and_needs_neither_torch_nor_the_exporter(tmp_path: Path) -> None:
    """Its telemetry writes an identifier of this device to the user's folder before it sends anything."""
    model = tmp_path / "graph.onnx"
    model.write_bytes(convert(nn.Linear(3, 2).eval(), [(torch.ones(1, 3),)]))
    home = tmp_path / "home"
    home.mkdir()
    places = {name: str(home) for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "TMPDIR")}
    unset = {"ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "CI"}
    environment = {name: value for name, value in os.environ.items() if name not in unset} | places
    command = [sys.executable, "-c", IMPORT, str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environment)
    assert json.loads(done.stdout) == ["1", []]
    assert list(home.rglob("*")) == []
