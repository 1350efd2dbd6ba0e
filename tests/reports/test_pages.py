"""Terminal, Markdown and the HTML page: complete, escaped, self-contained and small."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from rich.console import Console

from lora_eval.compare import compare_loaded
from lora_eval.records import LoadedRun
from lora_eval.reports.html import render_html
from lora_eval.reports.items import changed_items
from lora_eval.reports.markdown import render_markdown
from lora_eval.reports.plot import forest_svg
from lora_eval.reports.terminal import print_comparison
from tests.simulated import make_row, make_run, make_runs, make_suite

EVIL = '</script><script>document.title="pwned"</script><img src=x onerror=alert(1)> {{ 7*7 }} & "quoted" |'


@pytest.fixture(scope="module")
def runs():
    return make_runs()


@pytest.fixture(scope="module")
def comparison(runs):
    return compare_loaded(runs, suite=make_suite(), controls={"a_a": {"passed": True, "items": 80}})


@pytest.fixture(scope="module")
def page(comparison, runs):
    return render_html(comparison, runs)


@pytest.fixture(scope="module")
def evil():
    texts = {"target": EVIL, "output": EVIL}
    rows = [
        [make_row("t<b>", i, {"acc": float(i % 2 == k)}, prompt=f"{i} {EVIL}", **texts) for i in range(4)]
        for k in (0, 1)
    ]
    runs = {"base": make_run("base", rows[0]), f"arm {EVIL}": make_run("arm", rows[1])}
    return compare_loaded(runs, title=EVIL, notes=(EVIL,), controls={EVIL: EVIL}), runs


class Tags(HTMLParser):
    """Every tag with its attributes, and the text of each script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self._inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag == "script"
        if self._inside:
            self.scripts.append("")

    def handle_data(self, data):
        if self._inside:
            self.scripts[-1] += data

    def handle_endtag(self, tag):
        self._inside = False


def screen(comparison, width, verifications=()):
    stream = io.StringIO()
    print_comparison(comparison, Console(file=stream, width=width, no_color=True), verifications)
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_terminal_shows_every_task_within_its_width(comparison, width):
    text = screen(comparison, width)
    assert max(map(len, text.splitlines())) <= width
    assert "adapter is better than base on both targets, but worse on 2 of 6 guards." in " ".join(
        text.split()
    )
    table = text[text.index("Figures of every arm") :]
    for task in comparison.tasks:
        if task.primary:
            assert re.search(rf"^ {task.task}\b", table, re.MULTILINE)
    assert "…" not in table  # nothing is cut


def test_terminal_shows_arm_names_that_look_like_markup():
    rows = [make_row("t", i, {"acc": 1.0}) for i in range(3)]
    found = compare_loaded({"base": make_run("base", rows), "[bold]x[/bold]": make_run("x", rows)})
    assert "[bold]x[/bold]" in screen(found, 120)


def test_markdown_holds_every_line(comparison):
    text = render_markdown(comparison)
    for pair in comparison.tasks[0].pairs:
        assert f"## {pair.b} against {pair.a}" in text
    rows = [line for line in text.splitlines() if line.startswith("| reading |")]
    assert len(rows) == len(comparison.tasks[0].pairs)
    assert {line.count("|") for line in rows} == {9}
    assert "▼ worse" in text


def test_markdown_tables_survive_odd_names(evil):
    text = render_markdown(evil[0])
    body = [line for line in text.splitlines() if line.startswith("| t")]
    assert body
    assert all("<script" not in line and "<b>" not in line for line in body)


def test_page_is_one_file_without_network(page):
    found = Tags(page)
    for tag, attributes in found.tags:
        assert tag not in {"link", "iframe", "img", "object"}
        for name in ("src", "href", "action"):
            assert attributes.get(name, "#").startswith("#")
    outside = re.sub(r"http://www\.w3\.org/\S+", "", page)
    assert "http" not in outside.split('id="data"')[0]
    assert "prefers-color-scheme: dark" in page


def test_page_is_small_and_complete(page, comparison):
    assert len(page.encode()) < 5_000_000
    for task in comparison.tasks:
        assert page.count(task.task) > 3
    for arm in comparison.arms:
        assert arm.fingerprint in page
        assert arm.path in page
    for heading in ("Guards", "Controls", "Arms", "How these figures were made", "What ships: gptq"):
        assert heading in page
    assert "adapter is worse than base on reading and story." in page
    assert page.count('<svg class="forest"') == 4  # two references, points and perplexity


def test_texts_from_outside_cannot_become_markup(evil):
    page = render_html(*evil)
    found = Tags(page)
    assert [tag for tag, _ in found.tags].count("script") == 2
    assert "img" not in {tag for tag, _ in found.tags}
    data = json.loads(found.scripts[0])
    assert data["items"][0]["target"] == EVIL
    assert "{{ 7*7 }}" in data["items"][0]["prompt"]
    assert "</script><script>document" not in page


def test_changed_items_are_those_that_changed(comparison, runs):
    found = changed_items(comparison, runs)
    assert found.shown == found.total == len(found.data["items"])
    tickets = [item for item in found.data["items"] if item["name"] == "tickets"]
    rows = {
        arm: [row.metrics["exact_match"] for row in run.rows if row.task == "tickets"]
        for arm, run in runs.items()
    }
    expected = {i for i, values in enumerate(zip(*rows.values(), strict=True)) if len(set(values)) > 1}
    assert {item["id"] for item in tickets} == expected
    story = next(item for item in found.data["items"] if item["name"] == "story")
    assert 4 < story["values"][0] < 12  # the item's own perplexity, not a log-likelihood


def test_items_are_capped_and_the_cap_is_said(comparison, runs):
    whole = changed_items(comparison, runs)
    found = changed_items(comparison, runs, budget=60_000)
    assert 0 < found.shown < found.total == whole.total
    assert len(json.dumps(found.data["items"], ensure_ascii=False).encode()) <= 60_000
    assert len({item["task"] for item in found.data["items"]}) == 8  # each task has its share


def test_page_says_how_many_items_it_leaves_out(comparison, runs):
    page = render_html(comparison, runs, item_bytes=60_000)
    assert re.search(r"\d+ of \d[\d,]* changed items are shown", page)


def test_long_texts_are_cut_and_say_so():
    long = "word " * 2000
    runs = {
        arm: make_run(arm, [make_row("t", i, {"acc": k}, prompt=f"{long}{i}", output=long) for i in range(3)])
        for arm, k in (("base", 0.0), ("tuned", 1.0))
    }
    item = changed_items(compare_loaded(runs), runs).data["items"][0]
    assert item["prompt"].endswith(" 0")  # the end holds the question
    assert "characters cut" in item["prompt"]
    assert "characters cut" in item["outputs"][0]


def test_a_comparison_without_changes_makes_a_page():
    rows = [make_row("t", i, {"acc": 1.0}) for i in range(5)]
    runs = {"base": make_run("base", rows), "tuned": make_run("tuned", rows)}
    page = render_html(compare_loaded(runs), runs)
    assert "no item changed" in page
    assert "No control was recorded" in page


def test_plot_points_the_better_way(comparison):
    svg = forest_svg(comparison, "base")
    found = r"<title>adapter against base, story.*?</title>.*?<rect class=\"point\" x=\"([\d.]+)"
    story = re.search(found, svg)
    panel = svg.split("percent less perplexity")[-1]
    zero = float(re.search(r'<line class="zero" x1="([\d.]+)"', panel)[1])
    assert float(story[1]) < zero  # more perplexity lies on the side of worse
    assert forest_svg(comparison, "nobody") == ""


def test_same_input_gives_the_same_bytes(comparison, runs, page):
    shuffled = {name: LoadedRun(run.run, run.rows[::-1]) for name, run in runs.items()}
    assert render_html(comparison, shuffled) == page


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_page_works_in_a_browser(evil, tmp_path):
    """The script runs, lists the changed items, and no text from outside ran."""
    path = tmp_path / "report.html"
    path.write_text(render_html(*evil), "utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--dump-dom"]
    done = subprocess.run(["chromium", *options, path.as_uri()], capture_output=True, text=True, timeout=120)
    assert "4 items: 2 better and 2 worse" in done.stdout
    assert "<title>pwned" not in done.stdout
