"""Bradley-Terry strengths of three arms or more, from all games together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lora_eval.judges.games import Game
from lora_eval.judges.logistic import Values, cluster_covariance, fit
from lora_eval.records import BradleyTerry, Strength, VariancePart
from lora_eval.stats import StudentLaw
from lora_eval.stats.differences import number_clusters


def bradley_terry(games: Sequence[Game], level: float = 0.95) -> list[BradleyTerry]:
    """Return one fit for each judge that saw three arms or more, all linked by games.

    logit P(first wins) = strength(first) - strength(second) + position, a tie counting half for each; prompts
    are the clusters of the covariance. Two arms need none: there the strength is the logit of the rate.
    """
    found = []
    for judge in dict.fromkeys(game.judge for game in games):
        played = [game for game in games if game.judge == judge and game.score is not None]
        arms = list(dict.fromkeys(arm for game in played for arm in (game.a, game.b)))
        prompts = {game.prompt for game in played}
        if len(arms) >= 3 and len(prompts) >= 2 and _linked(arms, played):
            found.append(_fit(judge, arms, played, level))
    return found


def _fit(judge: str, arms: Sequence[str], games: Sequence[Game], level: float) -> BradleyTerry:
    place = {arm: number for number, arm in enumerate(arms)}
    design: Values = np.zeros((len(games), len(arms)))  # the first arm's column is that of the position
    labels = np.zeros(len(games))
    for number, game in enumerate(games):
        first, second = (game.a, game.b) if game.first == "a" else (game.b, game.a)
        score = game.score or 0.0
        labels[number] = 1.0 - score if game.first == "a" else score
        design[number, place[first]] += 1.0
        design[number, place[second]] -= 1.0
    design[:, 0] = 1.0
    both = _position_known(games)
    if not both:
        design = design[:, 1:]
    weights = np.ones(len(games))
    beta = fit(design, labels, weights)
    clusters = number_clusters([game.prompt for game in games], len(games))
    covariance = cluster_covariance(design, labels, weights, beta, clusters)
    units = int(clusters.max()) + 1
    errors = np.sqrt(np.diag(covariance))
    strengths = [
        _strength(arm, beta[k], errors[k], units, level)
        for k, arm in enumerate(arms[1:], start=1 if both else 0)
    ]
    reference = Strength(arm=arms[0], strength=0.0, standard_error=None, ci_low=None, ci_high=None)
    return BradleyTerry(
        judge=judge,
        arms=(reference, *strengths),
        position=float(beta[0]) if both else None,
        position_standard_error=float(errors[0]) if both else None,
        games=len(games),
        clusters=units,
        level=level,
    )


def _strength(arm: str, value: Values, error: Values, units: int, level: float) -> Strength:
    low = high = None
    if error > 0.0:
        part = VariancePart(source="items", variance=float(error) ** 2, degrees_of_freedom=units - 1)
        low, high = StudentLaw(float(value), (part,)).interval(level)
    return Strength(arm=arm, strength=float(value), standard_error=float(error), ci_low=low, ci_high=high)


def _position_known(games: Sequence[Game]) -> bool:
    """Whether some pair was shown in both orders: else position and strength cannot be told apart."""
    orders: dict[tuple[str, str], set[str]] = {}
    for game in games:
        orders.setdefault((game.a, game.b), set()).add(game.first)
    return any(len(seen) == 2 for seen in orders.values())


def _linked(arms: Sequence[str], games: Sequence[Game]) -> bool:
    linked = {arms[0]}
    for _ in arms:
        linked |= {arm for game in games if {game.a, game.b} & linked for arm in (game.a, game.b)}
    return linked == set(arms)
