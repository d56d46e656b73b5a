"""Define and load the settings of a fleet's server: `FLEET.yaml` of `reflexd fleet`."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from learners.config.learner import ExperienceSettings, LearnerSettings, PromotionSettings
from learners.files import read_plain_file
from learners.fleet_data.segment import MAX_REWARD
from learners.fleet_data.storage.retention import StorageLimits
from runtime.config.field_types import GivenPath
from runtime.config.mqtt_settings import MqttSettings
from runtime.config.yaml_core import CoreLoader
from sensors.config import Name, Settings

MAX_BYTES = 65_536
_ENVIRONMENT = re.compile(r"^\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}$")


class RaySettings(Settings):
    """Settings of Ray."""

    address: str | None = Field(
        None, description="address of a running Ray cluster; default: a local one, which ends with this process"
    )
    cpus: int = Field(2, ge=1, le=1_024, description="cores of a local one")


class FleetStorageSettings(Settings):
    """Limits of the data folder."""

    min_free_gb: float = Field(
        1.0, ge=0, description="free space of the disk, in GB, below which no rows are stored; devices keep theirs"
    )
    max_gb: float | None = Field(
        None, gt=0, description="most rows of the group, in GB; the oldest that the learner has merged are deleted"
    )
    max_age_days: float | None = Field(
        None, gt=0, le=36_500, description="age at which rows that the learner has merged are deleted"
    )
    agent_gb: float | None = Field(None, gt=0, description="most rows of one agent, in GB, as `max_gb`")
    delete_unmerged: bool = Field(
        False, description="delete also rows that no learner has merged, such as those of a server that only stores"
    )

    def limits(self) -> StorageLimits:
        """Return the limits in bytes and days."""
        return StorageLimits(
            max_bytes=_bytes(self.max_gb),
            agent_bytes=_bytes(self.agent_gb),
            max_age_days=math.inf if self.max_age_days is None else self.max_age_days,
            delete_unmerged=self.delete_unmerged,
        )


class WaveSettings(Settings):
    """How a version of the learner spreads."""

    publish: bool = Field(True, description="publish versions of the learner that pass its own checks")
    canaries: int = Field(1, ge=1, le=1_000, description="agents that try a version first")
    hold_s: float = Field(600.0, ge=0, description="shortest time between two stages")
    alpha: float = Field(
        0.01, gt=0, lt=1, description="probability of stopping a version that is not worse, by the pooled evidence"
    )


class FleetLearnerSettings(LearnerSettings):
    """The learner of a fleet: as that of a daemon, and where its replay buffer is."""

    replay_shards: int = Field(
        0,
        ge=0,
        le=1_024,
        description="actors of Ray that share the tokens of the replay buffer, each a part of `replay_gb`; 0: the learner has them",
    )


class FleetServerSettings(Settings):
    """One FLEET.yaml: one group of one fleet."""

    group: Name = Field(description="name of the group")
    data: GivenPath = Field(description="folder of rows, positions and keys; relative to the file")
    mqtt: MqttSettings = Field(
        MqttSettings(url="embedded://127.0.0.1:1884"), description="the fleet's broker; `embedded://` starts one"
    )
    ingests: int = Field(1, ge=1, le=64, description="ingests that share the agents")
    min_daemon: str = Field(
        "0", max_length=64, pattern=r"^[0-9.]+$", description="rows of an older reflexd do not train"
    )
    rate_hz: float = Field(10.0, gt=0, le=1_000, description="ticks a second of the group's agents")
    max_reward: float = Field(
        MAX_REWARD, gt=0, le=1e12, description="largest magnitude of a reward; segments with a larger one are refused"
    )
    device: str = Field("auto", description="device of the learner: auto, cpu or cuda")
    learner: FleetLearnerSettings = Field(
        FleetLearnerSettings.model_validate({}), description="the learner, as in the settings of a daemon"
    )
    promotion: PromotionSettings = Field(
        PromotionSettings.model_validate({}), description="checks of a version before it is published"
    )
    experience: ExperienceSettings = Field(
        ExperienceSettings.model_validate({}), description="limits of the merged rows that the learner reads"
    )
    waves: WaveSettings = Field(WaveSettings(), description="how versions spread")
    storage: FleetStorageSettings = Field(FleetStorageSettings(), description="limits of the data folder")
    ray: RaySettings = Field(RaySettings(), description="where the ingests run")

    @model_validator(mode="before")
    @classmethod
    def _from_environment(cls, body: Any) -> Any:
        return _filled(body)


class FleetSettingsError(ValueError):
    """A FLEET.yaml cannot be used; `str` names the file, each setting, and what is wrong with it."""


def load_fleet(path: Path) -> FleetServerSettings:
    """Load a FLEET.yaml.

    Raises:
        FleetSettingsError: it cannot be read or used.
    """
    try:
        body = yaml.load(read_plain_file(path, MAX_BYTES)[:MAX_BYTES], Loader=CoreLoader)  # noqa: S506 - a safe loader
        settings = FleetServerSettings.model_validate(body)
    except (OSError, yaml.YAMLError, RecursionError, UnicodeDecodeError) as error:
        raise FleetSettingsError(f"{path}: {error}") from None
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False)
        lines = [f"{path}: {'.'.join(map(str, each['loc'])) or 'file'}: {each['msg']}" for each in problems]
        raise FleetSettingsError("\n".join(lines)) from None
    if not settings.data.is_absolute():
        settings = settings.model_copy(update={"data": path.absolute().parent / settings.data})
    return settings


def _bytes(gb: float | None) -> float:
    return math.inf if gb is None else gb * 1e9


def _filled(value: Any) -> Any:
    """Replace `${env:NAME}` by the variable.

    Raises:
        ValueError: there is no such variable.
    """
    if isinstance(value, dict):
        return {key: _filled(each) for key, each in value.items()}
    match = _ENVIRONMENT.match(value) if isinstance(value, str) else None
    if match is None:
        return value
    if match[1] not in os.environ:
        raise ValueError(f"the environment has no variable {match[1]}")
    return os.environ[match[1]]
