"""kill -9 of whoever remembers and whoever learns, at random moments: nothing acknowledged is lost, everything starts again."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import learning
import orjson
import pytest

from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.signing import load_key
from learners.checkpoints.store import Checkpoints
from learners.experience.reader import Reader
from learners.ipc.outbox import Outbox
from learners.ipc.policy_spec import write_policy_spec
from learners.ipc.settings import LearnerConfig
from learners.worker import loop

ROOT = Path(loop.__file__).parents[2]
WRITER = """
import sys
sys.path[:0] = ["tests"]
from pathlib import Path
import learning
from learners.config.learner import ExperienceSettings
from learners.experience.store import Store
store = Store(Path(sys.argv[1]) / "experience", ExperienceSettings.model_validate({}))
start = int(sys.argv[2])
for n in range(start, 10**9):
    store.append(learning.made(n))
    if n > start:
        store.credit(0.5, decision=f"s-{n - 1}", source="late")
    if n % 3 == 0:
        assert store.flush()
        print(n, flush=True)
"""


def killed_writer(folder: Path, start: int, after_s: float) -> list[int]:
    """Let a writer run for a moment, kill it, and return what it had acknowledged."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(start)], cwd=ROOT, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    first = writer.stdout.readline()
    threading.Event().wait(after_s)
    writer.kill()
    rest, _ = writer.communicate()
    lines = (first + rest).split(b"\n")[:-1]
    return [int(line) for line in lines]


def kill_writers(folder: Path, kills: int, seed: int) -> int:
    """Returns how many acknowledged transitions or credits are missing after all kills, and never stops at one."""
    rng = random.Random(seed)
    acknowledged, start = -1, 0
    lost = 0
    whole: list[tuple[int, int]] = []
    for _ in range(kills):
        last = max(killed_writer(folder, start, rng.uniform(0.0, 0.3)))
        whole.append((start, last))
        with Reader(folder / "experience") as reader:
            rows = {row.transition.tick: row.transition for row in reader.rows(0, 1 << 40)}
        for first, end in whole:
            lost += sum(n not in rows for n in range(first, end + 1))
            lost += sum(rows[n].reward < 0.5 for n in range(first, end) if n in rows)
        acknowledged = max(acknowledged, last)
        start = max(rows) + 1
    assert acknowledged > 0
    assert lost == 0
    return lost


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    assert kill_writers(tmp_path, kills=3, seed=0) == 0


@pytest.mark.slow
def test_what_was_acknowledged_survives_kill_9_often(tmp_path: Path) -> None:
    assert kill_writers(tmp_path, kills=25, seed=1) == 0


def wait_until(what: Callable[[], object], deadline_s: float = 240.0) -> None:
    end = time.monotonic() + deadline_s
    while not what():
        assert time.monotonic() < end, "not in time"
        threading.Event().wait(0.02)


def updates(folder: Path) -> int:
    try:
        return int(orjson.loads((folder / "learner" / "progress.json").read_bytes())["updates"])
    except FileNotFoundError:
        return 0


def resumed(folder: Path) -> list[dict[str, Any]]:
    return [
        event.fields for event in Outbox(folder / "learner" / "outbox").collect() if event.kind == "learner_resumed"
    ]


def kill_learners(folder: Path, kills: int, seed: int) -> int:
    """Kill a learner that saves and promotes all the time; returns the unloadable starts."""
    rng = random.Random(seed)
    settings = {
        "state_dir": str(folder), "device": "cpu", "promotion": {"steps": ["integrity", "latency"]},
        "learner": {
            "batch": 32, "warmup": 40, "reward_delay_s": 0, "replay_gb": 1e-3, "updates_per_step": 8,
            "update_every_s": 0.05, "promote_every_s": 0.1, "save_every_s": 0.1, "priority": "normal",
        },
    }  # fmt: skip
    path = folder / "settings.json"
    path.write_bytes(LearnerConfig.model_validate(settings).model_dump_json().encode())
    write_policy_spec(folder, learning.SPEC)
    learning.fill(folder, 0, 200)
    versions = Checkpoints(folder / "checkpoints", load_key(folder))
    states = Checkpoints(folder / "learner" / "state", load_key(folder))
    unloadable, at, filled = 0, 0, 200
    for number in range(kills):
        one = subprocess.Popen([sys.executable, "-m", "learners.worker", str(path)], cwd=ROOT)
        wait_until(lambda number=number: len(resumed(folder)) == number + 1)
        unloadable += number > 0 and not resumed(folder)[-1]["resumed"]
        before = resumed(folder)[-1]["update"]
        assert before >= at or number == 0
        learning.fill(folder, filled, filled + 20)
        filled += 20
        wait_until(lambda before=before: updates(folder) > before)  # it goes on learning
        threading.Event().wait(rng.uniform(0.0, 0.5))
        one.kill()
        one.wait()
        refused: list[CheckpointRefused] = []
        live = versions.load_live(refused.append)
        state = states.load_live(refused.append)
        unloadable += len(refused) + (state is None) + (live is None and versions.live().version is not None)
        assert state is not None
        at = int(state.documents["position"]["update"])
    assert unloadable == 0
    assert at > 0
    assert versions.proposed() is not None
    with Reader(folder / "experience") as reader:
        assert reader.count() == filled
    return unloadable


def test_a_killed_learner_resumes_and_goes_on(tmp_path: Path) -> None:
    assert kill_learners(tmp_path, kills=2, seed=0) == 0


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_a_killed_learner_resumes_and_goes_on_often(tmp_path: Path) -> None:
    assert kill_learners(tmp_path, kills=25, seed=1) == 0
