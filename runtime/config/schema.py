"""Define the model of the settings file: the settings of all packages, and those that only runtime needs.

Knows neither YAML nor files: `loader.py` reads those.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from actuators.config import AnyActuator, GateSettings, conditions_of
from actuators.wire import command_topic, state_topic
from learners.config.learner import ExperienceSettings, LearnerSettings, PromotionSettings
from learners.config.policy import EncoderSettings, PolicySettings
from learners.config.rewards import AnyReward, TopicReward
from learners.config.tasks import FinetuneSettings, TaskSettings
from learners.goal_models.config import DeliberatorSettings
from runtime.config.field_types import GivenPath, Listen
from runtime.config.fleet_settings import FleetSettings
from runtime.config.frame_size import check_frames
from runtime.config.mqtt_names import topic_problem
from runtime.config.mqtt_settings import Client, MqttSettings
from runtime.config.task_streams import (
    check_corrections,
    check_goal,
    check_rewards,
    check_task,
    with_fed_streams,
    with_goal_stream,
)
from sensors.config import AnyStream, Name, Settings, fields_of

RESERVED = "subscribe"
"""No stream can have this name: `preview/subscribe` is the topic of preview requests."""


MOST_HZ = 250.0
"""Above `lint.MEASURED_HZ`, `reflexd check` warns."""
MOST_STREAMS = 512
"""Above `lint.MEASURED_STREAMS`, `reflexd check` warns."""


class TickSettings(Settings):
    """Settings of the control loop."""

    rate_hz: float = Field(
        10.0,
        ge=1e-6,
        le=MOST_HZ,
        description="decisions per second; above 50, the last 0.5 ms before each tick are a busy wait",
    )

    @property
    def period_s(self) -> float:
        """Seconds from one deadline to the next."""
        return 1.0 / self.rate_hz


class EngineSettings(Settings):
    """Settings of inference."""

    runtime: Literal["auto", "compiled", "torch"] = Field(
        "auto",
        description="how the agent runs its models: `compiled` runs graphs in OpenVINO, or in ONNX Runtime, and imports no torch; `torch` runs torch, "
        "on a GPU with CUDA graphs; `auto` is `compiled` where the settings allow it",
    )
    backend: Literal["auto", "torch", "openvino", "onnxruntime"] = Field(
        "auto",
        description="library that runs the models; `auto` runs graphs in OpenVINO, in ONNX Runtime where OpenVINO is not installed, and "
        "with `runtime: torch` the fastest of it and torch within `tolerance`",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="number format of inference; `auto` runs encoders in float32, and a policy version in bfloat16 where that is "
        "faster and changes no choice on recorded observations",
    )
    threads: int = Field(1, ge=1, le=64, description="CPU threads of inference")
    tolerance: float = Field(
        0.02, gt=0, description="largest relative difference of a backend's tokens from those of torch in float32"
    )


class DashboardSettings(Settings):
    """Settings of the dashboard."""

    listen: Listen = Field("127.0.0.1:8080", description="address and port of the web server")
    token: SecretStr | None = Field(
        None,
        min_length=16,
        description="token of the operator; default: generated at the first start and stored in `state_dir`",
    )
    viewer_token: SecretStr | None = Field(None, min_length=16, description="token that permits viewing but no change")
    hosts: tuple[str, ...] = Field(
        (), description="further host names under which the page is reached, for example behind a proxy"
    )
    edit_settings: bool | None = Field(
        None,
        description="operators may read and edit this file on the page; default: only if the page listens on loopback",
    )

    @model_validator(mode="after")
    def _two_tokens(self) -> Self:
        if self.token is not None and self.token == self.viewer_token:
            raise ValueError("viewer_token: it equals `token`, so every viewer would be an operator; choose another")
        return self


CardName = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")]


class AgentCardSettings(Settings):
    """Settings of the agent card by which agents of A2A over MQTT find this one."""

    organization: CardName = Field(description="`org_id` in the topic of the card, such as `com.example`")
    unit: CardName = Field(description="`unit_id` in the topic of the card, such as `home`")


class MetricsSettings(Settings):
    """Settings of /metrics, /livez and /readyz."""

    listen: Listen = Field("127.0.0.1:9464", description="address and port of the server")


class RecordSettings(Settings):
    """Settings of session recordings (MCAP)."""

    enabled: bool = Field(False, description="start a recording when the agent starts; `reflexd record off` ends it")
    max_gb: float = Field(
        0.5,
        gt=0,
        description="size in GB at which a recording ends, or of all recordings together; at most `storage.max_gb`. The default "
        "is half of `storage.max_gb` where that is less",
    )
    when_full: Literal["end", "delete_oldest"] = Field(
        "end",
        description="at `max_gb`, `end` ends the recording. With `delete_oldest` the recording continues in another file at "
        "each eighth of it, and the oldest files are deleted, so that all recordings together stay below it",
    )


class StorageSettings(Settings):
    """Settings of the disk space that the daemon may use."""

    max_gb: float = Field(
        1.0,
        ge=0.05,
        description="size of `state_dir` in GB. Above nine tenths of it the daemon deletes in the order of "
        "[operating.md](operating.md#disk-space); it never deletes the live version and those to return to",
    )


class DriftSettings(Settings):
    """Settings of detection of drift in the streams."""

    enabled: bool = Field(True, description="compare every stream with its own earlier readings, once a second")
    react: Literal["event", "ask", "shadow", "version_before"] = Field(
        "event",
        description="what a drift does: `event` publishes it; `ask` also waits for a person to accept it on the page; `shadow` "
        "sets the mode to shadow until a person sets another; `version_before` takes the live version back once",
    )
    false_alarms_per_week: float = Field(
        1.0, gt=0, le=100, description="false alarms of all streams together that are allowed in a week"
    )
    accept_after_s: float = Field(
        86_400,
        ge=0,
        description="a drift that lasts this long is the new reference; 0 is never, and so is `react: ask`",
    )


class PlantSettings(Settings):
    """Settings of a simulated device that the supervisor runs as a process behind the broker."""

    environment: str = Field(
        description="`panorama` (the world of the demo), `room` (a room with a heater), `rooms` (a corridor with three rooms) or a gymnasium id"
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of the environment")
    simulated_overrides: bool = Field(
        False, description="override the policy at random during the first two minutes, as a person would"
    )


class Config(Settings):
    """One settings file."""

    agent: Annotated[
        Name,
        Field(description="name of the agent, a part of every topic: lower-case letters, digits, _ and -, at most 64"),
    ]
    mode: Literal["shadow", "assist", "autonomous"] = Field(
        "autonomous",
        description="`shadow`: the policy decides but does not act; `assist`: a person confirms each action; `autonomous`: "
        "the policy acts within the limits of the gate",
    )
    tick: TickSettings = Field(TickSettings(), description="the control loop")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="where the models run: `cpu`, `cuda`, `cuda:N`, or `auto` for a GPU if there is one",
    )
    state_dir: GivenPath = Field(description="folder of experience, checkpoints, recordings and latches")
    mqtt: MqttSettings = Field(MqttSettings(), description="the connection to the broker")
    streams: dict[Name, AnyStream] = Field(
        min_length=1,
        max_length=MOST_STREAMS,
        description=f"the inputs of the policy, by name: at least 1, at most {MOST_STREAMS}",
    )
    encoders: dict[Name, EncoderSettings] = Field(
        default_factory=dict, description="the models that turn readings into tokens, by name"
    )
    actuators: dict[Name, AnyActuator] = Field(
        min_length=1, max_length=64, description="the outputs of the policy, by name: at least 1, at most 64"
    )
    gate: GateSettings = Field(GateSettings(), description="the limits in front of all actuators")
    policy: PolicySettings = Field(PolicySettings(), description="the model that decides")
    rewards: tuple[AnyReward, ...] = Field(
        (TopicReward(name="feedback", kind="topic"),), description="the kinds of reward; their values are added"
    )
    tasks: dict[Name, TaskSettings] = Field(
        default_factory=dict, description="supervised models on the streams, by name"
    )
    deliberator: DeliberatorSettings | None = Field(
        None,
        description="a slow model that chooses among listed goals; the policy reads the goal as a stream. Default: none",
    )
    learner: LearnerSettings = Field(LearnerSettings(), description="training in the background")
    experience: ExperienceSettings = Field(ExperienceSettings(), description="the store of transitions and labels")
    finetune: FinetuneSettings = Field(FinetuneSettings(), description="training of the tasks from new labels")
    promotion: PromotionSettings = Field(PromotionSettings(), description="tests before and after a version goes live")
    engine: EngineSettings = Field(EngineSettings(), description="how the models run")
    dashboard: DashboardSettings | None = Field(None, description="the web page for operators; default: none")
    metrics: MetricsSettings | None = Field(
        None, description="HTTP server for Prometheus and health probes; default: none"
    )
    record: RecordSettings = Field(RecordSettings(), description="recordings of sessions")
    storage: StorageSettings = Field(StorageSettings(), description="the disk space of `state_dir`")
    drift: DriftSettings = Field(DriftSettings(), description="detection of drift in the streams")
    fleet: FleetSettings | None = Field(
        None,
        description="the fleet that receives the experience of this agent; default: none. See [fleet.md](fleet.md)",
    )
    plant: PlantSettings | None = Field(
        None, description="a simulated device that the supervisor starts; default: none"
    )
    discovery: Annotated[bool, Field(description="publish the discovery message of Home Assistant")] = False
    a2a: AgentCardSettings | None = Field(
        None,
        description="publish an agent card, retained on `$a2a/v1/discovery/<organization>/<unit>/<agent>`; default: none",
    )

    @property
    def required_streams(self) -> frozenset[str]:
        """The streams that must be fresh before an actuator moves."""
        return frozenset(name for name, stream in self.streams.items() if stream.required)

    @property
    def agreement(self) -> str:
        """Digest of what the gate and the agent must both have: actuators, limits, tick, and when each stream counts as fresh."""
        streams = {
            name: stream.model_dump(mode="json", exclude={"source", "options", "encoder"})
            for name, stream in self.streams.items()
        }
        shared = self.model_dump(mode="json", include={"actuators", "gate", "tick"})
        return hashlib.sha256(json.dumps([shared, streams], sort_keys=True).encode()).hexdigest()[:16]

    @property
    def recording_bytes(self) -> int:
        """The limit of recordings: `record.max_gb`. Its default is at most half of `storage.max_gb`."""
        chosen_gb = self.record.max_gb
        if "max_gb" not in self.record.model_fields_set:
            chosen_gb = min(chosen_gb, self.storage.max_gb / 2)
        return int(chosen_gb * 1e9)

    @model_validator(mode="after")
    def _recordings_fit(self) -> Self:
        if "max_gb" in self.record.model_fields_set and self.record.max_gb > self.storage.max_gb:
            raise ValueError(
                f"record.max_gb: {self.record.max_gb:g} is above storage.max_gb ({self.storage.max_gb:g}), the limit of the whole "
                "state_dir, and a running recording is never deleted; lower it, or raise storage.max_gb"
            )
        return self

    @model_validator(mode="before")
    @classmethod
    def _fed(cls, body: Any) -> Any:
        return with_goal_stream(with_fed_streams(body)) if isinstance(body, dict) else body

    def _check_encoder(self, name: str, stream: AnyStream) -> None:
        known = sorted(self.encoders)
        if stream.encoder is not None and stream.encoder not in self.encoders:
            raise ValueError(f"streams.{name}.encoder: {stream.encoder!r} is not under encoders: {known}")
        if stream.encoder is None and not fields_of(stream):
            instead = ", or `fields` if it delivers telemetry" if stream.kind == "plugin" else ""
            raise ValueError(
                f"streams.{name}.encoder: missing; a {stream.kind} needs one of encoders: {known}{instead}"
            )

    @model_validator(mode="after")
    def _logins(self) -> Self:
        needed: dict[Client, bool] = {
            "gate": True,
            "agent": True,
            "dashboard": self.dashboard is not None,
            "device": self.plant is not None,
        }
        for client in (client for client, present in needed.items() if present):
            self.mqtt.credentials(client)
        return self

    @field_validator("agent")
    @classmethod
    def _is_free(cls, agent: str) -> str:
        if agent == "fleet":
            raise ValueError("the topics below reflexd/fleet belong to fleets; choose another name")
        return agent

    def _check_ports(self) -> None:
        """Refuse two servers on one port."""
        taken: dict[int, str] = {self.mqtt.port: "mqtt.url"} if self.mqtt.scheme == "embedded" else {}
        for name, part in (("dashboard.listen", self.dashboard), ("metrics.listen", self.metrics)):
            port = int(part.listen.rpartition(":")[2]) if part is not None else 0
            if port and port in taken:
                raise ValueError(f"{name}: port {port} is already used by {taken[port]}; choose another")
            taken[port] = name

    def _check_topics(self) -> None:
        """Refuse two names for one device, and commands on topics that have another use."""
        base, taken = f"reflexd/{self.agent}", dict[tuple[str, str, str], str]()
        for name, each in self.actuators.items():
            topic = command_topic(base, name, each)
            if topic != f"{base}/act/{name}/set" and topic.startswith(("reflexd/", "$")):
                raise ValueError(f"actuators.{name}.topic: {topic} is reserved; leave it out, or name the device's own")
            reports = state_topic(base, name, each)
            if reports.startswith(f"{base}/") and not reports.startswith(f"{base}/act/"):
                raise ValueError(f"actuators.{name}.state_topic: {reports} is reserved; name the device's own")
            for setting, given in (("topic", topic), ("state_topic", reports)):
                if (problem := topic_problem(given)) is not None:
                    raise ValueError(f"actuators.{name}.{setting}: {problem}")
            for number, word in enumerate(each.choices if each.kind == "choice" else ()):
                if any("\ud800" <= character <= "\udfff" for character in word):
                    raise ValueError(f"actuators.{name}.choices.{number}: half of a character; write the whole one")
            uses = (
                ("topic", topic, each.payload or ""),
                ("state_topic", reports, each.state_value),
            )
            for use in uses:
                if use in taken:
                    what, where, _ = use
                    raise ValueError(f"actuators.{name}.{what}: {taken[use]} has the same topic {where} and content")
                taken[use] = name

    def _check_source(self, name: str, stream: AnyStream) -> None:
        source = str(getattr(stream, "source", ""))
        if source.startswith("topic:") and (problem := topic_problem(source.removeprefix("topic:"))) is not None:
            raise ValueError(f"streams.{name}.source: {problem}")
        if source == "stdin" and stream.kind == "text":
            first = next(other for other, each in self.streams.items() if getattr(each, "source", "") == "stdin")
            if first != name:
                raise ValueError(
                    f"streams.{name}.source: streams.{first} reads stdin already; each line has one reader"
                )

    def _check_speech(self, name: str, source: str) -> None:
        source_stream = self.streams.get(source)
        if source_stream is None or source_stream.kind not in ("microphone", "plugin"):
            there = sorted(other for other, stream in self.streams.items() if stream.kind == "microphone")
            raise ValueError(f"streams.{name}.source: {source!r} is not a microphone stream; there are {there}")
        if name in self.tasks:
            raise ValueError(f"streams.{name}: tasks.{name} publishes on task/{name}, too; rename one of them")

    @model_validator(mode="after")
    def _references(self) -> Self:
        for name, stream in self.streams.items():
            if name == RESERVED:
                raise ValueError(f"streams.{name}: the topic preview/{name} has another use; choose another name")
            self._check_encoder(name, stream)
            self._check_source(name, stream)
            if stream.kind == "text" and stream.microphone:
                self._check_speech(name, stream.microphone)
        for name, actuator in self.actuators.items():
            if actuator.kind == "text" and actuator.task not in self.tasks:
                raise ValueError(f"actuators.{name}.task: {actuator.task!r} is not under tasks: {sorted(self.tasks)}")
            conditions = conditions_of(actuator.requires)
            unknown = set(actuator.requires or ()) - set(self.streams) - set(conditions)
            if unknown:
                raise ValueError(
                    f"actuators.{name}.requires: {sorted(unknown)} are not under streams: {sorted(self.streams)}"
                )
        for name, task in self.tasks.items():
            check_task(name, task, self.streams)
        if self.deliberator is not None:
            check_goal(self.deliberator, self.streams, self.actuators, self.tasks)
            check_corrections(self.deliberator, self.tasks)
        check_rewards(self.rewards, self.deliberator)
        self._check_ports()
        self._check_topics()
        check_frames(self.streams, self.actuators, self.gate.forbid)
        names = [reward.name for reward in self.rewards]
        if len(set(names)) != len(names):
            raise ValueError("rewards: each name may be used once")
        return self


NAME = re.compile(r"^[a-z0-9_-]{1,64}$")
