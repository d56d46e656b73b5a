"""`configs/mosquitto/` in a real mosquitto: who may write actuator topics, and that no client can take over the gate's session."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import aiomqtt
import canaries
import paho.mqtt.client as paho
import pytest
from aiomqtt import MqttCodeError, MqttError
from free_ports import free_port
from pydantic import SecretStr
from wire_helpers import running

from fakes import Mosquitto, eventually
from runtime.config.mqtt_settings import Credentials
from runtime.mqtt import Address, Connection, Message

FOLDER = Path(__file__).parents[3] / "configs" / "mosquitto"
USERS = (
    *(
        "gate",
        "gate-requests",
        "gate-stop",
        "agent",
        "agent-media",
        "page",
        "page-media",
        "page-stop",
        "status",
        "top",
        "request",
        "mcp",
        "mcp-stop",
        "fleet",
        "device",
        "home",
    ),
    "head",
)
NOT_AUTHORIZED = 0x87
COMMAND = "reflexd/demo/act/head/set"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    folder = tmp_path_factory.mktemp("acl")
    folder.chmod(0o755)  # mosquitto gives up root and must still read this
    passwords = folder / "passwords"
    tool = shutil.which("mosquitto_passwd")
    assert tool, "mosquitto_passwd is missing: apt-get install mosquitto"
    passwords.touch()
    for user in USERS:
        subprocess.run([tool, "-b", str(passwords), user, f"{canaries.MQTT}-{user}"], check=True, capture_output=True)
    shutil.copy(FOLDER / "acl", folder / "acl")
    for path in (passwords, folder / "acl"):
        path.chmod(0o644)
    port = free_port()
    text = (FOLDER / "mosquitto.conf").read_text()
    text = text.replace("listener 1883", f"listener {port} 127.0.0.1\nuser root").replace("/etc/mosquitto", str(folder))
    mosquitto = Mosquitto(folder, port, extra=text)
    yield mosquitto.start()
    mosquitto.stop()


def client(broker: Mosquitto, user: str, password: str | None = None, identifier: str | None = None) -> aiomqtt.Client:
    return aiomqtt.Client(
        "127.0.0.1",
        broker.port,
        username=user,
        password=password or f"{canaries.MQTT}-{user}",
        identifier=identifier or f"any-{user}",
        protocol=aiomqtt.ProtocolVersion.V5,
        timeout=60,
    )


async def write(broker: Mosquitto, user: str, topic: str) -> int:
    """The reason code of a QoS 1 publish: 0x00 or 0x10 (no subscriber) when taken."""
    codes: list[int] = []
    async with client(broker, user) as out:

        def published(_client: paho.Client, _data: object, _mid: int, code: object, _properties: object) -> None:
            codes.append(int(getattr(code, "value", 0)))

        previous = out._client.on_publish

        def both(*args: object) -> None:
            published(*args)  # type: ignore[arg-type]
            assert previous is not None
            previous(*args)  # type: ignore[arg-type]

        out._client.on_publish = both  # type: ignore[assignment]
        try:
            await out.publish(topic, b"{}", qos=1)
        except MqttCodeError as error:
            codes.append(int(getattr(error.rc, "value", error.rc)))
    return codes[0]


@pytest.mark.parametrize("user", [user for user in USERS if user != "gate"])
async def test_only_the_gate_writes_commands(guarded: Mosquitto, user: str) -> None:
    assert await write(guarded, user, COMMAND) == NOT_AUTHORIZED
    assert await write(guarded, user, "zigbee2mqtt/lamp/set") == NOT_AUTHORIZED


async def test_the_gate_writes_commands_and_devices_hear_them(guarded: Mosquitto) -> None:
    async with client(guarded, "device") as device:
        await device.subscribe("reflexd/+/act/+/set", qos=1)
        assert await write(guarded, "gate", COMMAND) == 0
        message = await anext(aiter(device.messages))
        assert str(message.topic) == COMMAND


@pytest.mark.parametrize(
    ("user", "topic", "may"),
    [
        ("gate", "reflexd/demo/status", True),
        ("agent", "reflexd/demo/status", False),
        ("agent", "reflexd/demo/decision", True),
        ("agent", "reflexd/demo/response/page/any", True),
        ("agent", "reflexd/demo/response/page-stop/any", False),
        ("agent", "reflexd/demo/response/mcp-stop/any", False),
        ("agent", "reflexd/demo/response/fleet-stop/any", False),
        ("fleet", "reflexd/demo/stop", True),
        ("fleet", "reflexd/demo/request/arm", False),
        ("fleet", "reflexd/demo/override/head", False),
        ("agent", "reflexd/demo/stop", False),
        ("agent", "$a2a/v1/discovery/com.example/home/demo", True),
        ("device", "$a2a/v1/discovery/com.example/home/demo", False),
        ("agent", "reflexd/demo/override/head", False),
        ("page", "reflexd/demo/stop", True),
        ("page", "reflexd/demo/decision", False),
        ("page", "reflexd/demo/status", False),
        ("page-media", "reflexd/demo/stop", False),
        ("page-stop", "reflexd/demo/stop", True),
        ("page-stop", "reflexd/demo/request/arm", False),
        ("page-stop", "reflexd/demo/override/head", False),
        ("mcp", "reflexd/demo/request/arm", True),
        ("mcp", "reflexd/demo/reward", False),
        ("mcp", "reflexd/demo/goal", False),
        ("mcp-stop", "reflexd/demo/stop", True),
        ("mcp-stop", "reflexd/demo/request/arm", False),
        ("top", "reflexd/demo/stop", False),
        ("status", "reflexd/demo/request/arm", False),
        ("request", "reflexd/demo/request/explain", True),
        ("request", "reflexd/demo/stop", False),
        ("gate-requests", "reflexd/demo/hold/head", True),
        ("page", "reflexd/demo/hold/head", False),
        ("gate-requests", "reflexd/demo/status", False),
        ("gate-stop", "reflexd/demo/stop", False),
        ("gate-stop", "reflexd/demo/status", False),
        ("gate-stop", "reflexd/echo/gate-stop", True),
        ("gate-requests", "reflexd/demo/stop", False),
        ("gate-requests", "reflexd/demo/response/arm", True),
        ("device", "reflexd/demo/act/head/state", False),
        ("device", "reflexd/demo/in/front", True),
        ("head", "reflexd/demo/act/head/state", True),
        ("head", "reflexd/demo/act/arm/state", False),
        ("device", "reflexd/demo/request/arm", False),
        ("home", "reflexd/demo/request/mode", True),
        ("home", "reflexd/demo/act/head/state", False),
    ],
)
async def test_each_user_writes_its_own_topics_only(guarded: Mosquitto, user: str, topic: str, *, may: bool) -> None:
    assert (await write(guarded, user, topic) != NOT_AUTHORIZED) is may


async def test_without_a_password_no_one_gets_in(guarded: Mosquitto) -> None:
    with pytest.raises(MqttError):
        async with client(guarded, "gate", password="guess"):
            pass


async def test_no_client_takes_over_the_gates_session_by_its_identifier(guarded: Mosquitto) -> None:
    async with client(guarded, "gate", identifier="reflexd-demo-gate") as gate:
        async with client(guarded, "home", identifier="gate") as thief:
            await thief.publish("reflexd/demo/reward", b"{}", qos=1)
        async with client(guarded, "home", identifier="reflexd-demo-gate") as thief:
            await thief.publish("reflexd/demo/reward", b"{}", qos=1)
        await gate.publish(COMMAND, b"{}", qos=1)
        assert gate._client.is_connected(), "the session is still there"


@pytest.mark.parametrize("qos", [0, 1])
async def test_a_stop_of_any_qos_is_stored_while_the_second_listener_is_away(guarded: Mosquitto, qos: int) -> None:
    received: list[Message] = []
    login = Credentials(username="gate-stop", password=SecretStr(f"{canaries.MQTT}-gate-stop"))
    listener = Connection(Address("127.0.0.1", guarded.port, login), "gate-stop", session_s=60)
    listener.subscribe("reflexd/demo/stop", received.append)
    async with running(listener):
        pass
    async with client(guarded, "page") as page:
        await page.publish("reflexd/demo/stop", b'{"engaged": true}', qos)
    async with running(listener):
        await eventually(lambda: bool(received))
    assert received[0].resumed
