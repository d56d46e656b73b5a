"""Settings of the connection to the broker, and the login of each client."""

from __future__ import annotations

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator

from runtime.config.field_types import GivenPath
from runtime.config.mqtt_names import MOST_BYTES, host_problem, text_problem
from sensors.config import Settings

SCHEMES = {"mqtt": 1883, "mqtts": 8883, "embedded": 1883}
"""Default port of each scheme of `mqtt.url`."""
Client = Literal["gate", "agent", "dashboard", "status", "top", "request", "mcp", "device", "fleet"]
"""The clients of the broker; each may have its own login."""


def _user(name: str) -> str:
    if (problem := text_problem(name)) is not None:
        raise ValueError(f"the user name {problem}")
    return name


def _password(password: SecretStr) -> SecretStr:
    if (length := len(password.get_secret_value().encode(errors="surrogatepass"))) > MOST_BYTES:
        raise ValueError(f"the password has {length} bytes; MQTT has at most {MOST_BYTES}")
    return password


UserName = Annotated[str, Field(min_length=1), AfterValidator(_user)]
Password = Annotated[SecretStr, AfterValidator(_password)]


class Credentials(Settings):
    """The login of one client of the broker."""

    username: UserName = Field(description="user name")
    password: Password | None = Field(None, description="password; default: none")
    media: UserName | None = Field(
        None,
        description="user of the second connection, for images and sound, with the same password. It is needed if the broker "
        "uses the user name as client id (`use_username_as_clientid`)",
    )

    requests: UserName | None = Field(
        None,
        description="user of the gate's second connection, for requests and reports, with the same password. It is needed if "
        "the broker uses the user name as client id",
    )

    stop: UserName | None = Field(
        None,
        description="user of the connection for the stop alone, with the same password: of the gate's stop listener, of the "
        "dashboard or of `reflexd mcp`. Without it, the gate has no stop listener where `requests` is set, and the other two "
        "send the stop on their first connection",
    )

    def for_stop(self) -> Credentials:
        """Return the user of the connection for the stop."""
        return self if self.stop is None else Credentials(username=self.stop, password=self.password)

    def for_requests(self) -> Credentials:
        """Return the user of the gate's second connection."""
        return self if self.requests is None else Credentials(username=self.requests, password=self.password)

    def for_media(self) -> Credentials:
        """Return the user of the second connection."""
        return self if self.media is None else Credentials(username=self.media, password=self.password)


def broker_url(url: str) -> str:
    """Return the address of a broker if it is one.

    Raises:
        ValueError: it is none; no text of `urllib` is repeated, because that may hold a part of a password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(
            "the host and port cannot be read; write SCHEME://HOST:PORT with a port from 1 to 65535, and the user and password "
            "under username: and password:"
        ) from None
    if parts.scheme not in SCHEMES or not parts.hostname:
        raise ValueError("write embedded://HOST:PORT, mqtt://HOST:PORT or mqtts://HOST:PORT")
    if "@" in url:
        raise ValueError("put the user under username: and password:, not into the URL")
    if (problem := host_problem(parts.hostname)) is not None:
        raise ValueError(problem)
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError("nothing may follow the port; topics and options have settings of their own")
    if port is not None and not 0 < port < 65_536:
        raise ValueError("the port must be between 1 and 65535")
    return url


class MqttSettings(Settings):
    """Settings of the connection to the broker."""

    url: str = Field(
        "embedded://127.0.0.1:1883",
        description="`mqtt://HOST:PORT`, `mqtts://HOST:PORT` (TLS), or `embedded://HOST:PORT` for a broker that the daemon starts",
    )
    username: UserName | None = Field(None, description="user of every client without a login below")
    password: Password | None = Field(None, description="password of that user")
    ca: GivenPath | None = Field(
        None, description="file of the certificate authority that signed the broker's certificate"
    )
    cert: GivenPath | None = Field(None, description="file of the client certificate")
    key: GivenPath | None = Field(None, description="file of the client certificate's key")
    gate: Credentials | None = Field(
        None, description="login of the gate, the only user that may write actuator topics; default: `username` above"
    )
    agent: Credentials | None = Field(None, description="login of the agent; default: `username` above")
    dashboard: Credentials | None = Field(None, description="login of the dashboard; default: `username` above")
    status: Credentials | None = Field(
        None,
        description="login of `reflexd status`. Each tool needs its own login if the broker uses the user name as client id",
    )
    top: Credentials | None = Field(None, description="login of `reflexd top`")
    request: Credentials | None = Field(
        None, description="login of verbs that send a request, such as `reflexd explain`"
    )
    mcp: Credentials | None = Field(None, description="login of `reflexd mcp`")
    device: Credentials | None = Field(None, description="login of the simulated device (`plant:`)")
    fleet: Credentials | None = Field(
        None,
        description="login of the uplink at the agent's own broker: it passes on a stop of the fleet and reads the status",
    )
    keepalive_s: int = Field(
        2, ge=1, le=600, description="MQTT keep-alive; a broker that stops answering is detected within half of it"
    )

    @field_validator("url")
    @classmethod
    def _url(cls, url: str) -> str:
        return broker_url(url)

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.password is not None and self.username is None:
            raise ValueError("mqtt.password: it belongs to no user; add username")
        if self.scheme != "mqtts" and (given := [name for name in ("ca", "cert", "key") if getattr(self, name)]):
            raise ValueError(
                f"mqtt.{given[0]}: {self.scheme}:// is not encrypted and does not use it; write mqtts://, or leave it out"
            )
        if self.scheme == "embedded":
            self._check_users()
        return self

    def _check_users(self) -> None:
        """Refuse users that a password file cannot hold: one with a colon, or with two passwords."""
        passwords: dict[str, SecretStr | None] = {}
        given = [("mqtt", self.username, self.password)]
        given += [(f"mqtt.{client}", login.username, login.password) for client, login in self.logins.items()]
        for where, name, password in given:
            if name is None:
                continue
            if ":" in name:
                raise ValueError(
                    f"{where}.username: the embedded broker has no user names with a colon; choose another"
                )
            if passwords.setdefault(name, password) != password:
                raise ValueError(
                    f"{where}.password: {name!r} has another password elsewhere under mqtt; write the same one"
                )

    @property
    def scheme(self) -> str:
        """`mqtt`, `mqtts` or `embedded`."""
        return urlsplit(self.url).scheme

    @property
    def host(self) -> str:
        """The broker's host."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The broker's port."""
        parts = urlsplit(self.url)
        return parts.port or SCHEMES[parts.scheme]

    @property
    def logins(self) -> dict[Client, Credentials]:
        """The logins of single clients, by client."""
        own: dict[Client, Credentials | None] = {
            "gate": self.gate,
            "agent": self.agent,
            "dashboard": self.dashboard,
            "status": self.status,
            "top": self.top,
            "request": self.request,
            "mcp": self.mcp,
            "device": self.device,
            "fleet": self.fleet,
        }
        return {client: login for client, login in own.items() if login is not None}

    def credentials(self, client: Client) -> Credentials | None:
        """Return the login of a client; None for a broker without logins.

        Raises:
            ValueError: other clients have logins, and this one has none. It must not use theirs: if the broker uses the
                user name as client id, two clients with one login end each other's sessions.
        """
        logins = self.logins
        if client in logins:
            return logins[client]
        if self.username is not None:
            return Credentials(username=self.username, password=self.password)
        if logins:
            raise ValueError(
                f"mqtt.{client}: missing, while mqtt.{', mqtt.'.join(logins)} have a login of their own; "
                f"add mqtt.{client}: {{username, password}}, or mqtt.username for all others"
            )
        return None
