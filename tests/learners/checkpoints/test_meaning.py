"""Signed weights keep their meaning: what their numbers stand for is compared by name, and never read as something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import learning
import orjson
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actuators.actions import ActionSpace, Choice, Continuous
from learners.checkpoints.manifest import CheckpointRefused
from learners.checkpoints.store import Checkpoints
from learners.model.spec import PolicySpec, StreamSpec

WEIGHTS = {"policy": {"w": torch.zeros(2)}}


def spec(
    streams: tuple[str, ...] = ("arm", "room"),
    fields: tuple[str, ...] = ("q1", "q2", "q3"),
    choices: tuple[str, ...] = ("-1", "0", "1"),
    high: float = 1.0,
) -> PolicySpec:
    actuators = (Choice("turn", choices), Continuous("reach", (-1.0,), (high,)))
    named = tuple(StreamSpec(name, "telemetry", 1, len(fields), fields=fields) for name in streams)
    return PolicySpec(named, ActionSpace(actuators), width=16, heads=4)


def saved(folder: Path, document: Any) -> tuple[Checkpoints, str]:
    versions = Checkpoints(folder, learning.KEY)
    return versions, versions.save(WEIGHTS, {"spec": document})


def document(of: PolicySpec) -> Any:
    return orjson.loads(of.to_json())


def test_the_same_settings_load(tmp_path: Path) -> None:
    versions, name = saved(tmp_path, document(spec()))
    assert versions.load(name, meaning=spec().meaning()).manifest.version == name


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (spec(choices=("1", "0", "-1")), "actions"),
        (spec(choices=("-1", "0", "up")), "actions"),
        (spec(high=0.5), "actions"),
        (spec(streams=("room", "arm")), "streams"),
        (spec(fields=("q2", "q1", "q3")), "streams"),
    ],
)
def test_equal_shapes_with_another_meaning_are_refused(tmp_path: Path, other: PolicySpec, what: str) -> None:
    versions, name = saved(tmp_path, document(spec()))
    versions.promote(name)
    refused: list[CheckpointRefused] = []
    assert versions.load_live(refused.append, meaning=other.meaning()) is None
    assert [each.reason for each in refused] == ["other_meaning"]
    assert f"trained for the {what}" in refused[0].detail
    assert versions.live().version == name, "restored settings find it again"


def test_another_encoder_of_the_same_width_is_refused(tmp_path: Path) -> None:
    """Tokens of another model mean something else; a spec that names no encoder is compared without."""

    def seen(encoder: str) -> PolicySpec:
        return PolicySpec(
            (StreamSpec("front", "image", 4, 64, encoder=encoder),),
            ActionSpace((Choice("turn", ("a", "b")),)),
            width=16,
        )

    versions, name = saved(tmp_path, document(seen("siglip-base")))
    assert versions.load(name, meaning=seen("siglip-base").meaning()).manifest.version == name
    with pytest.raises(CheckpointRefused, match="siglip-base") as refused:
        versions.load(name, meaning=seen("clip-base").meaning())
    assert refused.value.reason == "other_meaning"
    unnamed = versions.save(WEIGHTS, {"spec": document(seen(""))})
    assert versions.load(unnamed, meaning=seen("clip-base").meaning()).manifest.version == unnamed


@given(order=st.permutations(["a", "b", "c", "d"]))
@settings(max_examples=24, deadline=None)
def test_no_order_of_choices_but_its_own_is_taken(order: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    versions, name = saved(tmp_path_factory.mktemp("order"), document(spec(choices=("a", "b", "c", "d"))))
    try:
        versions.load(name, meaning=spec(choices=tuple(order)).meaning())
        taken = True
    except CheckpointRefused:
        taken = False
    assert taken == (order == ["a", "b", "c", "d"])


def test_a_spec_that_names_no_fields_is_compared_by_streams_alone(tmp_path: Path) -> None:
    old = document(spec())
    for stream in old["streams"]:
        del stream["fields"]
    versions, name = saved(tmp_path, old)
    assert versions.load(name, meaning=spec(fields=("x", "y", "z")).meaning()).manifest.version == name
    with pytest.raises(CheckpointRefused, match="other_meaning"):
        versions.load(name, meaning=spec(streams=("room", "arm")).meaning())


@pytest.mark.parametrize(
    "broken", [{}, [], "spec", {"streams": [1], "actions": []}, {"streams": None, "actions": None}]
)
def test_a_broken_spec_is_refused(tmp_path: Path, broken: Any) -> None:
    versions, name = saved(tmp_path, broken)
    with pytest.raises(CheckpointRefused, match="other_meaning"):
        versions.load(name, meaning=spec().meaning())
