"""`judge report`: tables that fit, JSON with upstream's names, bad files told whole."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.judges.conftest import real

ALPACA = {"win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total", "discrete_win_rate"}
PREFERENCES = [
    {"instruction": f"q{i}", "output_1": "x" * 50, "output_2": "y" * (40 + i), "generator_1": "base",
     "generator_2": "a-model-with-quite-a-long-name-16-7b-instruct", "annotator": "j", "preference": 1 + i %
     2}
    for i in range(20)
]  # fmt: skip
RATINGS = [
    {
        "question_id": 81 + i,
        "turn": turn,
        "model": model,
        "judge": ["gpt-4", "p"],
        "score": 3 + (i + turn) % 7,
    }
    for model in ("base", "tuned")
    for i in range(80)
    for turn in (1, 2)
]
PAIRS = [
    {"question_id": 81 + i, "turn": 1, "model_1": one, "model_2": two, "judge": ["gpt-4", "p"],
     "g1_winner": "model_2" if i % 3 else "tie", "g2_winner": "model_2" if i % 2 else "model_1"}
    for one, two in (("base", "tuned"), ("base", "merged"), ("tuned", "merged"))
    for i in range(30)
]  # fmt: skip


@pytest.fixture
def annotations(tmp_path: Path):
    def write(rows: list[dict], name: str) -> Path:
        lines = "\n".join(json.dumps(row) for row in rows)
        content = (json.dumps(rows) if ".json" in Path(name).suffixes else lines).encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return tmp_path / name

    return write


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.jsonl", "a.jsonl.gz"])
def test_json_keeps_alpaca_evals_names(run_cli, annotations, name):
    path = annotations(PREFERENCES, name)
    result = run_cli("judge", "report", "--suite", "alpaca-eval", "--annotations", path, "--json")
    assert result.status == 0, result
    (score,) = json.loads(result.stdout)["models"].values()
    assert set(score) >= ALPACA
    assert (score["win_rate"], score["n_wins"], score["n_total"]) == (50.0, 10, 20)
    assert result.stderr == ""


def test_json_keeps_fastchats_names(run_cli, annotations):
    path = annotations(RATINGS, "gpt-4_single.jsonl")
    result = run_cli("judge", "report", "--suite", "mt-bench", "--annotations", path, "--json")
    models = json.loads(result.stdout)["models"]
    assert list(models) == ["base", "tuned"]
    assert set(models["base"]) >= {"first_turn", "second_turn", "average"}


@pytest.mark.parametrize(
    ("suite", "rows", "texts"),
    [
        ("alpaca-eval", PREFERENCES, ["win rate", "equal length"]),
        ("mt-bench", RATINGS, ["turn 1", "writ.", "tuned - base"]),
        ("mt-bench", PAIRS, ["tuned : base", "first %", "Bradley-Terry"]),
    ],
)
def test_tables_fit_eighty_columns(run_cli, annotations, monkeypatch, suite, rows, texts):
    monkeypatch.setenv("COLUMNS", "80")
    result = run_cli("judge", "report", "--suite", suite, "--annotations", annotations(rows, "rows.jsonl"))
    assert result.status == 0, result
    assert max(map(len, result.stdout.splitlines())) <= 80
    for text in texts:
        assert text in result.stdout
    assert "…" not in result.stdout


def test_several_files_after_one_option(run_cli, annotations):
    first = annotations(RATINGS[:160], "one.jsonl")
    second = annotations(RATINGS[160:], "two.jsonl.gz")
    result = run_cli("judge", "report", "--suite", "mt-bench", "--annotations", first, second, "--json")
    assert list(json.loads(result.stdout)["models"]) == ["base", "tuned"]


def test_files_of_the_other_kind_are_named(run_cli, annotations):
    preferences, ratings = annotations(PREFERENCES, "a.json"), annotations(RATINGS, "r.jsonl")
    result = run_cli("judge", "report", "--suite", "mt-bench", "--annotations", preferences)
    assert (result.status, result.stdout) == (2, "")
    assert "use --suite alpaca-eval" in result.stderr
    result = run_cli("judge", "report", "--suite", "alpaca-eval", "--annotations", ratings)
    assert result.status == 2
    assert "use --suite mt-bench" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_bad_files_are_told_whole(run_cli, annotations, tmp_path):
    bad = annotations([PREFERENCES[0], PREFERENCES[1] | {"preference": 9}, {"preference": []}], "bad.json")
    torn = tmp_path / "torn.json.gz"
    torn.write_bytes(gzip.compress(b"[]" * 500)[:-9])
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(b'{"preference": "\xff"}')
    empty = tmp_path / "empty.jsonl"
    empty.write_bytes(b"\n")
    result = run_cli("judge", "report", "--suite", "alpaca-eval", "--annotations", bad, torn, latin, empty)
    assert result.status == 2
    for text in (
        f"{bad}: row 2: preference: expected 1 (baseline better)",
        f"{bad}: row 3: preference: expected a number",
        f"{torn}: cannot be read",
        f"{latin}: byte 17: is not UTF-8 text",
        f"{empty}: holds no row",
    ):
        assert text in result.stderr
    assert "Traceback" not in result.stderr


def test_options_of_the_other_suite_are_refused(run_cli, annotations):
    path = annotations(PREFERENCES, "a.json")
    result = run_cli("judge", "report", "--suite", "alpaca-eval", "--annotations", path, "--base", "x")
    assert result.status == 2
    result = run_cli("judge", "report", "--suite", "mt-bench", "--annotations", path, "--df-gamed", path)
    assert result.status == 2


def test_real_tables_fit_eighty_columns(run_cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    folder = real("nc/alpaca_eval/results")
    files = sorted(folder.glob("*/weighted_alpaca_eval_gpt4_turbo/annotations.json.gz"))
    result = run_cli("judge", "report", "--suite", "alpaca-eval", "--annotations", *files)
    assert "63.33 ±1.42" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
