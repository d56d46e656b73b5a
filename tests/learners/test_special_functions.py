"""The special functions against those of scipy, and what follows from their definitions."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import product

import pytest
from scipy import special, stats

from learners.special_functions import chi_square_above, gamma_above, incomplete_beta

SHARES = (1e-9, 1e-5, 0.001, 0.05, 0.3, 0.5, 0.7, 0.95, 0.999, 1 - 1e-9)


@pytest.mark.parametrize("a", [0.5, 1.0, 3.0, 4.0, 17.0, 256.0, 5_000.0])
def test_the_incomplete_beta_function(a: float) -> None:
    for b, x in product((0.5, 1.0, 2.0, 33.0, 1_000.0, 50_000.0), SHARES):
        assert incomplete_beta(a, b, x) == pytest.approx(float(special.betainc(a, b, x)), rel=1e-8, abs=1e-290), (b, x)
    assert incomplete_beta(a, 2.0, 0.0) == 0.0
    assert incomplete_beta(a, 2.0, 1.0) == 1.0


def test_it_is_the_chance_of_that_many_hits() -> None:
    for hits, trials, chance in product((1, 3, 10), (10, 40, 300), (0.01, 0.2, 0.9)):
        want = math.fsum(
            math.comb(trials, n) * chance**n * (1 - chance) ** (trials - n) for n in range(hits, trials + 1)
        )
        assert incomplete_beta(hits, trials - hits + 1, chance) == pytest.approx(want, rel=1e-10)


@pytest.mark.parametrize("degrees", [1, 2, 7, 30, 500, 20_000])
def test_the_quantile_of_chi_square(degrees: int) -> None:
    for probability in SHARES[:-1]:  # beyond, 1 - p has too few digits
        found = chi_square_above(degrees, probability)
        assert found == pytest.approx(float(special.chdtri(degrees, probability)), rel=1e-8), probability
        assert gamma_above(degrees / 2, found / 2) == pytest.approx(probability, rel=1e-8)
        assert found == pytest.approx(float(stats.chi2.isf(probability, degrees)), rel=1e-8)
    assert gamma_above(degrees, 0.0) == 1.0


def test_the_agent_imports_no_scipy_and_no_converter_before_something_needs_them() -> None:
    """They take 18 MB and half a second of each start."""
    code = (
        "import sys, runtime.agent.build, runtime.agent.jobs; "
        "print(*sorted({'scipy', 'aiohttp', 'openvino.tools.ovc', 'torch'} & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout.split() == []
