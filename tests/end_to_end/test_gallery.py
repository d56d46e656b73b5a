"""A person teaches three classes by clicking: from no task to a version that is live, in Chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import tinymodels
import yaml
from canaries import VIEWER
from end_to_end.browser import (
    CHROMIUM,
    PATIENCE_MS,
    chromium,
    overheard,
    page_process,
    serious_findings,
    until,
    without_errors,
)
from end_to_end.gallery_agent import TINTS, GalleryAgent, gallery_agent
from playwright.sync_api import Page, expect

from fakes import Mosquitto

pytestmark = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="chromium is missing: apt-get install chromium")
LATE = "document.querySelector('#gallery').textContent.includes('no response')"
CLICKS = "let clicks = 0; addEventListener('click', () => { window.clicks = ++clicks; }, true);"
ENCODERS = "encoders: {v: {model: 'bundled:efficientnet-lite0'}}\n"
World = tuple[str, str, Path, GalleryAgent]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    broker = Mosquitto(tmp_path).start()
    streams = "{front: {kind: camera, source: topic, encoder: v}}"
    model = str(tinymodels.efficientnet(tmp_path / "model"))
    try:
        with page_process(tmp_path, broker.url, ENCODERS, streams) as (
            address,
            token,
        ):
            settings = tmp_path / "page.yaml"
            with gallery_agent(broker.url, settings, tmp_path / "state", model) as agent:
                expect.set_options(timeout=120_000)
                yield address, token, settings, agent
    finally:
        expect.set_options(timeout=PATIENCE_MS)
        broker.stop()


def until_tiles(page: Page, count: int) -> None:
    """Wait for a number of tiles; look again where a busy machine answered too late."""
    until(page, f"document.querySelectorAll('#gallery .tile[aria-pressed]').length === {count} || {LATE}", 120.0)
    if page.locator("#gallery .tile[aria-pressed]").count() != count:
        page.get_by_role("button", name="Refresh").click()
        until(page, f"document.querySelectorAll('#gallery .tile[aria-pressed]').length === {count}", 120.0)


def label_by_colour(page: Page, name: str) -> None:
    """Select the twelve tiles of one class, which come first, with two clicks, and name it."""
    tiles = page.locator("#gallery .tile[aria-pressed]")
    tiles.nth(0).click()
    tiles.nth(11).click(modifiers=["Shift"])
    page.get_by_label("Class", exact=True).fill(name)
    page.get_by_role("button", name="Label", exact=True).click()
    expect(page.locator("#toasts")).to_contain_text(f"9 labelled {name}, 3 held out for evaluation")


def test_three_classes_are_labelled_on_the_page_and_go_live(world: World) -> None:
    world[3].see([tint for tint in TINTS for _ in range(12)])
    with chromium() as browser:
        with without_errors(browser.new_context(bypass_csp=True).new_page()) as page:
            teach(page, world)
        viewer_changes_nothing(browser.new_page(), world)


def teach(page: Page, world: World) -> None:
    """Create the task, label, train, see the figures, correct and remove."""
    address, token, settings, _ = world
    overheard(page).set_default_timeout(60_000)
    page.add_init_script(CLICKS)
    page.goto(f"{address}/login#token={token}")
    page.get_by_text("Teach by clicking").click()
    page.get_by_text("New task").click()
    page.get_by_label("Name", exact=True).fill("parts")
    page.get_by_role("button", name="Create task").click()
    page.get_by_role("dialog").get_by_role("button", name="Create").click()
    expect(page.locator("#toasts")).to_contain_text("The task parts is created")
    assert yaml.safe_load(settings.read_text())["tasks"]["parts"]["kind"] == "image-classification"
    until_tiles(page, 36)
    for left, name in zip((24, 12, 0), reversed(TINTS), strict=True):  # the newest come first
        label_by_colour(page, name)
        until_tiles(page, left)
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.locator("#gallery-accuracy")).to_contain_text("held-out readings")
    reported = page.locator("#gallery-accuracy").inner_text()
    assert int(re.search(r"(\d+) % right of 9", reported)[1]) >= 90, reported  # type: ignore[index]
    assert "promoted" in reported
    expect(page.locator("#gallery tbody tr")).to_have_count(3)
    assert page.evaluate("window.clicks") <= 60
    correct_and_remove(page)
    assert serious_findings(page, "#gallery") == []


def correct_and_remove(page: Page) -> None:
    """A label with markup in its class is shown as text; who removed it is shown beside it."""
    page.get_by_text("Labels, with who and when").click()
    page.get_by_label("Your name").fill("anna")
    first = page.locator("#gallery .labels li:not(.gone)").first
    expect(first).to_contain_text("red by dashboard")
    first.get_by_role("checkbox").check()
    page.get_by_role("button", name="Remove selected").click()
    expect(page.locator("#gallery .labels .gone")).to_contain_text("removed by dashboard:anna")
    page.get_by_label("Class", exact=True).fill("<img src=x onerror=alert(1)>")
    page.locator("#gallery .tile[aria-pressed]").first.click()
    page.get_by_role("button", name="Label", exact=True).click()
    expect(page.locator("#gallery .labels li strong").first).to_have_text("<img src=x onerror=alert(1)>")


def viewer_changes_nothing(page: Page, world: World) -> None:
    """A viewer sees readings and labels; each command that changes one is refused."""
    page.goto(f"{world[0]}/login#token={VIEWER}")
    page.get_by_text("Teach by clicking").click()
    expect(page.get_by_role("button", name="Train", exact=True)).to_be_hidden()
    for body in (
        '{do: "label_readings", task: "parts", label: "x", readings: ["1-1"]}',
        '{do: "correct_labels", task: "parts", labels: [1]}',
        '{do: "edit_task", what: "create", task: "x", stream: "front"}',
        '{do: "request", verb: "finetune", data: {task: "parts"}}',
    ):
        answer = page.evaluate(
            f"async () => (await import('/static/socket.js')).command({body}).catch((e) => e.message)"
        )
        assert "viewer may look only" in answer
