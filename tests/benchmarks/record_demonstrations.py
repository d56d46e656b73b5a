"""Record what a trained policy does, as demonstrations for `reflexd train --demonstrations FILE`.

    python tests/benchmarks/record_demonstrations.py Hopper-v5 runs/hopper0 --episodes 20 --out runs/hopper.npz

Plays the checkpoint that `reflexd train` left below a folder, greedily, on seeds that no evaluation uses; prints the mean return.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from actuators.sim.gym_spaces import to_environment
from learners.checkpoints.signing import load_key
from learners.checkpoints.store import Checkpoints
from learners.gym.demonstrations import demonstrate, save
from learners.gym.lock_step import GymTrainer
from learners.gym.observations import FrameWindow
from learners.model.heads import actuator_values

FIRST_SEED = 5_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment")
    parser.add_argument("trained", type=Path, help="what `reflexd train --out` wrote")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    checkpoints = Checkpoints(given.trained / "checkpoints", load_key(given.trained))
    version = checkpoints.live().version
    assert version is not None, f"{given.trained} has no live version"
    trainer = GymTrainer(lambda: gymnasium.make(given.environment), seed=0)
    trainer.policy.load_state_dict(checkpoints.load(version).tensors["policy"])
    generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def act(observation: Any) -> Any:
        features = FrameWindow(trainer.spec).remember(trainer.observation_encoder.tokens(observation)).features()
        output = trainer.policy.heads.act(trainer.policy.encode(features), generator=generator, explore=False)
        return to_environment(trainer.env.action_space, actuator_values(trainer.spec.actions, output, 0))

    episodes = demonstrate(trainer.env, act, range(FIRST_SEED, FIRST_SEED + given.episodes))
    save(given.out, episodes)
    returns = [sum(episode.rewards) for episode in episodes]
    steps = sum(len(episode.actions) for episode in episodes)
    sys.stdout.write(
        f"{given.out}: {len(episodes)} episodes, {steps} steps, mean return {np.mean(returns):.1f} ± {np.std(returns):.1f}\n"
    )


if __name__ == "__main__":
    main()
