"""The trend page in a browser: every width and scheme, and points that lead to reports."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora_eval.compare import compare_loaded
from lora_eval.reports.trend import Source, render_trend_html
from tests.browser.conftest import Browser
from tests.browser.test_report import CONTRAST
from tests.simulated import make_runs, make_suite


@pytest.fixture(scope="module")
def trend(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trend")
    sources = []
    for k in range(1, 4):
        runs = make_runs(n=60, seed=k, arms=("base", "adapter"))
        (folder / f"v{k}").mkdir()
        (folder / f"v{k}" / "report.html").write_text(f"<title>report {k}</title>", "utf-8")
        comparison = compare_loaded(runs, suite=make_suite())
        sources.append(Source(f"v{k}", f"v{k}/report.html", "2026-01-01T00:00:00+00:00", comparison))
    path = folder / "trend.html"
    path.write_text(render_trend_html(sources), "utf-8")
    return path


@pytest.mark.parametrize(("width", "dark"), [(320, False), (390, True), (1280, False), (1280, True)])
def test_it_fits_and_is_readable(browser: Browser, trend: Path, width: int, dark: bool) -> None:
    browser.open(trend, width=width, dark=dark)
    assert browser.script("return document.documentElement.scrollWidth") <= width
    assert browser.script(CONTRAST) == []
    assert browser.log() == []
    assert browser.requests() == [trend.as_uri()]


def test_a_point_leads_to_its_report_by_mouse_and_keyboard(browser: Browser, trend: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.open(trend)
    points = browser.driver.find_elements("css selector", ".chart-points a")
    assert len(points) == 3 * 8
    points[1].click()
    assert browser.driver.title == "report 2"
    browser.open(trend)
    browser.script("document.querySelectorAll('.chart-points a')[2].focus()")
    assert browser.script("return document.activeElement.getAttribute('aria-label')").startswith(
        "3. v3, tickets"
    )
    browser.keys(Keys.ENTER)
    browser.wait("return document.title === 'report 3'")
