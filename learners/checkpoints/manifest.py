"""One version's directory: its files, the signed manifest that lists them, and every check before they are in memory.

Files are read once, hashed, and parsed from the very bytes that were hashed; links are not followed. Knows nothing of what the
tensors mean, nor of which version acts: `checkpoints.py` does.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from numpy.typing import NDArray

from learners.checkpoints.safetensors_numpy import Shapes, WeightsRefused, check_shapes, unpack_arrays
from learners.checkpoints.signing import verified
from learners.files import write_synced

if TYPE_CHECKING:
    from torch import Tensor

    from learners.checkpoints.safetensors_torch import Tensors

FORMAT = 1
MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
VERSION = re.compile(r"^[0-9]{6,12}-[0-9a-f]{8}\Z")
JSON = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_SORT_KEYS
_FILE = re.compile(r"^[a-z0-9][a-z0-9_-]{0,63}\.(safetensors|json|xml|bin|onnx)\Z")
_LAST_S = 253_402_300_799
"""The end of the year 9999."""
_MANIFEST_LIMIT = 1 << 20
GRAPH_FORMS = ({"xml", "bin"}, {"onnx"})
"""Endings of the files of one graph: OpenVINO's IR, or ONNX."""
GRAPH_ENDINGS = frozenset[str]().union(*GRAPH_FORMS)
_FILE_LIMIT = 1 << 34


class CheckpointRefused(Exception):  # noqa: N818 - reads as what happened
    """A checkpoint that may not be loaded.

    `reason` is one of: bad_name, missing, not_a_directory, not_a_file, no_manifest, unsigned, wrong_signature, bad_manifest,
    unknown_format, wrong_version, missing_file, extra_file, wrong_hash, pickle, not_safetensors, not_json, not_finite,
    wrong_shapes, other_meaning, failed_before, encoder_missing, not_compiled, needs_torch.
    """

    def __init__(self, version: str, reason: str, detail: str) -> None:
        super().__init__(f"checkpoint {version}: {reason}: {detail}")
        self.version, self.reason, self.detail = version, reason, detail


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of a version without loading it."""

    version: str
    parent: str | None
    created_s: float
    """Unix seconds."""
    files: dict[str, str]
    """SHA-256 of each file."""
    encoder_versions: dict[str, str] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    """Rows it learned from: first, last, count."""
    metrics: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT


@dataclass(frozen=True, slots=True)
class GraphFiles:
    """A compiled-ahead graph: files of equal stem in the version's directory, with the endings in one of `GRAPH_FORMS`."""

    parts: dict[str, bytes]
    """The content of each file by its ending."""


@dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """A version that passed every check, in memory."""

    manifest: Manifest
    tensors: dict[str, dict[str, Tensor]]
    """By file stem: `policy`, `learner`, ...; empty if arrays were requested."""
    documents: dict[str, Any]
    """By file stem: `spec`, `settings`, `position`, ..."""
    graphs: dict[str, GraphFiles] = field(default_factory=dict)
    """By file stem: `policy`; the document `graphs` describes each."""
    arrays: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict)
    """The same as `tensors`, if arrays were requested."""


def packed(
    tensors: Mapping[str, Tensors], documents: Mapping[str, Any], graphs: Mapping[str, GraphFiles] | None = None
) -> dict[str, bytes]:
    """Return the files of a version by name; `LoadedCheckpoint` has them by stem.

    Raises:
        WeightsRefused: a tensor is not finite.
        ValueError: a file stem is not of lower-case letters, digits, _ and -.
    """
    from learners.checkpoints.safetensors_torch import pack  # noqa: PLC0415 - torch: only for who writes weights

    files = {f"{stem}.safetensors": pack(group) for stem, group in tensors.items()}
    files |= {f"{stem}.json": orjson.dumps(value, option=JSON) for stem, value in documents.items()}
    for stem, graph in (graphs or {}).items():
        files |= {f"{stem}.{ending}": content for ending, content in graph.parts.items()}
    for name in files:
        if not _FILE.match(name):
            raise ValueError(f"checkpoint file {name!r}: use lower-case letters, digits, _ and -")
    return files


def write(directory: Path, files: Mapping[str, bytes], manifest: Manifest, key: Ed25519PrivateKey) -> None:
    """Write the signed files of a version into its directory, a draft, and return once they are on disk."""
    signed = orjson.dumps(asdict(manifest), option=JSON)
    for name, content in files.items():
        write_synced(directory / name, content)
    write_synced(directory / MANIFEST, signed)
    write_synced(directory / SIGNATURE, key.sign(signed))


def read_manifest(directory: Path, public: Ed25519PublicKey) -> Manifest:
    """Return the signed manifest of a version's directory.

    Raises:
        CheckpointRefused: with the reason.
    """
    version = directory.name
    if not VERSION.match(version):
        raise CheckpointRefused(version, "bad_name", "a version is named like 000042-1f3a9c0e")
    try:
        mode = directory.lstat().st_mode
    except FileNotFoundError:
        raise CheckpointRefused(version, "missing", f"{directory} does not exist") from None
    if not stat.S_ISDIR(mode):
        raise CheckpointRefused(version, "not_a_directory", "there is a link or a file in place of the directory")
    content = _read(directory, MANIFEST, "no_manifest", _MANIFEST_LIMIT)
    signature = _read(directory, SIGNATURE, "unsigned", _MANIFEST_LIMIT)
    if not verified(public, signature, content):
        raise CheckpointRefused(version, "wrong_signature", "the manifest was not signed with this installation's key")
    return _parse(version, content)


def load(
    directory: Path,
    public: Ed25519PublicKey,
    shapes: Mapping[str, Shapes] | None = None,
    meaning: Mapping[str, Any] | None = None,
    *,
    as_arrays: bool = False,
) -> LoadedCheckpoint:
    """Load a version's directory, after every check.

    Args:
        directory: of the version.
        public: the key that must have signed it.
        shapes: those each tensor file must have.
        meaning: the streams and actions of today's settings (`PolicySpec.meaning`); a version for others is refused.
        as_arrays: return weights as numpy arrays, without torch.

    Raises:
        CheckpointRefused: with the reason.
    """
    manifest = read_manifest(directory, public)
    version = manifest.version
    there = {entry.name for entry in os.scandir(directory)}
    wanted = {*manifest.files, MANIFEST, SIGNATURE}
    for reason, names in (("missing_file", wanted - there), ("extra_file", there - wanted)):
        if names:
            raise CheckpointRefused(version, reason, ", ".join(sorted(names)))
    weights: dict[str, dict[str, Any]] = {}
    documents: dict[str, Any] = {}
    graphs: dict[str, bytes] = {}
    for name, digest in manifest.files.items():
        content = _read(directory, name, "missing_file", _FILE_LIMIT)
        if hashlib.sha256(content).hexdigest() != digest:
            raise CheckpointRefused(version, "wrong_hash", f"{name} is not the file that was signed")
        stem, _, kind = name.rpartition(".")
        if kind == "json":
            documents[stem] = _document(version, name, content)
        elif kind in GRAPH_ENDINGS:
            graphs[name] = content
        else:
            weights[stem] = _weights(version, stem, content, (shapes or {}).get(stem), as_arrays=as_arrays)
    absent = set(shapes or {}) - set(weights)
    if absent:
        raise CheckpointRefused(version, "missing_file", f"{', '.join(sorted(absent))}.safetensors is needed")
    if meaning is not None and "spec" in documents:
        _check_meaning(version, documents["spec"], meaning)
    found = _graphs(version, graphs)
    if as_arrays:
        return LoadedCheckpoint(manifest, {}, documents, found, weights)
    return LoadedCheckpoint(manifest, weights, documents, found)


def _check_meaning(version: str, spec: Any, meaning: Mapping[str, Any]) -> None:
    """Refuse weights trained for other streams or actions: with equal shapes their numbers would be read as something else."""
    try:
        named = [
            {"name": stream["name"], "fields": stream.get("fields") or None, "encoder": stream.get("encoder") or None}
            for stream in spec["streams"]
        ]
        then = {"streams": named, "actions": spec["actions"]}
    except (TypeError, KeyError, AttributeError):
        raise CheckpointRefused(version, "other_meaning", "its spec.json does not name streams and actions") from None
    now = orjson.loads(orjson.dumps(meaning))
    for stream, today in zip(named, now["streams"], strict=False):
        for part in ("fields", "encoder"):
            if stream[part] is None:  # saved before specs named it, or by `reflexd train`
                stream[part] = today[part]
    for what in ("streams", "actions"):
        if then[what] != now[what]:
            raise CheckpointRefused(
                version,
                "other_meaning",
                f"it was trained for the {what} {orjson.dumps(then[what]).decode()}, the settings have "
                f"{orjson.dumps(now[what]).decode()}; restore names, order and limits, or start with a new state_dir",
            )


def _read(directory: Path, name: str, missing: str, limit: int) -> bytes:
    """Return a regular file's bytes; links are not followed, neither here nor for the directory."""
    try:
        handle = os.open(directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CheckpointRefused(directory.name, missing, f"{name} does not exist") from None
    except OSError as error:
        raise CheckpointRefused(directory.name, "not_a_file", f"{name}: {error.strerror}") from None
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            raise CheckpointRefused(
                directory.name, "not_a_file", f"{name} is not a regular file of at most {limit} bytes"
            )
        return file.read()


def _parse(version: str, content: bytes) -> Manifest:
    try:
        body = orjson.loads(content)
        found = body["format"]
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointRefused(version, "bad_manifest", str(error)) from None
    if found != FORMAT:
        raise CheckpointRefused(version, "unknown_format", f"format {found!r}; this program reads format {FORMAT}")
    try:
        manifest = Manifest(**body)
    except TypeError as error:
        raise CheckpointRefused(version, "bad_manifest", str(error)) from None
    _check_types(version, manifest)
    if not manifest.files or not all(_FILE.match(name) and isinstance(h, str) for name, h in manifest.files.items()):
        raise CheckpointRefused(version, "bad_manifest", f"not a file list: {str(manifest.files)[:200]}")
    if manifest.version != version:
        raise CheckpointRefused(version, "wrong_version", f"the manifest is of {manifest.version[:80]}")
    return manifest


def _check_types(version: str, manifest: Manifest) -> None:
    """Refuse a manifest with values of another type: later readers would fail at them, and with them every list of versions."""
    encoders, created_s = manifest.encoder_versions, manifest.created_s
    is_typed = {
        "version": isinstance(manifest.version, str),
        "parent": manifest.parent is None or isinstance(manifest.parent, str),
        "created_s": type(created_s) in (int, float) and 0 <= created_s <= _LAST_S,
        "files": isinstance(manifest.files, dict),
        "encoder_versions": isinstance(encoders, dict) and all(isinstance(one, str) for one in encoders.values()),
        "data": isinstance(manifest.data, dict),
        "metrics": isinstance(manifest.metrics, dict),
        "format": type(manifest.format) is int,
    }
    for name, holds in is_typed.items():
        if not holds:
            raise CheckpointRefused(version, "bad_manifest", f"{name} is {str(getattr(manifest, name))[:80]!r}")


def _graphs(version: str, files: Mapping[str, bytes]) -> dict[str, GraphFiles]:
    """Join the files of each graph.

    Raises:
        CheckpointRefused: one of them is missing, or they are of two graphs.
    """
    found: dict[str, dict[str, bytes]] = {}
    for name, content in sorted(files.items()):
        stem, _, ending = name.rpartition(".")
        found.setdefault(stem, {})[ending] = content
    for stem, parts in found.items():
        if set(parts) not in GRAPH_FORMS:
            names = ", ".join(f"{stem}.{ending}" for ending in parts)
            detail = f"{names}: a graph needs its .xml and its .bin file, or is one .onnx file"
            raise CheckpointRefused(version, "missing_file", detail)
    return {stem: GraphFiles(parts) for stem, parts in found.items()}


def _document(version: str, name: str, content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise CheckpointRefused(version, "not_json", f"{name}: {error}") from None


def _weights(version: str, stem: str, content: bytes, shapes: Shapes | None, *, as_arrays: bool) -> dict[str, Any]:
    try:
        found = unpack_arrays(content) if as_arrays else _tensors(content)
        if shapes is not None:
            check_shapes(found, shapes)
    except WeightsRefused as refusal:
        raise CheckpointRefused(version, refusal.reason, f"{stem}.safetensors: {refusal}") from None
    return found


def _tensors(content: bytes) -> dict[str, Any]:
    from learners.checkpoints.safetensors_torch import unpack  # noqa: PLC0415 - torch: not for an agent that acts on graphs

    return unpack(content)
