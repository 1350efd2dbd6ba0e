"""Terminal, Markdown and the HTML page: complete, escaped, self-contained and small."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
import zlib
from html.parser import HTMLParser

import pytest
from rich.console import Console

from lora_eval.compare import compare_loaded
from lora_eval.records import LoadedRun
from lora_eval.reports.html import render_html
from lora_eval.reports.markdown import render_markdown
from lora_eval.reports.numbers import p_text, ratio_interval_text, ratio_text
from lora_eval.reports.plot import forest_panels
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


def test_long_names_of_arms_leave_the_tasks_room(runs):
    names = [f"qwen3-8b-support-lora-r16-seed{place}" for place in range(4)]
    many = {"base": runs["base"], **dict.fromkeys(names, runs["adapter"])}
    text = screen(compare_loaded(many, suite=make_suite()), 80)
    assert max(map(len, text.splitlines())) <= 80
    table = text[text.index("Figures of every arm") : text.index("Mean of all tasks")]
    assert re.search(r"^ tickets \(target\) ", table, re.MULTILINE)  # on one line
    for letter, name in zip("ABCDE", many, strict=True):
        assert f"{letter}  {name}" in text


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
    assert {line.count("|") for line in rows} == {12}
    assert "▼ worse" in text


def test_markdown_has_every_figure_of_the_page(comparison, page):
    """Secondary metrics, both corrections, margins as stated, ratios, and what the suite score leaves out."""
    text = render_markdown(comparison)
    sections = re.split(r"^## ", text, flags=re.MULTILINE)
    for a, b in dict.fromkeys((pair.a, pair.b) for pair in comparison.tasks[0].pairs):
        (section,) = (own for own in sections if own.startswith(f"{b} against {a}\n"))
        lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
        for line, task in zip(lines, comparison.tasks, strict=False):
            (pair,) = (pair for pair in task.pairs if (pair.a, pair.b) == (a, b))
            assert line.startswith(f"| {task.task}{'' if task.primary else f', {task.metric}'} |")
            assert f"| {p_text(pair.p_value)} | {p_text(pair.p_adjusted)} | {p_text(pair.p_bh)} |" in line
            if pair.margin:
                assert f"margin {100 * pair.margin:g}" in line and f"margin {100 * pair.margin:g}" in page
                assert (", equivalent within it" in line) is bool(pair.equivalent)
            if pair.ratio is not None:
                assert f"times {ratio_text(pair)} ({ratio_interval_text(pair)})" in line
            assert ("not judged" in line) is not task.primary
            assert line.endswith(f"| {pair.method} |")
    assert "| tickets, length |" in text
    assert "Mean of all tasks leaves out story (word_perplexity is no share from 0 to 1)." in text


def test_markdown_tables_survive_odd_names(evil):
    text = render_markdown(evil[0])
    body = [line for line in text.splitlines() if line.startswith("| t")]
    assert body
    assert all("<script" not in line and "<b>" not in line for line in body)
    odd = [[make_row("t", i, {"m|<b>": float(i + 2 * k)}) for i in range(4)] for k in (0, 1)]
    text = render_markdown(compare_loaded({"base": make_run("base", odd[0]), "b": make_run("b", odd[1])}))
    cells = [line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("| t |")]
    assert cells == [6, 12]
    assert "<b>" not in text


def test_page_is_one_file_without_network(page):
    found = Tags(page)
    for tag, attributes in found.tags:
        assert tag not in {"link", "iframe", "img", "object"}
        for name in ("src", "href", "action"):
            assert attributes.get(name, "#").startswith("#")
    assert "://" not in page
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page


def test_page_is_small_and_complete(page, comparison):
    assert len(page.encode()) < 2_000_000
    for task in comparison.tasks:
        assert page.count(task.task) > 3
    for arm in comparison.arms:
        assert arm.fingerprint in page
        assert arm.path in page
    for heading in ("Guards", "Controls", "Arms", "How these figures were made", "What ships: gptq"):
        assert heading in page
    assert "adapter is worse than base on reading and story." in page
    assert page.count('<div class="forest"') == 4  # two references, points and perplexity


def unpack(data):
    return json.loads(zlib.decompress(base64.b64decode(data)))


def test_texts_from_outside_cannot_become_markup(evil):
    page = render_html(*evil)
    found = Tags(page)
    assert [tag for tag, _ in found.tags].count("script") == 2
    assert "img" not in {tag for tag, _ in found.tags}
    data = unpack(found.scripts[0])
    assert data["target"][0] == EVIL
    assert "{{ 7*7 }}" in data["prompt"][0]
    assert "</script><script>document" not in page


def test_the_policy_lets_our_script_run_and_no_other(page):
    policy = re.search(r'content="(default-src [^"]+)"', page)[1]
    digest = base64.b64encode(hashlib.sha256(Tags(page).scripts[1].encode()).digest()).decode()
    assert f"sha256-{digest}" in html.unescape(policy)


def test_a_comparison_without_changes_makes_a_page():
    rows = [make_row("t", i, {"acc": 1.0}) for i in range(5)]
    runs = {"base": make_run("base", rows), "tuned": make_run("tuned", rows)}
    page = render_html(compare_loaded(runs), runs)
    assert "no item changed" in page
    assert "No control was recorded" in page


def test_plot_points_the_better_way(comparison):
    panels = {panel.unit: panel for panel in forest_panels(comparison, "base")}
    perplexity = panels["percent less perplexity"]
    zero = next(tick.at for tick in perplexity.ticks if tick.zero)
    story = perplexity.tasks[0].bars[0]
    assert story.high < zero  # more perplexity lies on the side of worse
    assert story.low < story.middle < story.high
    assert forest_panels(comparison, "nobody") == []


def test_same_input_gives_the_same_bytes(comparison, runs, page):
    shuffled = {name: LoadedRun(run.run, run.rows[::-1]) for name, run in runs.items()}
    assert render_html(comparison, shuffled) == page
