"""The engine: what is encoded and when, histories, replay, weights that change between ticks, and what a load costs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from policy_files import frozen_policy, load, save
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from actuators.actions import ActionSpace, Choice, Continuous
from fakes import eventually
from learners.checkpoints.manifest import CheckpointRefused, Manifest
from learners.model.backends.calibration_cache import Calibrations
from learners.model.backends.fastest_backend import BackendSettings
from learners.model.policy import Policy
from learners.model.spec import PolicySpec, StreamSpec
from runtime.inference.arrival_encoder import ArrivalEncoder
from runtime.inference.engine import ENCODER_FILE, MOST_LOADED
from runtime.inference.torch_engine import TorchEngine as Engine
from sensors.readings import Observation, Reading, Telemetry, Text

ACTIONS = ActionSpace((Choice("head", ("left", "stay", "right")),))
STREAMS = (
    StreamSpec("orders", "text", 1, 8),
    StreamSpec("notes", "text", 1, 8),
    StreamSpec("joints", "telemetry", 1, 2),
)
ROUTES = {"orders": "letters", "notes": "letters"}


@dataclass
class Letters:
    """Reads texts as counts of eight letters through a linear layer: small, real and deterministic."""

    modality: Any = "text"
    version: str = "letters-0"
    tokens: int = 1
    width: int = 8
    batches: list[int] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.module: nn.Module | None = nn.Linear(8, 8).eval()
        self.run: Any = self.module

    def prepare(self, readings: Sequence[Reading]) -> tuple[Tensor, ...]:
        counts = [[float(r.text.count(letter)) for letter in "abcdefgh"] for r in readings if isinstance(r, Text)]
        return (torch.tensor(counts).unsqueeze(1),)

    def encode(self, inputs: tuple[Tensor, ...]) -> Tensor:
        self.batches.append(len(inputs[0]))
        self.threads.add(threading.current_thread().name)
        out: Tensor = self.run(*inputs)
        return out

    def examples(self) -> list[tuple[Tensor, ...]]:
        return [(torch.ones(1, 1, 8),)]

    def load_state(self, state: dict[str, Tensor]) -> None:
        assert self.module is not None
        self.module.load_state_dict(state)
        self.version = f"letters-{float(state['weight'].sum()):.6f}"


def spec_of(**changes: Any) -> PolicySpec:
    return PolicySpec(**{"streams": STREAMS, "actions": ACTIONS, "width": 32, "history": 3, **changes})


def nothing(_version: str, _shapes: Any, _meaning: Any) -> Any:
    raise AssertionError("no version to load")


def manifest(version: str, encoders: dict[str, str] | None = None) -> Manifest:
    return Manifest(version, None, 0.0, {}, encoders or {})


async def load_beside(engine: Engine, folder: Path, encoders: dict[str, str] | None = None) -> None:
    """Load a version from its folder; the acting one goes on. Its manifest names encoder versions by stream."""

    def weights(version: str, _shapes: Any, _meaning: Any) -> Any:
        files = (folder.parent / version).glob("*.safetensors")
        weights = {path.stem: load_file(path) for path in files}
        return SimpleNamespace(tensors=weights, graphs={}, documents={}, manifest=manifest(version, encoders))

    engine.load_weights = weights
    await engine.load(folder.name)


async def activate(engine: Engine, folder: Path, encoders: dict[str, str] | None = None) -> None:
    """Load a version from its folder and let it act."""
    await load_beside(engine, folder, encoders)
    await engine.activate(folder.name)


def engine_of(
    spec: PolicySpec, backend: Any = "torch", state_dir: Path | None = None, at_arrival: Collection[str] = ()
) -> Engine:
    torch.manual_seed(0)
    calibrations = Calibrations(state_dir, BackendSettings(backend, "float32"))
    routes = {name: encoder for name, encoder in ROUTES.items() if name in spec.names}
    return Engine(Policy(spec), {"letters": Letters()}, routes, calibrations, nothing, seed=3, at_arrival=at_arrival)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    made = engine_of(spec_of())
    yield made
    made.close()


def seen(tick: int, *, orders: Text | None, notes: Text | None = None, x: float = 0.0) -> Observation:
    joints = Telemetry("joints", 0.0, tick, ("a", "b"), np.array([x, 1.0], np.float32))
    readings: dict[str, Reading] = {r.stream: r for r in (orders, notes, joints) if r is not None}
    missing = frozenset({"orders", "notes"} - set(readings))
    return Observation(tick, float(tick), readings, dict.fromkeys(readings, 0.1), missing)


def text(stream: str, words: str, seq: int = 0) -> Text:
    return Text(stream, 0.0, seq, words)


async def test_only_what_is_new_is_encoded_and_a_shared_encoder_gets_one_batch(engine: Engine) -> None:
    letters: Any = engine.encoders["letters"]
    letters.batches.clear()
    order, note = text("orders", "abba"), text("notes", "cab")
    first = await engine.decide(seen(0, orders=order, notes=note))
    again = await engine.decide(seen(1, orders=order, notes=note))
    third = await engine.decide(seen(2, orders=text("orders", "fed", 1), notes=note))
    assert letters.batches == [2, 1]
    assert (set(first.encoded), again.encoded, third.encoded) == ({"orders", "notes"}, (), ("orders",))
    assert letters.threads == {"inference_0"}
    assert np.array_equal(first.tokens["notes"], third.tokens["notes"])
    assert not np.array_equal(first.tokens["orders"], third.tokens["orders"])
    assert first.tokens["orders"].dtype == np.float16
    assert first.tokens["joints"].tolist() == [[0.0, 1.0]]
    assert first.encoder_versions == {"orders": "letters-0", "notes": "letters-0"}


@pytest.fixture
def early() -> Iterator[Engine]:
    """An engine with an encoder that works at arrival."""
    made = engine_of(spec_of(), at_arrival=["letters"])
    yield made
    made.close()


async def arrived(engine: Engine, *readings: Reading) -> None:
    """Offer readings as the inbox does, one after the other, and wait until they are stored."""
    for reading in readings:
        stored: list[Reading] = []
        assert not engine.arrivals.offer(reading, stored.append)
        await eventually(lambda stored=stored: bool(stored), "the tokens")  # type: ignore[misc]
        assert stored == [reading]


async def test_an_encoder_at_arrival_costs_the_tick_nothing_and_decides_alike(engine: Engine, early: Engine) -> None:
    """Tokens, scores and what is stored for training are those of an encoder in the tick; only the thread differs."""
    letters: Any = early.encoders["letters"]
    assert early.arrivals.routes == ROUTES
    for tick, (words, note) in enumerate([("abba", "cab"), ("fed", "cab"), ("fed", "heda")]):
        order, notes = text("orders", words, tick), text("notes", note, tick)
        letters.threads.clear()
        await arrived(early, order, notes)
        beside, within = [await one.decide(seen(tick, orders=order, notes=notes)) for one in (early, engine)]
        assert letters.threads == {"arrival-letters_0"}
        assert set(beside.encoded) == set(within.encoded) == {"orders", "notes"}
        assert beside.encode_s == {}, "the tick encoded nothing"
        assert beside.scores["head"] == pytest.approx(within.scores["head"], abs=1e-6)
        for name in ("orders", "notes"):
            assert beside.tokens[name] == pytest.approx(within.tokens[name], abs=1e-3)
        assert beside.encoder_versions == within.encoder_versions


async def test_a_reading_without_tokens_of_this_encoder_is_encoded_in_the_tick(early: Engine) -> None:
    """A replay offers no readings, and an encoder may change between arrival and tick. Each reading is encoded alone."""
    letters: Any = early.encoders["letters"]
    order, note = text("orders", "abba"), text("notes", "cab")
    letters.batches.clear()
    replayed = await early.decide(seen(0, orders=order, notes=note))
    assert letters.batches == [1, 1]
    assert set(replayed.encode_s) == {"letters"}
    newer = text("orders", "hhh", 1)
    await arrived(early, newer)
    await early.load_encoder("letters", {"weight": torch.eye(8), "bias": torch.zeros(8)})
    changed = await early.decide(seen(1, orders=newer, notes=note))
    assert changed.tokens["orders"].tolist() == [[0, 0, 0, 0, 0, 0, 0, 3]]
    assert set(changed.encoder_versions.values()) == {"letters-8.000000"}


def test_the_newest_reading_waits_for_a_busy_encoder_and_one_that_fails_is_dropped_and_counted() -> None:
    begun, go_on, stored = threading.Event(), threading.Event(), list[int]()

    def encode(reading: Reading) -> None:
        begun.set()
        assert go_on.wait(60)
        if reading.seq == 3:
            raise ValueError("an odd reading")

    arrivals = ArrivalEncoder({"orders": "letters"}, encode, lambda: None)
    try:
        assert not arrivals.offer(text("orders", "a", 0), lambda one: stored.append(one.seq))
        assert begun.wait(60)
        superseded = [arrivals.offer(text("orders", "a", seq), lambda one: stored.append(one.seq)) for seq in (1, 2, 3)]
        assert superseded == [False, True, True]
        assert stored == []
    finally:
        go_on.set()
        arrivals._threads["letters"].shutdown(wait=True)
    assert stored == [0], "no tick waits for an encoder that fails"
    assert arrivals.failures == {"orders": 1}
    arrivals.close()
    assert not arrivals.offer(text("orders", "a", 4), lambda one: stored.append(one.seq))


async def test_a_decision_is_what_the_policy_says_of_what_is_remembered(engine: Engine) -> None:
    from learners.model.features import recorded, stack

    observations = [seen(i, orders=text("orders", "abc"[i:]), x=float(i)) for i in range(3)]
    decided = [await engine.decide(o) for o in observations]
    ticks = [
        recorded(engine.spec, [d.tokens], [dict.fromkeys(o.readings, True)], [o.ages_s])
        for d, o in zip(decided, observations, strict=True)
    ]
    out = frozen_policy(engine).act(stack(ticks, dim=1), generator=torch.Generator(), explore=False)
    assert out.scores["head"][0].tolist() == pytest.approx(decided[-1].scores["head"], abs=1e-5)
    assert float(out.value[0]) == pytest.approx(decided[-1].value, abs=1e-5)


async def test_a_missing_streams_old_content_does_not_matter() -> None:
    scores = []
    for words in ("abab", "hhhh"):
        engine = engine_of(spec_of(history=1))
        await engine.decide(seen(0, orders=text("orders", words)))
        scores.append((await engine.decide(seen(1, orders=None))).scores)
        engine.close()
    assert scores[0] == scores[1]


async def test_everything_missing_still_decides(engine: Engine) -> None:
    decided = await engine.decide(Observation(0, 0.0, {}, {}, frozenset(engine.spec.names)), explore=True)
    assert decided.actions["head"].value in ("left", "stay", "right")
    assert 0 < decided.actions["head"].probability <= 1
    assert decided.tokens == {}


async def test_a_replay_gives_the_same_decisions_bit_for_bit() -> None:
    runs = []
    for _ in range(2):
        engine = engine_of(spec_of())
        runs.append(
            [(await engine.decide(seen(i, orders=text("orders", "ab", i), x=i), explore=True)) for i in range(20)]
        )
        engine.close()
    assert [(d.actions, d.value) for d in runs[0]] == [(d.actions, d.value) for d in runs[1]]
    assert len({str(d.actions["head"].value) for d in runs[0]}) > 1  # it does explore


async def test_loaded_weights_act_and_a_refused_checkpoint_changes_nothing(engine: Engine, tmp_path: Path) -> None:
    observation = seen(0, orders=text("orders", "abc"))
    before = await engine.decide(observation)
    torch.manual_seed(9)
    other, folder = Policy(engine.spec).eval(), tmp_path / "000002-0000000a"
    folder.mkdir()
    save(other, folder)
    await activate(engine, folder)
    after = await engine.decide(observation)
    assert (before.policy, after.policy, engine.version) == ("untrained", folder.name, folder.name)
    assert before.scores != after.scores
    assert all(
        torch.equal(a, b) for a, b in zip(frozen_policy(engine).parameters(), load(folder).parameters(), strict=True)
    )

    def refuse(_version: str, _shapes: Any, _meaning: Any) -> Any:
        raise OSError("torn")

    engine.load_weights = refuse
    with pytest.raises(OSError, match="torn"):
        await engine.load("000003-0000000a")
    stored = (await engine.decide(observation)).scores["head"]
    assert stored == pytest.approx(after.scores["head"], abs=1e-5)


async def test_the_history_is_fused_again_by_new_weights(engine: Engine, tmp_path: Path) -> None:
    observations = [seen(i, orders=text("orders", "abc"[i:]), x=float(i)) for i in range(3)]
    folder = tmp_path / "000001-0000000b"
    folder.mkdir()
    torch.manual_seed(9)
    save(Policy(engine.spec).eval(), folder)
    for observation in observations[:2]:
        await engine.decide(observation)
    await activate(engine, folder)
    swapped = await engine.decide(observations[2])
    fresh = engine_of(spec_of())
    await activate(fresh, folder)
    for observation in observations:
        want = await fresh.decide(observation)
    fresh.close()
    assert swapped.scores["head"] == pytest.approx(want.scores["head"], abs=1e-5)


async def test_a_checkpoint_may_bring_a_tuned_encoder_and_the_next_one_takes_it_back(
    engine: Engine, tmp_path: Path
) -> None:
    order = text("orders", "abc")
    base = await engine.decide(seen(0, orders=order))
    tuned, plain = tmp_path / "000001-00000001", tmp_path / "000002-00000002"
    for folder in (tuned, plain):
        folder.mkdir()
        save(frozen_policy(engine), folder)
    save_file({"weight": torch.eye(8), "bias": torch.zeros(8)}, tuned / f"{ENCODER_FILE}letters.safetensors")
    await activate(engine, tuned)
    changed = await engine.decide(seen(1, orders=order))
    assert changed.encoded == ("orders",)  # the cached tokens were another encoder's
    assert changed.encoder_versions["orders"] == "letters-8.000000"
    assert changed.tokens["orders"].tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]]
    await activate(engine, plain)
    back = await engine.decide(seen(2, orders=order))
    assert np.array_equal(back.tokens["orders"], base.tokens["orders"])


async def test_a_policy_acts_with_the_encoders_of_its_manifest_or_not_at_all(engine: Engine, tmp_path: Path) -> None:
    order = text("orders", "abc")
    first, second, third = saved(engine, tmp_path, 3)
    weights = {"letters-8.000000": {"weight": torch.eye(8), "bias": torch.zeros(8)}}
    engine.find_encoder = lambda _name, version, _base: weights.get(version)
    before = await engine.decide(seen(0, orders=order))
    await activate(engine, first, {"orders": "letters-0", "notes": "letters-0"})
    await activate(engine, second, {"orders": "letters-8.000000"})
    tuned = await engine.decide(seen(1, orders=order))
    assert tuned.encoder_versions["orders"] == tuned.encoders["letters"] == "letters-8.000000"
    assert engine.encoders["letters"].version == "letters-8.000000"
    with pytest.raises(CheckpointRefused, match="encoder_missing: it was trained with version gone of encoder letters"):
        await load_beside(engine, third, {"orders": "gone"})
    with pytest.raises(CheckpointRefused, match="letters-0 and letters-8"):
        await load_beside(engine, third, {"orders": "letters-0", "notes": "letters-8.000000"})
    assert (await engine.decide(seen(2, orders=order))).policy == second.name, "a refused version changes nothing"
    await engine.activate(first.name)  # as a rollback does it: both return in one tick
    back = await engine.decide(seen(3, orders=order))
    assert (back.policy, back.encoder_versions["orders"]) == (first.name, "letters-0")
    assert np.array_equal(back.tokens["orders"], before.tokens["orders"])


def saved(engine: Engine, folder: Path, count: int) -> list[Path]:
    """Save some versions with weights of their own."""
    folders = [folder / f"{number:06d}-0000000e" for number in range(1, count + 1)]
    for seed, one in enumerate(folders):
        one.mkdir()
        torch.manual_seed(seed)
        save(Policy(engine.spec).eval(), one)
    return folders


async def test_several_versions_are_in_memory_and_a_return_is_one_tick(engine: Engine, tmp_path: Path) -> None:
    """Flips among loaded versions read nothing, and decide as engines that have loaded the version alone."""
    folders = saved(engine, tmp_path, 2)
    for folder in folders:
        await load_beside(engine, folder)
    assert engine.version == "untrained"
    assert engine.loaded == {"untrained", *(folder.name for folder in folders)}
    engine.load_weights = nothing
    found = {}
    for tick, version in enumerate([folders[0].name, folders[1].name, folders[0].name, "untrained", folders[1].name]):
        await engine.activate(version)
        decided = await engine.decide(seen(tick, orders=text("orders", "abc"[tick % 3 :], tick), x=tick))
        assert decided.policy == engine.version == version
        found[tick] = decided.scores["head"]
    for folder, last in ((folders[0], 2), (folders[1], 4)):
        alone = engine_of(spec_of())
        await activate(alone, folder)
        for tick in range(last + 1):
            want = await alone.decide(seen(tick, orders=text("orders", "abc"[tick % 3 :], tick), x=tick))
        alone.close()
        assert found[last] == pytest.approx(want.scores["head"], abs=1e-5)


async def test_a_flip_does_not_wait_for_a_load(engine: Engine, tmp_path: Path) -> None:
    one, two = saved(engine, tmp_path, 2)
    await load_beside(engine, one)
    reading, go_on = threading.Event(), threading.Event()

    def slow(version: str, _shapes: Any, _meaning: Any) -> Any:
        reading.set()
        assert go_on.wait(60)
        weights = {"policy": load_file(tmp_path / version / "policy.safetensors")}
        return SimpleNamespace(tensors=weights, graphs={}, documents={}, manifest=manifest(version))

    engine.load_weights = slow
    loading = asyncio.create_task(engine.load(two.name))
    await asyncio.to_thread(reading.wait, 60)
    await engine.activate(one.name)
    assert (await engine.decide(seen(0, orders=None))).policy == one.name
    go_on.set()
    await loading
    assert engine.loaded == {"untrained", one.name, two.name}


async def test_memory_of_versions_is_bounded_and_the_acting_one_is_not_released(engine: Engine, tmp_path: Path) -> None:
    folders = saved(engine, tmp_path, MOST_LOADED)
    for folder in folders[:-1]:
        await load_beside(engine, folder)
    with pytest.raises(RuntimeError, match="release one first"):
        await load_beside(engine, folders[-1])
    with pytest.raises(ValueError, match="acts"):
        await engine.release("untrained")
    with pytest.raises(KeyError):
        await engine.activate(folders[-1].name)
    assert engine.version == "untrained"
    await engine.release(folders[0].name)
    await engine.release(folders[0].name)
    await load_beside(engine, folders[-1])
    await engine.switch(folders[0].name)
    assert engine.loaded == {"untrained", folders[0].name}


async def test_openvino_runs_the_fused_part_and_converts_it_again_after_a_load(tmp_path: Path) -> None:
    engine = engine_of(spec_of(), "openvino", tmp_path)
    assert engine.choices["policy"].backend == "openvino"
    observation = seen(0, orders=text("orders", "abc"))
    folder = tmp_path / "000001-0000000c"
    folder.mkdir()
    torch.manual_seed(9)
    save(Policy(engine.spec).eval(), folder)
    for _ in range(2):
        decided = await engine.decide(observation)
        plain = engine_of(spec_of())
        if engine.version != "untrained":
            await activate(plain, folder)
        assert decided.scores["head"] == pytest.approx((await plain.decide(observation)).scores["head"], abs=1e-3)
        plain.close()
        await activate(engine, folder)
        engine._past.clear()
    engine.close()


async def test_no_decision_waits_for_a_checkpoint_of_100_mb(tmp_path: Path) -> None:
    """Compared within one run: the decisions while loads go on, against the loads."""
    spec = spec_of(width=768, heads=8, layers=4, latents=8)
    engine = engine_of(spec)
    folder = tmp_path / "000001-0000000d"
    folder.mkdir()
    save(Policy(spec).eval(), folder)
    assert (folder / "policy.safetensors").stat().st_size > 90e6
    tick = 0

    async def decide() -> float:
        nonlocal tick
        tick += 1
        start = time.perf_counter()
        await engine.decide(seen(tick, orders=text("orders", "abc", tick), x=tick))
        return time.perf_counter() - start

    await decide()
    shares: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        await engine.release(folder.name)
        loading, busy = asyncio.create_task(load_beside(engine, folder)), []
        while not loading.done():
            busy.append(await decide())
        await loading
        assert len(busy) >= 2
        shares.append(max(busy) / (time.perf_counter() - start))
    engine.close()
    # one that waited for a load would have taken as long, each time; another process may take the core away at one of them
    assert min(shares) < 0.7, shares


async def test_a_plain_policy_acts_without_fusion() -> None:
    engine = engine_of(PolicySpec((STREAMS[2],), ACTIONS, history=1))
    decided = await engine.decide(seen(0, orders=None, x=0.5))
    assert decided.actions["head"].value in ("left", "stay", "right")
    assert "policy" not in engine.choices
    assert set(engine.shapes["policy"]) == set(engine.policy.state_dict())
    assert engine.encoder_versions == {}
    engine.close()


async def test_a_snapshot_restores_the_past(engine: Engine) -> None:
    observations = [seen(i, orders=text("orders", "abc"[i:]), x=float(i)) for i in range(3)]
    for observation in observations[:2]:
        await engine.decide(observation)
    files = (await engine.snapshot()).files
    want = await engine.decide(observations[2])
    other = engine_of(spec_of())
    await other.restore(files)
    got = await other.decide(observations[2])
    other.close()
    assert (got.scores, got.value, got.actions) == (want.scores, want.value, want.actions)


ARM = ActionSpace((Choice("head", ("left", "stay", "right")), Continuous("arm", (-1.0, -1.0), (1.0, 2.0))))


def explorer(backend: Any = "torch", state_dir: Path | None = None) -> Engine:
    """An engine with continuous actuators that wander: half of the time an excursion with autocorrelated noise."""
    made = engine_of(spec_of(actions=ARM), backend, state_dir)
    assert made.policy.heads.continuous is not None
    made.policy.heads.continuous.epsilon.fill_(0.5)
    return made


async def explore(engine: Engine, ticks: range) -> list[Any]:
    """Decide with exploration."""
    seens = [seen(tick, orders=text("orders", "abcdefgh"[tick % 8 :]), x=tick / 50) for tick in ticks]
    return [(await engine.decide(one, explore=True)).actions_message() for one in seens]


async def test_a_snapshot_restores_the_memory_of_exploration() -> None:
    one, other = explorer(), explorer()
    await explore(one, range(30))
    snapshot = await one.snapshot()
    assert snapshot.tick == 29
    await other.restore(snapshot.files)
    assert await explore(other, range(30, 60)) == await explore(one, range(30, 60))
    one.close()
    other.close()


@pytest.mark.parametrize("backend", ["torch", "openvino"])
async def test_a_swap_goes_on_with_the_noise_and_a_snapshot_after_it_is_exact(tmp_path: Path, backend: Any) -> None:
    """The same weights swapped in: nothing changes; and a snapshot within the history of a swap restores every bit."""
    one, other, plain = (explorer(backend, tmp_path) for _ in range(3))
    (tmp_path / "v1").mkdir()
    save(one.policy, tmp_path / "v1")
    want = await explore(plain, range(40))
    got = await explore(one, range(20))
    await activate(one, tmp_path / "v1")
    got += await explore(one, range(20, 22))
    await activate(other, tmp_path / "v1")
    await other.restore((await one.snapshot()).files)
    rest = await explore(one, range(22, 40))
    assert got + rest == want
    assert await explore(other, range(22, 40)) == rest
    for engine in (one, other, plain):
        engine.close()


async def test_the_other_version_of_an_experiment_says_what_it_would_have_done(tmp_path: Path) -> None:
    one, plain = explorer(), explorer()
    torch.manual_seed(5)
    second = Policy(one.spec).eval()
    (tmp_path / "v2").mkdir()
    save(second, tmp_path / "v2")
    await load_beside(one, tmp_path / "v2")
    decided, others = [], []
    for tick in range(12):
        view = seen(tick, orders=text("orders", "abcdefgh"[tick % 8 :]), x=tick / 50)
        decided.append((await one.decide(view, explore=True)).actions_message())
        if tick != 6:  # there was no time
            others.append(await one.compare("v2"))
    assert decided == await explore(plain, range(12)), "the comparison draws nothing"
    last = others[-1]
    assert last is not None
    states = torch.stack([second.fuse(one._tensors(features)) for features in one._past.window()], dim=1)
    context = second.context(states)
    best = second.heads.act(context, generator=torch.Generator(), explore=False)
    choice = ARM.choices[0]
    assert last.policy == "v2"
    assert last.actions["head"]["value"] == choice.choices[int(best.values["head"][0])]
    every = second.heads.preferences(context, explore=True, masks={})[0][1][0]
    assert last.actions["head"]["probability"] == pytest.approx(float(every.max()), rel=1e-5)
    assert last.taken["head"] == pytest.approx(
        float(every[choice.choices.index(decided[-1]["head"]["value"])]), rel=1e-5
    )
    assert last.actions["head"]["acting"] == pytest.approx(
        decided[-1]["head"]["probabilities"][last.actions["head"]["value"]], rel=1e-5
    )
    assert last.actions["arm"]["value"] == pytest.approx(tuple(best.values["arm"][0].tolist()), rel=1e-5)
    assert orjson.loads(orjson.dumps(last.fields()))["taken"]["arm"] > 0
    assert await one.compare("v3") is None, "it is not loaded"
    await one.decide(seen(12, orders=text("orders", "a"), x=0.1), explore=False)
    assert await one.compare("v2") is None, "without exploration there are no probabilities"
    one.close()
    plain.close()


async def test_tokens_that_are_not_finite_make_their_stream_missing(engine: Engine) -> None:
    """Half precision overflows above 65504; before, a choice was drawn from scores that were no numbers."""
    loud, note = text("orders", "h" * 900_000), text("notes", "cab")
    broken = await engine.decide(seen(0, orders=loud, notes=note))
    assert broken.not_finite == ("orders",)
    assert "orders" not in broken.tokens
    assert np.isfinite([broken.value, *broken.scores["head"]]).all()
    again = await engine.decide(seen(1, orders=loud, notes=note))
    assert (again.not_finite, again.encoded) == (("orders",), ()), "it is not encoded a second time"
    other = engine_of(spec_of())
    try:
        for tick in range(2):
            missing = await other.decide(seen(tick, orders=None, notes=note))
    finally:
        other.close()
    assert again.scores == missing.scores, "as if the stream were missing"
    healed = await engine.decide(seen(2, orders=text("orders", "abba", 1), notes=note))
    assert healed.not_finite == ()
    assert "orders" in healed.tokens


async def test_no_decision_is_drawn_from_scores_that_are_no_numbers() -> None:
    """Weights are verified when they are loaded; this is the last line behind that."""
    torch.manual_seed(0)
    policy = Policy(spec_of())
    with torch.no_grad():
        next(iter(policy.heads.parameters())).fill_(torch.nan)
    made = Engine(
        policy, {"letters": Letters()}, ROUTES, Calibrations(None, BackendSettings("torch", "float32")), nothing, seed=3
    )
    try:
        with pytest.raises(ValueError, match="untrained: the scores of the choices are not finite"):
            await made.decide(seen(0, orders=text("orders", "abba"), notes=text("notes", "cab")))
    finally:
        made.close()
