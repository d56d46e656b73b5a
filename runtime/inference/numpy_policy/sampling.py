"""Draw actions in numpy from the outputs of a policy's networks, with exactly known probabilities. Imports no torch.

The distributions are those of `learners.model.heads` and `learners.model.gaussian_actor`, which train and evaluate the policy;
`tests/runtime/inference/numpy_policy/test_array_policy.py` compares both. Each tick has a generator of its own, so that a replay can
begin at any tick. It is Philox (Salmon et al. 2011), with the seed as its key and the tick as its counter.

Shapes: n choices of an actuator, A all continuous components together, a continuous actuators, K time constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actuators.actions import Continuous

INDEPENDENT = (1.0,)
SLOW = (16.0, 64.0)
"""Time constants of excursions in ticks, as in `learners.model.exploration`."""
EXCURSION = 256.0
"""Ticks of an excursion on average."""
EDGE = 0.999
"""Share of the range beyond which a motion counts as at its limit."""
MAX_LOG_DENSITY = 700.0
"""Of one actuator's motion; its exponential is just below the largest float64."""

_ANY = np.random.SeedSequence(0)
"""Its numbers are never drawn: the state of the tick replaces it. With `key=` numpy would ask the system for chance first."""

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


def generator_of(seed: int, tick: int) -> np.random.Generator:
    """Return the generator of a tick; those of different ticks or seeds share no number."""
    key, counter, word = seed & (2**128 - 1), tick << 64, 2**64 - 1
    bits = np.random.Philox(_ANY)
    state: Any = {
        "bit_generator": "Philox",
        "state": {
            "counter": (counter & word, counter >> 64 & word, counter >> 128 & word, counter >> 192),
            "key": (key & word, key >> 64),
        },
        "buffer": (0, 0, 0, 0),
        "buffer_pos": 4,
        "has_uint32": 0,
        "uinteger": 0,
    }
    bits.state = state
    return np.random.Generator(bits)


@dataclass(slots=True)
class ArrayOutput:
    """The output of the heads for one context; the fields are those of `learners.model.heads.HeadOutput`, with one row."""

    values: dict[str, Any] = field(default_factory=dict)
    probabilities: dict[str, Any] = field(default_factory=dict)
    value: Floats = field(default_factory=lambda: np.zeros(1, np.float32))
    scores: dict[str, Floats] = field(default_factory=dict)
    choices: dict[str, Floats] = field(default_factory=dict)


def epsilon_greedy(scores_n: Floats, epsilon: float, mask_n: NDArray[np.bool_] | None = None) -> Floats:
    """Return the probabilities n: the best allowed choice, with `epsilon` spread evenly over the allowed ones; None allows all.

    Raises:
        ValueError: damaged weights: `epsilon` makes a probability negative, or a score is not finite.
    """
    if not np.isfinite(scores_n).all():
        raise ValueError("the scores of the choices are not finite")
    allowed_n = np.ones(len(scores_n), bool) if mask_n is None else mask_n
    uniform = np.float32(1.0) / np.float32(allowed_n.sum())
    chosen_n = np.where(allowed_n, np.float32(epsilon) * uniform, np.float32(0.0))
    chosen_n[int(np.where(allowed_n, scores_n, -np.inf).argmax())] += np.float32(1.0 - epsilon)
    if not (chosen_n >= 0).all():
        raise ValueError(f"the amount of exploration is not a probability: {epsilon:g}")
    return chosen_n


def softmax(x_n: Doubles) -> Floats:
    """Return the probabilities n that are proportional to exp(x)."""
    raised_n = np.exp(x_n - x_n.max())
    probabilities_n: Floats = (raised_n / raised_n.sum()).astype(np.float32)
    return probabilities_n


def draw_index(probabilities_n: Floats, chance: np.random.Generator) -> int:
    """Draw one choice; one of probability 0 is never drawn.

    Raises:
        ValueError: a probability is not finite or negative: no decision is drawn from damaged weights.
    """
    if not (np.isfinite(probabilities_n).all() and (probabilities_n >= 0).all()):
        raise ValueError("the probabilities of the choices are not finite")
    total_n = np.cumsum(probabilities_n, dtype=np.float64)
    index = int(np.searchsorted(total_n, chance.random() * total_n[-1], side="right"))
    return min(index, int(np.flatnonzero(probabilities_n)[-1]))


class ArrayNoise:
    """Unit-variance noise of A numbers, correlated over successive calls.

    Args:
        width: A.
        time_constants: in ticks; 1 means independent.
    """

    def __init__(self, width: int, time_constants: Sequence[float]) -> None:
        self._width = width
        self._keep_K = np.array([0.0 if t <= 1 else 1 - 1 / t for t in time_constants], np.float32)
        self._fresh_K: Floats = np.sqrt(np.float32(1) - np.square(self._keep_K))
        self.state_1AK: Floats | None = None

    def __call__(self, chance: np.random.Generator) -> Floats:
        """Draw the next A."""
        fresh_1AK = chance.standard_normal((1, self._width, len(self._keep_K)), np.float32)
        if self.state_1AK is None or self.state_1AK.shape != fresh_1AK.shape:
            self.state_1AK = fresh_1AK
        else:
            self.state_1AK = self._keep_K * self.state_1AK + self._fresh_K * fresh_1AK
        noise_A: Floats = self.state_1AK[0].sum(-1) / np.float32(len(self._keep_K) ** 0.5)
        return noise_A


class Exploration:
    """The memory of exploration, which all versions of a policy share.

    Args:
        width: A.
    """

    def __init__(self, width: int) -> None:
        self.noise, self.wander = ArrayNoise(width, INDEPENDENT), ArrayNoise(width, SLOW)
        self._free: bool | None = None

    def is_free(self, epsilon: float, chance: np.random.Generator) -> bool:
        """Return whether an excursion acts at this tick: stretches of `EXCURSION` ticks, a share `epsilon` of the time."""
        fresh, ends = chance.random(2, np.float32)
        if self._free is None or ends < 1 / EXCURSION:
            self._free = bool(fresh < epsilon)
        return self._free

    def state(self) -> dict[str, NDArray[Any]]:
        """Return what the next draw depends on, by name; empty before the first draw."""
        rows = {"noise": self.noise.state_1AK, "wander": self.wander.state_1AK}
        found: dict[str, NDArray[Any]] = {name: x.copy() for name, x in rows.items() if x is not None}
        return found if self._free is None else found | {"free": np.array([self._free])}

    def restore(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Continue from what `state` returned; further names are ignored."""
        self.noise.state_1AK, self.wander.state_1AK = rows.get("noise"), rows.get("wander")
        free = rows.get("free")
        self._free = None if free is None else bool(free[0])


def bounded(x: Floats, low: Floats | np.float32, high: Floats | np.float32) -> Floats:
    """Return `np.clip` of the arguments, in a fifth of its time."""
    inside: Floats = np.minimum(np.maximum(x, low), high)
    return inside


@lru_cache(maxsize=8)
def log_shares(epsilon: float) -> tuple[float, float]:
    """Return the logs of the shares of the policy's own motion and of excursions; minus infinity for none."""
    with np.errstate(divide="ignore"):
        own, free = np.log(np.array([1 - epsilon, epsilon]))
    return float(own), float(free)


def squashed_log_density(raw_A: Doubles, noise_A: Doubles, log_std_A: Doubles) -> Doubles:
    """Log density of tanh(raw): Gaussian minus the log of tanh's slope, 2 (log 2 - raw - softplus(-2 raw)), stable."""
    gaussian_A = -0.5 * np.square(noise_A) - log_std_A - 0.5 * math.log(2 * math.pi)
    density_A: Doubles = gaussian_A - 2 * (math.log(2) - raw_A - np.logaddexp(0.0, -2 * raw_A))
    return density_A


@cache
def normal_log_cdf() -> Callable[[Doubles], Doubles]:
    """Return the logarithm of the normal distribution function; the first call imports it, which takes .3 s and 13 MB."""
    from scipy.special import log_ndtr  # noqa: PLC0415 - only continuous actuators need it

    found: Callable[[Doubles], Doubles] = log_ndtr
    return found


def unit_log_density(unit_A: Floats, mean_A: Floats, log_std_A: Floats) -> Doubles:
    """Return the log density A of actions in [-1, 1]; beyond +-`EDGE` it is constant, with the probability of that end.

    Means and deviations of several distributions give one row for each.
    """
    unit, mean, log_std = unit_A.astype(np.float64), mean_A.astype(np.float64), log_std_A.astype(np.float64)
    raw_A, edge, width = np.arctanh(np.minimum(np.maximum(unit, -EDGE), EDGE)), math.atanh(EDGE), math.log(1 - EDGE)
    std_A = np.exp(log_std)
    log_ndtr = normal_log_cdf()
    high_A, low_A = log_ndtr((mean - edge) / std_A) - width, log_ndtr((-mean - edge) / std_A) - width
    inside_A = squashed_log_density(raw_A, (raw_A - mean) / std_A, log_std)
    edge32 = np.float32(EDGE)
    return np.where(unit_A >= edge32, high_A, np.where(unit_A <= -edge32, low_A, inside_A))


@dataclass(frozen=True, slots=True)
class Motion:
    """Draws the action of all continuous actuators together.

    Args:
        actuators: in the order of the policy.
    """

    actuators: tuple[Continuous, ...]
    _parts: tuple[slice, ...] = field(init=False, repr=False, compare=False)
    """The components of each actuator among A."""
    _centre_A: Floats = field(init=False, repr=False, compare=False)
    _reach_A: Floats = field(init=False, repr=False, compare=False)
    _low_A: Floats = field(init=False, repr=False, compare=False)
    _high_A: Floats = field(init=False, repr=False, compare=False)
    _log_reach_a: Doubles = field(init=False, repr=False, compare=False)
    """Of all components of each actuator together."""

    def __post_init__(self) -> None:
        if self.actuators:
            normal_log_cdf()  # no tick waits for the import
        ends = np.cumsum([len(one.low) for one in self.actuators]).tolist()
        low_A = np.array([x for one in self.actuators for x in one.low], np.float32)
        high_A = np.array([x for one in self.actuators for x in one.high], np.float32)
        centre_A, reach_A = (high_A + low_A) / np.float32(2), (high_A - low_A) / np.float32(2)
        found = {
            "_parts": tuple(slice(start, end) for start, end in zip((0, *ends), ends, strict=False)),
            "_centre_A": centre_A,
            "_reach_A": reach_A,
            "_low_A": centre_A - reach_A,
            "_high_A": centre_A + reach_A,
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_log_reach_a", self._by_actuator(np.log(reach_A.astype(np.float64))))

    def to_units(self, unit_A: Floats) -> Floats:
        """Convert (-1, 1) to actuator units, never outside the limits by rounding."""
        return bounded(self._centre_A + self._reach_A * unit_A, self._low_A, self._high_A)

    def from_units(self, value_A: Floats) -> Floats:
        """Convert actuator units to [-1, 1]."""
        return bounded((value_A - self._centre_A) / self._reach_A, np.float32(-1), np.float32(1))

    def draw(
        self,
        mean_A: Floats,
        log_std_A: Floats,
        epsilon: float,
        explore: bool | float,  # noqa: FBT001 - as in Engine.decide
        memory: Exploration,
        chance: np.random.Generator,
    ) -> tuple[Floats, Doubles]:
        """Return the action A in (-1, 1) and the log density a of each actuator's part in its units.

        Args:
            mean_A: before squashing.
            log_std_A: likewise.
            epsilon: share of excursions.
            explore: True: noise and excursions. A number widens the noise; 0 or False gives the mean: log density 0.
            memory: of exploration.
            chance: the only source of chance.
        """
        if explore is not True:
            if float(explore) == 0.0:
                return np.tanh(mean_A), np.zeros(len(self.actuators))
            widened_A = log_std_A + np.float32(math.log(float(explore)))
            unit_A = np.tanh(mean_A + np.exp(widened_A) * memory.noise(chance))
            own_A = unit_log_density(self.from_units(self.to_units(unit_A)), mean_A, widened_A)
            return unit_A, self._by_actuator(own_A) - self._log_reach_a
        wander_A, free = memory.wander(chance), memory.is_free(epsilon, chance)
        raw_A = mean_A + np.exp(log_std_A) * memory.noise(chance)
        unit_A = np.tanh(wander_A if free else raw_A)
        stored_A = self.from_units(self.to_units(unit_A))  # as it is read from the store, in the units in float32
        return unit_A, self.mixture(stored_A, mean_A, log_std_A, epsilon)

    def mixture(self, unit_A: Floats, mean_A: Floats, log_std_A: Floats, epsilon: float) -> Doubles:
        """Return the log density a of each actuator's part of a motion in [-1, 1], in its units, excursions included."""
        standard_A = np.zeros_like(mean_A)
        means_2A, log_stds_2A = np.stack((mean_A, standard_A)), np.stack((log_std_A, standard_A))
        own_A, free_A = unit_log_density(unit_A, means_2A, log_stds_2A)
        own_a, free_a, shares = self._by_actuator(own_A), self._by_actuator(free_A), log_shares(epsilon)
        both_a: Doubles = np.logaddexp(own_a + shares[0], free_a + shares[1]) - self._log_reach_a
        return both_a

    def fill(self, out: ArrayOutput, unit_A: Floats, log_density_a: Doubles) -> None:
        """Write values and densities of each actuator."""
        values_A = self.to_units(unit_A)
        for one, part, log_density in zip(self.actuators, self._parts, log_density_a, strict=True):
            out.values[one.name] = values_A[None, part]
            out.probabilities[one.name] = np.exp(np.minimum(log_density, MAX_LOG_DENSITY))[None]

    def _by_actuator(self, x_A: Doubles) -> Doubles:
        return np.array([np.add.reduce(x_A[part]) for part in self._parts])
