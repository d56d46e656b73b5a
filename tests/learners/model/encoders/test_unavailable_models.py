"""A model that cannot be opened is named in seconds, before a library tries to download it for a minute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from click.testing import CliRunner
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from learners.model.encoders.bundled_packages import unavailable
from runtime.cli.main import main


def error(kind: type[Exception]) -> Exception:
    """An error of the hub's library, which wants a response to be made."""
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (error(RepositoryNotFoundError), "not on the hub"),
        (OSError("Name or service not known"), "the hub does not answer (Name or service not known)"),
        (ValueError("Repo id must use alphanumeric chars"), "the hub does not answer (Repo id"),
        (error(HfHubHTTPError), None),
        (None, None),
    ],
)
def test_an_id_is_asked_for_once(raised: Exception | None, reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def model_info(_self: object, model: str, **_options: Any) -> None:
        asked.append(model)
        if raised is not None:
            raise raised

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    problem = unavailable("nobody/nothing-19")
    assert asked == ["nobody/nothing-19"]
    assert (problem is None) == (reason is None)
    assert reason is None or (problem is not None and reason in problem and "bundled:NAME" in problem)


@pytest.mark.parametrize(
    ("model", "reason"),
    [("/nowhere/model", "no such folder"), ("./nowhere", "no such folder"), ("bundled:nope", "unknown; bundled are")],
)
def test_the_verbs_refuse_it_before_anything_is_read(tmp_path: Path, model: str, reason: str) -> None:
    table = tmp_path / "a.csv"
    table.write_text("text,label\ngo,a\nstop,b\n")
    given = ["--task", "text-classification", "--model", model]
    tune = ["finetune", *given, "--train", str(table), "--validation", str(table), "--out", str(tmp_path / "o")]
    for verb in (tune, ["evaluate", *given, "--test", str(table)]):
        done = CliRunner().invoke(main, verb)
        assert (done.exit_code, reason in done.output, done.output.count("\n")) == (2, True, 1), done.output


def test_a_folder_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(huggingface_hub.HfApi, "model_info")
    (tmp_path / "config.json").write_text("{}")
    assert unavailable(str(tmp_path)) is None
    assert "no config.json" in str(unavailable(str(tmp_path.parent)))
