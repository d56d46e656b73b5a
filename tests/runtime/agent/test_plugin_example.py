"""The example package as docs/plugins.md says: installed with pip, found by its entry points, doing its work."""

from __future__ import annotations

import ast
import asyncio
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from actuators.sim.registry import build_plant
from actuators.wire import DeviceMessage
from learners.config.policy import EncoderSettings
from learners.config.rewards import PluginReward
from learners.model.encoders.pretrained import load as load_encoder
from learners.rewards.tick_rewards import TickRewards
from runtime.config.schema import Config
from runtime.inference.build import build_spec
from runtime.mqtt.topics import CommandPayload, encode
from sensors.base import Sensor
from sensors.config import PluginStreamSettings
from sensors.readings import Frame, Observation, Reading, Telemetry
from sensors.streams.registry import build as build_sensor

PACKAGE = Path(__file__).parents[2] / "plugin_example"


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The package in a folder of its own on the path, built and installed by pip."""
    source, target = tmp_path_factory.mktemp("source") / "package", tmp_path_factory.mktemp("site")
    subprocess.run(["cp", "-r", str(PACKAGE), str(source)], check=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*command, str(target), str(source)], check=True, capture_output=True)
    sys.path.insert(0, str(target))
    yield
    sys.path.remove(str(target))
    for name in [each for each in sys.modules if each.startswith("reflexd_example")]:
        del sys.modules[name]


API = ("sensors.api", "actuators.api", "learners.api")
OURS = {"runtime", "learners", "sensors", "actuators", "configs"}


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of every import in a file; the name is empty for `import module`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def test_example_imports_only_the_stable_names_of_reflexd() -> None:
    ours = {
        (module, name)
        for path in PACKAGE.rglob("*.py")
        for module, name in imported(path)
        if module.partition(".")[0] in OURS
    }
    assert ours, "the example uses reflexd"
    assert {module for module, _ in ours} <= set(API)
    assert [(m, n) for m, n in ours if n not in importlib.import_module(m).__all__] == []


def settings(**options: str | float) -> PluginStreamSettings:
    return PluginStreamSettings(
        kind="plugin", plugin="load", fields=("one_minute", "five_minutes", "fifteen_minutes"), options=options
    )


async def test_the_sensor_reads_loses_and_recovers(tmp_path: Path) -> None:
    source = tmp_path / "loadavg"
    source.write_text("0.5 0.25 0.125 1/100 42\n")
    sensor = build_sensor("load", settings(path=str(source), rate_hz=200.0))
    assert isinstance(sensor, Sensor)
    received: asyncio.Queue[object] = asyncio.Queue()
    task = asyncio.create_task(
        sensor.run(received.put_nowait, received.put_nowait, lambda: received.put_nowait("recovered"))
    )
    async with asyncio.timeout(60):
        first = await received.get()
        assert isinstance(first, Telemetry)
        assert first.values.tolist() == [0.5, 0.25, 0.125]
        source.unlink()
        while isinstance(reported := await received.get(), Telemetry):
            pass
        assert "No such file" in str(reported)
        source.write_text("1 2 3 1/100 42\n")
        assert await received.get() == "recovered"
        again = await received.get()
        assert isinstance(again, Telemetry)
        assert again.seq > first.seq
    assert sensor.drops["unreadable"] >= 1
    task.cancel()
    await asyncio.wait([task])


def test_unknown_options_and_plugins_are_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match="there are path and rate_hz"):
        build_sensor("load", settings(rate=2))
    with pytest.raises(ValueError, match="load"):
        build_sensor("x", PluginStreamSettings(kind="plugin", plugin="nothing"))


def test_the_settings_of_the_page_make_a_policy_with_every_plugin() -> None:
    page = (PACKAGE.parents[1] / "docs" / "plugins.md").read_text()
    known = Config.model_validate(yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0]))
    colours = load_encoder(known.encoders["colours"], tokens=known.policy.tokens, device=torch.device("cpu"))
    streams = {
        stream.name: (stream.modality, stream.width) for stream in build_spec(known, {"colours": colours}).streams
    }
    assert streams == {"room": ("telemetry", 1), "load": ("telemetry", 3), "front": ("image", colours.width)}
    without = known.model_dump() | {"streams": {"load": {"kind": "plugin", "plugin": "load"}}}
    with pytest.raises(ValueError, match="or `fields` if it delivers telemetry"):
        Config.model_validate(without)


def command(value: str, seq: int, stamp: float) -> bytes:
    return encode(CommandPayload(value=value, decision="d", boot="b", seq=seq, stamp=stamp, ttl_ms=300, policy="p"))


def test_the_device_warms_the_room_and_drops_old_and_repeated_commands() -> None:
    plant = build_plant("thermostat", agent="home", rate_hz=10.0)
    topic = "reflexd/home/act/heater/set"
    assert list(plant.subscriptions()) == [topic]

    def celsius() -> float:
        (out,) = plant.step(0.0)
        assert isinstance(out, DeviceMessage)
        return float(out.payload.split(b":")[1].rstrip(b"}"))

    cooling = [celsius() for _ in range(5)]
    assert cooling == sorted(cooling, reverse=True)
    assert plant.receive(topic, command("ON", 1, 100.0), retained=False, now_s=100.1)
    warming = [celsius() for _ in range(5)]
    assert warming == sorted(warming)
    for bad in (command("OFF", 1, 100.2), command("OFF", 2, 90.0), command("DIM", 3, 100.2)):
        assert plant.receive(topic, bad, retained=False, now_s=100.2) == []
    assert plant.receive(topic, command("OFF", 9, 100.2), retained=True, now_s=100.2) == []


def test_the_encoder_tells_colours_apart_and_in_which_quarter_they_are() -> None:
    encoder = load_encoder(EncoderSettings(model="none", plugin="colours"), tokens=4, device=torch.device("cpu"))
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24, :32] = (255, 0, 0)
    frame: Reading = Frame("front", 0.0, 1, image)
    tokens = encoder.encode(encoder.prepare([frame, frame]))
    assert tokens.shape == (2, encoder.tokens, encoder.width)
    assert tokens.dtype == torch.float32
    histograms = tokens[0].reshape(4, 3, 16)
    assert torch.allclose(histograms.sum(-1), torch.ones(4, 3))
    assert histograms[0, 0, 15] == 1
    assert histograms[1, 0, 0] == 1
    assert encoder.encode(encoder.examples()[0]).shape == (1, encoder.tokens, encoder.width)
    encoder.load_state({})
    with pytest.raises(ValueError, match="no weights"):
        encoder.load_state({"w": torch.zeros(1)})


def observation(celsius: float | None) -> Observation:
    readings: dict[str, Reading] = {}
    if celsius is not None:
        readings["room"] = Telemetry("room", 0.0, 1, ("celsius",), np.array([celsius], np.float32))
    return Observation(1, 0.0, readings, {})


def test_the_reward_wants_a_warm_room_and_no_needless_heat() -> None:
    rewards = TickRewards([PluginReward(name="comfort", kind="plugin", plugin="comfort")])
    assert rewards.at(observation(20.0), {"heater": "OFF"}) == 0.0
    assert rewards.at(observation(15.0), {"heater": "ON"}) == pytest.approx(-0.6)
    assert rewards.at(observation(None), {"heater": "ON"}) == 0.0


def test_the_settings_of_the_guide_are_good() -> None:
    text = (PACKAGE.parents[1] / "docs" / "plugins.md").read_text()
    import yaml

    config = Config.model_validate(yaml.safe_load(text.split("```yaml")[1].split("```")[0]))
    assert config.plant is not None
    assert config.plant.environment == "thermostat"
