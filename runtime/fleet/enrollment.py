"""Make what a new agent needs at the fleet's broker: a user with a random password, its access rules, and a piece of settings.

Two files below the server's data folder are for a mosquitto of your own: `enrolled/passwords` and `enrolled/acl`. Each agent may write
its own segments, report and answers to a stop. It may read its own answers, its own stop, that of the group, and the group's policy.
The server's user may do the opposite: no agent stops another one.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from learners.files import locked, private_folder, write_atomically
from runtime.config.mqtt_settings import Credentials
from runtime.fleet.server_settings import FleetServerSettings
from runtime.fleet.stop.messages import StopTopics
from runtime.fleet.topics import SHARED, FleetTopics
from runtime.supervisor.broker import password_line

SERVER = "fleet"
"""User of the server at the broker."""


@dataclass(frozen=True, slots=True)
class Enrollment:
    """What the operator of a device needs."""

    settings: str
    """Piece of the device's settings file."""
    passwords: Path
    acl: Path


def enroll(settings: FleetServerSettings, agent: str, key: Path | None) -> Enrollment:
    """Make a user for an agent, or a new password for one that has a user.

    Args:
        settings: of the server.
        agent: its name, which is its user.
        key: public key of the fleet, for the piece of settings.

    Raises:
        OSError: the files cannot be written.
        ValueError: the agent has the name of the server's user.
    """
    if agent == SERVER:
        raise ValueError(f"{agent} is the user of the server; choose another name")
    topics, password = FleetTopics(settings.group), secrets.token_urlsafe(24)
    folder = settings.data / "enrolled"
    private_folder(folder)
    passwords, acl = folder / "passwords", folder / "acl"
    with locked(folder):
        users = {line.partition(":")[0]: line for line in _lines(passwords)}
        if SERVER not in users and settings.mqtt.password is not None:
            users[SERVER] = password_line(Credentials(username=SERVER, password=settings.mqtt.password)).strip()
        users[agent] = password_line(Credentials.model_validate({"username": agent, "password": password})).strip()
        write_atomically(passwords, _text(users.values()), mode=0o600)
        write_atomically(acl, _text(_rules(topics, [user for user in users if user != SERVER])), mode=0o600)
    return Enrollment(_snippet(settings, agent, password, key), passwords, acl)


def enrolled(settings: FleetServerSettings) -> list[str]:
    """Return the agents that have a user."""
    users = [line.partition(":")[0] for line in _lines(settings.data / "enrolled" / "passwords")]
    return sorted(user for user in users if user != SERVER)


def _rules(topics: FleetTopics, agents: list[str]) -> list[str]:
    """Return the lines of mosquitto's ACL file."""
    stops = StopTopics(topics.group)
    lines = [
        f"user {SERVER}",
        *(f"topic read {topics.up('+')}", f"topic read {SHARED}/{topics.up('+')}"),
        *(
            f"topic write {topics.ack('+')}",
            f"topic read {topics.report('+')}",
            f"topic readwrite {topics.ingest('+')}",
            f"topic readwrite {topics.learner}",
            f"topic read {topics.spec('+')}",
            f"topic read {topics.verdict('+')}",
            f"topic write {stops.of_all}",
            f"topic write {stops.of('+')}",
            f"topic read {stops.answer('+')}",
        ),
        *(f"topic readwrite {topics.policy}", f"topic readwrite {topics.policy}/#", "topic write reflexd/echo/+"),
    ]
    for agent in sorted(agents):
        lines += [
            *("", f"user {agent}", f"topic write {topics.up(agent)}", f"topic write {topics.report(agent)}"),
            *(f"topic write {topics.spec(agent)}", f"topic write {topics.verdict(agent)}"),
            *(f"topic read {topics.ack(agent)}", f"topic read {topics.policy}", f"topic read {topics.policy}/#"),
            *(
                f"topic read {stops.of_all}",
                f"topic read {stops.of(agent)}",
                f"topic write {stops.answer(agent)}",
            ),
            "topic write reflexd/echo/+",
        ]
    return lines


def _snippet(settings: FleetServerSettings, agent: str, password: str, key: Path | None) -> str:
    url = settings.mqtt.url.replace("embedded://", "mqtt://")
    lines = [
        f"agent: {agent}",
        "fleet:",
        f"  group: {settings.group}",
        f"  url: {url}",
        f"  username: {agent}",
        f"  password: {password}",
    ]
    return "\n".join([*lines, *([f"  key: {key}"] if key is not None else [])]) + "\n"


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text().splitlines() if line]
    except FileNotFoundError:
        return []


def _text(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
