"""A file or folder is complete or absent, also when the disk is full or the writer fails."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from fakes import disk_full
from learners.files import new_folder, write_atomically


@pytest.mark.parametrize("durable", [True, False])
def test_file_is_replaced_and_no_draft_is_left(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, b"old", durable=durable)
    write_atomically(path, b"new", durable=durable)
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_leaves_the_old_content_and_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("durable", [True, False])
def test_private_file_is_private_from_its_first_byte(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "password"
    write_atomically(path, b"canary", durable=durable, mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "graphs" / "one"
    with new_folder(target) as draft:
        (draft / "graph.xml").write_text("<net/>")
        assert not target.exists()
    assert (target / "graph.xml").read_text() == "<net/>"
    assert list(target.parent.iterdir()) == [target]


def test_failed_folder_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "one"
    monkeypatch.setattr(Path, "rename", disk_full)
    with pytest.raises(OSError, match="No space left"), new_folder(target) as draft:
        (draft / "half").write_text("half")
    assert list(tmp_path.iterdir()) == []


def test_folder_of_a_quicker_process_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "one"
    target.mkdir()
    (target / "graph.xml").write_text("theirs")
    with pytest.raises(OSError, match="not empty"), new_folder(target) as draft:
        (draft / "graph.xml").write_text("ours")
    assert (target / "graph.xml").read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [target]
