"""The supervisor in the test's own process, with fake children behind its own embedded broker."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import canaries
import orjson
import pytest
from faults.harness import SLEEPER, Device, agent_row, device_on
from faults.supervised import filled
from free_ports import free_port
from wire_helpers import Manager, address, running

from fakes import eventually
from learners.files import exclusive_lock
from runtime.config.loader import load
from runtime.config.schema import Config
from runtime.gate.host import GateHost
from runtime.mqtt import Connection
from runtime.process import child
from runtime.process.log import Scrubber
from runtime.process.systemd import Notifier
from runtime.supervisor import supervisor
from runtime.supervisor.child_processes import Spec, environment, table
from runtime.supervisor.supervisor import Supervisor

CONFIG = """\
agent: tester
tick: {{rate_hz: 20}}
state_dir: {state}
mqtt: {{url: "embedded://127.0.0.1:{port}", {login}}}
streams:
  joints: {{kind: telemetry, source: topic, fields: [a]}}
actuators:
  head: {{kind: choice, choices: [left, stay, right], safe: stay}}
gate: {{reconcile_s: 0.2}}
learner: {{enabled: false}}
"""


@dataclass
class Run:
    """A daemon under test."""

    supervisor: Supervisor
    path: Path
    port: int
    task: asyncio.Task[int]
    operator: Connection
    device: Device

    async def reload(self) -> dict[str, object]:
        answer = await self.operator.request(
            "reflexd/tester/request/reload", b"", reply_to="reflexd/tester/response/operator", timeout_s=20
        )
        body: dict[str, object] = orjson.loads(answer.payload)
        return body


def specs(config: Config, *rows: list[object]) -> list[Spec]:
    return [
        Spec(str(name), tuple(child.with_parent_death(filled(list(command), config))), linked=bool(linked), grace_s=3)  # type: ignore[call-overload]
        for name, linked, command in rows
    ]


@asynccontextmanager
async def daemon(folder: Path, *rows: list[object], notifier: Notifier | None = None) -> AsyncIterator[Run]:
    port = free_port()
    path = folder / "tester.yaml"
    path.write_text(CONFIG.format(state=folder / "state", port=port, login=canaries.LOGIN_YAML))
    loaded = load(path)
    (folder / "state").mkdir(exist_ok=True)
    made = Supervisor(
        loaded.config,
        path,
        loaded.text,
        lambda: specs(loaded.config, *rows),
        notifier or Notifier(),
        scrubber=Scrubber(),
    )
    task = asyncio.create_task(made.run())
    try:
        await eventually(lambda: len(made.children) == len(rows) or task.done(), "the start")
        async with device_on(port) as device, running(Connection(address(port), "operator")) as operator:
            yield Run(made, path, port, task, operator, device)
    finally:
        if not task.done():
            made.handle_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            await asyncio.wait([task])


async def test_a_whole_life(tmp_path: Path) -> None:
    manager = Manager(str(tmp_path / "notify"))
    with closing(manager.socket):
        async with daemon(
            tmp_path, agent_row(), ["other", False, SLEEPER], notifier=Notifier(manager.address, watchdog_s=1.0)
        ) as run:
            await run.device.moving()
            await run.device.moving()
            assert run.device.statuses[-1]["state"] == "online"
            run.supervisor.handle_signal(signal.SIGTERM)
            await asyncio.wait([run.task])
            await eventually(lambda: run.device.value == "stay", "the last safe action")
            parting = {"state": "offline", "reasons": ["SIGTERM received"]}
            await eventually(lambda: run.device.statuses[-1] == parting, "the parting status")
        assert run.task.result() == 0
        reported = [line for message in manager.got() for line in message.split("\n")]
    assert reported.index("READY=1") < reported.index("WATCHDOG=1") < reported.index("STOPPING=1")
    assert any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in reported)


async def test_reload(tmp_path: Path) -> None:
    async with daemon(tmp_path, agent_row(), ["learner", False, SLEEPER]) as run:
        await run.device.moving()
        agent = run.supervisor._child("agent")
        assert agent is not None
        assert agent.process is not None
        before = agent.process.pid
        assert await run.reload() == {
            "status": "ok",
            "data": {"changed": [], "restarted": [], "restart_required": []},
        }
        text = run.path.read_text()
        run.path.write_text(text + "modus: shadow\n")
        refused = await run.reload()
        assert refused["status"] == "error"
        assert "modus" in str(refused["error"])
        run.path.write_text(text.replace("rate_hz: 20", "rate_hz: 10"))
        assert (await run.reload())["data"] == {"changed": ["tick"], "restarted": [], "restart_required": ["tick"]}
        run.path.write_text(text.replace("fields: [a]", "fields: [a], required: true"))
        assert (await run.reload())["data"]["restart_required"] == ["streams"]  # type: ignore[index]
        run.path.write_text(text + "policy: {history: 2}\n")
        assert (await run.reload())["data"]["restarted"] == ["agent", "learner"]  # type: ignore[index]
        await eventually(lambda: agent.process is not None and agent.process.pid != before, "the new agent")
        await run.device.moving()
        assert agent.restarts == 0
        run.path.write_text(text + "policy: {history: 2}\nmode: shadow\n")
        assert (await run.reload())["data"]["changed"] == ["mode"]  # type: ignore[index]
        assert run.supervisor._host.publisher.mode == "shadow"
        kinds = [event["type"] for event in run.device.events]
    assert "reload_refused" in kinds
    assert "reloaded" in kinds


async def test_a_reload_that_the_disk_refuses_changes_nothing_and_ends_nothing(tmp_path: Path) -> None:
    async with daemon(tmp_path, agent_row(), ["learner", False, SLEEPER]) as run:
        await run.device.moving()
        folder = run.supervisor.config.state_dir / "learner"
        assert not folder.exists(), "the module's own `run` writes it"
        folder.write_text("a file in place of the folder")
        text = run.path.read_text()
        run.path.write_text(text + "mode: shadow\n")
        refused = await run.reload()
        assert refused["status"] == "error"
        assert "nothing was changed" in str(refused["error"])
        assert (run.supervisor.config.mode, run.supervisor._host.publisher.mode) == ("autonomous", "autonomous")
        await run.device.moving()
        folder.unlink()
        assert (await run.reload())["data"]["changed"] == ["mode"]  # type: ignore[index]
        assert not run.task.done()


@pytest.mark.parametrize("part", ["gate", "request"])
async def test_a_fault_of_the_gates_own_code_ends_the_daemon_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """The devices have their safe actions before the process ends, and the status says why."""

    def fail(*_: object) -> None:
        raise RuntimeError("a fault of the code")

    async with daemon(tmp_path, agent_row()) as run:
        await run.device.moving()
        if part == "gate":
            monkeypatch.setattr(GateHost, "tick", fail)
        else:
            monkeypatch.setattr(supervisor, "compare", fail)
            run.operator.enqueue("reflexd/tester/request/reload", b"", qos=1)
        await eventually(lambda: run.device.statuses[-1]["state"] == "offline", "the last status")
        assert run.device.value == "stay"
        assert "a fault of the code" in run.device.statuses[-1]["reasons"][0]
    assert run.task.result() == 1


async def test_a_child_that_cannot_be_started_ends_the_daemon(tmp_path: Path) -> None:
    port = free_port()
    path = tmp_path / "tester.yaml"
    path.write_text(CONFIG.format(state=tmp_path / "state", port=port, login=canaries.LOGIN_YAML))
    loaded = load(path)
    code = await supervisor.run(
        loaded.config, path, children=lambda: [Spec("gone", ("/no/such/binary",))], notifier=Notifier()
    )
    assert code == 1


async def test_a_hanging_agent_is_restarted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.supervisor.agent_watchdog.HUNG_S", 0.5)
    async with daemon(tmp_path, agent_row()) as run:
        await run.device.moving()
        agent = run.supervisor._child("agent")
        assert agent is not None
        assert agent.process is not None
        os.kill(agent.process.pid, signal.SIGSTOP)
        await eventually(lambda: agent.restarts == 1, "the restart")
        await run.device.moving()


async def test_a_reload_restarts_an_agent_that_has_read_other_settings(tmp_path: Path) -> None:
    async with daemon(tmp_path, agent_row()) as run:
        await run.device.moving()
        loaded, channel = load(run.path), run.supervisor._host.channel
        assert run.supervisor._apply(loaded.config, loaded.text)["restarted"] == []
        channel.disagrees = True
        assert run.supervisor._apply(loaded.config, loaded.text)["restarted"] == ["agent"]


async def test_a_taken_port_and_a_busy_folder_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tester.yaml"
    async with daemon(tmp_path) as run:
        code = await supervisor.run(load(path).config, path, children=list, notifier=Notifier())
        assert code == supervisor.CANNOT_BEGIN
        assert not run.task.done()
    with exclusive_lock(tmp_path / "state"):
        code = await supervisor.run(load(path).config, path, children=list, notifier=Notifier())
    assert code == supervisor.CANNOT_BEGIN


@pytest.mark.parametrize(
    "mqtt", ["{url: 'embedded://0.0.0.0:1'}", "{url: 'mqtts://127.0.0.1:1', ca: nothing.pem}"], ids=["exposed", "no ca"]
)
async def test_what_only_the_settings_mend_is_not_tried_again(tmp_path: Path, mqtt: str) -> None:
    path = tmp_path / "tester.yaml"
    text = CONFIG.format(state=tmp_path / "state", port=1, login="").replace('{url: "embedded://127.0.0.1:1", }', mqtt)
    path.write_text(text)
    (tmp_path / "state").mkdir()
    code = await supervisor.run(load(path).config, path, children=list, notifier=Notifier())
    assert code == supervisor.MEND_SETTINGS == 2


async def test_the_embedded_broker_is_restarted(tmp_path: Path) -> None:
    async with daemon(tmp_path, agent_row()) as run:
        await run.device.moving()
        broker = run.supervisor._broker
        assert broker is not None
        broker.kill()
        await eventually(lambda: broker.restarts == 1, "the restart")
        await run.device.moving()
        await eventually(lambda: run.device.statuses[-1]["state"] == "online")


THREADS = """
import os, numpy
numpy.ones((300, 300)) @ numpy.ones((300, 300))
print(len(os.listdir("/proc/self/task")), os.environ["OPENBLAS_THREAD_TIMEOUT"])
"""


def test_threads_of_numpy_never_run_while_they_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of OpenBLAS that waits by running took three quarters of a core beside the agent of the demo."""
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for count in 1, 2:
        counted = subprocess.run(
            [sys.executable, "-c", THREADS], env=environment(count), capture_output=True, text=True, check=True
        )
        assert counted.stdout.split() == [str(min(count, os.cpu_count() or 1)), "4"]
    assert "OPENBLAS_NUM_THREADS" not in environment()
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "3")
    assert environment(1)["OPENBLAS_NUM_THREADS"] == "3", "what a person sets counts"
    path = tmp_path / "small.yaml"
    path.write_text(
        f"agent: small\nstate_dir: {tmp_path}\nmqtt: {{url: 'mqtt://127.0.0.1:1'}}\nengine: {{threads: 4}}\ndashboard: {{}}\n"
        "streams: {a: {kind: telemetry, fields: [x]}}\nactuators: {lamp: {kind: choice, choices: [on1, off1], safe: off1}}\n"
    )
    blas = {spec.name: spec.blas_threads for spec in table(load(path).config, path)}
    assert blas == {"agent": 4, "stop listener": 1, "learner": None, "dashboard": 1}


def test_no_torch_in_the_supervisor() -> None:
    code = "import sys, runtime.supervisor.supervisor; print(sorted({'torch', 'numpy', 'cv2', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, check=True)
    assert done.stdout == b"[]\n"
