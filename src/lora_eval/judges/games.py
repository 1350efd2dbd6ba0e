"""Games: two answers to one prompt shown to a judge in one order; and what they say of each pair of arms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lora_eval.judges.lengths import length_adjusted, undefined
from lora_eval.judges.logistic import Values
from lora_eval.records import Figures, LengthAdjusted, PairCounts, PairRate
from lora_eval.stats import cluster_mean, paired_scores


@dataclass(frozen=True, slots=True)
class Game:
    """One verdict. `score` is b's, whichever was shown first: 0 (a is better), 1/2, 1, or a probability;
    None: no verdict. `item` is what was judged (one turn), `prompt` the cluster that it belongs to.
    """

    judge: str
    prompt: str
    item: str
    a: str
    b: str
    first: Literal["a", "b"]
    score: float | None
    length_a: int | None = None
    length_b: int | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """All games of one pair on one item. `score` is the mean of both orders' means; None: an order of it has
    no verdict. `orders` are the mean scores of the orders asked, those with a first.
    """

    prompt: str
    score: float | None
    orders: tuple[float, ...]
    length_a: int | None
    length_b: int | None


def pair_rates(games: Sequence[Game], level: float = 0.95) -> list[PairRate]:
    """Return the rate of each pair of arms under each judge, in the order of the games."""
    return [_rate(group, level) for group in _by_pair(games).values()]


def pair_counts(games: Sequence[Game]) -> dict[str, Figures]:
    """Return FastChat's counts of each arm over all its pairs: a win is one in both orders, all else is a
    tie.

    Items without a verdict in an order are left out (fastchat/llm_judge/show_result.py). With several judges,
    each arm has a line for each.
    """
    found: dict[tuple[str, str], list[int]] = {}
    for group in _by_pair(games).values():
        for item in _items(group):
            if item.score is None:
                continue
            b = _agreed(item)
            for arm, place in ((group[0].a, 1 - b), (group[0].b, b)):
                counts = found.setdefault((arm, group[0].judge), [0, 0, 0])
                counts[{1.0: 0, 0.0: 1}.get(place, 2)] += 1
    arms = [arm for arm, _ in found]
    return {
        arm if arms.count(arm) == 1 else f"{arm} ({judge})": _counts(counts, judge)
        for (arm, judge), counts in found.items()
    }


def _rate(group: Sequence[Game], level: float) -> PairRate:
    items = _items(group)
    judged = [item for item in items if item.score is not None]
    scores = np.asarray([item.score for item in judged], dtype=np.float64)
    prompts = [item.prompt for item in judged]
    estimate = paired_scores(np.full(len(scores), 0.5), scores, prompts, level)
    agreed = [_agreed(item) for item in judged]
    invalid = len(items) - len(judged)
    rate = float(scores.mean()) if len(judged) else None
    both = [item for item in judged if len(item.orders) == 2]
    return PairRate(
        a=group[0].a,
        b=group[0].b,
        judge=group[0].judge,
        n=len(judged),
        clusters=len(set(prompts)),
        rate=rate,
        standard_error=cluster_mean(scores, clusters=prompts).standard_error if judged else None,
        ci_low=None if estimate.ci_low is None else max(0.0, 0.5 + estimate.ci_low),
        ci_high=None if estimate.ci_high is None else min(1.0, 0.5 + estimate.ci_high),
        level=level,
        p_value=estimate.p_value,
        mde=estimate.mde,
        win=agreed.count(1.0),
        loss=agreed.count(0.0),
        tie=len(agreed) - agreed.count(1.0) - agreed.count(0.0),
        order_agreement=sum(_side(item.orders[0]) == _side(item.orders[1]) for item in both) / len(both)
        if both
        else None,
        position_rate=position_rate(group),
        mean_length_a=_mean([item.length_a for item in judged]),
        mean_length_b=_mean([item.length_b for item in judged]),
        length_adjusted=_adjusted(judged, scores, level),
        n_invalid=invalid,
        rate_worst=None if not items else float(scores.sum()) / len(items),
        rate_best=None if not items else (float(scores.sum()) + invalid) / len(items),
        reason=estimate.reason,
    )


def position_rate(games: Sequence[Game]) -> float | None:
    """Return the share of decided games that the answer shown first won; None where none was decided."""
    scores = [(game.score, game.first) for game in games if game.score is not None and game.score != 0.5]
    if not scores:
        return None
    return sum(score < 0.5 if first == "a" else score > 0.5 for score, first in scores) / len(scores)


def items_of(games: Sequence[Game]) -> list[Item]:
    """Return the items of every pair of arms under every judge."""
    return [item for group in _by_pair(games).values() for item in _items(group)]


def _items(group: Sequence[Game]) -> list[Item]:
    by_item: dict[str, list[Game]] = {}
    for game in group:
        by_item.setdefault(game.item, []).append(game)
    # An order that was never asked of any item is no missing verdict; one that was asked is.
    asked = [order for order in ("a", "b") if any(game.first == order for game in group)]
    return [_item(games, asked) for games in by_item.values()]


def _item(games: Sequence[Game], asked: Sequence[str]) -> Item:
    orders = []
    for order in asked:
        scores = [game.score for game in games if game.first == order and game.score is not None]
        if scores:
            orders.append(math.fsum(scores) / len(scores))
    whole = len(orders) == len(asked)
    return Item(
        prompt=games[0].prompt,
        score=math.fsum(orders) / len(orders) if whole else None,
        orders=tuple(orders),
        length_a=games[0].length_a,
        length_b=games[0].length_b,
    )


def _agreed(item: Item) -> float:
    """1 or 0 where every order says so, else 1/2."""
    sides = {_side(score) for score in item.orders}
    return sides.pop() if len(sides) == 1 else 0.5


def _side(score: float) -> float:
    return 1.0 if score > 0.5 else 0.0 if score < 0.5 else 0.5


def _adjusted(items: Sequence[Item], scores: Values, level: float) -> LengthAdjusted:
    longer = [
        item.length_b - item.length_a
        for item in items
        if item.length_a is not None and item.length_b is not None
    ]
    if len(longer) < len(items):
        return undefined(level, "the lengths of the answers were not stored")
    return length_adjusted(
        scores, np.asarray(longer, dtype=np.float64), [item.prompt for item in items], level
    )


def _by_pair(games: Sequence[Game]) -> dict[tuple[str, str, str], list[Game]]:
    """Games by judge and pair; a pair named the other way round is turned, so that each is one group."""
    groups: dict[tuple[str, str, str], list[Game]] = {}
    for game in games:
        key = (game.judge, game.a, game.b)
        turned = (game.judge, game.b, game.a)
        if turned in groups:
            groups[turned].append(_turned(game))
        else:
            groups.setdefault(key, []).append(game)
    return groups


def _turned(game: Game) -> Game:
    return Game(
        judge=game.judge,
        prompt=game.prompt,
        item=game.item,
        a=game.b,
        b=game.a,
        first="b" if game.first == "a" else "a",
        score=None if game.score is None else 1.0 - game.score,
        length_a=game.length_b,
        length_b=game.length_a,
    )


def _counts(counts: Sequence[int], judge: str) -> PairCounts:
    win, loss, tie = counts
    n = sum(counts)
    return PairCounts(
        win=win,
        loss=loss,
        tie=tie,
        win_rate=win / n,
        loss_rate=loss / n,
        win_rate_adjusted=(win + 0.5 * tie) / n,
        judge=judge,
    )


def _mean(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None
