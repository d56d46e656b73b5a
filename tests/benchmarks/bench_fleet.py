"""A fleet that learns: light agents in virtual time, a real broker, ingest, learner, signed policies back in waves.

    python tests/benchmarks/bench_fleet.py --agents 1 4 --rows 8000 --seed 0

Each light agent plays an environment with its live version and stores its ticks as a daemon does. The uplink that a daemon runs sends
them. Ingest and learner are those of `reflexd fleet serve`, in this process. A device takes each version at once and reports it as
live: a daemon would examine it first. Virtual time is rows of one agent at 50 Hz, so that the speed of this machine does not matter.
With N agents the learner does the same updates for the same total of rows, in one Nth of the virtual time.

Printed for each number of agents: greedy return of the fleet's newest version (20 episodes) at every quarter of the rows, versions
that all devices took, rows in the learner, rows lost and doubled on the way, and seconds of this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import gymnasium  # noqa: E402 - after the path
import orjson  # noqa: E402
import structlog  # noqa: E402
import torch  # noqa: E402
from fleet_world import database  # noqa: E402

from actuators.sim.gym_spaces import to_environment  # noqa: E402
from fakes import Mosquitto  # noqa: E402
from learners.checkpoints.store import open_checkpoints  # noqa: E402
from learners.checkpoints.trusted_keys import read_public  # noqa: E402
from learners.config.learner import PromotionSettings  # noqa: E402
from learners.experience.reader import Reader  # noqa: E402
from learners.experience.transition import Transition  # noqa: E402
from learners.fleet_data.received_policies import forget_received, received  # noqa: E402
from learners.gym.lock_step import EVALUATION_SEED, GymTrainer, TrainSettings  # noqa: E402
from learners.ipc.policy_spec import spec_path, write_policy_spec  # noqa: E402
from runtime.config.loader import load  # noqa: E402
from runtime.fleet.group_learner import GroupLearner  # noqa: E402
from runtime.fleet.policy_publisher import PolicyPublisher  # noqa: E402
from runtime.fleet.serve import build_ingest  # noqa: E402
from runtime.fleet.server_settings import FleetServerSettings  # noqa: E402
from runtime.fleet.uplink_process import build  # noqa: E402

RATE_HZ, CHUNK, AHEAD, EPISODES = 50.0, 128, 512, 20
CONFIG = """
agent: {agent}
state_dir: {state}
streams: {{observation: {{kind: telemetry, source: "topic:joints", fields: [a]}}}}
actuators: {{head: {{kind: choice, choices: [left, right], safe: left}}}}
fleet: {{group: arms, url: "{url}", upload_kib_per_hour: 1000000, key: {key}}}
"""


@dataclass
class Result:
    """What one number of agents did."""

    returns: list[float] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)
    taken: Counter[str] = field(default_factory=Counter)


class LightAgent(GymTrainer):
    """Plays with the live version of its device, stores what happens, and trains nothing."""

    def open(self, folder: Path, name: str, url: str, key: Path) -> None:
        """Create the device's folder with its settings."""
        self.name, self.state = name, folder / name
        self.state.mkdir()
        write_policy_spec(self.state, self.spec)
        os.utime(spec_path(self.state), (1e9, 1e9))  # rows of before the spec are not sent
        config = folder / f"{name}.yaml"
        config.write_text(CONFIG.format(agent=name, state=self.state, url=url, key=key))
        self.uplink = build(load(config).config, load(config).config.fleet)  # type: ignore[arg-type]
        self.uplink.poll_s, self.uplink.report_s = 0.05, 0.5
        self.public = read_public(key)
        self.checkpoints = open_checkpoints(self.state, PromotionSettings())
        self.database, self.begun_s, self.stored = database(self.state), time.time() - 100_000, 0
        self._frame: Any = None
        self._buffer: list[Transition] = []

    def act(self, ticks: int) -> None:
        """Play some ticks and store them."""
        if self._frame is None:
            self._frame = self._begin(self.env.reset(seed=self.seed)[0])
        for _ in range(ticks):
            values = self._decide()
            observation, reward, terminated, truncated, _ = self.env.step(to_environment(self.env.action_space, values))
            self._remember(self._frame, values, float(reward), done=bool(terminated))
            self._frame = self._tokens(observation)
            self.window.remember(self._frame)
            if truncated and not terminated:
                self._remember(self._frame)
            if terminated or truncated:
                self._frame = self._begin(self.env.reset()[0])
        with self.database:
            for each in self._buffer:
                self.database.add(each)
        self.stored += len(self._buffer)
        self._buffer.clear()

    def _keep(self, transition: Transition) -> None:
        tick = transition.tick
        named = replace(
            transition, decision=f"{self.name}-{tick}", stamp_s=self.begun_s + tick / RATE_HZ, by=dict.fromkeys(transition.actions, "policy")
        )  # fmt: skip
        self._buffer.append(named)

    def take(self, result: Result) -> None:
        """Act with the version that the fleet sent, and note it as live where the uplink reads verdicts."""
        directory = received(self.state)
        if directory is None:
            return
        version = self.checkpoints.import_version(directory, self.public)
        self.checkpoints.promote(version, by="untrusted")
        forget_received(self.state, directory, is_examined=True)
        self.policy.load_state_dict(self.checkpoints.load(version).tensors["policy"])
        result.taken[directory.name] += 1
        event = {
            "type": "policy_promoted",
            "stamp": time.time(),
            "data": {"version": version, "why": "taken at once", "pairs": 1},
        }
        with (self.state / "promotions.jsonl").open("ab") as file:
            file.write(orjson.dumps(event) + b"\n")


async def fleet(environment: str, agents: int, rows: int, seed: int, folder: Path, broker: Mosquitto) -> Result:
    """Run one fleet until its learner has the rows."""
    s = TrainSettings()
    body = {
        "group": "arms", "data": str(folder / "data"), "mqtt": {"url": broker.url}, "rate_hz": RATE_HZ, "device": "cpu",
        "learner": {
            "batch": s.choice_batch, "n_step": s.choice_steps, "warmup": s.choice_warmup, "seed": seed,
            "demonstration_fraction": s.demonstrations, "update_every_s": 0.5, "promote_every_s": 5.0,
        },
        "promotion": {"steps": ["integrity"]}, "waves": {"hold_s": 0.0},
    }  # fmt: skip
    settings = FleetServerSettings.model_validate(body)
    key, result = PolicyPublisher(settings).key_file(), Result()
    made = [LightAgent(lambda: gymnasium.make(environment), seed=seed * 100 + n, settings=s) for n in range(agents)]
    for number, agent in enumerate(made):
        agent.open(folder, f"agent-{number}", broker.url, key)
    learner, ingest = GroupLearner(settings), build_ingest(settings, "ingest-0")
    parts: list[Any] = [learner, ingest, *(agent.uplink for agent in made)]
    tasks = [asyncio.create_task(part.run()) for part in parts]
    try:
        quarter = 1
        while True:
            await asyncio.sleep(0.05)
            broken = next((task for task in tasks if task.done()), None)
            if broken is not None:
                raise RuntimeError(f"a part of the fleet ended: {broken}")
            loop = learner.loop
            row = 0 if loop is None else loop.learner.position.row
            pending = 0.0 if loop is None else loop.learner.position.pending_updates
            for agent in made:
                await asyncio.to_thread(agent.take, result)
                if sum(a.stored for a in made) < min(rows + 64 * agents, row + AHEAD) and pending < AHEAD:
                    await asyncio.to_thread(agent.act, CHUNK // agents)
            if quarter <= 4 and row >= quarter * rows // 4 - 64 * agents and pending < 1:
                result.returns.append(score(environment, loop))
                quarter += 1
            if quarter > 4:
                break
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    result.versions = set(result.taken)
    check_rows(settings.data / "arms" / "learner" / "experience", made)
    return result


def score(environment: str, loop: Any) -> float:
    """Return the greedy return of the learner's policy."""
    player = GymTrainer(lambda: gymnasium.make(environment), seed=0, settings=TrainSettings(memory_bytes=1 << 16))
    player.policy.load_state_dict({name: x.clone() for name, x in loop.learner.policy.state_dict().items()})
    return statistics.fmean(player.play(EVALUATION_SEED, EPISODES))


def check_rows(store: Path, agents: list[LightAgent]) -> None:
    """Print how many rows of each agent reached the learner, and whether any is missing or doubled."""
    reader = Reader(store)
    rows = [(row.transition.session.partition("/")[0], row.transition.tick) for row in reader.rows(0, 1 << 40)]
    reader.close()
    doubled = len(rows) - len(set(rows))
    missing = 0
    for agent in agents:
        ticks = {tick for name, tick in rows if name == agent.name}
        missing += max(ticks, default=0) - len(ticks)
    print(f"rows in the learner {len(rows)}, doubled {doubled}, missing up to the last one of each agent {missing}")


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--agents", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rows", type=int, default=8_000, help="total of all agents")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", action="store_true", help="print what the parts of the fleet log")
    given = parser.parse_args()
    if not given.log:
        structlog.configure(processors=[drop])
    torch.set_num_threads(1)
    for agents in given.agents:
        begun_s = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            broker = Mosquitto(Path(folder)).start()
            try:
                result = asyncio.run(fleet(given.env, agents, given.rows, given.seed, Path(folder), broker))
            finally:
                broker.stop()
        virtual_s = given.rows / agents / RATE_HZ
        quarters = ", ".join(f"{each:.0f}" for each in result.returns)
        print(
            f"{agents} agents: returns {quarters}; {virtual_s:.0f} virtual s; versions taken {len(result.versions)}, "
            f"by devices {sum(result.taken.values())}; {time.monotonic() - begun_s:.0f} s here",
            flush=True,
        )
    return 0


def drop(_logger: Any, _name: str, _event: Any) -> Any:
    """Log nothing."""
    raise structlog.DropEvent


if __name__ == "__main__":
    sys.exit(main())
