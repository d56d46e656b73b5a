"""The file `stop-latch`: a stop that the listener received and that the gate has to engage.

`listener.py` writes it, the gate's host reads it and removes it with the release. It counts as a stop whatever it holds.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from learners.files import private_folder, sync_directory, write_atomically

MAX_REASON = 256


@dataclass(frozen=True, slots=True)
class StopLatch:
    """The file of one state folder."""

    path: Path

    @classmethod
    def of(cls, state_dir: Path) -> StopLatch:
        """Return the latch of a state folder."""
        return cls(state_dir / "stop-latch")

    def write(self, reason: str) -> None:
        """Write the stop and return once it is on the disk.

        Raises:
            OSError: it could not be written.
        """
        private_folder(self.path.parent)
        write_atomically(self.path, reason.encode(errors="replace"), mode=0o600)

    def read(self) -> tuple[int, str] | None:
        """Return what distinguishes this stop from a later one, with the reason; None without a stop.

        A file that cannot be read is a stop too.
        """
        try:
            written = self.path.stat().st_mtime_ns
            reason = self.path.read_bytes()[:MAX_REASON].decode(errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            return 0, f"{self.path}: {error.strerror}"
        return written, reason

    def is_on_disk_of_this_machine(self) -> bool:
        """Return whether a look at the file cannot hang: the file system of a network has no block device."""
        try:
            return os.major(self.path.parent.stat().st_dev) != 0
        except OSError:
            return False

    def is_absent(self) -> bool:
        """Return whether there is certainly no stop; takes some microseconds on a disk of this machine."""
        try:
            self.path.stat()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return False

    def exists(self) -> bool:
        """Return whether the file is there.

        Raises:
            OSError: its folder cannot be read.
        """
        return self.path.exists()

    def remove(self) -> None:
        """Remove the stop and return once that is on the disk.

        Raises:
            OSError: it could not be removed.
        """
        if self.path.exists():
            self.path.unlink(missing_ok=True)
            sync_directory(self.path.parent)
