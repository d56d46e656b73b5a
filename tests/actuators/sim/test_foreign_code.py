"""Foreign code changes settings of the process for itself alone, and what it closes is open afterwards."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actuators.sim.foreign_code import ENDED, RARE_CALLS, ForeignCode, _umask
from learners.gym.torch_settings import guard_torch


def guarded() -> ForeignCode:
    code = ForeignCode()
    guard_torch(code)
    return code


CHANGES: dict[str, tuple[Callable[[], object], Callable[[], Any]]] = {
    "folder": (lambda: os.chdir("/"), os.getcwd),
    "umask": (lambda: os.umask(0o707), _umask),
    "errors": (lambda: np.seterr(all="raise"), np.geterr),
    "recursion": (lambda: sys.setrecursionlimit(5_000), sys.getrecursionlimit),
    "garbage": (gc.disable, gc.isenabled),
    "warnings": (lambda: warnings.simplefilter("ignore", BytesWarning), lambda: list(warnings.filters)),
    "device": (lambda: torch.set_default_device("meta"), lambda: torch.empty(0).device.type),
    "type": (lambda: torch.set_default_dtype(torch.float64), torch.get_default_dtype),
    "gradients": (lambda: torch.set_grad_enabled(False), torch.is_grad_enabled),
    "threads": (lambda: torch.set_num_threads(torch.get_num_threads() + 1), torch.get_num_threads),
    "output": (lambda: setattr(sys, "stdout", sys.stderr), lambda: sys.stdout is sys.stderr),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_is_as_before_and_in_force_again_in_the_next_call(name: str) -> None:
    change, read = CHANGES[name]
    code = guarded()
    before = read()
    code.call(change, "x", is_rare=True)
    assert read() == before
    assert code.call(read, "x") != before
    assert read() == before


def test_a_handler_of_a_signal_is_put_back_with_one_warning() -> None:
    code, before = guarded(), signal.getsignal(signal.SIGTERM)

    def ignore() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    with pytest.warns(UserWarning, match="step 3 changed the handler of SIGTERM; it is as before"):
        code.call(ignore, "step 3", is_rare=True)
    code.call(ignore, "step 4", is_rare=True)
    assert signal.getsignal(signal.SIGTERM) == before


def test_outputs_that_were_closed_are_open_again(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    code = guarded()

    def close() -> None:
        sys.stdout.close()
        sys.stderr.close()

    code.call(close, "x")
    print("one", file=sys.stderr)
    with pytest.warns(UserWarning, match="x changed standard error"):
        code.call(lambda: os.close(2), "x", is_rare=True)
    print("two", file=sys.stderr)
    assert capfd.readouterr().err == "one\ntwo\n"


def test_a_forked_copy_that_returns_ends() -> None:
    """It would train, and write the results, a second time."""
    code = ForeignCode()
    child = code.call(os.fork, "x")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == ENDED


def test_a_deleted_folder_and_an_error_change_nothing(tmp_path: Path) -> None:
    code, before = guarded(), Path.cwd()
    (tmp_path / "gone").mkdir()

    def leave() -> None:
        os.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        raise KeyError

    with pytest.raises(KeyError):
        code.call(leave, "x", is_rare=True)
    assert Path.cwd() == before
    assert code.call(lambda: code.call(Path.cwd, "within"), "x") == before
    assert {each.name for each in RARE_CALLS} >= {"the umask", "the working directory"}
