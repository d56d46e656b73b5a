"""Live learning in virtual time: how well a daemon acts, minute by minute, from an imported policy or from nothing.

    python tests/benchmarks/bench_live_learning.py --policy runs/cart --minutes 60 --seeds 0 1 2
    python tests/benchmarks/bench_live_learning.py --minutes 68 --seeds 0 1 2

With --policy the output of `reflexd train` is imported first, as `reflexd checkpoints import` does. Prints the events of promotion,
the mean return of the episodes of every minute, and the lowest mean of any 5 minutes. Counts collapses: minutes with a mean below 400
after the goal was reached. --ungated makes every candidate live at once, for comparison.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import structlog  # noqa: E402 - after the path
import torch  # noqa: E402
from virtual_daemon import VirtualDaemon, virtual_daemon  # noqa: E402

from learners.checkpoints.store import open_checkpoints  # noqa: E402
from runtime.cli.checkpoints import import_directory  # noqa: E402
from runtime.config.loader import load  # noqa: E402

WINDOW_S = 300.0
FALLEN = 400.0


def means(daemon: VirtualDaemon) -> list[tuple[int, float]]:
    """Return the mean return of the episodes that ended in each minute."""
    found: dict[int, list[float]] = {}
    for at_s, gained, _ in daemon.returns:
        found.setdefault(int(at_s // 60) + 1, []).append(gained)
    return [(minute, sum(values) / len(values)) for minute, values in sorted(found.items())]


def lowest(daemon: VirtualDaemon, since_s: float, window_s: float = WINDOW_S) -> float | None:
    """Return the lowest mean return over any window that began after `since_s`; None where none is over."""
    rows = [(at_s, gained) for at_s, gained, _ in daemon.returns if at_s >= since_s]
    found = [
        sum(values) / len(values)
        for index, (end_s, _) in enumerate(rows)
        if end_s - rows[0][0] >= window_s
        and (values := [gained for at_s, gained in rows[: index + 1] if at_s > end_s - window_s])
    ]
    return min(found, default=None)


def collapses(daemon: VirtualDaemon, since_s: float) -> tuple[int, int]:
    """Return how many minutes after `since_s` had a mean below `FALLEN`, and the longest row of them."""
    count = longest = row = 0
    for minute, mean in means(daemon):
        row = row + 1 if mean < FALLEN and (minute - 1) * 60.0 >= since_s else 0
        count, longest = count + (row > 0), max(longest, row)
    return count, longest


async def run(seed: int, given: argparse.Namespace) -> None:
    """One run."""
    began_s = time.monotonic()

    def prepare(path: Path) -> None:
        config = load(path).config
        import_directory(
            open_checkpoints(config.state_dir, config.promotion), given.policy, ask=lambda _fingerprint: True
        )

    with tempfile.TemporaryDirectory() as folder:
        changes: dict[str, Any] = {"learner": {"updates_per_step": given.updates_per_step}}
        if given.ungated:
            changes["promotion"] = {"experiments": False, "steps": ["integrity"]}
        async with virtual_daemon(
            Path(folder), given.env, seed=seed, prepare=prepare if given.policy else None, **changes
        ) as daemon:
            shown = 0
            for _ in range(round(given.minutes)):
                await daemon.run(60.0)
                for at_s, kind, data in daemon.events[shown:]:
                    if kind.startswith(("policy_", "experiment_", "checkpoint_")):
                        figures = {k: v for k, v in data.items() if k != "steps" and not isinstance(v, dict)}
                        print(f"  {at_s / 60:6.2f} min  {kind} {figures}", flush=True)
                shown = len(daemon.events)
                print(f"  minute {means(daemon)[-1][0]}: {means(daemon)[-1][1]:.0f}", flush=True)
            reached = next(
                (at_s for i, (at_s, *_) in enumerate(daemon.returns)
                 if i >= 19 and sum(g for _, g, _ in daemon.returns[i - 19 : i + 1]) / 20 >= given.goal), None,
            )  # fmt: skip
            since_s = 0.0 if given.policy else (reached if reached is not None else 8 * 60.0)
            low = lowest(daemon, since_s)
            fell, longest = collapses(daemon, since_s)
            print(
                f"{given.env}, seed {seed}: {given.goal:g} over 20 episodes after "
                f"{'never' if reached is None else f'{reached / 60:.1f} min'}; lowest mean of 5 minutes since "
                f"{since_s / 60:.1f} min: {'none' if low is None else f'{low:.0f}'}; {fell} minutes below {FALLEN:g}, at most {longest} in a row; {time.monotonic() - began_s:.0f} s",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1", help="a gymnasium id")
    parser.add_argument("--policy", type=Path, help="output folder of `reflexd train`; default: start from nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="of virtual time")
    parser.add_argument("--goal", type=float, default=475.0, help="mean return of 20 episodes that counts as solved")
    parser.add_argument("--updates-per-step", type=float, default=1.0, help="`learner.updates_per_step`")
    parser.add_argument("--ungated", action="store_true", help="no steps and no experiments: every candidate goes live")
    given = parser.parse_args()
    torch.set_num_threads(1)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    for seed in given.seeds:
        asyncio.run(run(seed, given))


if __name__ == "__main__":
    main()
