"""`python -m runtime.dashboard CONFIG`: the page as a process of its own, an MQTT client and nothing else."""

from __future__ import annotations

import asyncio
import signal
import sys
from ipaddress import ip_address
from pathlib import Path

import structlog

from runtime.config.loader import load_argument
from runtime.config.schema import Config, DashboardSettings
from runtime.dashboard.access.auth import access
from runtime.dashboard.access.session_file import SESSIONS, stored_sessions
from runtime.dashboard.broker_connections import MqttBridge
from runtime.dashboard.browsers import Hub
from runtime.dashboard.commands import CommandPublisher
from runtime.dashboard.server import Page
from runtime.dashboard.settings_file import SettingsFile
from runtime.dashboard.view_state import ViewState
from runtime.mqtt import Address
from runtime.mqtt.topics import Topics
from runtime.process import child
from runtime.process.http_server import address, serve
from runtime.process.log import configure

log = structlog.get_logger(__name__)

LEAVE_S = 3.0
"""For connections to close."""


def is_loopback(host: str) -> bool:
    """Return whether only programs of this machine reach the host."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def may_edit(settings: DashboardSettings) -> bool:
    """Return whether operators may edit the settings file on the page."""
    if settings.edit_settings is not None:
        return settings.edit_settings
    return is_loopback(address(settings.listen)[0])


def hosts(settings: DashboardSettings) -> frozenset[str] | None:
    """Return the host names under which the page answers: on loopback only loopback's own, against DNS rebinding."""
    host, _ = address(settings.listen)
    if not is_loopback(host):
        return frozenset((*settings.hosts, host)) if settings.hosts else None
    return frozenset(("localhost", "127.0.0.1", "[::1]", host, f"[{host}]", *settings.hosts))


def token_hint(config: Config, settings: DashboardSettings, path: Path) -> str:
    """Return where the operator's token is, for a browser of this machine."""
    link = f"`reflexd link {path}` prints a link that signs you in."
    if settings.token is not None:
        return f"The operator's token is dashboard.token in {path.absolute()}. {link}"
    return f"The operator's token is in {(config.state_dir / 'token').absolute()}. {link}"


async def run(config: Config, settings: DashboardSettings, path: Path) -> None:
    """Serve the page until cancelled."""
    topics = Topics(config.agent)
    state = ViewState(topics)
    hub = Hub(state)
    bridge = MqttBridge(Address.of(config.mqtt, "dashboard"), topics, state, lambda: hub.watched)
    hub.watch_changed = bridge.watch_changed.set
    roles = access(config, settings)
    commands = CommandPublisher(topics, bridge, state.answered, SettingsFile(path, may_edit(settings)))
    page = Page(config.agent, roles, hub, commands, hosts(settings), token_hint(config, settings, path))
    async with stored_sessions(roles, config.state_dir / SESSIONS), serve(page.application(), settings.listen) as port:
        log.info("dashboard.listening", address=f"{settings.listen.rpartition(':')[0]}:{port}")
        await bridge.run()


async def until_signal(config: Config, settings: DashboardSettings, path: Path) -> None:
    """Serve until SIGTERM or SIGINT; then end within `LEAVE_S`, whatever a connection still waits for."""
    signalled = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled.set)
    serving = asyncio.create_task(run(config, settings, path), name="dashboard")
    waiting = asyncio.create_task(signalled.wait(), name="signal")
    await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        waiting.cancel()
        await serving
    serving.cancel()
    _, unfinished = await asyncio.wait((serving,), timeout=LEAVE_S)
    log.info("dashboard.stopped", in_time=not unfinished)


def main(arguments: list[str]) -> int:
    """The process; 0 after a signal, 2 for settings that cannot be used, 1 where the port or token file cannot."""
    loaded = load_argument(arguments)
    if loaded is None:
        return 2
    config = loaded.config
    if config.dashboard is None:
        sys.stderr.write("there is no `dashboard:` in this settings file; add `dashboard: {}`\n")
        return 2
    child.set_process_title("dashboard")
    configure(secrets=loaded.secrets)
    try:
        asyncio.run(until_signal(config, config.dashboard, Path(arguments[0])))
    except (OSError, ValueError) as error:
        sys.stderr.write(f"dashboard: {error}; change dashboard.listen, dashboard.token or state_dir\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
