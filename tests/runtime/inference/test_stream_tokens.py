"""Telemetry of a tick becomes tokens stream by stream, however many streams are converted at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from actuators.actions import ActionSpace, Choice
from learners.model.spec import PolicySpec, StreamSpec
from runtime.inference.stream_tokens import StreamTokens
from sensors.codecs.telemetry_features import policy_numbers
from sensors.config import EnumField
from sensors.readings import Observation, Telemetry

FIELDS = {"a": 2, "b": 2, "c": 3, "d": 2, "e": 2, "f": 1}
KINDS = {"e": {"x1": EnumField(kind="enum", words=("off", "low", "high"))}}
WIDTHS = FIELDS | {"e": 4}
SPEC = PolicySpec(
    tuple(StreamSpec(name, "telemetry", 1, width) for name, width in WIDTHS.items()),
    ActionSpace((Choice("lamp", ("off", "on")),)),
)
NUMBERS = st.sampled_from([0.0, -1.5, 21.25, 1013.0, 65_504.0, 1e30, float("nan"), float("inf")])
TICKS = st.lists(
    st.fixed_dictionaries({}, optional={name: st.lists(NUMBERS, min_size=n, max_size=n) for name, n in FIELDS.items()}),
    min_size=1,
    max_size=4,
)


def never(*_: Any) -> Any:
    raise AssertionError("telemetry has no encoder")


@settings(max_examples=60, deadline=None)
@given(TICKS)
def test_streams_that_are_converted_together_are_what_each_alone_is(ticks: list[dict[str, list[float]]]) -> None:
    """Some streams report at each tick, some are missing, some keep their last reading; numbers need not be finite."""
    tokens = StreamTokens(
        SPEC, {}, field_kinds=KINDS, at_arrival=(), encode=never, acting=dict, prepare_thread=lambda: None
    )
    held: dict[str, Telemetry] = {}
    for tick, new in enumerate(ticks):
        for name, given_values in new.items():
            values = [float(place) if name == "e" else one for place, one in enumerate(given_values)]
            fields = tuple(f"x{i}" for i in range(len(values)))
            held[name] = Telemetry(name, float(tick), tick, fields, np.array(values))
        observation = Observation(tick, float(tick), dict(held), dict.fromkeys(held, 0.1), frozenset(), frozenset(new))
        assert tokens.encode_new({}, observation) == ((), {})
        want = {n: policy_numbers(r.fields, r.values, KINDS.get(n, {}))[None] for n, r in held.items()}
        found, versions = tokens.of(observation)
        features = tokens.features(observation)
        assert (versions, set(found)) == ({}, set(want))
        for name, want_TW in want.items():
            assert found[name].dtype == np.float32
            assert np.array_equal(found[name], want_TW, equal_nan=True)
            assert np.array_equal(features.tokens[name], want_TW[None], equal_nan=True)
        assert tokens.not_finite(observation) == tuple(n for n, x in want.items() if not np.isfinite(x).all())
        for name in FIELDS.keys() - held.keys():
            assert not features.tokens[name].any()
        assert features.present.tolist() == [[name in held for name in WIDTHS]]
    tokens.arrivals.close()
