"""Turn the readings of a tick into tokens: encode what is new, remember what is not, and take what was encoded at arrival.

The engine has one `StreamTokens`. Streams that share an encoder are encoded in one batch. A reading is encoded once for each version
of its encoder. Telemetry needs no encoder.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from learners.model.spec import PolicySpec
from runtime.inference.arrival_encoder import ArrivalEncoder
from runtime.inference.numpy_policy.history import TickFeatures
from sensors.codecs.telemetry_features import policy_numbers
from sensors.config import FieldKind
from sensors.readings import Observation, Reading, Telemetry

READY = 16
"""Readings of a stream with tokens that were made at arrival; `align: common` may choose an older one."""


class Versioned(Protocol):
    """What is needed of an encoder, besides `encode`."""

    version: str


@dataclass(slots=True)
class _Cached:
    reading: Reading
    version: str
    tokens_TW: NDArray[Any]
    is_finite: bool
    features_1TW: NDArray[np.float32]
    """The tokens as the policy reads them; nothing changes them in place."""


def _cached(reading: Reading, version: str, tokens_TW: NDArray[Any]) -> _Cached:
    is_finite = bool(np.isfinite(tokens_TW).all())
    return _Cached(reading, version, tokens_TW, is_finite, np.array(tokens_TW, np.float32)[None])


class StreamTokens:
    """The newest tokens of every stream.

    Args:
        spec: of the policy.
        routes: which encoder reads each stream; telemetry has none.
        field_kinds: by telemetry stream, the fields that are no plain numbers.
        at_arrival: names of encoders that encode readings when these arrive, through `arrivals`.
        encode: returns the tokens [B, T, W] of readings of one modality, given an encoder.
        acting: returns the encoders of the acting version, by name.
        prepare_thread: called at the start of the thread of `arrivals`.
    """

    def __init__(
        self,
        spec: PolicySpec,
        routes: Mapping[str, str],
        *,
        field_kinds: Mapping[str, Mapping[str, FieldKind]],
        at_arrival: Collection[str],
        encode: Callable[[Any, Sequence[Reading]], NDArray[np.float16]],
        acting: Callable[[], Mapping[str, Versioned]],
        prepare_thread: Callable[[], None],
    ) -> None:
        self._routes, self._field_kinds = routes, field_kinds
        self._names = spec.names
        self._nothing = {s.name: np.zeros((1, s.tokens, s.width), np.float32) for s in spec.streams}
        """The features of a missing stream."""
        self._encode, self._acting = encode, acting
        self._cache: dict[str, _Cached] = {}
        early = {stream: name for stream, name in routes.items() if name in at_arrival}
        self._ready_tokens = {stream: deque[_Cached](maxlen=READY) for stream in early}
        """By stream, tokens that were made when their readings arrived."""
        self._encoding = {name: threading.Lock() for name in {*early.values()}}
        """An encoder's graph serves one thread at a time."""
        self.arrivals = ArrivalEncoder(early, self._encode_early, prepare_thread)

    def encode_new(
        self, encoders: Mapping[str, Versioned], observation: Observation
    ) -> tuple[tuple[str, ...], dict[str, float]]:
        """Encode new readings, streams that share an encoder in one batch; return these streams and the seconds of each encoder."""
        work: dict[str, list[Reading]] = defaultdict(list)
        early: list[str] = []
        telemetry: list[Telemetry] = []
        for name, reading in observation.readings.items():
            cached = self._cache.get(name)
            if isinstance(reading, Telemetry):
                if cached is None or cached.reading is not reading:
                    telemetry.append(reading)
            elif name in self._routes:
                encoder = encoders[self._routes[name]]
                if cached is None or cached.reading is not reading or cached.version != encoder.version:
                    if (ready := self._ready_for(reading, encoder.version)) is not None:
                        self._cache[name] = ready
                        early.append(name)
                    else:
                        work[self._routes[name]].append(reading)
        self._take_numbers(telemetry)
        took_s: dict[str, float] = {}
        for route, readings in work.items():
            encoder, start = encoders[route], time.perf_counter()
            tokens_BTW = self._encode_now(route, encoder, readings)
            for reading, tokens_TW in zip(readings, tokens_BTW, strict=True):
                self._cache[reading.stream] = _cached(reading, encoder.version, tokens_TW)
            took_s[route] = time.perf_counter() - start
        return (*early, *(reading.stream for readings in work.values() for reading in readings)), took_s

    def not_finite(self, observation: Observation) -> tuple[str, ...]:
        """Return the observed streams with tokens that are not finite: half precision overflows above 65504."""
        return tuple(name for name in observation.readings if name in self._cache and not self._cache[name].is_finite)

    def of(self, observation: Observation) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
        """Return the tokens [T, W] of the observed streams of the policy, and the version of the encoder that made them."""
        known = frozenset(self._names)
        tokens = {name: self._cache[name].tokens_TW for name in observation.readings if name in known}
        return tokens, {name: self._cache[name].version for name in tokens if name in self._routes}

    def features(self, observation: Observation) -> TickFeatures:
        """Return the features of this tick; missing streams are zeros."""
        present = [name in observation.readings for name in self._names]
        tokens = {
            name: self._cache[name].features_1TW if there else self._nothing[name]
            for name, there in zip(self._names, present, strict=True)
        }
        ages = [observation.ages_s.get(name, float("inf")) for name in self._names]
        return TickFeatures(tokens, np.array([present]), np.array([ages], np.float32))

    def _take_numbers(self, readings: Sequence[Telemetry]) -> None:
        """Take new telemetry; readings of as many plain numbers become one array."""
        plain: dict[int, list[Telemetry]] = defaultdict(list)
        for reading in readings:
            kinds = self._field_kinds.get(reading.stream, {})
            if kinds or len(readings) == 1:
                numbers_W = policy_numbers(reading.fields, reading.values, kinds)
                self._cache[reading.stream] = _cached(reading, "", numbers_W[None])
            else:
                plain[len(reading.values)].append(reading)
        for width, group in plain.items():
            numbers_G1TW = np.concatenate([one.values for one in group]).astype(np.float32).reshape(-1, 1, 1, width)
            finite_G: Any = np.isfinite(numbers_G1TW).reshape(len(group), -1).all(axis=1)
            for reading, features_1TW, is_finite in zip(group, numbers_G1TW, finite_G, strict=True):
                self._cache[reading.stream] = _Cached(reading, "", features_1TW[0], bool(is_finite), features_1TW)

    def _ready_for(self, reading: Reading, version: str) -> _Cached | None:
        """Return the tokens that an encoder of this version made when the reading arrived."""
        ready = tuple(self._ready_tokens.get(reading.stream, ()))
        return next((one for one in ready if one.reading is reading and one.version == version), None)

    def _encode_now(self, route: str, encoder: Any, readings: Sequence[Reading]) -> NDArray[np.float16]:
        """Return the tokens [B, T, W] of readings, one by one for an encoder that otherwise works at arrival: a replay is exact."""
        lock = self._encoding.get(route)
        if lock is None:
            return self._encode(encoder, readings)
        with lock:
            return np.concatenate([self._encode(encoder, [reading]) for reading in readings])

    def _encode_early(self, reading: Reading) -> None:
        """Store the tokens of a reading that arrived, in a thread of `arrivals`."""
        route = self._routes[reading.stream]
        encoder = self._acting()[route]
        (tokens_TW,) = self._encode_now(route, encoder, [reading])
        self._ready_tokens[reading.stream].append(_cached(reading, encoder.version, tokens_TW))
