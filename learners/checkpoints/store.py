"""Checkpoints: one signed directory a version, written atomically, read only when whole.

    checkpoints/000042-1f3a9c0e/   policy.safetensors  learner.safetensors  spec.json  position.json ...
                                   manifest.json (SHA-256 of every file, parent, data range, metrics)  manifest.sig
    checkpoints/LIVE               which version acts, those that did before, and those that failed

A version becomes visible by one rename after every byte is on disk. LIVE is also replaced by one rename. A crash at any moment
therefore leaves the last good version loadable. `manifest.py` defines the required content of a directory.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from learners.checkpoints.experiment_records import CHALLENGER, versions_of_experiments, versions_that_passed
from learners.checkpoints.manifest import (
    JSON,
    VERSION,
    CheckpointRefused,
    GraphFiles,
    LoadedCheckpoint,
    Manifest,
    load,
    packed,
    read_manifest,
    write,
)
from learners.checkpoints.safetensors_numpy import Shapes
from learners.checkpoints.signing import credentials_folder, load_key
from learners.config.learner import PromotionSettings
from learners.files import locked, new_folder, private_folder, remove_abandoned_drafts, write_atomically

if TYPE_CHECKING:
    from torch import Tensor

    from learners.checkpoints.safetensors_torch import Tensors

LIVE = "LIVE"
FAILED_NAMES = 1_000
"""Names of rolled-back versions in LIVE, the newest. Numbers only grow, so that an older name never returns."""


@dataclass(frozen=True, slots=True)
class Live:
    """The content of LIVE."""

    version: str | None = None
    promoted: tuple[str, ...] = ()
    """Versions that acted and are not deleted, oldest first."""
    failed: tuple[str, ...] = ()
    """Rolled back; never promoted again."""
    changed_s: float = 0.0
    by: str | None = None
    """Who moved the pointer: `request`, `import`, `experiment`, `untrusted`, `unguarded`, `guard`; None: an earlier program."""


Announce = Callable[[Live], object]


def _silently(_live: Live) -> None:
    """Announce nothing."""


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
        needed: Callable[[], frozenset[str]] = frozenset,
        passed: Callable[[], tuple[str, ...]] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.folder, self.keep_last, self.keep_best = folder, keep_last, keep_best
        self.keep_promoted = keep_promoted
        """How many of those that ever acted stay; None: all."""
        self._needed = needed
        """Returns the versions that another component may return to: they are never deleted."""
        self._passed = passed
        """Returns the versions that passed their probation, newest last; None: every saved version may act."""
        self._key, self._clock = key, clock
        private_folder(folder)
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
        graphs: Mapping[str, GraphFiles] | None = None,
    ) -> str:
        """Write a new version and return its name; old ones go by the retention rule.

        Raises:
            WeightsRefused: a tensor is not finite.
            ValueError: a file stem is not of lower-case letters, digits, _ and -.
        """
        files = packed(tensors, documents, graphs)
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
            self._write(files, manifest)
            self._retain(version)
        return version

    def load(
        self, version: str, shapes: Mapping[str, Shapes] | None = None, meaning: Mapping[str, Any] | None = None
    ) -> LoadedCheckpoint:
        """Load a version, after every check; `shapes` and `meaning` are what its tensors must have and mean.

        Raises:
            CheckpointRefused: with the reason.
        """
        return load(self.folder / version, self.public, shapes, meaning)

    def load_arrays(
        self, version: str, shapes: Mapping[str, Shapes] | None = None, meaning: Mapping[str, Any] | None = None
    ) -> LoadedCheckpoint:
        """Do what `load` does, but return the weights as numpy arrays; no torch is imported.

        Raises:
            CheckpointRefused: with the reason.
        """
        return load(self.folder / version, self.public, shapes, meaning, as_arrays=True)

    def list(self) -> list[Manifest]:
        """Return the versions with a manifest that our key signed, oldest first; their files are not read."""
        found = []
        for path in sorted(self.folder.iterdir()):
            if VERSION.match(path.name):
                with suppress(CheckpointRefused):
                    found.append(read_manifest(path, self.public))
        return found

    def import_version(
        self,
        directory: Path,
        public: Ed25519PublicKey,
        prepare: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict,
    ) -> str:
        """Store a version made elsewhere (by `reflexd train`) under our own key; an operator vouches for `public`.

        Args:
            directory: of the version.
            public: the key that signed it.
            prepare: changes the policy's weights before they are signed.

        Raises:
            CheckpointRefused: it is not whole, not signed with that key, or has no policy.
        """
        loaded = load(directory, public)
        manifest = loaded.manifest
        if not loaded.tensors.get("policy"):
            raise CheckpointRefused(manifest.version, "missing_file", "policy.safetensors with weights is needed")
        return self.save(
            {**loaded.tensors, "policy": prepare(loaded.tensors["policy"])},
            loaded.documents,
            encoder_versions=manifest.encoder_versions,
            data=manifest.data,
            metrics={**manifest.metrics, "adopted_from": manifest.version},
            graphs=loaded.graphs,
        )

    def live(self) -> Live:
        """Return the live version; empty if LIVE is missing or corrupt."""
        return self._live() or Live()

    def _live(self) -> Live | None:
        try:
            body = orjson.loads((self.folder / LIVE).read_bytes())
            live = Live(
                body["version"],
                tuple(body["promoted"]),
                tuple(body["failed"]),
                float(body["changed_s"]),
                body.get("by"),
            )
        except (FileNotFoundError, orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            return None
        named = [*live.promoted, *live.failed, *([live.version] if live.version else [])]
        known = live.by is None or isinstance(live.by, str)
        return live if known and all(isinstance(name, str) and VERSION.match(name) for name in named) else None

    def propose(self, version: str, shapes: Mapping[str, Shapes] | None = None) -> None:
        """Let a candidate wait for its experiment; it replaces the one that waited.

        Raises:
            CheckpointRefused: it may not be loaded.
        """
        self.load_arrays(version, shapes)
        with locked(self.folder):
            write_atomically(self.folder / CHALLENGER, orjson.dumps({"version": version, "at_s": self._clock()}))

    def proposed(self) -> str | None:
        """Return the candidate that waits; None if there is none, or it was taken back before."""
        try:
            version = orjson.loads((self.folder / CHALLENGER).read_bytes())["version"]
        except (FileNotFoundError, orjson.JSONDecodeError, KeyError, TypeError):
            return None
        if not isinstance(version, str) or not VERSION.match(version) or version in self.live().failed:
            return None
        return version if (self.folder / version).is_dir() else None

    @property
    def is_pointer_damaged(self) -> bool:
        """Whether LIVE is missing or cannot be read, so that nothing says which version acts."""
        return self._live() is None

    def repair_pointer(self, version: str) -> None:
        """Write LIVE again after damage: it names `version` alone, because the earlier ones are lost."""
        with locked(self.folder):
            if self._live() is None:
                self._point(Live(version, (version,), (), self._clock()))

    def load_live(
        self,
        refused: Callable[[CheckpointRefused], None],
        shapes: Mapping[str, Shapes] | None = None,
        meaning: Mapping[str, Any] | None = None,
        *,
        without: Collection[str] = (),
        as_arrays: bool = False,
    ) -> LoadedCheckpoint | None:
        """Load the live version, else the newest one that acted and still loads; None if there is none.

        If the file LIVE itself is lost, the last version that passed its probation is loaded: another one may be untried
        or rolled back. `refused` is called with every version that was skipped, except
        those in `without`. `as_arrays` returns weights as `load_arrays` does.
        """
        live = self._live()
        if live is not None:
            order = [*([live.version] if live.version else []), *reversed(live.promoted)]
        elif self._passed is not None:
            order = list(reversed(self._passed()))
        else:
            order = [path.name for path in sorted(self.folder.iterdir(), reverse=True) if VERSION.match(path.name)]
        tried: set[str] = {*without, *(live.failed if live else ())}
        for version in order:
            if version in tried:
                continue
            tried.add(version)
            try:
                return (self.load_arrays if as_arrays else self.load)(version, shapes, meaning)
            except CheckpointRefused as refusal:
                refused(refusal)
        return None

    def promote(
        self,
        version: str,
        shapes: Mapping[str, Shapes] | None = None,
        *,
        announce: Announce = _silently,
        by: str = "request",
    ) -> Live:
        """Make a version live, after every check.

        Args:
            version: its name.
            shapes: those each tensor file must have.
            announce: called with what LIVE is about to say, before any reader can see it: what it publishes comes first.
            by: who promotes, as in `Live.by`.

        Raises:
            CheckpointRefused: it may not be loaded, or was rolled back before.
        """
        self.load_arrays(version, shapes)
        with locked(self.folder):
            live = self.live()
            if version in live.failed:
                raise CheckpointRefused(version, "failed_before", "it was live and rolled back; it is not tried again")
            earlier = live.promoted if self.keep_promoted is None else live.promoted[-self.keep_promoted :]
            promoted = (*(name for name in earlier if name != version), version)
            return self._point(Live(version, promoted, live.failed, self._clock(), by), announce)

    def rollback(
        self,
        *,
        to: str | None = None,
        failing: str | None = None,
        announce: Announce = _silently,
        by: str = "request",
        or_none: bool = False,
    ) -> Live:
        """Take the live version out for good and return to the one before it that still loads (or to `to`).

        `failing` names the version that is meant: when another one has gone live since, that one stays and `failing` is only
        marked. With `or_none` no version is live where none before it loads: the untrained policy acts. `announce` is called with what LIVE is about to say, before any reader can see it.

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
                return self._point(Live(live.version, acted, marked, live.changed_s, live.by), announce)
            if to in live.failed:
                raise CheckpointRefused(str(to), "failed_before", "it was live and rolled back; it is not tried again")
            earlier = [name for name in reversed(live.promoted) if name != live.version and name not in live.failed]
            for candidate in [to] if to is not None else earlier:
                try:
                    self.load_arrays(candidate)
                except CheckpointRefused:
                    if to is not None:
                        raise
                    continue
                failed = (*(name for name in live.failed if name != live.version), live.version)
                promoted = (*(name for name in live.promoted if name not in (live.version, candidate)), candidate)
                return self._point(Live(candidate, promoted, failed, self._clock(), by), announce)
            if or_none and to is None:
                failed = (*(name for name in live.failed if name != live.version), live.version)
                promoted = tuple(name for name in live.promoted if name != live.version)
                return self._point(Live(None, promoted, failed, self._clock(), by), announce)
        raise CheckpointRefused(
            live.version, "missing", "no earlier version that acted is loadable; the live one stays"
        )

    def _point(self, live: Live, announce: Announce = _silently) -> Live:
        live = replace(live, failed=live.failed[-FAILED_NAMES:])
        announce(live)
        write_atomically(self.folder / LIVE, orjson.dumps(asdict(live), option=JSON))
        return live

    def _next_number(self) -> int:
        live = self.live()
        names = [path.name for path in self.folder.iterdir()] + [*live.promoted, *live.failed]
        return 1 + max((_number(name) for name in names if VERSION.match(name)), default=0)

    def _write(self, files: Mapping[str, bytes], manifest: Manifest) -> None:
        with new_folder(self.folder / manifest.version, mode=0o700) as draft:
            write(draft, files, manifest, self._key)

    def _sweep(self) -> None:
        """Remove what a killed writer left."""
        remove_abandoned_drafts(self.folder)
        for path in self.folder.glob(".gone-*"):
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
        keep |= self._needed()
        for manifest in manifests:
            if manifest.version not in keep:
                self._delete(manifest.version)

    def shrink(self, excess_bytes: int, *, acted: bool) -> tuple[str, ...]:
        """Delete the oldest versions until `excess_bytes` are free or only needed ones are left; return their names.

        The live version, the one before it, the newest (a candidate may be on trial) and those that `needed` names stay.

        Args:
            excess_bytes: to free.
            acted: delete versions that acted; otherwise only those that never did.

        Raises:
            OSError: the folder cannot be read or written.
        """
        gone: tuple[str, ...] = ()
        with locked(self.folder):
            self._sweep()
            live = self.live()
            names = sorted(path.name for path in self.folder.iterdir() if VERSION.match(path.name))
            before = [name for name in live.promoted if name != live.version and name in names][-1:]
            stay = {live.version, *before, *names[-1:]} | self._needed()
            for name in (name for name in names if (name in live.promoted) == acted):
                if excess_bytes <= 0:
                    break
                if name not in stay:
                    excess_bytes -= sum(path.stat().st_size for path in (self.folder / name).iterdir())
                    self._delete(name)
                    gone = (*gone, name)
            if promoted := set(gone) & set(live.promoted):
                left = tuple(name for name in live.promoted if name not in promoted)
                self._point(Live(live.version, left, live.failed, live.changed_s, live.by))
        return gone

    def _delete(self, version: str) -> None:
        gone = self.folder / f".gone-{version}"
        (self.folder / version).rename(gone)  # never a version with only some of its files
        shutil.rmtree(gone, ignore_errors=True)


def _short(hashes: Mapping[str, str]) -> str:
    return hashlib.sha256(orjson.dumps(hashes, option=JSON)).hexdigest()[:8]


def _number(version: str) -> int:
    return int(version.partition("-")[0])


def open_checkpoints(state_dir: Path, promotion: PromotionSettings) -> Checkpoints:
    """Open the policy versions of one daemon, with its signing key: made at first start, or provided by systemd."""
    return Checkpoints(
        state_dir / "checkpoints",
        load_key(state_dir, credentials_folder()),
        keep_last=promotion.keep_last,
        keep_best=promotion.keep_best,
        keep_promoted=max(2, promotion.keep_last),
        needed=partial(versions_of_experiments, state_dir),
        passed=partial(versions_that_passed, state_dir),
    )
