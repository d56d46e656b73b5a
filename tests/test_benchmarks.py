"""Every benchmark script starts: its imports resolve and `--help` describes it. `make bench-quick` runs their bodies."""

from __future__ import annotations

import ast
import os
import runpy
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "benchmarks"
PARTS = {"handwritten.py", "read_lerobot.py"}
"""Programs that a benchmark starts."""
SCRIPTS = sorted(
    path for path in FOLDER.glob("*.py") if '__name__ == "__main__"' in path.read_text() and path.name not in PARTS
)


def test_make_bench_quick_runs_every_benchmark_or_says_what_it_needs() -> None:
    quick = runpy.run_path(str(FOLDER / "quick.py"))
    programs = {path.stem for path in FOLDER.glob("*.py") if '__name__ == "__main__"' in path.read_text()} - {"quick"}
    assert programs == set(quick["SIZES"]) | set(quick["NEEDS_MORE"])
    assert not set(quick["SIZES"]) & set(quick["NEEDS_MORE"])


def test_every_bench_script_is_a_program() -> None:
    assert set(FOLDER.glob("bench_*.py")) <= set(SCRIPTS)


def test_no_script_takes_the_folders_of_tests_for_our_packages() -> None:
    """A script that put `tests/` on the path without the root imported `tests/learners`, and failed where `make bench` starts it."""
    extending = 0
    for path in SCRIPTS:
        parts = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.Assign | ast.Expr)]
        heads = [node for node in parts if {"sys.path", "__file__"} & {ast.unparse(part) for part in ast.walk(node)}]
        if not any("sys.path" in ast.unparse(node) for node in heads):
            continue
        extending += 1
        entries: list[str] = []
        names = {"Path": Path, "__file__": str(path), "sys": type("sys", (), {"path": entries})}
        exec(compile(ast.Module(heads, []), str(path), "exec"), names)
        found = PathFinder.find_spec("learners", entries)
        assert found is not None, path.name
        assert found.origin is not None, f"{path.name}: learners is a folder of the tests"
    assert extending > 30


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script_starts_and_says_what_it_does(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    monkeypatch.setattr(os, "environ", os.environ.copy())
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "usage:" in shown
    assert len(shown.splitlines()) > 3
