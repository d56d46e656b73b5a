"""A component's state survives restarts; a broken file is named; an older write never replaces a newer one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest

from fakes import eventually
from runtime.process.state_file import StateFile, StateUnreadable


class Counter:
    """A component with one number of state."""

    def __init__(self, path: Path, every_s: float = 60.0) -> None:
        self.count = 0
        self.events: list[tuple[str, dict[str, Any]]] = []
        emit = lambda kind, data: self.events.append((kind, data))  # noqa: E731
        self.file = StateFile(path, self.dump, self.restore, every_s, emit)

    def dump(self) -> dict[str, Any]:
        return {"count": self.count}

    def restore(self, body: dict[str, Any]) -> None:
        self.count = int(body["count"])


def test_state_is_restored_and_a_missing_file_is_no_error(tmp_path: Path) -> None:
    one = Counter(tmp_path / "folder" / "state.json")
    assert not one.file.load()
    one.count = 7
    one.file.write()
    other = Counter(tmp_path / "folder" / "state.json")
    assert other.file.load()
    assert other.count == 7


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"count": "x"}', b"\xff"])
def test_a_broken_file_is_named_and_the_state_stays(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(content)
    one = Counter(path)
    with pytest.raises(StateUnreadable, match=r"state\.json is broken"):
        one.file.load()
    assert one.count == 0


async def test_urgent_changes_are_written_at_once_and_others_at_the_interval(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    for every_s, urgent in ((60.0, True), (0.01, False)):
        one = Counter(path, every_s)
        running = asyncio.create_task(one.file.run())
        one.count = 3
        one.file.changed(urgent=urgent)
        await eventually(path.exists, "the file")
        running.cancel()
        await asyncio.wait([running])
        assert orjson.loads(path.read_bytes()) == {"count": 3}
        path.unlink()


async def test_an_unchanged_state_is_not_written(tmp_path: Path) -> None:
    one, written = Counter(tmp_path / "state.json", 0.0), []
    one.file.dump = lambda: written.append(1) or {}  # type: ignore[func-returns-value]
    running = asyncio.create_task(one.file.run())
    for _ in range(20):
        await asyncio.sleep(0)  # one interval
    one.file.changed()
    await eventually(lambda: written == [1], "the one write")
    for _ in range(20):
        await asyncio.sleep(0)  # further intervals without a change
    running.cancel()
    await asyncio.wait([running])
    assert written == [1]


async def test_a_file_that_cannot_be_written_is_published_once_and_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.write_bytes(b"a file where the folder should be")
    one = Counter(folder / "state.json", 0.001)
    one.file.write()
    await one.file.save()
    assert [kind for kind, _ in one.events] == ["state_write_failed"]
    assert one.events[0][1]["file"] == str(folder / "state.json")
    folder.unlink()
    running = asyncio.create_task(one.file.run())
    await eventually((folder / "state.json").exists, "the file")
    running.cancel()
    await asyncio.wait([running])


def test_a_slow_older_write_does_not_replace_a_newer_one(tmp_path: Path) -> None:
    one = Counter(tmp_path / "state.json")
    older = one.file._body()
    one.count = 2
    one.file.write()
    one.file._write(*older)
    assert orjson.loads((tmp_path / "state.json").read_bytes()) == {"count": 2}


def test_a_file_that_cannot_be_read_or_has_impossible_numbers_is_unreadable(tmp_path: Path) -> None:
    one = Counter(tmp_path / "state.json")
    (tmp_path / "state.json").mkdir()
    with pytest.raises(StateUnreadable, match=r"state.json cannot be read: Is a directory"):
        one.file.load()
    (tmp_path / "state.json").rmdir()
    (tmp_path / "state.json").write_bytes(b'{"count": 1}')
    one.file.restore = lambda body: body | {"count": int(body["count"] * float("inf"))}  # type: ignore[assignment,return-value]
    with pytest.raises(StateUnreadable, match="infinity"):
        one.file.load()
