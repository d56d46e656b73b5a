"""Export a policy as an ONNX graph: tokens, ages and masks of the last `history` ticks in, scores and values out.

The encoders are no part of it: they are models of their own, named with their versions in the manifest beside the graph.
What comes out is what the policy would do without exploration. Exported by torch's dynamo exporter (`torch.onnx.export`,
https://docs.pytorch.org/docs/stable/onnx_export.html) and compared with torch in onnxruntime before it is called done.

Shapes: B batch, H history (oldest first), S streams in the order of the spec, T tokens, W their width, n choices, A components.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from learners.model.policy import Policy
from learners.model.spec import PolicySpec

OPSET = 20
TOLERANCE = 1e-4
"""Largest difference from torch, relative to 1 or to the number itself, whichever is larger."""
TRIALS = 8
FORMAT = 1


class OnnxExportFailed(RuntimeError):  # noqa: N818 - reads as what happened
    """The graph could not be made or does not give torch's numbers; `str` says what and what to do."""


class Served(nn.Module):
    """A policy with flat arguments and its best actions as flat results, in the order of `input_names`, `output_names`."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, present_BHS: Tensor, ages_BHS: Tensor, *tokens_BHTW: Tensor) -> tuple[Tensor, ...]:
        """Return scores B,n of each choice actuator, motions B,A of each continuous one, and the value B."""
        policy, heads = self.policy, self.policy.heads
        flat = [x.flatten(0, 1) for x in tokens_BHTW]
        states = policy.estimate(flat, present_BHS.flatten(0, 1), ages_BHS.flatten(0, 1))
        context_BC = policy.context(states.reshape(-1, policy.spec.history, policy.state_width))
        out: list[Tensor] = []
        values: list[Tensor] = []
        if heads.choice is not None:
            out += heads.choice.scores(context_BC)
        elif heads.bandit is not None:
            out += [mean_Bn for mean_Bn, _ in heads.bandit(context_BC)]
        if out:
            values.append(torch.stack([scores_Bn.amax(-1) for scores_Bn in out]).mean(0))
        if heads.continuous is not None:
            unit_BA = torch.tanh(heads.continuous.actor(context_BC)[0])
            out += torch.split(heads.continuous.to_units(unit_BA), list(heads.continuous.widths), -1)
            values.append(heads.continuous.critics(context_BC, unit_BA).mean(0))
        return (*out, torch.stack(values).mean(0))


def input_names(spec: PolicySpec) -> list[str]:
    """Return `present`, `ages_s` and `tokens.STREAM` for each stream."""
    return ["present", "ages_s", *(f"tokens.{name}" for name in spec.names)]


def output_names(spec: PolicySpec) -> list[str]:
    """Return `scores.ACTUATOR` for choices, `action.ACTUATOR` for continuous actuators, and `value`."""
    choices, motions = spec.actions.choices, spec.actions.continuous
    return [*(f"scores.{a.name}" for a in choices), *(f"action.{a.name}" for a in motions), "value"]


def export(policy: Policy, path: Path, *, version: str, encoder_versions: dict[str, str]) -> dict[str, Any]:
    """Write the graph to `path`; return the manifest with its inputs and outputs, which is not written.

    Raises:
        OnnxExportFailed: the exporter is not installed, gives up, or its graph gives other numbers than torch.
    """
    spec = policy.spec
    if not spec.actions.choices and not spec.actions.continuous:
        raise OnnxExportFailed("this policy has text actuators only: there is nothing to score")
    for library in ("onnxscript", "learners.model.backends.onnxruntime"):  # what cannot be compared is not begun
        _library(library)
    module = Served(policy.cpu().eval())
    _convert(module, path)
    session = open_session(path)
    worst = max(_difference(module, session, example(spec, seed, batch=1 + seed % 3)) for seed in range(TRIALS))
    if worst > TOLERANCE:
        path.unlink()
        raise OnnxExportFailed(
            f"{path}: differs from torch by {worst:.2g}, more than {TOLERANCE:g}: file deleted; please report this with your settings"
        )
    return manifest(spec, version, encoder_versions) | {
        "opset": OPSET,
        "tolerance": TOLERANCE,
        "difference": worst,
        "compared": TRIALS,
    }


def _convert(module: Served, path: Path) -> None:
    spec = module.policy.spec
    batch = torch.export.Dim("batch", min=1, max=4096)
    dynamic = ({0: batch}, {0: batch}, tuple({0: batch} for _ in spec.streams))
    output = io.StringIO()
    for name in ("onnxscript", "torch.onnx"):  # they log operators that this policy does not use
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        # the exporter prints its steps to standard output, and names deprecated parts of itself
        with warnings.catch_warnings(), contextlib.redirect_stdout(output), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                example(spec, 0, batch=2),
                path,
                input_names=input_names(spec),
                output_names=output_names(spec),
                dynamic_shapes=dynamic,
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        first = str(error).strip().splitlines()[0]
        raise OnnxExportFailed(f"the exporter gave up: {first}") from error


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        missing = name.rpartition(".")[2]
        raise OnnxExportFailed(f"{missing} is missing: pip install 'reflexd[export]'") from None


def open_session(path: Path) -> Any:
    """Open the graph in onnxruntime, with one thread.

    Raises:
        OnnxExportFailed: onnxruntime is not installed.
    """
    library: Any = _library("learners.model.backends.onnxruntime")
    return library.open_session(str(path), 1)


def run(session: Any, spec: PolicySpec, inputs: Sequence[Tensor]) -> dict[str, NDArray[np.float32]]:
    """Run the graph; return its outputs by name."""
    feeds = {name: x.numpy() for name, x in zip(input_names(spec), inputs, strict=True)}
    # a graph leaves out what the policy does not look at: the ages, where telemetry is all there is
    wanted = {entry.name for entry in session.get_inputs()}
    found = session.run(output_names(spec), {name: x for name, x in feeds.items() if name in wanted})
    return dict(zip(output_names(spec), found, strict=True))


def _difference(module: Served, session: Any, inputs: tuple[Tensor, ...]) -> float:
    spec = module.policy.spec
    with torch.no_grad():
        wanted = dict(zip(output_names(spec), module(*inputs), strict=True))
    found = run(session, spec, inputs)
    return max(
        float((np.abs(found[name] - x.numpy()) / np.maximum(1.0, np.abs(x.numpy()))).max())
        for name, x in wanted.items()
    )


def example(spec: PolicySpec, seed: int, *, batch: int) -> tuple[Tensor, ...]:
    """Random inputs in the order of `input_names`; in every third row of a batch some streams are missing."""
    generator = torch.Generator().manual_seed(seed)
    lead, count = (batch, spec.history), len(spec.streams)
    present = torch.rand(*lead, count, generator=generator) > 0.3 * (torch.arange(batch) % 3 == 2).view(-1, 1, 1)
    ages = torch.where(present, torch.rand(*lead, count, generator=generator), torch.inf)
    tokens = [torch.randn(*lead, s.tokens, s.width, generator=generator) for s in spec.streams]
    return (present, ages, *tokens)


def manifest(spec: PolicySpec, version: str, encoder_versions: dict[str, str]) -> dict[str, Any]:
    """Return what a program needs to feed the graph and to read its outputs."""
    lead, count = ["batch", spec.history], len(spec.streams)
    inputs: list[dict[str, Any]] = [
        {"name": "present", "dtype": "bool", "shape": [*lead, count], "streams": list(spec.names)},
        {"name": "ages_s", "dtype": "float32", "shape": [*lead, count], "streams": list(spec.names)},
    ]
    for s in spec.streams:
        shape = [*lead, s.tokens, s.width]
        inputs.append({"name": f"tokens.{s.name}", "dtype": "float32", "shape": shape, "modality": s.modality})
        inputs[-1]["encoder"] = encoder_versions.get(s.name)
    outputs: list[dict[str, Any]] = [
        {"name": f"scores.{a.name}", "shape": ["batch", len(a.choices)], "choices": list(a.choices)}
        for a in spec.actions.choices
    ]
    outputs += [
        {"name": f"action.{a.name}", "shape": ["batch", len(a.low)], "low": list(a.low), "high": list(a.high)}
        for a in spec.actions.continuous
    ]
    outputs.append({"name": "value", "shape": ["batch"]})
    return {
        "format": FORMAT,
        "policy": version,
        "history": "oldest first; repeat the oldest tick where fewer are known",
        "missing": "present is false and ages_s is inf; the tokens then do not matter",
        "inputs": inputs,
        "outputs": outputs,
        "spec": spec.to_json().decode(),
    }
