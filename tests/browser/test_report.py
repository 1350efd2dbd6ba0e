"""The report in a browser: it works, by mouse and keyboard, light and dark, on paper and on a phone."""

from __future__ import annotations

import base64
import random
from pathlib import Path

import pytest

from lora_eval.compare import compare_loaded
from lora_eval.records import Gate, LoadedRun, SampleRow
from lora_eval.reports.html import render_html
from lora_eval.reports.origins import Origin
from lora_eval.stats.gate import judge_gate
from tests.browser.conftest import Browser
from tests.reports.records import make_training_log
from tests.simulated import make_row, make_run, make_runs, make_suite

EVIL = '</script><script>document.title="pwned"</script><img src=x onerror="document.title=1"> <b>'
EVIL += "\u202e \U0001d518"
RIGHT, WRONG = '{"queue": "billing", "urgency": "high"}', "not sure about the queue"
A4 = 703  # CSS pixels between margins of 12 mm
GATE = {"rules": [{"task": "terms", "min_gain": 0.05}, {"task": "reading", "max_drop": 0.01}]}


def choices(row: SampleRow) -> dict[str, object]:
    """Log-likelihoods of four choices for the task `terms`: the chosen one is the first or the second."""
    right = row.metrics["acc"] == 1.0
    output = RIGHT if right else WRONG
    return {
        "log_likelihoods": (-1.5, -9.0, -12.25, -30.0) if right else (-9.0, -1.5, -12.25, -30.0),
        "output": output,
        "choices": (
            '{"queue": "billing", "urgency": "high"}',
            "not sure about the queue",
            "a third",
            "a <b>",
        ),
    }


@pytest.fixture(scope="module")
def runs() -> dict[str, LoadedRun]:
    made = make_runs()
    for name, run in made.items():
        rows = [
            make_row(row.task, row.item_id, row.metrics, prompt=row.prompt, target=row.target, **choices(row))
            if row.task == "terms"
            else row
            for row in run.rows
        ]
        made[name] = make_run(name, rows)
    return made


@pytest.fixture(scope="module")
def report(runs: dict[str, LoadedRun], tmp_path_factory: pytest.TempPathFactory) -> Path:
    comparison = compare_loaded(
        runs, suite=make_suite(), controls={"identity": {"items": 80, "passed": True}}
    )
    gate = judge_gate(comparison, Gate.model_validate(GATE))
    path = tmp_path_factory.mktemp("page") / "report.html"
    origins = {"adapter": Origin(training=make_training_log())}
    page = render_html(comparison.model_copy(update={"gate": gate}), runs, origins=origins)
    path.write_text(page, "utf-8")
    return path


@pytest.fixture
def page(browser: Browser, report: Path) -> Browser:
    browser.open(report)
    return browser


def choose(page: Browser, name: str, text: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(page.find(f"#{name}")).select_by_visible_text(text)
    settle(page)


def search(page: Browser, text: str) -> None:
    field = page.find("#search")
    field.clear()
    field.send_keys(text)
    settle(page)


def settle(page: Browser) -> None:
    """The list is made again 80 ms after the last key."""
    page.script("window.settled = false; setTimeout(() => { window.settled = true; }, 250)")
    page.wait("return window.settled")


def shown(page: Browser) -> int:
    return int(page.find("#shown").text.split(" items")[0].replace(",", ""))


def names(page: Browser) -> list[str]:
    return page.texts("#list .item > summary b")


def active(page: Browser) -> str:
    """The text of what has the focus."""
    return page.script(
        "return document.activeElement.querySelector('b')?.textContent ?? document.activeElement.id"
    )


def changed(
    runs: dict[str, LoadedRun], a: str, b: str, task: str | None = None
) -> list[tuple[str, int, float]]:
    """Items whose score differs between two arms, perplexities left out: task, number, gain."""
    pairs = zip(runs[a].rows, runs[b].rows, strict=True)
    found = [(one.task, one.item_id, *two.metrics.values(), *one.metrics.values()) for one, two in pairs]
    gains = [(row[0], row[1], row[2] - row[2 + (len(row) - 2) // 2]) for row in found if row[0] != "story"]
    return [row for row in gains if row[2] and task in (None, row[0])]


def test_it_lists_the_changed_items(page, runs):
    found = changed(runs, "base", "adapter")
    assert shown(page) == len(found)
    better = sum(gain > 0 for *_, gain in found)
    assert f"{better} gained, {len(found) - better} lost, 0 without a change" in page.find("#shown").text
    assert len(names(page)) == 50
    page.find("#more").click()
    assert len(names(page)) == 100


def test_filters_by_arms_task_and_direction(page, runs):
    choose(page, "task", "reading")
    found = changed(runs, "base", "adapter", "reading")
    assert shown(page) == len(found)
    choose(page, "direction", "▼ lost")
    assert shown(page) == sum(gain < 0 for *_, gain in found)
    assert set(page.texts("#list .badge")) == {"▼ lost"}
    choose(page, "pair", "gptq against adapter")
    assert shown(page) == sum(gain < 0 for *_, gain in changed(runs, "adapter", "gptq", "reading"))
    choose(page, "direction", "all items")
    assert shown(page) == 200
    choose(page, "task", "story")
    choose(page, "direction", "gained or lost")
    assert "story" in names(page)[0]


def test_searches_prompts_and_outputs(page, runs):
    choose(page, "direction", "all items")
    search(page, "Item 17 of Facts")
    assert names(page) == ["facts 17"]
    search(page, "not sure about the queue")
    wrong = {
        row.item_id
        for run in runs.values()
        for row in run.rows
        if row.task == "terms" and row.output[:3] == "not"
    }
    assert shown(page) == len(wrong)
    search(page, "no such text anywhere")
    assert (shown(page), names(page)) == (0, [])


def test_sorts(page, runs):
    choose(page, "task", "summaries")
    choose(page, "sort", "largest change first")
    gains = sorted(changed(runs, "base", "adapter", "summaries"), key=lambda row: -abs(row[2]))
    assert names(page)[:10] == [f"summaries {number}" for _, number, _ in gains[:10]]
    choose(page, "sort", "as in the data")
    numbers = [int(name.split()[1]) for name in names(page)]
    assert numbers == sorted(numbers)
    choose(page, "sort", "lowest score first")
    values = [float(text.split(" → ")[1]) for text in page.texts("#list .scores")]
    assert values == sorted(values)


def test_items_without_a_score_come_last_in_every_order(browser, tmp_path):
    scores = {"base": [0.5, 0.25, 0.75, 1.0], "tuned": [None, 0.5, 0.25, None]}
    runs = {
        arm: make_run(arm, [make_row("t", i, {"f1": value}) for i, value in enumerate(own)])
        for arm, own in scores.items()
    }
    path = tmp_path / "report.html"
    path.write_text(render_html(compare_loaded(runs), runs), "utf-8")
    browser.open(path)
    choose(browser, "direction", "all items")
    for order, numbers in (("lowest score first", "2103"), ("highest score first", "1203")):
        choose(browser, "sort", order)
        assert names(browser) == [f"t {number}" for number in numbers]


def test_an_open_item_shows_both_answers_word_by_word_and_the_choices(page):
    choose(page, "task", "terms")
    choose(page, "direction", "▲ gained")
    page.find("#list .item > summary").click()
    page.wait("return document.querySelector('#list .item .body')")
    assert page.texts("#list .item .body > .wide h4")[:2] == ["Prompt", "Target"]
    assert page.texts("#list .side h4") == ["base: 0 ✗", "adapter: 1 ✓"]
    assert page.texts("#list .side pre") == [
        "not sure about the queue",
        '{"queue": "billing", "urgency": "high"}',
    ]
    assert "".join(page.texts("#list del")).split() == ["not", "sure", "about", "the"]
    assert "billing" in "".join(page.texts("#list ins"))
    assert "queue" not in "".join(page.texts("#list ins"))
    rows = [row.split() for row in page.texts("#list .choices tr")]
    assert len(rows) == 4 * 3  # the choice's name, and a bar for each arm
    assert (rows[0][0], rows[0][-1]) == ("1.", "target")
    assert (rows[6], rows[9]) == (["3.", "a", "third"], ["4.", "a", "<b>"])
    assert rows[2] == ["adapter", "◀", "−1.50", "99.9", "%"]  # noqa: RUF001
    widths = page.script(
        "return [...document.querySelectorAll('#list .bar')].map((n) => parseFloat(n.style.width))"
    )
    assert widths[0] + widths[2] + widths[4] + widths[6] == pytest.approx(100)
    assert widths[1] > 99


def test_right_and_wrong_are_marked_only_where_items_are_right_or_wrong(browser, tmp_path):
    """A rating of 1 out of 10 is not right, and neither is an error that was made (1, less is better)."""
    rows = {
        arm: [make_row("rating", i, {"score": score}) for i in range(3)]
        + [make_row("errors", i, {"error": error}) for i in range(3)]
        for arm, score, error in (("base", 1.0, 1.0), ("tuned", 7.0, 0.0))
    }
    runs = {}
    for arm, own in rows.items():
        made = make_run(arm, own)
        results = [
            result.model_copy(update={"higher_is_better": result.metric != "error"})
            for result in made.run.results
        ]
        runs[arm] = make_run(arm, own, results=tuple(results))
    path = tmp_path / "report.html"
    path.write_text(render_html(compare_loaded(runs), runs), "utf-8")
    browser.open(path)
    for task, heads in (("rating", ["base: 1", "tuned: 7"]), ("errors", ["base: 1 ✗", "tuned: 0 ✓"])):
        choose(browser, "task", task)
        browser.find("#list .item > summary").click()
        browser.wait("return document.querySelector('#list .item .body')")
        assert browser.texts("#list .side h4") == heads


def test_the_keyboard_is_enough(page):
    from selenium.webdriver.common.keys import Keys

    page.script("document.getElementById('search').focus()")
    page.keys(Keys.TAB)
    first = active(page)
    assert first == names(page)[0]
    outline = (
        "const s = getComputedStyle(document.activeElement); return s.outlineStyle + ' ' + s.outlineWidth"
    )
    assert page.script(outline) == "solid 2px"
    page.keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert active(page) == names(page)[2]
    page.keys(Keys.ENTER)
    page.wait("return document.activeElement.parentElement.open")
    assert page.texts("#list .item[open] h4")[0] == "Prompt"
    page.keys(Keys.ESCAPE)
    assert not page.script("return document.activeElement.parentElement.open")
    page.keys(Keys.ARROW_UP)
    assert active(page) == names(page)[1]
    page.keys(Keys.END, Keys.ARROW_DOWN)  # past the last one shown: more come
    assert active(page) == names(page)[50]
    page.keys(Keys.TAB)
    assert active(page) == "more"  # one stop for the whole list
    page.keys(Keys.SHIFT, Keys.TAB)


def test_nothing_is_logged_and_nothing_is_asked_for(page, report):
    for task in ("reading", "terms", "story"):
        choose(page, "task", task)
        for summary in page.driver.find_elements("css selector", "#list .item > summary")[:3]:
            summary.click()
    assert page.log() == []
    assert page.requests() == [report.as_uri()]


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable_in_both_schemes(browser, report, dark):
    """Contrast of at least 4.5 to 1 (WCAG 2.2, 1.4.3) of every text that is shown."""
    browser.open(report, dark=dark)
    browser.find("#list .item > summary").click()
    paper = browser.script("return getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(17, 21, 26)" if dark else "rgb(255, 255, 255)")
    poor = browser.script(CONTRAST)
    assert poor == []


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_no_width_scrolls_sideways(browser, report, width):
    browser.open(report, width=width)
    for task in ("tickets", "terms", "story"):  # a text, choices, a perplexity
        choose(browser, "task", task)
        browser.find("#list .item > summary").click()
        assert browser.script("return document.documentElement.scrollWidth") <= width
        narrow = "return [...document.querySelectorAll('#list .choices th')].map((n) => n.clientWidth)"
        assert all(found > 200 for found in browser.script(narrow))
    cut = browser.script(
        "return [...document.querySelectorAll('h1, h2, .finding p, .finding li, .stack td, .forest-value')]"
        ".filter((n) => n.scrollWidth > n.clientWidth + 1 && getComputedStyle(n).display !== 'inline')"
        ".map((n) => n.textContent.slice(0, 60))"
    )
    assert width > 700 or cut == []


def test_on_paper_every_table_is_open_and_nothing_is_cut(browser, report):
    browser.open(report, width=A4, dark=True, media="print")
    assert browser.script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for hidden in ("nav", "#filters", "#list", "#more"):
        assert not browser.find(hidden).is_displayed()
    tables = "[...document.querySelectorAll('#figures table')]"
    assert min(browser.script(f"return {tables}.map((n) => n.checkVisibility() && n.clientHeight)")) > 100
    assert browser.script("return document.documentElement.scrollWidth") <= A4
    browser.open(report)
    printed = browser.cdp("Page.printToPDF", {"printBackground": True})
    assert base64.b64decode(printed["data"])[:5] == b"%PDF-"


def test_texts_of_models_stay_data(browser, tmp_path):
    def rows(arm: int) -> list[SampleRow]:
        texts = {"target": EVIL, "output": f"{arm} {EVIL}"}
        return [
            make_row("t<b>", i, {"acc": float(i % 2 == arm)}, prompt=f"{i} {EVIL}", **texts) for i in range(4)
        ]

    runs = {"base": make_run("base", rows(0)), f"arm {EVIL}": make_run("arm", rows(1))}
    path = tmp_path / "report.html"
    path.write_text(
        render_html(compare_loaded(runs, title=EVIL, notes=(EVIL,), controls={EVIL: EVIL}), runs), "utf-8"
    )
    browser.open(path)
    assert browser.find("#shown").text.startswith("4 items: 2 gained, 2 lost")
    browser.find("#list .item > summary").click()
    browser.wait("return document.querySelector('#list .item .body')")
    prompt = browser.script("return document.querySelector('#list .body pre').textContent")
    assert prompt == f"0 {EVIL}"
    assert browser.script("return document.title").endswith("tasks.")
    assert browser.script("return document.querySelectorAll('img, b b').length") == 0
    assert browser.log() == []
    assert browser.requests() == [path.as_uri()]
    browser.open(path, width=390)
    assert browser.script("return document.documentElement.scrollWidth") <= 390


def test_a_shared_beginning_and_cut_texts_are_told(browser, tmp_path):
    shots = "".join(f"Question {i}: what is {i} + 1?\nAnswer: {i + 1}\n\n" for i in range(40))
    long = "word " * 2000

    def rows(arm: int) -> list[SampleRow]:
        texts = {"output": long} if arm else {}
        return [
            make_row("t", i, {"acc": float(arm)}, prompt=f"{shots}Question: {i}?", **texts) for i in range(3)
        ]

    runs = {"base": make_run("base", rows(0)), "tuned": make_run("tuned", rows(1))}
    path = tmp_path / "report.html"
    path.write_text(render_html(compare_loaded(runs), runs), "utf-8")
    browser.open(path)
    assert "Texts of 3 items are cut, and say so" in browser.find("#items .lead").text
    browser.find("#list .item > summary").click()
    browser.wait("return document.querySelector('#list .item .body')")
    assert browser.texts("#list .body > div.wide > pre")[0] == "Question: 0?"
    assert not browser.find("#list .shared pre").is_displayed()
    browser.find("#list .shared summary").click()
    assert browser.script("return document.querySelector('#list .shared pre').textContent") == shots
    assert browser.texts("#list .side pre")[1].endswith("[… 8,000 characters cut]")


def test_a_browser_that_cannot_unpack_says_so(browser, report):
    added = browser.cdp(
        "Page.addScriptToEvaluateOnNewDocument", {"source": "delete globalThis.DecompressionStream"}
    )
    try:
        browser.open(report)
        browser.wait("return document.getElementById('shown').textContent.includes('cannot be shown')")
        assert "DecompressionStream is not defined. They are in runs/." in browser.find("#shown").text
        assert browser.find("#tasks table").is_displayed()
    finally:
        browser.cdp("Page.removeScriptToEvaluateOnNewDocument", {"identifier": added["identifier"]})


def test_the_word_difference_keeps_every_text_whole(page):
    """On seeded random pairs: the parts make up the texts, and what is marked common is the same in both."""
    generator = random.Random(5)
    words = ["a", "b", "ä", "\U0001d518", " ", "\n", "  ", ",", "(", "über", "12"]
    for _ in range(200):
        one, other = ("".join(generator.choices(words, k=generator.randrange(14))) for _ in range(2))
        first, second = page.script("return wordDiff(arguments[0], arguments[1])", one, other)
        assert "".join(text for text, _ in first) == one
        assert "".join(text for text, _ in second) == other
        common = [["".join(text.split()) for text, own in parts if not own] for parts in (first, second)]
        assert "".join(common[0]) == "".join(common[1])
    assert page.script("return wordDiff(arguments[0], arguments[0])", "a b c") == [[["a b c", False]]] * 2
    assert page.script("return wordDiff('x '.repeat(3000), 'y '.repeat(3000))") is None


CONTRAST = """
const rgb = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
  .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (node) => {
  for (let n = node; n; n = n.parentElement) {
    const colour = rgb(getComputedStyle(n).backgroundColor);
    if (colour.length === 3 || colour[3] > 0) return colour;
  }
  return [255, 255, 255];
};
const poor = new Set();
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || !node.getClientRects().length) continue;
  if (node.closest('script, style, option, .unseen, .skip')) continue;
  const style = getComputedStyle(node);
  const [a, b] = [light(rgb(style.color)), light(behind(node))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) poor.add(`${node.tagName}.${node.className} ${ratio.toFixed(2)} ${style.color}`);
}
return [...poor];
"""
