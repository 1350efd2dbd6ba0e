"""What is reported of a judge's verdicts. Names of figures are those of alpaca_eval and of FastChat."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lora_eval.records.base import Record

JudgeSuite = Literal["alpaca-eval", "mt-bench", "pairwise"]


class JudgedItem(Record):
    """What one call judges. `a` and `b` are arms (`b` None: one answer is rated); `first` is the arm whose
    answer is shown first. `length_a` and `length_b` are in characters. `place` is its number in the plan:
    calls finish in any order, and reports must not depend on it.
    """

    place: int = 0
    suite: JudgeSuite
    judge: str
    prompt: str
    turn: int
    category: str
    a: str
    b: str | None
    first: Literal["a", "b"]
    repeat: int
    length_a: int
    length_b: int | None


class JudgeReply(Record):
    """What a judge's reply says. `value` is the score of the answer shown second (0 to 1), or a rating; None
    with a `reason` where there is no verdict. `model` and `system_fingerprint` are what the endpoint says it
    is; tokens are None where it does not say.
    """

    value: float | None
    reason: str | None = None
    text: str = ""
    finish_reason: str | None = None
    model: str | None = None
    system_fingerprint: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class JudgeVerdict(JudgeReply, JudgedItem):
    """One finished call, as it is stored: the reply to an item. `value` is a rating of a's answer (`b` None),
    or the score of b, whichever was shown first: 0 (a is better) to 1.

    `key` identifies the request and its place; `attempt` counts replies without a verdict before this one.
    `cost` is in dollars, a bound where `usage_estimated`.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    key: str
    profile: str
    attempt: int
    usage_estimated: bool
    cost: float
    seconds: float
    tries: int


class JudgeForecast(Record):
    """What a run would ask, before any money is spent. `left` of `calls` are not on disk yet; equal answers
    are ties that nobody is asked about. Tokens and dollars are those of what is left: estimates, and bounds
    (`most_...`) for one reply to each call. `smallest_difference` is found with power 0.8 at `level`, if the
    `assumption` holds.
    """

    judge: str
    calls: int
    equal_answers: int
    known: int
    left: int
    input_tokens: int
    most_input_tokens: int
    most_output_tokens: int
    likely_dollars: float | None
    most_dollars: float | None
    prompts: int
    smallest_difference: float | None
    unit: str
    assumption: str
    level: float


class Calibration(Record):
    """How far a judge can be trusted, on pairs whose better answer is known.

    `agreement` is the share of pairs on which the judge (both orders averaged; a tie counts half) is right,
    with its interval. `position_rate` and `order_agreement` are those of `PairRate`, None for a judge that
    rates one answer at a time; `repeat_agreement` is the share of calls that got the same verdict when asked
    again (None: nothing was). `passed` is False, with
    `reasons`, where the judge is no better than chance or follows the position.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    judge: str
    n: int
    n_invalid: int
    agreement: float | None
    ci_low: float | None
    ci_high: float | None
    level: float
    order_agreement: float | None
    position_rate: float | None
    repeat_agreement: float | None
    repeats: int
    passed: bool
    reasons: tuple[str, ...]


class LengthAdjusted(Record):
    """The win rate in percent at equal length of both answers; undefined is None with a `reason`.

    Where beta0 and `slope` are fitted to logit P = beta0 + slope * tanh(difference of lengths / its standard
    deviation), `win_rate` is 100 / (1 + exp(-beta0)). The error is that of `resamples` bootstrap samples of
    whole prompts, the model being fitted again on each.
    """

    win_rate: float | None
    standard_error: float | None
    ci_low: float | None
    ci_high: float | None
    level: float
    slope: float | None
    resamples: int
    share_longer: float | None = None
    reason: str | None = None


class AlpacaScore(Record):
    """One model against a baseline. Rates are in percent; the interval is of `win_rate`, by Student's t, or
    None with a `reason`.

    `avg_length` is in characters, rounded down. `n_invalid` rows have no verdict and are in no figure.
    `length_controlled_winrate` and
    `lc_standard_error` are computed by alpaca_eval (the latter is no standard error of the former:
    docs/judges.md); None where its files were not given.
    """

    win_rate: float
    standard_error: float | None
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    discrete_win_rate: float
    avg_length: int | None
    length_controlled_winrate: float | None = None
    lc_standard_error: float | None = None
    ci_low: float | None
    ci_high: float | None
    level: float
    p_value: float | None
    mde: float | None
    n_invalid: int
    baseline: str
    judge: str
    length_adjusted: LengthAdjusted
    reason: str | None = None


class CategoryScore(Record):
    """Mean score of one category over both turns, with its cluster-robust standard error."""

    score: float
    standard_error: float | None
    n: int


class MtBenchScore(Record):
    """Mean scores of one model, 1 to 10. `average` is the mean over all rows of both turns, as FastChat has
    it.

    Both turns of a question are one cluster of `standard_error`. `n` rows have a score, `n_invalid` have none
    and are in no figure. `strict_average` (None: texts were not stored) takes the last rating of a text, from
    1 to 10 only; `n_strict_differs` counts texts that the two rules read differently.
    """

    first_turn: float | None
    second_turn: float | None
    average: float | None
    standard_error: float | None
    n: int
    n_first_turn: int
    n_second_turn: int
    n_invalid: int
    judge: str
    categories: dict[str, CategoryScore]
    strict_average: float | None = None
    n_strict_differs: int | None = None


class ScoreDifference(Record):
    """`b` minus `a` on the rows that both have; question is the cluster. Undefined is None with a
    `reason`.
    """

    a: str
    b: str
    judge: str
    n: int
    clusters: int
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    level: float
    p_value: float | None
    mde: float | None
    method: str
    higher: int
    lower: int
    ties: int
    reason: str | None = None


class PairCounts(Record):
    """Wins, losses and ties of one model over its games, by FastChat's rule: a win is one in both orders."""

    win: int
    loss: int
    tie: int
    win_rate: float
    loss_rate: float
    win_rate_adjusted: float
    judge: str


class PairRate(Record):
    """How often the judge prefers `b` to `a`: `rate` is the mean over prompts of 1, 1/2 (tie) or 0, both
    orders averaged, so that what a judge gives to a position cancels.

    `position_rate` is the share of decided games that the answer shown first won, `order_agreement` the share
    of prompts with the same verdict in both orders. `win`, `loss` and `tie` are FastChat's counts for b.
    `n_invalid` prompts lack a verdict in an order and are in no figure; counting them all for a gives
    `rate_worst`, for b `rate_best`.
    """

    a: str
    b: str
    judge: str
    n: int
    clusters: int
    rate: float | None
    standard_error: float | None
    ci_low: float | None
    ci_high: float | None
    level: float
    p_value: float | None
    mde: float | None
    win: int
    loss: int
    tie: int
    order_agreement: float | None
    position_rate: float | None
    mean_length_a: float | None
    mean_length_b: float | None
    length_adjusted: LengthAdjusted
    n_invalid: int
    rate_worst: float | None
    rate_best: float | None
    reason: str | None = None


class Strength(Record):
    """One arm's Bradley-Terry strength in logits above the first arm, with its clustered interval."""

    arm: str
    strength: float
    standard_error: float | None
    ci_low: float | None
    ci_high: float | None


class BradleyTerry(Record):
    """Strengths fitted to all games together, from three arms on. `position` is the logit by which the answer
    shown first gains, None where every answer was shown in one position only.
    """

    judge: str
    arms: tuple[Strength, ...]
    position: float | None
    position_standard_error: float | None
    games: int
    clusters: int
    level: float


Figures = AlpacaScore | MtBenchScore | PairCounts


class JudgeReport(Record):
    """Everything read from files of verdicts of one suite. Verdicts of different judges share no row."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    suite: JudgeSuite
    sources: tuple[str, ...]
    models: dict[str, Figures]
    differences: tuple[ScoreDifference, ...] = ()
    pairs: tuple[PairRate, ...] = ()
    bradley_terry: tuple[BradleyTerry, ...] = ()
    notes: tuple[str, ...] = ()
