"""Read a Whisper model from a CTranslate2 file into transformers' WhisperForConditionalGeneration.

The file (CTranslate2 `model.bin`, binary version 6) is little-endian and has these parts:

- version u32, spec name, revision u32, count of variables u32;
- for each variable: name, rank u8, dims u32, type u8, bytes u32, data;
- the aliases: count u32, pairs of names.

A name is its length u16 and bytes that end in 0. Nothing in the file is executed. Attention projections are fused: query, key
and value in `self_attention/linear_0`, key and value in `attention/linear_1`. Whisper has no key bias, so that part is zero.
"""

# transformers is typed in parts only
# mypy: disable-error-code="no-untyped-call,no-any-return"
from __future__ import annotations

import json
import math
import shutil
import struct
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
_MAX_RANK = 8
END, START = 50_256, 50_257
"""<|endoftext|> and <|startoftranscript|> of the English vocabulary."""


class Ct2Error(ValueError):
    """The file is not a CTranslate2 Whisper model that this reader supports; `str` says where."""


class _Cursor:
    """Read forward through bytes, never past their end."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> memoryview:
        if self.at + count > len(self.data):
            raise Ct2Error(f"the file ends within a field of {count} bytes at {self.at}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, code: str) -> int:
        return int(struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0])

    def name(self) -> str:
        return bytes(self.take(self.number("H"))).rstrip(b"\0").decode()


def read_variables(data: bytes | memoryview) -> dict[str, NDArray[np.generic]]:
    """Read every variable of the file by its name, aliases included; arrays are read-only views of `data`.

    Raises:
        Ct2Error: another version or model, an unknown type, or sizes that do not add up.
    """
    cursor = _Cursor(memoryview(data))
    version, spec = cursor.number("I"), cursor.name()
    if version != 6 or spec != "WhisperSpec":
        raise Ct2Error(f"version {version} of {spec!r}; version 6 of 'WhisperSpec' is read")
    cursor.number("I")  # revision of the spec
    variables = dict(_variable(cursor) for _ in range(cursor.number("I")))
    for _ in range(cursor.number("I")):
        alias, original = cursor.name(), cursor.name()
        if original not in variables:
            raise Ct2Error(f"alias {alias} of {original}, which is not in the file")
        variables[alias] = variables[original]
    return variables


def _variable(cursor: _Cursor) -> tuple[str, NDArray[np.generic]]:
    name, rank = cursor.name(), cursor.number("B")
    if rank > _MAX_RANK:
        raise Ct2Error(f"{name}: {rank} dimensions")
    shape = tuple(cursor.number("I") for _ in range(rank))
    kind, size = cursor.number("B"), cursor.number("I")
    if kind not in _TYPES or math.prod(shape) * np.dtype(_TYPES[kind]).itemsize != size:
        raise Ct2Error(f"{name}: type {kind}, shape {shape} and {size} bytes do not fit together")
    return name, np.frombuffer(cursor.take(size), _TYPES[kind]).reshape(shape)


def state_dict(variables: dict[str, NDArray[np.generic]]) -> dict[str, Tensor]:
    """Return the variables under transformers' names, float32."""
    # scalars and integers are options of the CTranslate2 graph, fixed for Whisper
    floats = {k: v for k, v in variables.items() if v.ndim and np.issubdtype(v.dtype, np.floating)}
    tensors = {name: torch.from_numpy(array.astype(np.float32)) for name, array in floats.items()}
    return {own: part for name, tensor in tensors.items() for own, part in _own(name, tensor)}


def _own(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """Return transformers' name or names of one variable."""
    side, *path = name.split("/")
    leaf = {"gamma": "weight", "beta": "bias", "encodings": "weight"}.get(path[-1], path[-1])
    match path[:-1]:
        case ["conv1" | "conv2" as conv]:
            return [(f"model.{side}.{conv}.{leaf}", tensor)]
        case ["position_encodings"]:
            return [(f"model.{side}.embed_positions.weight", tensor)]
        case ["layer_norm"]:
            return [(f"model.{side}.layer_norm.{leaf}", tensor)]
        case ["embeddings"]:
            return [(f"model.{side}.embed_tokens.{leaf}", tensor)]
        case ["projection"]:
            return [(f"proj_out.{leaf}", tensor)]
        case [layer, block, part]:
            base = f"model.{side}.layers.{layer.removeprefix('layer_')}"
            return [
                (f"{base}.{own}.{leaf}", x) for own, x in _in_layer(block, part, tensor) if own + leaf not in _KEY_BIAS
            ]
    raise Ct2Error(f"unknown variable {name}")


_KEY_BIAS = {"self_attn.k_projbias", "encoder_attn.k_projbias"}


def _in_layer(block: str, part: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    match block, part:
        case "ffn", "layer_norm":
            return [("final_layer_norm", tensor)]
        case "ffn", _:
            return [("fc1" if part == "linear_0" else "fc2", tensor)]
        case "self_attention", "linear_0":
            q, k, v = tensor.chunk(3)
            return [("self_attn.q_proj", q), ("self_attn.k_proj", k), ("self_attn.v_proj", v)]
        case "attention", "linear_1":
            k, v = tensor.chunk(2)
            return [("encoder_attn.k_proj", k), ("encoder_attn.v_proj", v)]
        case "attention", "linear_0":
            return [("encoder_attn.q_proj", tensor)]
    own = {"self_attention": "self_attn", "attention": "encoder_attn"}[block]
    return [(f"{own}_layer_norm" if part == "layer_norm" else f"{own}.out_proj", tensor)]


def build(variables: dict[str, NDArray[np.generic]]) -> WhisperForConditionalGeneration:
    """Build the model; its sizes follow from the arrays.

    Raises:
        RuntimeError: a parameter is missing, unknown or of another shape.
    """
    state = state_dict(variables)
    heads = int(variables["encoder/num_heads"])
    layers = {
        side: sum(name.startswith(f"model.{side}.layers.") and name.endswith(".fc1.weight") for name in state)
        for side in ("encoder", "decoder")
    }
    width, mels = state["model.encoder.conv1.weight"].shape[:2]
    config = WhisperConfig(
        vocab_size=state["proj_out.weight"].shape[0],
        num_mel_bins=mels,
        d_model=width,
        encoder_layers=layers["encoder"],
        decoder_layers=layers["decoder"],
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=state["model.encoder.layers.0.fc1.weight"].shape[0],
        decoder_ffn_dim=state["model.decoder.layers.0.fc1.weight"].shape[0],
        max_source_positions=state["model.encoder.embed_positions.weight"].shape[0],
        max_target_positions=state["model.decoder.embed_positions.weight"].shape[0],
    )
    model = WhisperForConditionalGeneration(config)
    model.load_state_dict(state)
    return model.eval()


def generation_config(options: dict[str, list[int]]) -> GenerationConfig:
    """Return how English-only Whisper is decoded; `options` is the `config.json` next to the weights."""
    return GenerationConfig(
        bos_token_id=START,
        decoder_start_token_id=START,
        eos_token_id=END,
        pad_token_id=END,
        no_timestamps_token_id=50_362,
        prev_sot_token_id=50_360,
        is_multilingual=False,
        return_timestamps=False,
        max_length=448,
        max_initial_timestamp_index=50,
        suppress_tokens=options["suppress_ids"],
        begin_suppress_tokens=options["suppress_ids_begin"],
        alignment_heads=options["alignment_heads"],
    )


def convert(weights: Path, folder: Path) -> None:
    """Write a transformers folder from `weights` and the tokenizer and options next to it."""
    model = build(read_variables(weights.read_bytes()))
    model.generation_config = generation_config(json.loads((weights.parent / "config.json").read_bytes()))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
        setattr(model.config, name, getattr(model.generation_config, name))
    model.save_pretrained(folder)
    shutil.copyfile(weights.parent / "tokenizer.json", folder / "tokenizer.json")
    end = "<|endoftext|>"
    options = {"tokenizer_class": "WhisperTokenizer", "model_max_length": 448}
    options |= dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), end)
    (folder / "tokenizer_config.json").write_text(json.dumps(options, indent=2))
    tokenizer = WhisperTokenizer.from_pretrained(folder)
    features = WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)
    WhisperProcessor(features, tokenizer).save_pretrained(folder)
