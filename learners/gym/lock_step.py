"""Train on a gymnasium environment in lock-step, one update after each step (`reflexd train`).

The policy, heads and algorithms are those of the daemon. Every `evaluate_every` steps the greedy policy plays the same ten
episodes, and the best policies so far are stored. At the end they play fresh episodes, and the best one is delivered, as in the
daemon's promotion. Steps of evaluations do not count as training steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from actuators.actions import Value
from actuators.sim.gym_spaces import from_environment, to_environment
from learners.experience.transition import Transition
from learners.gym.demonstrations import DemonstrationEpisode
from learners.gym.environment_pool import BlockRow, EnvironmentPool, EnvironmentStep, EpisodeBlocks
from learners.gym.greedy_episodes import ReturnSummary, run_episodes
from learners.gym.observations import FrameWindow, ObservationEncoder, Tokens
from learners.gym.torch_settings import OwnRandomNumbers, seed_environments
from learners.model.encoders.base import Encoder
from learners.model.features import concat, recorded
from learners.model.heads import actuator_values
from learners.model.policy import Policy
from learners.model.spec import Algorithm as Name
from learners.rl.algorithm import CHOICE_WARMUP, WARMUP, Algorithm
from learners.rl.replay_buffer import ReplayBuffer

SELECTION_SEED, FINAL_SEED, EVALUATION_SEED = 2_000_000, 3_000_000, 1_000_000
"""Apart from each other and from the training seeds, which are small numbers."""
UPDATES_AT_ONCE = 2
"""Updates for each environment beside a step of all, at most: a block of rows earns many."""


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """One set for every environment; what differs between kinds of actuators is in the algorithms."""

    gamma: float = 0.99
    algorithm: Name = "auto"
    width: int = 256
    """Of the fusion, where there are pictures."""
    hidden: tuple[int, ...] = (256, 256)
    """Units of each hidden layer in every actor and critic."""
    batch: int = 256
    choice_batch: int = 64
    steps: int = 1
    choice_steps: int = 3
    """n of the n-step returns, for critics without a slow target, and for choices and categorical critics."""
    warmup: int = WARMUP
    choice_warmup: int = CHOICE_WARMUP
    updates_per_step: int = 1
    memory_bytes: int = 1 << 30
    demonstrations: float = 0.5
    evaluate_every: int = 1_000
    evaluation_episodes: int = 10
    selection_episodes: int = 30
    final_episodes: int = 100
    keep: int = 4
    """How many of the best policies are compared at the end."""
    save_every: int = 5_000
    """Steps after which the end of an episode is saved, for an exact resume."""
    threads: int = 1
    """Of torch. Two wait for each other longer than they compute in networks of this size; and results depend on their number."""


@dataclass(slots=True)
class BestCheckpoint:
    """A policy that did well, and where it comes from."""

    step: int
    score: float
    weights: dict[str, Tensor]


@dataclass(slots=True)
class _Lane:
    """One environment of several."""

    blocks: EpisodeBlocks
    window: FrameWindow
    frame: Tokens = field(default_factory=dict)
    """The newest one."""


def _transition(
    session: str,
    tick: int,
    frame: Tokens,
    values: Mapping[str, Value] | None,
    reward: float,
    *,
    done: bool,
    demonstration: bool = False,
) -> Transition:
    return Transition(
        session=session,
        tick=tick,
        decision="",
        stamp_s=0.0,
        policy="",
        tokens=frame,
        present=dict.fromkeys(frame, True),
        ages_s=dict.fromkeys(frame, 0.0),
        actions=values or {},
        reward=reward,
        done=done,
        demonstration=demonstration,
    )


class GymTrainer:
    """One run.

    Args:
        make: builds the environment; called for training and for every evaluated episode.
        seed: of everything random.
        settings: hyperparameters.
        report: called after every evaluation with the step and the score.
        encoder: of pictures; the bundled one by default.
    """

    def __init__(
        self,
        make: Callable[[], gymnasium.Env[Any, Any]],
        *,
        seed: int,
        settings: TrainSettings | None = None,
        report: Callable[[int, ReturnSummary], None] | None = None,
        encoder: Encoder | None = None,
    ) -> None:
        self.make, self.seed, self.settings, self.report = make, seed, settings or TrainSettings(), report
        s = self.settings
        self.env = make()
        self.generator = torch.Generator().manual_seed(seed)
        self.random = OwnRandomNumbers(seed)
        self.observation_encoder = ObservationEncoder(self.env.observation_space, encoder)
        self.spec = self.observation_encoder.specify(
            self.env, gamma=s.gamma, algorithm=s.algorithm, width=s.width, hidden=s.hidden
        )
        with self.random.in_force():  # initial weights
            self.policy = Policy(self.spec).eval()
            self.algorithm = Algorithm(self.policy, self.generator)
        choices = bool(self.spec.actions.choices)
        self.batch = s.choice_batch if choices else s.batch
        self.warmup = s.choice_warmup if choices else s.warmup
        steps = s.choice_steps if choices or s.algorithm == "xqc" else s.steps
        self.replay = ReplayBuffer(
            self.spec, max_bytes=s.memory_bytes, steps=steps, demonstration_fraction=s.demonstrations
        )
        self.window = FrameWindow(self.spec)
        self.best_checkpoints: list[BestCheckpoint] = []
        self.evaluations: list[dict[str, float]] = []
        self.metrics: dict[str, float] = {}
        self.cut_episodes = 0
        """Evaluation episodes that were cut because they did not end."""
        self._episode = self._tick = self._observed = self._step = self._saved = self._acted = 0

    @property
    def algorithm_name(self) -> str:
        """The algorithms in use, as `dqn` or `dqn+crossq`."""
        kinds = self.policy.heads.kinds
        return "+".join(name for name in (kinds.choice, kinds.continuous) if name is not None)

    @property
    def step(self) -> int:
        """Steps of the environment so far."""
        return self._step

    def load_demonstrations(self, episodes: Iterable[DemonstrationEpisode]) -> int:
        """Store demonstrated episodes; return the number of transitions."""
        count = 0
        for episode in episodes:
            self._episode += 1
            frames = [self._tokens(observation) for observation in episode.observations]
            for frame, action, reward, done in zip(
                frames, episode.actions, episode.rewards, episode.dones, strict=False
            ):
                self._remember(
                    frame, from_environment(self.env.action_space, action), reward, done=done, demonstration=True
                )
                count += 1
            if not episode.dones[-1]:
                self._remember(frames[-1])
        return count

    def run(
        self, total: int, tick: Callable[[int], None] | None = None, save: Callable[[], None] | None = None
    ) -> None:
        """Train up to step `total` of the environment.

        Args:
            total: steps, with those before a resume.
            tick: called after each step.
            save: called where `snapshot` can be saved; the next episode then begins with a seed of its own.
        """
        frame = self._begin(self.env.reset(seed=self._next_seed())[0])
        for step in range(self._step + 1, total + 1):
            self._step = step
            values = self._decide()
            observation, reward, terminated, truncated, _ = self.env.step(to_environment(self.env.action_space, values))
            self._remember(frame, values, float(reward), done=bool(terminated))
            frame = self._tokens(observation)
            self.window.remember(frame)
            if truncated and not terminated:
                self._remember(frame)  # where time ran out, the state that was reached says what was still to come
            self._learn(step)
            if step % self.settings.evaluate_every == 0 or step == total:
                self.evaluate(step)
            if tick is not None:
                tick(step)
            if terminated or truncated:
                frame = self._after_episode(total, save)
        self.env.close()

    def run_pool(self, total: int, pool: EnvironmentPool, tick: Callable[[int], None] | None = None) -> None:
        """Train up to step `total` with several environments at once.

        In each round every environment takes a step, and the updates of earlier rows are made meanwhile. So results depend on the seed and the
        number of environments, and not on where they run.

        Args:
            total: steps of all environments together.
            pool: the environments.
            tick: called after each round.
        """
        lanes = [_Lane(EpisodeBlocks(self.spec.history), FrameWindow(self.spec)) for _ in range(pool.count)]
        for lane, observation in zip(lanes, pool.reset(), strict=True):
            self._begin_lane(lane, observation)
        owed = 0
        while self._step < total:
            before, active = self._step, lanes[: total - self._step]
            chosen = self._decide_all(active)
            pool.begin([to_environment(self.env.action_space, values) for values in chosen])
            owed -= self._updates(min(owed, UPDATES_AT_ONCE * len(active)))
            for lane, values, result in zip(active, chosen, pool.receive(), strict=True):
                owed += self._take(lane, values, result)
            self._step = before + len(active)
            every = self.settings.evaluate_every
            if self._step == total:
                self._updates(owed + sum(self._enter(lane.blocks.take(lane.frame, all_rows=True)) for lane in lanes))
            if self._step // every > before // every or self._step == total:
                self.evaluate(self._step)
            if tick is not None:
                tick(self._step)
        self.env.close()

    def _begin_lane(self, lane: _Lane, observation: Any) -> None:
        self._episode += 1
        lane.blocks.begin(str(self._episode))
        lane.frame = self._tokens(observation)
        lane.window.restart()
        lane.window.remember(lane.frame)

    def _take(self, lane: _Lane, values: Mapping[str, Value], result: EnvironmentStep) -> int:
        """Take in a step of one environment; return the updates that the rows earn which enter the replay."""
        lane.blocks.add(lane.frame, values, result.reward, done=result.terminated)
        lane.frame = self._tokens(result.observation)
        lane.window.remember(lane.frame)
        rows = lane.blocks.take(lane.frame, terminated=result.terminated, truncated=result.truncated)
        if result.ended:
            self._begin_lane(lane, result.first)
        return self._enter(rows)

    def _enter(self, rows: Sequence[BlockRow]) -> int:
        """Store rows in the replay; return the updates that they earn."""
        for row in rows:
            transition = _transition(row.session, row.tick, row.frame, row.values, row.reward, done=row.done)
            if row.is_new:
                self._keep(transition)
            else:
                self.replay.append(transition)
        if rows and self.policy.heads.bandit is not None:
            self._observe()
        acted = sum(row.values is not None for row in rows)
        before, self._acted = self._acted, self._acted + acted
        return (max(self._acted, self.warmup) - max(before, self.warmup)) * self.settings.updates_per_step

    def _after_episode(self, total: int, save: Callable[[], None] | None) -> Tokens:
        """Save the training if it is time, and begin the next episode."""
        seed: int | None = None
        if save is not None and self._step < total and self._step - self._saved >= self.settings.save_every:
            self._saved = self._step
            save()
            seed = self._next_seed()
        return self._begin(self.env.reset(seed=seed)[0])

    def _next_seed(self) -> int:
        """Seed what environments draw from, and return that seed: of the training at its start, and one for each step at which it was saved."""
        sequence = np.random.SeedSequence((self.seed, self._saved))
        seed = int(sequence.generate_state(1)[0]) >> 1 if self._saved else self.seed
        seed_environments(seed)
        return seed

    def snapshot(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
        """Return all that an exact resume needs at the end of an episode, as tensors by file and name, and JSON."""
        arrays, replay = self.replay.snapshot()
        head = self.policy.heads.continuous
        tensors: dict[str, dict[str, Tensor]] = {
            "policy": self.policy.state_dict(),
            "learner": self.algorithm.state_dict(),
            "replay": {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in arrays.items()},
            "random": {"torch": self.random.state, **(head.exploration_state() if head is not None else {})},
            **{f"best{i}": best.weights for i, best in enumerate(self.best_checkpoints)},
        }
        return tensors, {
            "step": self._step,
            "episode": self._episode,
            "tick": self._tick,
            "observed": self._observed,
            "cut_episodes": self.cut_episodes,
            "evaluations": self.evaluations,
            "best": [{"step": best.step, "score": best.score} for best in self.best_checkpoints],
            "replay": replay,
        }

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], rest: Mapping[str, Any]) -> None:
        """Take up what `snapshot` returned, in a new trainer; `run` then continues.

        Raises:
            ValueError: it is of another policy.
        """
        try:
            self.policy.load_state_dict(tensors["policy"])
        except RuntimeError as error:
            raise ValueError(f"the saved policy is another one: {' '.join(str(error).split())}") from None
        self.algorithm.load_state_dict(dict(tensors["learner"]))
        self.replay.restore({name: x.numpy() for name, x in tensors["replay"].items()}, rest["replay"])
        self.random.state = tensors["random"]["torch"]
        if self.policy.heads.continuous is not None:
            self.policy.heads.continuous.restore_exploration(tensors["random"])
        self._step = self._saved = rest["step"]
        self._episode, self._tick, self._observed = rest["episode"], rest["tick"], rest["observed"]
        self.cut_episodes, self.evaluations = rest["cut_episodes"], rest["evaluations"]
        self.best_checkpoints = [
            BestCheckpoint(best["step"], best["score"], dict(tensors[f"best{i}"]))
            for i, best in enumerate(rest["best"])
        ]

    def _begin(self, observation: Any) -> Tokens:
        """Start an episode, which is a session of the replay."""
        self._episode += 1
        frame = self._tokens(observation)
        self.window.restart()
        self.window.remember(frame)
        if self.policy.heads.continuous is not None:
            self.policy.heads.continuous.noise.restart()
        return frame

    def _tokens(self, observation: Any) -> Tokens:
        return self.observation_encoder.tokens(observation)

    def _remember(
        self,
        frame: Tokens,
        values: Mapping[str, Value] | None = None,
        reward: float = 0.0,
        *,
        done: bool = False,
        demonstration: bool = False,
    ) -> None:
        """Append a transition; without values, it only ends an episode that reached its time limit."""
        self._tick += 1
        session = str(self._episode)
        self._keep(_transition(session, self._tick, frame, values, reward, done=done, demonstration=demonstration))

    def _keep(self, transition: Transition) -> None:
        features = recorded(self.spec, [transition.tokens], [transition.present], [transition.ages_s])
        self.algorithm.normalise(features)
        self.replay.append(transition)

    @torch.no_grad()
    def _decide(self) -> dict[str, Value]:
        """Explore from the newest frames."""
        context_BC = self.policy.encode(self.window.features())
        output = self.policy.heads.act(context_BC, generator=self.generator, explore=True)
        return actuator_values(self.spec.actions, output, 0)

    @torch.no_grad()
    def _decide_all(self, lanes: Sequence[_Lane]) -> list[dict[str, Value]]:
        """Explore in all environments at once."""
        context_BC = self.policy.encode(concat([lane.window.features() for lane in lanes]))
        output = self.policy.heads.act(context_BC, generator=self.generator, explore=True)
        return [actuator_values(self.spec.actions, output, row) for row in range(len(lanes))]

    def _learn(self, step: int) -> None:
        """Do the updates that one step earns."""
        if self.policy.heads.bandit is not None:
            self._observe()
        if step >= self.warmup:
            self._updates(self.settings.updates_per_step)

    def _updates(self, count: int) -> int:
        """Make updates; return their number."""
        for _ in range(count):
            if self.algorithm.needs_return_scale:
                self.algorithm.rescale(self.replay.return_scale())
            batch = self.replay.sample(self.batch, self.generator)
            with self.random.in_force():
                self.metrics = self.algorithm.update(batch, 1 / self.settings.updates_per_step)
        return count

    def _observe(self) -> None:
        """Let the bandit take in what has an outcome by now."""
        newest = self.replay.added - 1
        batch = self.replay.ordered(self._observed, newest, steps=1)
        self._observed = newest
        if batch is not None:
            self.algorithm.observe(batch)

    def evaluate(self, step: int) -> ReturnSummary:
        """Play the evaluation episodes greedily and keep the policy if it is among the best."""
        score = ReturnSummary.of(self.play(EVALUATION_SEED, self.settings.evaluation_episodes))
        self.evaluations.append({"step": step, **score.as_dict()})
        weights = {name: value.clone() for name, value in self.policy.state_dict().items()}
        # Of two that scored the same the later one has learned from more; sorting is stable.
        self.best_checkpoints = [BestCheckpoint(step, score.mean, weights), *self.best_checkpoints]
        self.best_checkpoints.sort(key=lambda best_checkpoints: best_checkpoints.score, reverse=True)
        del self.best_checkpoints[self.settings.keep :]
        if self.report is not None:
            self.report(step, score)
        return score

    def play(self, first_seed: int, episodes: int) -> list[float]:
        """Return the undiscounted returns of greedy episodes; training's randomness is not touched."""
        generator = torch.Generator().manual_seed(0)
        windows = [FrameWindow(self.spec) for _ in range(episodes)]

        @torch.no_grad()
        def act(observations: list[Any], numbers: list[int]) -> list[Any]:
            seen = []
            for observation, number in zip(observations, numbers, strict=True):
                seen.append(windows[number].remember(self._tokens(observation)).features())
            context_BC = self.policy.encode(concat(seen))
            output = self.policy.heads.act(context_BC, generator=generator, explore=False)
            space, actions = self.env.action_space, self.spec.actions
            return [to_environment(space, actuator_values(actions, output, row)) for row in range(len(numbers))]

        returns, cut = run_episodes(self.make, act, range(first_seed, first_seed + episodes))
        self.cut_episodes += cut
        return returns

    def deliver(self) -> tuple[int, ReturnSummary]:
        """Load the stored policy that is best on fresh episodes; return its step and its final score."""
        episodes = self.settings.selection_episodes
        best: tuple[float, BestCheckpoint] | None = None
        for best_checkpoints in sorted(self.best_checkpoints, key=lambda k: k.step, reverse=True):
            self.policy.load_state_dict(best_checkpoints.weights)
            mean = ReturnSummary.of(self.play(SELECTION_SEED, episodes)).mean
            if best is None or mean > best[0]:
                best = (mean, best_checkpoints)
        assert best is not None
        self.policy.load_state_dict(best[1].weights)
        return best[1].step, ReturnSummary.of(self.play(FINAL_SEED, self.settings.final_episodes))

    def salvage(self) -> tuple[int, ReturnSummary | None]:
        """Load the best stored policy without playing; return its step and its score, or the newest step without a score."""
        if not self.best_checkpoints:
            return self._step, None
        best = self.best_checkpoints[0]
        self.policy.load_state_dict(best.weights)
        found = next(e for e in self.evaluations if e["step"] == best.step)
        return best.step, ReturnSummary(
            **{name: found[name] for name in ("mean", "std", "min", "max")}, episodes=int(found["episodes"])
        )
