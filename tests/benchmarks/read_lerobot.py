"""Read an exported dataset with `lerobot` itself: `python tests/benchmarks/read_lerobot.py FOLDER`.

Not part of the tests: lerobot wants other versions of torch and huggingface-hub than this project, so it runs in an environment of
its own. Every frame is read, and a shuffled batch with the next two actions.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset


def main(folder: Path) -> None:
    probe = LeRobotDataset("local/export", root=folder)
    later = {"action": [0.0, 1 / probe.fps, 2 / probe.fps]}
    dataset = LeRobotDataset("local/export", root=folder, delta_timestamps=later)
    for index in range(len(dataset)):
        item = dataset[index]
        assert int(item["index"]) == index
        assert all(
            torch.isfinite(x).all() for x in item.values() if isinstance(x, torch.Tensor) and x.is_floating_point()
        )
    print(
        f"{dataset.num_episodes} episodes, {len(dataset)} frames at {dataset.fps} Hz, cameras {dataset.meta.camera_keys}"
    )
    print(f"tasks: {', '.join(dataset.meta.tasks.index)}")
    batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=8, shuffle=True)))
    for name, x in batch.items():
        print(f"  {name:40} {tuple(x.shape) if isinstance(x, torch.Tensor) else type(x[0]).__name__}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
