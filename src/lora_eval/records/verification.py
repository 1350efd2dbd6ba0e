"""Verification: whether a candidate's next-token distributions are the reference's."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lora_eval.records.base import Record
from lora_eval.records.variant import Variant


class Divergence(Record):
    """KL(reference || candidate) in nats over `tokens` next-token distributions, and how often the most
    likely token is the same (`top1_agreement`, 0..1). `item_flips` counts prompts whose greedy answer
    or choice differs, out of `items`. `answer_mean_kl` is the mean over the positions that predict the
    reference's greedy answers alone (None: not measured); the others are those of the prompts.

    `answer_tokens` is the mean length of those answers, `greedy_agreement` the mean number of tokens up to
    the first that the candidate would have chosen otherwise. `kl_error` bounds the error of `mean_kl` from
    what was not stored of the reference (0: everything was). `broken_tokens` counts places where the
    candidate's distribution is not finite; they are in no other figure.
    """

    tokens: int
    mean_kl: float
    p99_kl: float
    max_kl: float
    top1_agreement: float
    items: int
    item_flips: int
    answer_mean_kl: float | None = None
    answer_tokens: float | None = None
    greedy_agreement: float | None = None
    kl_error: float = 0.0
    broken_tokens: int = 0


class PerplexityRatio(Record):
    """Perplexity of the candidate over the reference's on the same `tokens` of held-out text: the answers of
    conversations, or whole texts. The interval is paired by document; None where one document is too few.
    """

    reference: float
    candidate: float
    ratio: float
    ratio_low: float | None
    ratio_high: float | None
    level: float
    tokens: int
    documents: int


class SuiteCheck(Record):
    """The items of a suite: right-or-wrong figures paired by item, and the divergence on the same items.

    `lost` items were right and are wrong, `gained` the other way round; `difference` is candidate minus
    reference. `verdict` is that of the non-inferiority test at `margin` (see `stats.judge`), None with a
    `reason` where no item could be tested.
    """

    name: str
    fingerprint: str
    items: int
    gained: int
    lost: int
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    level: float
    p_value: float | None
    method: str
    margin: float
    verdict: str | None
    reason: str | None = None
    n_needed: int | None = None
    measured: Divergence | None = None
    floor: Divergence | None = None
    tolerance: dict[str, float] = Field(default_factory=dict)


class Verification(Record):
    """`verification.json`: candidate against reference, with the measured noise floor that sets the
    tolerance. `tolerance_source` says in words where each tolerance comes from, `floor_source` what the floor
    is, `factor` how far above it the candidate may lie and `factor_reason` why. `other_floors` were measured
    too and are smaller. `causes` names what is wrong with the candidate's files, as far as it could be found.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    reference: Variant
    candidate: Variant
    measured: Divergence
    floor: Divergence | None
    tolerance: dict[str, float]
    tolerance_source: str
    passed: bool
    failures: tuple[str, ...] = ()
    packages: dict[str, str] = Field(default_factory=dict)
    wall_seconds: float | None = None
    prompts_sha256: str | None = None
    expected: Literal["equal", "near"] = Field(default="equal")
    floor_source: str | None = None
    factor: float | None = None
    factor_reason: str | None = None
    other_floors: dict[str, Divergence] = Field(default_factory=dict)
    perplexity: PerplexityRatio | None = None
    suite: SuiteCheck | None = None
    causes: tuple[str, ...] = ()
    reference_logits: Literal["computed", "stored"] = Field(default="computed")


class StoredReference(Record):
    """`reference.json` of stored logits: what a candidate is compared with when the reference is not opened.

    `key` is what decides the logits; `vocabulary` counts the next tokens told apart, of which `kept` were
    stored for each place, with `tail_samples` drawn from the rest (0: all are stored). `prompts` are the
    prompts' token ids, and `stop_ids` are where generation ends. `digests` are the SHA-256 of the files.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    key: dict[str, object]
    dtype: str
    vocabulary: int
    kept: int
    tail_samples: int
    stop_ids: tuple[int, ...]
    prompts: tuple[tuple[int, ...], ...]
    digests: tuple[str, ...]
    sequences: int
    has_suite: bool = False


class StoredFloor(Record):
    """`floor-NAME.json` beside stored logits: how far the same weights are from themselves, by source of the
    prompts; `words` says in which other arithmetic.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    words: str
    measured: dict[str, Divergence]
