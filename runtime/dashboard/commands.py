"""Define what a browser may send, and the MQTT message of each command.

Each command is a validated model. A viewer may read; everything else needs the operator's role. The gate decides what becomes
of a command, and its response comes back over MQTT.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictFloat, TypeAdapter

from runtime.config.schema import Config
from runtime.dashboard.access.auth import Role
from runtime.dashboard.broker_connections import GATED, MqttBridge
from runtime.dashboard.settings_file import MAX_TEXT, SettingsFile, SettingsRefused
from runtime.dashboard.task_settings import with_class, with_task
from runtime.mqtt.rpc import EXPLAIN_S
from runtime.mqtt.topics import Topics, encode

Name = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
PersonName = Annotated[str, Field(pattern=r"^[a-z0-9_-]{0,32}$")]
READING_VERBS = frozenset({"explain", "checkpoints", "readings", "labels"})
SOURCE = "dashboard"
GATE_ANSWER_S = 10.0
"""Of a request to the gate; a reload of the settings takes seconds."""
ANSWER_S = 35.0
"""Longer than the agent's own limits (`runtime.requests.handlers`), so that its reason arrives."""
GATE_S = 1.5
"""The gate responds within milliseconds; where it does not, a person must know at once."""


class ClientCommand(BaseModel):
    """Base of everything a browser may send."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    id: int = Field(0, ge=0, le=2**53)


class SubscribePreviews(ClientCommand):
    """Previews of these streams, until the browser disconnects or sends another list."""

    do: Literal["subscribe_previews"]
    streams: list[Name] = Field(max_length=64)


class StopCommand(ClientCommand):
    """The software stop."""

    do: Literal["stop"]
    engaged: bool = Field(strict=True)


class OverrideCommand(ClientCommand):
    """A person overrides the policy."""

    do: Literal["override"]
    actuator: Name
    value: str | list[StrictFloat] = Field(max_length=1_024)
    hold_s: StrictFloat = Field(2.0, ge=0, le=3_600)


class RewardCommand(ClientCommand):
    """A person rewards or punishes."""

    do: Literal["reward"]
    value: StrictFloat = Field(ge=-100, le=100)
    decision: str | None = Field(None, max_length=128)


class LabelCommand(ClientCommand):
    """A person labels an example, perhaps to answer a query (`question`)."""

    do: Literal["label"]
    task: Name
    label: str | list[str] = Field(max_length=2_000)
    text: str | None = Field(None, max_length=8_000)
    decision: str | None = Field(None, max_length=128)
    question: str | None = Field(None, max_length=128)


class TextCommand(ClientCommand):
    """A line for a text stream, published like any other."""

    do: Literal["text"]
    stream: Name
    text: str = Field(min_length=1, max_length=2_000)


class GoalCommand(ClientCommand):
    """A person sets the goal of the deliberator."""

    do: Literal["goal"]
    value: Name
    hold_s: StrictFloat = Field(600.0, ge=0, le=86_400)


class RequestCommand(ClientCommand):
    """One of the verbs that the daemon responds to."""

    do: Literal["request"]
    verb: Literal[
        "arm",
        "disarm",
        "mode",
        "end_override",
        "promote",
        "rollback",
        "explain",
        "checkpoints",
        "reload",
        "record",
        "finetune",
        "accept_drift",
        "readings",
        "labels",
    ]
    data: dict[str, Any] = Field(default_factory=dict, max_length=16)


class LabelReadingsCommand(ClientCommand):
    """A person names the class of stored readings."""

    do: Literal["label_readings"]
    task: Name
    label: str = Field(max_length=200)
    readings: list[Annotated[str, Field(max_length=64)]] = Field(max_length=200)
    by: PersonName = ""


class CorrectLabelsCommand(ClientCommand):
    """A person corrects labels, or removes them (`label` is None)."""

    do: Literal["correct_labels"]
    task: Name
    labels: list[int] = Field(max_length=200)
    label: str | None = Field(None, max_length=200)
    by: PersonName = ""


class EditTaskCommand(ClientCommand):
    """A person creates a task in the settings file, or adds a class to one."""

    do: Literal["edit_task"]
    what: Literal["create", "add_class"]
    task: Name
    stream: Name = "-"
    label: str = Field("", max_length=200)


class SettingsCommand(ClientCommand):
    """Read, check or save the settings file."""

    do: Literal["settings"]
    what: Literal["read", "check", "save"]
    text: str = Field("", max_length=MAX_TEXT)
    digest: str = Field("", max_length=64)


AnyCommand = Annotated[
    SubscribePreviews
    | StopCommand
    | OverrideCommand
    | RewardCommand
    | LabelCommand
    | TextCommand
    | GoalCommand
    | RequestCommand
    | LabelReadingsCommand
    | CorrectLabelsCommand
    | EditTaskCommand
    | SettingsCommand,
    Field(discriminator="do"),
]
COMMANDS: TypeAdapter[AnyCommand] = TypeAdapter(AnyCommand)


class Forbidden(Exception):  # noqa: N818 - reads as what happened
    """The role does not allow this command."""


def allowed(role: Role, command: AnyCommand) -> bool:
    """Return whether this role may send this command."""
    if role == "operator" or isinstance(command, SubscribePreviews):
        return True
    return isinstance(command, RequestCommand) and command.verb in READING_VERBS


@dataclass(slots=True)
class CommandPublisher:
    """Publishes commands."""

    topics: Topics
    bridge: MqttBridge
    answered: Callable[[str], None]
    """Called with the id of a question that has been answered."""
    settings: SettingsFile | None = None

    async def execute(self, role: Role, command: AnyCommand) -> dict[str, Any]:
        """Publish a command; return the response's data, empty for a message that nothing responds to.

        The gate responds to a stop and to an override: with `sent` false and a `rule` where it refused.

        Raises:
            Forbidden: the viewer's role does not allow it.
            SettingsRefused: the settings file cannot be shown, checked or written.
            Unreachable: the message could not be handed to the broker, or was not answered.
        """
        if not allowed(role, command):
            raise Forbidden("a viewer may look only; sign in with the operator's token to do this")
        match command:
            case SettingsCommand() | EditTaskCommand():
                return await self._settings(command)
            case RewardCommand():
                await self._publish("reward", value=command.value, decision=command.decision, source=SOURCE)
            case LabelCommand():
                await self._publish("label", **_label(command))
                if command.question is not None:
                    self.answered(command.question)
            case TextCommand():
                await self._publish("in", command.stream, text=command.text)
            case GoalCommand():
                await self._publish("override", "goal", value=command.value, hold_s=command.hold_s, source=SOURCE)
            case SubscribePreviews():
                pass
            case _:
                return await self.bridge.request(*_request(command))
        return {}

    async def _settings(self, command: SettingsCommand | EditTaskCommand) -> dict[str, Any]:
        if self.settings is None:
            raise SettingsRefused("this page has no settings file")
        if isinstance(command, EditTaskCommand):
            return await self.settings.edit_task(partial(_edited, command))
        match command.what:
            case "read":
                return await self.settings.read()
            case "check":
                return await self.settings.check(command.text)
            case "save":
                return await self.settings.save(command.text, command.digest)

    async def _publish(self, *parts: str, **body: Any) -> None:
        given = {key: value for key, value in body.items() if value is not None}
        await self.bridge.publish(self.topics(*parts), encode(given), 1)


def _request(
    command: RequestCommand | StopCommand | OverrideCommand | LabelReadingsCommand | CorrectLabelsCommand,
) -> tuple[tuple[str, ...], dict[str, Any], float]:
    """Return topic, body and patience of a command that is answered."""
    match command:
        case RequestCommand():
            patience_s = GATE_ANSWER_S if command.verb in GATED else ANSWER_S
            if command.verb == "explain":
                patience_s = EXPLAIN_S
            return ("request", command.verb), command.data, patience_s
        case StopCommand():
            return ("stop",), {"engaged": command.engaged}, GATE_S
        case OverrideCommand():
            body = {"value": command.value, "hold_s": command.hold_s, "source": SOURCE}
            return ("override", command.actuator), body, GATE_S
        case _:
            body = command.model_dump(exclude={"id", "do", "by"}) | {"source": _source(command.by)}
            return ("request", command.do), body, ANSWER_S


def _edited(command: EditTaskCommand, text: str, config: Config) -> str:
    """Return the text of the settings file with the task or class of a command."""
    if command.what == "create":
        return with_task(text, config, command.task, command.stream)
    return with_class(text, config, command.task, command.label)


def _source(person: str) -> str:
    """Return the source of what a person does here; the page always says that it comes from the page."""
    return f"{SOURCE}:{person}" if person else SOURCE


def _label(command: LabelCommand) -> dict[str, Any]:
    return {
        "task": command.task,
        "label": command.label,
        "text": command.text,
        "decision": command.decision,
        "id": command.question,
        "source": SOURCE,
    }
