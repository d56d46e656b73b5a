"""Gymnasium environments behind the wire, and the registry that finds them."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import gymnasium
import numpy as np
import orjson
import pytest
from fakes_plant import Broker
from gymnasium import spaces

from actuators import actions
from actuators.actions import Choice, Continuous, Utterance
from actuators.config import ChoiceSettings, ContinuousSettings, UtteranceSettings
from actuators.sim import registry
from actuators.sim.gym_plant import GymPlant, native_rate_hz, settings
from actuators.sim.gym_spaces import UnsupportedSpaceError
from actuators.sim.panorama_plant import PanoramaPlant

BASE = "reflexd/cart"


class Pictures(gymnasium.Env[Any, Any]):
    """Grey pictures of one brightness; ends after three steps."""

    def __init__(self, observation: spaces.Space[Any] | None = None, action: spaces.Space[Any] | None = None) -> None:
        self.observation_space = observation or spaces.Box(0, 255, (8, 10, 1), np.uint8)
        self.action_space = action or spaces.Box(np.float32(0.5), np.float32(2.0), (2,), np.float32)
        self.actions: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros((8, 10, 1), np.uint8), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        return np.full((8, 10, 1), 99, np.uint8), 1.0, len(self.actions) % 3 == 0, False, {}


def cart() -> tuple[GymPlant, Broker]:
    plant = GymPlant("CartPole-v1", "cart", seed=3)
    return plant, Broker(plant, BASE)


def test_it_does_not_move_before_the_first_command() -> None:
    plant, broker = cart()
    assert plant.period_s == pytest.approx(0.02)
    for _ in range(5):
        broker.step(0.02)
    observed = broker.take("in", "state")
    assert len(observed) == 5
    assert all(each == observed[0] for each in observed)
    assert set(observed[0]) == {"o0", "o1", "o2", "o3"}
    assert broker.take("act", "action", "state") == [{"value": None, "seq": None, "boot": None}]
    assert not broker.take("reward")


def test_each_command_is_one_step_with_a_reward_by_name() -> None:
    _, broker = cart()
    broker.step(0.02)
    for index in range(4):
        broker.now_s += 0.012
        broker.command(str(index % 2), f"d{index}")
        broker.step(0.008)
    credited = broker.take("reward")
    assert [each["decision"] for each in credited] == ["d0", "d1", "d2", "d3"]
    assert all(each["value"] == 1.0 and each["done"] is False for each in credited)
    assert [state["value"] for state in broker.take("act", "action", "state")] == [None, "0", "1", "0", "1"]


def test_commands_do_not_make_time_run_faster_than_twice() -> None:
    _, broker = cart()
    broker.step(0.02)
    for index in range(20):
        broker.now_s += 0.005
        broker.command("1", f"d{index}")
    assert len(broker.take("reward")) <= 10


def test_without_commands_it_goes_on_by_its_own_clock() -> None:
    _, broker = cart()
    broker.step(0.02)
    broker.command("1", "d0")
    for _ in range(50):
        broker.step(0.02)
    credited = broker.take("reward")
    repeated = [each.get("decision") for each in credited]
    assert repeated[:6] == ["d0"] * 6, "the same action goes on, and earns"
    assert repeated[12:] == [None] * (len(credited) - 12), "a decision of long ago is not in force"
    assert all("stamp" in each for each in credited[12:])
    assert 40 <= len(credited) <= 50
    assert any(each["done"] for each in credited), "pushed to one side, the pole falls"
    ended = broker.take("plant")
    assert ended[0]["length"] == ended[0]["return"] == next(i for i, each in enumerate(credited, 1) if each["done"])


def test_the_reward_of_a_step_goes_to_the_decision_that_was_executed() -> None:
    """Also where the next command comes late: by time alone it would go to a decision that did nothing yet."""
    executed: list[int] = []

    class Numbers(gymnasium.Env[Any, Any]):
        observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        action_space = spaces.Discrete(1_000)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            return np.zeros(1, np.float32), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            executed.append(int(action))
            return np.zeros(1, np.float32), 1.0, False, False, {}

    rng = np.random.default_rng(0)
    plant = GymPlant(Numbers(), "cart", rate_hz=50)
    broker = Broker(plant, BASE)
    broker.step(0.02)
    due = [(0.02 * k + 0.003 + (rng.uniform(0.02, 0.04) if rng.random() < 0.05 else 0.0), k) for k in range(500)]
    clock = [(0.0073 + 0.02 * k, -1) for k in range(500)]
    start_s = broker.now_s
    for moment_s, k in sorted(due + clock):
        broker.now_s = start_s + moment_s
        if k >= 0:
            broker.command(str(k), str(k))
        else:
            broker.step(0.0)
    credited = broker.take("reward")
    assert len(credited) == len(executed) > 450
    assert [int(each["decision"]) for each in credited] == executed


def test_a_balancing_policy_over_the_wire_balances() -> None:
    _, broker = cart()
    broker.step(0.02)
    for index in range(1_100):
        seen = broker.take("in", "state")[-1]
        broker.out.clear()
        broker.now_s += 0.02
        broker.command("1" if seen["o2"] + 0.3 * seen["o3"] + 0.05 * seen["o1"] > 0 else "0", f"d{index}")
        if index == 1_050:
            break
    plant = broker.plant
    assert isinstance(plant, GymPlant)
    assert plant.returns == [500.0, 500.0]


def test_what_it_does_not_understand_is_dropped() -> None:
    plant, broker = cart()
    for value in ("2", "left", [1.0]):
        broker.command(value, "d")
    broker.out += plant.receive("other", b"", retained=False, now_s=broker.now_s)
    assert plant.devices["action"].inbox.drops == {"not_understood": 3}
    assert not broker.out


def test_pictures_and_vectors() -> None:
    env = Pictures()
    plant = GymPlant(env, "cart", rate_hz=10.0)
    broker = Broker(plant, BASE)
    broker.step(0.1)
    frames = [message for message in broker.out if message.topic == f"{BASE}/in/view"]
    assert frames[0].payload[:2] == b"\xff\xd8"
    broker.command([9.0, 1.0], "d0")
    broker.command([1.0], "d1")
    assert env.actions[0].tolist() == [2.0, 1.0]
    assert plant.period_s == 0.1
    assert native_rate_hz(env) == 30.0
    for _ in range(20):
        broker.step(0.1)
    assert broker.take("plant")[0]["mean_return"] == 3.0


def test_several_actuators_step_together_and_a_lone_command_waits_for_the_clock() -> None:
    env = Pictures(action=spaces.MultiDiscrete([3, 2], start=[1, 0]))
    plant = GymPlant(env, "cart", rate_hz=10.0)
    broker = Broker(plant, BASE)
    broker.step(0.1)

    def command(name: str, value: str, decision: str) -> None:
        broker.seq += 1
        body = {"value": value, "decision": decision, "boot": "b", "seq": broker.seq, "stamp": broker.now_s}
        payload = orjson.dumps(body | {"ttl_ms": 300, "policy": "p"})
        broker.out += plant.receive(plant.devices[name].topic, payload, retained=False, now_s=broker.now_s)

    command("action0", "3", "d0")
    broker.step(0.1)
    assert env.actions == [], "no command yet for the other one"
    command("action1", "1", "d0")
    assert [action.tolist() for action in env.actions] == [[3, 1]]
    broker.now_s += 0.1
    command("action0", "1", "d1")
    assert len(env.actions) == 1
    broker.step(0.1)
    assert [action.tolist() for action in env.actions] == [[3, 1], [1, 1]]
    broker.now_s += 0.1
    command("action0", "2", "d2")
    command("action1", "0", "d3")
    credited = broker.take("reward")
    assert [each.get("decision") for each in credited] == ["d0", "d1", None], "of two decisions none is named"


@pytest.mark.parametrize(
    ("observation", "action"),
    [
        (spaces.MultiBinary(3), None),
        (None, spaces.MultiBinary(2)),
        (None, spaces.Box(-np.inf, np.inf, (1,), np.float32)),
    ],
)
def test_what_cannot_be_put_on_the_wire(observation: Any, action: Any) -> None:
    with pytest.raises(UnsupportedSpaceError, match="space"):
        GymPlant(Pictures(observation, action), "cart")


@pytest.mark.parametrize("environment", ["CartPole-v1", "Pendulum-v1", "Hopper-v5", "panorama"])
def test_generated_settings_are_valid_and_fit_the_plant(environment: str) -> None:
    from runtime.config.schema import Config

    config = Config.model_validate(registry.plant_settings(environment, agent="cart"))
    plant = registry.build_plant(environment, agent="cart", seed=1)
    out = Broker(plant, BASE)
    out.step(plant.period_s)
    streams = {message.topic.rsplit("/", 1)[1] for message in out.out if "/in/" in message.topic}
    assert streams == set(config.streams)
    space = actions.action_space(config.actuators)
    (actuator,) = space.actuators
    assert plant.subscriptions() == (f"{BASE}/act/{actuator.name}/set",)
    if environment == "Pendulum-v1":
        assert actuator == Continuous("action", (-2.0,), (2.0,))
        assert config.tick.rate_hz == pytest.approx(20.0)


def test_settings_for_pictures() -> None:
    gymnasium.register("ReflexdPictures-v0", entry_point=Pictures)
    try:
        body = settings("ReflexdPictures-v0", "cart", 5.0)
    finally:
        del gymnasium.registry["ReflexdPictures-v0"]
    assert body["streams"]["view"]["kind"] == "camera"
    assert body["encoders"]
    assert body["actuators"]["action"]["safe"] == "hold"
    assert orjson.dumps(body)


@pytest.mark.parametrize(
    ("named", "rate_hz"),
    [
        ({"dt": 0.1}, 10.0), ({"tau": np.float32(0.5)}, 2.0), ({"dt": "x", "tau": 0.25}, 4.0), ({"dt": np.array([1, 2])}, 20.0),
        ({"dt": float("nan")}, 20.0), ({"dt": -1}, 20.0), ({"dt": True}, 20.0), ({"dt": 1e9}, 1e-3), ({"dt": 1e-9}, 50.0),
        ({"metadata": None}, 30.0), ({"metadata": {"render_fps": "fast"}}, 30.0), ({"metadata": {"render_fps": -5}}, 30.0),
        ({"metadata": {"render_fps": float("inf")}}, 30.0),
    ],
)  # fmt: skip
def test_what_is_no_rate_of_an_environment_is_not_taken_for_one(named: dict[str, Any], rate_hz: float) -> None:
    env = Pictures(spaces.Box(-1, 1, (2,)))
    env.metadata = {"render_fps": 20}
    for name, value in named.items():
        setattr(env, name, value)
    assert native_rate_hz(env) == pytest.approx(rate_hz)


def test_an_unknown_environment_is_named() -> None:
    with pytest.raises(ValueError, match="NoSuch-v0"):
        registry.build_plant("NoSuch-v0", agent="cart")
    with pytest.raises(ValueError, match="NoSuch-v0"):
        registry.plant_settings("NoSuch-v0", agent="cart")


def test_the_action_space_keeps_the_order_of_the_settings() -> None:
    space = actions.action_space(
        {
            "say": UtteranceSettings(kind="text", task="chat"),
            "arm": ContinuousSettings(kind="continuous", low=(0,), high=(1,)),
            "head": ChoiceSettings(kind="choice", choices=("a", "b"), safe="a"),
        }
    )
    assert space.actuators == (Utterance("say", "chat"), Continuous("arm", (0.0,), (1.0,)), Choice("head", ("a", "b")))


class Point:
    """An entry point that is there."""

    def __init__(self, made: Any) -> None:
        self.made = made

    def load(self) -> Any:
        return self.made


def test_devices_of_third_parties(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {
        "robot": lambda *, agent, seed, rate_hz: PanoramaPlant(agent, seed),
        "nothing": lambda *, agent, seed, rate_hz: rate_hz,
    }

    def points(*, group: str, name: str) -> list[Point]:
        assert group == "reflexd.actuators"
        return [Point(made[name])]

    monkeypatch.setattr(registry, "entry_points", points)
    assert isinstance(registry.build_plant("robot", agent="x"), PanoramaPlant)
    with pytest.raises(ValueError, match="a Plant is required"):
        registry.build_plant("nothing", agent="x", rate_hz=3.0)
    assert importlib.metadata.entry_points(group="reflexd.actuators") is not None


def test_a_time_limit_is_truncated_and_a_fall_is_done() -> None:
    limited = GymPlant(gymnasium.make("CartPole-v1", max_episode_steps=4), "cart", seed=3)
    broker = Broker(limited, BASE)
    for n in range(8):
        broker.step(0.02)
        broker.command(str(n % 2), f"d{n}")
    credited = broker.take("reward")
    assert [(each["done"], each["truncated"]) for each in credited[:8]] == [(False, n % 4 == 3) for n in range(8)]
