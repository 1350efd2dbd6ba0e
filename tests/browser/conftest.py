"""A headless Chromium on pages of ours: what it logs and what it asks the network for is kept.

Without Chromium the tests skip and say so; under CI=true its absence is a failure (`.ci/run` installs it).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("chromium", "chromedriver")


class Browser:
    """One page at a time; `width` and `height` are CSS pixels, as on a device of that size."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(
        self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False, media: str = ""
    ) -> None:
        """Load a page and wait until its list of items is there (where it has one)."""
        self.driver.get_log("performance")
        self.driver.get_log("browser")
        self.cdp(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.cdp("Emulation.setEmulatedMedia", {"media": media, "features": [scheme]})
        self.driver.get(path.as_uri())
        self.wait("const n = document.getElementById('shown'); return !n || !n.textContent.startsWith('Unp')")

    def cdp(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """Call Chromium's own protocol."""
        return self.driver.execute_cdp_cmd(command, arguments or {})

    def script(self, text: str, *arguments: Any) -> Any:
        """What the page's script `text` returns."""
        return self.driver.execute_script(text, *arguments)

    def wait(self, text: str) -> None:
        """Wait until the script returns something true, at most 20 seconds."""
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 20, poll_frequency=0.05).until(lambda driver: driver.execute_script(text))

    def find(self, selector: str) -> Any:
        """The first element of a CSS selector."""
        return self.driver.find_element("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        """The text of every element of a CSS selector that is shown."""
        return [node.text for node in self.driver.find_elements("css selector", selector)]

    def keys(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def log(self) -> list[str]:
        """What the console has said since the page was opened."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Every address that was asked for since the page was opened."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
        return [parameters["request"]["url"] for parameters in sent]

    def picture(self, path: Path) -> None:
        """Write a picture of the whole page."""
        import base64

        found = self.cdp("Page.captureScreenshot", {"captureBeyondViewport": True, "format": "png"})
        path.write_bytes(base64.b64decode(found["data"]))


def open_browser() -> Browser:
    """Start Chromium. It is Debian's, with the driver of the same version beside it."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    # --no-sandbox: containers run tests as root, where Chromium's sandbox does not start.
    for option in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
    ):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return Browser(Chrome(options=options, service=Service(shutil.which("chromedriver"))))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A started browser, shared by the tests of this session."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        reason = f"not installed: {', '.join(missing)} (Debian: apt-get install chromium chromium-driver)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "localhost,127.0.0.1")  # chromedriver is here, whatever the proxy
        browser = open_browser()
    yield browser
    browser.driver.quit()
