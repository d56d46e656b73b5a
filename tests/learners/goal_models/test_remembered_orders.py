"""Orders with the goals that people set for them: one counts at once, and the answers are as sure as they are right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from learners.config import ExperienceSettings
from learners.experience.store import Label, Store
from learners.goal_models.answers import GoalQuestion
from learners.goal_models.config import DeliberatorSettings, EmbeddingBackend
from learners.goal_models.local_models import SentenceSimilarity, open_model
from learners.goal_models.remembered_orders import LEAST, MOST, described, remember
from runtime.config.schema import Config
from runtime.models.__main__ import _labelled

GOALS = {"idle": "nothing to do, rest", "warm": "someone is cold: make it warmer", "guard": "watch the house"}


def unit(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows, dim=-1)


def test_a_description_gives_its_whole_text_and_its_clauses() -> None:
    assert described(GOALS) == [
        ("nothing to do, rest", "idle"), ("nothing to do", "idle"), ("rest", "idle"),
        ("someone is cold: make it warmer", "warm"), ("someone is cold", "warm"), ("make it warmer", "warm"),
        ("watch the house", "guard"),
    ]  # fmt: skip


@pytest.mark.parametrize("noise", [0.3, 1.0, 3.0])
def test_answers_are_as_sure_as_they_are_right(noise: float) -> None:
    """Orders around three directions, with labels that noise makes harder or easier to tell."""
    generator = torch.Generator().manual_seed(0)
    centres = unit(torch.randn(3, 16, generator=generator))
    names = list(GOALS)

    def draw(count: int) -> tuple[torch.Tensor, list[str]]:
        which = torch.randint(0, 3, (count,), generator=generator)
        orders = unit(centres[which] + noise * torch.randn(count, 16, generator=generator) / 4)
        return orders, [names[int(one)] for one in which]

    orders_MW, labels = draw(200)
    memory = remember(names, names, centres, labels, orders_MW)
    fresh, right = draw(2_000)
    found = memory.probabilities(fresh)
    assert torch.allclose(found.sum(-1), torch.ones(2_000))
    hits = torch.tensor([names[int(best)] == goal for best, goal in zip(found.argmax(-1), right, strict=True)])
    sure = float(found.amax(-1).mean())
    assert abs(sure - float(hits.float().mean())) < 0.06, (sure, hits.float().mean())
    few = remember(names, names, centres, labels[: LEAST - 1], orders_MW[: LEAST - 1])
    assert few.scale == 1.0


@pytest.fixture(scope="module")
def sentences() -> SentenceSimilarity:
    model = open_model(EmbeddingBackend(), GOALS)
    assert isinstance(model, SentenceSimilarity)
    return model


def best(model: SentenceSimilarity, order: str) -> str:
    found, _ = model.probabilities(GoalQuestion(1, "", (order,), "idle"))
    assert sum(found.values()) == pytest.approx(1)
    return max(found, key=lambda goal: found[goal])


def test_one_correction_counts_at_once_for_orders_like_it_and_can_be_taken_back(sentences: SentenceSimilarity) -> None:
    order, like_it = "the owl has landed", "the owl landed already"
    sentences.remember([(order, "guard"), ("open the door", "open_the_door")])
    assert (best(sentences, like_it), best(sentences, "I am so cold")) == ("guard", "warm")
    sentences.remember([(order, "guard"), (order, "warm")])
    assert best(sentences, like_it) == "warm", "the newer one counts"
    sentences.remember([])
    assert sentences._remembered is None
    sentences.remember([("x" * 50_000, "warm"), ("", "idle")])
    assert best(sentences, "watch the house") == "guard"
    sentences.remember([("old", "warm")] * 2 + [(f"order {number}", "guard") for number in range(MOST - 1)][:3])
    assert len(sentences._labelled) == 4
    sentences.remember([])


def test_the_models_process_reads_what_counts_of_the_labels(tmp_path: Path) -> None:
    known = {
        "agent": "a", "state_dir": str(tmp_path), "actuators": {"lamp": {"kind": "choice", "choices": ["off", "on"], "safe": "off"}},
        "streams": {"orders": {"kind": "text", "source": "topic", "ttl_s": 60, "max_age_s": 60, "encoder": "language"}},
        "encoders": {"language": {"model": "bundled:minilm-l6"}},
        "tasks": {"intents": {"kind": "text-classification", "model": "bundled:minilm-l6", "stream": "orders", "labels": list(GOALS)}},
        "deliberator": {"goals": GOALS, "default": "idle", "corrections": "intents"},
    }  # fmt: skip
    config = Config.model_validate(known)
    read = _labelled(config)
    assert list(read()) == [], "before the first label"
    store = Store(tmp_path / "experience", ExperienceSettings())
    store.add_label(Label("intents", "warm", "brr", source="anna"))
    store.add_label(Label("intents", "guard", "brr", source="mallory"))
    store.add_label(Label("other", "guard", "brr", source="anna"))
    store.quarantine("label:mallory")
    assert store.flush()
    assert list(read()) == [("brr", "warm")]
    store.close()
    assert isinstance(config.deliberator, DeliberatorSettings)
    assert list(_labelled(config.model_copy(update={"deliberator": None}))()) == []
