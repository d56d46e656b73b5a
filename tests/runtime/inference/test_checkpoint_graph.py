"""A checkpoint carries its graph: the agent converts nothing, and what lacks a graph is compiled in a process that ends."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch
from watching import KEY

from actuators.actions import ActionSpace, Choice, Continuous
from learners.checkpoints.manifest import CheckpointRefused, GraphFiles, LoadedCheckpoint
from learners.checkpoints.sealed_folder import SealBroken, check_seal, owned_by_this_user
from learners.checkpoints.signing import load_key
from learners.checkpoints.store import Checkpoints
from learners.experience.transition import Transition
from learners.ipc.settings import Backend
from learners.model import policy_graph
from learners.model.backends import openvino
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.fastest_backend import BackendChoice, BackendSettings, NotCompiled
from learners.model.backends.onnxruntime import OnnxRuntime
from learners.model.policy import Policy
from learners.model.spec import PolicySpec, StreamSpec
from learners.worker.compilation import compile_candidate
from runtime.inference.compiled_policy import StoredGraph, compile_policy
from runtime.inference.graph_compiler import CompilationFailed, GraphCompiler
from runtime.inference.torch_engine import TorchEngine
from sensors.readings import Observation, Telemetry

SPEC = PolicySpec(
    (StreamSpec("joints", "telemetry", 1, 2), StreamSpec("wheels", "telemetry", 1, 3)),
    ActionSpace((Choice("head", ("left", "stay", "right")), Continuous("arm", (-1.0,), (2.0,)))),
    width=16, latents=2, layers=1, heads=2, history=2, hidden=(16,),
)  # fmt: skip
ROOT = Path(__file__).resolve().parents[3]
OPENVINO = openvino.OpenVino()
SETTINGS = BackendSettings("openvino", "float32")


def weights(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return Policy(SPEC).state_dict()


def ticks(count: int) -> list[Transition]:
    """Transitions of one session, as the learner reads them."""
    generator = torch.Generator().manual_seed(1)

    def tokens(stream: StreamSpec) -> Any:
        return torch.randn(1, stream.width, generator=generator).numpy()

    return [
        Transition(
            "s", tick, f"s-{tick}", float(tick), "v",
            tokens={s.name: tokens(s) for s in SPEC.streams},
            present=dict.fromkeys(SPEC.names, True),
            ages_s=dict.fromkeys(SPEC.names, 0.1),
        )
        for tick in range(count)
    ]  # fmt: skip


def versions(folder: Path) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", load_key(folder))


def save(checkpoints: Checkpoints, seed: int, *, graph: bool, library: str | None = None) -> str:
    """Save a version as the learner does it, with its graph or without."""
    state = weights(seed)
    documents = {"spec": orjson.loads(SPEC.to_json())}
    if not graph:
        return checkpoints.save({"policy": state}, documents)
    made = compile_candidate(SPEC, state, Backend(backend="openvino"), ticks(4))
    assert made.problem == ""
    if library is not None:
        made.documents[policy_graph.DOCUMENT][policy_graph.POLICY]["library"] = library
    return checkpoints.save({"policy": state}, documents | made.documents, graphs=made.graphs)


def agent(folder: Path, checkpoints: Checkpoints, compiler: GraphCompiler | None = None) -> TorchEngine:
    """An engine that acts: from here on it may not convert."""
    torch.manual_seed(0)
    engine = TorchEngine(Policy(SPEC), {}, {}, Calibrations(folder, SETTINGS), checkpoints.load)
    engine.calibrations.convert_here, engine.compiler = False, compiler
    if compiler is not None:
        compiler.calibrations = engine.calibrations
    return engine


def compiler_of(folder: Path, events: list[tuple[str, dict[str, Any]]]) -> GraphCompiler:
    calibrations = Calibrations(folder, SETTINGS)
    return GraphCompiler(folder, calibrations, SPEC.to_json(), {}, lambda kind, data: events.append((kind, data)))


def seen(tick: int) -> Observation:
    generator = torch.Generator().manual_seed(tick)
    readings: Any = {
        s.name: Telemetry(s.name, 0.0, tick, tuple("abc"[: s.width]), torch.randn(s.width, generator=generator).numpy())
        for s in SPEC.streams
    }
    return Observation(tick, float(tick), readings, dict.fromkeys(readings, 0.1), frozenset())


def refuse_to_convert(*_: Any) -> Any:
    raise AssertionError("the agent converted a graph")


async def test_the_agent_acts_on_the_graph_of_the_checkpoint_and_converts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = versions(tmp_path)
    version = save(checkpoints, 1, graph=True)
    engine = agent(tmp_path, checkpoints)
    monkeypatch.setattr("openvino.tools.ovc.convert_model", refuse_to_convert)
    await engine.switch(version)
    exact = Policy(SPEC).eval()
    exact.load_state_dict(weights(1))
    module = policy_graph.FlatPolicyModule(exact).eval()
    previous = None
    for tick in range(100):
        decided = await engine.decide(seen(tick))
        inputs = [torch.ones(1, 2, dtype=torch.bool), torch.full((1, 2), 0.1)]
        inputs += [torch.tensor(decided.tokens[name]).unsqueeze(0) for name in SPEC.names]
        with torch.inference_mode():
            state = module(*inputs)
            past = torch.stack([state if previous is None else previous, state], dim=1)
            out = exact.heads.act(exact.context(past), generator=torch.Generator(), explore=False)
        previous = state
        assert int(out.values["head"][0]) == ("left", "stay", "right").index(str(decided.actions["head"].value))
        assert decided.scores["head"] == pytest.approx(out.scores["head"][0].tolist(), rel=1e-4, abs=1e-5)
        assert decided.actions["arm"].value == pytest.approx(out.values["arm"][0].tolist(), rel=1e-4, abs=1e-5)
    engine.close()


def test_a_graph_of_another_library_is_not_used(tmp_path: Path) -> None:
    checkpoints = versions(tmp_path)
    loaded = checkpoints.load(save(checkpoints, 1, graph=True, library="2019.1"))
    stored = StoredGraph.of(loaded, OPENVINO)
    assert stored.files is None
    assert stored.reason.startswith("its graph is of OpenVINO 2019.1, this is ")
    for note in ({}, {"policy": {"library": 3}}, {"policy": []}):
        assert StoredGraph.of(replace(loaded, documents={"graphs": note}), OPENVINO).files is None


def test_an_onnx_graph_is_signed_too_and_each_library_uses_its_own(tmp_path: Path) -> None:
    checkpoints, onnx = versions(tmp_path), OnnxRuntime()
    made = compile_candidate(SPEC, weights(1), Backend(backend="onnxruntime"), ticks(4))
    assert (made.problem, set(made.graphs["policy"].parts)) == ("", {"onnx"})
    assert made.documents["graphs"]["policy"]["difference"] < 1e-5
    documents = {"spec": orjson.loads(SPEC.to_json())} | made.documents
    version = checkpoints.save({"policy": weights(1)}, documents, graphs=made.graphs)
    loaded = checkpoints.load(version)
    assert StoredGraph.of(loaded, onnx).files == made.graphs["policy"]
    other = StoredGraph.of(loaded, OPENVINO)
    assert (other.files, other.reason) == (
        None,
        f"its graph is of ONNX Runtime {onnx.version}, this is OpenVINO {OPENVINO.version}",
    )
    theirs = StoredGraph.of(checkpoints.load(save(checkpoints, 1, graph=True)), onnx)
    assert theirs.reason == f"its graph is of OpenVINO {OPENVINO.version}, this is ONNX Runtime {onnx.version}"
    file = checkpoints.folder / version / "policy.onnx"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointRefused) as refused:
        checkpoints.load(version)
    assert refused.value.reason == "wrong_hash"
    both = {"policy": GraphFiles({"onnx": content, "xml": b"<net/>"})}
    with pytest.raises(CheckpointRefused, match=r"or is one \.onnx file"):
        checkpoints.load(checkpoints.save({"policy": weights(1)}, documents, graphs=both))


async def test_a_graph_that_is_missing_is_compiled_in_a_process_and_an_event_says_why(tmp_path: Path) -> None:
    checkpoints = versions(tmp_path)
    version = save(checkpoints, 1, graph=False)
    events: list[tuple[str, dict[str, Any]]] = []
    engine = agent(tmp_path, checkpoints, compiler_of(tmp_path, events))
    loading = asyncio.create_task(engine.switch(version))
    count = 0
    while not loading.done():
        acts = (await engine.decide(seen(count))).policy
        if acts == version:  # the task that loaded has made it live and ends in the next turn of the loop
            break
        assert acts == "untrained"
        count += 1
        await asyncio.sleep(0.05)
    await loading
    assert count > 5
    assert (await engine.decide(seen(count))).policy == version
    (kind, data) = events[0]
    assert (kind, data["version"], len(events)) == ("graph_compiled", version, 1)
    assert data["reason"] == "the checkpoint has no graph"
    engine.close()


@pytest.mark.parametrize("spare", [True, False])
async def test_without_room_in_the_state_the_graph_is_in_the_folder_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, spare: bool
) -> None:
    checkpoints = versions(tmp_path)
    version = save(checkpoints, 1, graph=False)
    events: list[tuple[str, dict[str, Any]]] = []
    engine = agent(tmp_path, checkpoints, compiler_of(tmp_path, events))
    graphs, temporary = tmp_path / "openvino", tmp_path / "temporary"
    shutil.rmtree(graphs)
    graphs.write_bytes(b"a file where the folder should be")
    if spare:
        temporary.mkdir()
    else:
        temporary.write_bytes(b"no folder either")
    monkeypatch.setattr("learners.model.backends.calibration_cache.tempfile.gettempdir", lambda: str(temporary))
    if spare:
        await engine.switch(version)
        assert [(kind, fields["version"]) for kind, fields in events] == [("graph_compiled", version)]
        assert len(list(temporary.glob("*/openvino/*/seal.json"))) == 1
    else:
        with pytest.raises(CheckpointRefused, match="no graph of this version is on disk") as refused:
            await engine.load(version)
        assert (refused.value.reason, events, engine.loaded) == ("not_compiled", [], {"untrained"})
    assert (await engine.decide(seen(0))).policy == (version if spare else "untrained")
    engine.close()
    assert not spare or list(temporary.iterdir()) == []


def test_a_cached_graph_that_was_changed_is_not_used_and_is_made_again(tmp_path: Path) -> None:
    refused: list[tuple[str, str]] = []
    policy, examples = Policy(SPEC).eval(), policy_graph.example_inputs(SPEC)

    def built(state: Path, shared: Path) -> Calibrations:
        found = Calibrations(state, SETTINGS, shared, refused=lambda folder, reason: refused.append((folder, reason)))
        compile_policy(found, policy, examples, first=True)
        return found

    def changed(file: Path) -> None:
        file.write_bytes(file.read_bytes()[:-1] + b"!")

    one, shared = tmp_path / "one", tmp_path / "shared"
    built(one, shared)
    (folder,) = (shared / "openvino").iterdir()
    for damage, reason in (
        (lambda: changed(folder / "graph.bin"), "graph.bin is not the file that was sealed"),
        (lambda: changed(folder / "graph.xml"), "graph.xml is not the file that was sealed"),
        (lambda: (folder / "more").write_bytes(b""), "more is not the file that was sealed"),
        (lambda: (folder / "seal.json").write_bytes(b"{}"), "no readable seal.json"),
        ((folder / "seal.json").unlink, "no readable seal.json"),
    ):
        damage()
        built(one, shared)
        assert refused == [(str(folder), reason)]
        refused.clear()
    built(one, shared)
    assert refused == []


def test_a_graph_in_the_state_needs_the_signature_of_this_daemon(tmp_path: Path) -> None:
    refused: list[str] = []
    policy, examples = Policy(SPEC).eval(), policy_graph.example_inputs(SPEC)

    def built(state: Path) -> None:
        calibrations = Calibrations(state, SETTINGS, refused=lambda _folder, reason: refused.append(reason))
        compile_policy(calibrations, policy, examples, first=False)

    built(tmp_path / "mine")
    built(tmp_path / "theirs")
    (mine,), (theirs,) = ((tmp_path / name / "openvino").iterdir() for name in ("mine", "theirs"))
    built(tmp_path / "mine")
    assert refused == []
    shutil.rmtree(mine)
    shutil.copytree(theirs, mine)
    built(tmp_path / "mine")
    assert refused == ["its seal is not signed by this daemon's key"]
    later = mine.with_name(mine.name.replace("policy-", "policy-f"))
    mine.rename(later)
    with pytest.raises(SealBroken, match="its seal is of policy-"):
        check_seal(later, later.name)


def test_a_shared_cache_that_others_may_write_is_not_used(tmp_path: Path) -> None:
    refused: list[str] = []
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    calibrations = Calibrations(
        tmp_path / "state", SETTINGS, shared, refused=lambda folder, reason: refused.append(f"{folder}: {reason}")
    )
    assert [folder.path for folder in calibrations.folders(shared=True)] == [tmp_path / "state" / "openvino"]
    assert refused == [f"{shared}: others may write to it (mode 0777); run `chmod go-w {shared}`"]
    if os.geteuid() == 0:
        shared.chmod(0o700)
        os.chown(shared, 12_345, -1)
        assert owned_by_this_user(shared) == "it belongs to user 12345, not to 0"


def test_the_compiler_starts_without_the_libraries_of_encoders() -> None:
    """A policy needs none of them, and they take longer to import than it takes to compile."""
    code = "import runtime.inference.compile_process, sys; print(sorted({'torch', 'transformers', 'matplotlib'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "['torch']\n"


async def test_a_compiler_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = replace(compiler_of(tmp_path, []), timeout_s=0.2)
    with pytest.raises(CompilationFailed, match=r"within 0\.2 s"):
        await slow.policy("000001-00000000", "none")
    monkeypatch.setattr("runtime.inference.graph_compiler.sys.executable", str(tmp_path / "absent"))
    with pytest.raises(CompilationFailed, match="cannot be started"):
        await slow.policy("000001-00000000", "none")


def xml(folder: Path) -> Path:
    return folder / "policy.xml"


def weights_file(folder: Path) -> Path:
    return folder / "policy.bin"


@pytest.mark.parametrize("file", [xml, weights_file])
@pytest.mark.parametrize("how", ["changed", "gone", "link"])
def test_a_graph_that_is_not_the_signed_one_is_refused(tmp_path: Path, file: Callable[[Path], Path], how: str) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", KEY)
    version = save(checkpoints, 1, graph=True)
    path = file(checkpoints.folder / version)
    content = path.read_bytes()
    path.unlink()
    if how == "changed":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointRefused) as refused:
        checkpoints.load(version)
    assert refused.value.reason == {"changed": "wrong_hash", "gone": "missing_file", "link": "not_a_file"}[how]


def test_half_a_graph_is_refused_and_an_import_keeps_a_whole_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", KEY)
    whole = save(checkpoints, 1, graph=True)
    imported = checkpoints.load(checkpoints.import_version(checkpoints.folder / whole, KEY.public_key()))
    assert imported.graphs == checkpoints.load(whole).graphs
    files = checkpoints.load(whole).graphs["policy"]
    assert isinstance(files, GraphFiles)


def test_a_signed_graph_that_the_library_cannot_read_is_compiled_again(tmp_path: Path) -> None:
    loaded = versions(tmp_path).load(save(versions(tmp_path), 1, graph=True))
    broken = LoadedCheckpoint(
        loaded.manifest, loaded.tensors, loaded.documents, {"policy": GraphFiles({"xml": b"<net/>", "bin": b""})}
    )
    policy = Policy(SPEC).eval()
    calibrations = Calibrations(tmp_path, SETTINGS)
    run, _ = compile_policy(
        calibrations, policy, policy_graph.example_inputs(SPEC), first=False, stored=StoredGraph.of(broken, OPENVINO)
    )
    assert run(*policy_graph.example_inputs(SPEC)).shape == (1, policy.state_width)
    calibrations.convert_here = False
    with pytest.raises(NotCompiled, match="cannot be read"):
        compile_policy(
            calibrations,
            policy,
            policy_graph.example_inputs(SPEC),
            first=False,
            stored=StoredGraph.of(broken, OPENVINO),
        )


def test_the_learner_compares_the_graph_with_torch_and_its_decisions_in_bfloat16(tmp_path: Path) -> None:
    made = compile_candidate(SPEC, weights(1), Backend(backend="auto"), ticks(60))
    note = made.documents["graphs"]["policy"]
    assert note["difference"] < 1e-5
    assert note["windows"] == 30
    assert note["library"] == openvino.LIBRARY
    assert set(note["same_decisions"]) == ({policy_graph.processor()} if policy_graph.has_bfloat16() else set())
    assert compile_candidate(SPEC, weights(1), Backend(backend="torch"), ticks(60)).graphs == {}
    plain = PolicySpec(SPEC.streams[:1], SPEC.actions, history=2)
    assert plain.plain
    assert compile_candidate(plain, Policy(plain).state_dict(), Backend(), []).graphs == {}


@pytest.mark.parametrize(("same", "precision"), [(True, "bfloat16"), (False, "float32"), (None, "float32")])
def test_the_learners_comparison_decides_the_precision(tmp_path: Path, same: bool | None, precision: str) -> None:
    """None: the learner measured on another processor, and the agent may not measure while it acts."""
    import hashlib

    calibrations = Calibrations(tmp_path, BackendSettings("auto", "auto"))
    shape = hashlib.sha256(SPEC.to_json()).hexdigest()[:16]
    calibrations.remember(shape, torch.device("cpu"), BackendChoice("openvino", "bfloat16", ()))
    calibrations.convert_here = False
    policy = Policy(SPEC).eval()
    files, _ = policy_graph.compile_for_checkpoint(policy, [], OPENVINO, threads=1, tolerance=0.02)
    _, choice = compile_policy(
        calibrations, policy, policy_graph.example_inputs(SPEC), first=False, stored=StoredGraph(files, same, "")
    )
    assert choice.precision == precision


def test_a_bandit_has_a_graph_too() -> None:
    bandit = replace(SPEC, gamma=0.0)
    made = compile_candidate(bandit, Policy(bandit).state_dict(), Backend(backend="openvino"), [])
    assert (made.problem, set(made.graphs)) == ("", {"policy"})
