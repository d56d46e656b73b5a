"""Matching finds the place that is spoken of from few examples, and what is missing has no part in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from policy_files import load, save
from torch.nn import functional as F

from actuators.actions import ActionSpace, Choice
from learners.model.features import Features
from learners.model.fusion import FeatureDropout
from learners.model.policy import Policy
from learners.model.spec import PolicySpec, SpecError, StreamSpec

torch.set_num_threads(1)
THINGS, PLACES, WIDTH = 6, 5, 24
STREAMS = (StreamSpec("front", "image", PLACES, WIDTH), StreamSpec("orders", "text", 1, WIDTH))
ACTIONS = ActionSpace((Choice("head", tuple("abcde")),))


def spec(**fields: object) -> PolicySpec:
    values = {
        "fusion": "low-rank-bilinear",
        "width": 32,
        "hidden": (32,),
        "history": 1,
        "gamma": 0.5,
        "modality_dropout": 0.0,
    }
    return PolicySpec(STREAMS, ACTIONS, **{**values, **fields})  # type: ignore[arg-type]


def scenes(count: int, seed: int) -> tuple[Features, torch.Tensor]:
    """Things at places, one of them named in another language; the answer is its place."""
    generator = torch.Generator().manual_seed(7)
    looks, names = (torch.randn(THINGS, WIDTH, generator=generator) for _ in range(2))
    generator.manual_seed(seed)
    order = torch.argsort(torch.rand(count, THINGS, generator=generator), dim=1)[:, :PLACES]
    where = torch.randint(PLACES, (count,), generator=generator)
    named = order.gather(1, where.unsqueeze(1)).squeeze(1)
    noise = 0.3 * torch.randn(count, PLACES, WIDTH, generator=generator)
    tokens = {"front": looks[order] + noise, "orders": names[named].unsqueeze(1)}
    return Features(tokens, torch.ones(count, 2, dtype=torch.bool), torch.zeros(count, 2)), where


def accuracy(fusion: str) -> float:
    """Of scenes never seen, after 200 updates on 400."""
    torch.manual_seed(0)
    policy = Policy(spec(fusion=fusion)).train()
    features, where = scenes(400, 1)
    policy.observe(features)
    optimiser = torch.optim.Adam(policy.parameters(), lr=2e-3)
    assert policy.heads.choice is not None
    for _ in range(200):
        rows = torch.randint(400, (64,))
        scores_Bn = policy.heads.choice(policy.encode(features[rows]))[0].mean(-1)
        optimiser.zero_grad()
        F.cross_entropy(scores_Bn, where[rows]).backward()  # type: ignore[no-untyped-call] # torch ships it so
        optimiser.step()
    policy.eval()
    fresh, answer = scenes(500, 2)
    with torch.no_grad():
        scores_Bn = policy.heads.choice(policy.encode(fresh))[0].mean(-1)
    return float((scores_Bn.argmax(-1) == answer).float().mean())


def test_it_finds_what_is_named_where_attention_does_not_yet() -> None:
    matching, bottleneck = accuracy("low-rank-bilinear"), accuracy("latent-attention")
    assert matching > 0.9, f"{matching:.3f} of 500 scenes"
    assert matching > bottleneck + 0.1, f"{matching:.3f} against {bottleneck:.3f}"


@pytest.mark.parametrize("name", ["front", "orders"])
def test_what_is_missing_has_no_part_in_the_state(name: str) -> None:
    policy = Policy(spec()).eval()
    features, _ = scenes(4, 3)
    policy.observe(features)
    masked = features.without(policy.spec, [name])
    spoiled = Features(
        {**masked.tokens, name: torch.full_like(masked.tokens[name], torch.nan)}, masked.present, masked.ages
    )
    with torch.no_grad():
        assert torch.equal(policy.fuse(masked), policy.fuse(spoiled))
        assert not torch.equal(policy.fuse(masked), policy.fuse(features))


def test_nothing_to_match_is_refused_with_the_remedy() -> None:
    with pytest.raises(SpecError, match="write `fusion: latent-attention`"):
        PolicySpec(STREAMS[:1], ACTIONS, fusion="low-rank-bilinear")


def test_the_kind_of_fusion_and_the_heads_sizes_are_saved(tmp_path: Path) -> None:
    policy = Policy(spec()).eval()
    save(policy, tmp_path)
    again = load(tmp_path)
    features, _ = scenes(3, 5)
    assert again.spec == policy.spec
    with torch.no_grad():
        assert torch.equal(again.encode(features), policy.encode(features))


def test_feature_dropout_leaves_the_same_features_out_of_every_row_in_training_only() -> None:
    torch.manual_seed(0)
    drop = FeatureDropout(0.5).train()
    x_BTW = torch.ones(4, 3, 200)
    out_BTW = drop(x_BTW)
    assert torch.equal(out_BTW, out_BTW[:1, :1].expand_as(out_BTW))
    assert set(out_BTW.unique().tolist()) == {0.0, 2.0}
    assert 60 < int((out_BTW[0, 0] == 0).sum()) < 140
    assert torch.equal(drop.eval()(x_BTW), x_BTW)
