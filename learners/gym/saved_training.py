"""Save a lock-step training, so that `reflexd train --resume` continues it as if nothing had stopped it.

A training is saved where an episode has ended, because an environment in the middle of an episode cannot be saved in general. The
next episode then begins with a seed of its own. So a training that was killed and resumed equals one that was not, bit for bit on the
same machine, if `reset(seed=...)` decides all that the environment does. What an environment keeps from one episode to the next
otherwise is not saved. Where an environment ends no episode, its training is never saved.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from torch import Tensor

from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.signing import load_key
from learners.checkpoints.store import Checkpoints
from learners.gym.results_file import NAME

FOLDER = "training"
FORMAT = 1
_OURS = re.compile(r"\d{6,12}-[0-9a-f]{8}|LIVE|\.lock|\.(draft|gone)-.*")
"""Names in the folder of a saved training."""
MOST_SHOWN = 60
"""Characters of a value that a message shows."""


@dataclass(frozen=True, slots=True)
class SavedState:
    """A saved training."""

    tensors: dict[str, dict[str, Tensor]]
    trainer: dict[str, Any]
    """What the trainer is beside its tensors."""
    elapsed_s: float
    """Seconds of training until then."""
    demonstrated: int
    """Transitions that came from demonstrations."""


class SavedTraining:
    """The saved state of the training in a folder.

    Args:
        out: output folder of the training.
        training: what must be equal in a training that continues it, as JSON: environment, seed, settings.
    """

    def __init__(self, out: Path, training: dict[str, Any]) -> None:
        self.out, self.folder = out, out / FOLDER
        self.training: dict[str, Any] = orjson.loads(orjson.dumps(training))

    def check_folder(self) -> None:
        """Check that the folder of the saved state contains nothing else, because `discard` deletes it.

        Raises:
            ValueError: it is no folder, or has files that this program did not write there.
        """
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise ValueError(f"{self.folder} is not a folder; the training is saved there, so choose another --out")
        if self.folder.is_dir():
            others = sorted(path.name for path in self.folder.iterdir() if not _OURS.fullmatch(path.name))
            if others:
                raise ValueError(
                    f"{self.folder} contains {others[0]}, which is no saved training; choose another --out"
                )

    def discard(self) -> None:
        """Delete the saved state, if there is one.

        Raises:
            ValueError: as `check_folder`.
        """
        self.check_folder()
        shutil.rmtree(self.folder, ignore_errors=True)

    def save(self, state: SavedState) -> None:
        """Replace the saved state; a crash at any moment leaves the old or the new one.

        Raises:
            WeightsRefused: a weight is not finite.
            OSError: the folder cannot be written.
        """
        body = {
            "format": FORMAT,
            "training": self.training,
            "trainer": state.trainer,
            "elapsed_s": state.elapsed_s,
            "demonstrated": state.demonstrated,
        }
        checkpoints = self._checkpoints()
        checkpoints.promote(checkpoints.save(state.tensors, {"training": body}))

    def load(self) -> SavedState | None:
        """Return the saved state; None if nothing was saved.

        Raises:
            ValueError: it is damaged, of another format, or of another training.
        """
        if not self.folder.is_dir():
            return None
        refused: list[CheckpointRefused] = []
        loaded = self._checkpoints().load_live(refused.append)
        if loaded is None:
            if refused:
                raise ValueError(f"{self.folder} cannot be read: {refused[0]}; train without --resume")
            return None
        body = loaded.documents["training"]
        if body.get("format") != FORMAT:
            raise ValueError(
                f"{self.folder} has the format {body.get('format')!r}, not {FORMAT}; train without --resume"
            )
        found = {"demonstrations": 0} | body["training"]
        if found != self.training:
            raise ValueError(f"{self.folder} is of another training: {difference(found, self.training)}")
        return SavedState(loaded.tensors, body["trainer"], body["elapsed_s"], body["demonstrated"])

    def finished(self, steps: int) -> dict[str, Any] | None:
        """Return the results in the folder if this training has ended there; None if it has not.

        Args:
            steps: of the training.

        Raises:
            ValueError: another training has ended there.
        """
        try:
            results: dict[str, Any] = orjson.loads((self.out / NAME).read_bytes())
        except FileNotFoundError:
            return None
        except orjson.JSONDecodeError:
            raise ValueError(f"{self.out / NAME} is not JSON; train without --resume") from None
        if not isinstance(results, dict):
            raise ValueError(f"{self.out / NAME} has no results of a training; train without --resume")  # noqa: TRY004 - as every refusal here
        if results.get("stopped") is not None or results.get("final") is None:
            return None
        wanted = {**self.training, "steps": steps}
        found = {name: results.get(name, 0 if name == "demonstrations" else None) for name in wanted}
        if found != wanted:
            raise ValueError(f"{self.out} contains another training, which has ended: {difference(found, wanted)}")
        return results

    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self.folder, load_key(self.out), keep_last=1, keep_best=0, keep_promoted=1)


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Say in which values two trainings differ, each as `name is A, not B`."""
    texts = []
    for name in sorted({*found, *wanted}):
        one, other = found.get(name), wanted.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            texts += [difference(one, other)] if one != other else []
        elif one != other:
            texts.append(f"{name} is {repr(one)[:MOST_SHOWN]}, not {repr(other)[:MOST_SHOWN]}")
    return ", ".join(texts)


def named(demonstrations: int | Path) -> int | str:
    """Return what tells demonstrations from others: the number of scripted episodes, or the hash of a file.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(demonstrations, int):
        return demonstrations
    with demonstrations.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
