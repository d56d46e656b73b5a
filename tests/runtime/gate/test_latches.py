"""What survives a restart."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fakes import disk_full
from runtime.gate import latches


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "latches.json"
    assert latches.load(path) is None
    latches.save(path, {"stopped": True, "modes": {"head": "assist"}})
    assert latches.load(path) == {"stopped": True, "modes": {"head": "assist"}}
    latches.save(path, {"stopped": False})
    assert latches.load(path) == {"stopped": False}
    assert [p.name for p in path.parent.iterdir()] == ["latches.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'"x"'])
def test_what_cannot_be_read_is_no_first_start(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "latches.json"
    path.write_bytes(content)
    assert latches.load(path) == {}


def test_a_failed_write_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "latches.json"
    latches.save(path, {"stopped": True})
    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        latches.save(path, {"stopped": False})
    assert latches.load(path) == {"stopped": True}
    assert list(tmp_path.iterdir()) == [path]
