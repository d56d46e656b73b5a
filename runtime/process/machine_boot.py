"""Name the boot of the machine, which tells a power cut or a restart of the machine from the death of a process."""

from __future__ import annotations

from pathlib import Path

BOOT = Path("/proc/sys/kernel/random/boot_id")


def machine_boot() -> str:
    """Return the name of this boot; empty where the system tells none."""
    try:
        return BOOT.read_text().strip()
    except OSError:
        return ""
