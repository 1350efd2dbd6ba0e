"""`judge plan`, `run` and `calibrate` end to end, on a judge on this machine."""

from __future__ import annotations

import json
import socket

import pytest

from tests.judges.judged import write_answers
from tests.judges.stub import StubJudge

PRICED = """\
name: priced
mode: pair
verdict: text
template: pair
parser: letter
params: {max_tokens: 100}
price: {input: 10.0, output: 30.0}
"""


@pytest.fixture(autouse=True)
def own_calibrations(tmp_path, monkeypatch):
    """Calibrations lie beside the stored answers: those of other tests are not this user's."""
    monkeypatch.setenv("LORA_EVAL_STORE", str(tmp_path / "store" / "results.sqlite"))


@pytest.fixture
def stub():
    with StubJudge(bias=0.1) as judge:
        yield judge


@pytest.fixture
def asked(tmp_path, stub):
    """`asked(judge)`: the options that judge three arms on ten prompts."""
    files = write_answers(
        tmp_path, {"base": [0.0] * 10, "tuned": [1.0] * 8 + [-1.0] * 2, "merged": [1.0] * 10}
    )

    def options(judge="openai-text", suite="pairwise"):
        arms = [word for arm, path in files.items() for word in ("--answers", f"{arm}={path}")]
        return ["--suite", suite, "--judge", judge, "--judge-model", "stub", "--judge-url", stub.url, *arms]

    return options


def test_run_reports_and_goes_on(run_cli, asked, stub, tmp_path):
    out = tmp_path / "out"
    result = run_cli("judge", "run", *asked(), "--out", out, "--all-pairs", "--json", "-q")
    assert result.status == 0, result
    report = json.loads(result.stdout)
    assert [(pair["b"], pair["a"], pair["rate"]) for pair in report["pairs"]] == [
        ("tuned", "base", 0.8),
        ("merged", "base", 1.0),
        ("merged", "tuned", pytest.approx(0.6)),
    ]
    assert [arm["arm"] for arm in report["bradley_terry"][0]["arms"]] == ["base", "tuned", "merged"]
    assert "60 calls made, 0 known before" in result.stderr
    again = run_cli("judge", "report", "--suite", "pairwise", "--annotations", out, "--json")
    assert json.loads(again.stdout) == report
    assert run_cli("judge", "run", *asked(), "--out", out, "--all-pairs", "-q").status == 0
    assert stub.calls == 60


def test_alpaca_eval_and_mt_bench_from_our_own_verdicts(run_cli, asked, stub, tmp_path):
    result = run_cli(
        "judge", "run", *asked(suite="alpaca-eval"), "--out", tmp_path / "alpaca", "--json", "-q"
    )
    models = json.loads(result.stdout)["models"]
    assert (models["tuned"]["win_rate"], models["tuned"]["n_wins"], models["tuned"]["n_total"]) == (
        80.0,
        8,
        10,
    )
    wrong = run_cli("judge", "report", "--suite", "mt-bench", "--annotations", tmp_path / "alpaca")
    assert wrong.status == 2
    assert "holds verdicts of alpaca-eval: use --suite alpaca-eval" in wrong.stderr
    rows = [
        {
            "question_id": number,
            "choices": [{"turns": [f"QUALITY={number % 10 + 1}", f"QUALITY={number % 5 + 1}"]}],
        }
        for number in range(81, 161)
    ]
    path = tmp_path / "model.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    common = [
        "--suite",
        "mt-bench",
        "--judge-model",
        "stub",
        "--judge-url",
        stub.url,
        "--answers",
        f"m={path}",
    ]
    result = run_cli(
        "judge", "run", *common, "--judge", "mtbench-single", "--out", tmp_path / "mt", "--json", "-q"
    )
    (score,) = json.loads(result.stdout)["models"].values()
    assert (score["first_turn"], score["second_turn"], score["average"], score["n"]) == (5.5, 3.0, 4.25, 160)
    assert len(score["categories"]) == 8


def test_the_cap_ends_with_its_own_status(run_cli, asked, stub, tmp_path):
    judge = tmp_path / "priced.yaml"
    judge.write_text(PRICED, "utf-8")
    options = ["judge", "run", *asked(judge), "--out", tmp_path / "out", "-q"]
    assert "give --max-cost" in run_cli(*options).stderr
    result = run_cli(*options, "--max-cost", "0.012")
    assert (result.status, result.stdout) == (5, "")
    assert "goes on from here" in result.stderr
    assert 0 < stub.calls < 40
    done = run_cli(*options, "--max-cost", "5")
    assert (done.status, stub.calls) == (0, 40)


def test_an_endpoint_that_fails_is_status_two(run_cli, asked, stub, tmp_path):
    stub.fault = "404"
    result = run_cli("judge", "run", *asked(), "--out", tmp_path / "out", "-q")
    assert result.status == 2
    assert "is stub a model of this endpoint" in result.stderr
    assert "Traceback" not in result.stderr


def test_plan_needs_no_network_and_no_key(run_cli, asked, stub, tmp_path, monkeypatch):
    judge = tmp_path / "priced.yaml"
    judge.write_text(PRICED, "utf-8")

    def refuse(*arguments: object) -> None:
        raise AssertionError("judge plan opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    result = run_cli("judge", "plan", *asked(judge), "--json")
    assert result.status == 0, result
    found = json.loads(result.stdout)
    assert (found["calls"], found["left"], found["prompts"]) == (40, 40, 10)
    assert 0 < found["likely_dollars"] < found["most_dollars"]
    # 2.80 standard errors of sqrt(0.7 / 4 / 10)
    assert found["smallest_difference"] == pytest.approx(2.8016 * (0.7 / 4 / 10) ** 0.5, abs=1e-4)
    assert stub.calls == 0
    text = run_cli("judge", "plan", *asked(judge)).stdout
    assert "40 to make" in text
    assert "points from 50 %" in text


def test_plan_counts_what_is_known(run_cli, asked, tmp_path):
    run_cli("judge", "run", *asked(), "--out", tmp_path / "out", "--limit", 3, "-q")
    found = json.loads(run_cli("judge", "plan", *asked(), "--out", tmp_path / "out", "--json").stdout)
    assert (found["calls"], found["known"], found["left"]) == (40, 12, 28)


def test_calibrate_refuses_with_status_three(run_cli, stub, tmp_path):
    good = [{"prompt": f"q{i}", "chosen": "QUALITY=2", "rejected": "QUALITY=0"} for i in range(10)]
    bad = [{"prompt": f"q{i}", "chosen": "QUALITY=0", "rejected": "QUALITY=2"} for i in range(10)]
    for name, rows, status in (("good", good, 0), ("bad", bad, 3)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        result = run_cli(
            "judge",
            "calibrate",
            "--judge",
            "openai-text",
            "--judge-model",
            "stub",
            "--judge-url",
            stub.url,
            "--pairs",
            path,
            "--out",
            tmp_path / name,
            "-q",
        )
        assert result.status == status, result
        assert json.loads((tmp_path / name / "calibration.json").read_text("utf-8"))["passed"] is (
            status == 0
        )
    assert "REFUSED" in result.stdout


def calibrated(run_cli, stub, folder, better, worse, **changes):
    rows = folder / f"pairs-{better}.jsonl"
    row = {"prompt": "q", "chosen": f"QUALITY={better}", "rejected": f"QUALITY={worse}"}
    rows.write_text(json.dumps(row), "utf-8")
    options = {"--judge": "openai-text", "--judge-model": "stub", "--judge-url": stub.url} | changes
    given = [word for option in options.items() for word in option]
    return run_cli("judge", "calibrate", *given, "--pairs", rows, "--out", folder / f"check-{better}", "-q")


def test_a_refused_judge_is_asked_nothing(run_cli, asked, stub, tmp_path):
    """By default: its last calibration is known to every later run of this user."""
    assert calibrated(run_cli, stub, tmp_path, 0, 2).status == 3
    calls, run = stub.calls, ["judge", "run", *asked(), "--out", tmp_path / "out", "-q"]
    result = run_cli(*run)
    assert (result.status, result.stdout, stub.calls) == (3, "", calls)
    assert "is refused: right on 0.0 %" in result.stderr
    assert "without --trust-judge" in result.stderr
    # One that is trusted all the same is reported, and that is said.
    trusted = run_cli(*run, "--trust-judge")
    assert (trusted.status, stub.calls) == (0, calls + 40)
    assert "was trusted all the same" in trusted.stderr
    # Another model of the same profile is another judge.
    assert run_cli(*run[:-3], "--judge-model", "other", "--out", tmp_path / "other").status == 0


def test_the_last_calibration_counts_and_one_that_is_given_before_it(run_cli, asked, stub, tmp_path):
    run = ["judge", "run", *asked(), "--limit", 2, "--out", tmp_path / "out", "-q"]
    assert "nobody has measured how often this judge is right" in run_cli(*run).stderr
    assert calibrated(run_cli, stub, tmp_path, 0, 2).status == 3
    assert run_cli(*run).status == 3
    assert calibrated(run_cli, stub, tmp_path, 3, 1).status == 0
    passed = run_cli(*run)
    assert passed.status == 0
    assert "the judge is right on 100.0 % of 1 labelled pairs" in passed.stderr
    given = run_cli(*run, "--calibration", tmp_path / "check-0" / "calibration.json")
    assert (given.status, given.stdout) == (3, "")


def test_a_judge_that_follows_the_position_is_refused_by_default(run_cli, asked, stub, tmp_path):
    stub.bias = 9.0
    run = ["judge", "run", *asked(), "--out", tmp_path / "out", "--json", "-q"]
    result = run_cli(*run)
    assert (result.status, result.stdout, stub.calls) == (3, "", 40)
    assert "the answer shown first wins in both orders for 10 prompts" in result.stderr
    trusted = run_cli(*run, "--trust-judge")
    assert (trusted.status, stub.calls) == (0, 40)
    assert any("follows the position" in note for note in json.loads(trusted.stdout)["notes"])


@pytest.mark.parametrize("value", ["base", "=x", "base="])
def test_answers_are_named(run_cli, value):
    result = run_cli("judge", "plan", "--suite", "pairwise", "--judge", "openai-text", "--answers", value)
    assert result.status == 2
    assert "expected ARM=FILE" in result.stderr
