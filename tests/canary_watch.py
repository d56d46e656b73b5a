"""Listens to the whole run for the secrets of `canaries.py`; a test that discloses one fails, and is named.

What is heard, of this process and of those it starts:
- standard output, standard error and log records, as pytest captures them, and what a test took out of the capture itself;
- what children write into pipes, and every file below the folders pytest made: their logs, state directories, recordings;
- every MQTT message that this process sends or gets, and all that pass a broker of `fakes.py`;
- bodies, headers and web-socket messages over HTTP; in the browser, console, frames and the page itself (`browser.py`);
- messages of expected exceptions, and the output of command-line verbs run in this process.

Not heard: settings and token files, which is where secrets belong, tensors, and what a child sends to unobserved programs.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import subprocess
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import aiohttp
import canaries
import click.testing
import paho.mqtt.client as mqtt
import pytest

KEEPS_SECRETS = {".yaml", ".toml"}
"""Settings, and the embedded broker's own."""
TOKENS = {"token", "operator-token"}
TENSORS = {".safetensors", ".bin", ".npz", ".npy", ".pt", ".onnx"}
MOST_BYTES = 16_000_000
"""Of one file; the rest is not looked at."""

Hear = Callable[[Any, tuple[Any, ...]], None]


class Piped:
    """A child's pipe, listened to while it is read."""

    def __init__(self, pipe: Any, take: Callable[[str, Any], None]) -> None:
        self._pipe, self._take = pipe, take

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.readline, self._pipe.read(0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()

    def read(self, *size: int) -> Any:
        return self._received(self._pipe.read(*size))

    def readline(self, *size: int) -> Any:
        return self._received(self._pipe.readline(*size))

    def _received(self, data: Any) -> Any:
        self._take("pipe of a child", data)
        return data


class Watch:
    """The plugin. `take` may be called from any thread."""

    def __init__(self) -> None:
        self.observed: deque[str] = deque(maxlen=20)
        self._folders: dict[Path, None] = {}
        self._undo: list[Callable[[], None]] = []

    def take(self, where: str, *parts: object) -> None:
        """Search one output."""
        for part in parts:
            received = canaries.received(part if isinstance(part, bytes | str) else None)
            if received is not None:
                self.observed.append(f"{where}: ...{received!r}...")

    def look_through(self, folder: Path) -> None:
        """Listen to every file below a folder."""
        for path in folder.rglob("*"):
            if path.suffix in KEEPS_SECRETS | TENSORS or path.name in TOKENS:
                continue
            with contextlib.suppress(OSError):  # gone meanwhile
                if path.is_file() and not path.is_symlink():
                    with path.open("rb") as file:
                        self.take(f"file {path.relative_to(folder.parent)}", file.read(MOST_BYTES))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        """At a test's end, all that was heard since the one before is its own."""
        report: Any = yield
        if call.when == "teardown":
            for title, text in report.sections:
                self.take(title, text)
            folder = getattr(item, "funcargs", {}).get("tmp_path")
            if isinstance(folder, Path):
                self._folders.pop(folder, None)
                self.look_through(folder)
            if self.observed:
                report.outcome = "failed"
                report.longrepr = f"{item.nodeid} disclosed a secret:\n" + "\n".join(dict.fromkeys(self.observed))
                self.observed.clear()
        return report  # type: ignore[no-any-return]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self, item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
        """Folders that tests of a file shared are looked through after the last of them."""
        result = yield
        if nextitem is None or nextitem.path != item.path:
            while self._folders:
                self.look_through(self._folders.popitem()[0])
        return result

    def pytest_configure(self) -> None:
        """Observe every output."""
        self._tap(pytest.TempPathFactory, "mktemp", lambda made, _: self._folders.setdefault(made))
        self._tap(pytest.CaptureFixture, "readouterr", lambda got, _: self.take("captured output", *got))
        self._tap(pytest.RaisesExc, "__exit__", lambda _, given: self.take("exception", *map(str, given[1:3])))
        self._tap(subprocess.Popen, "communicate", lambda got, _: self.take("output of a child", *got))
        self._tap(subprocess.Popen, "__init__", self._pipes)
        self._tap(
            click.testing.CliRunner, "invoke", lambda r, _: self.take("a verb", r.output, r.stderr, str(r.exception))
        )
        self._tap(mqtt.Client, "publish", lambda _, given: self.take("MQTT out", *given[1:3]))
        self._tap(mqtt.Client, "_handle_on_message", lambda _, given: self._message(given[1]), first=True)
        self._tap(http.client.HTTPResponse, "read", lambda got, given: self.take("HTTP", got, str(given[0].headers)))
        self._tap_async(aiohttp.ClientResponse, "start", lambda got, _: self.take("HTTP", str(got.raw_headers)))
        self._tap_async(aiohttp.ClientResponse, "read", lambda got, _: self.take("HTTP", got))
        self._tap_async(aiohttp.ClientWebSocketResponse, "receive", lambda got, _: self.take("web socket", got.data))

    def pytest_unconfigure(self) -> None:
        """Take all ears off."""
        while self._undo:
            self._undo.pop()()

    def _message(self, message: mqtt.MQTTMessage) -> None:
        self.take(f"MQTT {message.topic}", message.topic, message.payload)

    def _pipes(self, _made: None, given: tuple[Any, ...]) -> None:
        process = given[0]
        for name in ("stdout", "stderr"):
            if (pipe := getattr(process, name)) is not None:
                setattr(process, name, Piped(pipe, self.take))

    def _tap(self, owner: type, name: str, hear: Hear, *, first: bool = False) -> None:
        """Let `hear` have the result and the arguments of a method, or the arguments before it runs."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def observed(*args: Any, **kwargs: Any) -> Any:
            if first:
                hear(None, args)
            result = original(*args, **kwargs)
            if not first:
                hear(result, (*args, *kwargs.values()))
            return result

        self._replace(owner, name, observed)

    def _tap_async(self, owner: type, name: str, hear: Hear) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        async def observed(*args: Any, **kwargs: Any) -> Any:
            result = await original(*args, **kwargs)
            hear(result, args)
            return result

        self._replace(owner, name, observed)

    def _replace(self, owner: type, name: str, observed: Callable[..., Any]) -> None:
        original = owner.__dict__[name]
        setattr(owner, name, observed)
        self._undo.append(lambda: setattr(owner, name, original))


WATCH = Watch()
