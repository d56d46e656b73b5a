"""Which recordings are deleted first."""

from __future__ import annotations

import os
from pathlib import Path

from runtime.recording.oldest_files import oldest_first


def test_files_from_before_a_clock_was_set_back_are_the_oldest(tmp_path: Path) -> None:
    """The clock showed a year too much, was set back after two files, and three more were written."""
    for name, stamp_s in {"a": 9_000, "b": 9_100, "c": 1_000, "d": 1_100, "e": 1_200}.items():
        path = tmp_path / f"{name}.mcap"
        path.write_bytes(name.encode())
        os.utime(path, (stamp_s, stamp_s))
    (tmp_path / "under-way.json").write_bytes(b"{}")
    found = oldest_first(tmp_path, 1_300.0, tmp_path / "e.mcap")
    assert [path.stem for path, _ in found] == ["a", "b", "c", "d"]
    assert [stat.st_size for _, stat in found] == [1] * 4
    assert [path.stem for path, _ in oldest_first(tmp_path, 9_500.0)] == ["c", "d", "e", "a", "b"]
    assert oldest_first(tmp_path / "none", 1.0) == []
