"""A judge profile: which model judges, how it is asked, and how its answer is read. One YAML file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from lora_eval.records.base import Record

Verdict = Literal["text", "logprob", "choice", "tool"]
Parser = Literal["rating", "letter", "five", "label", "prometheus", "alpaca_eval"]


class JudgeParams(Record):
    """What is sent with each request. None is not sent. `extra_body` is merged into the body as it is."""

    temperature: float | None = Field(default=0.0, ge=0.0)
    top_p: float | None = None
    seed: int | None = None
    max_tokens: int = Field(default=1024, ge=1)
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    top_logprobs: int | None = Field(default=None, ge=2, le=20)
    extra_body: dict[str, Any] = Field(default_factory=dict)


class JudgePrice(Record):
    """Dollars for a million tokens."""

    input: float = Field(ge=0.0)
    output: float = Field(ge=0.0)


class JudgeLimits(Record):
    """How fast the endpoint may be asked: at once, and requests and tokens a minute (None: no limit)."""

    concurrency: int = Field(default=32, ge=1, le=1024)
    rpm: int | None = Field(default=None, ge=1)
    tpm: int | None = Field(default=None, ge=1)


class JudgeTimeout(Record):
    """Seconds to connect, and to wait for an answer."""

    connect: float = Field(default=5.0, gt=0.0)
    read: float = Field(default=120.0, gt=0.0)


class JudgeLabels(Record):
    """What the judge writes for the answer shown first, the one shown second, and a tie (None: no ties)."""

    first: str
    second: str
    tie: str | None = None


class UpstreamParser(Record):
    """One of alpaca_eval's completion parsers, with its arguments. `whole`: it reads the choice, not its
    text.
    """

    function: Literal[
        "regex_parser", "lmsys_parser", "ranking_parser", "json_parser", "eval_parser", "logprob_parser",
        "pipeline_meta_parser",
    ]  # fmt: skip
    arguments: dict[Any, Any] = Field(default_factory=dict)
    whole: bool = False


class JudgeProfile(Record):
    """How one judge is asked.

    `verdict` says where its verdict stands: in the `text`, in the probabilities of the first token
    (`logprob`), in a constrained answer (`choice`; its probabilities too, where the server gives them), or
    in a forced function call (`tool`). `template` is `mt-bench` (its eight prompts), the name of a packaged
    prompt, a path, or `alpaca_eval:FILE` (a prompt of alpaca_eval's). `api_key_env` names an environment
    variable.
    """

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: str = Field(min_length=1)
    summary: str = ""
    mode: Literal["pair", "single"]
    base_url: str | None = None
    model: str | None = None
    api_key_env: str | None = None
    verdict: Verdict
    template: str
    parser: Parser
    rule: Literal["fastchat", "strict"] = "strict"
    labels: JudgeLabels | None = None
    upstream: UpstreamParser | None = None
    params: JudgeParams = JudgeParams()
    price: JudgePrice | None = None
    limits: JudgeLimits = JudgeLimits()
    timeout: JudgeTimeout = JudgeTimeout()
    retries: int = Field(default=6, ge=0, le=20)

    @model_validator(mode="after")
    def _fits(self) -> JudgeProfile:
        if (self.parser == "label" or self.verdict != "text") and self.labels is None:
            raise ValueError(f"verdict {self.verdict} with parser {self.parser} needs labels")
        if (self.parser == "alpaca_eval") != (self.upstream is not None):
            raise ValueError(f"parser {self.parser} and upstream do not fit: parser alpaca_eval needs it")
        if (self.parser == "rating") != (self.mode == "single"):
            raise ValueError(f"parser {self.parser} does not fit mode {self.mode}")
        if self.verdict != "text" and self.parser != "label":
            raise ValueError(f"verdict {self.verdict} is read by parser label, not {self.parser}")
        if self.verdict == "logprob" and self.params.top_logprobs is None:
            raise ValueError("verdict logprob needs params.top_logprobs")
        return self
