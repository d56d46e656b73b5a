"""What judges a fine-tune: the examples that never train, and where they come from.

With `tasks.X.heldout: FILE` they are that file's examples and nothing else: whoever may publish labels cannot shape them, and
labels whose text stands in the file are not trained on either. Without a file they are a fixed part of the labels themselves, chosen
by content: then the sources that teach are also those that judge, and events say `"held_out": "labels"`.

A picture or sound of the file that is published again as a label is not recognised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from learners.datasets import read
from learners.labels import Labelled
from learners.tasks.base import Example

Rows = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Parts:
    """Labels apart: what trains and what judges, of the new ones and of those known before."""

    train_new: Rows
    train_known: Rows
    held_new: Rows
    held_known: Rows


@dataclass(frozen=True, slots=True)
class Holdout:
    """The rule that holds examples out.

    Args:
        share: of the labels, where there is no file.
        file: the examples of the file; None without one.
    """

    share: float
    file: tuple[dict[str, Any], ...] | None = None

    @classmethod
    def of(cls, heldout: str | None, share: float) -> Holdout:
        """As the settings say.

        Raises:
            DataError: the file cannot be read, or there is nothing in it.
        """
        return cls(share, None if heldout is None else tuple(read(heldout)))

    @property
    def origin(self) -> Literal["file", "labels"]:
        """Where the held-out figures come from."""
        return "labels" if self.file is None else "file"

    def parts(self, new: Sequence[Labelled], known: Sequence[Labelled]) -> Parts:
        """Labels apart. The file judges all at once: its examples stand under `held_new`."""
        if self.file is not None:
            there = {said(example) for example in self.file} - {""}
            rows = [[o.example for o in part if said(o.example) not in there] for part in (new, known)]
            return Parts(rows[0], rows[1], list(self.file), [])
        held = [[o.example for o in part if o.held(self.share)] for part in (new, known)]
        rows = [[o.example for o in part if not o.held(self.share)] for part in (new, known)]
        return Parts(rows[0], rows[1], held[0], held[1])

    def examples(self, labels: Sequence[Labelled]) -> Rows:
        """Everything that judges."""
        parts = self.parts(labels, [])
        return [*parts.held_known, *parts.held_new]


def said(example: Example) -> str:
    """What a text example says, whatever its spacing and capitals; empty for pictures and sounds."""
    words = [str(example.get(name, "")) for name in ("text", "source", "question", "context")]
    words += map(str, example.get("tokens", ()))
    words += [str(turn.get("content", "")) for turn in example.get("messages", ()) if turn.get("role") == "user"]
    return " ".join(" ".join(words).split()).casefold()
