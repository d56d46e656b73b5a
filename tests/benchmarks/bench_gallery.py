"""Teach three classes by clicking: birds, vehicles and fruit of Debian's `tuxpaint-stamps-default`.

Pictures of a camera are stored, each three times with noise; the gallery folds them. Each class is labelled as a person does it on
the page: two clicks select tiles that lie side by side, one click labels them, and few clicks create and train the task. A task of
the page (efficientnet-lite0, head alone) learns from them. Its figure is on pictures that were never stored. Needs `opencv` and the
bundled models; prints clicks, seconds and accuracy for each seed.

`python tests/benchmarks/bench_gallery.py [--seeds 0 1 2] [--pictures 24] [--rows 6]`
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]
from learners.config.learner import ExperienceSettings  # noqa: E402 - after the path
from learners.config.tasks import FinetuneSettings, TaskSettings  # noqa: E402 - after the path
from learners.continual.trainer import ContinualTrainer  # noqa: E402 - after the path
from learners.experience.reader import Reader  # noqa: E402 - after the path
from learners.experience.store import Raw, Store  # noqa: E402 - after the path
from learners.tasks.base import EncodedMedia  # noqa: E402 - after the path
from learners.tasks.task_classes import open_task  # noqa: E402 - after the path
from runtime.feedback.recent_results import RecentResults  # noqa: E402 - after the path
from runtime.requests.labelling import Gallery, LabelReadingsRequest, ReadingsRequest  # noqa: E402 - after the path

STAMPS = Path("/usr/share/tuxpaint/stamps")
CLASSES = {"bird": "animals/birds", "vehicle": "vehicles", "fruit": "food/fruit"}
TASK = TaskSettings(kind="image-classification", model="bundled:efficientnet-lite0", stream="front", train="frozen")
CLICKS_ONCE = 6
"""Open the gallery and the form of a new task, create, confirm, look again, train."""
NOISE = 3
"""Frames of each picture."""


def picture(path: Path, generator: np.random.Generator) -> bytes:
    """A stamp on a grey of its own, with the noise of a camera, as a JPEG of 320 x 240."""
    stamp = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if stamp is None or stamp.ndim != 3:
        raise ValueError(f"{path}: no picture in colour")
    scale = min(300 / stamp.shape[1], 220 / stamp.shape[0])
    size = (max(1, int(stamp.shape[1] * scale)), max(1, int(stamp.shape[0] * scale)))
    stamp = cv2.resize(stamp, size, interpolation=cv2.INTER_AREA)
    canvas: NDArray[np.float32] = np.full((240, 320, 3), 200, np.float32)
    top, left = (240 - size[1]) // 2, (320 - size[0]) // 2
    alpha = stamp[..., 3:] / 255 if stamp.shape[2] == 4 else np.ones((*stamp.shape[:2], 1))
    part = canvas[top : top + size[1], left : left + size[0]]
    part[:] = alpha * stamp[..., :3] + (1 - alpha) * part
    canvas += generator.normal(0, 2, canvas.shape)
    return bytes(cv2.imencode(".jpg", canvas.clip(0, 255).astype(np.uint8))[1])


def paths_of(folder: str, seed: int) -> list[Path]:
    """The pictures of a class in a random order; mirrored and dark variants of one stamp have names of their own."""
    found = sorted(path for path in (STAMPS / folder).rglob("*.png") if "_mirror" not in path.name)
    random.Random(seed).shuffle(found)
    return found


async def label(gallery: Gallery, of: dict[str, str], rows: int) -> int:
    """Label everything that the gallery lists, as a person does; return the clicks."""
    clicks = CLICKS_ONCE
    while True:
        answer = await gallery.readings(ReadingsRequest(task="things", count=36))
        listed = answer["readings"]
        if not listed and answer["looked_at"] == answer["stored"]:
            return clicks
        if not listed:  # a busy machine compares the rest at the next look
            clicks += 1
            continue
        name = of[listed[0]["name"].partition("-")[0]]
        chosen = [row["name"] for row in listed if of[row["name"].partition("-")[0]] == name]
        runs = 1 + sum(  # neighbours are selected with two clicks
            of[a["name"].partition("-")[0]] != name and of[b["name"].partition("-")[0]] == name
            for a, b in itertools.pairwise(listed)
        )
        clicks += min(2 * runs, len(chosen)) + 1
        await gallery.label_readings(LabelReadingsRequest(task="things", label=name, readings=chosen[: rows * 6]))


def run(seed: int, pictures: int, rows: int, folder: Path) -> dict[str, Any]:
    """Teach with one seed."""
    generator = np.random.default_rng(seed)
    store = Store(folder / "experience", ExperienceSettings(raw_retention_s=1e9))
    gallery = Gallery(folder / "experience", folder / "tasks", {"things": TASK}, store, RecentResults())
    number, of, unseen = 0, {}, []
    for name, where in CLASSES.items():
        paths = paths_of(where, seed)
        for path in paths[:pictures]:
            for _ in range(NOISE):
                number += 1
                of[str(number)] = name
                store.add_raw(Raw("front", time.time() + number * 1e-3, "jpeg", picture(path, generator)))
        unseen += [(name, picture(path, generator)) for path in paths[pictures:]]
    assert store.flush(60)
    clicks = asyncio.run(label(gallery, of, rows))
    start_s, start_cpu_s = time.monotonic(), time.process_time()
    trainer = ContinualTrainer("things", TASK, FinetuneSettings(), folder / "tasks", Reader(folder / "experience"))
    verdict = trainer.run()
    wall_s, cpu_s = time.monotonic() - start_s, time.process_time() - start_cpu_s
    live = trainer.versions.live()
    assert live is not None, verdict.reason
    task = open_task(TASK.kind, live.path)
    reported = task.predict([{"picture": EncodedMedia("jpeg", data)} for _, data in unseen])
    right = [answer.value == name for answer, (name, _) in zip(reported, unseen, strict=True)]
    store.close()
    return {
        "clicks": clicks,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "held_out": verdict.figures["all_after"],
        "unseen": float(np.mean(right)),
        "pictures": len(unseen),
    }


def main() -> None:
    """Print a row for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pictures", type=int, default=16, help="different pictures of each class that are stored")
    parser.add_argument("--rows", type=int, default=6, help="rows of six tiles that one selection spans at most")
    options = parser.parse_args()
    for name, where in CLASSES.items():
        print(f"{name}: {len(paths_of(where, 0))} pictures in {where}")
    print("seed  clicks  training s (CPU s)  held-out  never stored (pictures)")
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            row = run(seed, options.pictures, options.rows, Path(folder))
        print(
            f"{seed:4}  {row['clicks']:6}  {row['wall_s']:10.0f} ({row['cpu_s']:.0f})  {row['held_out']:8.2f}"
            f"  {row['unseen']:.2f} ({row['pictures']})",
            flush=True,
        )


if __name__ == "__main__":
    main()
