"""Several comparisons in a row: points, bands, breaks, links; the same figures in every form."""

from __future__ import annotations

import io
import json
import os
import shutil
from html.parser import HTMLParser

import pytest
from rich.console import Console

from lora_eval.compare import compare_loaded, write_comparison
from lora_eval.reports.terminal import print_trend
from lora_eval.reports.trend import (
    Source,
    list_trends,
    list_versions,
    render_trend_html,
    render_trend_markdown,
    trend_headline,
    trend_notes,
)
from lora_eval.runstore import write_run
from tests.simulated import make_run, make_runs, make_suite


def compared(n=60, seed=7, created=None, **header):
    runs = make_runs(n=n, seed=seed, arms=("base", "adapter"))
    runs = {name: make_run(name, run.rows, **header) for name, run in runs.items()}
    return runs, compare_loaded(runs, suite=make_suite()).model_copy(update={"created": created})


@pytest.fixture(scope="module")
def sources():
    return [
        Source(f"v{k}", f"v{k}/report.html", f"2026-11-2{k}T00:00:00+00:00", compared(seed=k)[1])
        for k in range(1, 5)
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three stored comparisons; the second was made first."""
    root = tmp_path_factory.mktemp("versions")
    days = {"v1": "2026-02-02", "v2": "2026-01-01", "v 3": "2026-03-03"}
    for place, (name, day) in enumerate(days.items()):
        runs, comparison = compared(n=20, seed=place, created=f"{day}T00:00:00+00:00")
        for arm, run in runs.items():
            write_run(root / name / "runs" / arm, run.run, run.rows)
        write_comparison(comparison, runs, root / name)
    return root


@pytest.fixture
def folders(made, tmp_path):
    root = shutil.copytree(made, tmp_path / "runs")
    return [root / name for name in ("v1", "v2", "v 3")]


class Links(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "a":
            self.found.append(dict(attrs)["href"])


def test_every_point_is_the_difference_of_its_comparison(sources):
    trends = {trend.name: trend for trend in list_trends(list_versions(sources))}
    assert set(trends) == {"tickets", "terms", "facts", "reading", "ordering", "format", "summaries", "story"}
    for name, trend in trends.items():
        for cell, source in zip(trend.cells, sources, strict=True):
            task = next(task for task in source.comparison.tasks if task.task == name and task.primary)
            assert cell.pair == task.pairs[0]
        (line,) = trend.chart.series
        gains = [cell.pair.difference * (1 if cell.task.higher_is_better else -1) for cell in trend.cells]
        heights = [dot.y for dot in line.dots]
        shapes = {"better": "triangle", "worse": "down"}
        assert [dot.marker for dot in line.dots] == [shapes.get(c.verdict, "circle") for c in trend.cells]
        assert sorted(range(4), key=heights.__getitem__) == sorted(
            range(4), key=gains.__getitem__
        )  # up is better
        assert [dot.x for dot in line.dots] == [12.5, 37.5, 62.5, 87.5]
        assert len(line.band.split()) == 8


def test_a_line_breaks_where_items_or_base_change(sources):
    other = compared(seed=9, suite_fingerprint="sha256:other")[1]
    mixed = [*sources[:2], Source("new items", "n/report.html", "", other)]
    trend = list_trends(list_versions(mixed))[0]
    assert [len(line.dots) for line in trend.chart.series] == [2, 1]
    assert trend_notes(list_versions(mixed))[1:] == ["2 to 3: not the same items; the lines break."]
    assert trend_notes(list_versions(sources))[1:] == []


def test_a_version_that_did_not_ask_a_task_is_a_gap(sources):
    runs = make_runs(n=60, arms=("base", "adapter"))
    runs = {
        name: make_run(name, [row for row in run.rows if row.task != "terms"]) for name, run in runs.items()
    }
    less = Source("less", "l/report.html", "", compare_loaded(runs, suite=make_suite()))
    trends = {trend.name: trend for trend in list_trends(list_versions([sources[0], less, sources[1]]))}
    assert [cell is None for cell in trends["terms"].cells] == [False, True, False]
    assert [len(line.dots) for line in trends["terms"].chart.series] == [1, 1]
    page = render_trend_html([sources[0], less])
    assert ">–<" in page  # noqa: RUF001


def test_several_adapters_of_one_comparison_are_versions_of_their_own():
    runs = make_runs(n=30, arms=("base", "adapter"))
    runs["second"] = make_run("second", runs["adapter"].rows)
    versions = list_versions([Source("v1", "v1/report.html", "", compare_loaded(runs))])
    assert [(version.number, version.label) for version in versions] == [
        (1, "v1: adapter"),
        (2, "v1: second"),
    ]


def test_the_words_are_those_of_the_last_comparison(sources):
    versions = list_versions(sources)
    last = [task.pairs[0].verdict for task in sources[-1].comparison.tasks if task.primary]
    text = trend_headline(versions, list_trends(versions))
    assert text.startswith("4 versions; the last one (v4) against its base: ")
    assert f"better on {last.count('better')}" in text
    assert text.endswith("of 8 tasks.")


def test_markdown_and_page_hold_every_figure(sources):
    page, text = render_trend_html(sources), render_trend_markdown(sources)
    for trend in list_trends(list_versions(sources)):
        row = next(line for line in text.splitlines() if line.startswith(f"| {trend.name} "))
        assert row.count("|") == 7
        for cell in trend.cells:
            assert f"{cell.text} ({cell.interval})" in row
            assert cell.interval in page
    links = Links(page).found
    assert links.count("v2/report.html") == 1 + 8  # the list of versions, and a point of each task
    assert "<script" not in page
    assert "://" not in page


@pytest.mark.parametrize("width", [80, 140])
def test_the_terminal_keeps_its_width_and_the_last_versions(sources, width):
    many = [Source(f"version-{k}", "r", "2026-01-01", sources[k % 4].comparison) for k in range(12)]
    stream = io.StringIO()
    print_trend(list_versions(many), Console(file=stream, width=width, no_color=True))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert any(line.startswith("12. version-11") for line in lines)
    assert ("7 earlier left out" in stream.getvalue()) is (width == 80)


def test_the_command_writes_reports_and_trend_in_the_given_order(run_cli, folders):
    for folder in folders:
        (folder / "report.html").unlink()
    result = run_cli("report", *folders)
    assert result.status == 0, result
    parent = folders[0].parent
    assert all((folder / "report.html").is_file() for folder in folders)
    text = (parent / "trend.md").read_text("utf-8")
    rows = [line.split("|")[2].strip() for line in text.splitlines() if line[:3] in ("| 1", "| 2", "| 3")]
    assert rows == ["[v1](v1/report.html)", "[v2](v2/report.html)", "[v 3](v%203/report.html)"]
    assert "Difference from the base" in result.stdout
    for link in set(Links((parent / "trend.html").read_text("utf-8")).found):
        assert link.startswith("#") or (parent / link.replace("%20", " ")).is_file()


def test_by_time_elsewhere_and_as_json(run_cli, folders, tmp_path):
    out = tmp_path / "elsewhere"
    result = run_cli("report", *folders, "--order", "time", "--out", out, "--json")
    assert result.status == 0, result
    found = json.loads(result.stdout)["versions"]
    assert [version["version"] for version in found] == ["v2", "v1", "v 3"]
    assert {"task", "metric", "difference", "ci_low", "verdict"} <= set(found[0]["tasks"][0])
    assert "../runs/v2/report.html" in (out / "trend.html").read_text("utf-8")
    quiet = run_cli("report", *folders, "--quiet")
    assert quiet.stdout.count("\n") == 1


def test_time_of_the_file_where_the_record_has_none(run_cli, folders):
    path = folders[0] / "comparison.json"
    path.write_text(path.read_text("utf-8").replace('"2026-02-02T00:00:00+00:00"', "null"), "utf-8")
    os.utime(path, (0, 0))
    result = run_cli("report", *folders, "--order", "time", "--json")
    assert [v["version"] for v in json.loads(result.stdout)["versions"]] == ["v1", "v2", "v 3"]


@pytest.mark.parametrize(
    ("arguments", "says"), [(["v1", "v1"], "given twice"), (["v1", "--out", "x"], "is for the trend")]
)
def test_bad_arguments(run_cli, folders, arguments, says):
    parent = folders[0].parent
    result = run_cli("report", *(parent / text if text[0] != "-" else text for text in arguments))
    assert (result.status, says in result.stderr) == (2, True)


def test_one_bad_folder_leaves_all_reports_alone(run_cli, folders, tmp_path):
    (tmp_path / "empty").mkdir()
    (folders[0] / "report.html").unlink()
    result = run_cli("report", *folders, tmp_path / "empty")
    assert result.status == 2
    assert "no comparison.json here" in result.stderr
    assert not (folders[0] / "report.html").exists()
