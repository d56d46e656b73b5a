"""Takes the README's pictures of the page: starts the demo, lets it learn for a while, looks. `python tests/end_to_end/take_pictures.py FOLDER [MINUTES]`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, expect

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
from end_to_end.browser import chromium  # noqa: E402 - after the path
from end_to_end.demo import INTENTS, Demo, running_demo  # noqa: E402 - after the path

PICTURES = (
    ("light", 1440, 1060, "light", False),
    ("dark", 1440, 1060, "dark", False),
    ("phone", 390, 844, "dark", False),
)
WHOLE = (("light-whole", 1440, 1060, "light", True), ("phone-whole", 390, 844, "light", True))
"""Beyond the README's: the page from top to bottom, to be looked at."""
TRIES = 20


def visit(browser: Browser, demo: Demo, width: int, height: int, scheme: str) -> Page:
    """A page that shows something."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(f"{demo.address}/login#token={demo.token}")
    page.wait_for_selector("#streams canvas[data-frames]")
    return page


def explain(page: Page) -> None:
    """Choose a decision that saw and heard everything, and wait for its bars; one that nothing went before has none."""
    bars = page.locator("#explanation .shapley")
    whole = page.locator(".decisions li:not(:has(.badge)) button")
    for _ in range(TRIES):
        page.mouse.move(5, 5)
        page.evaluate("document.activeElement.blur()")
        page.wait_for_timeout(3_000)
        if whole.count() < 2:
            continue
        whole.nth(1).click()
        page.wait_for_timeout(3_000)
        if bars.count():
            break
    else:
        raise RuntimeError(page.locator("#explanation").inner_text())
    page.mouse.move(5, 5)
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    expect(page.locator("#pill")).to_contain_text("online · armed", timeout=60_000)


def main(folder: Path, minutes: float, *, whole: bool) -> None:
    """Every picture."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        running_demo(Path(scratch), tasks={"intents": {**INTENTS, "query_confidence": 0.5}}) as demo,
        chromium() as browser,
    ):
        first = visit(browser, demo, 800, 600, "light")
        first.wait_for_timeout(minutes * 60_000)
        first.context.close()
        for name, width, height, scheme, full in (*PICTURES, *(WHOLE if whole else ())):
            page = visit(browser, demo, width, height, scheme)
            explain(page)
            page.screenshot(path=folder / f"page-{name}.png", full_page=full)
            page.context.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 3.0, whole="--whole" in sys.argv)
