"""A picture of 3.3 MB arrives at the connection for media, and the control connection sees only that it is too large."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from fakes import Mosquitto, eventually
from runtime.agent.build_publishing import CONTROL_PAYLOAD, LARGEST_PACKET, MEDIA_PAYLOAD
from runtime.mqtt import Address, Connection

PICTURE = os.urandom(3_300_000)


@pytest.mark.parametrize(("limit", "arrives"), [(MEDIA_PAYLOAD, True), (CONTROL_PAYLOAD, False)])
async def test_a_large_picture_arrives_where_pictures_are_taken(tmp_path: Path, limit: int, arrives: bool) -> None:
    broker = Mosquitto(tmp_path).start()
    got: list[bytes] = []
    address = Address("127.0.0.1", broker.port)
    receiver = Connection(address, "receiver", max_packet=LARGEST_PACKET, max_payload=limit)
    sender = Connection(address, "sender")
    receiver.subscribe("in/cam", lambda message: got.append(message.payload))
    tasks = [asyncio.create_task(each.run()) for each in (receiver, sender)]
    try:
        await eventually(lambda: receiver.connected and sender.connected, "both connected")
        await sender.publish("in/cam", PICTURE, timeout_s=60)
        await sender.publish("in/cam", b"after")
        await eventually(lambda: b"after" in got, "the message after it")
        assert (PICTURE in got) == arrives
        assert max(map(len, got)) == (len(PICTURE) if arrives else limit + 1), "too large, and counted by its handler"
        assert receiver.connects == 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        broker.stop()
