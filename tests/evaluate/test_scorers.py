"""Who answers in a comparison: stored answers, drafts, and lm-eval itself where the engine is not right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_eval.engines.store import ResultStore
from lora_eval.evaluate import Arms, FolderArm, evaluate_arms
from lora_eval.runstore import read_run
from lora_eval.suites.lm_eval import LmEvalSuite
from tests.conftest import save_tiny_adapter, save_tiny_tokenizer


def _silent(*_: Any) -> None:
    pass


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results.sqlite")


@pytest.fixture(scope="module")
def merged(tiny_llama: Path, tiny_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("merged")
    live = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), tiny_adapter)
    live.merge_and_unload().save_pretrained(folder)
    save_tiny_tokenizer(folder)
    return folder


def test_the_next_adapter_of_a_base_pays_for_itself_only(
    suite: LmEvalSuite, tiny_llama: Path, tiny_adapter: Path, tmp_path: Path, store: ResultStore
) -> None:
    save_tiny_adapter(tiny_llama, tmp_path / "next", seed=9)
    first = evaluate_arms(
        Arms(tiny_llama, {"tuned": tiny_adapter}), suite, tmp_path / "a", progress=_silent, store=store
    )
    second = evaluate_arms(
        Arms(tiny_llama, {"tuned": tmp_path / "next"}), suite, tmp_path / "b", progress=_silent, store=store
    )
    base, again = (read_run(found.runs["base"]) for found in (first, second))
    assert again.rows == base.rows
    assert again.run.work.stored_requests == again.run.work.requests == base.run.work.requests > 0
    assert (again.run.work.forwarded_tokens, base.run.work.stored_requests) == (0, 0)
    tuned, other = (read_run(found.runs["tuned"]) for found in (first, second))
    assert other.rows != tuned.rows  # same name, other weights: never the first one's answers
    assert other.run.work.stored_requests == 0


def test_a_merged_model_is_answered_with_drafts_of_its_adapter(
    suite: LmEvalSuite, tiny_llama: Path, tiny_adapter: Path, merged: Path, tmp_path: Path
) -> None:
    arms = Arms(tiny_llama, {"tuned": tiny_adapter}, [FolderArm("shipped", "merged", merged)])
    found = evaluate_arms(arms, suite, tmp_path / "with", progress=_silent)
    alone = evaluate_arms(
        Arms(merged), suite, tmp_path / "alone", progress=_silent
    )  # nothing to take drafts from
    shipped, plain = read_run(found.runs["shipped"]), read_run(alone.runs["base"])
    assert [row.output for row in shipped.rows] == [row.output for row in plain.rows]
    assert shipped.run.work.accepted_tokens > 0.9 * shipped.run.work.drafted_tokens > 0
    assert read_run(found.runs["base"]).run.work.drafted_tokens == plain.run.work.drafted_tokens == 0
    assert shipped.run.work.ratio == pytest.approx(
        shipped.run.work.requested_tokens / shipped.run.work.forwarded_tokens, abs=1e-3
    )


def test_a_model_that_the_engine_does_not_cover_is_answered_by_lm_eval(
    suite: LmEvalSuite, tmp_path: Path, store: ResultStore
) -> None:
    """MPT counts positions by place in the row: the token tree would give wrong numbers without an error."""
    import torch
    from transformers import MptConfig, MptForCausalLM

    folder = tmp_path / "mpt"
    torch.manual_seed(0)
    config = MptConfig(d_model=64, n_heads=4, n_layers=2, max_seq_len=1024, vocab_size=320, eos_token_id=257)
    MptForCausalLM(config).save_pretrained(folder)
    save_tiny_tokenizer(folder)
    save_tiny_adapter(folder, tmp_path / "adapter")
    found = evaluate_arms(
        Arms(folder, {"tuned": tmp_path / "adapter"}), suite, tmp_path / "out", progress=_silent, store=store
    )
    (note,) = [note for note in found.notes if "lm-eval's own path is used" in note]
    assert note.startswith("base, tuned: ")
    assert {read_run(run).run.engine for run in found.runs.values()} == {"lm-eval-hf"}
    assert found.controls["identity"]["passed"]


def test_reference_checks_are_in_the_controls(
    suite: LmEvalSuite, tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    found = evaluate_arms(
        Arms(tiny_llama, {"tuned": tiny_adapter}), suite, tmp_path, progress=_silent, check_reference=4
    )
    checks = found.controls["reference"]
    assert list(checks) == ["base", "tuned"]
    for check in checks.values():
        assert check["log_likelihoods"] > 0
        assert check["max_relative_difference"] < 1e-5
        assert check["choice_flips"] == check["text_differences"] == check["metric_flips"] == 0
