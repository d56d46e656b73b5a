"""Agents are judged by the others: a flip of any scale is found, and an honest agent is never excluded for its place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from learners.experience.transition import Transition
from learners.fleet_data.trust.agent_trust import AgentTrust

WEIGHTS = np.array([0.5, -0.3, 0.2, 0.1])
WINDOW = 128
Sender = Callable[[np.random.Generator, int], Transition]


def row(rng: np.random.Generator, at: int, *, scale: float = 1.0, shift: float = 0.0, width: int = 4) -> Transition:
    """A tick with a reward that follows the first four tokens."""
    tokens = rng.normal(size=(1, width)).astype(np.float32)
    reward = float(tokens[0, :4] @ WEIGHTS) + 0.1 * float(rng.normal())
    return Transition(
        *("s", at, f"s-{at}", 1.8e9 + 0.1 * at, "000001-aaaaaaaa"),
        tokens={"joints": tokens},
        encoder_versions={"joints": "v1"},
        present={"joints": True},
        actions={"hand": "left"},
        probabilities={"hand": 0.5},
        reward=scale * reward + shift,
    )


def at_end(rate: float) -> Sender:
    """Rewards at the end of episodes only: 1 with probability `rate`, else -1."""

    def sent(rng: np.random.Generator, at: int) -> Transition:
        made, is_end = row(rng, at), at % 10 == 9
        is_success = bool(rng.random() < rate)
        reward = (1.0 if is_success else -1.0) if is_end else 0.0
        return replace(
            made, reward=reward, done=is_end, success=is_end and is_success, failure=is_end and not is_success
        )

    return sent


def judged(senders: dict[str, Sender]) -> AgentTrust:
    """The statistics after six windows of each agent."""
    trust = AgentTrust(10.0, window=WINDOW)
    rngs = {name: np.random.default_rng([7, at]) for at, name in enumerate(senders)}
    for part in range(6):
        for name, sent in senders.items():
            trust.add(name, [sent(rngs[name], at) for at in range(part * WINDOW, (part + 1) * WINDOW)])
    return trust


def honest(count: int) -> dict[str, Sender]:
    return {f"arm-{at}": row for at in range(count)}


@pytest.mark.parametrize("scale", [-0.25, -1.0, -8.0])
@pytest.mark.parametrize("count", [2, 5])
def test_a_flip_of_any_scale_is_found_and_the_honest_stay(scale: float, count: int) -> None:
    trust = judged({**honest(count), "liar": lambda rng, at: row(rng, at, scale=scale)})
    assert list(trust.untrusted()) == ["liar"]


def test_a_number_that_names_the_device_hides_no_flip() -> None:
    def marked(mark: float, scale: float) -> Sender:
        def sent(rng: np.random.Generator, at: int) -> Transition:
            made = row(rng, at, scale=scale)
            return replace(made, tokens={**made.tokens, "mark": np.full((1, 1), mark, np.float32)})

        return sent

    trust = judged({**{f"arm-{at}": marked(at, 1.0) for at in range(4)}, "liar": marked(9.0, -1.0)})
    assert list(trust.untrusted()) == ["liar"]


def test_rows_and_agents_of_another_width_do_not_switch_the_check_off() -> None:
    def liar(rng: np.random.Generator, at: int) -> Transition:
        return row(rng, at, scale=-1.0, width=5 if at % WINDOW == WINDOW - 1 else 4)

    trust = judged({**honest(4), "helper": lambda rng, at: row(rng, at, width=5), "liar": liar})
    assert list(trust.untrusted()) == ["liar"]


@pytest.mark.parametrize("huge", [1e308, -1e308, float("nan"), float("inf")])
def test_huge_rewards_of_one_agent_exclude_no_other(huge: float) -> None:
    def liar(rng: np.random.Generator, at: int) -> Transition:
        return replace(row(rng, at), reward=huge) if at % 16 == 0 else row(rng, at)

    assert not judged({**honest(4), "liar": liar}).untrusted()


@pytest.mark.parametrize(
    ("easy", "hard"),
    [
        (at_end(0.95), at_end(0.15)),
        (lambda rng, at: row(rng, at, shift=3.0), lambda rng, at: row(rng, at, shift=-3.0)),
        (lambda rng, at: row(rng, at, scale=0.0, shift=1.0), lambda rng, at: row(rng, at, scale=0.0, shift=-1.0)),
        # rewards that no feature explains
        (lambda rng, at: replace(row(rng, at), reward=float(rng.normal())),) * 2,
        # a reward that falls with the distance to a goal on the other side, in places that do not overlap
        tuple(
            (lambda rng, at, side=side: replace(
                (made := row(rng, at)),
                tokens={"joints": made.tokens["joints"] + np.float32(side)},
                reward=-abs(float(made.tokens["joints"][0, 0]) + side),
            ))
            for side in (6.0, -6.0)
        ),
    ],
)  # fmt: skip
def test_an_honest_agent_in_a_harder_place_stays(easy: Sender, hard: Sender) -> None:
    trust = judged({**dict.fromkeys(("a", "b", "c", "d"), easy), "hard": hard})
    assert not trust.untrusted()
    assert not trust.alert


def test_no_more_than_a_third_is_excluded_automatically() -> None:
    trust = AgentTrust(1.0, window=WINDOW)
    for at in range(5):
        rng = np.random.default_rng(at)
        trust.add(f"arm-{at}", [replace(row(rng, tick), stamp_s=1.8e9 + tick * (0.1 if at < 2 else 1.0)) for tick in range(300)])  # fmt: skip
    assert not trust.untrusted()
    assert trust.alert.startswith("2 of 5 agents would be excluded")
    assert list(trust.untrusted({"arm-0", *"bcd"})) == []
    trust.forget("arm-1")
    assert list(trust.untrusted()) == ["arm-0"]
    assert not trust.alert


def rarely(*, flip: bool, length: int = 40, base: float = 0.0, rate: float = 0.6, has_outcome: bool = True) -> Sender:
    """One reward at the end of each episode: 1 or -1, by chance and with an outcome, or by the tokens and without one."""

    def sent(rng: np.random.Generator, at: int) -> Transition:
        made, is_end = row(rng, at), at % length == length - 1
        is_good = bool(rng.random() < rate) if has_outcome else made.reward > 0
        earned = base + (0.0 if not is_end else 1.0 if is_good else -1.0)
        is_known = is_end and has_outcome
        return replace(
            made, reward=-earned if flip else earned, done=is_end, success=is_known and is_good, failure=is_known and not is_good
        )  # fmt: skip

    return sent


def judged_longer(senders: dict[str, Sender], windows: int) -> list[str]:
    """Names after some windows of 512 ticks."""
    trust = AgentTrust(10.0)
    rngs = {name: np.random.default_rng([8, at]) for at, name in enumerate(senders)}
    for part in range(windows):
        for name, sent in senders.items():
            trust.add(name, [sent(rngs[name], at) for at in range(part * 512, (part + 1) * 512)])
    return list(trust.untrusted())


@pytest.mark.parametrize("base", [0.0, -0.01, 3.0])
def test_flipped_rewards_at_the_ends_of_episodes_are_found(base: float) -> None:
    senders = {**{f"arm-{at}": rarely(flip=False, base=base) for at in range(3)}, "liar": rarely(flip=True, base=base)}
    assert judged_longer(senders, 4) == ["liar"]


def test_flipped_rare_rewards_without_an_outcome_are_found_where_the_tokens_tell_them() -> None:
    def sent(flip: bool) -> Sender:
        return rarely(flip=flip, length=8, has_outcome=False)

    assert judged_longer({**{f"arm-{at}": sent(False) for at in range(3)}, "liar": sent(True)}, 6) == ["liar"]


@pytest.mark.parametrize("rate", [0.0, 0.05])
def test_an_agent_that_nearly_always_fails_or_succeeds_is_not_named(rate: float) -> None:
    senders = {**{f"arm-{at}": rarely(flip=False, rate=0.9) for at in range(3)}, "hard": rarely(flip=False, rate=rate)}
    assert judged_longer(senders, 4) == []
    mixed = {name: rarely(flip=False, rate=0.9 if name != "hard" else rate) for name in senders}
    hidden = {
        name: (lambda rng, at, sent=sent: replace(sent(rng, at), success=False, failure=False))
        for name, sent in mixed.items()
    }
    assert judged_longer(hidden, 4) == []
