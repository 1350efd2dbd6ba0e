"""Games in both orders: the estimand, position bias, FastChat's counts, Bradley-Terry."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st

from lora_eval.judges.bradley_terry import bradley_terry
from lora_eval.judges.games import Game, pair_counts, pair_rates
from lora_eval.judges.mt_rows import read_judgments
from tests.judges.conftest import json_lines, real

SCORES = st.sampled_from([0.0, 0.5, 1.0, None])


def games_of(verdicts, a="base", b="tuned", **values):
    """Two games for each (score with a first, score with b first)."""
    return [
        Game("judge", str(number), str(number), a, b, first, score, **values)
        for number, pair in enumerate(verdicts)
        for first, score in zip("ab", pair, strict=True)
    ]


def test_the_rate_is_the_mean_of_both_orders():
    (rate,) = pair_rates(games_of([(1, 1), (1, 0), (0.5, 0), (0.5, 0.5)]))
    assert (rate.n, rate.rate) == (4, pytest.approx((1 + 0.5 + 0.25 + 0.5) / 4))
    assert (rate.win, rate.loss, rate.tie) == (1, 0, 3)
    assert rate.order_agreement == 0.5
    # Decided: a first 1 (b won), 1 (b); b first 1 (b won: first), 0, 0.
    assert rate.position_rate == pytest.approx(1 / 5)


@given(st.lists(st.tuples(SCORES, SCORES), min_size=1, max_size=30))
def test_swapping_the_arms_gives_the_complement(verdicts):
    games = games_of(verdicts)
    swapped = [
        Game(g.judge, g.prompt, g.item, g.b, g.a, "b" if g.first == "a" else "a",
             None if g.score is None else 1 - g.score)
        for g in games
    ]  # fmt: skip
    (rate,), (other,) = pair_rates(games), pair_rates(swapped)
    assert (rate.n, rate.n_invalid, rate.tie) == (other.n, other.n_invalid, other.tie)
    assert (rate.win, rate.loss) == (other.loss, other.win)
    assert (rate.position_rate, rate.order_agreement) == (other.position_rate, other.order_agreement)
    if rate.rate is not None:
        assert other.rate == pytest.approx(1 - rate.rate)
    # Games of one pair named both ways round are one pair.
    assert len(pair_rates([*games, *swapped])) == 1


@given(st.lists(st.tuples(SCORES, SCORES), min_size=2, max_size=20), st.randoms())
def test_the_order_of_the_games_does_not_matter(verdicts, random):
    games = games_of(verdicts)
    shuffled = list(games)
    random.shuffle(shuffled)
    assert pair_rates(games)[0].rate == pytest.approx(pair_rates(shuffled)[0].rate)


@pytest.mark.parametrize("bias", [-0.3, 0.0, 0.3])
def test_position_bias_cancels_and_is_shown(bias):
    generator = np.random.default_rng(0)
    true = generator.uniform(0.35, 0.65, 4000)  # chance that b wins, without the bias
    verdicts = [tuple(float(generator.random() < p + sign * bias) for sign in (-1, 1)) for p in true]
    (rate,) = pair_rates(games_of(verdicts))
    assert rate.ci_low < true.mean() < rate.ci_high
    expected = np.mean([(first == 0) + (second == 1) for first, second in verdicts]) / 2
    assert rate.position_rate == pytest.approx(expected)
    assert np.sign(round(rate.position_rate - 0.5, 1)) == np.sign(bias)


def test_a_prompt_without_a_verdict_is_dropped_counted_and_bounded():
    (rate,) = pair_rates(games_of([(1, 1), (0, 0), (1, None), (None, None)]))
    assert (rate.n, rate.n_invalid, rate.rate) == (2, 2, 0.5)
    assert (rate.rate_worst, rate.rate_best) == (0.25, 0.75)


def test_no_verdict_at_all_is_undefined_with_a_reason():
    (rate,) = pair_rates(games_of([(None, 1), (None, 0)]))
    assert (rate.n, rate.rate, rate.ci_low) == (0, None, None)
    assert rate.reason


def test_two_turns_of_a_prompt_are_one_cluster():
    generator = np.random.default_rng(1)
    scores = generator.choice([0.0, 0.5, 1.0], 50)
    single = [
        Game("j", str(i), f"{i} turn 1", "a", "b", first, s) for i, s in enumerate(scores) for first in "ab"
    ]
    double = single + [
        Game("j", g.prompt, g.item.replace("1", "2"), "a", "b", g.first, g.score) for g in single
    ]
    (one,), (two,) = pair_rates(single), pair_rates([
        Game(g.judge, g.prompt, f"{g.item} {number}", g.a, g.b, g.first, g.score)
        for number, g in enumerate(double)
        if g.first == "a"
    ])  # fmt: skip
    assert (one.clusters, two.clusters, two.n) == (50, 50, 100)
    assert two.standard_error == pytest.approx(one.standard_error)


def test_fastchat_pair_files(write_rows):
    def row(question, g1, g2, one="base", two="tuned"):
        return {"question_id": question, "model_1": one, "model_2": two, "g1_winner": g1, "g2_winner": g2,
                "judge": ["gpt-4", "pair-v2"], "turn": 1}  # fmt: skip

    rows = [row(81, "model_2", "model_2"), row(82, "model_1", "model_2"), row(83, "tie", "model_1"),
            row(84, "error", "model_1"), row(85, "model_1", "model_1")]  # fmt: skip
    _, games = read_judgments([write_rows(rows)])
    counts = pair_counts(games)
    assert {name: (c.win, c.loss, c.tie) for name, c in counts.items()} == {
        "base": (1, 1, 2),
        "tuned": (1, 1, 2),
    }
    assert counts["tuned"].win_rate == 0.25
    assert counts["tuned"].win_rate_adjusted == 0.5
    (rate,) = pair_rates(games)
    assert (rate.n_invalid, rate.rate) == (1, pytest.approx((1 + 0.5 + 0.25 + 0) / 4))


def test_bradley_terry_equals_statsmodels():
    generator = np.random.default_rng(2)
    strength = {"base": 0.0, "tuned": 0.8, "merged": 0.6}
    games = []
    for prompt in range(60):
        for a, b in (("base", "tuned"), ("base", "merged"), ("tuned", "merged")):
            for first in "ab":
                shift = strength[b] - strength[a] + (0.4 if first == "b" else -0.4)
                score = float(generator.choice([0.5, generator.random() < 1 / (1 + np.exp(-shift))]))
                games.append(Game("judge", str(prompt), f"{prompt}", a, b, first, score))
    (found,) = bradley_terry(games)
    place = {"tuned": 1, "merged": 2}
    design = np.zeros((len(games), 3))
    design[:, 0] = 1
    labels = []
    for row, game in zip(design, games, strict=True):
        first, second = (game.a, game.b) if game.first == "a" else (game.b, game.a)
        for arm, sign in ((first, 1), (second, -1)):
            if arm in place:
                row[place[arm]] += sign
        labels.append(1 - game.score if game.first == "a" else game.score)
    groups = np.array([int(game.prompt) for game in games])
    model = sm.GLM(np.array(labels), design, family=sm.families.Binomial())
    expected = model.fit(tol=1e-14, cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False})
    assert [arm.arm for arm in found.arms] == ["base", "tuned", "merged"]
    values = [found.position, *(arm.strength for arm in found.arms[1:])]
    errors = [found.position_standard_error, *(arm.standard_error for arm in found.arms[1:])]
    assert values == pytest.approx(expected.params, abs=1e-7)
    assert errors == pytest.approx(expected.bse * np.sqrt(60 / 59), rel=1e-6)


def test_each_judge_has_strengths_of_its_own():
    generator = np.random.default_rng(3)
    by_judge = {}
    for judge in ("one", "two"):
        by_judge[judge] = [
            Game(judge, str(prompt), str(prompt), a, b, first, float(generator.integers(0, 2)))
            for prompt in range(30)
            for a, b in (("base", "tuned"), ("base", "merged"), ("tuned", "merged"))
            for first in "ab"
        ]
    together = bradley_terry(by_judge["one"] + by_judge["two"])
    assert together == bradley_terry(by_judge["one"]) + bradley_terry(by_judge["two"])
    assert together[0].arms != together[1].arms


def test_two_arms_or_arms_that_never_met_have_no_common_scale():
    assert bradley_terry(games_of([(1, 0), (1, 1)])) == []
    apart = games_of([(1, 0), (0, 1)]) + games_of([(1, 1), (0, 0)], a="x", b="y")
    assert bradley_terry(apart) == []


def test_qlora_ratings_in_both_orders():
    """Real GPT-4 verdicts of the QLoRA paper, in which the judge prefers the answer shown first."""
    folder = real("pairwise_qlora/pairwise")
    names = ("7b-guanaco-vicuna-generations-topp0.9-temp0.7", "answer-gpt4")
    scores = {1: 0.0, 2: 1.0, 3: 0.5}
    games = []
    for first, second in (names, names[::-1]):
        path = folder / f"{first}-vs-{second}-gpt-4-reviewer-threeclass.jsonl.gz"
        for row in json_lines(path):
            score = scores.get(row["score"])  # of the answer shown second
            if first != names[0] and score is not None:
                score = 1 - score
            games.append(
                Game("gpt-4", str(row["question_id"]), str(row["question_id"]), names[0], names[1],
                     "a" if first == names[0] else "b", score)
            )  # fmt: skip
    (rate,) = pair_rates(games)
    assert rate.n + rate.n_invalid == 80
    assert rate.rate > 0.5
    assert rate.ci_low < rate.rate < rate.ci_high
    assert rate.win + rate.loss + rate.tie == rate.n
