"""Learn in small worlds with a known answer: refusals, a slow arm, rare ends, a long rest, a few override ticks.

    python tests/benchmarks/bench_small_worlds.py --seeds 11 12 13
    python tests/benchmarks/bench_small_worlds.py --only overrides --seeds 11 --steps 4000

- `forbid`: the gate forbids one of three choices. Share of the forbidden choice in the last 1,000 proposals, where the policy knows what
  the gate would let pass (`masked`), and where it has only the rows (goal: at most 5 %).
- `arm`: an arm follows a target that jumps, and the gate allows 0.4 of its range of 2 a tick. Mean reward of the last 1,000 ticks with
  the settings' default and with `out_of_range: refuse`; standing still earns -0.9.
- `ends`: a choice earns half as much again and ends the episode once in 200 times. Learned values of both choices, and the exact ones.
- `rest`: a daemon that rests for `--hours` before CartPole begins, and one that does not. Share of inputs within 5 deviations, and the
  greedy return at the end.
- `overrides`: Pendulum in lock-step with 0, 1 and 10 ticks that a person overrode with random motions. Greedy return at the end.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import gymnasium  # noqa: E402 - after the path
import numpy as np  # noqa: E402
import torch  # noqa: E402
from gate_world import GateWorld  # noqa: E402
from learning import make_learner  # noqa: E402

from actuators.actions import ActionSpace, Choice, Continuous  # noqa: E402
from actuators.config import ChoiceSettings, ContinuousSettings, GateSettings  # noqa: E402
from actuators.sim.gym_spaces import to_environment  # noqa: E402
from learners.experience.database import Database  # noqa: E402
from learners.experience.transition import Transition  # noqa: E402
from learners.gym.lock_step import EVALUATION_SEED, GymTrainer, TrainSettings  # noqa: E402
from learners.model.features import Features  # noqa: E402
from learners.model.heads import actuator_values  # noqa: E402
from learners.model.policy import Policy  # noqa: E402
from learners.model.spec import PolicySpec, StreamSpec  # noqa: E402
from learners.rl.algorithm import Algorithm  # noqa: E402
from learners.rl.replay_buffer import ReplayBuffer  # noqa: E402

CHOICES = ("a", "b", "c")
MAX_RATE, TARGET, JUMP = 4.0, 0.9, 0.1
RISK, GAMMA = 0.005, 0.9
WORK_HZ, REST_HZ = 10, 2
NEVER = 1 << 60


def features(x: np.ndarray[Any, Any]) -> Features:
    """Return one state of telemetry."""
    tokens = torch.tensor(x, dtype=torch.float32)[None, None, None]
    return Features({"s": tokens[:, 0]}, torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1))


class Agent:
    """A policy, its algorithm and its buffer.

    Args:
        spec: with one telemetry stream `s`.
        seed: of everything.
        steps: of the returns.
    """

    def __init__(self, spec: PolicySpec, seed: int, steps: int) -> None:
        torch.manual_seed(seed)
        self.policy = Policy(spec).eval()
        self.generator = torch.Generator().manual_seed(seed)
        self.algorithm = Algorithm(self.policy, self.generator)
        self.replay = ReplayBuffer(spec, max_bytes=1 << 24, steps=steps)

    def learn(self, row: Transition, number: int, batch: int) -> None:
        """Store a row and make one update."""
        seen = features(row.tokens["s"][0])
        self.algorithm.normalise(Features({"s": seen.tokens["s"][:, None]}, seen.present[:, None], seen.ages[:, None]))
        self.replay.append(row, number)
        if number > 256:
            self.algorithm.update(self.replay.sample(batch, self.generator))


def forbid(seed: int, ticks: int, *, masked: bool) -> str:
    """Forbid one choice of three."""
    stream = StreamSpec("s", "telemetry", 1, 3)
    agent = Agent(
        PolicySpec((stream,), ActionSpace((Choice("act", CHOICES),)), history=1, gamma=0.9, hidden=(32, 32)), seed, 3
    )
    choice = ChoiceSettings(kind="choice", choices=CHOICES, safe="a")
    world = GateWorld({"act": choice}, GateSettings(forbid=("act == 'c'",)), masked=masked)
    rng, proposals = np.random.default_rng(seed), list[str]()
    for k in range(ticks):
        x = rng.normal(size=3).astype(np.float32)
        allowed = world.allowed.get("act", CHOICES)
        masks = {"act": torch.tensor([[name in allowed for name in CHOICES]])}
        context = agent.policy.encode(
            Features(
                {"s": torch.tensor(x)[None, None, None]}, torch.ones(1, 1, 1, dtype=torch.bool), torch.zeros(1, 1, 1)
            )
        )
        out = agent.policy.heads.act(context, generator=agent.generator, masks=masks)
        name = CHOICES[int(out.values["act"][0])]
        proposals.append(name)
        row = world.tick({"act": name}, x, probability=float(out.probabilities["act"][0]))
        agent.learn(replace(row, reward=-1.0 if (row.actions.get("act") == "a") == (x[0] > 0) else -2.0), k, 32)
    return f"{proposals[-1_000:].count('c') / 10:.1f} % forbidden of the last 1,000"


def arm(seed: int, ticks: int, **settings: Any) -> str:
    """Let an arm follow a target that jumps."""
    stream = StreamSpec("s", "telemetry", 1, 2)
    actions = ActionSpace((Continuous("arm", (-1.0,), (1.0,)),))
    agent = Agent(PolicySpec((stream,), actions, history=1, gamma=0.9, hidden=(64, 64)), seed, 1)
    world = GateWorld(
        {
            "arm": ContinuousSettings(
                kind="continuous", low=(-1.0,), high=(1.0,), safe=(0.0,), max_rate=(MAX_RATE,), **settings
            )
        }
    )
    rng, place, target, rewards, refused = np.random.default_rng(seed), 0.0, TARGET, list[float](), 0
    for k in range(ticks):
        x = np.array([target, place], np.float32)
        context = agent.policy.encode(
            Features(
                {"s": torch.tensor(x)[None, None, None]}, torch.ones(1, 1, 1, dtype=torch.bool), torch.zeros(1, 1, 1)
            )
        )
        out = agent.policy.heads.act(context, generator=agent.generator)
        row = world.tick(
            {"arm": tuple(out.values["arm"][0].tolist())}, x, probability=float(out.probabilities["arm"][0])
        )
        place = float(row.actions["arm"][0]) if "arm" in row.actions else place
        refused += bool(row.refused)
        rewards.append(-abs(target - place))
        agent.learn(replace(row, reward=rewards[-1]), k, 64)
        target = -target if rng.random() < JUMP else target
    return f"reward {statistics.fmean(rewards[-1_000:]):.2f}, {refused} of {ticks} refused"


def ends(seed: int, updates: int) -> str:
    """Learn the value of a rare end."""
    stream = StreamSpec("s", "telemetry", 1, 1)
    spec = PolicySpec(
        (stream,), ActionSpace((Choice("a", ("safe", "risky")),)), history=1, gamma=GAMMA, hidden=(64, 64)
    )
    agent, rng = Agent(spec, seed, 1), np.random.default_rng(seed)
    here = {"tokens": {"s": np.ones((1, 1), np.float32)}, "present": {"s": True}, "ages_s": {"s": 0.0}}
    for k in range(20_000):
        name = "risky" if rng.random() < 0.5 else "safe"
        done = name == "risky" and bool(rng.random() < RISK)
        reward = 0.0 if done else 1.5 if name == "risky" else 1.0
        agent.replay.append(
            Transition("s", k, str(k), 0.0, "p", actions={"a": name}, reward=reward, done=done, **here), k
        )
    for _ in range(updates):
        agent.algorithm.update(agent.replay.sample(64, agent.generator))
    with torch.no_grad():
        seen = agent.replay.batch(np.zeros(1, np.int64) + agent.replay._main.start).features
        safe, risky = agent.policy.heads.choice_scores(agent.policy.encode(seen))[0][0].tolist()
    best = (1 - RISK) * 1.5 / (1 - (1 - RISK) * GAMMA)
    return f"safe {safe:.2f} (exact {1 + GAMMA * best:.2f}), risky {risky:.2f} (exact {best:.2f})"


def rest(seed: int, steps: int, hours: float) -> str:
    """Rest, then learn CartPole through the store and the learner."""
    with tempfile.TemporaryDirectory() as folder:
        return _rest(Path(folder), seed, steps, round(hours * 3_600 * REST_HZ))


def _rest(folder: Path, seed: int, steps: int, idle: int) -> str:
    settings = TrainSettings(hidden=(64, 64), memory_bytes=1 << 20, evaluate_every=NEVER)
    player = GymTrainer(lambda: gymnasium.make("CartPole-v1"), seed=seed, settings=settings)
    (name,) = player.spec.names
    (folder / "experience").mkdir()
    database = Database(folder / "experience", max_bytes=1 << 30, reserve=0.2, raw_retention_s=1.0)
    learner = make_learner(folder, player.spec, Policy, seed=seed, batch=64, warmup=256, replay_gb=0.05)
    rng, env = np.random.default_rng(seed), gymnasium.make("CartPole-v1")
    there = {"present": {name: True}, "ages_s": {name: 0.0}}
    for start in range(0, idle, 10_000):
        with database:
            for k in range(start, min(start + 10_000, idle)):
                tokens = {name: (rng.normal(size=(1, 4)) * 1e-3).astype(np.float32)}
                database.add(Transition("s", k, f"r{k}", 0.0, "untrained", tokens, armed=False, **there))
        learner.ingest()
    observation, _ = env.reset(seed=seed)
    for start in range(0, steps, 20):
        with database:
            for k in range(start, start + 20):
                frame = player._tokens(observation)
                with torch.no_grad():
                    context = learner.policy.encode(player.window.remember(frame).features())
                    out = learner.policy.heads.act(context, generator=player.generator)
                values = actuator_values(player.spec.actions, out, 0)
                observation, reward, done, cut, _ = env.step(to_environment(env.action_space, values))
                row = Transition(
                    "s",
                    idle + k,
                    str(k),
                    0.0,
                    "p",
                    frame,
                    actions=values,
                    reward=float(reward),
                    done=bool(done),
                    truncated=bool(cut),
                    **there,
                )
                database.add(row)
                if done or cut:
                    observation, _ = env.reset()
                    player.window.restart()
        learner.ingest()
        learner.train(float("inf"))
    player.policy = learner.policy
    held = learner.replay.newest(2_000)
    assert held is not None
    x = learner.policy.normalisers()[name](held.tokens[name])
    score = statistics.fmean(player.play(EVALUATION_SEED, 10))
    database.close()
    return f"{float((x.abs() <= 5).float().mean()):.1%} of the inputs within 5, {learner.position.update} updates, return {score:.0f}"


def overrides(seed: int, steps: int, count: int) -> str:
    """Let a person override some ticks of Pendulum with the motions that the policy drew."""
    trainer = GymTrainer(
        lambda: gymnasium.make("Pendulum-v1"), seed=seed, settings=TrainSettings(evaluate_every=NEVER, final_episodes=1)
    )
    trainer.evaluate = lambda _step: None  # type: ignore[assignment,method-assign,return-value] # at the end, below
    keep, stored = trainer._keep, [0]

    def taking_over(row: Transition) -> None:
        stored[0] += 1
        if row.actions and 300 <= stored[0] < 300 + count:
            row = replace(row, by=dict.fromkeys(row.actions, "override"), intervention=True)
        keep(row)

    trainer._keep = taking_over  # type: ignore[method-assign] # in place of a person
    trainer.run(steps)
    return f"return {statistics.fmean(trainer.play(EVALUATION_SEED, 10)):.0f}"


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        nargs="+",
        choices=["forbid", "arm", "ends", "rest", "overrides"],
        default=["forbid", "arm", "ends", "rest", "overrides"],
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13])
    parser.add_argument("--ticks", type=int, default=4_000, help="of `forbid` and `arm`")
    parser.add_argument("--updates", type=int, default=6_000, help="of `ends`")
    parser.add_argument("--steps", type=int, default=4_000, help="of `rest` and `overrides`")
    parser.add_argument(
        "--hours", type=float, default=8.0, help=f"of `rest`, at {REST_HZ} Hz; the work is at {WORK_HZ} Hz"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    worlds: dict[str, dict[str, Callable[[int], str]]] = {
        "forbid": {
            "masked": lambda seed: forbid(seed, given.ticks, masked=True),
            "from the rows alone": lambda seed: forbid(seed, given.ticks, masked=False),
        },
        "arm": {
            "default": lambda seed: arm(seed, given.ticks),
            "refuse": lambda seed: arm(seed, given.ticks, out_of_range="refuse"),
        },
        "ends": {"": lambda seed: ends(seed, given.updates)},
        "rest": {
            "no wait": lambda seed: rest(seed, given.steps, 0.0),
            f"after {given.hours:g} h": lambda seed: rest(seed, given.steps, given.hours),
        },
        "overrides": {
            f"{count} ticks": lambda seed, count=count: overrides(seed, given.steps, count) for count in (0, 1, 10)
        },
    }  # fmt: skip
    for world in given.only:
        for seed in given.seeds:
            for arm_name, run in worlds[world].items():
                print(f"{world} {arm_name} seed {seed}: {run(seed)}", flush=True)


if __name__ == "__main__":
    main()
