"""Shared fixtures: a real broker of the test's own, one torch thread, fixed seeds; no test may leave a task behind or tell a secret."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import os
import random
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from canary_watch import WATCH
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from fakes import Mosquitto

os.environ.setdefault("OMP_NUM_THREADS", "1")

# the same examples in every run, and no judgement of how quick the machine was; `--hypothesis-profile default` draws new ones
hypothesis_settings.register_profile(
    "fixed", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("fixed")

GRACE_TURNS = 20
"""Turns of the loop in which cancelled tasks may finish."""


def pytest_configure(config: pytest.Config) -> None:
    """Listen for secrets from the first test to the last."""
    config.pluginmanager.register(WATCH, "canaries")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """A mosquitto on a free loopback port."""
    mosquitto = Mosquitto(tmp_path)
    try:
        yield mosquitto.start()
    finally:
        mosquitto.stop()


@pytest.fixture(autouse=True)
def default_logging() -> Iterator[None]:
    """Restore structlog's defaults around each test: a command of the CLI configures them for the whole process."""
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Two cores are shared: torch takes one thread, if it is there at all; and denormals are numbers again afterwards."""
    _torch(lambda torch: torch.set_num_threads(1))
    yield
    _torch(lambda torch: torch.set_flush_denormal(False))


@pytest.fixture(autouse=True)
def fixed_seeds() -> Iterator[None]:
    """Seed what draws without a generator of its own, before and after each test: its numbers depend on no other test."""
    _seed()
    yield
    _seed()


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries draw from it
    _torch(lambda torch: torch.manual_seed(0))


def _torch(do: Callable[[Any], object]) -> None:
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "set_flush_denormal"):
        do(torch)


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Import and collect without the garbage collector, which then never looks at all that again: it lives until the end."""
    del session
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Wrap every coroutine test in the leak check."""
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.obj = leaks_nothing(item.obj)


def leaks_nothing(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """The test, failing when tasks it started are still there at its end."""

    @functools.wraps(test)
    async def checked(*args: Any, **kwargs: Any) -> None:
        before = asyncio.all_tasks()
        await test(*args, **kwargs)
        for _ in range(GRACE_TURNS):
            left = asyncio.all_tasks() - before
            if not left:
                return
            await asyncio.sleep(0)
        for task in left:
            task.cancel()
        pytest.fail(f"tasks left behind: {sorted(task.get_name() for task in left)}")

    return checked
