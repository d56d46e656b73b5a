"""The goal in force, the schedule of questions and the state in words: pure functions against what the settings promise."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from learners.goal_models.answers import GoalAnswer
from learners.goal_models.config import DeliberatorSettings
from runtime.deliberation.goal_in_force import GoalInForce
from runtime.deliberation.question_schedule import HOUR_S, LONGEST_S, QuestionSchedule
from runtime.deliberation.state_text import (
    MOST_BYTES,
    MOST_TEXT,
    KnownState,
    Order,
    PastGoal,
    TaskResult,
    one_line,
    state_text,
)

GOALS = {"idle": "nothing to do", "greet": "greet the person", "dog": "look at the dog"}


def settings(**more: Any) -> DeliberatorSettings:
    return DeliberatorSettings.model_validate({"goals": GOALS, "default": "idle"} | more)


def answer(**probabilities: float) -> GoalAnswer:
    return GoalAnswer(1, {goal: probabilities.get(goal, 0.0) for goal in GOALS})


def test_another_goal_must_be_probable_and_more_so_than_the_one_in_force() -> None:
    goal = GoalInForce(settings(confidence=0.5, margin=0.2, min_hold_s=5, ttl_s=60), 0.0)
    assert (goal.goal, goal.confidence) == ("idle", 1.0)
    assert goal.take(answer(idle=0.3, greet=0.45, dog=0.25), 1.0) == "unsure"
    assert goal.take(answer(idle=0.45, greet=0.55), 2.0) == "close"
    assert goal.goal == "idle"
    assert goal.take(answer(idle=0.2, greet=0.8), 3.0) == "changed"
    assert (goal.goal, goal.confidence, goal.past[0]) == ("greet", 0.8, PastGoal("idle", "replaced", 3.0))
    assert goal.take(answer(dog=1.0), 7.9) == "held"
    assert goal.take(answer(dog=1.0), 8.0) == "changed"
    assert goal.take(GoalAnswer(1), 9.0) == "nothing"


def test_without_a_newer_answer_the_default_follows_and_an_unsure_one_does_not_prolong() -> None:
    goal = GoalInForce(settings(ttl_s=60), 0.0)
    goal.take(answer(greet=1.0), 0.0)
    assert not goal.expire(59.9)
    goal.take(answer(idle=0.34, greet=0.3, dog=0.36), 59.9)
    assert goal.expire(60.0)
    assert (goal.goal, goal.past[0].outcome) == ("idle", "expired")
    assert not goal.expire(1e9)
    goal.take(answer(greet=1.0), 100.0)
    goal.take(answer(greet=0.9, idle=0.1), 150.0)
    assert not goal.expire(200.0)
    assert goal.expire(210.0)


def test_a_person_s_goal_is_in_force_for_its_time_and_done_ends_it() -> None:
    goal = GoalInForce(settings(ttl_s=10), 0.0)
    assert goal.set_by_person("dog", 5.0, 0.0)
    assert goal.expire(5.0), "a person's goal is not in force longer than the person asked for"
    assert goal.set_by_person("dog", 100.0, 0.0)
    assert goal.take(answer(greet=1.0), 50.0) == "held"
    assert not goal.expire(99.9)
    assert goal.take(answer(greet=1.0), 100.0) == "changed"
    goal.set_by_person("dog", 100.0, 100.0)
    assert goal.is_done(101.0)
    assert goal.goal == "idle"
    assert not goal.is_done(102.0)
    with pytest.raises(ValueError, match="no goal 'cat'; there are dog, greet, idle"):
        goal.set_by_person("cat", 1.0, 0.0)


@given(
    st.lists(
        st.tuples(
            st.floats(0, 50),
            st.lists(st.floats(0, 1), min_size=3, max_size=3),
            st.sampled_from(["take", "set", "done", "expire"]),
        ),
        max_size=40,
    )
)
def test_whatever_comes_the_goal_is_listed_and_never_older_than_its_limit(
    steps: list[tuple[float, list[float], str]],
) -> None:
    goal, now_s = GoalInForce(settings(ttl_s=60), 0.0), 0.0
    for wait_s, numbers, what in steps:
        now_s += wait_s
        goal.expire(now_s)
        total = sum(numbers) or 1.0
        match what:
            case "take":
                goal.take(GoalAnswer(1, dict(zip(GOALS, (n / total for n in numbers), strict=True))), now_s)
            case "set":
                goal.set_by_person(list(GOALS)[int(3 * numbers[0]) % 3], 20.0, now_s)
            case "done":
                goal.is_done(now_s)
            case _:
                pass
        assert goal.goal in GOALS
        assert goal.goal == "idle" or now_s <= (goal.held_until_s if goal.model == "person" else goal.confirmed_s + 60)
        assert 0 <= goal.confidence <= 1
        assert len(goal.past) <= 5


def test_an_idle_house_asks_at_most_six_times_in_an_hour() -> None:
    schedule = QuestionSchedule(10.0, 360)
    asked = [second for second in range(4 * 3_600) if schedule.ask(float(second), urgent=False)]
    assert all(sum(start <= at < start + 3_600 for at in asked) <= 6 for start in range(0, 3 * 3_600, 60))
    assert max(later - sooner for sooner, later in pairwise(asked)) == LONGEST_S
    assert schedule.ask(4 * 3_600.0, urgent=True) == (4 * 3_600 - asked[-1] >= 10)


def test_words_are_asked_about_at_once_but_not_beyond_the_budget() -> None:
    schedule = QuestionSchedule(1.0, 100)
    asked = [second for second in range(2 * 3_600) if schedule.ask(float(second), urgent=True)]
    assert asked[:25] == [*range(25)]
    assert all(sum(start <= at < start + 3_600 for at in asked) <= 100 for start in range(0, 3_601, 10))
    assert 70 <= len([at for at in asked if at >= 3_600]) <= 100
    assert schedule.counts == {"over_budget": 2 * 3_600 - len(asked)}
    assert HOUR_S == 3_600


def test_a_model_that_fails_is_left_alone_longer_and_longer() -> None:
    schedule, now_s, pauses = QuestionSchedule(1.0, 36_000), 0.0, []
    for _ in range(12):
        began_s = now_s
        while not schedule.ask(now_s, urgent=True):
            now_s += 0.25
        pauses.append(now_s - began_s)
        schedule.failed(now_s)
    assert pauses[:3] == [0.0, 1.0, 1.0]
    assert pauses[3:] == sorted(pauses[3:])
    assert pauses[-1] == pytest.approx(300, abs=1)
    schedule.answered()
    assert schedule.ask(now_s + 1.0, urgent=True)


def test_the_state_has_a_stable_order() -> None:
    state = KnownState(
        [Order("orders", 'say "hello"\nto the dog', 3.0)],
        [TaskResult("scene", "dog", 0.9, 1.0)],
        {"room.temperature": 21.53, "room.broken": math.nan, "a.b": 1e6},
        "greet",
        75.0,
        [PastGoal("idle", "done", 20.0)],
    )
    assert state_text(state).splitlines() == [
        "Orders, newest first:",
        '- "say \\"hello\\" to the dog" (orders, 3 s ago)',
        "Present goal: greet, for 1 min",
        "Perceived:",
        "- scene: dog (0.90), 1 s ago",
        "Numbers:",
        "- a.b 1e+06",
        "- room.temperature 21.5",
        "Goals before, newest first:",
        "- idle: done after 20 s",
    ]


@given(st.lists(st.text(max_size=4_000), max_size=8), st.dictionaries(st.text(max_size=300), st.floats(), max_size=60))
def test_the_state_is_bounded_and_a_text_is_one_line_of_data(texts: list[str], numbers: dict[str, float]) -> None:
    state = KnownState([Order("in", text, 1.0) for text in texts], (), numbers, "idle", 0.0)
    text = state_text(state)
    assert len(text.encode()) <= MOST_BYTES
    headings = {line for line in text.splitlines() if not line.startswith("- ")}
    assert headings <= {"Orders, newest first:", "Present goal: idle, for 0 s", "Numbers:"}


@given(st.text(max_size=5_000))
def test_a_line_has_no_control_characters(text: str) -> None:
    line = one_line(text)
    assert len(line) <= MOST_TEXT
    assert line.isprintable()


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"default": "cat"}, "default: 'cat' is not under goals"),
        ({"goals": GOALS | {"cat": "nothing to do"}}, "two goals have the same description"),
        ({"goals": GOALS | {"cat": "   "}}, "cat"),
        ({"goals": {"idle": "x"}}, "goals"),
        ({"goals": GOALS | {"idle": {"means": "rest", "done": "a.b > 1"}}}, "never done"),
        ({"ttl_s": 5.0}, "below every_s"),
        ({"backend": {"kind": "openai", "url": "http://h/v1"}}, "needs the name of a model"),
        ({"backend": {"kind": "openai", "url": "http://user:secret@h/v1", "model": "m"}}, "url"),
        ({"backend": {"kind": "systemone", "url": "ftp://h"}}, "url"),
    ],
)
def test_settings_that_cannot_work_are_refused(more: dict[str, Any], word: str) -> None:
    with pytest.raises(ValidationError, match=word):
        settings(**more)
