"""A mirrored transition shows the picture, the action and the numbers from the other side, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actuators.actions import ActionSpace, Choice, Continuous
from learners.model.features import Features
from learners.model.spec import PolicySpec, StreamSpec
from learners.rl.mirror_augmentation import MirrorAugmentation
from learners.rl.transition_batch import Batch

ACTIONS = ActionSpace((Choice("head", ("left", "stay", "right")), Continuous("arm", (-1.0,), (1.0,))))
SPEC = PolicySpec(
    (
        StreamSpec("front", "image", 6, 2, columns=3),
        StreamSpec("orders", "text", 1, 2),
        StreamSpec("joints", "telemetry", 1, 1),
        StreamSpec("battery", "telemetry", 1, 1),
    ),
    ACTIONS,
    width=16,
    history=2,
)


def batch(rows: int) -> Batch:
    count = torch.arange(rows, dtype=torch.float32)
    places = torch.arange(6.0).view(1, 1, 6, 1).expand(rows, 2, 6, 2)
    numbers = (count + 1).view(rows, 1, 1, 1).expand(rows, 2, 1, 1)
    tokens = {
        "front": places,
        "orders": torch.full((rows, 2, 1, 2), 7.0),
        "joints": numbers,
        "battery": numbers,
    }
    features = Features(tokens, torch.ones(rows, 2, 4, dtype=torch.bool), torch.zeros(rows, 2, 4))
    actions = {"head": torch.zeros(rows, dtype=torch.int64), "arm": torch.full((rows, 1), 0.5)}
    masks = {"head": torch.tensor([True, True, False]).expand(rows, 3)}
    return Batch(features, features, actions, count, torch.ones(rows), masks)


@given(st.integers(0, 1_000))
def test_mirrored_rows_are_the_other_side_and_the_others_untouched(seed: int) -> None:
    given_batch = batch(16)
    out = MirrorAugmentation(SPEC, ("head", "arm", "joints"))(given_batch, torch.Generator().manual_seed(seed))
    for row in range(16):
        flipped = int(out.actions["head"][row]) == 2
        for features in (out.features, out.next_features):
            places = features.tokens["front"][row, 1, :, 0].tolist()
            assert places == ([2, 1, 0, 5, 4, 3] if flipped else [0, 1, 2, 3, 4, 5])
            assert float(features.tokens["joints"][row, 0]) == (row + 1) * (-1 if flipped else 1)
        assert float(out.actions["arm"][row]) == (-0.5 if flipped else 0.5)
        assert out.masks["head"][row].tolist() == ([False, True, True] if flipped else [True, True, False])
    assert torch.equal(out.features.tokens["orders"], given_batch.features.tokens["orders"])
    assert torch.equal(out.features.tokens["battery"], given_batch.features.tokens["battery"])
    assert torch.equal(out.rewards, given_batch.rewards)


def test_about_half_are_mirrored_and_the_same_draw_gives_the_same() -> None:
    mirror = MirrorAugmentation(SPEC, ("head",))
    one, two = (mirror(batch(400), torch.Generator().manual_seed(3)).actions["head"] for _ in range(2))
    assert torch.equal(one, two)
    assert 160 < int((one == 2).sum()) < 240


def test_what_has_no_sides_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"learner.mirror_augmentation: \['orders'\]"):
        MirrorAugmentation(SPEC, ("head", "orders"))


def test_a_picture_of_one_token_cannot_be_mirrored() -> None:
    """Its actions would be mirrored and it would not: half of each batch would be false."""
    whole = replace(SPEC, streams=(StreamSpec("front", "image", 1, 8),))
    with pytest.raises(ValueError, match=r"\['front'\] has one token"):
        MirrorAugmentation(whole, ("head",))
    MirrorAugmentation(whole, ())


@pytest.mark.parametrize("limits", [((-1.0,), (3.0,)), ((0.0, -1.0), (1.0, 1.0))])
def test_limits_that_do_not_mirror_each_other_are_refused(
    limits: tuple[tuple[float, ...], tuple[float, ...]],
) -> None:
    """Half of each batch would have actions that the actuator does not have."""
    lopsided = replace(SPEC, actions=ActionSpace((Continuous("arm", *limits),)))
    with pytest.raises(ValueError, match=r"the limits of \['arm'\] do not mirror each other"):
        MirrorAugmentation(lopsided, ("arm",))
    MirrorAugmentation(lopsided, ("joints",))
