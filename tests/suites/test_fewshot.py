"""The fixed few-shot mode: one draw for all items, under a name of its own; never what is run by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.samplers import ContextSampler, FirstNSampler

from lora_eval.engines.transformers import TransformersEngine
from lora_eval.errors import TaskError
from lora_eval.suites.catalog import suite_of_tasks
from lora_eval.suites.combined import CombinedSuite
from lora_eval.suites.fewshot import NOTE, FixedShots, fixed_shots
from lora_eval.suites.lm_eval import LmEvalSuite


def _silent(*_: Any) -> None:
    pass


def _shots(prompt: str) -> str:
    return prompt.rpartition("\n\n")[0]


def test_items_share_their_shots_and_are_never_their_own(tasks: Path, engine: TransformersEngine) -> None:
    record, folder = suite_of_tasks(["t_choice"], str(tasks))
    usual, fixed = LmEvalSuite(record, folder), LmEvalSuite(record, folder, fixed_fewshot=True)
    before = usual.run(engine, "base", _silent)
    found = fixed.run(engine, "base", _silent)
    shots = [_shots(row.prompt) for row in found.rows]
    common = max(set(shots), key=shots.count)
    others = [row for row, own in zip(found.rows, shots, strict=True) if own != common]
    # Two shots are drawn, and one more for an item that is among them.
    assert len(others) == 2
    for row in found.rows:
        assert row.prompt.rpartition("\n\n")[2] not in _shots(row.prompt)
    for row in others:
        assert row.prompt.rpartition("\n\n")[2] in common
    assert len({_shots(row.prompt) for row in before.rows}) > 3
    assert [row.prompt for row in fixed.run(engine, "tuned", _silent).rows] == [
        row.prompt for row in found.rows
    ]
    assert usual.run(engine, "base", _silent) == before


def test_the_first_draw_is_lm_evals_own(tasks: Path, engine: TransformersEngine) -> None:
    record, folder = suite_of_tasks(["t_choice"], str(tasks))
    usual = LmEvalSuite(record, folder).run(engine, "base", _silent).rows[0]
    fixed = LmEvalSuite(record, folder, fixed_fewshot=True).run(engine, "base", _silent).rows[0]
    assert fixed.prompt == usual.prompt


def test_it_is_labelled_and_cannot_be_paired_with_the_standard(
    tasks: Path, engine: TransformersEngine
) -> None:
    record, folder = suite_of_tasks(["t_choice"], str(tasks))
    usual, fixed = LmEvalSuite(record, folder), LmEvalSuite(record, folder, fixed_fewshot=True)
    assert usual.fingerprint != fixed.fingerprint
    assert fixed.name == fixed.record.name == "tasks (fixed few-shot)"
    assert usual.run(engine, "base", _silent).notes == ()
    assert fixed.run(engine, "base", _silent).notes == (NOTE,)
    other = LmEvalSuite(*suite_of_tasks(["t_last"], str(tasks)), fixed_fewshot=True)
    both = CombinedSuite([fixed, other])
    assert "fixed few-shot" in both.name
    assert both.run(engine, "base", _silent).notes == (NOTE,)


def test_more_copies_of_an_item_than_one_are_left_out() -> None:
    docs = [{"q": "same"}, {"q": "same"}, {"q": "a"}, {"q": "b"}, {"q": "c"}]
    for seed in range(20):
        shots = FixedShots(ContextSampler(docs, rnd=seed)).sample(n=2, eval_doc={"q": "same"})
        assert len(shots) == 2
        assert {"q": "same"} not in shots


def test_first_n_is_left_alone_and_code_of_its_own_is_refused(tasks: Path) -> None:
    from lora_eval.suites.task_index import load_tasks

    task = load_tasks(["t_choice"], tasks).load(["t_choice"])["tasks"]["t_choice"]
    sampler = task.sampler
    with fixed_shots({"t_choice": task}):
        assert isinstance(task.sampler, FixedShots)
    assert task.sampler is sampler
    task.sampler = FirstNSampler(sampler.df)
    with fixed_shots({"t_choice": task}):
        assert isinstance(task.sampler, FirstNSampler)
    del task.sampler
    with (
        pytest.raises(TaskError, match="'t_choice' draws its shots in code of its own"),
        fixed_shots({"t": task}),
    ):
        pass
