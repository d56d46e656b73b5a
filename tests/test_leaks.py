"""The leak check itself."""

from __future__ import annotations

import asyncio

import pytest
from conftest import leaks_nothing


async def test_a_task_left_behind_fails_the_test() -> None:
    async def careless() -> None:
        careless.task = asyncio.create_task(asyncio.Event().wait(), name="forgotten")  # type: ignore[attr-defined]

    with pytest.raises(pytest.fail.Exception, match="forgotten"):
        await leaks_nothing(careless)()
    await asyncio.wait([careless.task])  # type: ignore[attr-defined]


async def test_a_task_that_ends_is_no_leak() -> None:
    ended = []

    async def careful() -> None:
        await asyncio.create_task(asyncio.sleep(0))
        ended.append(True)

    await leaks_nothing(careful)()
    assert ended == [True]
