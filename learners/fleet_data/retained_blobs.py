"""Remember the parts of blobs that the fleet's broker retains, so that those of earlier versions are cleared: `blobs.json`.

A blob is noted before its first part is published, and forgotten after its last part is cleared. So a publisher that is killed leaves no
part that a later one does not clear. A blob of another publisher that has not published its manifest yet is not cleared for `UNFINISHED_S`.
Used by `policy_publisher.py`. Knows no connection.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import orjson
from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from learners.files import locked, private_folder, write_atomically

UNFINISHED_S = 7_200.0
"""So long a publisher may take from its first part to its manifest."""


@dataclass(slots=True)
class RetainedBlob:
    """A blob at the broker."""

    sha256: str
    parts: int
    counter: int
    """Of the newest manifest that names it."""
    begun_s: float
    """Unix seconds of its first part."""
    is_published: bool = False
    """Whether the broker has that manifest."""


_BLOBS = TypeAdapter(list[RetainedBlob])


class RetainedBlobs:
    """The blobs of one group.

    Args:
        folder: of the group.
        clock: Unix seconds.
    """

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self._folder, self._clock = folder, clock

    def begin(self, sha256: str, parts: int, counter: int) -> None:
        """Note a blob before its first part is published.

        Raises:
            OSError: the disk refuses.
        """
        self._store(RetainedBlob(sha256, parts, counter, self._clock()))

    def finish(self, sha256: str, parts: int, counter: int) -> list[RetainedBlob]:
        """Note that the broker has the manifest of a blob; return the blobs to clear.

        Raises:
            OSError: the disk refuses.
        """
        now_s = self._clock()
        blobs = self._store(RetainedBlob(sha256, parts, counter, now_s, is_published=True))
        return [
            each
            for each in blobs
            if each.sha256 != sha256
            and each.counter < counter
            and (each.is_published or abs(now_s - each.begun_s) > UNFINISHED_S)
        ]

    def forget(self, blob: RetainedBlob) -> None:
        """Forget a blob that is cleared, unless it was published again meanwhile.

        Raises:
            OSError: the disk refuses.
        """
        with locked(self._folder):
            self._write([each for each in self._read() if each != blob])

    def _store(self, blob: RetainedBlob) -> list[RetainedBlob]:
        private_folder(self._folder)
        with locked(self._folder):
            blobs = [each for each in self._read() if each.sha256 != blob.sha256 or each.counter > blob.counter]
            if all(each.sha256 != blob.sha256 for each in blobs):
                blobs.append(blob)
            self._write(blobs)
        return blobs

    def _read(self) -> list[RetainedBlob]:
        """Return the blobs; none where the file is missing or damaged: then parts of earlier ones stay at the broker."""
        try:
            return _BLOBS.validate_json((self._folder / "blobs.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return []

    def _write(self, blobs: list[RetainedBlob]) -> None:
        content = orjson.dumps(_BLOBS.dump_python(blobs, mode="json"))
        write_atomically(self._folder / "blobs.json", content, mode=0o600)
