"""Simulate a robot in a corridor with three rooms, and orders of several steps. No clock, no broker.

An order names two rooms and then rest, as "first the kitchen, when you are there the study, then rest". The robot drives left or right at
2 m/s. A room is visited when the robot has stood in it for a second. Standing in a room that is not due ends the order as a failure.
Two seconds of rest after the second room end it as a success, and 20 seconds end it too.

The world knows the steps and rewards them. The robot sees only its place, for how long it has stood in the room, and the order.
Places are metres along the corridor, growing to the right.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

ROOMS = {"kitchen": -4.0, "bedroom": 0.0, "study": 4.0}
"""The place of each room's middle."""
END_M = 5.5
"""Of the corridor, on both sides."""
NEAR_M = 0.6
"""From the middle, within which the robot is in the room."""
CLEAR_M = 1.0
"""From every room, at the start."""
SPEED_M_S = 2.0
TICK_S = 0.2
"""The interval over which the full way is `SPEED_M_S * TICK_S`."""
STAY_S, REST_S, LIMIT_S = 1.0, 2.0, 20.0
ORDERS = (
    "first the {}, when you are there the {}, then rest",
    "go to the {}, then to the {}, then rest",
    "the {} please, after that the {}, then wait where you are",
    "drive to the {}; then visit the {}; then stay and rest",
)

Drive = Literal["left", "stay", "right"]
DRIVES: tuple[Drive, ...] = ("left", "stay", "right")
Outcome = Literal["", "success", "wrong room", "late"]
_SIGN = {"left": -1.0, "stay": 0.0, "right": 1.0}


class RoomsWorld:
    """A robot, three rooms and an order.

    Args:
        seed: of everything that is drawn.
    """

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self.drive: Drive = "stay"
        self.episode = 0
        self.begin()

    def begin(self) -> None:
        """Begin an episode: draw the robot's place, two rooms and the words of the order."""
        self.place_m = next(
            place
            for place in iter(lambda: float(self._rng.uniform(-END_M, END_M)), None)
            if all(abs(place - middle) > CLEAR_M for middle in ROOMS.values())
        )
        names = self._rng.permutation(list(ROOMS))[:2].tolist()
        self.rooms: tuple[str, ...] = tuple(names)
        self.text = ORDERS[int(self._rng.integers(len(ORDERS)))].format(*names)
        self.visited = 0
        """Of the rooms of the order."""
        self.stood_s = self.rested_s = self.elapsed_s = 0.0
        self.outcome: Outcome = ""
        self.drive = "stay"
        self.episode += 1

    @property
    def room(self) -> str | None:
        """The room that the robot is in."""
        return next((name for name, middle in ROOMS.items() if abs(self.place_m - middle) <= NEAR_M), None)

    @property
    def due(self) -> str | None:
        """The room to visit next; None where the robot is to rest."""
        return self.rooms[self.visited] if self.visited < len(self.rooms) else None

    def advance(self, seconds: float) -> None:
        """Advance the time, and note what the order has come to."""
        if self.outcome:
            return
        before = self.room
        self.place_m = min(END_M, max(-END_M, self.place_m + _SIGN[self.drive] * SPEED_M_S * seconds))
        self.elapsed_s += seconds
        room, is_still = self.room, self.drive == "stay"
        self.stood_s = self.stood_s + seconds if is_still and room is not None and room == before else 0.0
        self.rested_s = self.rested_s + seconds if is_still and self.due is None else 0.0
        if self.stood_s >= STAY_S - 1e-9 and room is not None:
            self._stood(room)
        if self.rested_s >= REST_S - 1e-9:
            self.outcome = "success"
        elif not self.outcome and self.elapsed_s >= LIMIT_S - 1e-9:
            self.outcome = "late"

    def _stood(self, room: str) -> None:
        if room == self.due:
            self.visited += 1
            self.rested_s = 0.0
        elif self.due is not None and room != self.rooms[self.visited - 1]:
            self.outcome = "wrong room"

    def distance_m(self) -> float:
        """Return the way to the room that is due, in metres, positive to the right; 0 where the robot is to rest."""
        return 0.0 if self.due is None else ROOMS[self.due] - self.place_m


def reward(before_m: float, after_m: float, drive: Drive) -> float:
    """Reward an interval: the way towards the room that is due as a share of the largest one; in the room, 1 for standing.

    Args:
        before_m: `distance_m` at the begin.
        after_m: the way to the same room at the end.
        drive: what the robot did.
    """
    if abs(before_m) <= NEAR_M / 2 or (abs(before_m) <= NEAR_M and drive == "stay"):
        return 1.0 if drive == "stay" else -1.0
    return float(np.clip((abs(before_m) - abs(after_m)) / (SPEED_M_S * TICK_S), -1.0, 1.0))


def oracle(distance_m: float) -> Drive:
    """Choose the drive of the controller that knows which room is due."""
    if abs(distance_m) <= NEAR_M / 2:
        return "stay"
    return "right" if distance_m > 0 else "left"


def describe(world: RoomsWorld) -> dict[str, Any]:
    """Describe the true state of the world, for people."""
    return {
        "episode": world.episode,
        "order": world.text,
        "due": world.due or "rest",
        "place": round(world.place_m, 2),
        "outcome": world.outcome,
    }
