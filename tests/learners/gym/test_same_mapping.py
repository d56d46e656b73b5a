"""`reflexd train` and the simulated plant map every environment alike, so that what one trains fits what the other acts in."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import orjson
import pytest
from fakes_plant import Broker
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rl import Shrink

from actuators import actions
from actuators.sim.gym_plant import GymPlant, settings_of
from actuators.sim.gym_spaces import UnsupportedSpaceError, from_environment
from learners.gym.observations import ObservationEncoder
from learners.model.heads import HeadOutput, actuator_values
from learners.model.spec import encoder_name
from runtime.config.schema import Config
from sensors.config import fields_of, policy_fields_of

FEW = st.integers(0, 3)
SHAPES = st.lists(FEW, max_size=3).map(tuple)
LIMITS = [-math.inf, -3e38, -2.0, 0.0, 0.5, 3e38, math.inf]


class Sampled(gymnasium.Env[Any, Any]):
    """An environment of given spaces that records what is done in it."""

    def __init__(self, observation: spaces.Space[Any], action: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation, action
        self.done: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seen = self.observation_space.sample()
        return self.seen, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.done.append(action)
        return self.seen, 1.0, False, False, {}


@st.composite
def boxes(draw: st.DrawFn) -> spaces.Box:
    dtype = draw(st.sampled_from([np.float32, np.float64, np.int64, np.uint8]))
    if dtype == np.uint8:
        return spaces.Box(0, 255, draw(st.sampled_from([(4, 5, 3), (1, 1, 1), (2, 2, 2), (3,), (0, 2, 3)])), np.uint8)
    if dtype == np.int64:
        return spaces.Box(-3, 3, draw(SHAPES), np.int64)
    low, high = sorted(draw(st.tuples(st.sampled_from(LIMITS), st.sampled_from(LIMITS))))
    return spaces.Box(low, high, draw(SHAPES), dtype)


PLAIN = st.one_of(
    boxes(),
    st.builds(spaces.Discrete, st.integers(1, 5), start=st.integers(-3, 3)),
    st.lists(st.integers(1, 4), min_size=1, max_size=3).map(spaces.MultiDiscrete),
    st.builds(lambda n, start: spaces.MultiDiscrete([n, 2], start=[start, 0]), st.integers(2, 4), st.integers(-3, 3)),
    st.just(spaces.MultiDiscrete([[2, 3], [4, 5]])),
    st.builds(spaces.MultiBinary, st.integers(1, 4)),
    st.builds(spaces.Text, st.integers(1, 4)),
    st.just(spaces.Graph(spaces.Discrete(2), None)),
    st.just(spaces.Sequence(spaces.Discrete(2))),
    st.just(spaces.OneOf((spaces.Discrete(2), spaces.Discrete(3)))),
)
KEYS = st.one_of(st.sampled_from(["view", "state", "joints", "a-1"]), st.sampled_from(["Up", "a/b", ""]))
SPACES = st.recursive(
    PLAIN,
    lambda part: st.one_of(
        st.lists(part, max_size=2).map(lambda parts: spaces.Tuple(tuple(parts))),
        st.dictionaries(KEYS, part, max_size=3).map(spaces.Dict),
    ),
    max_leaves=4,
)


def refused(run: Any) -> str | None:
    try:
        run()
    except UnsupportedSpaceError as error:
        return str(error)
    return None


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seen=SPACES, acts=SPACES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_streams_fields_actuators_and_choices_agree(seen: spaces.Space[Any], acts: spaces.Space[Any]) -> None:
    env = Sampled(seen, acts)

    def spec_of_train() -> Any:
        senses = ObservationEncoder(seen, Shrink())  # type: ignore[arg-type] # small
        return senses.specify(env, gamma=0.9, algorithm="auto")

    reported = refused(spec_of_train)
    assert (
        (reported is None)
        == (refused(lambda: settings_of(env, "x")) is None)
        == (refused(lambda: GymPlant(env, "x")) is None)
    )
    if reported is not None:
        assert "\n" not in reported
        assert reported.startswith(("observation space ", "action space "))
        return
    spec, config = spec_of_train(), Config.model_validate(settings_of(env, "x", 10.0))
    assert {stream.name: stream.fields for stream in spec.streams} == {
        name: policy_fields_of(stream) for name, stream in config.streams.items()
    }
    assert {stream.encoder for stream in spec.streams} <= {
        "",
        *(encoder_name(e.model) for e in config.encoders.values()),
    }
    assert spec.actions == actions.action_space(config.actuators)
    assert [stream.name for stream in spec.streams] == list(config.streams)
    for stream in spec.streams:
        mine = config.streams[stream.name]
        assert (stream.modality == "telemetry") == (mine.kind == "telemetry")
        if stream.modality == "telemetry":
            assert stream.width == len(fields_of(mine))
    assert spec.history == config.policy.history


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(seen=SPACES, acts=SPACES, seed=st.integers(0, 9))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_training_sees_and_does_is_what_the_plant_shows_and_executes(
    seen: spaces.Space[Any], acts: spaces.Space[Any], seed: int
) -> None:
    env = Sampled(seen, acts)
    if refused(lambda: settings_of(env, "x")) is not None:
        return
    seen.seed(seed)
    acts.seed(seed)
    plant = GymPlant(env, "cart", rate_hz=10.0)
    broker = Broker(plant, "reflexd/cart")
    broker.step(0.1)
    senses = ObservationEncoder(seen, Shrink())  # type: ignore[arg-type] # small
    tokens = senses.tokens(env.seen)
    for name in senses.streams:
        published = [message for message in broker.out if message.topic == f"reflexd/cart/in/{name}"]
        assert len(published) == 1
        if published[0].payload[:2] != b"\xff\xd8":  # a picture
            shown = orjson.loads(published[0].payload)
            assert list(shown) == [f"o{index}" for index in range(len(shown))]
            there = np.array([math.nan if x is None else x for x in shown.values()], np.float32)
            finite = np.where(np.isfinite(tokens[name][0]), tokens[name][0], math.nan)
            assert np.array_equal(there, finite, equal_nan=True)
    action = acts.sample()
    values = from_environment(acts, action)
    for number, (name, device) in enumerate(plant.devices.items(), 1):
        value = values[name] if isinstance(values[name], str) else list(values[name])
        body = {"value": value, "decision": "d", "boot": "b", "seq": number, "stamp": broker.now_s, "ttl_ms": 300}
        broker.out += plant.receive(
            device.topic, orjson.dumps(body | {"policy": "p"}), retained=False, now_s=broker.now_s
        )
    assert len(env.done) == 1, "one step, once every actuator has its command"
    assert np.allclose(np.asarray(env.done[0], float), np.asarray(action, float), rtol=1e-6)
    assert acts.contains(env.done[0])
    assert broker.take("reward") == [
        {"value": 1.0, "done": False, "truncated": False, "source": "environment", "decision": "d"}
    ]


def test_a_space_that_does_not_start_at_zero_has_the_environments_numbers_in_both() -> None:
    env = Sampled(spaces.Discrete(2), spaces.Discrete(3, start=5))
    spec = ObservationEncoder(env.observation_space).specify(env, gamma=0.9, algorithm="auto")
    assert (
        settings_of(env, "x")["actuators"]["action"]["choices"]
        == ["5", "6", "7"]
        == list(spec.actions.choices[0].choices)
    )
    import torch

    chosen = actuator_values(spec.actions, HeadOutput({"action": torch.tensor([2])}, {}, torch.zeros(1)), 0)
    assert chosen == {"action": "7"}
