"""What is measured and converted once is found again: by the same daemon, and by another one with an empty state."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from learners.model.backends import calibration_cache, fastest_backend, openvino
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.fastest_backend import BackendChoice, BackendSettings, Measured

CPU = torch.device("cpu")
EXAMPLES = [(torch.ones(1, 4),)]


def module(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(4, 3).eval()


def run(own: Calibrations, version: str = "v", *, shared: bool = True) -> torch.Tensor:
    runner, choice = own.runner(module(), EXAMPLES, version, shared=shared)
    assert choice.backend == "openvino"
    with torch.inference_mode():
        return runner(torch.full((1, 4), 0.3))


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was converted and measured."""
    done: list[str] = []
    convert, calibrate = openvino.convert, fastest_backend.calibrate

    def converting(*given: Any) -> Any:
        done.append("converted")
        return convert(*given)

    def calibrating(*given: Any) -> Any:
        done.append("calibrated")
        return calibrate(*given)

    monkeypatch.setattr(openvino, "convert", converting)
    monkeypatch.setattr(fastest_backend, "calibrate", calibrating)
    return done


def own(tmp_path: Path, name: str, wanted: BackendSettings | None = None) -> Calibrations:
    return Calibrations(tmp_path / name, wanted or BackendSettings("openvino", "float32"), tmp_path / "cache")


def test_an_empty_state_finds_what_another_daemon_measured_and_remembers_it_itself(
    tmp_path: Path, work: list[str]
) -> None:
    first = run(own(tmp_path, "one"))
    assert work == ["calibrated", "converted"]
    assert torch.equal(run(own(tmp_path, "two")), first)  # bit for bit: both read the same graph
    assert work == ["calibrated", "converted"]
    assert (tmp_path / "two" / "engine.json").is_file()
    assert Calibrations(tmp_path / "two", BackendSettings("openvino", "float32")).recall("v", CPU) is not None


def test_other_settings_versions_and_processors_are_measured_again(
    tmp_path: Path, work: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(own(tmp_path, "one"))
    run(own(tmp_path, "one", BackendSettings("openvino", "float32", tolerance=0.01)))
    run(own(tmp_path, "one"), "another")
    monkeypatch.setattr(calibration_cache, "processor", lambda: "another one bf16=0")
    run(own(tmp_path, "one"))
    assert work.count("calibrated") == 4
    assert work.count("converted") == 2  # a graph is of the weights; any processor runs it


def test_what_a_daemon_learned_itself_stays_in_its_state(tmp_path: Path) -> None:
    run(own(tmp_path, "one"), "tuned", shared=False)
    assert [path.name.split("-")[0] for path in (tmp_path / "one" / "openvino").iterdir()] == ["tuned"]
    assert not (tmp_path / "cache" / "openvino").exists()


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, work: list[str]) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    first = run(own(tmp_path, "one"))
    assert torch.equal(run(own(tmp_path, "one")), first)
    assert work == ["calibrated", "converted"]


def test_a_machine_without_a_folder_for_temporary_files_has_no_spare_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(calibration_cache.tempfile, "gettempdir", full)
    assert own(tmp_path, "one").make_spare() is None


def test_a_folder_in_the_shared_cache_that_others_may_write_is_not_used(tmp_path: Path) -> None:
    refused: list[tuple[str, str]] = []
    cache = tmp_path / "cache"
    (cache / "openvino").mkdir(parents=True)
    (cache / "openvino").chmod(0o777)
    one = Calibrations(None, BackendSettings("openvino", "float32"), cache, refused=lambda *what: refused.append(what))
    assert one.folders(shared=True) == one.folders(shared=True) == ()
    assert [folder for folder, _ in refused] == [str(cache / "openvino")], "reported once"
    assert "others may write" in refused[0][1]
    (cache / "openvino").chmod(0o700)
    assert len(one.folders(shared=True)) == 1


def test_a_graph_that_does_not_read_is_made_again(tmp_path: Path, work: list[str]) -> None:
    first = run(own(tmp_path, "one"))
    (graph,) = (tmp_path / "cache" / "openvino").glob("*/graph.xml")
    graph.write_text("<torn")
    assert torch.equal(run(own(tmp_path, "two")), first)
    assert work == ["calibrated", "converted", "converted"]


def test_the_longest_unused_graphs_go(tmp_path: Path) -> None:
    daemon = own(tmp_path, "one")
    folder = tmp_path / "cache" / "openvino"
    for number in range(calibration_cache.MOST_GRAPHS + 3):
        (folder / f"{number}").mkdir(parents=True)
        os.utime(folder / f"{number}", (number, number))
    daemon.tidy()
    assert sorted(int(path.name) for path in folder.iterdir()) == list(range(3, calibration_cache.MOST_GRAPHS + 3))
    Calibrations(None, BackendSettings()).tidy()  # no cache, nothing to do


def test_an_encoder_runs_in_float32_unless_the_settings_name_another_precision(tmp_path: Path) -> None:
    """Tokens within the tolerance do not prove equal decisions; an older program chose bfloat16 by them."""
    measured = (Measured("torch", "float32", 2.0, 1.0, 0.0), Measured("torch", "bfloat16", 1.0, 1.0, 0.004))
    automatic = own(tmp_path, "auto", BackendSettings("torch", "auto"))
    _, fresh = automatic.runner(module(), EXAMPLES, "new")
    automatic.remember("old", CPU, BackendChoice("torch", "bfloat16", measured))
    runner, old = automatic.runner(module(), EXAMPLES, "old")
    assert (fresh.precision, old.precision) == ("float32", "float32")
    assert torch.equal(runner(*EXAMPLES[0]), module()(*EXAMPLES[0]))
    forced = own(tmp_path, "forced", BackendSettings("torch", "bfloat16"))
    forced.remember("old", CPU, BackendChoice("torch", "bfloat16", measured))
    assert forced.runner(module(), EXAMPLES, "old")[1].precision == "bfloat16"
