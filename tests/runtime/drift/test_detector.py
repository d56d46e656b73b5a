"""The test of one source against its own past, on worlds with a known drift."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
from drifting import numbers
from numpy.typing import NDArray

from runtime.drift.detector import LEARN, LEAST, DriftDetector, bet

WEEK_S = 7 * 86_400.0
REFERENCE = 1_800


def detector(seed: int = 0, names: tuple[str, ...] = ("brightness",)) -> DriftDetector:
    return DriftDetector(names, 5 * WEEK_S, np.random.default_rng(seed))


def changes(watched: DriftDetector, x: NDArray[np.float64]) -> list[int]:
    """The seconds at which drift began or ended."""
    return [second for second, values in enumerate(x) if watched.add(values)]


def test_a_bet_earns_nothing_on_average_where_nothing_changed() -> None:
    log_p = np.linspace(-400.0, -1e-9, 400_001)  # the bets live on very small p
    earned = np.trapezoid([bet(float(p)) * float(p) for p in np.exp(log_p)], log_p)
    assert earned == pytest.approx(1.0, abs=0.01)
    p = np.linspace(0.001, 1.0, 500)
    assert bet(1.0) < 1 < bet(0.001)
    assert all(bet(a) > bet(b) for a, b in itertools.pairwise(p.tolist()))


@pytest.mark.parametrize("kind", ["independent", "correlated", "heavy", "scenes"])
def test_a_stationary_source_raises_no_alarm(kind: str) -> None:
    watched = detector()
    most = 0.0
    for values in numbers(kind, 6 * 3_600, np.random.default_rng(71)):
        assert not watched.add(values)
        most = max(most, watched.evidence)
    assert watched.learned
    assert 0 < most < 0.2


@pytest.mark.parametrize(
    ("kind", "shift", "wanted"),
    [("independent", 5.0, 19), ("correlated", 10.0, 19), ("heavy", 10.0, 19), ("scenes", 10.0, 19)],
)
def test_a_number_that_moves_is_found_within_a_minute(kind: str, shift: float, wanted: int) -> None:
    found = 0
    for seed in range(20):
        x = numbers(kind, REFERENCE + 60, np.random.default_rng(300 + seed))
        x[REFERENCE:, 0] += shift * x[:REFERENCE, 0].std()
        watched = detector(seed)
        changed = changes(watched, x)
        assert not changed or changed[0] >= REFERENCE
        found += bool(changed)
        if changed:
            assert list(watched.explanation()) == ["brightness"]
            assert watched.explanation()["brightness"] > 0
    assert found >= wanted


def test_a_drift_ends_when_the_source_is_as_before_and_never_becomes_its_own_reference() -> None:
    x = numbers("independent", REFERENCE + 3_600 + 600, np.random.default_rng(5))
    x[REFERENCE : REFERENCE + 3_600] += 4
    watched = detector()
    changed = changes(watched, x)
    assert len(changed) == 2
    assert changed[0] < REFERENCE + 60
    assert REFERENCE + 3_600 <= changed[1] < REFERENCE + 3_600 + 120
    assert not watched.drifting


def test_a_reference_is_stored_and_restored_and_a_broken_one_refused() -> None:
    x = numbers("independent", REFERENCE, np.random.default_rng(9))
    one, other = detector(), detector()
    assert one.dump() is None
    for values in x:
        one.add(values)
    stored = json.loads(json.dumps(one.dump()))
    other.restore(stored, 20)
    assert other.learned
    assert json.loads(json.dumps(other.dump())) == stored
    assert not other.add(x[0])
    detector(names=("loudness",)).restore(stored, 20)  # of other numbers: not taken
    breakages: list[Any] = [
        {**stored, "scales": [{**stored["scales"][0], "block": 0}]},
        {**stored, "scales": [{**stored["scales"][0], "std": [1.0]}]},
        {**stored, "scales": [{**stored["scales"][0], "mean": [float("nan")] * 20}]},
        {**stored, "level": [[0.0], [1.0]]},
        {**stored, "scales": []},
        {"names": ["brightness"]},
    ]
    for broken in breakages:
        with pytest.raises((LookupError, TypeError, ValueError)):
            detector().restore(broken, 20)
    with pytest.raises(ValueError, match="does not fit"):
        detector().restore(stored, 21)


@pytest.mark.parametrize("dwell_s", [600, 1_800])
def test_a_door_that_opens_now_and_then_raises_no_alarm(dwell_s: int) -> None:
    """What has hardly changed while the reference was learned says nothing, and the noise beside it is still watched."""
    rng = np.random.default_rng(dwell_s)
    ends = np.cumsum(rng.exponential(dwell_s, 400))
    door = np.searchsorted(ends, np.arange(8 * 3_600)) % 2
    x = np.column_stack([door.astype(float), rng.normal(size=len(door))])
    watched = detector()
    assert changes(watched, x) == []
    x[:, 1] += 8
    assert changes(watched, x[:60])


def test_the_rounding_of_a_constant_number_is_no_drift() -> None:
    rng = np.random.default_rng(2)
    x = np.column_stack([np.full(2 * 3_600, 21.0), rng.normal(size=2 * 3_600)])
    x[:, 0] += rng.normal(size=len(x)) * 1e-9
    assert changes(detector(), x) == []
    assert LEAST * 5 + LEARN < REFERENCE
