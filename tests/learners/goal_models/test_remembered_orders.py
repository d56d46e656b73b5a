"""Orders with the goals that people set for them: one counts at once, and the answers are as sure as they are right."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from fakes import eventually
from learners.config.learner import ExperienceSettings
from learners.experience.store import Label, Store
from learners.goal_models import remembered_orders
from learners.goal_models.answers import GoalQuestion
from learners.goal_models.config import DeliberatorSettings, EmbeddingBackend
from learners.goal_models.local_models import TOGETHER, SentenceSimilarity, open_model
from learners.goal_models.remembered_orders import MOST, PENALTIES, GoalExamples, _fit, described, remember
from learners.goal_models.runner import REMEMBER_S, DeliberationRunner
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


@pytest.mark.parametrize("most_solved", [64, 1])
def test_each_order_is_answered_as_if_the_fit_had_never_seen_it_or_one_alike(
    monkeypatch: pytest.MonkeyPatch, most_solved: int
) -> None:
    """The short way gives what a fit without these orders gives, with the weights of the others as they were."""
    monkeypatch.setattr(remembered_orders, "MOST_SOLVED", most_solved)
    groups = [torch.tensor(places) for places in ([0], [1, 5], [2], [3], [4, 6, 7], [8])]
    generator = torch.Generator().manual_seed(3)
    orders_MW, given_DW = (unit(torch.randn(count, 6, generator=generator)) for count in (9, 4))
    goals_MG = torch.nn.functional.one_hot(torch.tensor([0, 0, 0, 0, 0, 1, 1, 2, 2])).float()
    goals_DG = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 2])).float()
    centre_W = torch.cat([orders_MW, given_DW]).mean(0)
    _, unseen_MG = _fit(GoalExamples(orders_MW, goals_MG), GoalExamples(given_DW, goals_DG), centre_W, 0.3, groups)
    goals_NG = torch.cat([goals_MG, goals_DG]).double()
    moved_NV = torch.cat([torch.cat([orders_MW, given_DW]) - centre_W, torch.ones(13, 1)], 1).double()
    weight_N = (13 / 3 / goals_NG.sum(0))[goals_NG.argmax(-1)]
    for left_out in groups:
        others = ~torch.isin(torch.arange(13), left_out)
        rows_OV = moved_NV[others] * weight_N[others, None].sqrt()
        targets_OG = (goals_NG[others] - 1 / 3) * weight_N[others, None].sqrt()
        padded = torch.cat([rows_OV, 0.3**0.5 * torch.eye(7)]), torch.cat([targets_OG, torch.zeros(7, 3)])
        alone_VG = torch.linalg.lstsq(*padded).solution
        assert torch.allclose((moved_NV[left_out] @ alone_VG).float(), unseen_MG[left_out], atol=1e-5)


def test_orders_that_people_repeat_in_nearly_the_same_words_bring_no_trust() -> None:
    """Ten forms of each order were answered from one another, so that every new order seemed to be certain."""
    generator = torch.Generator().manual_seed(0)
    names, centres = list(GOALS), unit(torch.randn(3, 16, generator=generator))
    orders_MW = unit(centres.repeat(20, 1) + 0.4 * torch.randn(60, 16, generator=generator))
    once = remember(names, names, centres, names * 20, orders_MW)
    forms = unit(orders_MW.repeat(10, 1) + 0.02 * torch.randn(600, 16, generator=generator))
    often = remember(names, names, centres, names * 200, forms)
    fresh = unit(centres.repeat(300, 1) + 0.4 * torch.randn(900, 16, generator=generator))
    sure = [float(one.probabilities(fresh).amax(-1).mean()) for one in (once, often)]
    assert abs(sure[0] - sure[1]) < 0.06, sure


def test_one_order_leaves_the_usual_trust_and_many_contradicting_ones_take_it() -> None:
    generator = torch.Generator().manual_seed(0)
    names, centres = list(GOALS), unit(torch.randn(3, 16, generator=generator))
    one = remember(names, names, centres, ["warm"], centres[1:2])
    assert one.penalty in PENALTIES[1:3]
    assert 7 < one.scale < 14
    orders_MW = unit(
        centres.repeat(40, 1) + torch.randn(120, 16, generator=generator) / 5
    )  # no two in nearly the same words
    clear = remember(names, names, centres, names * 40, orders_MW)
    wrong = remember(
        names, names, centres, [names[int(n)] for n in torch.randint(0, 3, (120,), generator=generator)], orders_MW
    )
    assert clear.scale >= one.scale > 1.5 * wrong.scale, (clear.scale, one.scale, wrong.scale)


def test_a_goal_with_hundreds_of_corrections_takes_no_order_from_the_others() -> None:
    """Three goals with one example each, and one of them with many around its own; the orders of the others stay theirs."""
    generator = torch.Generator().manual_seed(0)
    names, centres = list(GOALS), unit(torch.randn(3, 16, generator=generator))

    def around(goal: int, count: int) -> torch.Tensor:
        return unit(centres[goal] + torch.randn(count, 16, generator=generator) / 5)

    memory = remember(names, names, centres, ["idle"] * 1_000, around(0, 1_000))
    for goal in (1, 2):
        found = memory.probabilities(around(goal, 200)).argmax(-1)
        assert float((found == goal).float().mean()) > 0.95, names[goal]
    outlier = unit(centres[1] + centres[2])[None]
    corrected = remember(names, names, centres, ["idle"] * 1_001, torch.cat([around(0, 1_000), outlier]))
    assert int(corrected.probabilities(outlier).argmax()) == 0, (
        "one correction among a thousand still counts for its order"
    )


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
    sentences.remember([(order, "warm"), (f" {order.upper()}\n", "guard")])
    assert (best(sentences, order), len(sentences._labelled)) == ("guard", 1), "also in other letters"
    sentences.remember([])
    assert sentences._remembered is None
    sentences.remember([("x" * 50_000, "warm"), ("", "idle")])
    assert best(sentences, "watch the house") == "guard"
    sentences.remember([("old", "warm")] * 2 + [(f"order {number}", "guard") for number in range(MOST - 1)][:3])
    assert len(sentences._labelled) == 4
    sentences.remember([])


def test_orders_are_read_for_a_limited_time_newest_first_and_then_on(sentences: SentenceSimilarity) -> None:
    labelled = [(f"order number {number}", "warm") for number in range(70)] + [("the owl has landed", "guard")]
    assert not sentences.remember(labelled, 0.0)
    assert len(sentences._labelled) == 4 * TOGETHER
    assert best(sentences, "the owl landed already") == "guard"
    assert sentences.remember(labelled, 0.0)
    assert len(sentences._labelled) == 71
    alone = sentences._embed(["the owl has landed"])[0]
    assert torch.allclose(sentences._sentences["the owl has landed"], alone, atol=1e-5), "others do not change it"
    assert sentences.remember([], 0.0)
    assert sentences._remembered is None


class SlowReader:
    """A model that reads the remembered orders in several parts."""

    name = "m@1"

    def __init__(self) -> None:
        self.parts = 0

    def remember(self, labelled: Sequence[tuple[str, str]], limit_s: float) -> bool:
        assert (len(labelled), limit_s) == (200, REMEMBER_S)
        self.parts += 1
        return self.parts >= 5

    def probabilities(self, question: GoalQuestion) -> tuple[dict[str, float], None]:
        del question
        return dict.fromkeys(GOALS, 1 / 3), None


def test_a_question_is_answered_before_all_orders_are_read_and_the_rest_is_read_after_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = SlowReader()
    monkeypatch.setattr("learners.goal_models.local_models.open_model", lambda *_: model)
    settings = DeliberatorSettings.model_validate({"goals": GOALS, "default": "idle"})
    parts: list[int] = []

    async def asked() -> None:
        labelled = [(f"order number {number}", "warm") for number in range(200)]
        runner = DeliberationRunner(
            settings, lambda _: parts.append(model.parts), lambda *_: None, labelled=lambda: labelled
        )
        task = asyncio.create_task(runner.run())
        runner.ask(GoalQuestion(1, "", ("order number 7",), "idle"))
        await eventually(lambda: model.parts == 5)
        runner.ask(GoalQuestion(2, "", ("order number 7",), "idle"))
        await eventually(lambda: len(parts) == 2)
        task.cancel()

    asyncio.run(asked())
    assert parts == [1, 6]


def test_the_models_process_reads_what_counts_of_the_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    for number in range(3):
        store.add_label(Label("intents", "idle", f"text {number}", source="anna"))
    store.add_label(Label("intents", "guard", "newest of all", source="mallory"))
    assert store.flush()
    assert [text for text, _ in read()] == ["brr", "text 0", "text 1", "text 2"]
    monkeypatch.setattr("runtime.models.__main__.MOST", 2)
    assert list(read()) == [("text 1", "idle"), ("text 2", "idle")]
    store.close()
    assert isinstance(config.deliberator, DeliberatorSettings)
    assert list(_labelled(config.model_copy(update={"deliberator": None}))()) == []
