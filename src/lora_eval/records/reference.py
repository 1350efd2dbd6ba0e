"""ReferenceCheck: how far an engine's numbers are from lm-eval's own model on the same prompts."""

from __future__ import annotations

from lora_eval.records.base import Record


class ReferenceCheck(Record):
    """Some items of a suite answered twice on one arm: by `engine`, and by stock lm-eval. The `items` were
    drawn at random from those of all tasks with `seed` (None: in records of before they were drawn).

    `requests` counts what was compared: `log_likelihoods` of them with `max_difference` and `mean_difference`
    in nats and `max_relative_difference` (None where there is none), and `texts`, of which `text_differences`
    are not the same. `choice_flips` counts items, out of `choices`, whose likeliest answer is another one;
    `metric_flips` yes/no figures (0 or 1 for an item), out of `metrics`, that came out otherwise.
    """

    arm: str
    engine: str
    dtype: str
    seed: int | None = None
    items: int
    requests: int
    log_likelihoods: int
    max_difference: float | None
    mean_difference: float | None
    max_relative_difference: float | None
    choices: int
    choice_flips: int
    metrics: int
    metric_flips: int
    texts: int
    text_differences: int
