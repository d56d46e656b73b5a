"""What survives a restart."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping
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


async def test_a_write_that_was_cancelled_is_made_up_for_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop of the last moment: the writer's task is cancelled while the disk works."""
    path, slow, real = tmp_path / "latches.json", threading.Event(), latches.save
    begun = threading.Event()

    def save(path: Path, content: Mapping[str, object]) -> None:
        begun.set()
        assert slow.wait(60)
        real(path, content)

    monkeypatch.setattr(latches, "save", save)
    stopped, received = [False], list[str]()
    writer = latches.LatchWriter(path, lambda: {"stopped": stopped[0]})
    writer.changed(lambda error: received.append(f"first {error}"))
    running = asyncio.create_task(writer.run())
    await asyncio.to_thread(begun.wait, 60)
    stopped[0] = True
    writer.changed(lambda error: received.append(f"stop {error}"))
    running.cancel()
    slow.set()
    await asyncio.wait([running])
    await writer.finish()
    assert latches.load(path) == {"stopped": True}
    assert received == ["first None", "stop None"]


async def test_the_last_write_waits_for_one_that_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop during the shutdown, while the disk still works at an older write."""
    path, slow, begun, real = tmp_path / "latches.json", threading.Event(), threading.Event(), latches.save
    stopped, at_once, most = [False], 0, 0

    def save(path: Path, content: Mapping[str, object]) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        begun.set()
        if not content["stopped"]:
            assert slow.wait(60)
        real(path, content)
        at_once -= 1

    monkeypatch.setattr(latches, "save", save)
    writer = latches.LatchWriter(path, lambda: {"stopped": stopped[0]})
    writer.changed()
    running = asyncio.create_task(writer.run())
    await asyncio.to_thread(begun.wait, 60)
    stopped[0] = True
    writer.changed()
    last = asyncio.create_task(writer.finish())
    await asyncio.sleep(0)  # the older write is under way
    asyncio.get_running_loop().call_later(0.05, slow.set)
    await last
    running.cancel()
    await asyncio.wait([running])
    assert (latches.load(path), most) == ({"stopped": True}, 1)
