"""The fused model: what is missing cannot matter, histories repeat, plain telemetry passes unharmed, specs round-trip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from policy_files import load, save
from torch import Tensor

from actuators.actions import ActionSpace, Choice, Continuous, Utterance
from learners.model.features import Features, blank, concat, recorded, stack
from learners.model.normalizer import Normaliser
from learners.model.policy import Policy, drop_streams
from learners.model.spec import PolicySpec, SpecError, StreamSpec

ACTIONS = ActionSpace(
    (Choice("head", ("left", "stay", "right")), Continuous("arm", (-1.0, 0.0), (1.0, 2.0)), Utterance("say", "talk"))
)
STREAMS = (
    StreamSpec("front", "image", 4, 20),
    StreamSpec("room", "audio", 3, 12),
    StreamSpec("orders", "text", 1, 8),
    StreamSpec("joints", "telemetry", 1, 2),
)


def small(**changes: object) -> PolicySpec:
    return PolicySpec(**{"streams": STREAMS, "actions": ACTIONS, "width": 32, "heads": 4, "history": 3, **changes})  # type: ignore[arg-type]


def features(spec: PolicySpec, *lead: int, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    tokens = {s.name: torch.randn(*lead, s.tokens, s.width, generator=generator) for s in spec.streams}
    count = len(spec.streams)
    return Features(tokens, torch.ones(*lead, count, dtype=torch.bool), torch.rand(*lead, count, generator=generator))


@pytest.mark.parametrize("name", [s.name for s in STREAMS])
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_a_masked_streams_content_cannot_change_the_state(name: str, garbage: float) -> None:
    spec = small()
    policy = Policy(spec).eval()
    policy.observe(features(spec, 16, seed=1))
    masked = features(spec, 2).without(spec, [name])
    s = spec.names.index(name)
    ages = masked.ages.clone()
    ages[:, s] = garbage
    spoiled = Features({**masked.tokens, name: torch.full_like(masked.tokens[name], garbage)}, masked.present, ages)
    with torch.no_grad():
        assert torch.equal(policy.fuse(masked), policy.fuse(spoiled))
        assert not torch.equal(policy.fuse(masked), policy.fuse(features(spec, 2)))


@pytest.mark.parametrize("name", [s.name for s in STREAMS])
def test_masking_a_stream_changes_no_other_streams_tokens(name: str) -> None:
    spec = small()
    fusion = Policy(spec).eval().fusion
    assert fusion is not None

    def adapted(given: Features) -> list[Tensor]:
        return fusion.adapt([given.tokens[n] for n in spec.names], given.present, given.ages)

    whole, masked = adapted(features(spec, 2)), adapted(features(spec, 2).without(spec, [name]))
    for other, before, after in zip(spec.names, whole, masked, strict=True):
        assert torch.equal(before, after) == (other != name)


def test_everything_missing_still_decides() -> None:
    spec = small()
    out = Policy(spec).eval().act(blank(spec, 1), generator=torch.Generator(), explore=False)
    assert out.scores["head"].isfinite().all()
    assert int(out.values["head"]) in range(3)
    assert out.values["arm"].isfinite().all()


def test_every_present_stream_reaches_the_state_and_learns() -> None:
    spec = small()
    policy = Policy(spec).eval()
    given = features(spec, 2)
    for x in given.tokens.values():
        x.requires_grad_()
    policy.encode(given).square().sum().backward()
    assert all(float(x.grad.abs().sum()) > 0 for x in given.tokens.values() if x.grad is not None)
    assert all(x.grad is not None for x in given.tokens.values())


def test_a_batch_of_one_tick_is_a_history_that_repeats() -> None:
    spec = small()
    policy = Policy(spec).eval()
    one = features(spec, 2)
    with torch.no_grad():
        torch.testing.assert_close(policy.encode(one), policy.encode(stack([one] * 3, dim=1)))
        assert policy.encode(one).shape == (2, policy.context_width)
        later = stack([features(spec, 2, seed=5), one, one], dim=1)
        assert not torch.allclose(policy.encode(one), policy.encode(later))
    with pytest.raises(ValueError, match="repeat the oldest"):
        policy.context(torch.zeros(1, 2, policy.state_width))


def test_a_single_telemetry_stream_is_the_context_itself() -> None:
    spec = PolicySpec((StreamSpec("joints", "telemetry", 1, 3),), ACTIONS, history=1)
    policy = Policy(spec).eval()
    given = features(spec, 5)
    assert policy.fusion is None
    assert torch.equal(policy.encode(given), given.tokens["joints"][:, 0])
    policy.observe(given)
    x = given.tokens["joints"][:, 0]
    want = (x - x.mean(0)) / x.std(0, correction=0)
    torch.testing.assert_close(policy.encode(given), want)
    assert Policy(PolicySpec(spec.streams, ACTIONS, history=2)).context_width == 6


def test_the_newest_state_leads_a_plain_history() -> None:
    spec = PolicySpec((StreamSpec("joints", "telemetry", 1, 1),), ACTIONS, history=2)
    context = Policy(spec).context(torch.tensor([[[1.0], [2.0]]]))
    assert context.tolist() == [[2.0, 1.0]]


def test_dropout_leaves_out_streams_along_the_whole_history_and_never_all() -> None:
    spec = small()
    given = features(spec, 400, 3)
    dropped = drop_streams(given, 0.6, torch.Generator().manual_seed(0))
    assert dropped.present.any(-1).all()
    assert torch.equal(dropped.present[:, 0], dropped.present[:, 2])
    # 0.6 is left out, but the 0.6 ** 4 that would lose all keep all
    assert float(dropped.present.float().mean()) == pytest.approx(0.4 + 0.6**4, abs=0.03)
    policy = Policy(small(modality_dropout=0.5)).train()
    a, b = (policy.encode(given[:4], generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    assert not torch.equal(a, b)


def test_normaliser_merges_batches_as_if_seen_at_once_and_then_forgets_slowly() -> None:
    x = torch.randn(100, 3) * 5 + 2
    normaliser = Normaliser(3, limit=100)
    assert torch.equal(normaliser(x), x)
    for part in x.split([1, 39, 60]):
        normaliser.observe(part)
    torch.testing.assert_close(normaliser.mean, x.mean(0))
    torch.testing.assert_close(normaliser.scatter / 100, x.var(0, correction=0), rtol=1e-4, atol=1e-4)
    mean, var = normaliser.mean.clone(), normaliser.scatter / 100
    normaliser.observe(torch.full((25, 3), 4.0))
    assert float(normaliser.count) == 100
    torch.testing.assert_close(normaliser.mean, 0.75 * mean + 0.25 * 4)
    torch.testing.assert_close(normaliser.scatter / 100, 0.75 * var + 0.75 * 0.25 * (4 - mean).square())
    assert normaliser(torch.full((1, 3), 1e9)).tolist() == [[10.0] * 3]


def observed(x_NW: torch.Tensor, *, rows: int = 500) -> Normaliser:
    normaliser = Normaliser(x_NW.shape[1], telemetry=True)
    for part in x_NW.split(rows):
        normaliser.observe(part)
    return normaliser


@pytest.mark.parametrize("unit", [1e-9, 1e-6, 1e-4, 1e-2, 1.0, 1e6, 1e12])
@pytest.mark.parametrize("level", [0.0, 3.0, 1_000.0])
def test_telemetry_of_any_unit_and_level_comes_out_alike(unit: float, level: float) -> None:
    seen = (torch.randn(4_000, 2, generator=torch.Generator().manual_seed(1)).double() + level) * unit
    out = observed(seen.float())(seen.float())
    assert out.std(0).tolist() == pytest.approx([1.0, 1.0], abs=0.03)
    assert out.mean(0).tolist() == pytest.approx([0.0, 0.0], abs=0.03)


@pytest.mark.parametrize("value", [0.0, 1e-9, 0.1, 293.15, 101_325.0, 1e12])
def test_a_constant_comes_out_as_0(value: float) -> None:
    seen = torch.full((4_000, 1), value)
    assert abs(float(observed(seen, rows=7)(seen[:1]))) < 0.2


@pytest.mark.parametrize("faulty", [3e38, -1e4, 85.0])
def test_a_faulty_reading_in_the_very_first_batch_hides_no_signal(faulty: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x_NW = 20.0 + 0.1 * torch.randn(5_000, 1, generator=generator)
    one = Normaliser(1, telemetry=True)
    first_NW = x_NW[:256].clone()
    first_NW[7] = faulty
    one.observe(first_NW)
    one.observe(x_NW[256:])
    assert 0.8 < float(one(x_NW).std()) < 1.01


def test_a_signal_that_is_rare_in_the_first_batch_is_followed() -> None:
    x_NW = torch.zeros(256, 1)
    x_NW[::40] = 1.0
    one = Normaliser(1, telemetry=True)
    for _ in range(40):
        one.observe(x_NW)
    assert 0.5 < float(one(x_NW).std()) < 2.0


def test_a_reading_that_is_faulty_for_long_hides_no_signal_for_ever() -> None:
    """The sum of its squares was infinite."""
    generator = torch.Generator().manual_seed(0)
    one = Normaliser(1, limit=5_000, telemetry=True)
    faulty_NW = torch.full((256, 1), 3e38)
    faulty_NW[::2] *= -1
    for _ in range(100):
        one.observe(faulty_NW)
    assert bool(torch.isfinite(one.scatter).all())
    for _ in range(200):
        one.observe(torch.randn(4_096, 1, generator=generator))
    assert 0.8 < float(one(torch.randn(1_000, 1, generator=generator)).std()) < 1.2


def test_a_faulty_reading_hides_no_signal_and_a_changed_one_is_followed() -> None:
    seen = torch.randn(4_000, 1, generator=torch.Generator().manual_seed(2))
    for fault, at in ((1e10, 50), (-1e25, 4_000), (3e38, 4_000)):
        for rows in (1, 20, 50):
            out = observed(torch.cat((seen[:at], torch.full((1, 1), fault), seen[:4_000])), rows=rows)(seen)
            assert 0.65 < float(out.std()) < 1.1
    for rows in (1, 10, 100):
        one = Normaliser(1, limit=5_000, telemetry=True)
        for part in (*torch.full((4_000, 1), 0.2).split(rows), *seen[:1_000].split(rows)):  # at rest, then moving
            one.observe(part)
        assert float((one(seen).abs() < 5.0).float().mean()) > 0.96  # 5 deviations of a fifth of what was seen


def test_save_and_load_give_the_same_policy(tmp_path: Path) -> None:
    spec = small()
    policy = Policy(spec).eval()
    policy.observe(features(spec, 8))
    save(policy, tmp_path)
    again = load(tmp_path)
    assert again.spec == spec
    assert torch.equal(again.fuse(features(spec, 2)), policy.fuse(features(spec, 2)))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", "not JSON"),
        (b"[]", "not a policy spec"),
        (b'{"format": 1, "streams": []}', "actions"),
        (b'{"format": 9}', "format 1"),
    ],
)
def test_a_foreign_spec_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        PolicySpec.from_json(data)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 30}, "multiple"),
        ({"streams": ()}, "at least one"),
        ({"history": 0}, "at least 1"),
        ({"streams": STREAMS * 2}, "own"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        small(**changes)


@pytest.mark.parametrize("stream", [("a", "smell", 1, 1), ("a", "image", 0, 1), ("a", "telemetry", 2, 1)])
def test_a_stream_that_cannot_be_is_refused(stream: tuple[str, str, int, int]) -> None:
    with pytest.raises(SpecError):
        StreamSpec(*stream)  # type: ignore[arg-type]


def test_recorded_ticks_become_features() -> None:
    spec = small()
    tokens = {"front": np.ones((4, 20), np.float16), "joints": np.ones((1, 2), np.float32)}
    got = recorded(spec, [tokens, {}], [{"front": True, "joints": False}, {}], [{"front": 0.5}, {}])
    assert got.present.tolist() == [[True, False, False, False], [False] * 4]
    assert got.tokens["front"][0].eq(1).all()
    assert got.tokens["joints"].eq(0).all()
    assert float(got.ages[0, 0]) == 0.5
    assert concat([got, got]).lead == (4,)
    assert got[0:1].to("cpu").flatten().lead == (1,)
    with pytest.raises(ValueError, match="re-encode"):
        recorded(spec, [{"front": np.ones((5, 20), np.float16)}], [{"front": True}], [{}])
