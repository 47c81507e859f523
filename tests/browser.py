"""A real Chromium for tests of pages: what it complained of, what it asked for, what axe finds.

    with chromium() as browser, opened(browser, url, width=390) as tab:     # a file, or a page on localhost
        tab.page.click("text=dropped")                                      # playwright's own page
        assert tab.quiet() and not faults(tab)
        tab.page.screenshot(path="phone.png", full_page=True)

Needs Debian's `chromium` (or any Chromium or Chrome on the PATH) and the packages `playwright` and `axe-playwright-python`; nothing is
downloaded. A tab reaches the page's own origin alone: every other request is noted and stopped before it leaves the machine.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = """--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync
--disable-quic --disable-dev-shm-usage""".split()
PHONE, DESKTOP = 390, 1280  # widths in CSS pixels


@dataclass
class Tab:
    """A page in the browser, and what happened in it since it was opened."""

    page: Page
    errors: list[str] = field(default_factory=list)  # console errors and warnings, uncaught exceptions, failed requests
    outside: list[str] = field(default_factory=list)  # requests to anywhere but the page's own origin
    dialogs: list[str] = field(default_factory=list)  # alert, confirm, prompt

    def quiet(self) -> bool:
        """Whether nothing went wrong; shows what did."""
        assert (self.errors, self.outside, self.dialogs) == ([], [], [])
        return True


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser; one for a module of tests is enough."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        told = f"no browser: none of {', '.join(NAMES)} is on the PATH; `apt-get install chromium`"
        if "CI" in os.environ:
            raise RuntimeError(told)
        pytest.skip(told)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Browser, url: str, *, width: int = DESKTOP, height: int = 900, dark: bool = False) -> Iterator[Tab]:
    """A tab of its own (no cookies, no cache) with the page of ``url`` in it, ``width`` CSS pixels wide."""
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        has_touch=width < 600,
    )
    home = _origin(url)
    tab = Tab(context.new_page())

    def gate(route: Route) -> None:
        if _origin(route.request.url) in (home, "data:"):
            route.continue_()
        else:
            tab.outside.append(route.request.url)
            route.abort()

    context.route("**/*", gate)
    tab.page.on(
        "console",
        lambda message: tab.errors.append(message.text) if message.type in ("error", "warning") else None,
    )
    tab.page.on("pageerror", lambda error: tab.errors.append(str(error)))
    tab.page.on("requestfailed", lambda request: tab.errors.append(f"failed: {request.url}"))
    tab.page.on("dialog", lambda dialog: (tab.dialogs.append(dialog.message), dialog.dismiss()))
    context.on("page", lambda page: tab.outside.append(f"a window: {page.url}") if page != tab.page else None)
    try:
        tab.page.goto(url)
        yield tab
    finally:
        context.close()


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}" if parts.scheme in ("http", "https", "ws", "wss") else f"{parts.scheme}:"


def faults(tab: Tab) -> list[str]:
    """What axe holds for a serious or critical fault of accessibility, one line each with the element's HTML."""
    found = Axe().run(tab.page).response["violations"]
    return [
        f"{violation['id']} ({violation['impact']}): {violation['help']}: {node['html'][:200]}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


def too_wide(tab: Tab) -> int:
    """By how many CSS pixels the page is wider than the window: 0 where nobody has to scroll sideways."""
    return int(tab.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))
