"""Environments are foreign code: what they do wrong is named with step and reason, in training and in the plant alike."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import orjson
import pytest
from click.testing import CliRunner
from gymnasium import spaces

from actuators.sim import gym_plant
from actuators.sim.call_limit import FORCED, CallLimit, CallTookTooLong
from actuators.sim.gym_env import CheckedEnv, EnvironmentFault, make
from actuators.sim.gym_plant import GymPlant
from learners.gym import greedy_episodes
from learners.gym.lock_step import GymTrainer, TrainSettings
from learners.gym.train import train
from runtime.cli.main import main

MODULE = """
import os, random, sys, threading
import gymnasium as gym, numpy as np, torch
from gymnasium import spaces as S
class Base(gym.Env):
    observation_space = S.Box(-1, 1, (2,), np.float32); action_space = S.Discrete(2)
    t = 0
    def obs(self): return np.array([self.t / 20, 0.5], np.float32)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed); self.t = 0; return self.obs(), {}
    def step(self, action):
        self.t += 1; return self.obs(), float(action), False, self.t >= 12, {}
def stepping(change):
    def step(self, action): return change(self, *Base.step(self, action))
    return step
def seeing(change, **more): return {"obs": lambda self: change(self, Base.obs(self)), **more}
def crash(self, *_): raise RuntimeError("motor unplugged")
def forever(*_, **__): threading.Event().wait()
spoiled = []
def spoil():
    if spoiled: return
    spoiled.append(True); torch.set_default_device("meta"); torch.set_grad_enabled(False); torch.set_num_threads(3)
    os.write(1, b"hello from C\\n"); sys.stdout.close(); sys.stderr.close(); os.close(1); os.close(2)
def busy():
    while True: pass
def again():
    while True:
        try: forever()
        except Exception: pass
KINDS = {
    "NanReward": {"step": stepping(lambda s, o, r, a, b, i: (o, float("nan") if s.t == 7 else r, a, b, i))},
    "NoneReward": {"step": stepping(lambda s, o, r, a, b, i: (o, None, a, b, i))},
    "WordReward": {"step": stepping(lambda s, o, r, a, b, i: (o, "good", a, b, i))},
    "OldStep": {"step": stepping(lambda s, o, r, a, b, i: (o, r, b, i))},
    "Crash": {"step": stepping(crash)},
    "NanObs": seeing(lambda s, o: o * (np.nan if s.t > 5 else 1)),
    "HugeObs": seeing(lambda s, o: np.array([1e300 if s.t > 5 else 0, 0]), observation_space=S.Box(-np.inf, np.inf, (2,), np.float64)),
    "WrongShape": seeing(lambda s, o: np.zeros(3 if s.t > 5 else 2, np.float32)),
    "Words": seeing(lambda s, o: ["a", "b"] if s.t > 5 else o),
    "Beyond": seeing(lambda s, o: 3 + s.t, observation_space=S.Discrete(4, start=3)),
    "NoKey": seeing(lambda s, o: {"a": o} if s.t < 6 else {"b": o}, observation_space=S.Dict({"a": S.Box(-1, 1, (2,))})),
    "FloatPicture": seeing(lambda s, o: np.zeros((24, 24, 3), np.float32), observation_space=S.Box(0, 255, (24, 24, 3), np.uint8)),
    "OldReset": {"reset": lambda self, **_: Base.obs(self)},
    "NoSeed": {"reset": lambda self: (Base.obs(self), {})},
    "Lists": seeing(lambda s, o: [0.1, 0.2]),
    "ArrayReward": {"step": stepping(lambda s, o, r, a, b, i: (o, np.array([r]), a, b, None))},
    "Endless": {"step": stepping(lambda s, o, r, a, b, i: (o * 0, 1.0, False, False, i))},
    "Unmade": {"__init__": crash},
    "Ends": {"step": stepping(lambda s, o, r, a, b, i: (o, r, np.array([s.t > 9]), np.bool_(b), i))},
    "WordEnd": {"step": stepping(lambda s, o, r, a, b, i: (o, r, "False", b, i))},
    "TwoEnds": {"step": stepping(lambda s, o, r, a, b, i: (o, r, a, np.array([False, True]), i))},
    "NanEnd": {"step": stepping(lambda s, o, r, a, b, i: (o, r, float("nan"), b, i))},
    "Quits": {"step": stepping(lambda s, *_: sys.exit(0) if s.t == 3 else (Base.obs(s), 1.0, False, False, {}))},
    "HugeReward": {"step": stepping(lambda s, o, r, a, b, i: (o, 10 ** 30, a, b, i))},
    "NanNumber": seeing(lambda s, o: float("nan") if s.t > 1 else 0, observation_space=S.Discrete(4)),
    "Halves": seeing(lambda s, o: s.t / 2, observation_space=S.Discrete(9)),
    "Masked": seeing(lambda s, o: np.ma.array(o, mask=[s.t > 1, False])),
    "Grows": seeing(lambda s, o: np.zeros(2 + s.t), observation_space=property(lambda s: S.Box(-1, 1, (2 + s.t,)))),
    "FarNumbers": seeing(lambda s, o: 10**9 + s.t % 5, observation_space=S.Discrete(5, start=10**9)),
    "NoClose": {"close": crash, "step": stepping(lambda s, *_: (print("hello"), (Base.obs(s), 1.0, False, s.t > 9, {}))[1])},
    "NoSpace": {"action_space": property(crash)},
    "Gone": {"__init__": lambda self: sys.exit(3)},
    "Waits": {"step": stepping(lambda s, *_: forever(s) if s.t == 5 else (Base.obs(s), 1.0, False, False, {})), "close": forever},
    "Computes": {"step": stepping(lambda s, *_: busy() if s.t == 5 else (Base.obs(s), 1.0, False, False, {}))},
    "Catches": {"step": stepping(lambda s, *_: again() if s.t == 5 else (Base.obs(s), 1.0, False, False, {}))},
    "NeverBegins": {"reset": forever},
    "NeverMade": {"__init__": forever},
    "Spoils": {"step": stepping(lambda s, o, r, a, b, i: (spoil() if s.t == 12 else None, (o, r, a, b, i))[1])},
    "Draws": {"step": stepping(lambda s, o, r, a, b, i: (o * np.float32(random.random()), np.random.rand() + torch.rand(()).item(), a, b, i))},
}
for name, body in KINDS.items(): gym.register(f"{name}-v0", type(name, (Base,), body))
"""
SMALL = TrainSettings(
    choice_batch=16, choice_warmup=16, evaluate_every=40, evaluation_episodes=2, selection_episodes=2, final_episodes=2
)
FAULTS = [
    ("NanReward", "step 7 of episode 1: the reward is nan; return a finite number"),
    ("NoneReward", "step 1 of episode 1: the reward is None (NoneType); return one number"),
    ("WordReward", "the reward is 'good' (str)"),
    ("OldStep", "(tuple of 4); gymnasium's API wants"),
    ("Crash", "step 1 of episode 1: RuntimeError: motor unplugged"),
    ("NanObs", "step 6 of episode 1: the observation 'state' is not finite: nan at [0]"),
    ("HugeObs", "is not finite: inf at [0]"),
    ("WrongShape", "has the shape (3,); the space says (2,)"),
    ("Words", "no numbers"),
    ("Beyond", "step 4 of episode 1: the observation 'state' is 7; the space says a whole number from 3 to 6"),
    ("NoKey", "a mapping with the keys ['a'] is wanted"),
    ("WordEnd", "step 1 of episode 1: terminated is 'False' (str); return True or False"),
    ("TwoEnds", "truncated is array([False,  True]) (ndarray); return True or False".replace("  ", " ")),
    ("NanEnd", "terminated is nan (float)"),
    ("Quits", "step 3 of episode 1: SystemExit: 0"),
    ("HugeReward", "the reward is 1e+30; scale rewards to at most 1e+12"),
    ("NanNumber", "step 2 of episode 1: the observation 'state' is nan; the space says a whole number from 0 to 3"),
    ("Halves", "step 1 of episode 1: the observation 'state' is 0.5; the space says a whole number from 0 to 8"),
    ("Masked", "no numbers"),
    ("Grows", "has the shape (3,); the space says (2,)"),
]
AT_RESET = [
    ("FloatPicture", "reset of episode 1: the observation 'view' is a picture of float32; the space says uint8"),
    ("OldReset", "reset returned"),
    ("NoSeed", "TypeError"),
]


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "strange_envs.py").write_text(MODULE)
    (tmp_path / "quitting_envs.py").write_text("print('usage')\nraise SystemExit('no display')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("strange_envs", None)
    for name in [name for name in gymnasium.registry if str(gymnasium.registry[name].entry_point).startswith("<class")]:
        del gymnasium.registry[name]


def steps(env: CheckedEnv, count: int = 30) -> list[float]:
    """The rewards of `count` steps."""
    env.reset(seed=0)
    rewards = []
    for _ in range(count):
        _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        rewards.append(reward)
        if terminated or truncated:
            env.reset()
    return rewards


@pytest.mark.parametrize(("name", "reason"), [*FAULTS, *AT_RESET])
def test_a_fault_is_named_with_its_step(name: str, reason: str) -> None:
    with pytest.raises(EnvironmentFault) as fault:
        steps(make(f"strange_envs:{name}-v0"))
    assert str(fault.value).startswith(f"strange_envs:{name}-v0: ")
    assert reason in str(fault.value)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("name", ["Lists", "ArrayReward", "Endless", "Ends", "FarNumbers", "NoClose"])
def test_what_is_only_unusual_is_taken(name: str) -> None:
    rewards = steps(make(f"strange_envs:{name}-v0"))
    assert len(rewards) == 30
    assert {type(reward) for reward in rewards} == {float}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere_envs:X-v0", "MODULE:ID"), ("strange_envs:X-v0", "no environment"), ("X-v0", "no environment"),
        ("strange_envs:Unmade-v0", "cannot be made: RuntimeError: motor unplugged"), ("", "no environment"),
        ("strange_envs:NoSpace-v0", "cannot be made: RuntimeError: motor unplugged"), ("strange_envs:Gone-v0", "SystemExit: 3"),
        ("quitting_envs:X-v0", "its module fails: SystemExit"),
    ],
)  # fmt: skip
def test_what_is_no_environment_is_refused_by_train_and_plant(tmp_path: Path, name: str, reason: str) -> None:
    for verb in (["train", name, "--out", str(tmp_path / "o")], ["plant", name], ["plant", name, "--config"]):
        done = CliRunner().invoke(main, verb)
        assert done.exit_code == 2, done.output
        assert isinstance(done.exception, SystemExit)
        assert reason in done.output


LIMIT_S = 0.2


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("Waits", "step 5 of episode 1"), ("Computes", "step 5 of episode 1"), ("Catches", "step 5 of episode 1"),
        ("NeverBegins", "reset of episode 1"),
    ],
)  # fmt: skip
def test_a_call_that_does_not_return_is_named_with_its_step(name: str, place: str) -> None:
    """Whether it waits, computes, or tries again whatever happens."""
    env = make(f"strange_envs:{name}-v0")
    env.limit_s = LIMIT_S
    with pytest.raises(EnvironmentFault) as fault:
        steps(env)
    assert str(fault.value).startswith(f"strange_envs:{name}-v0: {place}: it has not returned after 0.2 s; ")
    if name == "Waits":
        with pytest.warns(UserWarning, match=r"close has not returned for 0\.2 s"):
            env.close()
    if name == "NeverBegins":  # the next call has its own time
        with pytest.raises(EnvironmentFault, match="reset of episode 2"):
            env.reset()


def test_train_and_plant_end_with_a_sentence_where_an_environment_waits_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "waiting_envs.py").write_text("import threading\nthreading.Event().wait()\n")
    for name, reason in [
        ("strange_envs:NeverMade-v0", "cannot be made: it has not returned after 0.2 s"),
        ("waiting_envs:X-v0", "its module has not returned after 0.2 s"),
        ("strange_envs:NeverBegins-v0", "reset of episode 1: it has not returned after 0.2 s"),
    ]:
        done = CliRunner().invoke(main, ["train", name, "--call-limit", "0.2", "--out", str(tmp_path / "o")])
        assert (done.exit_code, reason in done.output) == (2, True), done.output
    monkeypatch.setattr(gym_plant, "make", lambda name: make(name, LIMIT_S))
    done = CliRunner().invoke(main, ["plant", "strange_envs:NeverBegins-v0", "--rate", "50"])
    assert (done.exit_code, "reset of episode 1: it has not returned" in done.output) == (2, True), done.output


def test_what_was_learned_until_a_call_that_does_not_return_is_retained(tmp_path: Path) -> None:
    gymnasium.register("Stuck-v0", Stuck)
    with pytest.raises(
        EnvironmentFault, match=r"step 4 of episode 8: it has not returned after 0\.5 s.*after 80 steps"
    ):
        train("Stuck-v0", 200, 0, tmp_path / "o", settings=SMALL, progress=False, call_limit_s=0.5)
    assert orjson.loads((tmp_path / "o" / "results.json").read_bytes())["delivered"]["step"] == 80


def test_code_that_swallows_every_interruption_ends_the_process(capfd: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []
    limit = CallLimit(grace_s=0.2, end=codes.append)
    tries = []

    def stubborn() -> str:
        while not codes:
            try:
                threading.Event().wait(0.1)
            except BaseException as error:  # noqa: BLE001 - as foreign code does
                tries.append(type(error))
        return "done"

    assert limit.call(stubborn, 0.1, "Hard-v0: step 3 of episode 2") == "done"
    assert (codes[0], tries) == (FORCED, [CallTookTooLong])
    assert "Hard-v0: step 3 of episode 2 has not returned for 0 s and cannot be interrupted" in capfd.readouterr().err
    assert limit.call(lambda: 5, 0.1, "next") == 5


def test_calls_of_other_threads_and_without_a_limit_take_any_time() -> None:
    limit, results = CallLimit(), list[int]()
    thread = threading.Thread(target=lambda: results.append(limit.call(lambda: 3, 1e-9, "x")))
    thread.start()
    thread.join()
    assert (results, limit.call(lambda: 4, 0, "x"), limit._watcher) == ([3], 4, None)


def test_what_was_learned_until_a_fault_is_retained(tmp_path: Path) -> None:
    gymnasium.register("Late-v0", Late)
    with pytest.raises(EnvironmentFault, match=r"step 4 of episode 8: the reward is inf.*after 80 steps is in"):
        train("Late-v0", 200, 0, tmp_path / "o", settings=SMALL, progress=False)
    results = orjson.loads((tmp_path / "o" / "results.json").read_bytes())
    assert "the reward is inf" in results["stopped"]
    assert results["delivered"]["step"] == 80
    assert results["final"]["episodes"] == 2
    assert (tmp_path / "o" / "checkpoints" / results["checkpoint"] / "manifest.json").is_file()


def test_train_prints_the_fault_in_a_line(tmp_path: Path) -> None:
    given = ["train", "strange_envs:NanReward-v0", "--steps", "40", "--out", str(tmp_path / "o")]
    done = CliRunner().invoke(main, given)
    assert done.exit_code == 2
    assert isinstance(done.exception, SystemExit)
    assert "step 7 of episode 1: the reward is nan" in done.output


def test_an_environment_that_prints_and_does_not_close_spoils_no_results(tmp_path: Path) -> None:
    """What it prints goes to standard error, and a failure to close it loses no training."""
    given = ["train", "strange_envs:NoClose-v0", "--steps", "20", "--out", str(tmp_path / "o"), "--json"]
    with pytest.warns(UserWarning, match="close failed: RuntimeError: motor unplugged"):
        done = CliRunner().invoke(main, given)
    assert done.exit_code == 0, done.output
    assert orjson.loads(done.stdout)["final"]["mean"] == 10.0
    assert "hello" in done.stderr
    (tmp_path / "loud_envs.py").write_text("print('hello')\nfrom strange_envs import *\n")
    printed = CliRunner().invoke(main, ["plant", "loud_envs:Lists-v0", "--config"])
    assert printed.stdout.startswith("agent: demo\n")
    assert "hello" in printed.stderr


def test_an_environment_that_spoils_torch_and_the_output_spoils_no_training(tmp_path: Path) -> None:
    """It needs a process of its own, which ends although a thread of the environment still runs."""
    (tmp_path / "running_envs.py").write_text(
        "import threading\nfrom strange_envs import *\nthreading.Thread(target=threading.Event().wait, name='poller').start()\n"
    )
    given = ["train", "running_envs:Spoils-v0", "--steps", "300", "--out", str(tmp_path / "o"), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", f"from runtime.cli.main import end_in_time, main\ntry: main({given!r})\nexcept SystemExit as e: end_in_time(e.code, 0.1); raise"],
        capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert orjson.loads(done.stdout)["updates"] > 0
    assert "hello from C" in done.stderr
    assert "threads of foreign code still run: poller" in done.stderr


def test_an_environment_that_draws_from_the_global_generators_is_repeated_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(SMALL, save_every=30)
    whole = train("strange_envs:Draws-v0", 120, 0, tmp_path / "a", settings=short, progress=False)
    learn = GymTrainer._learn

    def dying(self: GymTrainer, at: int) -> None:
        if at == 110:
            raise KeyError
        learn(self, at)

    with monkeypatch.context() as patch:
        patch.setattr(GymTrainer, "_learn", dying)
        with pytest.raises(KeyError):
            train("strange_envs:Draws-v0", 120, 0, tmp_path / "b", settings=short, progress=False)
    resumed = train("strange_envs:Draws-v0", 120, 0, tmp_path / "b", settings=short, progress=False, resume=True)
    assert resumed["resumed_at"] is not None
    assert (resumed["evaluations"], resumed["checkpoint"]) == (whole["evaluations"], whole["checkpoint"])


def test_results_are_where_they_were_asked_for_although_an_environment_changes_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "moving_envs.py").write_text(
        f"import os\nfrom strange_envs import *\nos.chdir({str(tmp_path / 'elsewhere')!r})\n"
    )
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["train", "moving_envs:Ends-v0", "--steps", "20", "--out", "o"])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "o" / "results.json").is_file()


def test_a_working_directory_that_was_deleted_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    done = CliRunner().invoke(main, ["train", "CartPole-v1", "--out", "o"])
    assert (done.exit_code, "the working directory does not exist any more" in done.output) == (2, True), done.output


def test_episodes_without_an_end_are_cut_in_evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(greedy_episodes, "MAX_STEPS", 50)
    results = train("strange_envs:Endless-v0", 40, 0, tmp_path / "o", settings=SMALL, progress=False)
    assert results["final"]["mean"] == 50.0
    assert results["cut_episodes"] == 6


def test_the_plant_raises_the_same_fault() -> None:
    plant = GymPlant("strange_envs:NanReward-v0", "demo")
    plant._values = {"action": "0"}
    plant._greeted = True
    for second in range(6):
        plant.step(1e9 + second)
    with pytest.raises(EnvironmentFault, match="step 7 of episode 1: the reward is nan"):
        plant.step(2e9)


class Late(gymnasium.Env[Any, Any]):
    """Right for seven episodes of eleven steps in training, then wrong; episodes of evaluations are always right."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.episode = self.t = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        wrong = self.episode == 8 and self.t == 4
        return np.zeros(1, np.float32), float("inf") if wrong else 1.0, self.t == 11, False, {}


class Stuck(Late):
    """As `Late`, but where it is wrong it waits for ever."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.episode == 8 and self.t == 3:
            threading.Event().wait()
        return super().step(action)


def test_a_missing_library_is_named_with_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "Box2D", None)
    with pytest.raises(ValueError, match=r"'LunarLander-v3' cannot be made: .*pip install .*gymnasium\[box2d\]"):
        make("LunarLander-v3")
