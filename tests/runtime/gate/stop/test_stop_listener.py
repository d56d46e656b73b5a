"""The stop listener: what it latches, what releases it, and when it ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from wire_helpers import address
from wire_helpers import running as running_on

from fakes import Mosquitto, eventually
from runtime.config.schema import Config
from runtime.gate.stop import channel, listener
from runtime.gate.stop.channel import StopSender
from runtime.gate.stop.latch import StopLatch
from runtime.gate.stop.listener import StopListener, connection_of, has_own_session
from runtime.mqtt import Connection, Message
from runtime.mqtt.topics import Refused, Topics

TOPICS = Topics("tester")
SETTINGS: dict[str, Any] = {
    "agent": "tester",
    "state_dir": "state",
    "streams": {"joints": {"kind": "telemetry", "source": "topic", "fields": ["a"]}},
    "actuators": {"head": {"kind": "choice", "choices": ["left", "stay"], "safe": "stay"}},
}


def message(payload: bytes, *, retain: bool = False, resumed: bool = False) -> Message:
    return Message(TOPICS("stop"), payload, 1, retain, resumed=resumed)


class World:
    """A listener; a test takes away its parent and disk."""

    sockets: ClassVar[list[socket.socket]] = []

    def __init__(self, folder: Path, port: int) -> None:
        self.parent = True
        self.now_s = 0.0
        self.latch = StopLatch.of(folder / "state")
        self.gate, end = channel.pair()
        self.sockets += self.gate, end
        self.listener = StopListener(
            Connection(address(port), "listener"),
            self.latch,
            TOPICS,
            lambda: self.parent,
            lambda: self.now_s,
            StopSender(end),
        )

    def stated(self) -> list[str | None]:
        """What the listener has stated since the last call."""
        found: list[str | None] = []
        while True:
            try:
                found.append(channel.reason_of(self.gate.recv(channel.LONGEST)))
            except BlockingIOError:
                return found


@pytest.fixture(autouse=True)
def closed_sockets() -> Iterator[None]:
    yield
    while World.sockets:
        World.sockets.pop().close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(listener, "POLL_S", 0.01)
    monkeypatch.setattr(listener, "RETRY_S", 0.01)
    monkeypatch.setattr(listener, "AGAIN_S", 0.02)
    return


async def test_the_latch_follows_the_newest_message_while_the_supervisor_lives(
    tmp_path: Path, broker: Mosquitto, quick: None
) -> None:
    world = World(tmp_path, broker.port)
    running = asyncio.create_task(world.listener.run())
    for payload in (b'{"engaged": true}', b"junk", b"", b'{"engaged": false, "sauce": 1}'):
        world.listener.on_stop(message(payload))
        await eventually(lambda: world.latch.read() is not None, "the latch")
        world.listener.on_stop(message(b'{"engaged": false}'))
        await eventually(lambda: world.latch.read() is None, "the release")
    world.listener.on_stop(message(b"", retain=True))
    world.listener.ended.set()
    await running
    assert world.latch.read() is None, "the deletion of a retained message is no stop"


async def test_nothing_old_releases_and_without_a_supervisor_nothing_does(
    tmp_path: Path, broker: Mosquitto, quick: None
) -> None:
    world = World(tmp_path, broker.port)
    running = asyncio.create_task(world.listener.run())
    world.listener.on_stop(message(b'{"engaged": true}', retain=True))
    await eventually(lambda: world.latch.read() is not None, "the latch")
    for old in (message(b'{"engaged": false}', retain=True), message(b'{"engaged": false}', resumed=True)):
        with pytest.raises(Refused):
            world.listener.on_stop(old)
    world.parent = False
    world.listener.on_stop(message(b'{"engaged": false}'))
    await asyncio.sleep(0.05)
    assert not running.done()
    found = world.latch.read()
    assert found is not None
    assert found[1] == "a retained stop message"
    world.now_s = listener.ORPHAN_S - 1
    await asyncio.sleep(0.05)
    assert not running.done()
    world.now_s = listener.ORPHAN_S
    async with asyncio.timeout(60):
        await running
    assert world.latch.read() is not None


async def test_a_stop_is_latched_again_after_a_release_that_only_the_gate_received(
    tmp_path: Path, broker: Mosquitto, quick: None
) -> None:
    world = World(tmp_path, broker.port)
    running = asyncio.create_task(world.listener.run())
    world.listener.on_stop(message(b'{"engaged": true}'))
    await eventually(lambda: world.latch.read() is not None, "the latch")
    world.latch.remove()
    world.listener.on_stop(message(b"ON"))
    await eventually(lambda: world.latch.read() is not None, "the latch of the second stop")
    world.listener.ended.set()
    await running


async def test_a_disk_that_refuses_is_tried_again_and_at_the_end(
    tmp_path: Path, broker: Mosquitto, quick: None
) -> None:
    world = World(tmp_path, broker.port)
    (tmp_path / "state").write_text("a file in place of the folder")
    running = asyncio.create_task(world.listener.run())
    world.listener.on_stop(message(b'{"engaged": true}'))
    await asyncio.sleep(0.05)
    (tmp_path / "state").unlink()
    await eventually(lambda: world.latch.read() is not None, "the latch")
    world.listener.ended.set()
    await running

    world = World(tmp_path / "other", broker.port)
    running = asyncio.create_task(world.listener.run())
    world.listener.on_stop(message(b'{"engaged": true}'))
    world.listener.ended.set()  # before the task that writes has had a turn
    await running
    assert world.latch.read() is not None


async def test_the_gate_has_a_stop_that_the_disk_refuses(tmp_path: Path, broker: Mosquitto, quick: None) -> None:
    world = World(tmp_path, broker.port)
    (tmp_path / "state").write_text("a file in place of the folder")
    running = asyncio.create_task(world.listener.run())
    stated: list[str | None] = []
    world.listener.on_stop(message(b"ON"))
    await eventually(lambda: bool(stated.extend(world.stated()) or stated), "the statement")
    assert stated[0] is not None
    assert "'ON'" in stated[0]
    for _ in range(2_000):  # more than the channel takes while the gate is frozen
        world.listener.on_stop(message(b'{"engaged": true}'))
        await asyncio.sleep(0)
    assert len(world.stated()) < 2_000
    world.listener.on_stop(message(b'{"engaged": false}'))
    await eventually(lambda: world.stated()[-1:] == [None], "the release, the newest of all")
    world.gate.close()
    world.listener.on_stop(message(b"ON"))  # the supervisor is dead: the file remains
    (tmp_path / "state").unlink()
    await eventually(lambda: world.latch.read() is not None, "the latch")
    world.listener.ended.set()
    await running


async def test_an_orphan_does_not_end_before_its_stop_is_on_the_disk(
    tmp_path: Path, broker: Mosquitto, quick: None
) -> None:
    world = World(tmp_path, broker.port)
    (tmp_path / "state").write_text("a file in place of the folder")
    running = asyncio.create_task(world.listener.run())
    async with asyncio.timeout(60):
        await world.listener.connection.up()
    world.parent, world.now_s = False, 1.0
    world.listener.on_stop(message(b'{"engaged": true}'))
    async with running_on(Connection(address(broker.port), "listener")):
        await eventually(world.listener._unneeded.is_set, "the session taken over")
        await eventually(lambda: not world.listener.connection.connected, "leaving the session to the next one")
    assert not running.done()
    (tmp_path / "state").unlink()
    async with asyncio.timeout(60):
        await running
    assert world.latch.read() is not None

    (tmp_path / "again").mkdir()
    world = World(tmp_path / "again", broker.port)
    (tmp_path / "again" / "state").write_text("a file in place of the folder")
    running = asyncio.create_task(world.listener.run())
    world.listener.on_stop(message(b'{"engaged": true}'))
    world.listener.ended.set()
    with pytest.raises(OSError, match="state"):
        await running


async def test_an_orphan_removes_nothing_and_looks_again_for_its_stop(
    tmp_path: Path, broker: Mosquitto, quick: None
) -> None:
    world = World(tmp_path, broker.port)
    running = asyncio.create_task(world.listener.run())
    world.listener.on_stop(message(b'{"engaged": true}'))
    await eventually(lambda: world.latch.read() is not None, "the latch")
    world.latch.remove()  # by the gate, for a release that came before this stop
    await eventually(lambda: world.latch.read() is not None, "the latch again")
    world.parent = False
    world.listener._reason = None  # the disk refused the removal until the supervisor was dead
    world.listener._save(None)
    assert world.latch.read() is not None
    world.listener.ended.set()
    await running


async def test_an_orphan_gives_way_to_the_next_listener(tmp_path: Path, broker: Mosquitto) -> None:
    world = World(tmp_path, broker.port)
    running = asyncio.create_task(world.listener.run())
    async with asyncio.timeout(60):
        await world.listener.connection.up()
    world.parent = False
    following = asyncio.create_task(Connection(address(broker.port), "listener").run())
    async with asyncio.timeout(60):
        await running
    assert not following.done(), "the next one has taken the session over"
    following.cancel()
    await asyncio.wait([following])


@pytest.mark.parametrize(
    ("login", "own", "identifier"),
    [
        ({"username": None}, True, "reflexd-tester-gate-stop"),
        ({"username": "all", "password": "p"}, True, "all-stop"),
        ({"gate": {"username": "gate", "password": "p"}}, True, "gate-stop"),
        ({"gate": {"username": "gate", "password": "p", "requests": "r"}}, False, None),
        ({"gate": {"username": "gate", "password": "p", "requests": "r", "stop": "halt"}}, True, "halt"),
    ],
)
async def test_the_listener_never_takes_the_session_of_the_gate(
    login: dict[str, Any], own: bool, identifier: str | None
) -> None:
    config = Config.model_validate(SETTINGS | {"mqtt": {"url": "mqtt://127.0.0.1:1", "username": "others", **login}})
    assert has_own_session(config) is own
    if own:
        connection = connection_of(config)
        assert connection.identifier == identifier
        assert connection.session_s > 0


def test_a_latch_that_cannot_be_read_is_a_stop(tmp_path: Path) -> None:
    latch = StopLatch.of(tmp_path)
    assert latch.read() is None
    assert latch.is_absent()
    latch.remove()
    latch.path.mkdir()
    found = latch.read()
    assert found is not None
    assert not latch.is_absent()
    assert "stop-latch" in found[1]
    latch.path.rmdir()
    latch.write("\ud800 odd" + "x" * 1_000)
    assert not latch.is_absent()
    found = latch.read()
    assert found is not None
    assert len(found[1]) <= 256
    assert latch.path.stat().st_mode & 0o077 == 0
    latch.remove()
    assert latch.read() is None
    (tmp_path / "file").write_text("no folder")
    nowhere = StopLatch.of(tmp_path / "file")
    assert nowhere.read() is not None
    assert not nowhere.is_absent(), "what cannot be known is no permission to go on"
    assert not StopLatch.of(tmp_path / "missing").is_on_disk_of_this_machine()


def test_settings_that_cannot_be_used_end_it_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.yaml").write_text("agent: [")
    assert listener.main([str(tmp_path / "x.yaml")]) == 2
    assert "x.yaml" in capsys.readouterr().err
