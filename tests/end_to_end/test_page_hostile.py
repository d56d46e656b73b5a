"""The page with names and texts of any kind and length, an agent that decides rarely, and cards that keep their form."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from end_to_end.browser import CHROMIUM, chromium, page_process, until
from playwright.sync_api import Page, expect

from fakes import Mosquitto
from runtime.mqtt.topics import encode

pytestmark = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="chromium is missing: apt-get install chromium")

TURNED = "\u202e% 05 ton si siht"
WORDS = [
    '<img src=x onerror="window.taken=1">',
    TURNED,
    "שלום עולם",
    "👩\u200d👩\u200d👧" * 20,
    "W" * 240,
    '"><script>taken=1</script>',
]


class Publisher:
    """An agent that sends only what the test writes."""

    def __init__(self, port: int) -> None:
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()

    def publish(self, topic: str, body: dict[str, Any]) -> None:
        """Publish below the agent's own topic, and wait for the broker."""
        self.client.publish(f"reflexd/demo/{topic}", encode(body), 1, topic in {"info", "status"}).wait_for_publish(30)

    def decide(self, age_s: float, value: object = "a") -> None:
        """Publish a decision that was made `age_s` seconds ago."""
        body = {
            "id": f"d{time.time()}",
            "stamp": time.time() - age_s,
            "policy": "000001-00000000",
            "mode": "shadow",
            "latency_ms": 2.0,
        }
        actions = {"head": {"value": value, "probability": 0.5, "probabilities": dict.fromkeys(WORDS, 0.5)}}
        self.publish("decision", {**body, "value": 0.5, "actions": actions, "ages_ms": {}, "missing": []})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, Publisher]]:
    folder = tmp_path_factory.mktemp("page")
    broker = Mosquitto(folder).start()
    with page_process(folder, broker.url) as (address, token), chromium() as browser:
        agent = Publisher(broker.port)
        agent.publish("status", {"state": "online", "reasons": []})
        page = browser.new_page()
        page.goto(f"{address}/login#token={token}")
        yield page, agent
        page.context.close()
        agent.client.loop_stop()
    broker.stop()


def info(agent: Publisher, rate_hz: float, name: str, choices: list[str]) -> None:
    streams = {name: {"kind": "telemetry", "source": "topic", "fields": ["f" * 200]}}
    actuators = {"head": {"kind": "choice", "choices": choices, "safe": choices[0]}}
    tasks = {"t": {"kind": "text-classification", "stream": name, "labels": choices}}
    body = {"version": "0.1.0", "rate_hz": rate_hz, "mode": "shadow", "streams": streams, "actuators": actuators}
    agent.publish("info", {**body, "tasks": tasks})


def test_no_name_or_text_makes_the_page_wider_or_is_read_as_markup(world: tuple[Page, Publisher]) -> None:
    page, agent = world
    info(agent, 10.0, "s" * 64, WORDS)
    for number, words in enumerate(WORDS):
        agent.publish(
            "event",
            {"type": "label_requested", "data": {"id": f"q{number}", "task": "t", "options": WORDS, "text": words}},
        )
        steps = {words[:50]: {"passed": False, "reason": words}}
        agent.publish(
            "event",
            {
                "type": "policy_rejected",
                "data": {"version": words[:200], "step": words[:50], "reason": words, "steps": steps},
            },
        )
    agent.publish(
        "health",
        {"streams": {"s" * 64: {"last_refusal": WORDS[0], "drops": {"W" * 200: 3}}}, "learner": {"state": TURNED}},
    )
    agent.decide(0.0, WORDS[4])
    expect(page.locator("#events li")).to_have_count(2 * len(WORDS))
    page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    for width in (1280, 320):
        page.set_viewport_size({"width": width, "height": 800})
        until(page, f"document.documentElement.scrollWidth <= {width}")
    assert page.evaluate("window.taken === undefined")
    assert "\u202e" not in page.locator("body").inner_text()
    expect(page.locator("#teach")).to_contain_text(TURNED.replace("\u202e", "\N{REPLACEMENT CHARACTER}"))


def test_an_agent_that_decides_rarely_is_not_taken_for_one_that_hangs(world: tuple[Page, Publisher]) -> None:
    page, agent = world
    alert = page.get_by_role("alert")
    info(agent, 0.1, "room", ["a", "b"])
    agent.decide(9.0)
    expect(alert).to_be_hidden()
    page.wait_for_timeout(250)  # the page shows five decisions a second at most
    agent.decide(30.0)
    expect(alert).to_contain_text("no decision for over 25 s")


def test_the_cards_at_the_top_are_not_drawn_as_tiles_of_the_gallery(world: tuple[Page, Publisher]) -> None:
    page, _ = world
    style = "(e) => { const s = getComputedStyle(e); return [s.display, s.borderTopWidth, s.paddingLeft]; }"
    assert page.locator("#glance .tile").first.evaluate(style) == ["block", "1px", "15px"]
