"""Answers and verdicts of models on this machine, with no server: against transformers itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lora_eval.errors import InputError
from lora_eval.judges.answers import read_answers, read_questions
from lora_eval.judges.calls import make_plan
from lora_eval.judges.chatting import chat_ids
from lora_eval.judges.local import run_locally
from lora_eval.judges.mt_bench import Question
from lora_eval.judges.profiles import LOCAL, load_profile
from lora_eval.judges.writing import turn_seed, write_answers
from lora_eval.records import JudgeLabels
from tests.judges.judged import write_answers as write_files


@pytest.fixture(autouse=True)
def own_calibrations(tmp_path, monkeypatch):
    """Calibrations lie beside the stored answers: those of other tests are not this user's."""
    monkeypatch.setenv("LORA_EVAL_STORE", str(tmp_path / "store" / "results.sqlite"))


@pytest.fixture(scope="module")
def engine(tiny_llama, tiny_adapter):
    from lora_eval.engines.transformers import open_engine
    from lora_eval.models import open_resident

    return open_engine(open_resident(tiny_llama, {"tuned": tiny_adapter}, identity_control=False))


@pytest.fixture(scope="module")
def judge(tiny_llama):
    from lora_eval.cli.judge_local import open_judge

    return open_judge(str(tiny_llama), "local:tiny", lambda *said: None)


def asked(*questions):
    return {
        str(number): Question(number, category, turns) for number, (category, turns) in enumerate(questions)
    }


def answer(engine, arm, questions, **options):
    settings = {"max_new_tokens": 6, "seed": 0, "temperature": None, "progress": lambda *said: None} | options
    return write_answers(engine, arm, questions, **settings)


def test_turn_two_is_asked_after_the_arms_own_answer(engine):
    rows = answer(engine, "base", asked(("math", ("One?", "Two?"))))
    (first, second), tokenizer = rows[0]["choices"][0]["turns"], engine.tokenizer
    messages = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "Two?"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    with engine.resident.activate("base") as model, torch.inference_mode():
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    assert second == tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_categories_set_the_temperature_and_seeds_are_the_same_in_every_arm(engine):
    questions = asked(("writing", ("Hi?", "Again?")), ("math", ("1+1?",)))
    base, tuned = answer(engine, "base", questions), answer(engine, "tuned", questions)
    assert [row["temperature"] for row in base] == [0.7, 0.0]
    assert [row["seeds"] for row in base] == [row["seeds"] for row in tuned]
    assert len({turn_seed(0, key, turn) for key in questions for turn in (1, 2)}) == 4
    assert base == answer(engine, "base", questions)
    assert base[0]["choices"] != answer(engine, "base", questions, seed=1)[0]["choices"]
    assert base[1]["choices"] == answer(engine, "base", questions, seed=1)[1]["choices"]
    assert base[0]["choices"] != tuned[0]["choices"]


def test_the_seeds_that_are_told_are_those_that_draw(engine, monkeypatch):
    asked_of, generate = {}, engine.generate

    def seen(arm, requests, *more):
        asked_of.setdefault(arm, []).extend(request.seed for request in requests)
        return generate(arm, requests, *more)

    monkeypatch.setattr(engine, "generate", seen)
    questions = asked(("writing", ("Hi?", "Again?")), ("stem", ("Why?", "How?")))
    rows = answer(engine, "base", questions)
    answer(engine, "tuned", questions)
    assert asked_of["base"] == asked_of["tuned"]
    assert sorted(asked_of["base"]) == sorted(seed for row in rows for seed in row["seeds"])


def test_an_answer_says_how_it_ended(engine):
    (row,) = answer(engine, "base", asked(("math", ("x " * 5000, "more?"))))
    assert row["finish_reasons"] == ["no room", "no room"]
    assert row["choices"][0]["turns"] == ["", ""]
    (row,) = answer(engine, "base", asked(("math", ("Hi?",))), max_new_tokens=3)
    assert (row["finish_reasons"], row["new_tokens"]) == (["length"], [3])


def test_a_system_text_goes_into_the_user_turn_where_a_template_has_none():
    class Gemma:
        chat_template = "x"

        def apply_chat_template(self, messages, **options):
            if messages[0]["role"] == "system":
                raise ValueError("System role not supported")
            return "|".join(f"{m['role']}:{m['content']}" for m in messages)

        def encode(self, text, **options):
            return [text]

    assert chat_ids(Gemma(), (("system", "Be fair."), ("user", "Hi")), "m") == ("user:Be fair.\n\nHi",)
    with pytest.raises(InputError, match="no chat template"):
        chat_ids(type("Plain", (), {"chat_template": None})(), (("user", "Hi"),), "m")


def plan(tmp_path, name="vllm-choice", **changes):
    files = write_files(tmp_path, {"base": [0.0, 1.0, 2.0], "tuned": [1.0, 0.5, 2.5]})
    profile = load_profile(name, model=f"{LOCAL}tiny@0").model_copy(update=changes)
    return make_plan("pairwise", profile, read_answers(files))


def test_a_local_judge_gives_the_probabilities_of_its_labels(judge, engine, tmp_path):
    made = plan(tmp_path)
    outcome = run_locally(made, tmp_path / "out", judge, lambda *said: None)
    assert (outcome.asked, len(outcome.verdicts)) == (6, 6)
    for call, verdict in zip(made.calls, outcome.verdicts, strict=True):
        ids = torch.tensor([chat_ids(engine.tokenizer, call.messages, "tiny")])
        with engine.resident.activate("base") as model, torch.inference_mode():
            logits = model(ids).logits[0, -1].double()
        a, b = (logits[engine.tokenizer.encode(label, add_special_tokens=False)[0]] for label in "AB")
        second = float(torch.sigmoid(b - a))
        assert verdict.value == pytest.approx(second if call.first == "a" else 1 - second, abs=1e-5)
    again = run_locally(made, tmp_path / "out", judge, lambda *said: None)
    assert (again.asked, again.known) == (0, 6)
    assert again.verdicts == outcome.verdicts


def test_a_local_judge_of_three_labels_says_the_likeliest(judge, engine, tmp_path):
    """With ties there is no probability between two: the label itself is the verdict."""
    made = plan(tmp_path, labels=JudgeLabels(first="A", second="B", tie="C"))
    outcome = run_locally(made, tmp_path / "out", judge, lambda *said: None)
    for call, verdict in zip(made.calls, outcome.verdicts, strict=True):
        ids = torch.tensor([chat_ids(engine.tokenizer, call.messages, "tiny")])
        with engine.resident.activate("base") as model, torch.inference_mode():
            logits = model(ids).logits[0, -1]
        spelt = [engine.tokenizer.encode(label, add_special_tokens=False)[0] for label in "ABC"]
        said = "ABC"[int(torch.stack([logits[token] for token in spelt]).argmax())]
        assert verdict.text == said
        score = {"A": 0.0, "B": 1.0, "C": 0.5}[said]
        assert verdict.value == (score if call.first == "a" else 1 - score)


def test_a_text_without_a_verdict_is_asked_for_once(judge, tmp_path):
    made = plan(tmp_path, "openai-text")
    outcome = run_locally(made, tmp_path / "out", judge, lambda *said: None)
    assert [verdict.value for verdict in outcome.verdicts] == [None] * 6
    assert run_locally(made, tmp_path / "out", judge, lambda *said: None).asked == 0


def test_what_a_local_judge_cannot_do_is_said(judge, tmp_path):
    with pytest.raises(InputError, match="function calls, which a local model does not"):
        run_locally(plan(tmp_path, "openai-tool"), tmp_path / "out", judge, lambda *said: None)
    long = plan(tmp_path, labels=JudgeLabels(first="A", second="B"))
    files = write_files(tmp_path, {"base": [0.0], "tuned": [1.0]})
    rows = json.loads(files["base"].read_text("utf-8"))
    rows[0]["output"] = "word " * 9000
    files["base"].write_text(json.dumps(rows), "utf-8")
    made = make_plan("pairwise", long.profile, read_answers(files))
    with pytest.raises(InputError, match="does not fit its context"):
        run_locally(made, tmp_path / "out2", judge, lambda *said: None)


def test_answers_judged_by_the_command_line_without_any_server(
    run_cli, tiny_llama, tiny_adapter, tmp_path: Path
):
    questions = tmp_path / "questions.jsonl"
    questions.write_text(
        "".join(json.dumps({"instruction": f"Question {i}?"}) + "\n" for i in range(3)), "utf-8"
    )
    result = run_cli(
        "judge",
        "answers",
        "--base",
        tiny_llama,
        "--adapter",
        f"tuned={tiny_adapter}",
        "--questions",
        questions,
        "--temperature",
        0.9,
        "--max-new-tokens",
        8,
        "--out",
        tmp_path / "a",
        "-q",
    )
    assert result.status == 0, result
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["base.jsonl", "tuned.jsonl"]
    assert list(read_questions(questions)) == list(
        read_answers({"base": tmp_path / "a" / "base.jsonl"})[0].answers
    )
    options = [
        "judge",
        "run",
        "--suite",
        "pairwise",
        "--judge",
        "vllm-choice",
        "--judge-model",
        f"local:{tiny_llama}",
        "--answers",
        f"base={tmp_path}/a/base.jsonl",
        "--answers",
        f"tuned={tmp_path}/a/tuned.jsonl",
    ]
    result = run_cli(*options, "--out", tmp_path / "judged", "--json", "-q")
    assert result.status == 0, result
    (pair,) = json.loads(result.stdout)["pairs"]
    assert (pair["a"], pair["b"], pair["n"]) == ("base", "tuned", 3)
    assert pair["judge"].startswith(f"local:{tiny_llama.name}@")
    # The answers are kept as they are, and never taken for those of other settings.
    before = (tmp_path / "a" / "base.jsonl").read_bytes()
    result = run_cli("judge", "answers", "--base", tiny_llama, "--out", tmp_path / "a", "-q", "--limit", 1)
    assert result.status == 2
    assert "holds answers of other weights, questions or settings" in result.stderr
    assert (tmp_path / "a" / "base.jsonl").read_bytes() == before


def test_a_local_judge_is_named_in_three_ways(run_cli, tiny_llama, tmp_path):
    files = write_files(tmp_path, {"base": [0.0, 1.0], "tuned": [1.0, 0.5]})
    arms = [word for arm, path in files.items() for word in ("--answers", f"{arm}={path}")]
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        f"name: mine\nmode: pair\nmodel: local:{tiny_llama}\nverdict: choice\ntemplate: pair-short\n"
        "parser: label\nlabels: {first: A, second: B}\n",
        "utf-8",
    )
    rates = []
    for number, judge in enumerate((
        ["--judge", f"local:{tiny_llama}"],
        ["--judge", "vllm-choice", "--judge-model", f"local:{tiny_llama}"],
        ["--judge", mine],
    )):  # fmt: skip
        out = tmp_path / str(number)
        result = run_cli("judge", "run", "--suite", "pairwise", *judge, *arms, "--out", out, "--json", "-q")
        assert result.status == 0, result
        rates.append(json.loads(result.stdout)["pairs"][0]["rate"])
    assert rates[0] == rates[1] == rates[2]
    twice = run_cli("judge", "plan", "--suite", "pairwise", "--judge", "local:x", "--judge-model", "y", *arms)
    assert (twice.status, "names the model already" in twice.stderr) == (2, True)


def test_judge_compare_is_the_ordinary_comparison(run_cli, tiny_llama, tiny_adapter, tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text(
        "".join(json.dumps({"instruction": f"Question {i}?"}) + "\n" for i in range(12)), "utf-8"
    )
    out = tmp_path / "out"
    options = ["judge", "compare", "--base", tiny_llama, "--adapter", tiny_adapter, "--suite", "pairwise"]
    options += ["--questions", questions, "--temperature", 0.9, "--max-new-tokens", 8, "--out", out]
    options += ["--judge", "vllm-choice", "--judge-model", f"local:{tiny_llama}"]
    refused = run_cli(*options, "--json")  # random weights judge by the position, and are found out
    assert (refused.status, refused.stdout) == (3, "")
    assert "follows the position" in refused.stderr
    options.append("--trust-judge")
    result = run_cli(*options, "--json")
    assert result.status == 0, result
    found = json.loads(result.stdout)
    (task,) = found["tasks"]
    (pair,) = task["pairs"]
    report = json.loads(
        run_cli("judge", "report", "--suite", "pairwise", "--annotations", out / "judged", "--json").stdout
    )
    rate, control = report["pairs"]
    assert (rate["b"], control["a"], control["b"]) == ("adapter", "base", "base#again")
    assert found["controls"]["judge"]["difference"] == pytest.approx(control["rate"] - 0.5)
    assert found["controls"]["judge"]["prompts"] == control["n"] == 12
    first, second = (
        [json.loads(line)["choices"] for line in (out / "answers" / name).read_text("utf-8").splitlines()]
        for name in ("base.jsonl", "base#again.jsonl")
    )
    assert sum(a != b for a, b in zip(first, second, strict=True)) == 12  # other seeds, so other answers
    assert any("nobody has measured how often this judge is right" in note for note in found["notes"])
    assert any("the judge is the arm base itself" in note for note in found["notes"])
    assert "judge" in (out / "report.md").read_text("utf-8")
    assert (task["task"], task["metric"], task["n"]) == ("pairwise", "preference", 12)
    assert pair["difference"] == pytest.approx(rate["rate"] - 0.5)
    assert (pair["ci_low"], pair["ci_high"]) == pytest.approx((rate["ci_low"] - 0.5, rate["ci_high"] - 0.5))
    assert pair["p_value"] == pytest.approx(rate["p_value"])
    assert {path.name for path in out.iterdir()} >= {
        "answers",
        "judged",
        "runs",
        "comparison.json",
        "report.md",
    }
    # The same command asks nothing again; the stored comparison is gated and reported like any other.
    again = run_cli(*options)
    assert "0 calls made, 48 known before" in again.stderr
    assert "Base against its own second answers: " in again.stderr
    assert "on 12 prompts; both orders agree on" in again.stderr
    assert "Note: nobody has measured how often this judge is right" in again.stderr
    assert "pairwise" in again.stdout
    gate = tmp_path / "gate.yaml"
    gate.write_text("schema: 1\nrules: [{task: pairwise, max_drop: 0.9}]\n", "utf-8")
    assert run_cli("gate", out, gate).status == 0
    gated = run_cli(*options, "--gate", gate, "-q")
    assert (gated.status, json.loads((out / "comparison.json").read_text("utf-8"))["gate"]["verdict"]) == (
        0,
        "PASS",
    )
    gate.write_text("schema: 1\nrules: [{task: pairwise, min_gain: 0.49}]\n", "utf-8")
    assert run_cli(*options, "--gate", gate, "-q").status == 3
    assert run_cli("report", out).status == 0


def test_judge_compare_rates_both_turns_as_one_cluster(
    run_cli, tiny_llama, tiny_adapter, tmp_path, write_rows
):
    from tests.judges.stub import StubJudge

    questions = write_rows(
        [{"question_id": i, "category": "writing", "turns": ["One?", "Two?"]} for i in range(6)],
        "questions.jsonl",
    )
    with StubJudge() as stub:
        result = run_cli(
            "judge",
            "compare",
            "--base",
            tiny_llama,
            "--adapter",
            tiny_adapter,
            "--questions",
            questions,
            "--max-new-tokens",
            4,
            "--judge",
            "mtbench-single",
            "--judge-model",
            "stub",
            "--judge-url",
            stub.url,
            "--out",
            tmp_path / "out",
            "--json",
        )
        assert result.status == 0, result
        (task,) = json.loads(result.stdout)["tasks"]
        assert (task["task"], task["metric"], task["n"]) == ("mt-bench", "score", 12)
        assert task["means"] == {"base": 5.0, "adapter": 5.0}
        assert stub.calls == 36  # the base's second answers too
        assert json.loads(result.stdout)["controls"]["judge"]["prompts"] == 6
        assert "second answers: +0.00 on 6 prompts\n" in result.stderr


def test_no_control_where_none_is_asked_for(run_cli, tiny_llama, tiny_adapter, tmp_path, write_rows):
    from tests.judges.stub import StubJudge

    questions = write_rows([{"instruction": f"Question {i}?"} for i in range(3)])
    with StubJudge() as stub:
        result = run_cli(
            "judge", "compare", "--base", tiny_llama, "--adapter", tiny_adapter, "--questions", questions,
            "--suite", "pairwise", "--max-new-tokens", 4, "--judge", "openai-text", "--judge-model", "stub",
            "--judge-url", stub.url, "--control", 0, "--out", tmp_path / "out", "--json",
        )  # fmt: skip
        assert result.status == 0, result
        assert (stub.calls, json.loads(result.stdout)["controls"]) == (6, {})
    assert sorted(path.name for path in (tmp_path / "out" / "answers").iterdir()) == [
        "adapter.jsonl",
        "base.jsonl",
    ]


@pytest.mark.parametrize(("allowed", "status"), [(0.02, 3), (0.2, 0)])
def test_a_gate_counts_prompts_without_a_verdict(
    run_cli, tiny_llama, tiny_adapter, tmp_path, write_rows, allowed, status
):
    from tests.judges.stub import StubJudge

    questions = write_rows([{"instruction": f"Question {i}?"} for i in range(8)])
    gate = tmp_path / "gate.yaml"
    gate.write_text(
        f"schema: 1\nrules: [{{task: pairwise, max_drop: 0.5, max_invalid: {allowed}}}]\n", "utf-8"
    )
    with StubJudge(fault="silent-on-question-3") as stub:
        result = run_cli(
            "judge", "compare", "--base", tiny_llama, "--adapter", tiny_adapter, "--questions", questions,
            "--suite", "pairwise", "--max-new-tokens", 4, "--judge", "openai-text", "--judge-model", "stub",
            "--judge-url", stub.url, "--control", 0, "--gate", gate, "--out", tmp_path / "out", "--json",
        )  # fmt: skip
    assert result.status == status, result
    (task,) = json.loads(result.stdout)["tasks"]
    assert (task["n"], task["dropped_items"], task["pairs"][0]["missing"]) == (7, 1, 1)


def test_a_position_bound_judge_concludes_nothing_by_default(
    run_cli, tiny_llama, tiny_adapter, tmp_path, write_rows
):
    from tests.judges.stub import StubJudge

    questions = write_rows([{"instruction": f"Question {i}?"} for i in range(12)])
    with StubJudge(bias=1.0) as stub:
        options = [
            "compare", "--base", tiny_llama, "--adapter", tiny_adapter, "--questions", questions,
            "--suite", "pairwise", "--max-new-tokens", 4, "--judge", "openai-text", "--judge-model", "stub",
            "--judge-url", stub.url, "--out", tmp_path / "out",
        ]  # fmt: skip
        refused = run_cli(*options, "--json")
        assert (refused.status, refused.stdout) == (3, "")
        assert "the answer shown first wins in both orders for 12 prompts" in refused.stderr
        assert not (tmp_path / "out" / "comparison.json").exists()
        calls = stub.calls
        trusted = run_cli(*options, "--json", "--trust-judge")
        assert (trusted.status, stub.calls) == (0, calls)
    notes = json.loads(trusted.stdout)["notes"]
    assert any("and was trusted all the same" in note for note in notes)


def test_the_pairwise_suite_needs_questions(run_cli, tiny_llama, tmp_path):
    options = ["--judge", "openai-text", "--judge-model", "m", "--out", tmp_path / "a"]
    result = run_cli("judge", "compare", "--base", tiny_llama, "--suite", "pairwise", *options)
    assert result.status == 2
    assert "give --questions FILE" in result.stderr


def test_judge_compare_writes_into_no_folder_of_another_kind(run_cli, tiny_llama, tiny_adapter, tmp_path):
    (tmp_path / "thesis.txt").write_text("do not lose me", "utf-8")
    options = ["--judge", "openai-text", "--judge-model", "m", "--out", tmp_path]
    result = run_cli("judge", "compare", "--base", tiny_llama, "--adapter", tiny_adapter, *options)
    assert result.status == 2
    assert "not empty" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
