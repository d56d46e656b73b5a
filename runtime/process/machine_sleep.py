"""How long the machine has slept: the monotonic clock leaves out the time in which a laptop or robot is suspended.

A reading or a proposal from before a sleep is older than the difference of its stamp to now. The inbox and the gate add the sleep to its age.
"""

from __future__ import annotations

import time

ATTEMPTS = 8
EXACT_S = 1e-3
"""Two clocks that are read within this time are read at once."""


def slept_s() -> float:
    """Return the seconds since the boot of the machine in which it was suspended, within a millisecond."""
    least = float("inf")
    for _ in range(ATTEMPTS):  # a busy machine may stop this thread between two clocks
        before_s = time.clock_gettime(time.CLOCK_MONOTONIC)
        boot_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        least = min(least, boot_s - before_s)
        if time.clock_gettime(time.CLOCK_MONOTONIC) - before_s < EXACT_S:
            break
    return least
