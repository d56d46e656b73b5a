"""A file or folder is complete or absent, also when the disk is full or the writer fails."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from disks import small_disk

from fakes import disk_full
from learners.files import (
    draft_folder,
    new_file,
    new_files,
    new_folder,
    publish_folder,
    read_plain_file,
    remove_abandoned_drafts,
    write_atomically,
)


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


def write_half(path: Path) -> None:
    """Fail in the middle of a file, as a library may."""
    path.write_text("half")
    raise RuntimeError


@pytest.mark.parametrize("durable", [True, False])
def test_failed_write_by_a_library_leaves_the_old_file(tmp_path: Path, durable: bool) -> None:
    target = tmp_path / "policy.onnx"
    target.write_text("old")
    with pytest.raises(RuntimeError), new_file(target, durable=durable) as draft:
        write_half(draft)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_existing_file_stays_without_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "token"
    write_atomically(path, b"first", overwrite=False)
    with pytest.raises(FileExistsError):
        write_atomically(path, b"second", overwrite=False)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_named_after_its_content_replaces_an_earlier_one(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with draft_folder(tmp_path, "7") as draft:
            (draft / "weights").write_text(text)
            publish_folder(draft, tmp_path / "7-abc", replace=True)
    assert (tmp_path / "7-abc" / "weights").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["7-abc"]


def test_files_of_a_folder_are_replaced_and_the_others_stay(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "report.json").write_text("old")
    with pytest.raises(RuntimeError), new_files(tmp_path) as draft:
        write_half(draft / "report.json")
    assert (tmp_path / "report.json").read_text() == "old"
    with new_files(tmp_path) as draft:
        (draft / "report.json").write_text("new")
        (draft / "adapter").mkdir()
        (draft / "adapter" / "weights").write_text("w")
    assert (tmp_path / "report.json").read_text() == "new"
    assert {path.name for path in tmp_path.rglob("*")} == {"state", "report.json", "adapter", "weights"}


def test_draft_that_is_being_written_is_no_leftover(tmp_path: Path) -> None:
    with new_folder(tmp_path / "one") as draft, new_file(tmp_path / "two") as other:
        remove_abandoned_drafts(tmp_path)
        (draft / "part").touch()
        other.write_text("2")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["one", "part", "two"]


WRITER = """\
import sys
from pathlib import Path

import learners.files as files

folder = Path(sys.argv[1])
with files.new_folder(folder / "version") as draft, files.new_file(folder / "LIVE") as live:
    (draft / "weights").write_bytes(bytes(1_000_000))
    live.write_text("half")
    print("written", flush=True)
    sys.stdin.read()
"""


def test_killed_writer_leaves_the_old_content_and_the_next_process_cleans_up(tmp_path: Path) -> None:
    (tmp_path / "LIVE").write_text("old")
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "written\n"
        assert {path.name for path in tmp_path.glob("[!.]*")} == {"LIVE"}
        drafts = list(tmp_path.glob(".draft-*"))
        remove_abandoned_drafts(tmp_path)
        assert list(tmp_path.glob(".draft-*")) == drafts, "their writer lives"
        writer.send_signal(signal.SIGKILL)
        writer.wait(30)
    assert len(drafts) == 2
    assert (tmp_path / "LIVE").read_text() == "old"
    write_atomically(tmp_path / "LIVE", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["LIVE"]


def test_full_disk_leaves_nothing_of_a_version_or_an_export(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=4m") as disk:
        folder = disk.folder / "store"
        folder.mkdir()
        (folder / "LIVE").write_text("old")
        with pytest.raises(OSError, match="No space left"), new_folder(folder / "version") as draft:
            (draft / "weights").write_bytes(bytes(8_000_000))
        with pytest.raises(OSError, match="No space left"), new_file(folder / "LIVE") as draft:
            draft.write_bytes(bytes(8_000_000))
        assert [path.name for path in folder.iterdir()] == ["LIVE"]
        assert (folder / "LIVE").read_text() == "old"


def test_a_pipe_is_never_replaced_or_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="a pipe, not a file"):
        write_atomically(tmp_path / "pipe", b"new")
    with pytest.raises(OSError, match="a pipe, not a file"):
        read_plain_file(tmp_path / "pipe", 10)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]
    (tmp_path / "plain").write_bytes(bytes(100))
    assert len(read_plain_file(tmp_path / "plain", 10)) == 11
