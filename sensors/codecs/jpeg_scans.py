"""Find out from the headers of a JPEG's scans whether they bring the whole picture.

A picture of several scans that was cut between two of them, and got an end marker, decodes without an error: without colours, or
blurred. Specification: ITU-T T.81, B.2.2, B.2.3 and G.1.1.1. Knows nothing of coded data.
"""

from __future__ import annotations

from dataclasses import dataclass, field

PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
"""Markers of frames in which the coefficients come in several scans."""
COEFFICIENTS = 64
_ABSENT = 255


@dataclass(slots=True)
class ScanCoverage:
    """What the scans so far bring of each component."""

    is_progressive: bool = False
    _lowest: dict[int, list[int]] = field(default_factory=dict)
    """By component, the lowest bit that came of each coefficient."""

    def add_frame(self, marker: int, segment: bytes) -> None:
        """Take the header of a frame, behind its length; a malformed one is left to the decoder."""
        self.is_progressive = marker in PROGRESSIVE
        self._lowest = (
            {name: [_ABSENT] * COEFFICIENTS for name in segment[6 : 6 + 3 * segment[5] : 3]} if segment[5:] else {}
        )

    def add_scan(self, segment: bytes) -> None:
        """Take the header of a scan, behind its length."""
        last = 1 + 2 * segment[0] if segment else 0
        if len(segment) < last + 3:
            return
        first_one, last_one, lowest = (
            (segment[last], segment[last + 1], segment[last + 2] & 15) if self.is_progressive else (0, 63, 0)
        )
        for name in segment[1:last:2]:
            bits = self._lowest.get(name, [])
            bits[first_one : last_one + 1] = [lowest] * len(bits[first_one : last_one + 1])

    @property
    def is_complete(self) -> bool:
        """Whether every coefficient of every component came down to its last bit."""
        return not any(map(any, self._lowest.values()))
