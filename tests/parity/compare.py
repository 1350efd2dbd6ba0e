"""One suite on our engine and on lm-eval's own model, and what is not the same."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_eval.fingerprint import sha256_text
from lora_eval.models.quiet import without_gptqmodel
from lora_eval.protocols import GenerateRequest, Generation, Score, ScoreRequest
from lora_eval.records import EvalSuite, SampleRow
from lora_eval.suites.lm_eval import LmEvalSuite, quiet

# Functions of log-likelihoods, which agree as well as these do; all other figures are equal or not.
OF_LIKELIHOODS = {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"}
TOLERANCE = 1e-5


@dataclass(slots=True)
class TaskParity:
    """How far one task's answers are from lm-eval's: relative for log-likelihoods, else counts; `metrics`
    says in words which figures are not the same. `prompts` is a hash of what was asked, `longest` its most
    tokens, and `cut` whether some of them did not fit.
    """

    task: str
    items: int = 0
    requests: int = 0
    worst: float = 0.0
    greedy_flips: int = 0
    text_differences: int = 0
    stops: int = 0
    metrics: list[str] = field(default_factory=list)
    prompts: str = ""
    longest: int = 0
    cut: bool = False

    @property
    def equal(self) -> bool:
        """Whether everything is as it should be."""
        return self.worst <= TOLERANCE and not (self.greedy_flips or self.text_differences or self.metrics)


class Recorded:
    """An engine that remembers its scores, for `is_greedy`, which a suite's rows do not hold."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.calls: list[list[Score]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def score(self, arm: str, requests: Sequence[ScoreRequest], *rest: Any) -> list[Score]:
        self.calls.append(self._engine.score(arm, requests, *rest))
        return self.calls[-1]

    def generate(self, arm: str, requests: Sequence[GenerateRequest], *rest: Any) -> list[Generation]:
        return self._engine.generate(arm, requests, *rest)


def suite_of(names: Sequence[str], folder: Path, **options: Any) -> LmEvalSuite:
    """Return these tasks of the folder as one suite."""
    record = EvalSuite(name="parity", version="1", tasks=tuple(names), include_path=str(folder), **options)
    return LmEvalSuite(record, Path())


def stock_model(base: Path, adapter: Path | None) -> Any:
    """Return lm-eval's own model at batch size 1, loaded on its own: the base, or PEFT's model around it."""
    from lm_eval.models.huggingface import HFLM
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base).eval()
    with quiet(), without_gptqmodel():
        if adapter is not None:
            # Given as an object: by name, lm-eval would shrink the embedding to the tokenizer's length.
            model = PeftModel.from_pretrained(model, adapter).eval()
        return HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(base), batch_size=1)


def stock_results(
    lm: Any,
    names: Sequence[str],
    folder: Path,
    *,
    chat: bool = False,
    generation: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what `lm_eval.simple_evaluate` gives with its own model."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    with quiet():
        found = lm_eval.simple_evaluate(
            model=lm,
            tasks=list(names),
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=0,
            verbosity=None,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            gen_kwargs=dict(generation) if generation else None,
        )
    return dict(found)


def compare(suite: LmEvalSuite, engine: Any, arm: str, theirs: dict[str, Any]) -> dict[str, TaskParity]:
    """Run the suite on the engine's arm and return, by task, what differs from lm-eval's results."""
    recorded = Recorded(engine)
    found = suite.run(recorded, arm, lambda *_: None)
    parities = {name: TaskParity(name) for name in suite.task_names}
    for name, parity in parities.items():
        rows = [row for row in found.rows if row.task == name]
        samples = theirs["samples"][name]
        assert len(rows) == len(samples) > 0, name
        first = {row.item_id: row.filter for row in reversed(rows)}  # its answer stands in every filter's row
        for row, sample in zip(rows, samples, strict=True):
            if row.filter == first[row.item_id]:
                _compare_answers(parity, row, sample)
            _compare_metrics(parity, row, sample)
        parity.items = len(first)
        parity.prompts = sha256_text("".join(row.prompt_sha256 for row in rows))
        parity.longest = max(row.prompt_tokens or 0 for row in rows)
        parity.cut = any(note.startswith(f"{name}: ") for note in found.notes)
    for result in found.results:
        value = theirs["results"][result.task][f"{result.metric},{result.filter}"]
        if not _same(result.task, result.metric, result.value, value):
            parities[result.task].metrics.append(f"{result.metric}: {result.value} for {value}")
    _compare_greedy(parities, recorded.calls, theirs["samples"])
    return parities


def _compare_answers(parity: TaskParity, row: SampleRow, sample: dict[str, Any]) -> None:
    if row.finish_reason:
        parity.requests += 1
        parity.stops += row.finish_reason == "stop"
        parity.text_differences += row.output != sample["resps"][0][0]
        return
    values = [r[0] if isinstance(r, tuple) else r for r in sample["filtered_resps"]]
    assert len(values) == len(row.log_likelihoods) > 0
    parity.requests += len(values)
    pairs = zip(row.log_likelihoods, values, strict=True)
    parity.worst = max([parity.worst, *(abs(a - b) / abs(b) for a, b in pairs)])


def _compare_metrics(parity: TaskParity, row: SampleRow, sample: dict[str, Any]) -> None:
    assert (row.item_id, row.filter, row.doc_hash) == (
        sample["doc_id"],
        sample["filter"],
        sample["doc_hash"],
    )
    for name in sample["metrics"]:
        value = sample[name]
        value = value[0] if isinstance(value, tuple) else value  # a log-likelihood and its weight
        if isinstance(value, (int, float)) and not _same(row.task, name, row.metrics[name], value, item=True):
            parity.metrics.append(f"item {row.item_id}, {name}: {row.metrics[name]} for {value}")


def _same(task: str, metric: str, ours: float | None, theirs: float, *, item: bool = False) -> bool:
    if metric in OF_LIKELIHOODS and ours is not None:
        if not item and metric != "bits_per_byte":
            ours, theirs = math.log(ours), math.log(theirs)
        return math.isclose(ours, theirs, rel_tol=TOLERANCE)
    if task == "truthfulqa_mc2" and ours is not None:  # a share of exp(log-likelihood)
        return math.isclose(ours, theirs, abs_tol=1e-3)
    return ours == theirs


def _compare_greedy(parities: dict[str, TaskParity], calls: list[list[Score]], samples: Any) -> None:
    """lm-eval asks for all log-likelihoods of its tasks in one call, in the order of the tasks."""
    wanted = [
        (name, response[0])
        for name in parities
        for sample in samples[name]
        for response in sample["resps"]
        if isinstance(response[0], tuple)
    ]
    if not wanted:
        return
    scores = next(call for call in calls if len(call) == len(wanted) and _are(call, wanted))
    for score, (name, (_, greedy)) in zip(scores, wanted, strict=True):
        parities[name].greedy_flips += score.is_greedy is not greedy


def _are(call: Sequence[Score], wanted: Sequence[Any]) -> bool:
    """Whether these are the scores of those requests, and not of documents."""
    pairs = zip(call, wanted, strict=True)
    return all(math.isclose(score.log_likelihood, value, rel_tol=1e-3) for score, (_, (value, _)) in pairs)
