"""`reflexd train`: what its arguments accept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import orjson
import pytest
from click.testing import CliRunner, Result

from learners.gym.demonstrations import SCRIPTS, demonstrate, save
from runtime.cli.main import main


def run(tmp_path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(
        main, ["train", "CartPole-v1", "--steps", "60", "--out", str(tmp_path / "run"), *arguments]
    )


def results(tmp_path: Path) -> dict[str, Any]:
    read: dict[str, Any] = orjson.loads((tmp_path / "run" / "results.json").read_bytes())
    return read


def test_demonstrations_from_a_file(tmp_path: Path) -> None:
    episodes = demonstrate(gymnasium.make("CartPole-v1"), SCRIPTS["CartPole-v1"], range(2))
    save(tmp_path / "taught.npz", episodes)
    done = run(tmp_path, "--demonstrations", str(tmp_path / "taught.npz"))
    assert done.exit_code == 0, done.output
    assert results(tmp_path)["delivered"]["demonstrated_transitions"] == sum(len(e.actions) for e in episodes)


@pytest.mark.parametrize("given", ["nowhere.npz", "-3", "1.5"])
def test_what_is_neither_a_number_nor_a_file(tmp_path: Path, given: str) -> None:
    done = run(tmp_path, "--demonstrations", given)
    assert done.exit_code == 2
    assert "neither a number of episodes nor a file" in done.output
    assert not (tmp_path / "run").exists()
