"""What the fleet has on disk, as a device remembers it: `uplink/position.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any

import orjson

from learners.experience.database import BLOCK
from learners.files import write_atomically
from learners.fleet_data.segment import LANES, Lane

FILE = "position.json"
MAX_SPECS = 8
"""Policy specs that are remembered; rows of an older one are not sent."""


@dataclass(slots=True)
class UplinkPosition:
    """What the fleet has on disk.

    `acknowledged` is the last row of each lane, and `passed` the last row that was looked at: the rows between are not sent. All rows
    up to `sorted_row` are sorted; `urgent_blocks` are those of the urgent lane that a lane has still to pass. `anchor` is row
    and decision of an acknowledged row: a store in which this row has another decision is another store.
    """

    boot: str = field(default_factory=lambda: token_hex(8))
    acknowledged: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(LANES, 0))
    passed: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(LANES, 0))
    sorted_row: int = 0
    anchor: tuple[int, str] | None = None
    urgent_blocks: list[int] = field(default_factory=list)
    amended: int = 0
    """The last change of a sent row that the fleet has on disk, of this boot."""
    changes_passed: int | None = None
    """The last change that was looked at; None where none was: changes of before are not sent."""
    specs: list[tuple[str, float]] = field(default_factory=list)
    """Digests of the policy specs, oldest first, each with the Unix seconds from which rows have it."""

    @classmethod
    def read(cls, folder: Path) -> UplinkPosition:
        """Read the position of a queue's folder; a file that is missing or damaged is replaced by a new boot.

        Raises:
            OSError: it cannot be read or written.
        """
        try:
            body: dict[str, Any] = orjson.loads((folder / FILE).read_bytes())
            lanes: dict[str, dict[Lane, int]] = {
                name: {lane: int(body[name][lane]) for lane in LANES} for name in ("acknowledged", "passed")
            }
            anchor = body["anchor"]
            return cls(
                boot=str(body["boot"]),
                acknowledged=lanes["acknowledged"],
                passed=lanes["passed"],
                sorted_row=int(body["sorted_row"]),
                anchor=None if anchor is None else (int(anchor[0]), str(anchor[1])),
                urgent_blocks=[int(number) for number in body["urgent_blocks"]],
                amended=int(body.get("amended", 0)),
                changes_passed=None if (found := body.get("changes_passed")) is None else int(found),
                specs=[(str(spec), float(since_s)) for spec, since_s in body["specs"]],
            )
        except (FileNotFoundError, orjson.JSONDecodeError, LookupError, TypeError, ValueError):
            position = cls()
            position.write(folder)
            return position

    def write(self, folder: Path) -> None:
        """Write the position into a queue's folder.

        Raises:
            OSError: the disk refuses.
        """
        write_atomically(folder / FILE, orjson.dumps(asdict(self)), mode=0o600)

    def spec_at(self, stamp_s: float) -> str | None:
        """Return the digest of the spec that the agent ran at a moment; None where it is unknown."""
        return next((spec for spec, since_s in reversed(self.specs) if stamp_s >= since_s), None)

    def follow_spec(self, spec: str, since_s: float) -> bool:
        """Note the spec that the agent runs now; return whether it is another one than before."""
        if self.specs and self.specs[-1][0] == spec:
            return False
        self.specs.append((spec, since_s))
        del self.specs[:-MAX_SPECS]
        return True

    def forget_urgent(self) -> None:
        """Forget the blocks of the urgent lane that both lanes have passed."""
        passed = min(self.passed.values())
        self.urgent_blocks = [number for number in self.urgent_blocks if number * BLOCK + BLOCK - 1 > passed]
