"""Rewards that the deliberator's model gives: when they are asked for, what they are compared with, and what they never judge."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import yaml
from aiohttp import web
from pydantic import ValidationError

from fakes import FakeClock, eventually
from learners.config.learner import ExperienceSettings
from learners.config.rewards import DecisionReward, TopicReward
from learners.experience.reader import Reader
from learners.experience.store import Store, Transition
from learners.goal_models.answers import BackendFailed, YesNoAnswer, YesNoQuestion, probability
from learners.goal_models.config import DeliberatorSettings
from learners.goal_models.runner import DeliberationRunner
from learners.promotion.recent_experience import RecentExperience
from learners.safeguards.reward_ledger import Ledger, LedgerEntry
from learners.safeguards.source_consistency import Finding, Quarantine, source_rules
from runtime.config.schema import Config
from runtime.deliberation.reward_judge import LATE_S, RewardJudge

ROOT = Path(__file__).parents[3]
CONTENT = DecisionReward(name="content", kind="decision", question="Does the person look content?", scale=2.0)
TIDY = DecisionReward(name="tidy", kind="decision", question="Is the room tidy?", every_s=20.0)


class Asked:
    """A judge with a model that answers when the test says so."""

    def __init__(self, *rewards: DecisionReward) -> None:
        self.clock, self.connected = FakeClock(50.0), True
        self.questions: list[YesNoQuestion] = []
        self.credits: list[tuple[str, float, float]] = []
        self.degraded: dict[str, str] = {}
        self.it = RewardJudge(
            rewards, self, lambda: "the state", lambda *credit: self.credits.append(credit), self.degraded, self.clock.now,
            lambda: self.clock.now() + 1_000.0,
        )  # fmt: skip

    def ask_yes_no(self, question: YesNoQuestion) -> None:
        self.questions.append(question)

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds * 5)):
            self.clock.advance(0.2)
            self.it.step()

    def answer(self, yes: float) -> None:
        self.it.answered(YesNoAnswer(self.questions[-1].number, yes, "m@1", 0.1))


def test_an_answer_is_a_reward_of_the_moment_of_its_question() -> None:
    asked = Asked(CONTENT)
    asked.it.step()
    assert (asked.questions[-1].state, asked.questions[-1].question) == ("the state", CONTENT.question)
    asked.wait(3)
    asked.answer(0.75)
    asked.answer(0.0)
    assert asked.credits == [("model:content", 1.0, 1_050.0)]
    assert asked.it.counts == {"asked": 1, "answered": 1, "stale": 1}
    asked.wait(1.8)
    assert len(asked.questions) == 1
    asked.wait(0.4)
    asked.answer(0.5)
    assert asked.credits[-1] == ("model:content", 0.0, pytest.approx(1_055.0, abs=0.3))
    assert abs(asked.questions[0].number) != abs(asked.questions[1].number)


def test_two_rewards_take_turns_and_none_is_asked_more_often_than_it_says() -> None:
    asked = Asked(CONTENT, TIDY)
    for _ in range(300):
        asked.wait(0.2)
        if asked.it._asked is not None:
            asked.answer(1.0)
    by_source = {source for source, _, _ in asked.credits}
    assert by_source == {"model:content", "model:tidy"}
    counts = [sum(one.question == reward.question for one in asked.questions) for reward in (CONTENT, TIDY)]
    assert 11 <= counts[0] <= 13
    assert counts[1] == 3


def test_failures_give_no_reward_and_make_the_questions_rare() -> None:
    asked = Asked(CONTENT)
    for _ in range(600):
        asked.wait(0.2)
        if asked.it._asked is not None:
            asked.it.failed(asked.questions[-1].number, "status 500")
    assert asked.credits == []
    assert asked.degraded == {"rewards by model": "no answer about content: status 500"}
    assert len(asked.questions) < 10
    asked.connected = False
    asked.wait(600)
    before = len(asked.questions)
    asked.connected = True
    asked.wait(1)
    assert len(asked.questions) == before + 1
    asked.answer(1.0)
    assert asked.degraded == {}
    asked.wait(LATE_S + 12)
    assert asked.it.counts["failed"] > 0, "a process that never answers"


def judged(rewards: list[float], answered: list[float], own: bool) -> tuple[Quarantine, list[Finding], Ledger]:
    """Compare what a model answered of each decision with the rewards of the tick, or of a person."""
    settings = TopicReward.model_validate(
        {"name": "f", "kind": "topic", "sources": {"anna": {"rates": "comfort", "authority": "operator"}}}
    )
    content = CONTENT if own else CONTENT.model_copy(update={"rates": "comfort"})
    court, ledger, found = Quarantine(source_rules((settings, content))), Ledger(1.0), list[Finding]()
    for n, (value, model) in enumerate(zip(rewards, answered, strict=True)):
        ledger.decided(LedgerEntry(f"s-{n}", n * 5.0, "a", acted=True, refused=False, own=value if own else None))
        if not own:
            ledger.credit("anna", value, f"s-{n}")
        ledger.judge("model:content", model, f"s-{n}")
        for entry in ledger.settle(n * 5.0):
            found += court.observe(entry)
    return court, found, ledger


@pytest.mark.parametrize("own", [True, False])
def test_a_model_that_contradicts_what_it_rates_is_quarantined_and_an_honest_one_is_not(own: bool) -> None:
    truth = np.random.default_rng(0).normal(size=4_000)
    noise = np.random.default_rng(1).normal(size=4_000)
    court, found, _ = judged(truth.tolist(), (-truth + 0.3 * noise).tolist(), own)
    assert [(one.kind, one.source) for one in found] == [("contradicts", "model:content")]
    assert court.names == {"model:content"}
    court, found, _ = judged(truth.tolist(), (truth + noise).tolist(), own)
    assert (found, court.names) == ([], frozenset())


def test_experiments_do_not_count_what_a_model_answers() -> None:
    ledger = Ledger(1.0)
    for n, own in enumerate((0.5, None)):
        entry = LedgerEntry(f"s-{n}", float(n), "a", acted=True, refused=False, own=own)
        ledger.decided(entry)
        assert ledger.judge("model:content", 9.0, entry.decision) is None
        assert entry.total() == own
        assert entry.all_rewards == {"model:content": 9.0}
    assert ledger.judge("model:content", 9.0, None) is None
    ledger.settle(50.0)
    late = ledger.judge("model:content", 1.0, "s-0")
    assert late is not None
    assert late.judged == {"model:content": 10.0}


def test_training_reads_the_rewards_of_models_and_the_steps_of_a_promotion_do_not(tmp_path: Path) -> None:
    store = Store(tmp_path, ExperienceSettings(), clock=lambda: 1_000.0)
    for n in range(4):
        store.append(
            Transition(
                "s", n, f"s-{n}", 1_000.0 + n, "p", tokens={"joints": np.zeros((1, 3), np.float32)}, present={"joints": True},
                ages_s={"joints": 0.0}, actions={"head": "left"}, reward=0.5,
            )
        )  # fmt: skip
    store.credit(2.0, decision="s-1", source="model:content")
    store.credit(3.0, decision="s-1", source="anna")
    store.credit(-1.0, decision="s-2", source="model:tidy")
    store.credit(4.0, decision="s-3", source="models")
    store.credit(3.0, decision="s-3", source="MODEL:content")  # a person may use that name
    store.quarantine("model:tidy")
    assert store.flush()
    with Reader(tmp_path) as reader:
        assert [row.transition.reward for row in reader.newest(4)] == [0.5, 5.5, 0.5, 7.5]
        assert [one.reward for one in RecentExperience(dict, reader).recent(4)] == [0.5, 3.5, 0.5, 7.5]
        assert RecentExperience(dict, reader).recent(0) == []
    store.close()


@pytest.mark.parametrize("kind", ["systemone", "openai"])
async def test_a_server_answers_yes_or_no_beside_the_goal(kind: str) -> None:
    async def handler(request: web.Request) -> web.Response:
        body = await request.json()
        if kind == "systemone":
            assert body["questions"] == {"answer": {"type": "noul", "instructions": TIDY.question}}
            return web.json_response({"answers": {"answer": {"type": "noul", "noul": 0.9}}})
        assert TIDY.question in body["messages"][1]["content"]
        tops = [{"token": "A", "logprob": np.log(0.9)}, {"token": "B", "logprob": np.log(0.1)}]
        choice = {"message": {"content": '{"goal": "A"}'}, "logprobs": {"content": [tops[0] | {"top_logprobs": tops}]}}
        return web.json_response({"choices": [choice]})

    app = web.Application()
    app.router.add_post("/v1/{last:.*}", handler)
    server = web.AppRunner(app)
    await server.setup()
    await web.TCPSite(server, "127.0.0.1", 0).start()
    backend = {"kind": kind, "url": f"http://127.0.0.1:{server.addresses[0][1]}/v1", "model": "m"}
    settings = DeliberatorSettings.model_validate(
        {"goals": {"a": "one", "b": "two"}, "default": "a", "backend": backend}
    )
    found: list[YesNoAnswer] = []
    runner = DeliberationRunner(settings, lambda _: None, lambda *_: None, found.append)
    task = asyncio.create_task(runner.run())
    runner.ask(YesNoQuestion(-5, "the state", TIDY.question))
    await eventually(lambda: bool(found), "the answer")
    task.cancel()
    await asyncio.wait({task})
    await server.cleanup()
    assert (found[0].number, round(found[0].yes, 3)) == (-5, 0.9)


@pytest.mark.parametrize("value", [True, None, "1", 1.5, -0.1, float("nan"), [0.5]])
def test_what_is_no_probability_is_refused(value: object) -> None:
    with pytest.raises(BackendFailed, match="not a number between 0 and 1"):
        probability(value)


def test_settings_name_what_is_missing() -> None:
    known = yaml.safe_load((ROOT / "configs" / "rooms.yaml").read_text())
    asking = {"name": "content", "kind": "decision", "question": "Is all well?"}
    with pytest.raises(ValidationError, match=r"needs `deliberator\.backend` of kind decision, systemone or openai"):
        Config.model_validate(known | {"rewards": [*known["rewards"], asking]})
    known["deliberator"] = known["deliberator"] | {"backend": {"kind": "decision"}}
    with pytest.raises(ValidationError, match="no promotion is judged by a model alone"):
        Config.model_validate(known | {"rewards": [asking]})
    config = Config.model_validate(known | {"rewards": [*known["rewards"], asking]})
    assert isinstance(config.rewards[1], DecisionReward)
    assert config.rewards[1].source == "model:content"


@pytest.mark.parametrize(
    ("model", "anna", "refused"),
    [
        ("operator", None, "operator is for people"), ("operator", "operator", "operator is for people"),
        (4, "operator", r"4 \(4\) is above f\.sources\.anna \(3\)"), ("program", 1, r"program \(2\) is above .*write at most 1"),
        (7, 6, "may be a person"), ("sensor", -1, "may be a person"),
        (3, "operator", None), ("program", "operator", None), (7, 8, None), (7, 7, None),
        (4, None, None), ("program", "sensor", None), (9, "program", None),
    ],
)  # fmt: skip
def test_no_settings_give_a_model_more_authority_than_a_person(
    model: str | int, anna: str | int | None, refused: str | None
) -> None:
    """What the settings allow is tried: the model contradicts anna, and she is never quarantined unless she is called a machine."""
    known = yaml.safe_load((ROOT / "configs" / "rooms.yaml").read_text())
    known["deliberator"] = known["deliberator"] | {"backend": {"kind": "decision"}}
    topic = {"name": "f", "kind": "topic", "sources": {"anna": {"rates": "comfort", "authority": anna}}}
    asking = {"name": "content", "kind": "decision", "question": "Is all well?", "authority": model, "rates": "comfort"}
    known["rewards"] = [*known["rewards"], topic, asking]
    if refused is not None:
        with pytest.raises(ValidationError, match=refused):
            Config.model_validate(known)
        return
    court, ledger, found = Quarantine(source_rules(Config.model_validate(known).rewards)), Ledger(1.0), list[Finding]()
    rng = np.random.default_rng(0)
    for n, value in enumerate(rng.normal(size=600)):
        ledger.decided(LedgerEntry(f"s-{n}", n * 5.0, "a", acted=True, refused=False))
        ledger.credit("anna", value, f"s-{n}")
        ledger.judge("model:content", -value, f"s-{n}")
        for entry in ledger.settle(n * 5.0):
            found += court.observe(entry)
    assert found
    assert ("anna" in court.names) == (anna in {"program", "sensor"})


def test_no_source_on_the_topic_takes_the_name_of_a_model() -> None:
    known = yaml.safe_load((ROOT / "configs" / "rooms.yaml").read_text())
    topic = {"name": "f", "kind": "topic", "sources": {"model:content": {"rates": "tick", "authority": "operator"}}}
    with pytest.raises(ValidationError, match="are those of rewards of kind decision"):
        Config.model_validate(known | {"rewards": [*known["rewards"], topic]})
