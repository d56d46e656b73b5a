"""Cache which backend runs a module, and converted graphs, so that later starts need not measure again.

There are two places. `state_dir` belongs to one daemon: `engine.json`, and `openvino/` or `onnxruntime/`. The user's cache, next to the bundled
models, is shared by all daemons: it stores what comes with the program (pretrained encoders, initial policy weights). A third one,
in the folder for temporary files, is used where neither can be written. A choice is valid for a module's version, the processor
and its instructions, the libraries, and the settings under `engine`. When one of them differs, the backends are measured again.

Every graph is sealed (`learners/checkpoints/sealed_folder.py`): in `state_dir` by a signature, in the shared cache by hashes. The shared cache is not used where
another user could have changed it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from learners.checkpoints.sealed_folder import Key, Refused, SealedFolder, owned_by_this_user
from learners.checkpoints.signing import credentials_folder, load_key
from learners.files import cache_dir, locked, private_folder, write_atomically
from learners.model.backends.definitions import (
    BackendChoice,
    BackendSettings,
    HasDeviceType,
    Measured,
    NotCompiled,
    in_float32,
    processor,
)
from learners.model.backends.graph_libraries import LIBRARIES, graph_library
from learners.model.backends.graphs import GraphLibrary

if TYPE_CHECKING:
    from torch import nn

    from learners.model.backends.fastest_backend import Inputs, Run

FILE = "engine.json"
MOST_CHOICES = 256
MOST_GRAPHS = 24
"""Graphs in the shared cache; the longest unused go."""


def shared_cache() -> Path:
    """Return the folder that all daemons of this user share."""
    return cache_dir() / "engine"


class Calibrations:
    """The choices and graphs of one daemon.

    Args:
        state_dir: the daemon's own folder; None remembers nothing there.
        settings: the settings under `engine`.
        shared: a folder for all daemons of this user; None where there is none.
        spare: a folder for graphs that no other place took; `make_spare` makes it later.
        refused: receives every graph, and the shared cache, that is not used, with the reason.
    """

    def __init__(
        self,
        state_dir: Path | None,
        settings: BackendSettings,
        shared: Path | None = None,
        *,
        spare: Path | None = None,
        refused: Refused = lambda _folder, _reason: None,
    ) -> None:
        self.settings, self.refused, self.spare = settings, refused, spare
        if shared is not None and (reason := owned_by_this_user(shared)):
            refused(str(shared), reason)
            shared = None
        self.convert_here = True
        """Whether this process may measure and convert. The agent sets it to False before its first tick."""
        self._own, self._shared = state_dir, shared
        self._key_of_state: Key | None = None
        self._foreign: set[Path] = set()

    @property
    def library(self) -> GraphLibrary | None:
        """What runs graphs under these settings; None where it is not installed."""
        return graph_library(self.settings.backend)

    @property
    def shared(self) -> Path | None:
        """The folder for all daemons of this user; None where there is none, or another user could change it."""
        return self._shared

    @property
    def _places(self) -> list[Path]:
        return [place for place in (self._own, self._shared, self.spare) if place is not None]

    def folders(self, *, shared: bool = False) -> tuple[SealedFolder, ...]:
        """List the folders to search for graphs; a new graph goes to the first that can be written.

        Args:
            shared: they are of weights that come with the program.

        Raises:
            KeyRefused: the key that signs checkpoints cannot be used.
        """
        library = self.library
        return () if library is None else self.sealed(library.name, shared=shared)

    def sealed(self, name: str, *, shared: bool = False) -> tuple[SealedFolder, ...]:
        """List the folders of this name, the shared one first, the spare one last.

        Raises:
            KeyRefused: the key that signs checkpoints cannot be used.
        """
        found = []
        if shared and self._shared is not None and self._is_ours(self._shared / name):
            found.append(SealedFolder(self._shared / name, None, self._refuse))
        found += [
            SealedFolder(p / name, self._signing_key(), self._refuse) for p in (self._own, self.spare) if p is not None
        ]
        return tuple(found)

    def _is_ours(self, folder: Path) -> bool:
        """Return whether only this user could have changed a folder; report one that others could, once."""
        reason = owned_by_this_user(folder)
        if reason and folder not in self._foreign:
            self._foreign.add(folder)
            self.refused(str(folder), reason)
        return not reason

    def make_spare(self) -> Path | None:
        """Make the folder for graphs that no other place takes; None where it cannot be made.

        It has one name for each state folder, so that an agent that is killed leaves one folder at most.
        """
        if self.spare is None and self._own is not None:
            name = hashlib.sha256(str(self._own.absolute()).encode()).hexdigest()[:12]
            with suppress(OSError):  # also where no folder for temporary files can be written
                folder = Path(tempfile.gettempdir()) / f"reflexd-graphs-{os.geteuid()}-{name}"
                private_folder(folder)
                reason = "it is a link" if folder.is_symlink() else owned_by_this_user(folder)
                if reason:
                    self.refused(str(folder), reason)
                else:
                    self.spare = folder
        return self.spare

    def drop_spare(self) -> None:
        """Remove the folder that `make_spare` made if nothing is in it."""
        if self.spare is not None:
            with suppress(OSError):
                self.spare.rmdir()
                self.spare = None

    def close(self) -> None:
        """Remove the folder that `make_spare` made; graphs in use stay mapped."""
        if self.spare is not None:
            shutil.rmtree(self.spare, ignore_errors=True)

    def _refuse(self, folder: str, reason: str) -> None:
        self.refused(folder, reason)

    def _signing_key(self) -> Key | None:
        if self._key_of_state is None and self._own is not None:
            self._key_of_state = load_key(self._own, credentials_folder())
        return self._key_of_state

    def _key(self, version: str, device: HasDeviceType) -> str:
        library = self.library
        graphs = "no graphs" if library is None else f"{library.name} {library.version}"
        libraries = f"torch {installed_version('torch')} {graphs}"
        return f"{version} | {device.type} {processor()} | {libraries} | {orjson.dumps(asdict(self.settings)).decode()}"

    def recall(self, version: str, device: HasDeviceType) -> BackendChoice | None:
        """Return the stored choice; None without one, or where the file is unreadable. Copies it from the cache to the state."""
        key = self._key(version, device)
        for place in self._places:
            entry = _entries(place / FILE).get(key)
            try:
                choice = _choice(entry)
            except (KeyError, TypeError):
                continue
            if place is not self._places[0]:
                _write(self._places[0], key, choice)
            return choice
        return None

    def remember(self, version: str, device: HasDeviceType, choice: BackendChoice) -> None:
        """Store one choice in both places; in the spare one where neither can be written."""
        key = self._key(version, device)
        written = [_write(place, key, choice) for place in (self._own, self._shared) if place is not None]
        if self.spare is not None and not any(written):
            _write(self.spare, key, choice)

    def runner(
        self, module: nn.Module, examples: Sequence[Inputs], version: str, *, shared: bool = False
    ) -> tuple[Run, BackendChoice]:
        """Return the fastest allowed way to run an encoder; calibrate at most once for a version and machine.

        With the precision `auto` it runs in float32: no decisions on recorded observations have approved another one.

        `shared` says that these weights come with the program, so that other daemons will want the graph too.

        Raises:
            NoBackend: none of them runs within the tolerance.
            NotCompiled: nothing is stored, and this process may not convert.
        """
        from learners.model.backends.fastest_backend import build, calibrate  # noqa: PLC0415 - torch: not for who only reads

        device, folders = examples[0][0].device, self.folders(shared=shared)
        settings = self.settings if self.settings.precision != "auto" else replace(self.settings, precision="float32")
        choice = self.recall(version, device)
        if choice is None:
            if not self.convert_here:
                raise NotCompiled(f"{version}: no choice of a backend is stored")
            choice = calibrate(module, examples, settings, version, folders)
            self.remember(version, device, choice)
        elif choice.precision != "float32" and self.settings.precision == "auto":
            choice = in_float32(choice)  # chosen by an older program, by numbers alone
        allowed = self.convert_here
        run = build(
            module,
            examples,
            choice.backend,
            choice.precision,
            settings.threads,
            version,
            folders,
            convert_here=allowed,
        )
        return run, choice

    def tidy(self) -> None:
        """Remove unused graphs of older versions, libraries and settings from the shared cache."""
        folders = [] if self._shared is None else [self._shared / name for name in LIBRARIES]
        for folder in folders:
            with suppress(OSError):  # another daemon tidies too, or the folder does not exist
                known = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
                for old in known[MOST_GRAPHS:]:
                    shutil.rmtree(old, ignore_errors=True)


def _choice(entry: Any) -> BackendChoice:
    return BackendChoice(entry["backend"], entry["precision"], tuple(Measured(**m) for m in entry["measured"]))


def _entries(file: Path) -> dict[str, Any]:
    try:
        read = orjson.loads(file.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return read if isinstance(read, dict) else {}


def _write(place: Path, key: str, choice: BackendChoice) -> bool:
    """Add one entry to the file, atomically; False where the folder cannot be written."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        with locked(place):
            known = _entries(place / FILE)
            known.pop(key, None)
            known[key] = asdict(choice)
            newest = dict(list(known.items())[-MOST_CHOICES:])
            write_atomically(place / FILE, orjson.dumps(newest, option=orjson.OPT_INDENT_2), durable=False)
    except OSError:
        return False
    return True
