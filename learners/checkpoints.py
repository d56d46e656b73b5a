"""Checkpoints: one signed directory a version, written atomically, read only when whole.

    checkpoints/000042-1f3a9c0e/   policy.safetensors  learner.safetensors  spec.json  position.json ...
                                   manifest.json (SHA-256 of every file, parent, data range, metrics)  manifest.sig
    checkpoints/LIVE               which version acts, every one that ever did, and those that failed

A version becomes visible by one rename after every byte is on disk, and LIVE is replaced by one rename: a crash at any
moment leaves the last good version loadable. Files are read once, hashed, and parsed from the very bytes that were hashed.
Knows nothing of what the tensors mean.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from torch import Tensor

from learners.files import locked, sync_directory, write_atomically, write_synced
from learners.signing import verified
from learners.weights import Shapes, Tensors, WeightsRefused, check_shapes, pack, unpack

FORMAT = 1
MANIFEST, SIGNATURE, LIVE = "manifest.json", "manifest.sig", "LIVE"
VERSION = re.compile(r"^\d{6,12}-[0-9a-f]{8}$")
_FILE = re.compile(r"^[a-z0-9][a-z0-9_-]{0,63}\.(safetensors|json)$")
_MANIFEST_LIMIT = 1 << 20
_FILE_LIMIT = 1 << 34


class CheckpointRefused(Exception):  # noqa: N818 - reads as what happened
    """A checkpoint that may not be loaded.

    `reason` is one of: bad_name, missing, not_a_directory, not_a_file, no_manifest, unsigned, wrong_signature, bad_manifest,
    unknown_format, wrong_version, missing_file, extra_file, wrong_hash, pickle, not_safetensors, not_json, not_finite,
    wrong_shapes, failed_before.
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
class Loaded:
    """A version that passed every check, in memory."""

    manifest: Manifest
    tensors: dict[str, dict[str, Tensor]]
    """By file stem: `policy`, `learner`, ..."""
    documents: dict[str, Any]
    """By file stem: `spec`, `settings`, `position`, ..."""


@dataclass(frozen=True, slots=True)
class Live:
    """The content of LIVE."""

    version: str | None = None
    promoted: tuple[str, ...] = ()
    """Every version that ever acted, oldest first."""
    failed: tuple[str, ...] = ()
    """Rolled back; never promoted again."""
    changed_s: float = 0.0


class Checkpoints:
    """The folder of versions. Writers in several processes take turns on a lock file; readers need none."""

    def __init__(
        self,
        folder: Path,
        key: Ed25519PrivateKey,
        *,
        keep_last: int = 5,
        keep_best: int = 3,
        keep_promoted: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder, self.keep_last, self.keep_best = folder, keep_last, keep_best
        self.keep_promoted = keep_promoted
        """How many of those that ever acted stay; None: all."""
        self._key, self._clock = key, clock
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(folder):
            if not (folder / LIVE).exists() and not any(VERSION.match(path.name) for path in folder.iterdir()):
                self._point(
                    Live()
                )  # so that a missing LIVE beside versions means damage, not "nothing was promoted yet"

    @property
    def public(self) -> Ed25519PublicKey:
        """What verifies our signatures."""
        return self._key.public_key()

    def save(
        self,
        tensors: Mapping[str, Tensors],
        documents: Mapping[str, Any],
        *,
        parent: str | None = None,
        encoder_versions: Mapping[str, str] | None = None,
        data: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> str:
        """Write a new version and return its name; old ones go by the retention rule.

        Raises:
            WeightsRefused: a tensor is not finite.
            ValueError: a file stem is not of lower-case letters, digits, _ and -.
        """
        files = {f"{stem}.safetensors": pack(group) for stem, group in tensors.items()}
        files |= {f"{stem}.json": orjson.dumps(value, option=_JSON) for stem, value in documents.items()}
        for name in files:
            if not _FILE.match(name):
                raise ValueError(f"checkpoint file {name!r}: use lower-case letters, digits, _ and -")
        hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
        with locked(self.folder):
            self._sweep()
            version = f"{self._next_number():06d}-{_short(hashes)}"
            manifest = Manifest(
                version,
                parent,
                self._clock(),
                hashes,
                dict(encoder_versions or {}),
                dict(data or {}),
                dict(metrics or {}),
            )
            self._write(version, files, orjson.dumps(asdict(manifest), option=_JSON))
            self._retain(version)
        return version

    def load(self, version: str, shapes: Mapping[str, Shapes] | None = None) -> Loaded:
        """A version in memory, after every check; `shapes` are those each tensor file must have.

        Raises:
            CheckpointRefused: with the reason.
        """
        return load(self.folder / version, self.public, shapes)

    def verify(self, version: str, shapes: Mapping[str, Shapes] | None = None) -> Manifest:
        """As `load`, keeping only the manifest."""
        return self.load(version, shapes).manifest

    def list(self) -> list[Manifest]:
        """Versions whose manifest is signed by us, oldest first; the files are not read."""
        found = []
        for path in sorted(self.folder.iterdir()):
            if VERSION.match(path.name):
                with suppress(CheckpointRefused):
                    found.append(read_manifest(path, self.public))
        return found

    def adopt(self, directory: Path, public: Ed25519PublicKey) -> str:
        """Take over a version made elsewhere (by `reflexd train`) under our own key; an operator vouches for `public`.

        Raises:
            CheckpointRefused: it is not whole, or not signed with that key.
        """
        loaded = load(directory, public)
        manifest = loaded.manifest
        return self.save(
            loaded.tensors,
            loaded.documents,
            encoder_versions=manifest.encoder_versions,
            data=manifest.data,
            metrics={**manifest.metrics, "adopted_from": manifest.version},
        )

    def live(self) -> Live:
        """Which version acts; empty when LIVE is missing or broken."""
        return self._live() or Live()

    def _live(self) -> Live | None:
        try:
            body = orjson.loads((self.folder / LIVE).read_bytes())
            live = Live(body["version"], tuple(body["promoted"]), tuple(body["failed"]), float(body["changed_s"]))
        except (FileNotFoundError, orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            return None
        named = [*live.promoted, *live.failed, *([live.version] if live.version else [])]
        return live if all(isinstance(name, str) and VERSION.match(name) for name in named) else None

    def load_live(
        self, refused: Callable[[CheckpointRefused], None], shapes: Mapping[str, Shapes] | None = None
    ) -> Loaded | None:
        """The live version, else the newest one that acted and still loads; None for none.

        When LIVE itself is lost nobody knows what acted, and the newest that loads is taken. `refused` is told of every
        version that had to be passed over.
        """
        live = self._live()
        if live is None:
            order = [path.name for path in sorted(self.folder.iterdir(), reverse=True) if VERSION.match(path.name)]
        else:
            order = [*([live.version] if live.version else []), *reversed(live.promoted)]
        tried: set[str] = set(live.failed if live else ())
        for version in order:
            if version in tried:
                continue
            tried.add(version)
            try:
                return self.load(version, shapes)
            except CheckpointRefused as refusal:
                refused(refusal)
        return None

    def promote(self, version: str, shapes: Mapping[str, Shapes] | None = None) -> Live:
        """Make a version live, after every check.

        Raises:
            CheckpointRefused: it may not be loaded, or was rolled back before.
        """
        self.load(version, shapes)
        with locked(self.folder):
            live = self.live()
            if version in live.failed:
                raise CheckpointRefused(version, "failed_before", "it was live and rolled back; it is not tried again")
            earlier = live.promoted if self.keep_promoted is None else live.promoted[-self.keep_promoted :]
            promoted = (*(name for name in earlier if name != version), version)
            return self._point(Live(version, promoted, live.failed, self._clock()))

    def rollback(self, *, to: str | None = None, failing: str | None = None) -> Live:
        """Take the live version out for good and return to the one before it that still loads (or to `to`).

        `failing` names the version that is meant: when another one has gone live since, that one stays and `failing` is only
        marked.

        Raises:
            CheckpointRefused: there is nothing to go back to, or `to` may not be loaded.
        """
        with locked(self.folder):
            live = self.live()
            if live.version is None:
                raise CheckpointRefused("none", "missing", "no version is live, so there is nothing to roll back")
            if failing is not None and failing != live.version:
                acted = tuple(name for name in live.promoted if name != failing)
                marked = (*(name for name in live.failed if name != failing), failing)
                return self._point(Live(live.version, acted, marked, live.changed_s))
            earlier = [name for name in reversed(live.promoted) if name != live.version and name not in live.failed]
            for candidate in [to] if to is not None else earlier:
                try:
                    self.load(candidate)
                except CheckpointRefused:
                    if to is not None:
                        raise
                    continue
                failed = (*(name for name in live.failed if name != live.version), live.version)
                promoted = (*(name for name in live.promoted if name not in (live.version, candidate)), candidate)
                return self._point(Live(candidate, promoted, failed, self._clock()))
        raise CheckpointRefused(
            live.version, "missing", "no earlier version that acted is loadable; the live one stays"
        )

    def _point(self, live: Live) -> Live:
        write_atomically(self.folder / LIVE, orjson.dumps(asdict(live), option=_JSON))
        return live

    def _next_number(self) -> int:
        live = self.live()
        names = [path.name for path in self.folder.iterdir()] + [*live.promoted, *live.failed]
        return 1 + max((int(name.split("-")[0]) for name in names if VERSION.match(name)), default=0)

    def _write(self, version: str, files: Mapping[str, bytes], manifest: bytes) -> None:
        draft = self.folder / f".draft-{secrets.token_hex(8)}"
        draft.mkdir(mode=0o700)
        for name, content in files.items():
            write_synced(draft / name, content)
        write_synced(draft / MANIFEST, manifest)
        write_synced(draft / SIGNATURE, self._key.sign(manifest))
        sync_directory(draft)
        draft.rename(self.folder / version)
        sync_directory(self.folder)

    def _sweep(self) -> None:
        """Remove what a killed writer left; the lock is ours, so no draft is being written."""
        for path in [*self.folder.glob(".draft-*"), *self.folder.glob(".gone-*")]:
            shutil.rmtree(path, ignore_errors=True)

    def _retain(self, newest: str) -> None:
        live = self.live()
        manifests = self.list()
        scored = sorted(
            (m for m in manifests if isinstance(m.metrics.get("score"), int | float)),
            key=lambda m: float(m.metrics["score"]),
        )
        promoted = live.promoted if self.keep_promoted is None else live.promoted[-self.keep_promoted :]
        keep = {newest, live.version, *promoted}
        keep |= {m.version for m in manifests[-self.keep_last :]}
        keep |= {m.version for m in scored[len(scored) - self.keep_best :]}
        for manifest in manifests:
            if manifest.version not in keep:
                gone = self.folder / f".gone-{manifest.version}"
                (self.folder / manifest.version).rename(gone)  # never a version with only some of its files
                shutil.rmtree(gone, ignore_errors=True)


_JSON = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_SORT_KEYS


def read_manifest(directory: Path, public: Ed25519PublicKey) -> Manifest:
    """The signed manifest of a version's directory.

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
        raise CheckpointRefused(version, "not_a_directory", "a link or a file stands where the directory should")
    content = _read(directory, MANIFEST, "no_manifest", _MANIFEST_LIMIT)
    signature = _read(directory, SIGNATURE, "unsigned", _MANIFEST_LIMIT)
    if not verified(public, signature, content):
        raise CheckpointRefused(version, "wrong_signature", "the manifest was not signed with this installation's key")
    return _parse(version, content)


def load(directory: Path, public: Ed25519PublicKey, shapes: Mapping[str, Shapes] | None = None) -> Loaded:
    """A version's directory in memory, after every check. See `Checkpoints.load`."""
    manifest = read_manifest(directory, public)
    version = manifest.version
    there = {entry.name for entry in os.scandir(directory)}
    wanted = {*manifest.files, MANIFEST, SIGNATURE}
    for reason, names in (("missing_file", wanted - there), ("extra_file", there - wanted)):
        if names:
            raise CheckpointRefused(version, reason, ", ".join(sorted(names)))
    tensors: dict[str, dict[str, Tensor]] = {}
    documents: dict[str, Any] = {}
    for name, digest in manifest.files.items():
        content = _read(directory, name, "missing_file", _FILE_LIMIT)
        if hashlib.sha256(content).hexdigest() != digest:
            raise CheckpointRefused(version, "wrong_hash", f"{name} is not the file that was signed")
        stem, _, kind = name.rpartition(".")
        if kind == "json":
            documents[stem] = _document(version, name, content)
        else:
            tensors[stem] = _tensors(version, stem, content, (shapes or {}).get(stem))
    absent = set(shapes or {}) - set(tensors)
    if absent:
        raise CheckpointRefused(version, "missing_file", f"{', '.join(sorted(absent))}.safetensors is needed")
    return Loaded(manifest, tensors, documents)


def _short(hashes: Mapping[str, str]) -> str:
    return hashlib.sha256(orjson.dumps(hashes, option=_JSON)).hexdigest()[:8]


def _read(directory: Path, name: str, missing: str, limit: int) -> bytes:
    """A regular file's bytes; links are not followed, neither here nor for the directory."""
    try:
        handle = os.open(directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise CheckpointRefused(directory.name, missing, f"{name} does not exist") from None
    except OSError as error:
        raise CheckpointRefused(directory.name, "not_a_file", f"{name}: {error.strerror}") from None
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            raise CheckpointRefused(directory.name, "not_a_file", f"{name} is no regular file of at most {limit} bytes")
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
        sound = manifest.files and all(_FILE.match(name) and isinstance(h, str) for name, h in manifest.files.items())
    except (TypeError, AttributeError) as error:
        raise CheckpointRefused(version, "bad_manifest", str(error)) from None
    if not sound:
        raise CheckpointRefused(version, "bad_manifest", f"not a file list: {sorted(manifest.files)}")
    if manifest.version != version:
        raise CheckpointRefused(version, "wrong_version", f"the manifest is of {manifest.version}")
    return manifest


def _document(version: str, name: str, content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise CheckpointRefused(version, "not_json", f"{name}: {error}") from None


def _tensors(version: str, stem: str, content: bytes, shapes: Shapes | None) -> dict[str, Tensor]:
    try:
        tensors = unpack(content)
        if shapes is not None:
            check_shapes(tensors, shapes)
    except WeightsRefused as refusal:
        raise CheckpointRefused(version, refusal.reason, f"{stem}.safetensors: {refusal}") from None
    return tensors
