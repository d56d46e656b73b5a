"""A person in front of the page: headless Chromium, a real mosquitto, the page's own process, an agent on the wire."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import canaries
import pytest
from canaries import VIEWER
from end_to_end.browser import (
    CHROMIUM,
    agent_process,
    chromium,
    overheard,
    page_process,
    serious_findings,
    until,
    without_errors,
)
from playwright.sync_api import Browser, Page, expect

from fakes import Contention, Mosquitto
from fakes_agent import DRIFTING

pytestmark = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="chromium is missing: apt-get install chromium")


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    started = Mosquitto(tmp_path_factory.mktemp("broker")).start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory, mosquitto: Mosquitto) -> Iterator[subprocess.Popen[bytes]]:
    with agent_process(mosquitto.url, tmp_path_factory.mktemp("agent")) as process:
        yield process


@pytest.fixture(scope="module")
def world(
    tmp_path_factory: pytest.TempPathFactory, mosquitto: Mosquitto, agent: subprocess.Popen[bytes]
) -> Iterator[tuple[str, str, Mosquitto]]:
    assert agent.poll() is None
    folder = tmp_path_factory.mktemp("page")
    with page_process(folder, mosquitto.url) as (address, token):
        FOLDERS[address] = folder
        yield address, token, mosquitto


FOLDERS: dict[str, Path] = {}
"""Folder of the page's process by its address."""


@pytest.fixture
def settings_of_the_page(world: tuple[str, str, Mosquitto]) -> Path:
    return FOLDERS[world[0]] / "page.yaml"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def open_page(browser: Browser, world: tuple[str, str, Mosquitto], token: str | None = None, **context: object) -> Page:
    page = browser.new_context(**{"viewport": {"width": 1440, "height": 1000}, **context}).new_page()
    overheard(page)
    page.set_default_timeout(15_000)
    page.goto(f"{world[0]}/login#token={token or world[1]}")
    page.wait_for_selector("#actuators article")
    return page


@pytest.fixture
def page(browser: Browser, world: tuple[str, str, Mosquitto]) -> Iterator[Page]:
    with without_errors(open_page(browser, world)) as opened:
        yield opened


def test_a_person_logs_in_by_hand_and_a_wrong_token_is_refused(
    browser: Browser, world: tuple[str, str, Mosquitto]
) -> None:
    page = browser.new_context().new_page()
    page.goto(world[0])
    expect(page).to_have_url(f"{world[0]}/login")
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("wrong token")
    page.get_by_label("Token").fill(world[1])
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Software stop")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page).to_have_url(f"{world[0]}/login")
    page.context.close()


def test_pictures_change_and_the_reward_curve_grows(page: Page) -> None:
    frames = "Number(document.querySelector('canvas').dataset.frames ?? 0)"
    until(page, f"{frames} > 2")
    pixels = "document.querySelector('canvas').toDataURL()"
    first = page.evaluate(pixels)
    until(page, f"{pixels} !== {json.dumps(first)}")
    points = "document.querySelectorAll('#learn .chart polyline')[0]?.getAttribute('points').split(' ').length ?? 0"
    before = page.evaluate(points)
    until(page, f"({points}) > {max(before, 1)}")
    expect(page.locator("#glance")).to_contain_text("Is it learning?")


def test_stop_is_in_sight_safe_within_a_second_and_release_arms_nothing(page: Page) -> None:
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    stop = page.get_by_role("button", name="Software stop")
    expect(stop).to_be_in_viewport()
    head = page.locator("[data-actuator=head]")
    pressed, contention = time.monotonic(), Contention()
    stop.click()
    expect(head).to_contain_text("by the gate (safe action)")
    expect(head.locator(".big")).to_have_text("stay")
    assert time.monotonic() - pressed < 1.0 + contention.s
    expect(page.get_by_role("alert")).to_contain_text("The software stop is engaged")
    expect(page.get_by_text("that one must be wired")).to_be_visible()
    page.get_by_role("button", name="Release stop").click()
    page.get_by_role("dialog").get_by_role("button", name="Release", exact=True).click()
    expect(page.locator("#pill")).to_contain_text("not armed")
    page.get_by_role("button", name="Arm", exact=True).click()
    expect(page.locator("#pill")).to_contain_text("online · armed")


def test_override_mode_promote_rollback_label_and_text_reach_the_agent(page: Page) -> None:
    head = page.locator("[data-actuator=head]")
    head.get_by_text("Take over by hand").click()
    head.get_by_role("button", name="left").click()
    expect(head).to_contain_text("by a person")
    page.get_by_role("radio", name="Shadow").click()
    expect(page.locator("#glance")).to_contain_text("shadow: the policy may not act")
    page.get_by_role("radio", name="Assist").click()
    page.get_by_role("dialog").get_by_role("button", name="Switch").click()
    head.get_by_role("button", name="Confirm").click()
    page.get_by_role("radio", name="Autonomous").click()
    page.get_by_role("dialog").get_by_role("button", name="Switch").click()
    page.get_by_role("button", name="Promote 000008-5be2f410").click()
    page.get_by_role("dialog").get_by_role("button", name="Promote").click()
    expect(page.locator("#events")).to_contain_text("Policy 000008-5be2f410 is live.")
    expect(page.locator("tr.live")).to_contain_text("no. 8")
    page.get_by_role("button", name="Roll back").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    expect(page.locator("#events")).to_contain_text("A person rolled policy 000008-5be2f410 back to")
    question = page.locator("#teach .question").first
    question.get_by_role("button", name="look").click()
    expect(page.locator("#toasts")).to_contain_text("Answered: look")
    page.get_by_text("Send a text").click()
    page.get_by_label("Text", exact=True).first.fill("find the moon")
    page.keyboard.press("Enter")
    expect(page.locator("#glance")).to_contain_text("find the moon")


def test_a_decision_is_explained_with_bars_by_keyboard_alone(page: Page) -> None:
    row = page.locator(".decisions button").first
    row.focus()
    page.keyboard.press("Enter")
    bars = page.locator("#explanation .shapley li")
    expect(bars).to_have_count(4)
    expect(bars.first).to_contain_text("orders")
    expect(bars.first).to_contain_text("+0.61")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_no_serious_accessibility_finding_and_no_sideways_scrolling(
    browser: Browser, world: tuple[str, str, Mosquitto], scheme: str, width: int
) -> None:
    page = open_page(browser, world, color_scheme=scheme, viewport={"width": width, "height": 844}, bypass_csp=True)
    page.wait_for_selector("#explanation .shapley")
    assert serious_findings(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    expect(page.get_by_role("button", name="Software stop")).to_be_in_viewport()
    page.context.close()


def test_a_viewer_looks_and_cannot_steer(browser: Browser, world: tuple[str, str, Mosquitto]) -> None:
    page = open_page(browser, world, token=VIEWER)
    expect(page.get_by_role("button", name="Software stop")).to_be_disabled()
    expect(page.get_by_role("button", name="Disarm")).to_be_disabled()
    expect(page.get_by_role("button", name="Roll back")).to_be_hidden()
    answer = page.evaluate(
        """async () => (await import("/static/socket.js")).command({ do: "stop", engaged: true }).catch((e) => e.message)"""
    )
    assert "viewer may look only" in answer
    page.context.close()


def test_no_secret_is_in_anything_the_page_was_given(page: Page, world: tuple[str, str, Mosquitto]) -> None:
    sections = page.evaluate("""async () => JSON.stringify((await import("/static/socket.js")).state)""")
    assert "rtsp://cam/1" in sections
    for secret in (world[1], VIEWER, canaries.MARK):
        assert secret not in sections + page.content()


def test_a_lost_broker_is_reported_within_two_seconds_and_its_return_too(
    page: Page, world: tuple[str, str, Mosquitto]
) -> None:
    expect(page.locator("#pill")).to_contain_text("online")
    world[2].signal(signal.SIGSTOP)
    frozen, contention = time.monotonic(), Contention()
    try:
        expect(page.get_by_role("alert")).to_contain_text(re.compile("the broker does not respond|does not answer"))
        assert time.monotonic() - frozen < 2.0 + contention.s
    finally:
        world[2].signal(signal.SIGCONT)
    back, contention = time.monotonic(), Contention()
    expect(page.locator("#pill")).to_contain_text("online")
    assert time.monotonic() - back < 2.0 + contention.s


def test_the_stop_works_over_an_open_question(page: Page) -> None:
    page.get_by_role("radio", name="Shadow").click()
    expect(page.locator("#glance")).to_contain_text("shadow: the policy may not act")
    page.get_by_role("radio", name="Autonomous").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.get_by_role("button", name="Software stop").click()
    pressed, contention = time.monotonic(), Contention()
    expect(page.locator("#pill")).to_contain_text("stopped")
    assert time.monotonic() - pressed < 1.0 + contention.s
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#toasts")).to_contain_text("the gate confirmed the stop")
    page.get_by_role("button", name="Release stop").click()
    expect(page.get_by_role("dialog")).to_contain_text("Release the software stop?")
    page.get_by_role("button", name="Software stop").click()  # not released, whatever the question was
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(page.locator("#pill")).to_contain_text("stopped")


def test_a_refusal_of_the_gate_is_shown_as_one(page: Page) -> None:
    expect(page.locator("#pill")).to_contain_text("stopped")  # by the test before
    head = page.locator("[data-actuator=head]")
    head.get_by_text("Take over by hand").click()
    head.get_by_role("button", name="left").click()
    expect(head.locator(".outcome.bad")).to_contain_text("left: refused by the gate: the software stop is engaged")
    page.get_by_role("button", name="Release stop").click()
    page.get_by_role("dialog").get_by_role("button", name="Release", exact=True).click()
    expect(page.locator("#pill")).to_contain_text("not armed")
    head.get_by_role("button", name="left").click()
    expect(head.locator(".outcome.bad")).to_contain_text("left: refused by the gate: not armed")
    page.get_by_role("button", name="Arm", exact=True).click()
    page.get_by_role("radio", name="Autonomous").click()
    page.get_by_role("dialog").get_by_role("button", name="Switch").click()
    expect(page.locator("#pill")).to_contain_text("online · armed")


def test_a_hold_shows_what_is_left_of_it_and_can_be_given_back(page: Page) -> None:
    head = page.locator("[data-actuator=head]")
    head.get_by_text("Take over by hand").click()
    head.get_by_label("How long to hold head").select_option("60")
    head.get_by_role("button", name="right").click()
    expect(head.locator(".outcome.good")).to_contain_text("right: sent, held for 60 s")
    expect(head.locator(".hold")).to_contain_text(re.compile(r"Held at right by a person, (60|59|58) s left"))
    expect(head.locator(".hold")).to_contain_text(re.compile(r" 5[5-7] s left"))
    head.get_by_role("button", name="End override").click()
    expect(head.locator(".hold")).to_be_hidden()
    expect(head).to_contain_text("by policy")


def test_sliders_start_at_the_value_in_force(page: Page) -> None:
    arm = page.locator("[data-actuator=arm]")
    page.get_by_role("radio", name="Shadow").click()
    expect(page.locator("#glance")).to_contain_text("shadow: the policy may not act")
    arm.get_by_text("Take over by hand").click()
    values = arm.locator("output")
    expect(values.first).to_have_text(re.compile(r"\d"))
    assert f"{values.nth(0).inner_text()}, {values.nth(1).inner_text()}" == arm.locator(".big").inner_text()
    before = arm.locator(".big").inner_text()
    arm.get_by_role("button", name="Hold these values").click()
    expect(arm.locator(".outcome.good")).to_contain_text(f"{before}: sent")
    expect(arm.locator(".big")).to_have_text(before)


def test_the_confirm_button_is_not_replaced_while_it_is_pressed(page: Page) -> None:
    page.get_by_role("radio", name="Assist").click()
    page.get_by_role("dialog").get_by_role("button", name="Switch").click()
    head = page.locator("[data-actuator=head]")
    confirm = head.get_by_role("button", name="Confirm")
    expect(confirm).to_be_visible()
    confirm.evaluate("element => { element.dataset.mark = 'first'; element.focus(); }")
    page.wait_for_timeout(2_500)  # at least two more proposals
    assert page.evaluate("document.activeElement.dataset.mark") == "first"
    read = head.locator(".proposal span").inner_text().removeprefix("The policy proposes ")
    page.keyboard.press("Enter")
    expect(head.locator(".outcome.good")).to_contain_text(f"{read}: sent")
    page.get_by_role("radio", name="Autonomous").click()
    page.get_by_role("dialog").get_by_role("button", name="Switch").click()


def test_a_recording_is_seen_and_ended(page: Page) -> None:
    page.get_by_role("button", name="Record a session").click()
    expect(page.locator("#recording")).to_be_visible()
    page.get_by_role("button", name="End the recording").click()
    expect(page.locator("#recording")).to_be_hidden()
    expect(page.locator("#toasts")).to_contain_text("12 records")


def test_a_drift_of_the_policy_and_of_a_stream_is_named_and_accepted(
    page: Page, world: tuple[str, str, Mosquitto]
) -> None:
    drifting = ["-t", "reflexd/demo/reward", "-m", json.dumps({"value": DRIFTING})]
    subprocess.run(["mosquitto_pub", "-p", str(world[2].port), *drifting], check=True)
    expect(page.locator("#well .drift")).to_contain_text("have differed from their reference since")
    expect(page.locator("#well .drift")).to_contain_text("value higher")
    for name in ("Accept as the policy's new reference", "Accept as the new reference"):
        page.get_by_role("button", name=name).click()
        expect(page.get_by_role("button", name=name)).to_be_hidden()
    expect(page.locator("#toasts")).to_contain_text("The present figures of the policy are its new reference")


def test_reward_is_rising_only_where_its_interval_says_so(page: Page) -> None:
    found = page.evaluate(
        """async () => {
          const { trend } = await import("/static/derived.js");
          const points = (value) => Array.from({ length: 64 }, (_, i) => [i, value(i)]);
          const noise = (i) => Math.sin(i * i * 12.9898) % 1;
          return [trend(points((i) => i / 10 + noise(i))), trend(points(noise)), trend(points((i) => -i)), trend(points((i) => i).slice(0, 15))];
        }"""
    )
    rising, flat, falling, short = found
    assert 0 < rising["low"] < rising["change"] < rising["high"]
    assert flat["low"] < 0 < flat["high"]
    assert falling["high"] < 0
    assert short is None


def test_a_message_is_never_in_the_way_of_a_button(page: Page) -> None:
    page.get_by_label("Reward: Good").click()
    expect(page.locator(".toast").first).to_be_visible()
    assert page.locator("#toasts").evaluate("element => getComputedStyle(element).pointerEvents") == "none"


def test_when_the_agent_is_gone_figures_are_old_and_no_stop_is_promised(
    page: Page, agent: subprocess.Popen[bytes]
) -> None:
    expect(page.locator("#pill")).to_contain_text("online")
    agent.send_signal(signal.SIGSTOP)
    try:
        expect(page.locator("body")).to_have_class(re.compile("old"))
        expect(page.locator("#glance")).to_contain_text(re.compile(r"as of \d"))
        assert page.locator("#glance .dotmark.good").count() == 0
        page.get_by_role("button", name="Software stop").click()
        expect(page.get_by_role("alert")).to_contain_text("THE STOP WAS NOT CONFIRMED (stop: no gate received it")
    finally:
        agent.send_signal(signal.SIGCONT)


def test_each_version_shows_its_verdict_from_the_store_and_its_evidence_opens(page: Page) -> None:
    row = page.locator(".versions tr", has=page.locator("th[title='000005-77c0d9ee']"))
    expect(row.locator("> th")).to_have_text("no. 5")
    expect(row.locator(".badge")).to_have_text(
        "rejected: Off-policy evaluation"
    )  # long before this page's server started
    row.locator("summary").click()
    failed = row.locator(".evidence tr.failed")
    expect(failed.locator("> th")).to_have_text("Off-policy evaluation")
    assert failed.locator("td").all_inner_texts() == ["no", "lower -0.2", "margin 0.05"]
    expect(row).to_contain_text("inconclusive: 12 decisions")
    expect(page.locator(".promotions")).to_have_attribute("aria-label", re.compile(r"\d went live, 1 rejected"))


def test_times_have_a_date_and_a_zone(browser: Browser, world: tuple[str, str, Mosquitto]) -> None:
    page = open_page(browser, world, timezone_id="Asia/Tokyo", locale="de-DE")
    expect(page.locator("#zone")).to_have_text("Times are in Asia/Tokyo (GMT+09:00).")
    shown = page.evaluate(
        """async () => {
          const { clock, whole } = await import("/static/dom.js");
          return [clock(1750000000), whole(1750000000)];
        }"""
    )
    assert shown[0] == "16 Jun 2025 00:06:40"
    assert shown[1].endswith("16 June 2025 at 00:06:40 GMT+9")
    page.context.close()


def test_at_400_percent_zoom_the_content_has_room_and_the_stop_is_in_sight(
    browser: Browser, world: tuple[str, str, Mosquitto]
) -> None:
    page = open_page(browser, world, viewport={"width": 320, "height": 256})
    page.evaluate("scrollTo(0, 600)")
    covered = page.evaluate(
        """[...document.querySelectorAll("body *")].filter((e) => ["fixed", "sticky"].includes(getComputedStyle(e).position)
             && !e.closest(".scroll, [hidden], dialog") && e.id !== "toasts")
             .reduce((sum, e) => sum + e.getBoundingClientRect().height, 0)"""
    )
    assert covered < 80
    expect(page.locator("#stop")).to_be_in_viewport()  # an earlier test may have left it engaged: then it releases
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    page.context.close()


def test_a_label_of_an_unknown_class_is_asked_about_first(page: Page) -> None:
    page.get_by_text("Give a label").click()
    page.get_by_label("Text", exact=True).last.fill("find the moon")
    page.get_by_label("Label", exact=True).fill("fnid")
    page.get_by_role("button", name="Send label").click()
    expect(page.get_by_role("dialog")).to_contain_text("Is “fnid” a new class?")
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(page.locator("#toasts")).not_to_contain_text("Label sent")
    page.get_by_label("Label", exact=True).fill("find")
    page.get_by_role("button", name="Send label").click()
    expect(page.locator("#toasts")).to_contain_text("Label sent")


def test_the_settings_are_edited_checked_by_line_and_saved_with_the_version_before(
    page: Page, world: tuple[str, str, Mosquitto], settings_of_the_page: Path
) -> None:
    before = settings_of_the_page.read_text()
    page.get_by_text("Edit the settings").click()
    box = page.get_by_label("Settings file")
    expect(box).to_have_value(re.compile("agent: demo"))
    assert VIEWER not in box.input_value()
    assert VIEWER in before
    save = page.get_by_role("button", name="Save and reload")
    box.fill(box.input_value().replace("safe: a", "safe: c"))
    expect(page.locator("#settings .finding.bad")).to_contain_text("Line 5: actuators.head")
    expect(page.locator("#settings .gutter .bad")).to_have_text("✗5\n")
    expect(save).to_be_disabled()
    box.fill(box.input_value().replace("safe: c", "safe: b"))
    expect(page.locator("#settings-status")).to_contain_text("valid")
    save.click()
    page.get_by_role("dialog").get_by_role("button", name="Save").click()
    expect(page.locator("#toasts")).to_contain_text("Saved and reloaded")
    assert settings_of_the_page.read_text() == before.replace("safe: a", "safe: b")
    assert settings_of_the_page.with_name("page.previous.yaml").read_text() == before
    assert not list(settings_of_the_page.parent.glob(".*draft"))


def test_a_viewer_gets_no_settings(browser: Browser, world: tuple[str, str, Mosquitto]) -> None:
    page = open_page(browser, world, token=VIEWER)
    expect(page.get_by_text("Edit the settings")).to_be_hidden()
    answer = page.evaluate(
        """async () => (await import("/static/socket.js")).command({ do: "settings", what: "read" }).catch((e) => e.message)"""
    )
    assert "viewer may look only" in answer
    page.context.close()


def test_sign_in_says_where_the_token_is_on_this_machine(
    browser: Browser, world: tuple[str, str, Mosquitto], settings_of_the_page: Path
) -> None:
    page = browser.new_context().new_page()
    page.goto(f"{world[0]}/login")
    expect(page.locator("#hint")).to_contain_text(str(settings_of_the_page.parent / "state" / "token"))
    expect(page.locator("#hint")).to_contain_text("reflexd link")
    page.context.close()


def test_each_trouble_says_on_the_page_what_to_do(browser: Browser, tmp_path: Path) -> None:
    """No broker, no agent, an agent that hangs, a full disk, an older page, no permission, a daemon that is gone, a bad token."""
    broker = Mosquitto(tmp_path)
    alert = browser.new_page().get_by_role("alert")
    with page_process(tmp_path, broker.url) as (address, token):
        page = alert.page
        page.goto(f"{address}/login#token={token}")
        expect(alert).to_contain_text("no broker listens there; start it, or correct mqtt.url")
        broker.start()
        expect(alert).to_contain_text("The agent has not published anything yet: start it with `reflexd run FILE`")
        publish(broker, "status", {"state": "online", "reasons": []})
        expect(alert).to_contain_text("run `reflexd status` and read the log for the reason")
        publish(
            broker, "event", {"type": "storage_degraded", "stamp": 1.0, "data": {"reason": "No space left on device"}}
        )
        expect(page.locator("#events")).to_contain_text("Free or repair the disk")
        publish(broker, "status", {"state": "offline", "reasons": []})
        expect(alert).to_contain_text("The agent is offline: start it with `reflexd run FILE`")
        page.evaluate("import('/static/socket.js').then((socket) => { socket.send({ do: 'of an older page' }); })")
        expect(page.locator("#toasts")).to_contain_text("reload the page")
        page.goto(f"{address}/login#token={VIEWER}")
        page.wait_for_selector("body.viewer")
        assert "sign in with the operator's token" in refusal(page, {"do": "settings", "what": "read"})
        other = browser.new_page()
        other.goto(f"{address}/login")
        other.get_by_label("Token").fill("wrong")
        other.keyboard.press("Enter")
        expect(other.get_by_role("alert")).to_contain_text("`reflexd link` prints a link that signs you in")
    expect(alert).to_contain_text("start the daemon with `reflexd run FILE`")
    other.keyboard.press("Enter")
    expect(other.get_by_role("alert")).to_contain_text("start the daemon with `reflexd run FILE`")
    broker.stop()
    page.context.close()
    other.context.close()


def publish(broker: Mosquitto, topic: str, body: dict[str, object]) -> None:
    """Publish what the agent would."""
    words = ["mosquitto_pub", "-p", str(broker.port), "-q", "1", "-t", f"reflexd/demo/{topic}", "-m", json.dumps(body)]
    subprocess.run(words, check=True)


def refusal(page: Page, command: dict[str, object]) -> str:
    """Send a command from the page's own scripts; return the reason why it was refused."""
    source = "async (body) => (await import('/static/socket.js')).command(body).catch((e) => e.message)"
    return str(page.evaluate(source, command))
