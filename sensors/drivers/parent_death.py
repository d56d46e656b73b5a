"""Ask the kernel for a signal at the parent's death: prctl(2), PR_SET_PDEATHSIG. Linux only.

Driver processes, the children of the supervisor and the fine-tuning process use it. It imports nothing, because every
child loads it first.
"""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def die_with(parent: int, number: signal.Signals = signal.SIGKILL) -> bool:
    """Request signal `number` at the death of process `parent`; False when the parent is dead already.

    The kernel watches the parent *thread*: start children from a thread that lives as long as they are needed.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    return os.getppid() == parent
