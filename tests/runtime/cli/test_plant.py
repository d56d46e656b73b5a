"""`reflexd plant`: which arguments it refuses, in words and without the password in them."""

from __future__ import annotations

import pytest
import yaml
from click.testing import CliRunner

from runtime.cli.main import main

PASSWORD = "hunter2-in-a-url"


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (["Nowhere-v0"], "Nowhere"),
        (["Nowhere-v0", "--config"], "Nowhere"),
        (["Blackjack-v1"], "Box, Discrete and a Dict of them can be mapped"),
        (["CartPole-v1", "--mqtt", "nonsense"], "write embedded://"),
        (["CartPole-v1", "--mqtt", f"mqtt://me:{PASSWORD}@host"], "belongs into a file given with --settings"),
        (["CartPole-v1", "--settings", "missing.yaml"], "missing.yaml:1"),
    ],
)
def test_what_cannot_be_used_is_reported_in_a_line(arguments: list[str], reported: str) -> None:
    done = CliRunner().invoke(main, ["plant", *arguments])
    assert done.exit_code == 2
    assert isinstance(done.exception, SystemExit), done.exception
    assert reported in done.output
    assert PASSWORD not in done.output


def test_the_settings_that_fit() -> None:
    done = CliRunner().invoke(main, ["plant", "Pendulum-v1", "--agent", "swing", "--rate", "25", "--config"])
    printed = yaml.safe_load(done.output)
    assert (printed["agent"], printed["tick"]["rate_hz"]) == ("swing", 25.0)
    assert printed["actuators"]["action"] | {"safe": None} == {
        "kind": "continuous", "low": [-2.0], "high": [2.0], "safe": None, "out_of_range": "clamp",
    }  # fmt: skip
