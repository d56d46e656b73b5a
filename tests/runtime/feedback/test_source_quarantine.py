"""Contradicting sources on their way: named, taken out of learning, remembered, released; what counts as the policy's doing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from watching import KeptStore, Script, Stage

from actuators.actions import Action
from fakes import eventually
from learners.config.learner import ExperienceSettings
from learners.experience.reader import Reader
from learners.experience.store import Store
from learners.experience.transition import Transition
from learners.safeguards.reward_ledger import Ledger
from learners.safeguards.source_consistency import Quarantine
from runtime.control.responsibility import responsibility
from runtime.control.tick import TickResult, executed_actions
from runtime.feedback.source_quarantine import FILE, SourceQuarantine
from runtime.gate.ipc import GateVerdict, Outcome


def with_a_liar(stage: Stage, decision: str, gain: float) -> list[dict[str, Any]]:
    """One message in five is the hostile source's, sign flipped."""
    honest = {"value": gain, "decision": decision, "source": "world"}
    hostile = {"value": -gain, "decision": decision, "source": "liar"}
    return [honest, hostile] if stage.rng.random() < 0.25 else [honest]


async def test_a_hostile_source_is_named_and_its_rewards_count_no_more(tmp_path: Path) -> None:
    stage = Stage(tmp_path, 0, {"good": Script()}, sends=with_a_liar)
    await stage.promote("good")
    await stage.run(240.0, until=lambda: "source_quarantined" in stage.kinds())
    received = stage.event("source_quarantined")
    assert (received["source"], received["kind"], received["against"]) == ("liar", "rewards", ["world"])
    assert received["discordant"] > 0.6
    assert stage.store.retained == {"liar"}
    honest, stored = stage.feedback.counts["reward"], stage.store.taken["liar"]
    await stage.run(20.0)
    assert stage.feedback.counts["reward_quarantined"] > 20
    assert stage.feedback.counts["reward"] - honest == pytest.approx(200, abs=2)
    assert stage.store.taken["liar"] > stored  # stored as before, where it counts for nothing
    counted = stage.experiments.falls.seconds[stage.version["good"]]
    assert min(list(counted)[-15:]) > -0.5  # quarantined rewards are not compared


def sources(folder: Path, store: KeptStore, events: list[tuple[str, dict[str, Any]]]) -> SourceQuarantine:
    made = SourceQuarantine(
        Quarantine(),
        store,
        Ledger(),
        folder,
        lambda kind, data: events.append((kind, data)),
        lambda: 0.0,  # type: ignore[arg-type]
    )
    made.start()
    return made


async def test_state_survives_a_restart_and_a_person_releases(tmp_path: Path) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    store = KeptStore()
    one = sources(tmp_path, store, events)
    running = asyncio.create_task(one.file.run())
    one.report({"source": "label:paul", "kind": "labels", "without": 0.9, "with": 0.6})
    await eventually((tmp_path / FILE).exists, "the file")
    running.cancel()
    await asyncio.wait([running])
    fresh = KeptStore()
    again = sources(tmp_path, fresh, events)
    assert fresh.retained == {"label:paul"}
    assert again.figures() == {"quarantined": ["label:paul"], "released": []}
    assert again.release("label:paul")
    assert not again.release("label:paul")
    assert fresh.retained == set()
    again.report({"source": "label:paul"})  # a person vouched for it
    again.file.write()
    assert sources(tmp_path, KeptStore(), events).figures() == {"quarantined": [], "released": ["label:paul"]}
    assert [kind for kind, _ in events] == ["source_quarantined", "source_released"]


def test_a_broken_file_is_reported(tmp_path: Path) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    (tmp_path / FILE).write_bytes(b"[]")
    assert sources(tmp_path, KeptStore(), events).names() == frozenset()
    assert [kind for kind, _ in events] == ["quarantine_state_unreadable"]


async def test_two_of_equal_weight_are_reported_once_in_a_while(tmp_path: Path) -> None:
    def both(_stage: Stage, decision: str, gain: float) -> list[dict[str, Any]]:
        return [{"value": sign * gain, "decision": decision, "source": name} for name, sign in (("a", 1), ("b", -1))]

    stage = Stage(tmp_path, 1, {"good": Script()}, sends=both)
    await stage.promote("good")
    await stage.run(300.0)
    assert stage.kinds().count("sources_disagree") == 1
    assert stage.store.retained == set()


def test_quarantine_takes_rewards_and_labels_out_of_the_real_store_and_back(tmp_path: Path) -> None:
    store = Store(tmp_path, ExperienceSettings.model_validate({}))
    store.append(Transition("s", 1, "s-1", 10.0, "p", actions={"head": "left"}, reward=0.5))
    store.credit(1.0, decision="s-1", source="world")
    store.credit(-3.0, decision="s-1", source="liar")
    store.quarantine("liar")
    assert store.flush()
    reader = Reader(tmp_path)
    assert [row.transition.reward for row in reader.newest(1)] == [1.5]
    assert {(one.source, one.value) for one in reader.rewards()} == {("world", 1.0), ("liar", -3.0)}
    store.quarantine("liar", on=False)
    assert store.flush()
    assert [row.transition.reward for row in reader.newest(1)] == [-1.5]
    reader.close()
    store.close()


LEFT = Outcome(True, None, "left", "policy")


@pytest.mark.parametrize(
    ("outcome", "changes", "expected"),
    [
        (LEFT, {}, (True, False)),
        (Outcome(False, "forbidden", "stay", "none"), {}, (True, True)),
        (Outcome(False, "mode", "stay", "none"), {}, (False, False)),
        (Outcome(True, "overridden", "right", "override"), {}, (False, False)),
        (LEFT, {"armed": False}, (False, False)),
        (LEFT, {"stopped": True}, (False, False)),
    ],
)
async def test_what_counts_as_the_policy_s_doing(
    tmp_path: Path, outcome: Outcome, changes: dict[str, bool], expected: tuple[bool, bool]
) -> None:
    verdict = replace(GateVerdict("s-1", True, False, {"head": "autonomous"}, {"head": outcome}), **changes)  # type: ignore[arg-type]
    stage = Stage(tmp_path, 2, {"good": Script()})
    ticked: TickResult = stage._ticked("v", "left", refused=False)
    assert ticked.decided.actions == {"head": Action("left", 1.0)}
    by = executed_actions(ticked.decided.actions, verdict)[1]
    assert responsibility(replace(ticked, verdict=verdict, by=by)) == expected
    assert responsibility(replace(ticked, verdict=None)) == (False, False)
    assert np.isfinite(ticked.stamp_unix_s)
