"""Fine-tune a tiny model on rule-made dialogues, and print perplexity and exact slots of dialogues that it has not seen.

Run `python tests/benchmarks/bench_dialogues.py --help`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import dialogues
import tinymodels
import torch

from learners.tasks.text_generation import Chat


def main() -> None:
    """Print one line for each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--epochs", type=int, default=120, help="passes over the dialogues")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory() as folder:
            task = Chat.open(tinymodels.llama(Path(folder)), max_new_tokens=6)
            print(f"seed {seed}: {dialogues.learn(task, given.epochs, seed)}", flush=True)


if __name__ == "__main__":
    main()
