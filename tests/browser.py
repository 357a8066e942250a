"""A page in Chromium as a reader sees it, for tests; without Chromium they are skipped, and say how to get it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

BROWSER, DRIVER = (
    next(filter(None, map(shutil.which, names)), None)
    for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))
)
OPTIONS = """
headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update
disable-sync disable-dev-shm-usage
""".split()
needs_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER),
    reason="no Chromium with its chromedriver here: apt-get install chromium chromium-driver",
)


class Browser:
    """The page in Chromium as wide as a screen or a telephone."""

    def __init__(self, folder: Path, page: Path, width: int) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = BROWSER
        for name in (*OPTIONS, f"user-data-dir={folder}"):
            options.add_argument(f"--{name}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        self.width = width
        self.driver.get(page.as_uri())

    def script(self, text: str, *arguments: object) -> object:
        return self.driver.execute_script(text, *arguments)

    def all(self, css: str) -> list:
        return self.driver.find_elements("css selector", css)

    def check(self) -> None:
        """No sideways scrolling of the page, nothing said on the console, nothing from elsewhere."""
        assert self.script("return document.documentElement.scrollWidth") <= self.width
        assert self.driver.get_log("browser") == []
        fetched = self.script("return performance.getEntriesByType('resource').map(one => one.name)")
        assert all(name.startswith("file:") for name in fetched)
