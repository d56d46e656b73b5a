"""The corridor with three rooms: what an order counts as, what earns a reward, and the plant behind the broker."""

from __future__ import annotations

import orjson
import pytest

from actuators.sim.registry import build_plant
from actuators.sim.rooms_plant import RoomsPlant
from actuators.sim.rooms_world import LIMIT_S, ROOMS, TICK_S, Drive, RoomsWorld, oracle, reward

BASE = "reflexd/rooms"


def follow(world: RoomsWorld) -> str:
    while not world.outcome:
        world.drive = oracle(world.distance_m())
        world.advance(TICK_S)
    return world.outcome


@pytest.mark.parametrize("seed", range(20))
def test_who_knows_the_step_carries_out_every_order_within_its_time(seed: int) -> None:
    world = RoomsWorld(seed)
    assert world.room is None
    assert follow(world) == "success"
    assert world.elapsed_s < LIMIT_S - 3
    assert world.rooms[0] != world.rooms[1]
    assert all(room in world.text for room in world.rooms)


def test_standing_in_another_room_and_doing_nothing_are_failures() -> None:
    world = RoomsWorld(1)
    wrong = next(name for name in ROOMS if name not in world.rooms)
    while world.room != wrong:
        world.drive = "right" if ROOMS[wrong] > world.place_m else "left"
        world.advance(TICK_S)
    world.drive = "stay"
    world.advance(0.8)
    assert world.outcome == ""
    world.advance(0.4)
    assert world.outcome == "wrong room"
    idle = RoomsWorld(2)
    for _ in range(round(LIMIT_S / TICK_S)):
        idle.advance(TICK_S)
    assert idle.outcome == "late"


def test_the_room_that_was_visited_last_may_be_stood_in() -> None:
    world = RoomsWorld(3)
    while world.visited == 0:
        world.drive = oracle(world.distance_m())
        world.advance(TICK_S)
    world.drive = "stay"
    for _ in range(15):
        world.advance(TICK_S)
    assert (world.visited, world.outcome) == (1, "")


@pytest.mark.parametrize(
    ("before", "after", "drive", "value"),
    [(3.0, 2.6, "right", 1.0), (3.0, 3.4, "left", -1.0), (3.0, 3.0, "stay", 0.0), (0.1, 0.1, "stay", 1.0), (0.0, -0.4, "right", -1.0)],
)  # fmt: skip
def test_the_reward_is_the_share_of_the_way_and_standing_where_one_is_to_stand(
    before: float, after: float, drive: Drive, value: float
) -> None:
    assert reward(before, after, drive) == pytest.approx(value)


def test_the_plant_says_each_order_once_and_rewards_each_decision_once() -> None:
    plant = build_plant("rooms", agent="rooms", seed=5)
    assert isinstance(plant, RoomsPlant)
    now_s, rewards, orders, sent = 1_000.0, list[dict[str, object]](), list[bytes](), 0
    for tick in range(600):
        now_s += TICK_S / 2
        out = plant.step(now_s) if tick % 2 else []
        if tick % 2 == 0:
            body = {
                "value": oracle(plant.world.distance_m()), "decision": f"d-{tick}", "boot": "b", "seq": tick + 1, "stamp": now_s, "ttl_ms": 500, "policy": "p",
            }  # fmt: skip
            out = plant.receive(plant.device.topic, orjson.dumps(body), retained=False, now_s=now_s)
            sent += 1
        rewards += [orjson.loads(one.payload) for one in out if one.topic == f"{BASE}/reward"]
        orders += [one.payload for one in out if one.topic == f"{BASE}/in/orders"]
    named = [one["decision"] for one in rewards]
    assert len(named) == len(set(named))
    assert sent - len(named) <= 1
    assert len(orders) == len(plant.outcomes) + 1
    assert set(plant.outcomes) == {"success"}
    assert plant.receive("other", b"", retained=False, now_s=now_s) == []
