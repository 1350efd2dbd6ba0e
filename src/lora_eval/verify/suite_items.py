"""A suite on both arms: which tokens its items are, and how many right items became wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from lora_eval.engines.wrapped import WrappedEngine
from lora_eval.errors import InputError
from lora_eval.protocols import (
    Engine,
    Finished,
    GenerateRequest,
    Generation,
    Progress,
    Score,
    ScoreRequest,
    SuiteResult,
)
from lora_eval.records import EvalSuite, LoadedRun, Run, Variant
from lora_eval.records.verification import SuiteCheck
from lora_eval.reports.numbers import about_text
from lora_eval.stats import judge, paired_binary
from lora_eval.stats.pairing import index_rows, pair_rows, rows_of_tasks
from lora_eval.stats.tasks import Unit, list_units
from lora_eval.verify.prompts import Asked, spaced


class AnySuite(Protocol):
    """A suite of lm-eval tasks, or several as one (see `suites`)."""

    name: str
    fingerprint: str
    limit: int | None
    record: EvalSuite

    @property
    def groups(self) -> dict[str, list[str]]:
        """The leaf tasks of every entry that is a group."""

    def run(self, engine: Engine, arm: str, progress: Progress) -> SuiteResult:
        """Score every item on the arm."""


class Recorder(WrappedEngine):
    """An engine that remembers what it was asked, one request for each prompt, with its answers."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.seen: dict[tuple[int, ...], tuple[int, ...]] = {}  # prompt -> what follows it

    def score(
        self, arm: str, requests: Sequence[ScoreRequest], progress: Progress, finished: Finished | None = None
    ) -> list[Score]:
        """As the engine; of the choices of one prompt the likeliest is remembered."""
        scores = self._engine.score(arm, requests, progress, finished)
        best: dict[tuple[int, ...], float] = {}
        for request, score in zip(requests, scores, strict=True):
            if score.log_likelihood > best.get(request.context_ids, float("-inf")):
                best[request.context_ids] = score.log_likelihood
                self.seen[request.context_ids] = request.continuation_ids
        return scores

    def generate(
        self,
        arm: str,
        requests: Sequence[GenerateRequest],
        progress: Progress,
        finished: Finished | None = None,
    ) -> list[Generation]:
        """As the engine; answers are remembered."""
        answers = self._engine.generate(arm, requests, progress, finished)
        self.seen |= {
            request.input_ids: found.token_ids for request, found in zip(requests, answers, strict=True)
        }
        return answers

    def asked(self, samples: int, new_tokens: int) -> list[Asked]:
        """Return at most `samples` of the prompts, evenly spaced, each with the start of its answer."""
        chosen = spaced(list(self.seen.items()), samples)
        cut = [(prompt, following[:new_tokens]) for prompt, following in chosen]
        return [Asked(prompt + following, len(prompt), source="suite") for prompt, following in cut]


def loaded(suite: AnySuite, arm: str, variant: Variant, engine: Engine, found: SuiteResult) -> LoadedRun:
    """Return a suite's result as the run that statistics take."""
    run = Run(
        arm=arm,
        variant=variant,
        suite=suite.name,
        suite_fingerprint=suite.fingerprint,
        engine=engine.name,
        dtype=engine.dtype,
        limit=suite.limit,
        results=tuple(found.results),
        task_versions=found.task_versions,
    )
    return LoadedRun(run, found.rows)


def check_suite(
    suite: AnySuite, reference: LoadedRun, candidate: LoadedRun, margin: float, level: float = 0.95
) -> SuiteCheck:
    """Return candidate minus reference over all right-or-wrong items of the suite, and whether the candidate
    is shown to be no worse than `margin`.

    One figure for each item: that on which the task's verdict rests in a comparison. Items that depend on
    each other (a task with clusters) count by cluster.
    """
    untested = SuiteCheck(
        name=suite.name,
        fingerprint=suite.fingerprint,
        items=0,
        gained=0,
        lost=0,
        difference=None,
        ci_low=None,
        ci_high=None,
        level=level,
        p_value=None,
        method="none",
        margin=margin,
        verdict=None,
        reason="no task of the suite says right or wrong of each item",
    )
    try:
        a, b, clusters = _values(suite, reference, candidate)
    except InputError as error:  # other prompts: the candidate's tokenizer or template is another one
        return untested.model_copy(update={"reason": str(error)})
    if not a:
        return untested
    found = paired_binary(a, b, level, clusters)
    judged = judge(found, found.p_value, higher_is_better=True, margin=margin)
    tested = {
        "items": found.n,
        "gained": found.higher,
        "lost": found.lower,
        "difference": found.difference,
        "ci_low": found.ci_low,
        "ci_high": found.ci_high,
        "p_value": found.p_value,
        "method": found.method,
        "verdict": judged.verdict,
        "reason": judged.reason,
        "n_needed": judged.n_needed,
    }
    return untested.model_copy(update=tested)


def suite_failures(suite: SuiteCheck, expected: str) -> list[str]:
    """Return why the suite fails the candidate: it is worse; or, of a quantized model, it is not shown to be
    no worse than the margin.
    """
    if suite.verdict is None:
        return [f"suite {suite.name}: {suite.reason}"] if suite.items == 0 and expected == "near" else []
    found = f"{suite.lost} right items became wrong and {suite.gained} wrong ones right, of {suite.items}"
    if suite.verdict == "worse":
        return [f"suite {suite.name}: worse than the reference: {found} (p {suite.p_value:.2g})"]
    if expected == "near" and suite.verdict == "inconclusive":
        parts = [
            found if suite.ci_low is None else f"{found}, interval from {suite.ci_low:+.3f}",
            suite.reason,
            f"about {about_text(suite.n_needed)} items would decide" if suite.n_needed else None,
        ]
        said = "; ".join(part for part in parts if part)
        return [f"suite {suite.name}: not shown to lose less than {suite.margin:g}: {said}"]
    return []


def _values(
    suite: AnySuite, reference: LoadedRun, candidate: LoadedRun
) -> tuple[list[float], list[float], list[str]]:
    """Every right-or-wrong item once: 1 where it is right, for both arms, and its cluster."""
    names = reference.run.arm, f"{candidate.run.arm} (candidate)"
    runs = dict(zip(names, (reference, candidate), strict=True))
    indexed = [index_rows(run.rows, name) for name, run in runs.items()]
    a: list[float] = []
    b: list[float] = []
    clusters: list[str] = []
    for unit in list_units(runs, suite.record, suite.groups, {}):
        if not unit.primary:
            continue
        first, second = (rows_of_tasks(rows, unit.leaves, unit.filter) for rows in indexed)
        pairs = pair_rows(first, second, unit.metric, (names[0], names[1]))
        one, two = _right(unit, pairs.first), _right(unit, pairs.second)
        if one is None or two is None:
            continue
        a += one
        b += two
        clusters += [f"{row.task}\0{row.cluster or row.item_id}" for row in pairs.first]
    return a, b, clusters


def _right(unit: Unit, rows: Sequence[Any]) -> list[float] | None:
    """Whether each item is right; None for a figure that is no yes or no."""
    values = [float(row.metrics[unit.metric]) for row in rows]
    if any(value not in (0.0, 1.0) for value in values):
        return None
    return values if unit.higher_is_better else [1 - value for value in values]
