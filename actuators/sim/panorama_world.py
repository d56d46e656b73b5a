"""Simulate the demo's world: a head among photographs, an order, and a reward for following it. No clock, no broker.

Four photographs are placed around the head, with a random order and random positions in every episode. The head sees 225 of the
360 degrees and turns at 90 degrees per second. An order names one photograph, alternately in writing and in speech. A spoken
order is repeated about every second, because the sound window is two seconds long.

The reward of an interval has two parts. One is how close the head's axis is to the photograph at the end (1: centred, 0: behind).
The other is the turn towards it, as a share of the largest possible turn. This module knows no topic and no payload.

Angles are degrees, growing to the right; a distance is in [-180, 180), positive when the photograph is to the right.
"""

from __future__ import annotations

import wave
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

HEIGHT, WIDTH = 180, 320
AROUND = 512
"""Pixels of the whole panorama."""
TURN_DEG_S = 90.0
TICK_S = 0.1
"""The interval over which the full way is `TURN_DEG_S * TICK_S`."""
RATE_HZ = 16_000
LENGTH_S = (2.5, 4.0)
"""Of an episode: any picture is reached within 2 s, and what is learned comes from many orders and not from long ones."""
CENTRED_DEG = 5.0
"""The scripted controller leaves the head alone within this distance."""

PHOTOGRAPHS = {
    "cat": ("chelsea.png", (60, 0, 451, 300)),
    "coffee": ("coffee.png", (60, 20, 460, 400)),
    "rocket": ("rocket.jpg", (160, 20, 520, 427)),
    "motorcycle": ("motorcycle_left.png", (60, 100, 680, 500)),
}
"""What an order can name: a file of scikit-image's installed data and the part of it that is shown."""
ORDERS = ("find the {}", "look at the {}", "show me the {}", "turn to the {}", "where is the {}?")
LISTENING = "listen"
"""The text while the order is spoken: the last written one must not stay in force."""

Turn = Literal["left", "stay", "right"]
TURNS: tuple[Turn, ...] = ("left", "stay", "right")
_SIGN = {"left": -1.0, "stay": 0.0, "right": 1.0}
_CARD = (112, 142)
"""Pixels of one photograph."""

Samples = NDArray[np.int16]


@cache
def photographs() -> dict[str, Image.Image]:
    """Load the photographs at the size they are shown.

    Raises:
        FileNotFoundError: this scikit-image has no such file.
    """
    folder = files("skimage") / "data"
    cards = {}
    for name, (file, box) in PHOTOGRAPHS.items():
        with (folder / file).open("rb") as stream, Image.open(stream) as image:
            cards[name] = image.convert("RGB").crop(box).resize(_CARD, Image.Resampling.LANCZOS)
    return cards


@cache
def _background() -> Image.Image:
    """Load a brick wall, darkened and blurred so that the photographs differ from it."""
    with (files("skimage") / "data" / "brick.png").open("rb") as stream, Image.open(stream) as image:
        wall = image.convert("RGB").resize((AROUND, AROUND)).crop((0, 0, AROUND, HEIGHT))
    soft = wall.filter(ImageFilter.GaussianBlur(3))
    return Image.blend(soft, Image.new("RGB", soft.size, (96, 104, 112)), 0.7)


@cache
def spoken_words() -> dict[str, tuple[Samples, ...]]:
    """Load every recording of each word, 16 kHz."""
    words: defaultdict[str, list[Samples]] = defaultdict(list)
    folder = files("actuators") / "sim" / "spoken_words"
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".wav"):
            with entry.open("rb") as stream, wave.open(stream) as sound:
                samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(np.int16)
            words[entry.name.partition(".")[0]].append(samples)
    return {word: tuple(recordings) for word, recordings in words.items()}


def wrapped(angle_deg: float) -> float:
    """Return the same direction in [-180, 180) degrees."""
    return (angle_deg + 180.0) % 360.0 - 180.0


@dataclass(slots=True)
class Head:
    """A head that turns until the next command."""

    angle_deg: float = 0.0
    turn: Turn = "stay"

    @property
    def speed_deg_s(self) -> float:
        """How fast it turns now, positive to the right."""
        return _SIGN[self.turn] * TURN_DEG_S

    def advance(self, seconds: float) -> None:
        """Advance the time."""
        self.angle_deg = wrapped(self.angle_deg + self.speed_deg_s * seconds)


class Voice:
    """A room with faint noise and a repeated word; 16-bit mono at 16 kHz, chunk by chunk."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._recording: Samples | None = None
        self._rest: NDArray[np.float64] = np.zeros(0)

    def say(self, word: str | None) -> None:
        """Begin to say a word now, in a random voice; None for silence."""
        recordings = spoken_words()[word] if word is not None else ()
        self._recording = recordings[int(self._rng.integers(len(recordings)))] if recordings else None
        self._rest = np.zeros(0)

    def listen(self, count: int) -> Samples:
        """Return the next `count` samples."""
        while len(self._rest) < count:
            self._rest = np.concatenate([self._rest, self._once()])
        samples, self._rest = self._rest[:count], self._rest[count:]
        noise = self._rng.normal(0.0, 30.0, count)
        return np.clip(samples + noise, -32_768, 32_767).astype(np.int16)

    def _once(self) -> NDArray[np.float64]:
        """Return the word once, at a varying loudness, and a pause; about a second in all."""
        pause = np.zeros(int(RATE_HZ * self._rng.uniform(0.25, 0.4)))
        if self._recording is None:
            return pause
        return np.concatenate([self._recording * self._rng.uniform(0.5, 1.0), pause])


class World:
    """Photographs around a head, and an order.

    Args:
        seed: of everything that is drawn.
    """

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self.head = Head(float(self._rng.uniform(-180, 180)))
        self.voice = Voice(self._rng)
        self.episode = 0
        self.spoken = True
        self.begin()

    def begin(self) -> None:
        """Begin an episode: draw places, picture and medium of the order; the head stays where it is."""
        names = list(PHOTOGRAPHS)
        self._rng.shuffle(names)
        share = 360.0 / len(names)
        slack = share - 360.0 * _CARD[0] / AROUND
        offset = self._rng.uniform(0, 360)
        self.places = {
            name: wrapped(offset + share * index + self._rng.uniform(-0.5, 0.5) * slack)
            for index, name in enumerate(names)
        }
        self.target = names[int(self._rng.integers(len(names)))]
        self.spoken = not self.spoken
        self.length_s = float(self._rng.uniform(*LENGTH_S))
        self.elapsed_s = 0.0
        self.episode += 1
        phrase = ORDERS[int(self._rng.integers(len(ORDERS)))]
        self.text = LISTENING if self.spoken else phrase.format(self.target)
        self.voice.say(self.target if self.spoken else None)
        self._strip = self._paint()

    @property
    def over(self) -> bool:
        """Whether the episode has reached its length."""
        return self.elapsed_s >= self.length_s - 1e-9

    def advance(self, seconds: float) -> None:
        """Advance the time."""
        self.head.advance(seconds)
        self.elapsed_s += seconds

    def distance_deg(self, head: Head | None = None) -> float:
        """Return the angle from the head's axis to the ordered picture, in degrees."""
        return wrapped(self.places[self.target] - (head or self.head).angle_deg)

    def view(self) -> NDArray[np.uint8]:
        """Render what the head sees, RGB uint8 (180, 320, 3)."""
        left = round((self.head.angle_deg % 360.0) * AROUND / 360.0) - WIDTH // 2
        return np.take(self._strip, np.arange(left, left + WIDTH), axis=1, mode="wrap")

    def _paint(self) -> NDArray[np.uint8]:
        strip = _background().copy()
        cards = photographs()
        for name, place_deg in self.places.items():
            left = round((place_deg % 360.0) * AROUND / 360.0) - _CARD[0] // 2
            for shift in (-AROUND, 0, AROUND):
                strip.paste(cards[name], (left + shift, (HEIGHT - _CARD[1]) // 2))
        return np.asarray(strip)


def reward(before_deg: float, after_deg: float) -> float:
    """Reward an interval by the distances at its begin and end: closeness in [0, 1] plus progress in [-1, 1]."""
    progress = (abs(before_deg) - abs(after_deg)) / (TURN_DEG_S * TICK_S)
    return 1.0 - abs(after_deg) / 180.0 + min(1.0, max(-1.0, progress))


def oracle(distance_deg: float) -> Turn:
    """Choose the turn of the controller that knows where the picture is."""
    if abs(distance_deg) <= CENTRED_DEG:
        return "stay"
    return "right" if distance_deg > 0 else "left"


def random_turn(rng: np.random.Generator) -> Turn:
    """Choose the turn of the random controller."""
    return TURNS[int(rng.integers(len(TURNS)))]


def describe(world: World) -> dict[str, Any]:
    """Describe the true state of the world, for the page."""
    return {
        "episode": world.episode,
        "order": world.target,
        "medium": "speech" if world.spoken else "text",
        "angle": round(world.head.angle_deg, 1),
        "distance": round(world.distance_deg(), 1),
    }
