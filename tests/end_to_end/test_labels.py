"""From labels over MQTT to a task that uses what it learned: the real daemon, with a tiny model."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import labelling
import pytest
import tinymodels

from learners.config.tasks import TaskSettings
from learners.continual.labels import Labels
from learners.experience.reader import Reader

INTENTS = {"go": "move", "stop": "halt", "left": "turn"}
LATER = {"red": "warn", "blue": "calm"}
SLOW_S = 240.0


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[labelling.Daemon]:
    folder = tmp_path_factory.mktemp("labels")
    model = str(tinymodels.bert(folder / "model"))
    made = labelling.settings(
        folder,
        labelling.free_port(),
        model,
        encoders={"language": {"model": model, "follow_task": True}},
        tasks={
            "intents": {
                "kind": "text-classification",
                "stream": "orders",
                "model": model,
                "train": "full",
                "eval_file": str(tinymodels.held_out(folder / "held.jsonl", 100, INTENTS | LATER)),
            },
            "moods": {
                "kind": "text-classification",
                "stream": "orders",
                "model": model,
                "labels": ["calm", "cross"],
                "query_confidence": 0.99,
            },
        },
        finetune={"min_labels": 90, "epochs": 40, "learning_rate": 1e-3, "batch": 8, "rehearsal_ratio": 1.0},
        # no policy goes live: an untrained one follows the task at once
        learner={"priority": "normal", "promote_every_s": 3_600},
    )
    made["mode"] = "autonomous"  # the learner trains on, and encodes again, only rows at which the policy acted
    with labelling.Daemon(folder, made) as running:
        running.wait("decision", timeout_s=labelling.START_S)
        yield running


def test_an_unsure_task_asks_and_the_answer_needs_its_id_alone(daemon: labelling.Daemon) -> None:
    """Two questions within ten seconds are one; the text is taken from the recorded reading."""
    for text in ("please go now", "stop the red"):
        daemon.client.publish(f"{labelling.BASE}/in/orders", text.encode(), 1)
        daemon.wait("decision", lambda body: body["missing"] == [])
    requested = daemon.received("label_requested")
    assert requested["task"] == "moods"
    assert {one["label"] for one in requested["candidates"]} == {"calm", "cross"}
    assert requested["reading"] == {"orders": {"text": requested["text"]}}
    assert [event["type"] for event in daemon.events].count("label_requested") == 1
    answer = {"task": "moods", "label": "calm", "id": requested["id"]}
    daemon.client.publish(f"{labelling.BASE}/label", json.dumps(answer), 1)
    settings = TaskSettings(kind="text-classification", model="m", stream="orders")
    labels = Labels("moods", settings, Reader(daemon.state_dir / "experience"))
    daemon.wait("decision", lambda _: bool(labels.all()), timeout_s=60)
    assert [one.example for one in labels.all()] == [{"text": requested["text"], "label": "calm"}]


def test_labels_become_a_version_that_answers(daemon: labelling.Daemon) -> None:
    daemon.label(tinymodels.orders(90, 1, INTENTS))
    received = daemon.event("task_promoted", "task_rejected", "finetune_skipped", timeout_s=SLOW_S)
    assert received["type"] == "task_promoted", received
    version = received["data"]["version"]
    assert received["data"]["held_out"] == "file"
    assert received["data"]["agreement"] >= 0.9, received
    assert received["data"]["all_after"] <= 0.6, "two of five orders in the file are of a wave that has not come"
    assert daemon.ask("please stop now", version)["value"] == "halt"
    assert daemon.ask("please go now", version)["value"] == "move"


def test_the_streams_encoder_follows_its_task(daemon: labelling.Daemon) -> None:
    swapped = daemon.received("encoder_swapped")
    assert swapped["encoder"] == "language"
    assert swapped["task"] == "intents"
    assert swapped["version"] != swapped["before"]
    reader = Reader(daemon.state_dir / "experience")

    def remembered() -> bool:
        return reader.newest(1)[0].transition.encoder_versions.get("orders") == swapped["version"]

    daemon.wait("decision", lambda _: remembered(), timeout_s=60)
    # what the version before saw of the first orders is encoded again, from the stored readings
    daemon.wait("health", lambda body: body["learner"].get("reencoded", {}).get("done", 0) > 0, timeout_s=60)


def test_a_second_wave_is_learned_and_the_first_is_retained(daemon: labelling.Daemon) -> None:
    daemon.label(tinymodels.orders(90, 2, LATER))
    received = daemon.event("task_promoted", "task_rejected", "finetune_skipped", timeout_s=SLOW_S)
    assert received["type"] == "task_promoted", received
    figures = received["data"]
    assert figures["replayed"] > 0
    assert (figures["held_known"], figures["held_new"]) == (60, 40)
    assert figures["all_after"] >= figures["all_before"] + 0.3
    assert figures["known_after"] >= figures["known_before"] - 0.03
    assert daemon.ask("is the red now", figures["version"])["value"] == "warn"
    assert daemon.ask("a stop please", figures["version"])["value"] == "halt"


def test_a_poisoned_wave_is_refused_with_its_numbers_and_changes_nothing(daemon: labelling.Daemon) -> None:
    before = daemon.ask("please stop now")["version"]
    rows = tinymodels.orders(90, 3, INTENTS)
    labels = [row["label"] for row in rows]
    random.Random(0).shuffle(labels)
    daemon.label([{**row, "label": label} for row, label in zip(rows, labels, strict=True)], source="mallory")
    received = daemon.event("task_promoted", "task_rejected", "finetune_skipped", timeout_s=SLOW_S)
    assert received["type"] == "task_rejected", received
    assert "labels look like noise" in received["data"]["reason"]
    assert received["data"]["labels_agreement_low"] <= received["data"]["labels_chance"]
    assert {"all_before", "all_after", "known_before", "known_after"} <= set(received["data"])
    answer = daemon.ask("please stop now")
    assert (answer["version"], answer["value"]) == (before, "halt")


def test_what_nothing_can_judge_waits_for_a_person(daemon: labelling.Daemon) -> None:
    """`moods` has no held-out file: labels that agree with each other perfectly do not make it live."""
    daemon.label(tinymodels.orders(90, 5, {"red": "cross", "blue": "calm"}), task="moods")
    received = daemon.event(
        "task_promoted", "task_rejected", "task_awaiting_approval", "finetune_skipped", timeout_s=SLOW_S
    )
    assert received["type"] == "task_awaiting_approval", received
    assert received["data"]["reason"].startswith("inconclusive: no held-out file")
    assert received["data"]["validation"] >= 0.9
    version = received["data"]["version"]
    daemon.request("promote", task="moods", version=version)
    promoted = daemon.event("task_promoted", timeout_s=90)["data"]
    assert (promoted["version"], promoted["by"]) == (version, "request")
    daemon.client.publish(f"{labelling.BASE}/in/orders", b"is the red please", 1)
    answer = daemon.wait("task/moods", lambda body: body["version"] == version, timeout_s=90)
    assert answer["value"] == "cross"
