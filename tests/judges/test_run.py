"""Asking: retries, resume, budget, faults of the endpoint, and what never leaves the process."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_eval.errors import InputError, JudgeError, RecordError, SpendingCapError
from lora_eval.judges import client as client_module
from lora_eval.judges.budget import Pace, likely_input_tokens, most_cost
from lora_eval.judges.client import backoff, retry_after
from lora_eval.judges.games import pair_rates
from lora_eval.judges.own_rows import games, last_replies
from lora_eval.judges.profiles import packaged_profiles
from lora_eval.judges.report import build_report
from lora_eval.judges.run import run_plan
from lora_eval.judges.store import FILE, VerdictStore, read_verdicts
from lora_eval.records import JudgeLimits, JudgePrice, JudgeTimeout
from tests.conftest import CHECKOUT
from tests.judges.judged import plan_of, write_answers
from tests.judges.stub import StubJudge

QUALITIES = {"base": [0.0] * 12, "tuned": [1.0, -1.0, 0.5, 0.2] * 3}
KEY = "sk-test-0123456789abcdefghijklmnop"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Waits before retries are a hundredth of what they are."""
    monkeypatch.setattr(client_module, "_FIRST_WAIT", 0.005)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def stub():
    with StubJudge(bias=0.1) as judge:
        yield judge


@pytest.fixture
def files(tmp_path):
    return write_answers(tmp_path, QUALITIES)


def rate(verdicts):
    (found,) = pair_rates(games(last_replies(verdicts)))
    return found


def test_both_orders_of_every_prompt_are_asked_once(stub, files, tmp_path):
    outcome = run_plan(plan_of(files, stub.url), tmp_path / "out", max_cost=None)
    assert (stub.calls, outcome.asked, outcome.known) == (24, 24, 0)
    found = rate(outcome.verdicts)
    assert (found.rate, found.n, found.order_agreement, found.position_rate) == (0.75, 12, 1.0, 0.5)
    assert all(verdict.model == "stub" and verdict.input_tokens for verdict in outcome.verdicts)


def test_the_same_command_asks_nothing_again(stub, files, tmp_path):
    plan = plan_of(files, stub.url)
    first = run_plan(plan, tmp_path / "out", max_cost=None)
    again = run_plan(plan, tmp_path / "out", max_cost=None)
    assert (stub.calls, again.asked, again.known) == (24, 0, 24)
    assert {v.key: v for v in first.verdicts} == {v.key: v for v in again.verdicts}


def test_only_what_is_new_is_asked(stub, files, tmp_path):
    run_plan(plan_of(files, stub.url, orders="alpaca"), tmp_path / "out", max_cost=None)
    assert stub.calls == 12
    run_plan(plan_of(files, stub.url), tmp_path / "out", max_cost=None)
    assert stub.calls == 24
    run_plan(plan_of(files, stub.url, repeats=2), tmp_path / "out", max_cost=None)
    assert stub.calls == 48


@pytest.mark.parametrize(
    "other", [{"model": "another"}, {"judge": "arena-hard-5"}, {"changes": {"rule": "fastchat"}}]
)
def test_another_judges_verdicts_are_never_taken(stub, files, tmp_path, other):
    """alpaca_eval shows judge A's verdicts for judge B where both have one name."""
    run_plan(plan_of(files, stub.url), tmp_path / "out", max_cost=None)
    changes = {**other.pop("changes", {}), **({"model": other.pop("model")} if "model" in other else {})}
    outcome = run_plan(plan_of(files, stub.url, changes=changes, **other), tmp_path / "out", max_cost=None)
    assert (stub.calls, outcome.known) == (48, 0)
    verdicts = last_replies(read_verdicts(tmp_path / "out"))
    assert len({verdict.judge for verdict in verdicts}) == 2
    assert len(pair_rates(games(verdicts))) == 2


def test_equal_answers_are_a_tie_that_nobody_is_asked_about(stub, tmp_path):
    files = write_answers(tmp_path, {"base": [1, 2], "tuned": [1, 2]})
    rows = json.loads(files["base"].read_text("utf-8"))
    files["tuned"].write_text(json.dumps(rows), "utf-8")
    outcome = run_plan(plan_of(files, stub.url), tmp_path / "out", max_cost=None)
    assert stub.calls == 0
    assert [verdict.value for verdict in outcome.verdicts] == [0.5] * 4


@pytest.mark.parametrize("fault", ["429-once", "500-once", "drop-once", "html-once"])
def test_a_passing_fault_loses_no_call(stub, files, tmp_path, fault):
    stub.fault = fault
    outcome = run_plan(plan_of(files, stub.url), tmp_path / "out", max_cost=None)
    assert (stub.answered, outcome.retried) == (24 + 24 * (fault == "html-once"), 24)
    assert rate(outcome.verdicts).rate == 0.75


def test_retry_after_is_kept(stub, files, tmp_path):
    stub.fault, stub.retry_after = "429-once", "0.4"
    started = time.monotonic()
    run_plan(plan_of(files, stub.url, limit=1), tmp_path / "out", max_cost=None)
    assert time.monotonic() - started >= 0.4


@pytest.mark.parametrize(("fault", "says"), [("429-always", "answered 429"), ("500-always", "answered 500")])
def test_a_lasting_fault_stops_the_run_and_says_which(stub, files, tmp_path, fault, says):
    stub.fault = fault
    with pytest.raises(JudgeError, match=rf"{says}.*\(\d tries\); the same command goes on"):
        run_plan(plan_of(files, stub.url), tmp_path / "out", max_cost=None)
    stub.fault = None
    assert run_plan(plan_of(files, stub.url), tmp_path / "out", max_cost=None).asked == 24


def test_a_slow_endpoint_is_asked_again(stub, files, tmp_path):
    stub.fault = "slow"
    plan = plan_of(files, stub.url, limit=2, changes={"timeout": JudgeTimeout(read=0.3)})
    outcome = run_plan(plan, tmp_path / "out", max_cost=None)
    assert (outcome.asked, outcome.retried) == (4, 4)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("400", "answered 400 .*context too long.*max_completion_tokens"),
        ("404", "answered 404 .*is stub a model of this endpoint"),
        ("redirect", "answered 307"),
    ],
)
def test_a_refusal_stops_at_once(stub, files, tmp_path, fault, says):
    stub.fault = fault
    with pytest.raises(JudgeError, match=says):
        run_plan(plan_of(files, stub.url), tmp_path / "out", max_cost=None)
    assert stub.calls <= 32  # those in flight together


def test_what_was_paid_for_is_kept_when_the_key_stops_working(stub, files, tmp_path, monkeypatch):
    """alpaca_eval keeps none of 15 paid calls here (facts of its default chunks)."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    stub.fault, stub.after = "401-after", 8
    plan = plan_of(files, stub.url, changes={"limits": JudgeLimits(concurrency=4)})
    with pytest.raises(JudgeError) as error:
        run_plan(plan, tmp_path / "out", max_cost=None)
    assert "is the key in OPENAI_API_KEY right?" in str(error.value)
    assert KEY not in str(error.value)
    assert len(read_verdicts(tmp_path / "out")) == stub.answered == 8
    stub.fault = None
    run_plan(plan, tmp_path / "out", max_cost=None)
    assert stub.answered == 24


def test_one_request_that_is_refused_does_not_stop_the_others(stub, files, tmp_path):
    stub.fault, stub.after = "400-some", 20
    plan = plan_of(files, stub.url, changes={"limits": JudgeLimits(concurrency=1)})
    outcome = run_plan(plan, tmp_path / "out", max_cost=None)
    refused = [verdict for verdict in outcome.verdicts if verdict.value is None]
    assert refused
    assert "the endpoint refused it: answered 400" in refused[0].reason
    assert all(verdict.value is not None for verdict in last_replies(outcome.verdicts))  # asked once more


@pytest.mark.parametrize(
    ("fault", "judge", "says"),
    [
        ("garbage", "openai-text", "the text has no verdict"),
        ("empty", "openai-text", "the reply is empty"),
        ("null", "openai-text", "no JSON|no choice"),
        ("cut-off", "openai-text", "cut off before its verdict; raise params.max_tokens"),
    ],
)
def test_a_reply_without_a_verdict_is_asked_for_twice_more_and_counted(
    stub, files, tmp_path, fault, judge, says
):
    stub.fault = fault
    if fault == "null":
        stub_plan = plan_of(files, stub.url, judge, limit=1, changes={"retries": 0})
        with pytest.raises(JudgeError, match="no JSON"):
            run_plan(stub_plan, tmp_path / "out", max_cost=None)
        return
    plan = plan_of(files, stub.url, judge, limit=2)
    outcome = run_plan(plan, tmp_path / "out", max_cost=None)
    assert stub.calls == 12
    assert all(
        verdict.value is None and says.split(" .")[0] in verdict.reason for verdict in outcome.verdicts
    )
    found = rate(outcome.verdicts)
    assert (found.n, found.n_invalid, found.rate) == (0, 2, None)
    # Asked for three times, it is not asked for again.
    run_plan(plan, tmp_path / "out", max_cost=None)
    assert stub.calls == 12


@pytest.mark.parametrize(
    ("fault", "judge", "says"),
    [
        ("garbage", "openai-tool", "calls no function"),
        ("no-logprobs", "alpaca-logprob", "log-probabilities of 0 tokens"),
        ("one-token", "alpaca-logprob", "log-probabilities of 1 tokens, at least 2"),
        ("ignores-choice", "vllm-choice", "none of the choices .constraint ignored"),
        ("ignores-choice", "llama.cpp", "none of the choices .constraint ignored"),
    ],
)
def test_an_endpoint_that_cannot_give_such_a_verdict_is_found_by_one_call(
    stub, files, tmp_path, fault, judge, says
):
    stub.fault = fault
    plan = plan_of(files, stub.url, judge)
    with pytest.raises(JudgeError, match=f"{says}.*asked 3 times.*nothing else was asked"):
        run_plan(plan, tmp_path / "out", max_cost=None)
    assert (stub.calls, stub.most_in_flight) == (3, 1)
    stub.fault = None  # the server was started anew with what it lacked
    outcome = run_plan(plan, tmp_path / "out", max_cost=None)
    assert stub.calls == 3 + 23
    assert rate(outcome.verdicts).n_invalid == 1


@pytest.mark.parametrize("judge", sorted(set(packaged_profiles()) - {"mtbench-single"}))
def test_every_packaged_judge_can_be_asked(stub, files, tmp_path, judge):
    if judge == "alpaca-logprob":
        pytest.importorskip("sklearn")
    outcome = run_plan(plan_of(files, stub.url, judge), tmp_path / "out", max_cost=None)
    found = rate(outcome.verdicts)
    assert (found.n, found.n_invalid, found.win) == (12, 0, 9)


def test_tokens_with_a_space_are_read(stub, files, tmp_path):
    plain = rate(run_plan(plan_of(files, stub.url, "alpaca-logprob"), tmp_path / "a", max_cost=None).verdicts)
    stub.fault = "odd-tokens"
    odd = rate(run_plan(plan_of(files, stub.url, "alpaca-logprob"), tmp_path / "b", max_cost=None).verdicts)
    assert odd.rate == pytest.approx(plain.rate)
    assert 0 < plain.rate < 1


def test_another_model_in_mid_run_is_reported(stub, files, tmp_path):
    stub.fault = "model-change"
    plan = plan_of(files, stub.url, changes={"limits": JudgeLimits(concurrency=1)})
    outcome = run_plan(plan, tmp_path / "out", max_cost=None)
    assert "several models: stub, stub-2" in outcome.notes[0]


# Dollars

PRICE = JudgePrice(input=10.0, output=30.0)


def test_a_price_needs_a_cap(stub, files, tmp_path):
    with pytest.raises(InputError, match="give --max-cost"):
        run_plan(plan_of(files, stub.url, changes={"price": PRICE}), tmp_path / "out", max_cost=None)
    assert stub.calls == 0


@pytest.mark.parametrize("concurrency", [1, 16])
def test_the_cap_is_never_passed_and_a_higher_one_goes_on(stub, files, tmp_path, concurrency):
    plan = plan_of(files, stub.url, changes={"price": PRICE, "limits": JudgeLimits(concurrency=concurrency)})
    most = most_cost(plan.profile, plan.body(plan.calls[0]))
    cap = 1.2 * most
    with pytest.raises(SpendingCapError) as error:
        run_plan(plan, tmp_path / "out", max_cost=cap)
    assert error.value.exit_status == 5
    stored = read_verdicts(tmp_path / "out")
    spent = sum(verdict.cost for verdict in stored)
    assert len(stored) == stub.calls
    assert cap - most < spent <= cap  # not stopped too early either
    outcome = run_plan(plan, tmp_path / "out", max_cost=100.0)
    assert stub.calls == 24
    assert outcome.spent == pytest.approx(sum(v.cost for v in read_verdicts(tmp_path / "out")))
    assert outcome.known == len(stored)


def test_a_reply_without_a_count_costs_the_most_it_can(stub, files, tmp_path):
    stub.fault = "no-usage"
    plan = plan_of(files, stub.url, changes={"price": PRICE})
    outcome = run_plan(plan, tmp_path / "out", max_cost=100.0)
    assert all(verdict.usage_estimated for verdict in outcome.verdicts)
    assert outcome.spent == pytest.approx(
        sum(most_cost(plan.profile, plan.body(call)) for call in plan.calls)
    )
    assert "24 replies say no number of tokens" in outcome.notes[0]


def test_a_request_that_was_never_answered_counts_as_billed(stub, files, tmp_path):
    stub.fault = "drop-once"
    plan = plan_of(files, stub.url, limit=1, changes={"price": PRICE})
    outcome = run_plan(plan, tmp_path / "out", max_cost=100.0)
    answered = sum(
        (PRICE.input * v.input_tokens + PRICE.output * v.output_tokens) / 1e6 for v in outcome.verdicts
    )
    lost = sum(most_cost(plan.profile, plan.body(call)) for call in plan.calls)
    assert outcome.spent == pytest.approx(answered + lost)


# Keys


def test_the_key_is_sent_and_nowhere_else(stub, files, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    stub.fault = "repeat-key"
    caplog.set_level("DEBUG")
    outcome = run_plan(plan_of(files, stub.url), tmp_path / "out", max_cost=None)
    assert set(stub.keys) == {f"Bearer {KEY}"}
    everything = (tmp_path / "out" / FILE).read_text("utf-8") + caplog.text + repr(outcome)
    assert KEY not in everything
    assert "Your key is [key]" in everything


def test_no_key_is_sent_where_none_is_set(stub, files, tmp_path):
    run_plan(plan_of(files, stub.url, limit=1), tmp_path / "out", max_cost=None)
    assert set(stub.keys) == {""}


@pytest.mark.parametrize(
    ("url", "key", "says"),
    [
        ("https://api.example.com/v1", None, "the environment variable OPENAI_API_KEY is not set"),
        ("http://api.example.com/v1", KEY, "plain http, which would show the key"),
        ("http://10.0.0.8:8000/v1", KEY, "plain http"),
        ("http://127.0.0.1.evil.example/v1", KEY, "plain http"),
    ],
)
def test_keys_are_needed_and_guarded(files, tmp_path, monkeypatch, url, key, says):
    if key:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InputError, match=says) as error:
        run_plan(plan_of(files, url), tmp_path / "out", max_cost=None)
    assert KEY not in str(error.value)


# The store


def test_a_torn_last_line_is_cut_off_and_asked_again(stub, files, tmp_path):
    plan = plan_of(files, stub.url)
    run_plan(plan, tmp_path / "out", max_cost=None)
    path = tmp_path / "out" / FILE
    path.write_bytes(path.read_bytes()[:-20])
    run_plan(plan, tmp_path / "out", max_cost=None)
    assert stub.calls == 25
    assert len(read_verdicts(path)) == 24


def test_a_damaged_line_in_the_middle_is_told(stub, files, tmp_path):
    plan = plan_of(files, stub.url, limit=1)
    run_plan(plan, tmp_path / "out", max_cost=None)
    path = tmp_path / "out" / FILE
    lines = path.read_text("utf-8").splitlines()
    path.write_text("\n".join([lines[0], "{oops", lines[1], '{"key": 1}', ""]), "utf-8")
    with pytest.raises(RecordError) as error:
        run_plan(plan, tmp_path / "out", max_cost=None)
    assert f"{path}: line 2: is not valid JSON" in str(error.value)
    assert f"{path}: line 4: missing key 'suite'" in str(error.value)


def test_two_processes_do_not_judge_into_one_folder(files, tmp_path):
    with (
        VerdictStore(tmp_path / "out"),
        pytest.raises(InputError, match="another process is judging"),
        VerdictStore(tmp_path / "out"),
    ):
        pass


def test_a_killed_run_goes_on_and_repeats_no_finished_call(stub, files, tmp_path):
    """kill -9 in the middle: every call that the store holds is asked once, the others at most twice."""
    stub.delay = 0.05
    options = [
        "judge", "run", "--suite", "pairwise", "--judge", "openai-text", "--judge-model", "stub",
        "--judge-url", stub.url, "--out", str(tmp_path / "out"), "--repeat", "8", "-q", "--json",
        *(word for arm, path in files.items() for word in ("--answers", f"{arm}={path}")),
    ]  # fmt: skip
    command = [sys.executable, "-m", "lora_eval", *options]
    process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while stub.answered < 40 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.2)
    before, calls = read_verdicts(tmp_path / "out"), stub.calls
    assert 0 < len(before) < 192
    assert len(before) >= stub.answered - 32  # all but those whose reply was on its way
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"{192 - len(before)} calls made, {len(before)} known before" in done.stderr
    assert stub.calls - calls == 192 - len(before)
    after = read_verdicts(tmp_path / "out")
    assert len(after) == len({verdict.key for verdict in after}) == 192
    assert after[: len(before)] == before


# Pieces


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("2", 2.0),
        ("-1", 0.0),
        ("soon", None),
        ("nan", None),
        ("1e9", 600.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ],
)
def test_retry_after(value, seconds):
    assert retry_after(value) == seconds


def test_waits_grow_to_a_minute(monkeypatch):
    monkeypatch.setattr(client_module, "_FIRST_WAIT", 0.5)
    assert [backoff(number, lambda: 1.0) for number in (0, 1, 2, 10)] == [0.5, 1.0, 2.0, 60.0]
    assert backoff(0, lambda: 0.0) == 0.25


def test_halves_of_surrogate_pairs_are_asked_about_and_stored(stub, files, tmp_path):
    rows = json.loads(files["tuned"].read_text("utf-8"))
    rows[0]["output"] += " \ud83d"
    rows[0]["instruction"] = "Half \udc00 a pair"
    files["tuned"].write_text(json.dumps(rows), "utf-8")
    base = json.loads(files["base"].read_text("utf-8"))
    base[0]["instruction"] = rows[0]["instruction"]
    files["base"].write_text(json.dumps(base), "utf-8")
    stub.fault = "half-pair"
    outcome = run_plan(plan_of(files, stub.url), tmp_path / "out", max_cost=None)
    assert (stub.calls, rate(outcome.verdicts).n) == (24, 12)
    assert "\ufffd" in outcome.verdicts[0].text
    assert {v.key for v in read_verdicts(tmp_path / "out")} == {v.key for v in outcome.verdicts}


def test_a_broken_compression_is_asked_for_again(stub, files, tmp_path):
    stub.fault = "bad-gzip-once"
    outcome = run_plan(plan_of(files, stub.url, limit=2), tmp_path / "out", max_cost=None)
    assert (outcome.asked, outcome.retried) == (4, 4)


def test_limits_are_those_of_the_profile(stub, files, tmp_path, monkeypatch):
    """Each call counts with its prompt and all that its answer may take."""
    made, asked = [], []

    class Seen(Pace):
        def __init__(self, rpm, tpm):
            made.append((rpm, tpm))
            super().__init__(None, None)

        async def wait(self, tokens):
            asked.append(tokens)

    monkeypatch.setattr("lora_eval.judges.run.Pace", Seen)
    plan = plan_of(files, stub.url, changes={"limits": JudgeLimits(rpm=1200, tpm=5000, concurrency=3)})
    run_plan(plan, tmp_path / "out", max_cost=None)
    assert made == [(1200, 5000)]
    room = plan.profile.params.max_tokens
    assert sorted(asked) == sorted(likely_input_tokens(plan.body(call)) + room for call in plan.calls)
    assert stub.most_in_flight <= 3


def test_a_full_disk_ends_the_run(stub, files, tmp_path, monkeypatch):
    import errno

    from lora_eval.errors import OutputError
    from lora_eval.judges import store

    def full(file: int, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "_append", full)
    with pytest.raises(OutputError, match="No space left"):
        run_plan(plan_of(files, stub.url), tmp_path / "out", max_cost=None)
    assert stub.calls <= 64


def test_a_report_does_not_depend_on_the_order_in_which_calls_finish(stub, tmp_path):
    """Nor does the bootstrap, nor who is the base of ratings."""
    draw = random.Random(0)
    files = write_answers(
        tmp_path, {arm: [draw.gauss(0, 10 ** (i % 4)) for i in range(30)] for arm in ("base", "tuned")}
    )
    run_plan(plan_of(files, stub.url), tmp_path / "out", max_cost=None)
    path = tmp_path / "out" / FILE
    expected = build_report("pairwise", [path])
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join(reversed(lines)), "utf-8")
    assert build_report("pairwise", [path]) == expected
    assert expected.pairs[0].length_adjusted.standard_error


def test_files_written_by_path(stub, files, tmp_path: Path):
    run_plan(plan_of(files, stub.url, limit=1), tmp_path / "deep" / "out", max_cost=None)
    (path,) = (tmp_path / "deep" / "out").iterdir()
    assert path.name == FILE
    assert path.read_bytes().endswith(b"\n")


def test_a_change_of_the_judge_and_a_position_bound_judge_are_in_the_report(stub, files, tmp_path):
    stub.fault, stub.bias = "model-change", 5.0
    plan = plan_of(files, stub.url, changes={"limits": JudgeLimits(concurrency=1)})
    run_plan(plan, tmp_path / "out", max_cost=None)
    report = build_report("pairwise", [tmp_path / "out"])
    assert report.pairs[0].rate == 0.5
    assert any("the answer shown first wins in both orders for 12 prompts" in note for note in report.notes)
    assert any("answered with several models: stub, stub-2" in note for note in report.notes)


@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupted_run_stops_and_keeps_what_is_done(stub, tmp_path, times):
    stub.delay = 0.1 if times == 1 else 0.5
    files = write_answers(tmp_path, {"base": [0.0] * 200, "tuned": [1.0] * 200})
    command = [
        sys.executable, "-m", "lora_eval", "judge", "run", "--suite", "pairwise", "--judge", "openai-text",
        "--judge-model", "stub", "--judge-url", stub.url, "--out", str(tmp_path / "out"), "-q",
        *(word for arm, path in files.items() for word in ("--answers", f"{arm}={path}")),
    ]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while stub.answered < 32 and time.monotonic() < deadline:
        time.sleep(0.01)
    asked = stub.calls
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    said = process.communicate(timeout=60)[1]
    if times == 2 and process.returncode == -signal.SIGINT:
        return  # the second one came when the command had ended already, and met Python on its way out
    assert process.returncode == 130
    assert "the same command resumes" in said
    assert stub.calls <= asked + 64  # not all 400
    kept = len(read_verdicts(tmp_path / "out"))
    if times == 1:  # what was in flight is paid for: it is waited for, and kept
        assert kept == stub.answered == stub.calls
    else:
        assert 0 < kept <= stub.calls
