"""The demo's world: what it shows, says and rewards, in lock-step and behind the wire."""

from __future__ import annotations

import io
import itertools

import numpy as np
import orjson
import pytest
from fakes_plant import Broker
from gymnasium.utils.env_checker import check_env
from PIL import Image

from actuators.sim import panorama_world
from actuators.sim.panorama_env import Panorama
from actuators.sim.panorama_plant import HOLD_S, TAKEOVERS_S, PanoramaPlant, settings
from actuators.sim.panorama_world import LISTENING, PHOTOGRAPHS, TICK_S, TURNS, Head, World, oracle, reward, wrapped
from actuators.sim.plant import Plant

BASE = "reflexd/demo"


def test_angles_wrap() -> None:
    assert [wrapped(angle) for angle in (0.0, 180.0, 190.0, -190.0, 720.0)] == [0.0, -180.0, -170.0, 170.0, 0.0]
    head = Head(175.0, "right")
    head.advance(0.2)
    assert head.angle_deg == pytest.approx(-167.0)


def test_the_reward_is_closeness_and_progress() -> None:
    assert reward(0.0, 0.0) == 1.0
    assert reward(180.0, 180.0) == 0.0
    assert reward(90.0, 81.0) == pytest.approx(0.55 + 1.0)
    assert reward(-81.0, -90.0) == pytest.approx(0.5 - 1.0)
    assert reward(90.0, 85.5) == pytest.approx(0.525 + 0.5)
    assert reward(180.0, 0.0) == 2.0


def test_the_oracle_turns_the_short_way() -> None:
    assert [oracle(d) for d in (4.0, -4.0, 30.0, -30.0, 179.0)] == ["stay", "stay", "right", "left", "right"]


def test_photographs_and_words_are_real() -> None:
    cards = panorama_world.photographs()
    assert cards.keys() == PHOTOGRAPHS.keys()
    assert all(np.asarray(card).std() > 20 for card in cards.values())
    words = panorama_world.spoken_words()
    assert words.keys() == PHOTOGRAPHS.keys()
    for recordings in words.values():
        assert len(recordings) == 10
        assert all(
            0.2 < len(samples) / panorama_world.RATE_HZ < 1.2 and np.abs(samples).max() > 8_000
            for samples in recordings
        )


def test_a_centred_picture_is_in_the_middle_of_the_view() -> None:
    world = World(3)
    for name, place in world.places.items():
        world.head.angle_deg = place
        view = world.view()
        assert view.shape == (180, 320, 3)
        card = np.asarray(panorama_world.photographs()[name]).astype(int)
        middle = view[19:161, 104:216].astype(int)
        assert np.abs(middle - card).mean() < 12
        world.head.angle_deg = wrapped(place - 30)
        shift = round(30 * panorama_world.AROUND / 360)
        right = world.view()[19:161, 104 + shift : 216 + shift].astype(int)
        assert np.abs(right[:, :60] - card[:, :60]).mean() < 25, "what is to the right is seen on the right"


def test_orders_come_by_turns_and_are_drawn_again() -> None:
    world = World(0)
    texts, targets, places = set(), set(), set()
    for _ in range(40):
        assert set(world.places) == set(PHOTOGRAPHS)
        assert world.places[world.target] == pytest.approx(wrapped(world.head.angle_deg + world.distance_deg()))
        assert world.text == LISTENING if world.spoken else world.target in world.text
        spoken = world.spoken
        texts.add(world.text)
        targets.add(world.target)
        places.add(tuple(world.places.values()))
        world.advance(11.0)
        assert world.over
        world.begin()
        assert not world.over
        assert 2.5 <= world.length_s <= 4.0
        assert world.spoken != spoken
    assert targets == set(PHOTOGRAPHS)
    assert len(texts) > 8
    assert len(places) == 40


def test_a_spoken_order_is_heard_in_every_two_seconds_and_silence_otherwise() -> None:
    world = World(0)
    while not world.spoken:
        world.begin()
    for _ in range(4):
        assert np.abs(world.voice.listen(32_000)).max() > 3_000
    world.begin()
    assert np.abs(world.voice.listen(32_000)).max() < 500


def run(env: Panorama, seed: int, policy: str, steps: int) -> float:
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    total = 0.0
    for _ in range(steps):
        action = env.oracle() if policy == "oracle" else int(rng.integers(3))
        _, gain, _, truncated, _ = env.step(np.int64(action))
        total += gain
        if truncated:
            env.reset()
    return total / steps


def test_knowing_everything_is_worth_twice_knowing_nothing() -> None:
    env = Panorama()
    knowing, ignorant = run(env, 1, "oracle", 1_500), run(env, 1, "random", 1_500)
    assert knowing > 1.0
    assert 0.3 < ignorant < 0.7


def test_lockstep_is_a_gymnasium_environment_and_repeats_itself() -> None:
    env = Panorama()
    check_env(env, skip_render_check=True)
    runs = []
    for _ in range(2):
        observation, _ = env.reset(seed=5)
        seen = [observation["image"].sum()]
        for action in (0, 1, 2, 2):
            observation, gain, *_ = env.step(np.int64(action))
            seen += [observation["image"].sum(), gain, float(observation["sound"].sum())]
        runs.append(seen)
    assert runs[0] == runs[1]


def test_the_head_says_how_fast_it_turns() -> None:
    env = Panorama()
    observation, _ = env.reset(seed=5)
    assert observation["speed"].tolist() == [0.0]
    for action, speed in ((0, -90.0), (2, 90.0), (1, 0.0)):
        before = observation["angle"]
        observation, *_ = env.step(np.int64(action))
        assert observation["speed"].tolist() == [speed]
        assert wrapped(float(observation["angle"][0] - before[0])) == pytest.approx(speed * 0.1, abs=1e-4)


def test_the_plant_publishes_every_stream() -> None:
    broker = Broker(PanoramaPlant("demo", 0))
    assert isinstance(broker.plant, Plant)
    broker.step()
    topics = [message.topic.removeprefix(BASE) for message in broker.out]
    assert topics == ["/act/head/state", "/in/front", "/in/room", "/in/joints", "/in/orders", "/plant"]
    state, front, room, joints, orders, _ = broker.out
    assert (orjson.loads(state.payload), state.retain) == ({"value": "stay", "seq": None, "boot": None}, True)
    with Image.open(io.BytesIO(front.payload)) as image:
        assert (image.format, image.size) == ("JPEG", (320, 180))
    assert len(room.payload) == 3_200
    assert set(orjson.loads(joints.payload)) == {"angle", "speed"}
    assert orders.payload.decode() == broker.plant.world.text  # type: ignore[attr-defined]


def test_every_decision_gets_the_reward_of_its_own_interval() -> None:
    plant = PanoramaPlant("demo", 1)
    broker = Broker(plant)
    broker.step()
    for index in range(5):
        broker.now_s += 0.03  # a command comes between two steps of the world
        turn = oracle(plant.world.distance_deg())
        before = plant.world.distance_deg()
        broker.command(turn, f"d{index}")
        broker.step(0.07)
        if index:
            (credited,) = broker.take("reward")
            assert credited["decision"] == f"d{index - 1}"
            assert credited["truncated"] is False
            assert "stamp" not in credited
        assert abs(plant.world.distance_deg()) <= abs(before)
    states = broker.take("act", "head", "state")
    assert [state["seq"] for state in states] == [None, 1, 2, 3, 4, 5]
    assert states[-1]["boot"] == "b"


def test_a_decision_in_force_for_long_is_rewarded_once() -> None:
    broker = Broker(PanoramaPlant("demo", 1))
    broker.step()
    broker.command("left", "d0")
    for _ in range(6):
        broker.step()
    assert [credited["decision"] for credited in broker.take("reward")] == ["d0"]
    broker.command("right", None)
    for _ in range(6):
        broker.step()
    stamps = [credited["stamp"] for credited in broker.take("reward")]
    assert len(stamps) == 3
    assert all(later - earlier == pytest.approx(2 * TICK_S) for earlier, later in itertools.pairwise(stamps))


def test_an_episode_runs_out_of_time_and_a_new_order_follows() -> None:
    plant = PanoramaPlant("demo", 1)
    broker = Broker(plant)
    broker.step()
    ended = 0
    for index in range(250):
        episode = plant.world.episode
        broker.command("left", f"d{index}")
        broker.step()
        credited = broker.take("reward")
        assert not any(each.get("done") for each in credited), "the world goes on"
        last_rewards = [each for each in credited if each["truncated"]]
        assert len(last_rewards) == plant.world.episode - episode
        if last_rewards:
            ended += 1
            assert last_rewards[0]["decision"] == f"d{index}"
            assert plant.world.episode == episode + 1
            last = [message for message in broker.out if message.topic == f"{BASE}/in/orders"][-1]
            assert last.payload.decode() == plant.world.text
    assert ended >= 2


def test_bad_commands_move_nothing() -> None:
    plant = PanoramaPlant("demo", 1)
    broker = Broker(plant)
    broker.step()
    broker.command("left", "d", retained=True)
    broker.command("up", "d")
    broker.command([1.0], "d")
    broker.command("right", "d")
    broker.command("left", "d", seq=2)
    broker.out += plant.receive(f"{BASE}/other", b"{}", retained=False, now_s=broker.now_s)
    assert plant.world.head.turn == "right"
    for _ in range(12):
        broker.step()
    assert broker.take("plant")[-1]["drops"] == {"retained": 1, "not_understood": 2, "seq": 1}


def drive(plant: PanoramaPlant, policy: str, seconds: float) -> Broker:
    broker = Broker(plant)
    rng = np.random.default_rng(0)
    for index in range(round(seconds / TICK_S)):
        broker.step()
        broker.out = [message for message in broker.out if "/in/" not in message.topic]
        turn = oracle(plant.world.distance_deg()) if policy == "oracle" else TURNS[int(rng.integers(3))]
        broker.command(turn, f"d{index}")
    return broker


def test_the_score_is_one_for_the_oracle_and_nought_for_chance() -> None:
    knowing = drive(PanoramaPlant("demo", 2), "oracle", 90).take("plant")
    assert knowing[0]["score"] is None
    assert knowing[-1]["score"] == pytest.approx(1.0, abs=0.08)
    assert drive(PanoramaPlant("demo", 2), "random", 90).take("plant")[-1]["score"] == pytest.approx(0.0, abs=0.3)


def test_takeovers_come_at_first_only_and_know_better() -> None:
    plant = PanoramaPlant("demo", 2, simulated_overrides=True)
    broker = drive(plant, "random", TAKEOVERS_S + 40)
    received = broker.take("plant")
    share = np.mean([truth["takeover"] for truth in received if truth["stamp"] < 1_000 + TAKEOVERS_S])
    assert 0.25 < share < 0.8
    assert not any(truth["takeover"] for truth in received if truth["stamp"] > 1_000 + TAKEOVERS_S + 10.0)
    overrides = broker.take("override", "head")
    assert len(overrides) > 200
    assert {body["hold_s"] for body in overrides} == {HOLD_S}
    assert {body["value"] for body in overrides} == set(TURNS)
    assert not drive(PanoramaPlant("demo", 2), "random", 10).take("override", "head")


def test_time_that_goes_back_a_little_is_ignored_and_a_jump_is_short() -> None:
    plant = PanoramaPlant("demo", 1)
    broker = Broker(plant)
    broker.step()
    broker.command("right", "d")
    angle = plant.world.head.angle_deg
    plant.step(broker.now_s - 0.05)
    assert plant.world.head.angle_deg == angle
    plant.step(broker.now_s + 3_600.0)
    assert plant.world.head.angle_deg == pytest.approx(wrapped(angle + 90.0))
    plant.step(broker.now_s)  # the clock was set back
    plant.step(broker.now_s + 0.1)
    assert plant.world.head.angle_deg == pytest.approx(wrapped(angle + 99.0))


def test_a_command_may_come_before_the_first_step() -> None:
    broker = Broker(PanoramaPlant("demo", 1))
    broker.command("right", "d")
    (report,) = broker.take("act", "head", "state")
    assert report == {"value": "right", "seq": 1, "boot": "b", "stamp": broker.now_s}
    assert not broker.take("reward")


def test_settings_for_the_world() -> None:
    from runtime.config.schema import Config

    config = Config.model_validate(settings("demo"))
    assert config.actuators["head"].safe == "stay"
