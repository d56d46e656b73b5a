"""Store the stops of a fleet that this device has not obeyed yet, so that `kill -9` of the uplink or a power cut loses none.

The relay writes the file before it acknowledges a stop to the fleet's broker, and reads it at its start. A file that cannot be read
counts as a stop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson
import structlog

from learners.files import private_folder, read_plain_file, sync_directory, write_atomically
from runtime.fleet.stop.messages import MAX_ID, MAX_IDS
from runtime.gate.stop.messages import MAX_SOURCE

log = structlog.get_logger(__name__)

FORMAT = 1
MAX_BYTES = 6 * (MAX_IDS + 1) * (MAX_ID + MAX_SOURCE + 8)
"""Of a file with `MAX_IDS` stops; JSON writes one character as at most six bytes."""
UNREADABLE = {"": "a file that cannot be read"}
"""One stop without an id."""


@dataclass(frozen=True, slots=True)
class PendingStops:
    """The file of one state folder."""

    path: Path

    @classmethod
    def of(cls, state_dir: Path) -> PendingStops:
        """Return the file of a state folder."""
        return cls(state_dir / "uplink" / "stops.json")

    def load(self) -> dict[str, str]:
        """Return the source of each stop by its id; empty without a file."""
        try:
            found = _read(read_plain_file(self.path, MAX_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("uplink.stops_unreadable", file=str(self.path), reason=str(error), effect="counts as a stop")
            return dict(UNREADABLE)
        return dict(list(found.items())[-MAX_IDS:])

    def save(self, stops: Mapping[str, str]) -> None:
        """Write the newest `MAX_IDS` stops, or remove the file where there are none, and return once that is on the disk.

        Raises:
            OSError: it could not be written.
        """
        if stops:
            newest = dict(list(stops.items())[-MAX_IDS:])
            private_folder(self.path.parent)
            write_atomically(self.path, orjson.dumps({"format": FORMAT, "stops": newest}), mode=0o600)
        elif self.path.exists():
            self.path.unlink(missing_ok=True)
            sync_directory(self.path.parent)


def _read(content: bytes) -> dict[str, str]:
    """Return the stops of a file.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: it is malformed.
    """
    body = orjson.loads(content)
    if body["format"] != FORMAT:
        raise ValueError(f"format {body['format']!r}; this program reads {FORMAT}")
    return {str(name)[:MAX_ID]: str(source)[:MAX_SOURCE] for name, source in body["stops"].items()}
