"""An embedded broker as a process of its own, for tests that talk to both kinds."""

from __future__ import annotations

import subprocess
from pathlib import Path

from fakes import listening, wait_for
from runtime.config.mqtt_settings import MqttSettings
from runtime.supervisor import broker
from runtime.supervisor.child_processes import environment


def settings(port: int, **more: object) -> MqttSettings:
    return MqttSettings.model_validate({"url": f"embedded://127.0.0.1:{port}"} | more)


class EmbeddedBroker:
    """A broker that runs until `end`."""

    def __init__(self, kind: broker.Kind, folder: Path, port: int, **more: object) -> None:
        prepared = broker.prepare(settings(port, **more), folder, kind)
        self.port = port
        self.kind = kind
        self.process = subprocess.Popen(prepared.command, env=environment())
        wait_for(lambda: listening(port), f"{kind} listening")
        assert broker.accepts("127.0.0.1", port)

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)
