"""Every bundled encoder, and a policy of the demo's sizes, on every backend: milliseconds on one thread, cosine and largest difference from eager float32.

    python tests/benchmarks/bench_backends.py [FOLDER_OR_ID ...] [--rounds 15] [--only BACKEND ...]

The difference is relative to the largest value of the reference. Backends alternate, so that load on the machine hits all.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from actuators.actions import ActionSpace, Choice
from learners.config.policy import EncoderSettings
from learners.model.backends import fastest_backend
from learners.model.backends.graph_libraries import graph_library
from learners.model.backends.graphs import LibraryName
from learners.model.encoders import pretrained
from learners.model.encoders.bundled_weights import BundledError
from learners.model.policy import Policy
from learners.model.policy_graph import example_inputs, module_of
from learners.model.spec import PolicySpec, StreamSpec

Run = Callable[..., Tensor]
POLICY = "policy:demo"
BUNDLED = ("bundled:efficientnet-lite0", "bundled:minilm-l6", POLICY)
DEMO = PolicySpec(
    (StreamSpec("front", "image", 7, 1280, 7), StreamSpec("orders", "text", 1, 384), StreamSpec("mic", "audio", 7, 42)),
    ActionSpace((Choice("head", ("left", "stay", "right")),)),
    fusion="low-rank-bilinear", width=64, hidden=(128,), history=1,
)  # fmt: skip
RANDOM = "whisper-tiny, random weights"
BACKENDS = (
    "torch eager float32",
    "torch bfloat16 channels-last",
    "torch compiled",
    "ONNX Runtime float32",
    "OpenVINO float32",
    "OpenVINO bfloat16",
)


def compiled(module: nn.Module) -> Run:
    """torch.compile with the bfloat16 of the eager row, where the processor has it."""
    run: Run = torch.compile(
        fastest_backend.torch_run(module, "bfloat16" if fastest_backend.has_bfloat16() else "float32")
    )
    return run


def makers(module: nn.Module, example: tuple[Tensor, ...]) -> dict[str, Callable[[], Run]]:
    """How each row is made."""

    def on(name: LibraryName, precision: fastest_backend.Precision = "float32") -> Run:
        library = graph_library(name)
        if library is None:
            raise RuntimeError("not installed")
        return library.run(library.convert(module, [example]), precision, 1)

    return {
        "torch eager float32": lambda: module,
        "torch bfloat16 channels-last": lambda: fastest_backend.torch_run(module, "bfloat16"),
        "torch compiled": lambda: compiled(module),
        "ONNX Runtime float32": lambda: on("onnxruntime"),
        "OpenVINO float32": lambda: on("openvino"),
        "OpenVINO bfloat16": lambda: on("openvino", "bfloat16"),
    }


def table_of_encoder(model: str, rounds: int, only: list[str], title: str = "") -> None:
    """Measure and print one encoder."""
    encoder = pretrained.load(EncoderSettings(model=model), 4, torch.device("cpu"))
    assert encoder.module is not None
    table(title or model, encoder.module, encoder.examples()[-1], rounds, only)


def table_of_policy(rounds: int, only: list[str]) -> None:
    """Measure and print the fused part of an untrained policy."""
    torch.manual_seed(0)
    table(POLICY, module_of(Policy(DEMO).eval()), example_inputs(DEMO), rounds, only)


@torch.inference_mode()
def table(title: str, module: nn.Module, example: tuple[Tensor, ...], rounds: int, only: list[str]) -> None:
    """Measure and print one module."""
    runs: dict[str, Run] = {}
    failed: dict[str, str] = {}
    for name, make in makers(module, example).items():
        if name not in only:
            continue
        if "bfloat16" in name and not fastest_backend.has_bfloat16():
            failed[name] = "no bfloat16 here"
            continue
        try:
            runs[name] = make()
            runs[name](*example)
        except (RuntimeError, ValueError, TypeError) as error:
            runs.pop(name, None)
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run(*example)
            times[name].append(1_000 * (time.perf_counter() - start))
    reference = module(*example)
    print(f"\n{title}  {tuple(example[0].shape)} -> {tuple(reference.shape)}")
    print(f"  {'backend':<30}{'ms':>8}{'cosine':>11}{'difference':>12}")
    for name, run in runs.items():
        cosine, difference = fastest_backend.compare([reference], [run(*example)])
        print(f"  {name:<30}{statistics.median(times[name]):>8.2f}{cosine:>11.6f}{difference:>12.2g}")
    for name, why in failed.items():
        print(f"  {name:<30}{why:>8}")


def random_whisper(folder: str) -> str:
    """A folder with Whisper of tiny's sizes and random weights: the times are those of any Whisper-tiny."""
    from transformers import WhisperConfig, WhisperModel

    sizes = {"d_model": 384, "encoder_layers": 4, "decoder_layers": 1, "encoder_ffn_dim": 1536, "decoder_ffn_dim": 64}
    torch.manual_seed(0)
    heads = {"encoder_attention_heads": 6, "decoder_attention_heads": 6}
    WhisperModel(WhisperConfig(**sizes, **heads)).save_pretrained(folder)
    return folder


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", nargs="*", help=f"transformers folders or ids, or {POLICY}; default: the bundled ones and it"
    )
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each backend")
    parser.add_argument(
        "--only", nargs="+", default=BACKENDS, choices=BACKENDS, metavar="BACKEND", help=f"of {', '.join(BACKENDS)}"
    )
    warnings.simplefilter("ignore")  # exporters complain about their own internals
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    print(fastest_backend.processor())
    given = parser.parse_args()
    for model in given.models or BUNDLED:
        try:
            if model == POLICY:
                table_of_policy(given.rounds, given.only)
            else:
                table_of_encoder(model, given.rounds, given.only)
        except BundledError as error:
            print(f"\n{model}: {error}")
    if not given.models:
        with tempfile.TemporaryDirectory() as folder:
            table_of_encoder(random_whisper(folder), given.rounds, given.only, RANDOM)


if __name__ == "__main__":
    main()
