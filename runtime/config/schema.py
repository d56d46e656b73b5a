"""Define the model of the settings file: the settings of all packages, and those that only runtime needs.

Knows neither YAML nor files: `loader.py` reads those.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, field_validator, model_validator

from actuators.config import AnyActuator, GateSettings, conditions_of
from actuators.wire import command_topic, state_topic
from learners.config import (
    AnyReward,
    EncoderSettings,
    ExperienceSettings,
    FinetuneSettings,
    LearnerSettings,
    PolicySettings,
    PromotionSettings,
    TaskSettings,
    TopicReward,
)
from learners.task_kinds import KINDS, reading
from sensors.config import PREFIX, AnyStream, Name, Settings, fields_of

RESERVED = "subscribe"
"""No stream can have this name: `preview/subscribe` is the topic of preview requests."""
SCHEMES = {"mqtt": 1883, "mqtts": 8883, "embedded": 1883}


def _given(path: object) -> object:
    if isinstance(path, str) and not path.strip():
        raise ValueError("the path is empty; write one, as .reflexd/NAME")
    return path


GivenPath = Annotated[Path, BeforeValidator(_given)]
"""A path that is not empty: an empty one would mean the working directory."""


def _port(listen: str) -> str:
    if int(listen.rpartition(":")[2]) > 65_535:
        raise ValueError("the port must be between 0 and 65535")
    return listen


Listen = Annotated[str, Field(pattern=r"^(\[[0-9a-fA-F:]+\]|[^:\s]+):\d{1,5}$"), AfterValidator(_port)]
"""HOST:PORT; port 0 is any free one."""


class TickSettings(Settings):
    """Settings of the control loop."""

    rate_hz: float = Field(10.0, gt=0, le=50, description="decisions per second")

    @property
    def period_s(self) -> float:
        """Seconds from one deadline to the next."""
        return 1.0 / self.rate_hz


Client = Literal["gate", "agent", "dashboard", "status", "top", "request", "device"]
"""The clients of the broker; each may have its own login."""


class Credentials(Settings):
    """The login of one client of the broker."""

    username: str = Field(description="user name")
    password: SecretStr | None = Field(None, description="password; default: none")
    media: str | None = Field(
        None,
        description="user of the second connection, for images and sound, with the same password. It is needed if the broker "
        "uses the user name as client id (`use_username_as_clientid`)",
    )

    requests: str | None = Field(
        None,
        description="user of the gate's second connection, for requests and reports, with the same password. It is needed if "
        "the broker uses the user name as client id",
    )

    stop: str | None = Field(
        None,
        description="user of the connection for the stop alone, with the same password: of the gate's second listener, or of the "
        "dashboard. Without it, the gate has no second listener where `requests` is set, and the dashboard sends the stop on its "
        "first connection",
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


class MqttSettings(Settings):
    """Settings of the connection to the broker."""

    url: str = Field(
        "embedded://127.0.0.1:1883",
        description="`mqtt://HOST:PORT`, `mqtts://HOST:PORT` (TLS), or `embedded://HOST:PORT` for a broker that the daemon starts",
    )
    username: str | None = Field(None, description="user of every client without a login below")
    password: SecretStr | None = Field(None, description="password of that user")
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
    device: Credentials | None = Field(None, description="login of the simulated device (`plant:`)")
    keepalive_s: int = Field(
        2, ge=1, le=600, description="MQTT keep-alive; a broker that stops answering is detected within half of it"
    )

    @field_validator("url")
    @classmethod
    def _url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in SCHEMES or not parts.hostname:
            raise ValueError("write embedded://HOST:PORT, mqtt://HOST:PORT or mqtts://HOST:PORT")
        if parts.username or parts.password:
            raise ValueError("put the user under username: and password:, not into the URL")
        if parts.port is not None and not 0 < parts.port < 65_536:
            raise ValueError("the port must be between 1 and 65535")
        return url

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
            "device": self.device,
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


class EngineSettings(Settings):
    """Settings of inference."""

    runtime: Literal["auto", "compiled", "torch"] = Field(
        "auto",
        description="what the agent acts with: `compiled` runs graphs in OpenVINO and imports no torch; `torch` runs torch, "
        "on a GPU with CUDA graphs; `auto` is `compiled` where the settings allow it",
    )
    backend: Literal["auto", "torch", "openvino"] = Field(
        "auto", description="library that runs the models; `auto` measures and selects the fastest within `tolerance`"
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
    """Settings of the watch over streams that no longer look as they did."""

    enabled: bool = Field(True, description="compare every stream with its own past, once a second")
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
        description="`panorama` (the world of the demo), `room` (a room with a heater) or a gymnasium id"
    )
    seed: int = Field(0, description="seed of the environment")
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
        min_length=1, max_length=64, description="the inputs of the policy, by name: at least 1, at most 64"
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
    drift: DriftSettings = Field(DriftSettings(), description="the watch over streams that no longer look as they did")
    plant: PlantSettings | None = Field(
        None, description="a simulated device that the supervisor starts; default: none"
    )
    discovery: Annotated[bool, Field(description="publish the discovery message of Home Assistant")] = False

    @property
    def required_streams(self) -> frozenset[str]:
        """The streams that must be fresh before an actuator moves."""
        return frozenset(name for name, stream in self.streams.items() if stream.required)

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
        return with_fed_streams(body) if isinstance(body, dict) else body

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

    def _check_ports(self) -> None:
        """Refuse two servers on one port."""
        taken: dict[int, str] = {self.mqtt.port: "mqtt.url"} if self.mqtt.scheme == "embedded" else {}
        for name, part in (("dashboard.listen", self.dashboard), ("metrics.listen", self.metrics)):
            port = int(part.listen.rpartition(":")[2]) if part is not None else 0
            if port and port in taken:
                raise ValueError(f"{name}: port {port} is that of {taken[port]}; choose another")
            taken[port] = name

    def _check_topics(self) -> None:
        """Refuse two names for one device, and commands on topics that have another use."""
        base, taken = f"reflexd/{self.agent}", dict[tuple[str, str, str], str]()
        for name, each in self.actuators.items():
            topic = command_topic(base, name, each)
            if topic != f"{base}/act/{name}/set" and topic.startswith(("reflexd/", "$")):
                raise ValueError(f"actuators.{name}.topic: {topic} is reserved; leave it out, or name the device's own")
            uses = (
                ("topic", topic, each.payload or ""),
                ("state_topic", state_topic(base, name, each), each.state_value),
            )
            for use in uses:
                if use in taken:
                    what, where, _ = use
                    raise ValueError(f"actuators.{name}.{what}: {taken[use]} has the same topic {where} and content")
                taken[use] = name

    @model_validator(mode="after")
    def _references(self) -> Self:
        for name, stream in self.streams.items():
            if name == RESERVED:
                raise ValueError(f"streams.{name}: the topic preview/{name} has another use; choose another name")
            self._check_encoder(name, stream)
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
            _check_task(name, task, self.streams)
        self._check_ports()
        self._check_topics()
        names = [reward.name for reward in self.rewards]
        if len(set(names)) != len(names):
            raise ValueError("rewards: each name may be used once")
        return self


def _check_task(name: str, task: TaskSettings, streams: Mapping[str, AnyStream]) -> None:
    if task.stream is not None and task.stream not in streams:
        raise ValueError(f"tasks.{name}.stream: {task.stream!r} is not under streams: {sorted(streams)}")
    if task.stream is not None:
        _check_kind(name, task, streams[task.stream].kind)
    if task.context is not None:
        _check_context(name, task, streams)
    if task.feeds_policy:
        _check_fed(name, task, streams)


def _check_kind(name: str, task: TaskSettings, stream: str) -> None:
    """Check that a task can read a stream of this kind; a plug-in may deliver any kind."""
    declared = KINDS[task.kind]
    reads = declared.stream
    if stream not in {reads, "plugin"}:
        fitting = reading(stream)
        remedy = f"; write {fitting[0]}" if fitting and declared.classifies else ""
        raise ValueError(f"tasks.{name}.kind: {task.kind} reads a {reads} stream; {task.stream} is {stream}{remedy}")


def _check_context(name: str, task: TaskSettings, streams: Mapping[str, AnyStream]) -> None:
    if len(KINDS[task.kind].inputs) < 2:
        raise ValueError(f"tasks.{name}.context: {task.kind} reads no context; leave it out")
    kind = streams[task.context].kind if task.context is not None and task.context in streams else None
    if kind not in {"text", "plugin"} or task.context == task.stream:
        texts = sorted(known for known, stream in streams.items() if stream.kind == "text" and known != task.stream)
        raise ValueError(f"tasks.{name}.context: {task.context!r} is no other text stream; there are {texts}")


def _check_fed(name: str, task: TaskSettings, streams: Mapping[str, AnyStream]) -> None:
    if not (KINDS[task.kind].classifies and task.stream and task.labels):
        raise ValueError(
            f"tasks.{name}.feeds_policy: only a classification task with a `stream` and fixed `labels` can feed the policy"
        )
    if getattr(streams[name], "source", None) != f"{PREFIX}{name}":
        raise ValueError(f"tasks.{name}.feeds_policy: a stream already has this name; rename one of them")


def with_fed_streams(body: dict[str, Any]) -> dict[str, Any]:
    """Add a telemetry stream to the raw settings for each task that feeds the policy; the model reports malformed settings.

    Such a stream has the task's name and labels, and the same time limit as the stream that the task reads.
    """
    tasks, streams = body.get("tasks"), body.get("streams")
    if not isinstance(tasks, dict) or not isinstance(streams, dict):
        return body
    raw = {name: task.model_dump() if isinstance(task, TaskSettings) else task for name, task in tasks.items()}
    made = {
        name: _fed_stream(name, task, streams)
        for name, task in raw.items()
        if isinstance(task, dict) and task.get("feeds_policy") and task.get("labels") and name not in streams
    }
    return {**body, "streams": {**streams, **made}} if made else body


def _fed_stream(name: str, task: dict[str, Any], streams: dict[str, Any]) -> dict[str, Any]:
    read = streams.get(str(task.get("stream")))
    read = read.model_dump() if isinstance(read, Settings) else read
    known = read if isinstance(read, dict) else {}
    limit = known.get("ttl_s", 60.0) if known.get("kind") == "text" else known.get("max_age_s", 1.0)
    return {"kind": "telemetry", "source": f"{PREFIX}{name}", "fields": list(task["labels"]), "max_age_s": limit}


NAME = re.compile(r"^[a-z0-9_-]{1,64}$")
