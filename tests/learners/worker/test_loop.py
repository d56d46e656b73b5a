"""The learner process: learns, puts candidates on trial, follows rollbacks, tells of it, and gives way to everybody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import learning
import orjson
import psutil
import pytest
import torch

from actuators.actions import ActionSpace, Choice, Continuous
from learners import torch_device
from learners.checkpoints.signing import load_key
from learners.checkpoints.store import Checkpoints
from learners.ipc.outbox import Outbox
from learners.ipc.policy_spec import read_policy_spec, write_policy_spec
from learners.ipc.settings import LearnerConfig
from learners.model.policy import Policy
from learners.model.spec import PolicySpec
from learners.promotion.step_types import EvaluationContext, StepResult
from learners.promotion.steps import STEPS
from learners.worker import __main__, loop
from learners.worker.loop import LearnerLoop
from runtime.process.child import with_parent_death

torch.set_num_threads(1)
ROOT = Path(loop.__file__).parents[2]


def inputs(folder: Path, **fields: Any) -> LearnerConfig:
    learner = {"batch": 32, "warmup": 40, "reward_delay_s": 0, "replay_gb": 1e-3, "update_every_s": 0.05}
    promotion = {"steps": ["integrity", "latency"]}
    return LearnerConfig.model_validate(
        {
            "state_dir": str(folder),
            "device": "cpu",
            "learner": {**learner, **fields},
            "promotion": promotion,
            "other": 1,
        }
    )


def background(folder: Path, stop: threading.Event | None = None, steps: Any = STEPS, **fields: Any) -> LearnerLoop:
    return LearnerLoop(
        inputs(folder, **fields), learning.SPEC, stop or threading.Event(), build=learning.SmallPolicy, steps=steps
    )


def events(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    return [(event.kind, event.fields) for event in Outbox(folder / "learner" / "outbox").collect()]


def test_it_learns_proposes_and_says_so(tmp_path: Path) -> None:
    learning.fill(tmp_path, 0, 300)
    one = background(tmp_path)
    one.begin()
    one.step()
    assert one.learner.position.update > 0
    verdict = one.candidates.run()
    assert verdict is not None
    assert not verdict.rejected, verdict
    live = one.checkpoints.proposed()
    assert live is not None
    assert one.checkpoints.live().version is None
    loaded = one.checkpoints.load(live)
    assert set(loaded.tensors) == {"policy"}, "what resumes the training is in learner/state alone"
    assert loaded.documents["position"]["row"] == 300
    assert loaded.manifest.data == {"first_row": 1, "last_row": 300, "transitions": 300}
    assert loaded.manifest.metrics["updates"] == one.learner.position.update
    received = dict(events(tmp_path))
    assert received["learner_resumed"] == {"resumed": False, "update": 0, "row": 0}
    assert received["policy_proposed"]["version"] == live
    assert received["policy_proposed"]["steps"]["latency"]["limit_ms"] == 50.0
    one._tell("training", now=True)
    progress = orjson.loads((tmp_path / "learner" / "progress.json").read_bytes())
    assert progress["policy"] is None
    assert progress["buffer"] == 300
    assert progress["loss"]["dqn"] > 0
    assert progress["terminal"] == 3
    assert progress["state"] == "training"


def test_a_candidate_that_fails_a_step_does_not_go_live(tmp_path: Path) -> None:
    seen: list[EvaluationContext] = []

    def no(trial: EvaluationContext) -> StepResult:
        seen.append(trial)
        return StepResult(passed=False, figures={"x": 1.5}, reason="made to fail")

    learning.fill(tmp_path, 0, 200)
    one = background(tmp_path, steps={**STEPS, "latency": no})
    one.begin()
    one.step()
    before = torch.get_rng_state()
    verdict = one.candidates.run()
    assert torch.equal(torch.get_rng_state(), before)  # judging leaves no trace in what is learned next
    assert verdict is not None
    assert not verdict.passed
    assert one.checkpoints.live().version is None
    assert len(seen[0].experience.recent(50)) == 50
    assert (seen[0].live, seen[0].live_version) == (None, None)
    kind, fields = events(tmp_path)[-1]
    assert kind == "policy_rejected"
    assert (fields["step"], fields["reason"], fields["steps"]["latency"]["x"]) == ("latency", "made to fail", 1.5)
    assert one.figures()["candidate"]["passed"] is False


def test_a_trained_version_goes_on_exploring_as_it_did(tmp_path: Path) -> None:
    """A version from elsewhere in a fresh state folder: epsilon and temperature do not start over."""
    actions = ActionSpace((Choice("head", ("left", "right")), Continuous("arm", (-1.0,), (1.0,))))
    spec = PolicySpec(learning.SPEC.streams, actions, history=1, width=16, gamma=0.9)

    def loop(folder: Path) -> LearnerLoop:
        return LearnerLoop(inputs(folder), spec, threading.Event(), build=Policy)

    trained = loop(tmp_path / "fresh")
    policy = Policy(spec)
    policy.heads.choice.epsilon.fill_(0.02)
    version = trained.checkpoints.save(
        {"policy": policy.state_dict()},
        {"spec": orjson.loads(spec.to_json())},
        metrics={"crossq_temperature": 0.05, "score": None},
    )
    trained.checkpoints.promote(version)
    trained.begin()
    for one in (trained, loop(tmp_path / "fresh")):
        if one is not trained:
            one.begin()
        found = one.learner.algorithm.exploration()
        assert found == {"updates": 2_000, "decisions": 2_000, "crossq_temperature": pytest.approx(0.05)}
        one.learner.algorithm.parts[0].fade(None, one.learner.algorithm.decisions + 1, 1)  # type: ignore[arg-type] # not used
        assert float(one.learner.policy.heads.choice.epsilon) == pytest.approx(0.02)


def goes_live(one: LearnerLoop) -> str:
    """Promote what the learner proposes, as the agent does while nothing is trusted."""
    proposed = one.checkpoints.proposed()
    assert proposed is not None
    one.checkpoints.promote(proposed, by="untrusted")
    return proposed


def test_after_a_rollback_it_learns_on_from_the_version_that_came_back(tmp_path: Path) -> None:
    learning.fill(tmp_path, 0, 300)
    one = background(tmp_path)
    one.begin()
    one.step()
    one.candidates.run()
    good = goes_live(one)
    one.learner.train(float("inf"), until=one.learner.position.update + 20)
    one.candidates.run()
    assert goes_live(one) != good
    one.candidates.follow_live()  # as every step does
    one.checkpoints.rollback()
    one.candidates.follow_live()
    expected = one.checkpoints.load(good).tensors["policy"]
    assert all(torch.equal(value, expected[name]) for name, value in one.learner.policy.state_dict().items())
    one.candidates.follow_live()  # once is enough
    two = background(tmp_path)
    two.begin()
    learning.assert_identical(learning.weights(two.learner), learning.weights(one.learner))


def test_a_new_learner_starts_from_the_live_version(tmp_path: Path) -> None:
    versions = Checkpoints(tmp_path / "checkpoints", load_key(tmp_path))
    policy = learning.SmallPolicy(learning.SPEC)
    versions.promote(versions.save({"policy": policy.state_dict()}, {}))
    one = background(tmp_path)
    one.begin()
    expected = policy.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in one.learner.policy.state_dict().items())


def test_a_live_version_that_is_broken_is_an_event(tmp_path: Path) -> None:
    learning.fill(tmp_path, 0, 200)
    one = background(tmp_path)
    one.begin()
    one.step()
    one.candidates.run()
    live = goes_live(one)
    (tmp_path / "checkpoints" / live / "spec.json").write_bytes(b"")
    two = background(tmp_path)
    two.begin()
    two.step()
    verdict = two.candidates.run()
    assert verdict is not None
    assert not verdict.rejected
    assert ("checkpoint_refused", "wrong_hash") in [(kind, fields.get("reason")) for kind, fields in events(tmp_path)]


def test_it_stops_when_the_agent_runs_another_policy(tmp_path: Path) -> None:
    assert read_policy_spec(tmp_path) is None
    assert write_policy_spec(tmp_path, learning.SPEC)
    assert not write_policy_spec(tmp_path, learning.SPEC)
    one = background(tmp_path)
    other = learning.PolicySpec(learning.SPEC.streams, learning.ACTIONS, history=2, width=16)
    write_policy_spec(tmp_path, other)
    one.run()  # returns
    assert read_policy_spec(tmp_path) == other
    assert two_states(tmp_path) >= 1


def two_states(folder: Path) -> int:
    return len(Checkpoints(folder / "learner" / "state", load_key(folder)).list())


def test_states_do_not_pile_up(tmp_path: Path) -> None:
    one = background(tmp_path)
    one.begin()
    for _ in range(6):
        one.learner.save()
    assert two_states(tmp_path) <= 3


def wait_until(what: Callable[[], object], deadline_s: float = 240.0) -> None:
    end = time.monotonic() + deadline_s
    tick = threading.Event()
    while not what():
        assert time.monotonic() < end, "not in time"
        tick.wait(0.02)


Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Start]:
    running: list[subprocess.Popen[bytes]] = []

    def start(**fields: Any) -> subprocess.Popen[bytes]:
        path = tmp_path / "settings.json"
        path.write_bytes(inputs(tmp_path, promote_every_s=0.2, save_every_s=0.2, **fields).model_dump_json().encode())
        running.append(subprocess.Popen([sys.executable, "-m", "learners.worker", str(path)], cwd=ROOT))
        return running[-1]

    yield start
    for one in running:
        one.kill()
        one.wait()


def test_the_process_keeps_the_priority_it_is_started_with_and_has_a_name(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_bytes(inputs(tmp_path).model_dump_json().encode())
    command = with_parent_death([sys.executable, "-m", "learners.worker", str(path)], priority="background")
    one = subprocess.Popen(command, cwd=ROOT)
    try:
        wait_until(lambda: "learner_waiting_for_spec" in dict(events(tmp_path)))
        assert psutil.Process(one.pid).cmdline()[0] == "reflexd: learner"
        assert os.getpriority(os.PRIO_PROCESS, one.pid) == 2
        one.send_signal(signal.SIGTERM)
        assert one.wait(60) == 0
    finally:
        one.kill()
        one.wait()


def test_the_process_learns_ends_in_order_and_resumes(tmp_path: Path, started: Start) -> None:
    learning.fill(tmp_path, 0, 200)
    write_policy_spec(tmp_path, learning.SPEC)
    one = started(priority="normal")
    versions = Checkpoints(tmp_path / "checkpoints", load_key(tmp_path))
    wait_until(lambda: versions.proposed() is not None)
    one.send_signal(signal.SIGTERM)
    assert one.wait(60) == 0
    progress = orjson.loads((tmp_path / "learner" / "progress.json").read_bytes())
    assert progress["updates"] > 0
    assert progress["state"] == "stopped"
    again = started(priority="normal")
    wait_until(lambda: ("learner_resumed", True) in [(kind, f.get("resumed")) for kind, f in events(tmp_path)])
    again.send_signal(signal.SIGTERM)
    assert again.wait(60) == 0


def test_the_process_dies_with_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_bytes(inputs(tmp_path, priority="normal").model_dump_json().encode())
    script = (
        "import subprocess, sys; from runtime.process.child import with_parent_death;"
        " p = subprocess.Popen(with_parent_death([sys.executable, '-m', 'learners.worker', sys.argv[1]]));"
        " print(p.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    wait_until(lambda: "learner_waiting_for_spec" in dict(events(tmp_path)))
    libraries = Path(f"/proc/{child.pid}/maps").read_text()
    assert "/torch/" in libraries
    assert not [name for name in ("/tokenizers/", "/matplotlib/", "/peft/", "/scipy/stats/") if name in libraries], (
        "without tasks, it starts without the libraries of their models"
    )
    parent.kill()
    parent.communicate()
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)


def test_it_serves_one_spec_after_another_until_asked_to_stop(tmp_path: Path) -> None:
    """With the real policy, in a thread of this process."""
    stop = threading.Event()
    learning.fill(tmp_path, 0, 200)
    serving = threading.Thread(target=loop.serve, args=(inputs(tmp_path, promote_every_s=0.1), stop))
    serving.start()
    wait_until(lambda: "learner_waiting_for_spec" in dict(events(tmp_path)))
    write_policy_spec(tmp_path, learning.SPEC)
    versions = Checkpoints(tmp_path / "checkpoints", load_key(tmp_path))
    wait_until(lambda: versions.proposed() is not None)
    versions.promote(str(versions.proposed()))
    other = learning.PolicySpec(learning.SPEC.streams, learning.ACTIONS, history=2, width=16, gamma=0.5)
    write_policy_spec(tmp_path, other)
    wait_until(lambda: len([kind for kind, _ in events(tmp_path) if kind == "learner_resumed"]) == 2)
    stop.set()
    serving.join(60)
    assert not serving.is_alive()
    wrong = [fields["reason"] for kind, fields in events(tmp_path) if kind == "checkpoint_refused"]
    assert set(wrong) == {"wrong_shapes"}  # neither the state nor the live version of another policy is taken up


def test_usage(capsys: Any) -> None:
    assert __main__.main([]) == 2
    assert "SETTINGS.json" in capsys.readouterr().err


def test_devices() -> None:
    assert torch_device.pick_device("cpu").type == "cpu"
    assert torch_device.pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(("name", "index"), [("cuda", 2), ("cuda:1", 1)])
def test_the_limit_of_memory_names_a_gpu_by_its_number(monkeypatch: pytest.MonkeyPatch, name: str, index: int) -> None:
    """`set_per_process_memory_fraction` refuses a device without a number, which is what `auto` gives."""
    from learners.worker.torch_limits import background_stream

    class Stream:
        def __init__(self, device: int, priority: int = 0) -> None:
            self.device, self.priority, self.waited = device, priority, []

        def wait_stream(self, other: Stream) -> None:
            self.waited.append(other.device)

    limits: list[tuple[float, int]] = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, gpu: limits.append((share, gpu)))
    stream: Any = background_stream(torch.device(name), 0.25)
    assert limits == [(0.25, index)]
    assert (stream.device, stream.priority, stream.waited) == (index, 0, [index])


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_on_a_gpu_it_takes_a_share_of_the_memory_and_gives_way(tmp_path: Path, name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from learners.worker.torch_limits import background_stream

    stream = background_stream(torch.device(name), 0.25)
    assert stream is not None
    assert stream.priority == 0
    limit = int(torch.cuda.get_device_properties(0).total_memory * 0.25)
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(limit + (1 << 26), dtype=torch.uint8, device="cuda:0")
