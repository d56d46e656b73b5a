"""Run the body of every benchmark with the smallest sizes that it takes, to see that it works: `make bench-quick`.

The figures that it prints mean nothing. A benchmark passes when it ends within the time limit without a traceback; a missed goal
is no failure at these sizes. `python tests/benchmarks/quick.py NAME...` runs some of them.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
OUT = "OUT"
"""Replaced by a temporary folder in the arguments."""

SIZES: dict[str, str] = {
    "bench_architectures": "--only ConvNeXT",
    "bench_backends": "bundled:minilm-l6 --rounds 1 --only 'OpenVINO float32'",
    "bench_bandit": "--seeds 1 --rounds 50",
    "bench_capture_time": "3",
    "bench_daemon": "--rounds 1 --block 2 --swap-every 1 --warmup 2",
    "bench_deliberator": "--hours 2 --texts 100 --encoded 5 --rounds 1 --corrections 25 --no-zero-shot",
    "bench_demo_policy": "--ticks 100 --updates 2 --test-ticks 100",
    "bench_demonstrations": "--seeds 0 --ticks 80 --every 80 --demonstrations 1",
    "bench_dialogues": "--seeds 1 --epochs 1",
    "bench_drift": "--trials 1 --reference 400 --weeks 0.001",
    "bench_experience": "200",
    "bench_experiments": "--only hang --runs 1",
    "bench_explain": "1",
    "bench_filters": "--seeds 2 --ticks 800 --every 400 --played 20 --curves 0 --cache OUT",
    "bench_few_labels": "--seeds 0 --per-class 2 --intents 3 --tested 2 --unlabelled 70 --epochs 1",
    "bench_finetune": "--only answer --set epochs=1 --threads 1 --out OUT",
    "bench_fleet": "--agents 2 --rows 600",
    "bench_fleet_storage": "--rows 64 --agents 2 --widths 4",
    "bench_forgetting": "--only encoder --per-class 2 --sentences 20 --tested 1 --threads 1",
    "bench_gate": "1",
    "bench_generation": "--count 1 --tokens 32",
    "bench_gpu": "--ticks 20 --seconds 0.02",
    "bench_isolation": "0.5",
    "bench_live_learning": "--minutes 0.5",
    "bench_lost_target": "--seeds 1 --minutes 1",
    "bench_noise": "--seeds 1 --kinds text-classification --labels 40",
    "bench_offpolicy": "--runs 1",
    "bench_overruns": "--ticks 100",
    "bench_gallery": "--seeds 0 --pictures 20",
    "bench_page": "--seconds 2",
    "bench_poison": "1 30",
    "bench_promotion": "--runs 1",
    "bench_replay": "2",
    "bench_rooms": "--seeds 0 --steps 300 --episodes 2",
    "bench_rows": "--rows 200",
    "bench_requests": "20",
    "bench_small_daemon": "--seconds 3",
    "bench_slices": "--only domain --seeds 0",
    "bench_small_worlds": "--seeds 1 --ticks 300 --updates 2 --steps 300 --hours 0.01",
    "bench_speech": "--minutes 1",
    "bench_start": "1",
    "bench_stop": "--runs 2",
    "bench_streams": "--streams 1 2 --cameras 1 --ticks 5",
    "bench_storage": "4",
    "bench_thermostat": "--seeds 0 --minutes 1",
    "bench_tick": "1 4",
    "bench_train": "--compare Pendulum-v1 --minutes 0.05",
    "bench_updates": "--rounds 1 --updates 2 --only CartPole-v1",
    "bench_waves": "--replay 0.0 --set epochs=1",
    "bench_wire": "1",
    "bench_wire_learning": "--steps 200 --seeds 0 --out OUT",
    "demo_curve": "--minutes 0.5 --seeds 0 --out OUT",
    "plant_curve": "--minutes 0.5",
    "search_gains": "Pendulum-v1 --iterations 1",
    "shadow_run": "60",
    "soak": "--seconds 60 --reconnects 1 --swaps 1 --out OUT",
    "state_growth": "--minutes 0.5 --out OUT",
}
"""Arguments of each benchmark."""
NEEDS_MORE = {
    "bench_windows": "data sets that are not in this repository",
    "record_demonstrations": "the output folder of a training",
    "read_lerobot": "an environment of its own with lerobot",
    "handwritten": "a daemon that runs",
    "rtsp_flashes": "a port on which a client waits",
}
"""Programs that cannot run without more, and what they need."""


def run(name: str, limit_s: float, threads: int) -> str | None:
    """Run one benchmark; return why it failed, with the end of its output, or None."""
    with tempfile.TemporaryDirectory(prefix="bench-quick-") as folder:
        arguments = [folder if word == OUT else word for word in shlex.split(SIZES[name])]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, str(FOLDER / f"{name}.py"), *arguments]
        try:
            ended = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
            )
        except subprocess.TimeoutExpired:
            return f"did not end within {limit_s:g} s"
    shown = ended.stdout + ended.stderr
    if ended.returncode not in (0, 1) or "Traceback (most recent call last)" in shown:
        return f"exit code {ended.returncode}\n{shown[-3_000:]}"
    return None if ended.stdout.strip() else "it printed nothing"


def main() -> int:
    """Run them one after the other, print a line each, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all: {', '.join(SIZES)}")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for each")
    parser.add_argument("--threads", type=int, default=1, help="threads of each")
    given = parser.parse_args()
    if unknown := set(given.names) - set(SIZES):
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}")
    failed = 0
    for name in given.names or SIZES:
        began_s = time.monotonic()
        reason = run(name, given.limit, given.threads)
        failed += reason is not None
        print(f"{name:<22}{time.monotonic() - began_s:7.1f} s  {reason or 'ok'}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
