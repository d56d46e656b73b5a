"""Define what the head of a row may contain, with types and ranges: a device that lies must not reach training with it.

The experience store decodes heads that its own process wrote and trusts their types (`learners/experience/transition.py`). A fleet
cannot. Used by `segment.py`. Knows neither Arrow nor MQTT.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from learners.experience.transition import FORMAT

MAX_NAME = 128
"""Characters of the name of a stream, actuator or rule."""
MAX_VERSION = 256
"""Characters of an encoder's version."""
MAX_STREAMS = 512
MAX_ACTUATORS = 64
MAX_REASON = 500
"""Characters of a reason: it goes to the log and back to the device."""

Name = Annotated[str, Field(max_length=MAX_NAME)]
EncoderVersions = Annotated[dict[Name, Annotated[str, Field(max_length=MAX_VERSION)]], Field(max_length=MAX_STREAMS)]
"""By stream."""
_Age = Annotated[float, Field(ge=-1e6, le=1e10, allow_inf_nan=False)]
"""Seconds; below 0 where a device's clock was set back."""
_Size = Annotated[int, Field(ge=0, le=1 << 23)]
_Array = tuple[Name, Literal["float16", "float32"], Annotated[list[_Size], Field(min_length=2, max_length=2)]]
_Number = Annotated[float, Field(ge=-1e12, le=1e12, allow_inf_nan=False)]
_Value = Annotated[str, Field(max_length=100_000)] | Annotated[list[_Number], Field(max_length=1_024)]
_Actions = Annotated[dict[Name, _Value], Field(max_length=MAX_ACTUATORS)]
_Choices = Annotated[list[Annotated[str, Field(max_length=100_000)]], Field(max_length=1_024)]
_Probability = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""A density, and so possibly above 1, where the action is continuous."""


class RowHead(BaseModel):
    """The head of a row, as `learners.experience.transition.encode` writes it; fields with a default are absent in old rows."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Annotated[int, Field(ge=FORMAT, le=FORMAT)]
    tokens: Annotated[list[_Array], Field(max_length=MAX_STREAMS)]
    encoder_versions: EncoderVersions
    present: Annotated[dict[Name, bool], Field(max_length=MAX_STREAMS)]
    ages_s: Annotated[dict[Name, _Age | None], Field(max_length=MAX_STREAMS)]
    actions: _Actions
    proposed: _Actions = {}
    refused: Annotated[dict[Name, Name], Field(max_length=MAX_ACTUATORS)] = {}
    allowed: Annotated[dict[Name, _Choices], Field(max_length=MAX_ACTUATORS)] = {}
    probabilities: Annotated[dict[Name, _Probability], Field(max_length=MAX_ACTUATORS)]
    by: Annotated[
        dict[Name, Literal["policy", "override", "gate", "none", "nobody"]], Field(max_length=MAX_ACTUATORS)
    ] = {}
    armed: bool = True


def head_problem(head: bytes) -> str:
    """Return what is wrong with the head of a row, at most `MAX_REASON` characters; empty if nothing is."""
    try:
        RowHead.model_validate_json(head)
    except ValidationError as error:
        return f"head: {validation_reason(error)}"
    return ""


def validation_reason(error: ValidationError) -> str:
    """Return the first problem that pydantic found, without the input, at most `MAX_REASON` characters."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(each)[:MAX_NAME] for each in first["loc"])
    return f"{place}: {first['msg']}"[:MAX_REASON]
