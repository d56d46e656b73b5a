"""A person in front of the page of the running demo: the whole daemon, its world, its broker; the device is watched beside it."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from canaries import VIEWER
from end_to_end.browser import CHROMIUM, chromium, overheard, serious_findings, until, without_errors
from end_to_end.demo import INTENTS, Demo, running_demo
from paho.mqtt.enums import CallbackAPIVersion
from playwright.sync_api import Browser, Locator, Page, expect

from fakes import Contention, connect_when_up, wait_for
from learners.experience.reader import Reader

pytestmark = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="chromium is missing: apt-get install chromium")
PATIENCE_MS = 120_000
WHEN_PRESSED = """document.getElementById("stop").addEventListener("click",
    () => { document.body.dataset.pressed = Date.now(); }, { capture: true, once: true })"""
"""The moment of a press is the browser's, not that of the command to press: the driver waits for the button to hold still first."""
STEERING: list[dict[str, Any]] = [
    {"do": "stop", "engaged": True},
    {"do": "override", "actuator": "head", "value": "left"},
    {"do": "reward", "value": 1},
    {"do": "label", "task": "intents", "label": "find", "text": "find it"},
    {"do": "text", "stream": "orders", "text": "find it"},
    *(
        {"do": "request", "verb": verb, "data": {}}
        for verb in ("arm", "disarm", "mode", "promote", "rollback", "reload", "record", "finetune")
    ),
]
"""Everything a browser may command but to look."""


@dataclass
class Device:
    """What the head does, as its own reports say, with the time of each."""

    reported: list[tuple[float, str]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        body: dict[str, Any] = json.loads(message.payload)
        with self.changed:
            self.reported.append((time.time(), str(body["value"])))
            self.changed.notify_all()

    def comes_to(self, value: str, since_s: float) -> float:
        """Seconds from `since_s` to the first report after it that says so."""

        def after() -> list[float]:
            return [s - since_s for s, reported in self.reported if reported == value and s >= since_s]

        with self.changed:
            assert self.changed.wait_for(after, 60.0), f"the head does {self.reported[-1:]}, not {value}"
            return after()[0]

    def moves(self) -> None:
        """Wait for three more reports: it is not stopped."""
        with self.changed:
            wanted = len(self.reported) + 3
            assert self.changed.wait_for(lambda: len(self.reported) >= wanted, 60.0), "the head reports nothing more"


@contextmanager
def watched(demo: Demo) -> Iterator[Device]:
    """The device's reports, straight from the broker."""
    device = Device()
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
    client.on_connect = lambda c, *_: c.subscribe("reflexd/demo/act/head/state", 1)
    client.on_message = device.take
    connect_when_up(client, demo.port, 60.0)
    client.loop_start()
    try:
        yield device
    finally:
        client.disconnect()
        client.loop_stop()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    changes: dict[str, Any] = {
        "plant": {"simulated_overrides": False},
        "learner": {"promote_every_s": 5, "priority": "normal"},
        "promotion": {"steps": ["integrity", "latency"], "experiments": False},
        "dashboard": {"viewer_token": VIEWER},
        "tasks": {"intents": INTENTS},
    }
    with running_demo(tmp_path_factory.mktemp("demo"), **changes) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def open_page(browser: Browser, demo: Demo, token: str, **context: Any) -> Page:
    page = browser.new_context(**{"viewport": {"width": 1440, "height": 1000}, **context}).new_page()
    overheard(page)
    page.set_default_timeout(PATIENCE_MS)
    page.goto(f"{demo.address}/login#token={token}")
    page.wait_for_selector("#streams canvas[data-frames]")
    return page


@pytest.fixture
def page(browser: Browser, demo: Demo) -> Iterator[Page]:
    with without_errors(open_page(browser, demo, demo.token)) as opened:
        yield opened


def patiently(page: Page, expression: str) -> None:
    until(page, expression, PATIENCE_MS / 1_000)


def confirm(page: Page, name: str) -> None:
    page.get_by_role("dialog").get_by_role("button", name=name, exact=True).click()


def test_a_person_logs_in_with_the_token_by_hand(browser: Browser, demo: Demo) -> None:
    page = overheard(browser.new_context().new_page())
    page.goto(demo.address)
    expect(page).to_have_url(f"{demo.address}/login")
    page.get_by_label("Token").fill("not the token at all")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("wrong token")
    page.get_by_label("Token").fill(demo.token)
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Software stop")).to_be_visible(timeout=PATIENCE_MS)
    page.context.close()


def test_frames_change_and_the_reward_curve_grows(page: Page) -> None:
    pixels = "document.querySelector('#streams canvas').toDataURL()"
    first = page.evaluate(pixels)
    patiently(page, f"{pixels} !== {json.dumps(first)}")
    points = "document.querySelectorAll('#learn .chart polyline')[0]?.getAttribute('points').split(' ').length ?? 0"
    before = page.evaluate(points)
    patiently(page, f"({points}) > {max(before, 1)}")
    expect(page.locator("#pill")).to_contain_text("online · armed", timeout=PATIENCE_MS)


def test_stop_release_arm_and_taking_over_reach_the_device(page: Page, demo: Demo) -> None:
    head = page.locator("[data-actuator=head]")
    with watched(demo) as device:
        expect(page.locator("#pill")).to_contain_text("online · armed", timeout=PATIENCE_MS)
        page.evaluate(WHEN_PRESSED)
        contention = Contention()
        page.get_by_role("button", name="Software stop").click()
        pressed_s = page.evaluate("Number(document.body.dataset.pressed)") / 1_000
        assert device.comes_to("stay", pressed_s) < 1.0 + contention.s
        expect(page.get_by_role("alert")).to_contain_text("The software stop is engaged")
        page.get_by_role("button", name="Release stop").click()
        confirm(page, "Release")
        expect(page.locator("#pill")).to_contain_text("not armed")
        assert {reported for at_s, reported in device.reported if at_s > pressed_s + 1.0 + contention.s} <= {"stay"}
        page.get_by_role("button", name="Arm", exact=True).click()
        expect(page.locator("#pill")).to_contain_text("online · armed")
        head.get_by_text("Take over by hand").click()
        head.get_by_label("How long to hold head").select_option("10")
        for turn in ("left", "right"):
            pressed_s = time.time()
            take_over(head, turn)
            device.comes_to(turn, pressed_s)


def take_over(head: Locator, turn: str) -> None:
    """Press until the hold shows: on a busy machine the agent may be silent for a moment, which disarms and ends every hold."""
    held = head.get_by_text(f"Held at {turn} by a person")
    for _ in range(8):
        head.get_by_role("button", name=turn).click()
        with suppress(AssertionError):
            expect(held).to_be_visible(timeout=8_000)
            return
    expect(held).to_be_visible()


def test_a_question_it_asks_is_answered(page: Page, demo: Demo) -> None:
    question = page.locator("#teach .question").first
    question.get_by_role("button", name="find").click()
    expect(page.locator("#toasts")).to_contain_text("Answered: find")
    with Reader(demo.folder / "state" / "experience") as reader:
        wait_for(lambda: [x.label for x in reader.labels("intents")] == ["find"], "the answer among the labels", 60.0)


def test_the_mode_is_changed_and_nothing_moves_in_shadow(page: Page, demo: Demo) -> None:
    with watched(demo) as device:
        page.get_by_role("radio", name="Shadow").click()
        expect(page.locator("#glance")).to_contain_text("shadow: the policy may not act")
        page.get_by_role("radio", name="Autonomous").click()
        confirm(page, "Switch")
        expect(page.get_by_role("radio", name="Autonomous")).to_be_checked()
        expect(page.locator("#glance")).not_to_contain_text("the policy may not act")
        device.moves()


def test_versions_are_promoted_and_rolled_back(page: Page) -> None:
    patiently(page, "document.querySelectorAll('#learn tr').length > 2")
    page.locator("#learn").get_by_role("button", name="Promote ").last.click()
    # the learner promotes others meanwhile, so the dialog alone says which version was meant
    asked = re.search(r"Promote no\. (\d+)", page.get_by_role("dialog").inner_text())
    assert asked is not None
    confirm(page, "Promote")
    made = re.compile(rf"A person made policy 0*{asked[1]}-\w+ live")
    expect(page.locator("#events")).to_contain_text(made, timeout=PATIENCE_MS)
    expect(page.locator("#toasts")).to_contain_text(f"no. {asked[1]} promoted", timeout=PATIENCE_MS)
    page.get_by_role("button", name="Roll back").click()
    confirm(page, "Roll back")
    back = re.compile(r"A person rolled policy \S+ back to")
    expect(page.locator("#events")).to_contain_text(back, timeout=PATIENCE_MS)


def test_a_decision_is_explained_with_bars(page: Page) -> None:
    page.locator(".decisions button").nth(2).click()
    bars, again = page.locator("#explanation .shapley li"), page.get_by_role("button", name="Try again")
    refusals = []
    for _ in range(10):  # a busy machine may refuse; a person then tries again
        expect(bars.first.or_(again)).to_be_visible(timeout=PATIENCE_MS)
        if not again.is_visible():
            break
        refusals.append(page.locator("#explanation .error").inner_text())
        again.click()
    assert bars.count() == 4, refusals


@pytest.mark.parametrize(("scheme", "width"), [("light", 1440), ("dark", 390)])
def test_no_serious_accessibility_finding(browser: Browser, demo: Demo, scheme: str, width: int) -> None:
    viewport = {"width": width, "height": 844}
    page = open_page(browser, demo, demo.token, color_scheme=scheme, viewport=viewport, bypass_csp=True)
    assert serious_findings(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.context.close()


def test_a_viewer_sees_and_cannot_steer(browser: Browser, demo: Demo) -> None:
    page = open_page(browser, demo, VIEWER)
    expect(page.get_by_role("button", name="Software stop")).to_be_disabled()
    with watched(demo) as device:
        for command in STEERING:
            answer = page.evaluate(
                f"""async () => (await import("/static/socket.js")).command({json.dumps(command)}).catch((e) => e.message)"""
            )
            assert "viewer may look only" in answer, command
        device.moves()
    expect(page.locator("#pill")).to_contain_text("online · armed", timeout=PATIENCE_MS)
    page.context.close()
