"""Every route, method and command of the page and of the metrics port: by role, and with what attackers send."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, get_args

import aiohttp
import psutil
import pytest
from aiohttp import ClientResponse, ClientSession, WSServerHandshakeError
from canaries import OPERATOR, VIEWER
from doors import Site, comes, reply, site
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Gauge

from runtime.dashboard.access.auth import SESSION_S, TRIES
from runtime.dashboard.commands import READING_VERBS, RequestCommand
from runtime.process.http_server import SHIELD, application, serve

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
ROUTES = {"/": {"GET", "HEAD"}, "/login": {"GET", "HEAD", "POST"}, "/logout": {"POST"}, "/socket": {"GET", "HEAD"}}
"""Everything that is no file of the page; `test_no_route_is_forgotten` holds it against the server."""
STEERING: list[dict[str, Any]] = [
    {"do": "stop", "engaged": False},
    {"do": "override", "actuator": "head", "value": "left"},
    {"do": "reward", "value": 1},
    {"do": "label", "task": "t", "label": "a"},
    {"do": "text", "stream": "orders", "text": "go"},
]
VERBS = get_args(RequestCommand.model_fields["verb"].annotation)
BUDGET = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


def shielded(answer: ClientResponse) -> None:
    """No failure of the server, and every header that holds a browser back."""
    assert answer.status < 500, (answer.method, answer.url, answer.status)
    for name, value in SHIELD.items():
        value_found = answer.headers[name]
        assert value_found == value or (
            name == "Content-Security-Policy" and value_found.startswith("default-src 'none'")
        )
    assert "unsafe" not in answer.headers["Content-Security-Policy"]


async def test_no_route_is_forgotten() -> None:
    async with site() as page:
        found: dict[str, set[str]] = {}
        for route in page.app.router.routes():
            assert route.resource is not None
            found.setdefault(route.resource.canonical, set()).add(route.method)
    files = {path: methods for path, methods in found.items() if path.startswith("/static/")}
    assert {path: methods for path, methods in found.items() if path not in files} == ROUTES
    assert all(methods == {"GET", "HEAD"} for methods in files.values())


@pytest.mark.parametrize("role", [None, "forged", "viewer", "operator"])
async def test_every_method_on_every_route_by_role(role: str | None) -> None:
    async with site() as page:
        cookie = {"viewer": VIEWER, "operator": OPERATOR}.get(role or "")
        for method, path in itertools.product(METHODS, [*ROUTES, "/static/app.js", "/nowhere"]):
            known = f"{await page.sign_in(cookie)}" if cookie else "reflexd_demo=forged" if role else ""
            headers = {"Origin": page.url} | ({"Cookie": known} if known else {})
            async with page.http.request(method, f"{page.url}{path}", headers=headers, allow_redirects=False) as answer:
                shielded(answer)
                body = await answer.read()
            taken = ROUTES.get(path, {"GET", "HEAD"} if path.startswith("/static") else set())
            if method not in taken:
                assert answer.status in {404, 405}
            elif cookie is None and path not in {"/login", "/static/app.js"}:
                assert answer.status in {303, 401}
                assert b"<main" not in body
        assert page.bridge.sent == []


@pytest.mark.parametrize("path", ["/", "/socket", "/logout"])
@pytest.mark.parametrize(
    "cookie",
    [
        "reflexd_demo=",
        "reflexd_demo=None",
        "reflexd_other=x",
        f"reflexd_demo={OPERATOR}",
        "reflexd_demo=\xff;;=;,",
        "=" * 3_000,
    ],
)
async def test_a_forged_cookie_opens_nothing(path: str, cookie: str) -> None:
    async with site() as page:
        method = "POST" if path == "/logout" else "GET"
        headers = {"Cookie": cookie, "Origin": page.url}
        answer = await page.http.request(method, f"{page.url}{path}", headers=headers, allow_redirects=False)
        assert answer.status in {303, 400, 401}


async def test_a_session_that_is_over_is_sent_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async with site() as page:
        for end in ("signed out", "expired"):
            cookie = await page.sign_in(VIEWER)
            silent = await page.talk(cookie)
            await comes(page.hub, lambda hub: len(hub.clients) == 1)
            if end == "expired":
                started = page.access.now
                monkeypatch.setattr(page.access, "now", lambda started=started: started() + SESSION_S)
            else:
                await page.http.post(f"{page.url}/logout", headers={"Cookie": cookie, "Origin": page.url})
            await comes(page.hub, lambda hub: not hub.clients)
            await closes(silent)
            with pytest.raises(WSServerHandshakeError) as refused:
                await page.talk(cookie)
            assert refused.value.status == 401


async def closes(ws: aiohttp.ClientWebSocketResponse) -> None:
    async with asyncio.timeout(60):
        while (await ws.receive()).type in {aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY}:
            pass


@pytest.mark.parametrize("role", ["viewer", "operator"])
async def test_every_command_by_role(role: str) -> None:
    commands = STEERING + [{"do": "request", "verb": verb} for verb in VERBS]
    async with site() as page:
        ws = await page.talk(await page.sign_in(VIEWER if role == "viewer" else OPERATOR))
        for number, command in enumerate(commands, 1):
            page.bridge.sent.clear()
            page.bridge.requested.clear()
            await ws.send_json({**command, "id": number})
            answer = await reply(ws, number)
            if role == "operator" or command.get("verb") in READING_VERBS:
                assert "data" in answer
                assert len(page.bridge.sent) + len(page.bridge.requested) == 1
            else:
                assert "viewer may look only" in str(answer["error"])
                assert not page.bridge.sent
                assert not page.bridge.requested


# --- what attackers send


def attacks_on(opened: Callable[[], Any], attack: Callable[[Any, Callable[[Awaitable[Any]], Any]], None]) -> None:
    """Run `attack(opened, wait)` in a thread beside a server; it waits for coroutines with `wait`."""

    async def attacked() -> None:
        loop = asyncio.get_running_loop()
        async with opened() as target:

            def wait(work: Any) -> Any:
                return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, 60), loop).result(90)

            await asyncio.to_thread(attack, target, wait)

    asyncio.run(attacked())


@pytest.mark.parametrize(
    "raw",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"SSH-2.0-x\r\n\r\n", b"GET\r\n\r\n", b"\0" * 40 + b"\r\n\r\n",
     b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nCookie: " + OPERATOR.encode() + b"\x00\r\n\r\n",
     b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\n\r\n", b"POST /login HTTP/1.1\r\nContent-Length: -1\r\n\r\n"],
    ids=["tls", "ssh", "short", "zeros", "version", "cookie", "long", "length"],
)  # fmt: skip
async def test_what_is_no_http_is_refused_with_the_same_headers_and_not_echoed(
    raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with site() as page, serve(application(CollectorRegistry(), list), "127.0.0.1:0") as metrics:
        for port in (page.port, metrics):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(raw)
            async with asyncio.timeout(60):
                answer = await reader.read()
            writer.close()
            await writer.wait_closed()
            head, _, body = answer.partition(b"\r\n\r\n")
            assert re.match(rb"HTTP/1\.[01] 4\d\d ", head)
            assert {f"{name}: {value}".encode() for name, value in SHIELD.items()} <= set(head.split(b"\r\n"))
            assert body == b"bad request\n"
    assert not caplog.records, "a scanner does not fill the log"


CHARSETS = [
    "utf-8",
    "UTF-8",
    "utf-7",
    "utf-16",
    "unicode_escape",
    "raw_unicode_escape",
    "idna",
    "punycode",
    "hex",
    "undefined",
    "'",
]
FORMS = st.binary(max_size=200) | st.sampled_from(
    [b"token=+2AA-", b"token=\\ud800", b"token=%ED%A0%80", b"token=" + b"a" * 4_000, b"token=a" * 500, b"&" * 4_000]
)


def test_no_form_makes_the_login_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.dashboard.access.auth.TRIES", 10**9)

    def attack(page: Site, wait: Callable[[Awaitable[Any]], Any]) -> None:
        @BUDGET
        @given(
            FORMS,
            st.sampled_from(CHARSETS),
            st.sampled_from(
                ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", "\xff/;;"]
            ),
        )
        def form(body: bytes, charset: str, kind: str) -> None:
            headers = {"Content-Type": f"{kind}; charset={charset}"}
            answer = wait(page.http.post(f"{page.url}/login", data=body, headers=headers))
            shielded(answer)
            assert answer.status >= 400
            assert "Set-Cookie" not in answer.headers

        form()
        assert wait(page.sign_in(OPERATOR))

    attacks_on(site, attack)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(2**62, 2**80) | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=15,
)
KEYS = st.sampled_from(
    [
        "id",
        "engaged",
        "actuator",
        "value",
        "hold_s",
        "task",
        "label",
        "text",
        "stream",
        "streams",
        "verb",
        "data",
        "decision",
    ]
)
COMMANDS = st.builds(
    lambda do, rest: json.dumps({**rest, "do": do}),
    st.sampled_from(["stop", "override", "reward", "label", "text", "request", "subscribe_previews", "?"]),
    st.dictionaries(KEYS, JSON | st.sampled_from([True, "arm", "explain", "head", 1, {}]), max_size=5),
)
ODD = ("1" * 40, "NaN", "1e999", '"\\ud800"', "[" * 90 + "]" * 90)
RAW = [json.dumps({"do": "request", "verb": "arm", "data": {"x": "?"}}).replace('"?"', odd) for odd in ODD]


@pytest.mark.parametrize("token", [VIEWER, OPERATOR], ids=["viewer", "operator"])
def test_no_command_makes_the_socket_fail_and_no_viewers_command_is_sent(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.dashboard.browsers.COMMANDS_PER_S", 1e9)

    def attack(page: Site, wait: Callable[[Awaitable[Any]], Any]) -> None:
        page.hub.period_s = 0.001
        ws = wait(page.talk(wait(page.sign_in(token))))
        numbers = itertools.count(1)

        def still_answers() -> None:
            number = next(numbers) + 2**40
            wait(ws.send_json({"do": "request", "verb": "checkpoints", "id": number}))
            assert "data" in wait(reply(ws, number))

        @BUDGET
        @given(COMMANDS | st.text(max_size=40).filter(lambda text: text.isprintable()) | st.sampled_from(RAW))
        def command(text: str) -> None:
            wait(ws.send_str(text))
            still_answers()
            if token == VIEWER:
                assert page.bridge.sent == []
                assert {verb for verb, _ in page.bridge.requested} <= READING_VERBS

        command()
        wait(ws.close())

    attacks_on(site, attack)


@pytest.mark.parametrize("text", RAW)
async def test_numbers_and_depths_no_device_could_take_are_refused_in_words(text: str) -> None:
    async with site() as page:
        ws = await page.talk(await page.sign_in(OPERATOR))
        await ws.send_str(text)
        if "1" * 40 in text:  # beyond 64 bits: taken as the double it is
            await comes(page.hub, lambda _: bool(page.bridge.requested))
        else:
            assert (await reply(ws, 0))["error"]
            assert page.bridge.requested == []


FRAMES = [
    b"\x81\x05hello",  # not masked
    b"\xf1\x80\0\0\0\0",  # reserved bits
    b"\x83\x80\0\0\0\0",  # unknown opcode
    b"\x81\xff" + struct.pack(">Q", 2**63 - 1) + b"\0\0\0\0",  # the longest frame there could be
    b"\x89\xfe\x02\x00\0\0\0\0" + bytes(512),  # a ping longer than pings may be
    b"\x80\x80\0\0\0\0",  # a continuation of nothing
    b"\x01\x81\0\0\0\0{" * 3,  # fragments never ended, begun again
    b"\x81\x82\0\0\0\0\xff\xfe",  # text that is no UTF-8
    b"\x88\x81\0\0\0\0x",  # a close of one byte
]


@pytest.mark.parametrize("frame", FRAMES)
async def test_malformed_frames_end_only_their_own_connection(frame: bytes) -> None:
    async with site() as page:
        cookie = await page.sign_in(OPERATOR)
        other = await page.talk(cookie)
        reader, writer = await asyncio.open_connection("127.0.0.1", page.port)
        writer.write(
            f"GET /socket HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\nOrigin: {page.url}\r\nCookie: {cookie}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
            + frame
        )
        assert b" 101 " in await asyncio.wait_for(reader.readline(), 60)
        await comes(page.hub, lambda hub: len(hub.clients) >= 1)
        writer.close()
        await comes(page.hub, lambda hub: len(hub.clients) == 1)
        await other.send_json({"do": "request", "verb": "checkpoints", "id": 1})
        assert "data" in await reply(other, 1)
        assert page.bridge.sent == []


async def test_guesses_by_the_thousand_are_refused_and_cost_no_memory() -> None:
    async with site() as page:

        async def guess(number: int) -> int:
            body = {"token": f"{number:-<3000}"}
            async with page.http.post(f"{page.url}/login", data=body) as answer:
                await answer.read()
                return answer.status

        first = [await guess(number) for number in range(200)]
        assert first[:TRIES] == [401] * TRIES
        assert set(first[TRIES:]) == {429}
        before = psutil.Process().memory_info().rss
        assert {await guess(number) for number in range(600)} == {429}
        assert psutil.Process().memory_info().rss - before < 8e6


# --- the metrics port


@asynccontextmanager
async def metrics_port(reasons: list[str]) -> AsyncIterator[tuple[str, ClientSession]]:
    registry = CollectorRegistry()
    Gauge("reflexd_up", "Whether it runs.", registry=registry).set(1)
    async with serve(application(registry, lambda: reasons), "127.0.0.1:0") as port, ClientSession() as http:
        yield f"http://127.0.0.1:{port}", http


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", ["/metrics", "/livez", "/readyz", "/", "/login", "/..%2f..%2fetc%2fpasswd"])
async def test_the_metrics_port_tells_and_takes_nothing(method: str, path: str) -> None:
    async with metrics_port([]) as (url, http):
        answer = await http.request(method, f"{url}{path}", data=None if method == "TRACE" else b"x" * 9_000)
        shielded(answer)
        reading = method in {"GET", "HEAD"} and path in {"/metrics", "/livez", "/readyz"}
        assert answer.status == 200 if reading else answer.status in {404, 405}


ACCEPT = st.text(st.sampled_from("openmetrics/text;,=version. 019xq*\xe9"), max_size=60) | st.builds(
    lambda kind, version, more: f"{kind};version={version};{more}",
    st.sampled_from(["application/openmetrics-text", "text/plain"]),
    st.sampled_from(["abc", "", "1.0.0", "0.0.4", "1.0", "2.0.0", "99.9.9", "-1.0.0", "1.0.0.0.0", "1e9", "\xb2.0.0"]),
    st.sampled_from(["", "escaping=allow-utf-8", "escaping=?", "q=x", "version=zzz"]),
)


def test_no_accept_header_makes_the_metrics_fail() -> None:
    def attack(target: tuple[str, ClientSession], wait: Callable[[Awaitable[Any]], Any]) -> None:
        url, http = target

        @BUDGET
        @given(ACCEPT)
        def scrape(accept: str) -> None:
            answer = wait(http.get(f"{url}/metrics", headers={"Accept": accept}))
            shielded(answer)
            assert b"reflexd_up 1.0" in wait(answer.read())

        scrape()

    attacks_on(lambda: metrics_port([]), attack)
