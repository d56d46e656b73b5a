"""Define a policy as plain data: streams, actions and sizes. Converts to and from JSON; imports no torch.

A `PolicySpec` is saved next to the weights (`spec.json`), so that a checkpoint contains everything to build its policy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import orjson

from actuators.actions import ActionSpace, Actuator, Choice, Continuous, Utterance

Modality = Literal["image", "audio", "text", "telemetry"]
Algorithm = Literal["auto", "dqn", "sac", "crossq", "xqc", "bandit"]
Fusing = Literal["latent-attention", "low-rank-bilinear"]
FORMAT = 1
FINAL_EPSILON = 0.02
"""Value of a choice critic's `epsilon` at the end of training's schedule. It counts down from 1; `ExplorationSchedule` maps it."""
ROUNDING = 1e-6
LEAST_NOISE = 1e-3
"""Factor on the noise below which a motion has no useful density."""
FORMER_MODALITIES: dict[str, Modality] = {"vision": "image", "hearing": "audio", "language": "text"}
"""Names in a `spec.json` written before 0.1.0, and what they are called now."""
FORMER_FUSIONS: dict[str, Fusing] = {"bottleneck": "latent-attention", "matching": "low-rank-bilinear"}
_ACTUATORS: dict[str, type[Actuator]] = {"choice": Choice, "continuous": Continuous, "text": Utterance}


class SpecError(ValueError):
    """A spec is not one of ours or contradicts itself; `str` says where."""


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """What one stream contributes: `tokens` vectors of `width` numbers; telemetry is one vector of its fields.

    A picture's tokens are places of a grid, row by row, with `columns` in a row (0: one row).
    """

    name: str
    modality: Modality
    tokens: int
    width: int
    columns: int = 0
    fields: tuple[str, ...] = field(default=(), compare=False)
    """Names of a telemetry stream's numbers in order; none where nothing names them. They decide no shape."""
    encoder: str = field(default="", compare=False)
    """Name of the encoder's model; empty where nothing names it. Another model of the same width makes other tokens."""

    def __post_init__(self) -> None:
        if self.modality not in get_args(Modality):
            raise SpecError(f"stream {self.name}: unknown modality {self.modality!r}; one of {get_args(Modality)}")
        if self.tokens < 1 or self.width < 1:
            raise SpecError(f"stream {self.name}: {self.tokens} tokens of width {self.width}; both must be at least 1")
        if self.columns == 0:
            object.__setattr__(self, "columns", self.tokens)
        if self.columns < 1 or self.tokens % self.columns:
            raise SpecError(f"stream {self.name}: {self.tokens} tokens do not form a grid of {self.columns} columns")
        if self.modality == "telemetry" and self.tokens != 1:
            raise SpecError(f"stream {self.name}: telemetry is one token, not {self.tokens}")


def fields_version(fields: Sequence[str]) -> str:
    """Return the version of a telemetry stream's numbers: other names, or another order, are another version.

    It is stored in place of an encoder's version, so that no number of stored experience is ever read as another field.
    """
    return f"fields-{hashlib.sha256(orjson.dumps(list(fields))).hexdigest()[:16]}"


def encoder_name(model: str) -> str:
    """Return the name of an encoder's model in a spec: the last part of `bundled:NAME`, of an id or of a folder.

    A folder may move; that its weights are the same is checked by `encoder_versions` of a checkpoint's manifest.
    """
    return model.rstrip("/").rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class ExplorationSchedule:
    """How much a policy explores, from untrained to trained.

    `initial`, `final`: for choices the share of random ones, default 1 and 0.02. For continuous actuators `initial` is a factor on the
    share of excursions, and `final` one on the width of the policy's own noise; default 1. With `final` 0 a trained policy does not
    explore. `updates`: decisions that train, in which it goes from the one to the other; one update each is the usual number.
    """

    initial: float | None = None
    final: float | None = None
    updates: int = field(default=2_000, compare=False)
    """They decide how fast training goes, and no action: a recording with another number is one of the same policy."""

    def __post_init__(self) -> None:
        for name in ("initial", "final"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise SpecError(f"exploration: {name} is {value!r}; it must be between 0 and 1")
        if self.updates < 1:
            raise SpecError(f"exploration: updates is {self.updates!r}; it must be at least 1")

    @property
    def none(self) -> bool:
        """Whether a trained policy does not explore."""
        return self.final == 0

    @property
    def excursions(self) -> float:
        """Factor on the share of excursions of continuous actuators."""
        return 1.0 if self.initial is None else self.initial

    @property
    def noise(self) -> float:
        """Factor on the width of the noise of continuous actuators."""
        return 1.0 if self.final is None else self.final

    def random_choices_at(self, epsilon: float) -> float:
        """Return the share of random choices where a critic's `epsilon` has come, from 1 to `FINAL_EPSILON`."""
        ahead = (epsilon - FINAL_EPSILON) / (1 - FINAL_EPSILON)
        return self.random_choices(0.0 if abs(ahead) < ROUNDING else ahead)

    def random_choices(self, ahead: float) -> float:
        """Return the share of random choices; `ahead`: part of the schedule that is still ahead, from 1 to 0. Damaged weights give more."""
        initial, final = 1.0 if self.initial is None else self.initial, 0.02 if self.final is None else self.final
        share = final + (initial - final) * ahead
        return 0.0 if share < 0 else share


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """Everything that decides a policy's shapes and what its heads learn with; the defaults are the settings'."""

    streams: tuple[StreamSpec, ...]
    actions: ActionSpace
    fusion: Fusing = "latent-attention"
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of every actor and critic."""
    width: int = 256
    latents: int = 4
    layers: int = 2
    heads: int = 4
    history: int = 4
    gamma: float = 0.99
    algorithm: Algorithm = "auto"
    modality_dropout: float = 0.1
    feature_dropout: float = 0.3
    exploration: ExplorationSchedule = ExplorationSchedule()

    def __post_init__(self) -> None:
        names = [stream.name for stream in self.streams]
        if not names or len(set(names)) != len(names):
            raise SpecError(f"streams {names}: at least one is needed, each with a name of its own")
        if self.heads < 1 or self.width % self.heads:
            raise SpecError(
                f"width {self.width} is not a multiple of heads {self.heads}; change policy.width or policy.heads"
            )
        if self.history < 1:
            raise SpecError(f"history {self.history}: at least 1")
        if not self.hidden or min(self.hidden) < 1:
            raise SpecError(f"hidden {self.hidden}: at least one layer, each of at least one unit")
        if self.fusion == "low-rank-bilinear" and not all(self.pairs):
            raise SpecError(
                "policy.fusion: low-rank-bilinear needs a camera with policy.tokens above 1 and a microphone or a text; "
                "write `fusion: latent-attention`"
            )

    @property
    def pairs(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Which streams have places to look at, and which ones speak, by number."""
        seen = tuple(i for i, s in enumerate(self.streams) if s.modality == "image" and s.tokens > 1)
        instructing = tuple(i for i, s in enumerate(self.streams) if s.modality in ("audio", "text"))
        return seen, instructing

    @property
    def names(self) -> tuple[str, ...]:
        """The streams' names; `Features.present` and `.ages` are in this order."""
        return tuple(stream.name for stream in self.streams)

    @property
    def telemetry(self) -> tuple[StreamSpec, ...]:
        """The telemetry streams, in order."""
        return tuple(stream for stream in self.streams if stream.modality == "telemetry")

    def telemetry_groups(self) -> list[list[int]]:
        """Return the places of telemetry streams that share a width, for each width of at least two streams.

        A graph computes each group as one batch of matrices; a policy without fusion has no graph.
        """
        by_width: dict[int, list[int]] = {}
        for place, stream in enumerate(self.streams):
            if stream.modality == "telemetry" and not self.plain:
                by_width.setdefault(stream.width, []).append(place)
        return [places for places in by_width.values() if len(places) > 1]

    def graph_inputs(self) -> list[list[int]]:
        """Return for each input of the fused part's graph which flat arguments it joins: masks, ages, groups, then single streams.

        Flat arguments are masks, ages, and the tokens of each stream. Those that are joined lie side by side on the second axis.
        """
        groups = self.telemetry_groups()
        grouped = {place for places in groups for place in places}
        alone = [[place] for place in range(len(self.streams)) if place not in grouped]
        return [[0], [1], *([place + 2 for place in places] for places in (*groups, *alone))]

    @property
    def telemetry_width(self) -> int:
        """Numbers of all telemetry streams together."""
        return sum(stream.width for stream in self.telemetry)

    @property
    def plain(self) -> bool:
        """Whether there is nothing but one telemetry stream: fusion is then bypassed."""
        return len(self.streams) == 1 and self.streams[0].modality == "telemetry"

    def meaning(self) -> dict[str, Any]:
        """Return the meaning of the policy's numbers: streams with encoder or fields in order, actuators with choices or limits."""
        streams = [{"name": s.name, "fields": list(s.fields), "encoder": s.encoder} for s in self.streams]
        return {"streams": streams, "actions": [_actuator_out(actuator) for actuator in self.actions.actuators]}

    def to_json(self) -> bytes:
        """Return the spec as JSON."""
        body = asdict(self)
        body["actions"] = [_actuator_out(actuator) for actuator in self.actions.actuators]
        return orjson.dumps({"format": FORMAT, **body}, option=orjson.OPT_INDENT_2)

    @classmethod
    def from_json(cls, data: bytes | str) -> PolicySpec:
        """Parse the JSON of `to_json`.

        Raises:
            SpecError: not JSON, another format, a field too many or missing, or a contradiction.
        """
        try:
            body = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise SpecError(f"not JSON: {error}") from None
        if not isinstance(body, dict) or body.pop("format", None) != FORMAT:
            raise SpecError(f"not a policy spec of format {FORMAT}")
        try:
            body["streams"] = tuple(_stream_in(stream) for stream in body["streams"])
            if "fusion" in body:
                body["fusion"] = FORMER_FUSIONS.get(body["fusion"], body["fusion"])
            body |= {"hidden": tuple(body["hidden"])} if "hidden" in body else {}
            body |= {"exploration": ExplorationSchedule(**body["exploration"])} if "exploration" in body else {}
            body["actions"] = ActionSpace(tuple(_actuator_in(entry) for entry in body["actions"]))
            return cls(**body)
        except (TypeError, KeyError, AttributeError) as error:
            raise SpecError(f"policy spec: {error}") from None


def _stream_in(entry: dict[str, Any]) -> StreamSpec:
    modality = FORMER_MODALITIES.get(entry["modality"], entry["modality"])
    return StreamSpec(**entry | {"modality": modality, "fields": tuple(entry.get("fields", ()))})


def _actuator_out(actuator: Actuator) -> dict[str, Any]:
    kind = next(kind for kind, cls in _ACTUATORS.items() if isinstance(actuator, cls))
    return {"kind": kind, **asdict(actuator)}


def _actuator_in(entry: dict[str, Any]) -> Actuator:
    fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}
    return _ACTUATORS[fields.pop("kind")](**fields)
