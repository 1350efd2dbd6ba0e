"""From run folders to files: a stored pair of runs gives exactly the stored comparison and report."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from lora_eval.compare import compare_loaded, compare_runs, load_stored, write_comparison
from lora_eval.errors import InputError
from lora_eval.records import Comparison, EvalSuite, LoadedRun
from lora_eval.runstore import read_run, write_run
from lora_eval.schema import read_record
from tests.simulated import make_runs, make_suite

GOLDEN = Path(__file__).parent.parent / "golden" / "compare"
OPTIONS = {
    "title": "golden",
    "controls": {"identity": {"items": 8, "differences": 0, "passed": True}, "seconds": 1.5},
    "timing": {"wall_seconds": 83.5},
}


def golden_runs():
    return {name: GOLDEN / "runs" / name for name in ("base", "adapter")}


def assert_same(found, expected, place="comparison"):
    """Equal JSON, floats to 1e-12."""
    if isinstance(expected, float) and isinstance(found, float):
        assert math.isclose(found, expected, rel_tol=1e-12, abs_tol=1e-12), place
    elif isinstance(expected, dict):
        assert list(found) == list(expected), place
        for key, value in expected.items():
            assert_same(found[key], value, f"{place}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for i, value in enumerate(expected):
            assert_same(found[i], value, f"{place}[{i}]")
    else:
        assert found == expected, place


def test_stored_runs_give_the_stored_comparison(tmp_path):
    suite = read_record(GOLDEN / "suite.yaml", EvalSuite)
    comparison = compare_runs(golden_runs(), suite=suite, **OPTIONS)
    write_comparison(comparison, {name: read_run(path) for name, path in golden_runs().items()}, tmp_path)
    found = json.loads((tmp_path / "comparison.json").read_text("utf-8"))
    assert_same(found, json.loads((GOLDEN / "comparison.json").read_text("utf-8")))
    assert (tmp_path / "report.md").read_text("utf-8") == (GOLDEN / "report.md").read_text("utf-8")


def test_the_record_keeps_the_contracts_keys():
    stored = json.loads((GOLDEN / "comparison.json").read_text("utf-8"))
    assert stored["schema"] == 1
    assert {"arms", "suite", "tasks", "controls", "gate", "timing"} <= set(stored)
    assert {"name", "kind", "fingerprint", "path"} <= set(stored["arms"][0])
    task = stored["tasks"][0]
    assert {"task", "metric", "filter", "higher_is_better", "n", "means", "pairs"} <= set(task)
    promised = "a b difference ci_low ci_high level p_value p_adjusted method wins losses ties mde verdict"
    assert set(promised.split()) <= set(task["pairs"][0])


@pytest.fixture
def stored(tmp_path):
    runs = make_runs(n=30, arms=("base", "adapter"))
    for name, run in runs.items():
        write_run(tmp_path / "runs" / name, run.run, run.rows)
    write_comparison(compare_loaded(runs, suite=make_suite()), runs, tmp_path)
    return tmp_path


def test_runs_in_memory_and_on_disk_give_the_same(stored):
    runs = {name: stored / "runs" / name for name in ("base", "adapter")}
    assert compare_runs(runs, suite=make_suite()) == read_record(stored / "comparison.json", Comparison)


def test_report_is_made_again_from_records(stored, run_cli):
    before = {name: (stored / name).read_bytes() for name in ("report.md", "report.html")}
    for name in before:
        (stored / name).unlink()
    done = run_cli("report", stored)
    assert done.status == 0
    assert "adapter is better than base" in done.stdout
    assert {name: (stored / name).read_bytes() for name in before} == before


def test_report_json_is_the_record(stored, run_cli):
    done = run_cli("report", stored, "--json")
    assert done.stdout == (stored / "comparison.json").read_text("utf-8")
    assert "report.html" in done.stderr


def test_report_quiet_is_one_sentence(stored, run_cli):
    assert run_cli("report", stored, "-q").stdout.count("\n") == 1


def test_report_needs_no_model_library(stored, run_python):
    code = (
        "import sys; from lora_eval.cli.main import run; status = run(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'lm_eval', 'matplotlib', 'datasets'} & set(sys.modules);"
        "sys.exit(f'{status} {heavy}' if status or heavy else 0)"
    )
    done = run_python("-c", code, "report", str(stored))
    assert done.status == 0, done.stderr


def test_folder_without_comparison_is_bad_input(tmp_path, run_cli):
    done = run_cli("report", tmp_path)
    assert done.status == 2
    assert "no comparison.json" in done.stderr


def test_missing_run_of_an_arm_is_bad_input(stored, run_cli):
    (stored / "runs" / "adapter" / "run.json").unlink()
    done = run_cli("report", stored)
    assert done.status == 2
    assert "adapter" in done.stderr


def test_verifications_below_the_folder_are_found(stored):
    assert load_stored(stored).verifications == ()


def test_nothing_is_written_where_a_run_is_missing(tmp_path):
    runs = make_runs(n=4, arms=("base", "adapter"))
    comparison = compare_loaded(runs)
    with pytest.raises(InputError, match="adapter"):
        write_comparison(comparison, {"base": LoadedRun(runs["base"].run)}, tmp_path)
    assert list(tmp_path.iterdir()) == []
