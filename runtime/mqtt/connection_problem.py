"""Why there is no connection, in one sentence with the remedy, and when to log it again.

`Connection` uses it; status, page, `/readyz` and tools show the same sentence. Opens nothing.
"""

from __future__ import annotations

import errno
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import aiomqtt
from aiomqtt.exceptions import MqttConnectError

from runtime.mqtt.aiomqtt_client import TAKEN_OVER, error_text
from runtime.mqtt.connection_types import Address, BrokerSilent, MqttLost
from runtime.mqtt.handshake import HandshakeFailed, NotMqtt

REPEAT_S = (10.0, 60.0, 600.0)
"""Seconds from one warning to the next of the same trouble; the last one counts from then on."""
STEADY_S = 5.0
"""A session that lasted so long was in order."""
SHORT_SESSIONS = 3
"""Consecutive sessions that the broker ended within `STEADY_S`, which mean two clients of one name."""
UNAUTHORISED = frozenset({0x86, 0x87})
"""MQTT 5.0, 3.2.2.2: bad user name or password; not authorized."""
BAD_IDENTIFIER = 0x85
REASONS: dict[int, str] = {
    0x82: "takes the connection for malformed; use a broker that speaks MQTT 5",
    0x84: "does not speak MQTT 5; use a broker that does, as mosquitto 1.6 or later",
    0x88: "is not available; start its service, or wait until it is ready",
    0x89: "is busy; reduce its load, or wait",
    0x8A: "bans this client; remove the ban in the settings of the broker",
    0x8B: "is shutting down; start it again, or wait",
    0x8C: "expects another way to log in; allow user name and password in the settings of the broker",
    0x93: "received too many messages at once; raise its receive maximum",
    0x95: "takes no packet of this size; raise its largest packet",
    0x96: "receives messages too fast; raise its limit of messages a second",
    0x97: "has reached a limit (quota); raise it in the settings of the broker",
    0x98: "ended the session by an administrator; ask who runs the broker",
    0x9A: "stores no retained messages; allow them in the settings of the broker",
    0x9B: "does not support QoS 1; use a broker that does",
    0x9C: "refers to another server; correct mqtt.url",
    0x9D: "has moved to another server; correct mqtt.url",
    0x9F: "accepts no more connections at present; raise its limit of connections a second",
}
"""What a broker's reason code means, with the remedy (MQTT 5.0, 2.4)."""
UNREACHABLE = frozenset({errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN})
MOST_REASONS = 8
"""Different reasons of one trouble that are each logged at once."""
MAX_CHAIN = 8


@dataclass(slots=True)
class ConnectionProblem:
    """The trouble of one connection.

    Args:
        address: of the broker.
        identifier: of the client.
        clock: monotonic seconds.
    """

    address: Address
    identifier: str
    clock: Callable[[], float] = time.monotonic
    _reason: str | None = None
    was_silent: bool = False
    """The newest session ended because the broker was silent: no other client of this name ended it."""
    _is_unproved: bool = False
    """The last session ended in silence, and the broker has not answered in this one."""
    _short: int = 0
    """Sessions in a row that the broker ended within `STEADY_S`."""
    _began_s: float | None = None
    """When the running session began."""
    _logged: set[str] = field(default_factory=set)
    _warned: int = 0
    _next_s: float = float("-inf")

    @property
    def reason(self) -> str | None:
        """What is wrong and what helps; None while the connection is in order."""
        if self._began_s is not None and self.clock() - self._began_s >= STEADY_S:
            self._reset()
        is_in_order = self._began_s is not None and self._short < SHORT_SESSIONS and not self._is_unproved
        return None if is_in_order else self._reason

    @property
    def is_short_lived(self) -> bool:
        """Whether the broker ended the last sessions as soon as they had begun."""
        return self._short >= SHORT_SESSIONS

    def connected(self) -> None:
        """Note the begin of a session; after one in which the broker was silent, it is in order once the broker has answered in it."""
        self._began_s = self.clock()
        self._is_unproved = self.was_silent

    def answered(self) -> None:
        """Note that the broker has acknowledged an echo in this session."""
        self._is_unproved = False

    def ended(self, error: BaseException) -> bool:
        """Note the end of a session, or of an attempt; return whether a warning is due."""
        began_s, self._began_s = self._began_s, None
        now_s = self.clock()
        self.was_silent = began_s is not None and any(isinstance(each, BrokerSilent) for each in _chain(error))
        if began_s is not None and now_s - began_s >= STEADY_S:
            self._reset()
        elif began_s is None or self.was_silent:
            self._short = 0
        else:
            self._short += 1
        self._reason = explain(error, self.address, self.identifier)
        if self._short >= SHORT_SESSIONS:
            self._reason = f"{self._short} sessions in a row ended within {STEADY_S:g} s: {same_name(self.identifier)}"
        key = "short" if self._short >= SHORT_SESSIONS else self._reason
        if key in self._logged and now_s < self._next_s:
            return False
        if len(self._logged) < MOST_REASONS:
            self._logged.add(key)
        self._next_s = now_s + REPEAT_S[min(self._warned, len(REPEAT_S) - 1)]
        self._warned += 1
        return True

    def _reset(self) -> None:
        self._reason, self._short, self._warned, self._next_s = None, 0, 0, float("-inf")
        self._is_unproved = False
        self._logged.clear()


def explain(error: BaseException, address: Address, identifier: str) -> str:
    """Return what is wrong and what helps, in one sentence without any password."""
    host = f"[{address.host}]" if ":" in address.host else address.host
    at = f"{host}:{address.port}"
    for each in _chain(error):
        found = _refusal(each, address, identifier) or _transport(each, address)
        if found is not None:
            return f"{at} {found}"
    return f"{at}: {error_text(error)}"


def _refusal(error: BaseException, address: Address, identifier: str) -> str | None:
    """Return what the broker's reason code means."""
    code = getattr(getattr(error, "rc", None), "value", getattr(error, "rc", None))
    if not isinstance(error, aiomqtt.MqttCodeError) or not isinstance(code, int):
        return None
    user = f"user {address.credentials.username}" if address.credentials else "no user"
    login = f"refuses the login ({user}); correct mqtt.username and mqtt.password, or those of this client"
    meanings = REASONS | dict.fromkeys(UNAUTHORISED, login)
    meanings[TAKEN_OVER] = f"ended the session: {same_name(identifier)}"
    meanings[BAD_IDENTIFIER] = f"refuses the client identifier {identifier}; let the broker accept it"
    if code not in meanings and isinstance(error, MqttConnectError):
        return f"refuses the connection ({error.rc}); the log of the broker has the reason"
    return meanings.get(code)


def _transport(error: BaseException, address: Address) -> str | None:
    """Return what an error of the network or of TLS means."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"has a certificate that is refused: {error.verify_message}; correct mqtt.ca, or the host in mqtt.url"
    if isinstance(error, ssl.SSLError):
        why = error.reason or error
        return f"cannot agree on TLS: {why}; check that this is the TLS port, and mqtt.cert and mqtt.key"
    expected = "no TLS (mqtt://), or mqtt.cert and mqtt.key" if address.tls is not None else "TLS (mqtts://)"
    closes = (
        f"closes the connection without an answer: it may expect {expected}, be full, or be no broker; correct mqtt.url"
    )
    texts: dict[type[BaseException], str] = {
        NotMqtt: "answers, but not in MQTT: another program listens there; correct mqtt.url",
        ConnectionResetError: closes,
        BrokenPipeError: closes,
        ConnectionRefusedError: "is closed: no broker listens there; start it, or correct mqtt.url",
        socket.gaierror: f"is unknown: no address for {address.host}; correct mqtt.url",
        TimeoutError: "does not answer; check mqtt.url, the network and the firewall",
    }
    if error.__cause__ is None:
        texts[HandshakeFailed] = closes
    if isinstance(error, OSError) and error.errno in UNREACHABLE:
        texts[OSError] = f"cannot be reached from this machine ({error.strerror}); check its network, and mqtt.url"
    if isinstance(error, OSError) and error.errno == errno.EINVAL:
        texts[OSError] = "is not an address that accepts connections; correct mqtt.url"
    return next((text for kind, text in texts.items() if isinstance(error, kind)), None)


def same_name(identifier: str) -> str:
    """Return the text for two clients of one identifier, which end each other's sessions."""
    return f"another client uses the identifier {identifier}; give each daemon its own name (agent:)"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from or during."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _chain(inner)
        return
    found: BaseException | None = error
    for _ in range(MAX_CHAIN):
        if found is None:
            return
        yield found
        if isinstance(found, MqttLost):  # its text is whole
            return
        found = found.__cause__ or found.__context__
