"""Build sensors, commands and rewards as the agent and the gate do, and look up plant, uplink and broker."""

from __future__ import annotations

from importlib.metadata import entry_points
from importlib.util import find_spec

from actuators.expressions import ExpressionError
from actuators.sim.registry import GROUP as PLANTS
from actuators.sim.registry import PANORAMA, ROOM, ROOMS, plant_settings
from actuators.wire import CommandWriter, WireError, check_state_value
from learners.checkpoints.signing import KeyRefused
from learners.checkpoints.trusted_keys import read_public
from learners.rewards.tick_rewards import RewardUnknown, build_rewards
from runtime.config.errors import Found, split_path
from runtime.config.schema import Config
from runtime.supervisor.broker import BrokerError, ExposedError, check_exposure, installed
from sensors.config import PREFIX, CameraSettings, MicrophoneSettings
from sensors.plugins import PluginError
from sensors.streams.camera import address_problem
from sensors.streams.microphone import cut_file
from sensors.streams.registry import build as build_sensor


def check_streams(config: Config) -> Found:
    """Find sensors that cannot be built from their settings."""
    for name, stream in config.streams.items():
        if getattr(stream, "source", "") == f"{PREFIX}{name}":
            continue  # made from a task
        try:
            build_sensor(name, stream)
        except (ValueError, TypeError) as error:  # a plug-in's factory may refuse its options with either
            where, message = split_path(str(error))
            yield where or ("streams", name), message, ""
            continue
        if isinstance(stream, CameraSettings) and (problem := address_problem(stream.source)) is not None:
            reason, _, remedy = problem.partition("; ")
            yield ("streams", name, "source"), reason, remedy


def check_sound_files(config: Config) -> Found:
    """Find sound files that a microphone plays and that were cut; they are played as far as they go."""
    for name, stream in config.streams.items():
        if isinstance(stream, MicrophoneSettings) and (cut := cut_file(stream)) is not None:
            yield ("streams", name, "source"), f"{cut}: its end is missing", "copy the file again, or name a whole one"


def check_fleet(config: Config) -> Found:
    """Find what an uplink lacks: packages, or the key of the fleet."""
    if config.fleet is None:
        return
    for package in ("pyarrow", "zstandard"):
        if find_spec(package) is None:
            yield ("fleet",), f"the uplink needs {package}, which is not installed", "pip install 'reflexd[uplink]'"
    if config.fleet.key is not None:
        try:
            read_public(config.fleet.key)
        except KeyRefused as refusal:
            yield ("fleet", "key"), str(refusal), "copy fleet-key.pem of the fleet's server to this path"


def check_actuators(config: Config) -> Found:
    """Find payloads and state values that no command could use."""
    for name, actuator in config.actuators.items():
        try:
            CommandWriter("reflexd/check", {name: actuator}, "check")
        except WireError as error:
            yield ("actuators", name, "payload"), str(error), ""
        try:
            check_state_value(actuator.state_value)
        except WireError as error:
            yield ("actuators", name, "state_value"), str(error), ""


def check_rewards(config: Config) -> Found:
    """Find rewards that cannot be built: expressions and plug-ins."""
    for number, reward in enumerate(config.rewards):
        try:
            build_rewards((reward,), config.streams, config.actuators)
        except ExpressionError as error:
            yield ("rewards", number, "value"), str(error), ""
        except (RewardUnknown, PluginError) as error:
            yield ("rewards", number, "plugin"), str(error), "install the package that provides it, or correct the name"


def check_plant(config: Config) -> Found:
    """Find a plant that does not exist."""
    if config.plant is None or config.plant.environment in {PANORAMA, ROOM, ROOMS}:
        return
    name = config.plant.environment
    if entry_points(group=PLANTS, name=name):
        return
    try:
        plant_settings(name, agent=config.agent)
    except (ValueError, ImportError) as error:
        yield (
            ("plant", "environment"),
            " ".join(str(error).split()),
            "write panorama, room, rooms, a plug-in or a gymnasium id",
        )


def check_broker(config: Config) -> Found:
    """Find an embedded broker that is not installed, or open to others."""
    if config.mqtt.scheme != "embedded":
        return
    try:
        installed()
        check_exposure(config.mqtt)
    except (BrokerError, ExposedError) as error:
        yield ("mqtt", "url"), str(error).removeprefix("mqtt.url: "), ""
