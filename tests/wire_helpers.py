"""Small helpers for tests that talk over a broker."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import canaries

from runtime.config.mqtt_settings import Credentials
from runtime.mqtt import Address, Connection, Message


def address(port: int) -> Address:
    """A broker on loopback, with the login of the tests; an open one takes any."""
    return Address("127.0.0.1", port, Credentials.model_validate(canaries.LOGIN))


@asynccontextmanager
async def running(connection: Connection, *, wait: bool = True) -> AsyncIterator[Connection]:
    task = asyncio.create_task(connection.run())
    try:
        if wait:
            async with asyncio.timeout(60):
                await connection.up()
        yield connection
    finally:
        task.cancel()
        await asyncio.wait([task])


class Collector:
    """Keeps messages and lets a test wait for them."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._more = asyncio.Event()

    def __call__(self, message: Message) -> None:
        self.messages.append(message)
        self._more.set()

    async def until(self, condition: Callable[[list[Message]], bool], timeout_s: float = 60.0) -> list[Message]:
        async with asyncio.timeout(timeout_s):
            while not condition(self.messages):
                self._more.clear()
                await self._more.wait()
        return self.messages


class Manager:
    """The service manager's end."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)
        self.address = address

    def got(self) -> list[str]:
        found = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return found
