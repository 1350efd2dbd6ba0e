"""Where weights come from: read beside them or beside the run, kept with the run, told in the reports."""

from __future__ import annotations

import shutil

import pytest

from lora_eval.compare import compare_loaded, load_stored, write_comparison
from lora_eval.errors import RecordError
from lora_eval.records import Lineage, Step, Variant
from lora_eval.reports.html import render_html
from lora_eval.reports.lines import loss_chart
from lora_eval.reports.markdown import render_markdown
from lora_eval.reports.origins import Origin, keep_origins, read_origins
from lora_eval.reports.provenance import costs, settings, steps, trainings
from lora_eval.runstore import write_run
from lora_eval.schema import write_record
from tests.reports.records import make_training_log
from tests.simulated import make_run, make_runs


def make_lineage():
    step = Step(tool="lora-eval train", version="0.1.0", wall_seconds=754.0)
    return Lineage(variants=(Variant(kind="adapter", path="somewhere"),), steps=(step,))


@pytest.fixture
def trained(tmp_path):
    """Two stored arms; the adapter's folder holds lineage and training log."""
    weights = tmp_path / "weights"
    write_record(weights / "lineage.json", make_lineage())
    write_record(weights / "training_log.json", make_training_log())
    runs = make_runs(n=10, arms=("base", "adapter"))
    variant = runs["adapter"].run.variant.model_copy(update={"path": str(weights)})
    runs["adapter"] = make_run("adapter", runs["adapter"].rows, variant=variant)
    for name, run in runs.items():
        write_run(tmp_path / "out" / "runs" / name, run.run, run.rows)
    return tmp_path / "out", weights, runs, compare_loaded(runs)


def test_they_are_kept_with_the_run_and_outlive_the_weights(trained):
    out, weights, runs, comparison = trained
    write_comparison(comparison, runs, out)
    shutil.rmtree(weights)
    found = read_origins(comparison, out / "runs")
    assert found == {"adapter": Origin(make_lineage(), make_training_log())}
    assert "peak memory" in (out / "report.html").read_text("utf-8")
    assert load_stored(out).comparison == comparison


def test_what_was_kept_is_not_written_over(trained):
    out, weights, _, comparison = trained
    keep_origins(comparison, out / "runs")
    (weights / "training_log.json").unlink()
    write_record(weights / "training_log.json", make_training_log(recipe="another"))
    keep_origins(comparison, out / "runs")
    assert read_origins(comparison, out / "runs")["adapter"].training.recipe == "mine"


def test_nothing_known_is_nothing_said(tmp_path):
    runs = make_runs(n=3, arms=("base", "adapter"))
    comparison = compare_loaded(runs)
    assert read_origins(comparison, tmp_path) == {}
    assert "Training" not in render_markdown(comparison)


def test_a_broken_record_is_an_error_with_its_path(trained):
    out, weights, _, comparison = trained
    (weights / "lineage.json").write_text('{"schema": 1}', "utf-8")
    with pytest.raises(RecordError, match="variants"):
        read_origins(comparison, out / "runs")


def test_training_in_words():
    (training,) = trainings(
        {"a": Origin(training=make_training_log()), "b": Origin(training=make_training_log())}
    )
    facts = dict(training.facts)
    assert (facts["time"], facts["peak memory"], facts["steps"]) == (
        "12 min 34 s",
        "9.4 GiB",
        "200 (1.50 epochs)",
    )
    assert facts["saved adapter against the live one"] == "equal in every logit of 181 tokens"
    assert dict(training.data)["training rows"] == "988 used of 1,000 read"
    assert training.problems == (
        "3 training rows have no answer of an assistant and were left out.",
        "2 training rows have no trained token within max_length and were left out.",
        "7 training rows are longer than max_length and were cut.",
        "5 training rows lost the end of an answer by that.",
        "4 trained answers in training rows do not end in a stop token.",
        "resumed once",
    )
    assert steps({"a": Origin(lineage=make_lineage())}) == [("a", "lora-eval train 0.1.0 (12 min 34 s)")]


def test_speed_and_memory_in_words():
    runs = make_runs(n=5, arms=("base", "adapter"))
    comparison = compare_loaded(
        runs, timing={"wall_seconds": 83.4, "peak_memory_gib": 1.72, "control_seconds": 2}
    )
    spent = comparison.timing["arms"]["base"]
    spent |= {"wall_seconds": 4.0, "requested_tokens": 90_000, "forwarded_tokens": 30_000, "ratio": 3.0}
    first = costs(comparison)[0]
    assert (first.seconds, first.asked, first.computed) == ("4.0 s", "90,000", "30,000")
    assert (first.rate, first.saved) == ("7,500", "3.00")
    told = dict(settings(comparison, runs))
    assert (told["time, all"], told["time, control"], told["peak memory"]) == (
        "1 min 23 s",
        "2.0 s",
        "1.7 GiB",
    )
    assert told["seeds"] == "task 1234"
    assert told["engine"] == "transformers, float32"
    assert told["packages"] == "lm_eval 0.4.13, transformers 5.23.0"


def test_the_curve_goes_down_where_the_loss_does():
    chart = loss_chart(make_training_log())
    train, held = chart.series
    assert [dot.y for dot in train.dots] == sorted((dot.y for dot in train.dots), reverse=True)
    assert (train.dots[-1].x, len(train.dots), len(held.dots)) == (100.0, 20, 2)
    assert held.dashed
    assert "loss 2.000" in train.dots[0].tooltip
    assert all(0 <= dot.y <= 100 for dot in (*train.dots, *held.dots))
    assert loss_chart(make_training_log(curve=())) is None


def test_reports_tell_the_training():
    runs = make_runs(n=5, arms=("base", "adapter"))
    comparison = compare_loaded(runs)
    origins = {"adapter": Origin(make_lineage(), make_training_log())}
    page = render_html(comparison, runs, origins=origins)
    text = render_markdown(comparison, origins=origins, runs=runs)
    for told in ("9.4 GiB", "do not end in a stop token", "lora-eval train 0.1.0"):
        assert told in page
        assert told in text
