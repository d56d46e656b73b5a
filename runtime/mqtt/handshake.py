"""Find out why a connect fails between the open socket and the broker's answer.

aiomqtt waits for its time limit when the other side closes the connection, answers in another protocol, or refuses a certificate
of TLS 1.3, and then names none of it. `Connection` uses this module; `connection_problem` makes a sentence of what it raises.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Any

import aiomqtt
from paho.mqtt.properties import Properties

from runtime.mqtt.packets import FAILURE

CONNACK = 0x20
"""First byte of a broker's answer (MQTT 5.0, 3.2.1)."""


class HandshakeFailed(aiomqtt.MqttError):
    """The other side ended the connection before a broker's answer, or gave another one."""


class NotMqtt(HandshakeFailed):
    """What answers speaks another protocol."""


@dataclass(slots=True)
class Handshake:
    """What arrived before the connect was over."""

    first: bytes = b""
    error: OSError | None = None
    goodbye: Any = None
    """Reason code of a broker that ended the session right after its answer."""
    is_over: bool = False


def watch(client: aiomqtt.Client) -> None:
    """Fail the connect of a client as soon as the other side ends it; call this before the connect."""
    inner: Any = client._client
    receive, ended, connected = inner._sock_recv, inner.on_disconnect, inner.on_connect
    seen = Handshake()
    client._handshake = seen  # type: ignore[attr-defined]

    def read(size: int) -> bytes:
        try:
            data: bytes = receive(size)
        except BlockingIOError:
            raise
        except OSError as error:
            seen.error = error
            raise
        seen.first = seen.first or data[:1]
        return data

    def note_answer(paho_client: Any, userdata: Any, flags: Any, code: Any, properties: Properties) -> None:
        inner._sock_recv = receive
        connected(paho_client, userdata, flags, code, properties)

    def note_end(paho_client: Any, userdata: Any, flags: Any, code: Any, properties: Properties) -> None:
        if not client._connected.done():
            client._connected.set_exception(_failure(seen))
        elif seen.is_over:
            ended(paho_client, userdata, flags, code, properties)
        else:  # aiomqtt would forget it
            seen.goodbye = code

    inner._sock_recv, inner.on_connect, inner.on_disconnect = read, note_answer, note_end


def check(client: aiomqtt.Client) -> None:
    """Note that the connect is over.

    Raises:
        aiomqtt.MqttCodeError: the broker ended the session together with its answer.
    """
    seen: Handshake = client._handshake  # type: ignore[attr-defined]
    seen.is_over = True
    if seen.goodbye is not None:
        raise aiomqtt.MqttCodeError(seen.goodbye)


def cause(client: aiomqtt.Client, error: BaseException) -> BaseException:
    """Return what explains the end of a session best: the other protocol, the broker's own reason, or the error itself."""
    seen: Handshake = client._handshake  # type: ignore[attr-defined]
    if seen.first and seen.first[0] != CONNACK:
        return _failure(seen)
    goodbye = client._disconnected
    if goodbye.done() and not goodbye.cancelled():
        reason = goodbye.exception()
        if getattr(getattr(reason, "rc", None), "value", 0) > FAILURE:  # 0x80 is what paho says without a reason
            assert reason is not None
            return reason
    return error


def _failure(seen: Handshake) -> HandshakeFailed:
    if seen.first and seen.first[0] != CONNACK:
        return NotMqtt("what answers there does not speak MQTT")
    failed = HandshakeFailed("the other side closed the connection")
    if isinstance(seen.error, ssl.SSLError):
        failed.__cause__ = seen.error
    return failed
