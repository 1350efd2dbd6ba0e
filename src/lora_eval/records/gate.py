"""Gate: the file that says what may ship, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, field_validator, model_validator

from lora_eval.records.base import Record

GateVerdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Condition = Literal["min_gain", "max_drop", "max_perplexity_ratio"]
CONDITIONS: tuple[Condition, ...] = ("min_gain", "max_drop", "max_perplexity_ratio")


class GateRule(Record):
    """One line of a gate. Exactly one of `min_gain`, `max_drop` and `max_perplexity_ratio` is set.

    `task` is a task's name, a group's, or a glob over them. `metric` is `name` or `name,filter`; None is the
    metric that the task's verdict rests on. `arm` is the name of an arm or a glob; None is every arm but the
    base. Gains and drops are in the metric's own units (0.02 of an accuracy is two points), in its better
    direction. `min_n` items must have been answered by both arms; `max_invalid` is the largest share of
    items that may be without a value.
    """

    task: str = Field(min_length=1)
    metric: str | None = Field(default=None, min_length=1)
    arm: str | None = Field(default=None, min_length=1)
    min_gain: float | None = Field(default=None, allow_inf_nan=False)
    max_drop: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    max_perplexity_ratio: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    min_n: int | None = Field(default=None, ge=1)
    max_invalid: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="wrap")
    @classmethod
    def _one_condition(cls, data: Any, handler: ModelWrapValidatorHandler[GateRule]) -> GateRule:
        """Told beside the rule's other faults: an `after` validator would speak only once they are mended."""
        given = [name for name in CONDITIONS if isinstance(data, Mapping) and data.get(name) is not None]
        faults: list[Any] = []
        if isinstance(data, Mapping) and len(given) != 1:
            expected = ValueError(f"Exactly one of {', '.join(CONDITIONS)} is needed")
            found = " and ".join(given) or "none of them"
            faults.append({"type": "value_error", "loc": (), "input": found, "ctx": {"error": expected}})
        try:
            rule = handler(data)
        except ValidationError as error:
            others: list[Any] = [{**each, "ctx": each.get("ctx", {})} for each in error.errors()]
            raise ValidationError.from_exception_data(cls.__name__, [*others, *faults]) from None
        if faults:
            raise ValidationError.from_exception_data(cls.__name__, faults)
        return rule

    @property
    def condition(self) -> Condition:
        """Which of the three the rule states."""
        return next(name for name in CONDITIONS if getattr(self, name) is not None)

    @property
    def limit(self) -> float:
        """The number as the file gives it."""
        return float(getattr(self, self.condition))


class Gate(Record):
    """`gate.yaml`: the rules, and the one-sided confidence that each of them needs."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    level: float = Field(default=0.95, gt=0.5, lt=1)
    rules: tuple[GateRule, ...]

    @field_validator("rules")
    @classmethod
    def _some(cls, rules: tuple[GateRule, ...]) -> tuple[GateRule, ...]:
        if not rules:
            raise ValueError("Expected at least one rule")
        return rules


class GateCheck(Record):
    """One rule on one task, metric and arm.

    `rule` counts from 0, as `rules[0]` does. `measure` says what is bounded: the gain of `b` over `a` in the
    metric's better direction, or the ratio of perplexities b over a. `threshold` is on that scale: a
    `max_drop` of 0.02 is a gain of -0.02. `low` and `high` are one-sided bounds, each at `level` on its own
    (None: there are none, and `reasons` say why). `level` is the gate's, or the higher one of a stored
    interval that cannot be computed again. `n` items have a value in both arms, `invalid` do not. `n_needed`
    items would probably decide an inconclusive check.
    """

    rule: int
    task: str
    metric: str
    filter: str
    a: str
    b: str
    condition: Condition
    limit: float
    measure: Literal["gain", "ratio"]
    threshold: float
    estimate: float | None
    low: float | None
    high: float | None
    level: float
    method: str
    n: int
    invalid: int
    verdict: GateVerdict
    reasons: tuple[str, ...]
    n_needed: int | None = None


class GateResult(Record):
    """What the gate says: FAIL if a check fails, else INCONCLUSIVE if one is, else PASS."""

    verdict: GateVerdict
    level: float
    rules: tuple[GateRule, ...]
    checks: tuple[GateCheck, ...]
    source: str | None = None
    notes: tuple[str, ...] = ()
