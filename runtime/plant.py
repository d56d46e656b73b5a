"""Puts a simulated device behind the broker, in real time: `reflexd plant` and the child that `plant:` starts.

The device itself (actuators/) knows topics and payloads and nothing of connections; this carries them. It is a process of its
own and reaches the daemon over MQTT alone, as a real device would.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import structlog
import yaml
from pydantic import ValidationError

from actuators.sim.plant import Plant, PlantFault
from actuators.sim.registry import build_plant, plant_settings
from actuators.wire import DeviceMessage
from runtime.config.loader import load
from runtime.config.mqtt_settings import MqttSettings
from runtime.mqtt import Address, Connection, Message
from runtime.process import child, log
from runtime.process.foreign_output import foreign_output
from runtime.process.pacing import MonotonicClock, Pacer

_LOG = structlog.get_logger(__name__)


def run_plant(environment: str, *, agent: str, mqtt: MqttSettings, seed: int, rate_hz: float | None) -> None:
    """Run until Ctrl-C.

    Raises:
        ValueError: no such environment, or its spaces have no counterpart among streams and actuators.
    """
    log.configure()
    asyncio.run(serve(build_plant(environment, agent=agent, seed=seed, rate_hz=rate_hz), mqtt, agent))


def broker(url: str) -> MqttSettings:
    """Return the broker of an address without login.

    Raises:
        ValueError: what is wrong with it; the address is not repeated, because it may contain a password.
    """
    try:
        return MqttSettings(url=url)
    except ValidationError as error:
        problems = "; ".join(str(detail["msg"]).removeprefix("Value error, ") for detail in error.errors())
        raise ValueError(f"--mqtt: {problems}; a login belongs into a file given with --settings") from None


def print_config(environment: str, agent: str, url: str, rate_hz: float | None) -> None:
    """Print the settings file of an agent that controls this environment, and nothing that the environment prints."""
    with foreign_output():
        settings = plant_settings(environment, agent=agent, rate_hz=rate_hz) | {"mqtt": {"url": url}}
    sys.stdout.write(yaml.safe_dump(settings, sort_keys=False))


async def serve(plant: Plant, settings: MqttSettings, agent: str) -> None:
    """Carry messages between the plant and the broker until SIGTERM or Ctrl-C.

    Steps and messages take turns on one loop: the device has one thread, and no state is shared.

    Raises:
        PlantFault: the device failed.
    """
    ending = asyncio.Event()
    faults: list[PlantFault] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    link = Connection(Address.of(settings, "device"), f"reflexd-{agent}-plant")

    def carry(work: Callable[[], list[DeviceMessage]]) -> None:
        try:
            for out in work():
                link.enqueue(out.topic, out.payload, qos=1 if out.qos else 0, retain=out.retain)
        except PlantFault as fault:
            faults.append(fault)
            ending.set()

    def receive(message: Message) -> None:
        carry(lambda: plant.receive(message.topic, message.payload, retained=message.retain, now_s=time.time()))

    for topic in plant.subscriptions():
        link.subscribe(topic, receive)
    async with asyncio.TaskGroup() as group:
        steps = _step(plant, link, carry)
        tasks = [group.create_task(link.run(), name="plant mqtt"), group.create_task(steps, name="plant")]
        await ending.wait()
        for task in tasks:
            task.cancel()
    if faults:
        raise faults[0]


async def _step(plant: Plant, link: Connection, carry: Callable[[Callable[[], list[DeviceMessage]]], None]) -> None:
    """Step on monotonic deadlines; a slow step skips, as the world would not wait either."""
    pacer = Pacer(plant.period_s, MonotonicClock())
    await link.up()
    while True:
        await pacer.next()
        carry(lambda: plant.step(time.time()))


def main(arguments: list[str] | None = None) -> int:
    """Run the plant as a child of the supervisor: `python -m runtime.plant CONFIG`."""
    path = Path((arguments or sys.argv[1:])[0])
    loaded = load(path)
    log.configure(secrets=loaded.secrets)
    child.set_process_title("plant")
    config = loaded.config
    if config.plant is None:
        _LOG.error("plant.missing", reason=f"{path} has no section plant:")
        return 2
    try:
        plant = build_plant(
            config.plant.environment,
            agent=config.agent,
            seed=config.plant.seed,
            rate_hz=None,
            simulated_overrides=config.plant.simulated_overrides,
        )
        asyncio.run(serve(plant, config.mqtt, config.agent))
    except PlantFault as fault:
        _LOG.error("plant.failed", reason=str(fault))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
