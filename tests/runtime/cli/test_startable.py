"""`reflexd run` reads and checks the settings before anything starts, and the check runs beside the imports."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

GOOD = """\
agent: box
state_dir: {folder}/state
mqtt: {{url: "mqtt://127.0.0.1:1"}}
streams:
  joints: {{kind: telemetry, source: topic, fields: [a]}}
actuators:
  head: {{kind: choice, choices: [left, stay], safe: stay}}
learner: {{enabled: false}}
"""
ASK = """\
import sys, types
from pathlib import Path
from runtime.cli.options import startable
{before}
loaded = startable(Path(sys.argv[1]), lambda: print("meanwhile"))
print(loaded.config.agent, "runtime.preflight.preflight" in sys.modules)
"""
CRASH = """\
broken = types.ModuleType("runtime.preflight.preflight")
def preflight(path, loaded):
    print("a plug-in prints")
    raise RuntimeError("the check itself failed")
broken.preflight = preflight
sys.modules["runtime.preflight.preflight"] = broken
"""


def asked(folder: Path, settings: str, before: str = "") -> subprocess.CompletedProcess[str]:
    path = folder / "box.yaml"
    path.write_text(settings.format(folder=folder))
    command = [sys.executable, "-c", ASK.format(before=before), str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_settings_are_checked_beside_the_imports_and_what_that_imports_stays_out_of_the_process(tmp_path: Path) -> None:
    done = asked(tmp_path, GOOD)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["meanwhile", "box False"]


def test_what_only_the_check_finds_ends_the_start_with_file_line_and_remedy(tmp_path: Path) -> None:
    unknown = GOOD + "rewards: [{{name: r, kind: plugin, plugin: nobody-wrote-it}}]\n"
    done = asked(tmp_path, unknown)
    assert done.returncode == 2
    assert done.stdout.splitlines() == ["meanwhile"]
    assert f"{tmp_path / 'box.yaml'}:9" in done.stderr
    assert "nobody-wrote-it" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_check_that_fails_itself_is_seen_and_the_daemon_starts(tmp_path: Path) -> None:
    done = asked(tmp_path, GOOD, CRASH)
    assert done.returncode == 0
    assert "RuntimeError: the check itself failed" in done.stderr
    assert "a plug-in prints" not in done.stdout + done.stderr
    assert done.stdout.splitlines() == ["meanwhile", "box True"]


DIE = """\
def preflight(path, loaded):
    {body}
broken = types.ModuleType("runtime.preflight.preflight")
broken.preflight = preflight
sys.modules["runtime.preflight.preflight"] = broken
"""


def test_a_check_that_a_signal_ends_is_named(tmp_path: Path) -> None:
    done = asked(tmp_path, GOOD, DIE.format(body="import os; os.kill(os.getpid(), 11)"))
    assert (done.returncode, done.stdout.splitlines()) == (0, ["meanwhile", "box True"])
    assert "the check of the settings ended with signal 11" in done.stderr


def test_a_check_that_takes_too_long_is_ended_and_named(tmp_path: Path) -> None:
    short = "import runtime.preflight.forked_preflight as forked\nforked.CHECK_S = 0.2\n"
    done = asked(tmp_path, GOOD, short + DIE.format(body="import time; time.sleep(600)"))
    assert (done.returncode, done.stdout.splitlines()) == (0, ["meanwhile", "box True"])
    assert "took longer than 0.2 s and was ended" in done.stderr


def test_a_process_that_a_plugin_leaves_behind_does_not_hold_up_the_start(tmp_path: Path) -> None:
    """It has every open file of the check."""
    body = "import multiprocessing as m, time; m.get_context('fork').Process(target=time.sleep, args=(3,), daemon=True).start(); return ['box.yaml:1: wrong']"
    begun_s = time.monotonic()
    done = asked(tmp_path, GOOD, DIE.format(body=body))
    assert (done.returncode, done.stderr) == (2, "box.yaml:1: wrong\n")
    assert time.monotonic() - begun_s < 60


def test_a_problem_is_found_whatever_characters_it_contains(tmp_path: Path) -> None:
    done = asked(tmp_path, GOOD, DIE.format(body="return ['b\\udcff \u2192 wrong']"))
    assert done.returncode == 2
    assert "wrong" in done.stderr
    assert "Traceback" not in done.stderr
