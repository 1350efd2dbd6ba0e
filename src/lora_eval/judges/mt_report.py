"""MT-Bench's figures from ratings: FastChat's means, by turn and category, and paired differences of
models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lora_eval.errors import InputError
from lora_eval.judges.mt_bench import CATEGORIES
from lora_eval.judges.mt_rows import Rating
from lora_eval.judges.ratings import parse_rating
from lora_eval.records import CategoryScore, JudgeReport, MtBenchScore, ScoreDifference
from lora_eval.stats import cluster_mean, paired_scores

Group = dict[tuple[str, str], list[Rating]]


def report_ratings(
    ratings: Sequence[Rating], sources: Sequence[str], base: str | None = None, level: float = 0.95
) -> JudgeReport:
    """Return the score of each model under each judge, and every model's difference from `base`.

    `base` is a model's name; None: the first one of the files.

    Raises:
        InputError: there is no model `base`.
    """
    groups: Group = {}
    for rating in ratings:
        groups.setdefault((rating.model, rating.judge), []).append(rating)
    models = [model for model, _ in groups]
    names = {key: key[0] if models.count(key[0]) == 1 else f"{key[0]} ({key[1]})" for key in groups}
    if base is not None and base not in models:
        raise InputError(f"--base: no judgment of '{base}'; there are: {', '.join(dict.fromkeys(models))}")
    return JudgeReport(
        suite="mt-bench",
        sources=tuple(sources),
        models={names[key]: _score(group) for key, group in groups.items()},
        differences=tuple(_differences(groups, base or models[0], level)),
        notes=tuple(note for key, group in groups.items() for note in _doubts(names[key], group)),
    )


def _score(group: Sequence[Rating]) -> MtBenchScore:
    scored = [rating for rating in group if rating.score is not None]
    average, error = _mean(scored)
    turns = [[rating for rating in scored if rating.turn == turn] for turn in (1, 2)]
    strict, differs = _strict(group)
    return MtBenchScore(
        first_turn=_mean(turns[0])[0],
        second_turn=_mean(turns[1])[0],
        average=average,
        standard_error=error,
        n=len(scored),
        n_first_turn=len(turns[0]),
        n_second_turn=len(turns[1]),
        n_invalid=len(group) - len(scored),
        judge=group[0].judge,
        categories=_categories(scored),
        strict_average=strict,
        n_strict_differs=differs,
    )


def _mean(ratings: Sequence[Rating]) -> tuple[float | None, float | None]:
    if not ratings:
        return None, None
    scores = np.asarray([rating.score for rating in ratings], dtype=np.float64)
    found = cluster_mean(scores, clusters=[rating.question for rating in ratings])
    return found.mean, found.standard_error


def _categories(scored: Sequence[Rating]) -> dict[str, CategoryScore]:
    found = {}
    for category in CATEGORIES:
        mine = [rating for rating in scored if rating.category == category]
        mean, error = _mean(mine)
        if mean is not None:
            found[category] = CategoryScore(score=mean, standard_error=error, n=len(mine))
    return found


def _strict(group: Sequence[Rating]) -> tuple[float | None, int | None]:
    """The average by the strict rule, and how many texts it reads differently."""
    texts = [rating.text for rating in group if rating.text is not None]
    if len(texts) < len(group):
        return None, None
    ratings = [parse_rating(text, "strict") for text in texts]
    valid = [rating for rating in ratings if rating is not None]
    differs = sum(rating != other.score for rating, other in zip(ratings, group, strict=True))
    return (math.fsum(valid) / len(valid) if valid else None), differs


def _differences(groups: Group, base: str, level: float) -> list[ScoreDifference]:
    found = []
    for (model, judge), group in groups.items():
        if model != base and (base, judge) in groups:
            found.append(_difference(groups[base, judge], group, level))
    return found


def _difference(a: Sequence[Rating], b: Sequence[Rating], level: float) -> ScoreDifference:
    first, second = _by_item(a), _by_item(b)
    common = [item for item in first if item in second]
    estimate = paired_scores(
        [first[item] for item in common],
        [second[item] for item in common],
        [question for question, _ in common],
        level,
    )
    return ScoreDifference(
        a=a[0].model,
        b=b[0].model,
        judge=b[0].judge,
        n=estimate.n,
        clusters=len({question for question, _ in common}),
        difference=estimate.difference,
        ci_low=estimate.ci_low,
        ci_high=estimate.ci_high,
        level=level,
        p_value=estimate.p_value,
        mde=estimate.mde,
        method=estimate.method,
        higher=estimate.higher,
        lower=estimate.lower,
        ties=estimate.ties,
        reason=estimate.reason,
    )


def _by_item(ratings: Sequence[Rating]) -> dict[tuple[str, int], float]:
    """Mean score of each (question, turn): a question may have been judged more than once."""
    scores: dict[tuple[str, int], list[float]] = {}
    for rating in ratings:
        if rating.score is not None:
            scores.setdefault((rating.question, rating.turn), []).append(rating.score)
    return {item: math.fsum(values) / len(values) for item, values in scores.items()}


def _doubts(name: str, group: Sequence[Rating]) -> list[str]:
    notes = []
    invalid = sum(rating.score is None for rating in group)
    if invalid:
        notes.append(f"{name}: {invalid} of {len(group)} judgments have no rating and are in no mean")
    repeated = len(group) - len({(rating.question, rating.turn) for rating in group})
    if repeated:
        notes.append(f"{name}: {repeated} judgments repeat a question and turn; all count, as in FastChat")
    read = [rating for rating in group if rating.text is not None]
    wrong = sum(parse_rating(rating.text or "") != rating.score for rating in read)
    if wrong:
        notes.append(f"{name}: {wrong} stored scores are not what FastChat's rule reads in their text")
    differs = _strict(group)[1]
    if differs:
        notes.append(f"{name}: the strict rule reads {differs} texts differently (strict_average)")
    return notes
