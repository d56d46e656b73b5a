"""The page's doors: who gets in where, what an attacker meets, and a browser that never reads."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import socket

import aiohttp
import pytest
from aiohttp import WSServerHandshakeError
from canaries import OPERATOR, VIEWER
from doors import comes, reply, site
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes import Contention
from runtime.config.schema import DashboardSettings
from runtime.dashboard.__main__ import hosts, main
from runtime.dashboard.access.auth import TRIES
from runtime.dashboard.access.sign_in import static_files
from runtime.dashboard.browsers import REPLACED
from runtime.process.http_server import Admission, network

PUBLIC = ["/login", "/static/style.css", "/static/app.js", "/static/icon.svg"]
MATRIX = [
    # method, path, anonymous, viewer, operator
    ("GET", "/", 303, 200, 200),
    ("GET", "/socket", 401, 426, 426),
    ("POST", "/logout", 401, 200, 200),
    *(("GET", path, 200, 200, 200) for path in PUBLIC),
    ("POST", "/", 405, 405, 405),
    ("DELETE", "/socket", 405, 405, 405),
    ("GET", "/static/", 404, 404, 404),
    ("GET", "/static/index.html", 404, 404, 404),
    ("GET", "/static/../web.py", 404, 404, 404),
    ("GET", "/static/%2e%2e/web.py", 404, 404, 404),
    ("GET", "/metrics", 404, 404, 404),
]


@pytest.mark.parametrize(("method", "path", "anonymous", "viewer", "operator"), MATRIX)
async def test_roles_by_routes(method: str, path: str, anonymous: int, viewer: int, operator: int) -> None:
    async with site() as page:
        cookies = [None, await page.sign_in(VIEWER), await page.sign_in(OPERATOR)]
        for cookie, expected in zip(cookies, (anonymous, viewer, operator), strict=True):
            headers = {"Origin": page.url} | ({"Cookie": cookie} if cookie else {})
            answer = await page.http.request(method, f"{page.url}{path}", headers=headers, allow_redirects=False)
            assert answer.status == expected
            policy = answer.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy


async def test_cookies_cannot_be_read_or_sent_from_elsewhere() -> None:
    async with site() as page:
        answer = await page.http.post(f"{page.url}/login", data={"token": OPERATOR})
        cookie = answer.headers["Set-Cookie"]
        assert all(part in cookie for part in ("HttpOnly", "SameSite=Strict", "Path=/"))
        assert OPERATOR not in cookie
        made_up = await page.http.get(page.url, headers={"Cookie": "reflexd_demo=guess"}, allow_redirects=False)
        assert made_up.status == 303


async def test_logins_are_limited_and_say_when_to_come_back() -> None:
    async with site() as page:
        for _ in range(TRIES):
            assert (await page.http.post(f"{page.url}/login", data={"token": "no"})).status == 401
        answer = await page.http.post(f"{page.url}/login", data={"token": "no"})
        assert answer.status == 429
        assert 1 <= int(answer.headers["Retry-After"]) <= 61
        assert await page.sign_in(OPERATOR)


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://127.0.0.1:1", "https://127.0.0.1.evil"]
)
async def test_a_web_socket_from_another_site_is_refused(origin: str | None) -> None:
    async with site() as page:
        headers = {"Cookie": await page.sign_in(OPERATOR)} | ({"Origin": origin} if origin else {})
        with pytest.raises(WSServerHandshakeError) as refused:
            await page.http.ws_connect(f"{page.url}/socket", headers=headers)
        assert refused.value.status == 403
        assert page.hub.clients == set()


async def test_logging_in_or_out_from_another_site_is_refused() -> None:
    async with site() as page:
        cookie = await page.sign_in(OPERATOR)
        foreign = {"Cookie": cookie, "Origin": "http://evil.example"}
        assert (await page.http.post(f"{page.url}/logout", headers=foreign)).status == 403
        assert (await page.http.post(f"{page.url}/login", data={"token": OPERATOR}, headers=foreign)).status == 403


async def test_a_foreign_host_name_pointed_at_loopback_is_refused() -> None:
    async with site() as page:
        answer = await page.http.get(page.url, headers={"Host": "rebound.example"}, allow_redirects=False)
        assert answer.status == 421
    async with site(known=None) as page:
        answer = await page.http.get(page.url, headers={"Host": "robot.lan"}, allow_redirects=False)
        assert answer.status == 303


def test_host_names_follow_from_where_it_listens() -> None:
    assert "localhost" in (hosts(DashboardSettings()) or ())
    assert hosts(DashboardSettings(listen="0.0.0.0:80")) is None
    assert "robot.lan" in (hosts(DashboardSettings(listen="0.0.0.0:80", hosts=("robot.lan",))) or ())
    assert "[::1]" in (hosts(DashboardSettings(listen="[::1]:80")) or ())
    assert hosts(DashboardSettings(listen="robot:80")) is None


async def test_a_viewers_commands_move_nothing_and_an_operators_do() -> None:
    async with site() as page:
        viewer, operator = await page.talk(await page.sign_in(VIEWER)), await page.talk(await page.sign_in(OPERATOR))
        await viewer.send_json({"do": "stop", "engaged": True, "id": 7})
        assert "viewer may look only" in str((await reply(viewer, 7))["error"])
        assert page.bridge.sent == []
        await operator.send_json({"do": "stop", "engaged": True, "id": 8})
        assert (await reply(operator, 8))["data"] == {"sent": True, "rule": None}
        assert page.bridge.sent == ["reflexd/demo/stop"]
        await operator.send_json({"do": "request", "verb": "arm", "id": 9})
        assert (await reply(operator, 9))["data"] == {"verb": "arm"}


async def test_a_session_that_ended_can_command_nothing_more() -> None:
    async with site() as page:
        cookie = await page.sign_in(OPERATOR)
        ws = await page.talk(cookie)
        await page.http.post(f"{page.url}/logout", headers={"Cookie": cookie, "Origin": page.url})
        await ws.send_json({"do": "stop", "engaged": True, "id": 1})
        async with asyncio.timeout(60):
            while (await ws.receive()).type is aiohttp.WSMsgType.TEXT:
                pass
        assert page.bridge.sent == []


async def test_more_commands_than_a_hand_can_make_are_refused() -> None:
    async with site() as page:
        ws = await page.talk(await page.sign_in(OPERATOR))
        for number in range(1, 61):
            await ws.send_json({"do": "reward", "value": 1, "id": number})
        assert "too many" in str((await reply(ws, 0))["error"])
        assert len(page.bridge.sent) < 60


@pytest.mark.parametrize("text", ["", "{", "[]", '{"do":"sudo"}', "null", '{"do":"stop","engaged":"yes"}', "9" * 5_000])
async def test_nonsense_on_the_web_socket_is_answered_and_survived(text: str) -> None:
    async with site() as page:
        ws = await page.talk(await page.sign_in(OPERATOR))
        await ws.send_str(text)
        assert (await reply(ws, 0))["error"]
        await ws.send_bytes(b"binary is not expected")
        async with asyncio.timeout(60):
            while (await ws.receive()).type is aiohttp.WSMsgType.TEXT:
                pass
        assert page.bridge.sent == []


async def test_a_huge_message_ends_only_its_own_connection() -> None:
    async with site() as page:
        cookie = await page.sign_in(OPERATOR)
        ws, other = await page.talk(cookie), await page.talk(cookie)
        await ws.send_str("x" * 200_000)
        async with asyncio.timeout(60):
            while (await ws.receive()).type is aiohttp.WSMsgType.TEXT:
                pass
        await other.send_json({"do": "reward", "value": 1, "id": 1})
        assert (await reply(other, 1))["data"] == {}


async def test_pictures_go_only_to_those_who_look() -> None:
    async with site() as page:
        cookie = await page.sign_in(VIEWER)
        looking, other = await page.talk(cookie), await page.talk(cookie)
        await looking.send_json({"do": "subscribe_previews", "streams": ["front"]})
        await comes(page.hub, lambda hub: hub.watched == ["front"])
        page.hub.state.stream_views.pictures["front"] = b"\xff\xd8\xffpicture"
        page.hub.state.stream_views.picture_counts["front"] = 1
        async with asyncio.timeout(60):
            while (got := await looking.receive()).type is not aiohttp.WSMsgType.BINARY:
                pass
        assert got.data == b"\x05front\xff\xd8\xffpicture"
        await other.send_json({"do": "request", "verb": "checkpoints", "id": 5})
        assert (await reply(other, 5))["data"] == {"verb": "checkpoints"}
        await looking.close()
        await comes(page.hub, lambda hub: hub.watched == [])


async def test_a_browser_that_never_reads_is_dropped_and_the_others_go_on() -> None:
    async with site() as page:
        page.hub.patience_s = 3.0
        cookie = await page.sign_in(VIEWER)
        other = await page.talk(cookie)
        deaf = socket.create_connection(("127.0.0.1", page.port))
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        deaf.sendall(
            f"GET /socket HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\nOrigin: {page.url}\r\nCookie: {cookie}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        await comes(page.hub, lambda hub: len(hub.clients) == 2)
        page.hub.state.set("info", [secrets.token_hex(8_000_000)])  # cannot be compressed
        async with asyncio.timeout(60):
            while "info" not in json.loads((await other.receive()).data).get("values", {}):
                pass
        await comes(page.hub, lambda hub: len(hub.clients) == 1)
        assert page.hub.dropped == 1
        deaf.close()
        await other.close()


async def test_viewers_are_limited_in_all_and_by_address_and_never_keep_an_operator_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runtime.dashboard.browsers.VIEWERS_PER_ADDRESS", 2)
    async with site() as page:
        viewer, operator = await page.sign_in(VIEWER), await page.sign_in(OPERATOR)
        viewers = [await page.talk(viewer) for _ in range(2)]
        await comes(page.hub, lambda hub: len(hub.clients) == 2)
        with pytest.raises(WSServerHandshakeError) as refused:
            await page.talk(viewer)
        assert refused.value.status == 503
        ws = await page.talk(operator)
        await ws.send_json({"do": "stop", "engaged": True, "id": 1})
        assert (await reply(ws, 1))["data"] == {"sent": True, "rule": None}
        monkeypatch.setattr("runtime.dashboard.browsers.VIEWERS_PER_ADDRESS", 9)
        monkeypatch.setattr("runtime.dashboard.browsers.MAX_VIEWERS", 2)
        with pytest.raises(WSServerHandshakeError):
            await page.talk(viewer)
        assert all(not each.closed for each in viewers)
        for each in (*viewers, ws):
            await each.close()


async def test_one_operator_more_takes_the_place_of_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.dashboard.browsers.MAX_OPERATORS", 2)
    async with site() as page:
        operator = await page.sign_in(OPERATOR)
        oldest, middle = await page.talk(operator), await page.talk(operator)
        await comes(page.hub, lambda hub: len(hub.clients) == 2)
        newest = await page.talk(operator)
        async with asyncio.timeout(60):
            while (await oldest.receive()).type is aiohttp.WSMsgType.TEXT:
                pass
        assert oldest.close_code == REPLACED
        for ws in (middle, newest):
            await ws.send_json({"do": "stop", "engaged": True, "id": 1})
            assert (await reply(ws, 1))["data"] == {"sent": True, "rule": None}


async def test_connections_held_open_block_no_other_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.process.http_server.MAX_PER_ADDRESS", 20)
    async with site() as page:
        held = await page.talk(await page.sign_in(OPERATOR))
        silent = [socket.create_connection(("127.0.0.1", page.port)) for _ in range(60)]
        for each in silent[::2]:
            each.sendall(b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50\r\nContent-Type: ")
        answers = []
        for _ in range(10):  # while the attack goes on
            silent += [socket.create_connection(("127.0.0.1", page.port)) for _ in range(5)]
            answers.append(await page.sign_in(OPERATOR))
        assert len(answers) == 10
        await held.send_json({"do": "stop", "engaged": True, "id": 1})
        assert (await reply(held, 1))["data"] == {"sent": True, "rule": None}
        for each in silent:
            each.close()


async def test_a_connection_without_a_whole_request_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.process.http_server.REQUEST_S", 0.3)
    monkeypatch.setattr("runtime.dashboard.access.sign_in.FORM_S", 0.3)
    async with site() as page:
        started, contention = asyncio.get_running_loop().time(), Contention()
        for head in (b"", b"GET / HTTP/1.1\r\nHost: 127"):
            reader, writer = await asyncio.open_connection("127.0.0.1", page.port)
            writer.write(head)
            assert await asyncio.wait_for(reader.read(), 60) == b""
            writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", page.port)
        writer.write(
            b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50\r\n"
            b"Content-Type: application/x-www-form-urlencoded\r\n\r\ntoken="
        )
        assert b" 408 " in await asyncio.wait_for(reader.readline(), 60)
        writer.close()
        await writer.wait_closed()
        assert asyncio.get_running_loop().time() - started < 8 + contention.s
        ws = await page.talk(await page.sign_in(OPERATOR))
        await asyncio.sleep(1.0)  # longer than every limit
        await ws.send_json({"do": "stop", "engaged": True, "id": 1})
        assert (await reply(ws, 1))["data"] == {"sent": True, "rule": None}, "a web socket is not cut"


def test_addresses_are_counted_by_network() -> None:
    assert network("10.1.2.3") == network("::ffff:10.1.2.3") == "10.1.2.3"
    assert network("2001:db8::1") == network("2001:db8::ffff:1") != network("2001:db8:0:1::1")
    assert network("fe80::1%eth0") == "fe80::/64"
    assert network(None) == ""
    assert network("/run/socket") == "/run/socket"


def test_of_many_connections_the_address_that_has_most_gives_way() -> None:
    cut: list[str] = []

    class Connection:
        def __init__(self, name: str, *, protected: bool = False, has_begun: bool = False) -> None:
            self.name, self.protected, self.has_begun = name, protected, has_begun

        def cut(self) -> None:
            cut.append(self.name)

    admission = Admission(limit=4, per_address=3)
    for name, peer, protected in [
        ("socket", "attacker", True),
        ("a1", "attacker", False),
        ("p1", "person", False),
        ("a2", "attacker", False),
        ("a3", "attacker", False),
        ("p2", "person", False),
    ]:
        admission.admit(Connection(name, protected=protected), peer)  # type: ignore[arg-type]
    assert cut == ["a1", "a2"]
    assert admission.refused == {"too many connections": 2}
    full = Admission(limit=1, per_address=1)
    full.admit(Connection("socket", protected=True), "x")  # type: ignore[arg-type]
    full.admit(Connection("new"), "y")  # type: ignore[arg-type]
    assert cut[2:] == ["new"]
    one = Admission(limit=9, per_address=2)
    for name, begun in (("served", True), ("silent", False), ("another", False)):
        one.admit(Connection(name, has_begun=begun), "z")  # type: ignore[arg-type]
    assert cut[3:] == ["silent"]


async def test_a_stop_that_no_gate_took_is_an_error() -> None:
    async with site() as page:
        page.bridge.refuses = True
        ws = await page.talk(await page.sign_in(OPERATOR))
        await ws.send_json({"do": "stop", "engaged": True, "id": 1})
        assert "no gate received it" in str((await reply(ws, 1))["error"])


async def test_a_browser_gets_differences_and_a_beat() -> None:
    async with site() as page:
        ws = await page.talk(await page.sign_in(VIEWER))
        page.hub.state.set("status", {"state": "online"})

        async def next_news() -> dict[str, object]:
            async with asyncio.timeout(60):
                return dict(json.loads((await ws.receive()).data))

        while "status" not in str((await next_news()).get("values")):
            pass
        assert set(await next_news()) == {"now", "replies"}, "nothing changed: a beat"


ATTACKS = [
    {"data": b"token=" + b"a" * 10_000},
    {"data": b"token=%ff%fe"},
    {"data": b"\xff\xfe\x00", "headers": {"Content-Type": "application/x-www-form-urlencoded; charset=nonsense"}},
    {"data": b"--x\r\n\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
    {"data": b"{}", "headers": {"Content-Type": "application/json"}},
    {"data": b"", "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
    {"data": b"token[]=a&token=", "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
]


@pytest.mark.parametrize("attack", ATTACKS)
async def test_odd_logins_are_the_senders_fault(attack: dict[str, object]) -> None:
    async with site() as page:
        answer = await page.http.post(f"{page.url}/login", **attack)  # type: ignore[arg-type]
        assert 400 <= answer.status < 500


RAW = st.builds(
    lambda method, path, headers, body: (
        b"%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\n%s\r\n%s" % (method, path, headers, body)
    ),
    st.sampled_from([b"GET", b"POST", b"PUT", b"OPTIONS", b"TRACE", b"CONNECT", b"\x00", b"get"]),
    st.sampled_from(
        [
            b"/",
            b"/login",
            b"/logout",
            b"/socket",
            b"/static/app.js",
            b"//",
            b"*",
            b"/%00",
            b"/\xff",
            b"/login?token=x",
            b"/" + b"a" * 9_000,
        ]
    )
    | st.binary(min_size=1, max_size=30),
    st.sampled_from(
        [
            b"",
            b"Content-Length: -1\r\n",
            b"Content-Length: 99999999\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Cookie: reflexd_demo=\xff\r\n",
            b"Cookie: " + b"a=b;" * 3_000 + b"\r\n",
            b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
            b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 3\r\n",
            b"Origin: \xc3\x28\r\n",
        ]
    ),
    st.binary(max_size=40),
)


def test_no_bytes_make_the_server_fail() -> None:
    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(RAW)
    def attack(raw: bytes) -> None:
        with socket.create_connection(("127.0.0.1", port)) as out:
            out.settimeout(60)
            out.sendall(raw)
            out.shutdown(socket.SHUT_WR)
            received = b""
            while chunk := out.recv(65_536):
                received += chunk
        statuses = [int(code) for code in re.findall(rb"HTTP/1\.[01] (\d{3})", received)]
        assert all(status < 500 for status in statuses), (raw, statuses)
        assert b"Traceback" not in received

    async def attacked() -> None:
        nonlocal port
        async with site() as page:
            port = page.port
            await asyncio.to_thread(attack)
            assert (await page.http.get(f"{page.url}/login")).status == 200

    port = 0
    asyncio.run(attacked())


def test_no_file_of_the_page_has_a_script_or_style_inside() -> None:
    for name, body in static_files().items():
        if name.endswith(".html"):
            text = body.decode()
            assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", text), name


def test_settings_that_cannot_serve_are_reported(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["/nonexistent.yaml"]) == 2
    assert "nonexistent" in capsys.readouterr().err
