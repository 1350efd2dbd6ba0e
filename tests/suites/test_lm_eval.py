"""Figures are lm-eval's own, digit for digit: our engine under its tasks against its `hf` model."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_eval.engines.transformers import TransformersEngine
from lora_eval.errors import InputError, TaskError
from lora_eval.models import IDENTITY
from lora_eval.protocols import Suite
from lora_eval.records import EvalSuite, TaskEntry, TaskResult
from lora_eval.suites.bridge import Answers
from lora_eval.suites.catalog import suite_of_tasks
from lora_eval.suites.combined import CombinedSuite
from lora_eval.suites.lm_eval import LmEvalSuite
from lora_eval.suites.loading import spaced

# lm-eval's `hf` model and PEFT under it, not ours.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
NAMES = ["t_choice", "t_generate", "t_rolling", "t_last"]


def _silent(*_: Any) -> None:
    pass


def _suite(tasks: Path, names: list[str] | None = None, **options: Any) -> LmEvalSuite:
    return LmEvalSuite(*suite_of_tasks(names or NAMES, str(tasks)), **options)


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("arm", ["base", "tuned"])
def test_figures_and_items_are_lm_evals(
    arm: str, chat: bool, tasks: Path, engine: TransformersEngine, reference: Callable
) -> None:
    names = ["t_choice", "t_generate"] if chat else NAMES
    entries = tuple(TaskEntry(task=name) for name in names)
    record = EvalSuite(
        name="all", version="1", tasks=entries, include_path=str(tasks), apply_chat_template=chat
    )
    found = LmEvalSuite(record, Path()).run(engine, arm, _silent)
    theirs = reference(arm, names, tasks, apply_chat_template=chat)

    for result in found.results:
        value = theirs["results"][result.task][f"{result.metric},{result.filter}"]
        check_figure(result, value)
        assert result.higher_is_better is theirs["higher_is_better"][result.task][result.metric]
    expected = [(name, sample) for name in names for sample in theirs["samples"][name]]
    assert len(found.rows) == len(expected) > 0
    for row, (name, sample) in zip(found.rows, expected, strict=True):
        _check_row(row, name, sample)
    assert {row.filter for row in found.rows} >= {"none", "first", "letters"}


def check_figure(result: TaskResult, value: float) -> None:
    """A perplexity of 1e27 is an exponential of log-likelihoods: those are compared, in nats."""
    if "perplexity" in result.metric:
        assert math.log(result.value) == pytest.approx(math.log(value), rel=1e-6)
    elif result.metric == "bits_per_byte":
        assert result.value == pytest.approx(value, rel=1e-6)
    else:
        assert result.value == value


def _check_row(row: Any, name: str, sample: dict[str, Any]) -> None:
    assert (row.task, row.item_id, row.filter, row.doc_hash) == (
        name,
        sample["doc_id"],
        sample["filter"],
        sample["doc_hash"],
    )
    likelihoods = [r[0] if isinstance(r, tuple) else r for r in sample["filtered_resps"]]
    if name == "t_generate":
        assert row.output == sample["resps"][0][0]
        assert row.finish_reason in ("stop", "length")
    else:
        assert row.log_likelihoods == pytest.approx(likelihoods, rel=1e-5, abs=1e-5)
    if "choice" in name:
        assert len(row.choices) == len(row.log_likelihoods) > 1
        assert row.output == row.choices[likelihoods.index(max(likelihoods))]
    for metric in sample["metrics"]:
        value = sample[metric]
        if name == "t_rolling":
            assert row.metrics[metric] == pytest.approx(value[0], rel=1e-6)
            assert row.weights[metric] == value[1]
        elif metric == "perplexity":
            assert row.metrics[metric] == pytest.approx(value, abs=1e-5)
        else:
            assert row.metrics[metric] == value
    assert row.prompt_tokens > 0 or name == "t_last"


def test_the_arms_differ_and_the_identity_arm_does_not(tasks: Path, engine: TransformersEngine) -> None:
    suite = _suite(tasks)
    assert isinstance(suite, Suite)
    base, tuned, identity = (suite.run(engine, arm, _silent) for arm in ("base", "tuned", IDENTITY))
    assert identity == base
    assert tuned.rows != base.rows
    assert [row.prompt_sha256 for row in tuned.rows] == [row.prompt_sha256 for row in base.rows]
    assert base.task_versions["t_choice"] == "2.0"


def test_what_a_row_shows(tasks: Path, engine: TransformersEngine) -> None:
    entries = (TaskEntry(task="t_choice", cluster="topic"), TaskEntry(task="t_rolling"))
    record = EvalSuite(name="x", version="1", tasks=entries, include_path=str(tasks))
    rows = LmEvalSuite(record, Path()).run(engine, "base", _silent).rows
    choice, rolling = rows[0], rows[-1]
    assert choice.cluster == "topic 0"
    assert choice.target in (tasks / "items.jsonl").read_text("utf-8").splitlines()[0]
    assert choice.output.strip()
    assert choice.prompt.count("\n\n") == 2  # two shots and the question
    assert (choice.metrics["acc"] == 1.0) is (choice.output == choice.target)
    assert rolling.prompt_tokens > engine.max_length  # read in windows
    assert set(rolling.weights) == set(rolling.metrics)


def test_a_cluster_that_no_document_has_is_told_before_anything_is_scored(tasks: Path) -> None:
    record = EvalSuite(
        name="x", version="1", tasks=(TaskEntry(task="t_choice", cluster="topics"),), include_path=str(tasks)
    )
    with pytest.raises(TaskError, match=r"'t_choice': cluster: .* no field 'topics'; did you mean 'topic'\?"):
        LmEvalSuite(record, Path())


def test_limits_are_the_first_items_or_evenly_spaced_ones(tasks: Path, engine: TransformersEngine) -> None:
    first = _suite(tasks, ["t_choice"], limit=4).run(engine, "base", _silent).rows
    assert [row.item_id for row in first] == [0, 1, 2, 3]
    entry = TaskEntry(task="t_choice", limit=5)
    record = EvalSuite(name="x", version="1", tasks=(entry,), include_path=str(tasks))
    assert [row.item_id for row in LmEvalSuite(record, Path()).run(engine, "base", _silent).rows] == [
        0,
        2,
        5,
        8,
        11,
    ]
    both = LmEvalSuite(record, Path(), limit=3).run(engine, "base", _silent).rows
    assert [row.item_id for row in both] == [0, 2, 5]
    whole = {row.item_id: row for row in _suite(tasks, ["t_choice"]).run(engine, "base", _silent).rows}
    assert all(whole[row.item_id].doc_hash == row.doc_hash for row in both)
    assert spaced(3, None) == spaced(3, 9) == [0, 1, 2]


@pytest.mark.parametrize("chat", [False, True])
def test_chosen_items_are_asked_as_in_the_whole_run(
    chat: bool, tasks: Path, engine: TransformersEngine
) -> None:
    names = ["t_choice", "t_generate"] if chat else NAMES
    entries = tuple(TaskEntry(task=name, limit=6 if name == "t_choice" else None) for name in names)
    record = EvalSuite(
        name="x", version="1", tasks=entries, include_path=str(tasks), apply_chat_template=chat
    )
    whole = LmEvalSuite(record, Path()).run(engine, "base", _silent)
    suite = LmEvalSuite(record, Path())
    assert suite.items["t_choice"] == (0, 2, 4, 7, 9, 11)
    chosen = {name: items[-1:0:-2] for name, items in suite.items.items()}  # not in order, without the first
    assert chosen["t_choice"] == (11, 7, 2)
    part = suite.run(engine, "base", _silent, items=chosen)
    _check_equal(part.rows, [row for row in whole.rows if row.item_id in chosen[row.task]])
    assert {row.task for row in part.rows} == set(names)
    assert {result.n for result in part.results if result.task == "t_choice"} == {3}
    accuracy = next(r.value for r in part.results if (r.task, r.metric) == ("t_choice", "acc"))
    own = [row.metrics["acc"] for row in part.rows if row.task == "t_choice"]
    assert accuracy == sum(own) / 3
    assert suite.run(engine, "base", _silent) == whole
    one = suite.run(engine, "base", _silent, items={"t_generate": [3], "t_choice": []})
    assert [(row.task, row.item_id, row.filter) for row in one.rows] == [
        ("t_generate", 3, "first"),
        ("t_generate", 3, "letters"),
    ]
    _check_equal(one.rows, [row for row in whole.rows if (row.task, row.item_id) == ("t_generate", 3)])


def _check_equal(rows: list[Any], others: list[Any]) -> None:
    """Everything is the same but the last digits of log-likelihoods: other requests lie beside them."""
    for row, other in zip(rows, others, strict=True):
        assert row.log_likelihoods == pytest.approx(other.log_likelihoods, rel=1e-5)
        assert row.metrics == pytest.approx(other.metrics, rel=1e-5)
        assert replace(row, log_likelihoods=(), metrics={}) == replace(other, log_likelihoods=(), metrics={})


def test_samplings_of_chosen_items_are_those_of_the_whole_run(
    tasks: Path, engine: TransformersEngine
) -> None:
    generation = {"do_sample": True, "temperature": 1.0}
    record = EvalSuite(
        name="x",
        version="1",
        tasks=("t_generate",),
        include_path=str(tasks),
        generation=generation,
    )
    suite = LmEvalSuite(record, Path())
    whole = suite.run(engine, "base", _silent).rows
    part = suite.run(engine, "base", _silent, items={"t_generate": [5, 12]}).rows
    assert part == [row for row in whole if row.item_id in (5, 12)]
    assert len({row.output for row in whole}) > 1


def test_a_group_with_a_part_of_its_tasks_has_no_figure(tasks: Path, engine: TransformersEngine) -> None:
    suite = _suite(tasks, ["t_group"])
    part = suite.run(engine, "base", _silent, items={"t_last": [1, 2]})
    assert {result.task for result in part.results} == {"t_last"}
    both = suite.run(engine, "base", _silent, items={"t_last": [1, 2], "t_choice": [0]})
    accuracy = {r.task: r.value for r in both.results if r.metric == "acc"}
    assert accuracy["t_group"] == pytest.approx((2 * accuracy["t_last"] + accuracy["t_choice"]) / 3)


def test_items_that_the_run_does_not_ask_are_refused(tasks: Path, engine: TransformersEngine) -> None:
    suite = _suite(tasks, ["t_choice"], limit=4)
    with pytest.raises(TaskError, match="'t_choice': the run has no item 4; it has 4 items"):
        suite.run(engine, "base", _silent, items={"t_choice": [1, 4]})
    with pytest.raises(TaskError, match="'t_other': the run has no item 0; it has 0 items"):
        suite.run(engine, "base", _silent, items={"t_other": [0]})


def test_what_was_answered_is_not_asked_again(
    tasks: Path, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _suite(tasks).run(engine, "tuned", _silent)
    suite, answers = _suite(tasks), Answers()
    first = {name: items[::2] for name, items in suite.items.items()}
    early = suite.run(engine, "tuned", _silent, items=first, answers=answers)
    _check_equal(early.rows, [row for row in whole.rows if row.item_id in first[row.task]])
    asked: list[int] = []
    for name in ("score", "generate"):
        ask = getattr(engine, name)
        monkeypatch.setattr(
            engine, name, lambda arm, r, *rest, ask=ask: asked.append(len(r)) or ask(arm, r, *rest)
        )
    late = suite.run(engine, "tuned", _silent, answers=answers)
    _check_equal(late.rows, whole.rows)
    for result in late.results:
        check_figure(result, next(r.value for r in whole.results if _name(r) == _name(result)))
    assert sum(asked) == 7 * 3 + 7 + 3 + 1 + 7  # choices, texts, documents (one in two windows), endings
    asked.clear()
    assert suite.run(engine, "tuned", _silent, answers=answers) == late
    assert asked == []


def _name(result: TaskResult) -> tuple[str, str, str]:
    return result.task, result.metric, result.filter


def test_groups_and_tags_are_run_whole(tasks: Path, engine: TransformersEngine) -> None:
    suite = _suite(tasks, ["t_group", "t_generate"])
    assert suite.groups == {"t_group": ["t_choice", "t_last"]}
    assert suite.task_names == ["t_choice", "t_last", "t_generate"]
    found = suite.run(engine, "base", _silent)
    accuracy = {result.task: result.value for result in found.results if result.metric == "acc"}
    assert accuracy["t_group"] == pytest.approx((accuracy["t_choice"] + accuracy["t_last"]) / 2)
    assert _suite(tasks, ["t_all"]).groups == {"t_all": ["t_choice", "t_generate"]}


def test_shots_seed_and_generation_settings_are_the_suites(tasks: Path, engine: TransformersEngine) -> None:
    entry = TaskEntry(task="t_choice", num_fewshot=1)
    generate = TaskEntry(task="t_generate")
    record = EvalSuite(name="x", version="1", tasks=(entry, generate), include_path=str(tasks))
    plain = LmEvalSuite(record, Path()).run(engine, "base", _silent).rows
    assert plain[0].prompt.count("\n\n") == 1
    changed = record.model_copy(update={"seed": 5, "generation": {"max_gen_toks": 3}})
    other = LmEvalSuite(changed, Path()).run(engine, "base", _silent).rows
    assert other[0].prompt != plain[0].prompt  # another shot
    short = [row.output for row in other if row.task == "t_generate"]
    assert all(len(text) <= 3 for text in short)
    assert any(len(row.output) > 3 for row in plain if row.task == "t_generate")


def test_fingerprint_is_of_content_and_not_of_place(tasks: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tasks, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__"))
    here, there = _suite(tasks, ["t_last"]), _suite(copy, ["t_last"])
    assert here.fingerprint == there.fingerprint
    data = copy / "items.jsonl"
    data.write_text(data.read_text("utf-8").replace("cat", "bat"), "utf-8")
    assert _suite(copy, ["t_last"]).fingerprint != here.fingerprint
    assert _suite(tasks, ["t_choice"]).fingerprint != here.fingerprint


def test_several_suites_run_as_one(tasks: Path, engine: TransformersEngine) -> None:
    choice, rest = _suite(tasks, ["t_choice"]), _suite(tasks, ["t_last", "t_rolling"])
    both = CombinedSuite([choice, rest])
    assert isinstance(both, Suite)
    assert both.name == "tasks+tasks"
    assert both.fingerprint not in (choice.fingerprint, rest.fingerprint)
    found = both.run(engine, "base", _silent)
    assert found.rows == [
        *choice.run(engine, "base", _silent).rows,
        *rest.run(engine, "base", _silent).rows,
    ]
    assert [entry.task for entry in both.record.entries()] == ["t_choice", "t_last", "t_rolling"]
    with pytest.raises(TaskError, match="'t_choice' is in more than one"):
        CombinedSuite([choice, choice])


def test_unknown_tasks_and_missing_data(tasks: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"'t_choise'.*did you mean 't_choice'"):
        _suite(tasks, ["t_choise"])
    with pytest.raises(TaskError, match=r"'hellaswagg'.*'hellaswag'"):
        LmEvalSuite(*suite_of_tasks(["hellaswagg"], None))
    with pytest.raises(TaskError, match="'gsm8k': its data set openai/gsm8k"):
        LmEvalSuite(*suite_of_tasks(["gsm8k"], None))
    with pytest.raises(TaskError, match="asked for twice"):
        _suite(tasks, ["t_group", "t_last"])
    with pytest.raises(TaskError, match="at least 1, got 0"):
        _suite(tasks, limit=0)
    with pytest.raises(InputError, match="no such file"):
        suite_of_tasks(["t_last"], str(tmp_path / "none"))
    with pytest.raises(TaskError, match="holds no task file"):
        LmEvalSuite(*suite_of_tasks(["t_last"], str(tmp_path)))


def test_a_task_whose_code_fails_is_named(tasks: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(tasks, tmp_path / "broken")
    (broken / "utils.py").write_text("def load(**_):\n    raise KeyError('split')\n", "utf-8")
    with pytest.raises(TaskError, match="'t_last' cannot be loaded: KeyError"):
        _suite(broken, ["t_last"])


def test_what_does_not_fit_the_model_is_named(
    tasks: Path, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "max_length", 20)
    with pytest.raises(TaskError, match="t_generate: asks for 24 new tokens"):
        _suite(tasks, ["t_generate"]).run(engine, "base", _silent)
    found = _suite(tasks, ["t_choice"]).run(engine, "base", _silent)
    assert found.notes == (
        "t_choice: 14 prompts were cut on the left to fit the model; "
        "a cut prompt no longer begins as others do, so little of it is shared with them",
    )
    monkeypatch.setattr(engine.tokenizer, "chat_template", None)
    record = EvalSuite(
        name="x", version="1", tasks=("t_choice",), include_path=str(tasks), apply_chat_template=True
    )
    with pytest.raises(TaskError, match="no chat template"):
        LmEvalSuite(record, Path()).run(engine, "base", _silent)


def test_lm_eval_takes_our_engine_as_a_model(
    tasks: Path, tiny_llama: Path, tiny_adapter: Path, reference: Callable
) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    import lora_eval.suites.bridge

    assert lora_eval.suites.bridge.LoraEvalLM.__name__ == "LoraEvalLM"
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model="lora_eval",
        model_args=f"pretrained={tiny_llama},peft={tiny_adapter}",
        tasks=["t_choice", "t_generate"],
        task_manager=manager,
        bootstrap_iters=0,
        verbosity=None,
    )
    theirs = reference("tuned", ["t_choice", "t_generate"], tasks)
    assert found["results"] == theirs["results"]
