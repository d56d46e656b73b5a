"""Takes the README's pictures of the page from a running demo: `python tests/end_to_end/take_pictures.py ADDRESS TOKEN FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
PICTURES = (("light", 1440, 1060, "light"), ("dark", 1440, 1060, "dark"), ("phone", 390, 844, "dark"))


def take(
    browser: Browser, address: str, token: str, folder: Path, name: str, width: int, height: int, scheme: str
) -> None:
    """One picture, once there is something to see, with a decision explained."""
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(f"{address}/login#token={token}")
    page.wait_for_selector("#streams canvas[data-frames]")
    page.locator(".decisions button").nth(3).click()
    page.wait_for_selector("#explanation .shapley")
    page.mouse.move(5, 5)
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(2_000)
    page.screenshot(path=folder / f"page-{name}.png")
    context.close()


def main(address: str, token: str, folder: Path) -> None:
    """Every picture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for name, width, height, scheme in PICTURES:
            take(browser, address, token, folder, name, width, height, scheme)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
