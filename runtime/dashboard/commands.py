"""What a person may ask for on the page, and the MQTT messages it becomes.

Each wish is a validated model; looking is free to viewers, everything else needs an operator. What it does not know: whether
the agent will obey. The gate decides, and its answer comes back over MQTT.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from runtime.dashboard.auth import Role
from runtime.mqtt.topics import Topics, encode

Name = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")]
READING_VERBS = frozenset({"explain", "checkpoints"})
SOURCE = "dashboard"


class ClientCommand(BaseModel):
    """Base of everything a browser may send."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    id: int = Field(0, ge=0, le=2**53)


class SubscribePreviews(ClientCommand):
    """Previews of these streams, as long as the browser is connected and says nothing else."""

    do: Literal["watch"]
    streams: list[Name] = Field(max_length=64)


class StopWish(ClientCommand):
    """The software stop."""

    do: Literal["stop"]
    engaged: bool = Field(strict=True)


class OverrideWish(ClientCommand):
    """A person acts."""

    do: Literal["override"]
    actuator: Name
    value: str | list[float] = Field(max_length=1_024)
    hold_s: float = Field(2.0, ge=0, le=3_600)


class RewardWish(ClientCommand):
    """A person judges."""

    do: Literal["reward"]
    value: float = Field(ge=-100, le=100)
    decision: str | None = Field(None, max_length=128)


class LabelWish(ClientCommand):
    """A person names something, perhaps because the agent asked (`question`)."""

    do: Literal["label"]
    task: Name
    label: str | list[str] = Field(max_length=2_000)
    text: str | None = Field(None, max_length=8_000)
    decision: str | None = Field(None, max_length=128)
    question: str | None = Field(None, max_length=128)


class TextWish(ClientCommand):
    """A line for a text stream, as if it had come over MQTT."""

    do: Literal["text"]
    stream: Name
    text: str = Field(min_length=1, max_length=2_000)


class RequestWish(ClientCommand):
    """One of the verbs the agent answers."""

    do: Literal["request"]
    verb: Literal[
        "arm", "disarm", "mode", "promote", "rollback", "explain", "checkpoints", "reload", "record", "finetune"
    ]
    data: dict[str, Any] = Field(default_factory=dict, max_length=16)


AnyCommand = Annotated[
    SubscribePreviews | StopWish | OverrideWish | RewardWish | LabelWish | TextWish | RequestWish,
    Field(discriminator="do"),
]
WISHES: TypeAdapter[AnyCommand] = TypeAdapter(AnyCommand)


class Wire(Protocol):
    """The connection to the broker, as far as wishes need it."""

    async def publish(self, topic: str, payload: bytes, qos: int = 0) -> None:
        """Send one message.

        Raises:
            Unreachable: there is no broker now.
        """

    async def request(self, verb: str, data: dict[str, Any]) -> dict[str, Any]:
        """Ask the agent and hear its answer.

        Raises:
            Unreachable: there is no broker, or nobody answered in time.
        """


class Unreachable(Exception):  # noqa: N818 - reads as what happened
    """Broker or agent did not answer; `str` says which."""


class Forbidden(Exception):  # noqa: N818 - reads as what happened
    """The role does not allow this wish."""


def allowed(role: Role, wish: AnyCommand) -> bool:
    """Whether this role may have this wish."""
    if role == "operator" or isinstance(wish, SubscribePreviews):
        return True
    return isinstance(wish, RequestWish) and wish.verb in READING_VERBS


@dataclass(slots=True)
class Commands:
    """Carries wishes out."""

    topics: Topics
    wire: Wire
    answered: Callable[[str], None]
    """Told the id of a question that has been answered."""

    async def execute(self, role: Role, wish: AnyCommand) -> dict[str, Any]:
        """Send a wish on its way; the agent's data for a request, else an empty object.

        Raises:
            Forbidden: a viewer wants to steer.
            Unreachable: the message could not be handed to the broker, or was not answered.
        """
        if not allowed(role, wish):
            raise Forbidden("a viewer may look only; sign in with the operator's token to do this")
        if isinstance(wish, RequestWish):
            return await self.wire.request(wish.verb, wish.data)
        if not isinstance(wish, SubscribePreviews):
            await self._send(wish)
        return {}

    def _send(self, wish: StopWish | OverrideWish | RewardWish | LabelWish | TextWish) -> Awaitable[None]:
        match wish:
            case StopWish():
                return self._publish(("stop",), {"engaged": wish.engaged})
            case OverrideWish():
                body = {"value": wish.value, "hold_s": wish.hold_s, "source": SOURCE}
                return self._publish(("override", wish.actuator), body)
            case RewardWish():
                return self._publish(("reward",), _given(value=wish.value, decision=wish.decision, source=SOURCE))
            case LabelWish():
                if wish.question is not None:
                    self.answered(wish.question)
                return self._publish(("label",), _label(wish))
            case TextWish():
                return self._publish(("in", wish.stream), {"text": wish.text})

    def _publish(self, parts: tuple[str, ...], body: dict[str, Any]) -> Awaitable[None]:
        return self.wire.publish(self.topics(*parts), encode(body), 1)


def _label(wish: LabelWish) -> dict[str, Any]:
    return _given(
        task=wish.task, label=wish.label, text=wish.text, decision=wish.decision, id=wish.question, source=SOURCE
    )


def _given(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
