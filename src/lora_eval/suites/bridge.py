"""lm-eval's view of an engine: the same tokens as its own `hf` model at batch size 1, our scores and answers.

Importing this module registers the model `lora_eval` with lm-eval:
`lm_eval.simple_evaluate(model="lora_eval", model_args="pretrained=BASE,peft=ADAPTER", tasks=[...])`;
its command line gets it through `announce`.
It imports lm_eval and torch, so it is imported only where a suite runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import model_registry

from lora_eval.errors import TaskError
from lora_eval.protocols import Engine, Progress
from lora_eval.suites.encoding import Encoded, Encodings, ItemKey, item_key
from lora_eval.suites.tokens import Encoder

# What lm-eval's command line says where no device was asked for, on machines without a GPU too.
_DEFAULT_DEVICES = (None, "cuda:0")


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(slots=True)
class ItemFacts:
    """What the bridge saw of an item that lm-eval's samples do not hold."""

    prompt_tokens: int
    finish_reason: str | None = None


@dataclass(slots=True)
class Answers:
    """What one arm has answered and what was seen of its items, by (task, number of the item in the run)."""

    known: dict[tuple[str, ItemKey, int, int], Any] = field(default_factory=dict)
    facts: dict[ItemKey, ItemFacts] = field(default_factory=dict)
    truncated: set[ItemKey] = field(default_factory=set)

    def missing(
        self, kind: str, requests: Sequence[Instance], ask: Callable[[list[Instance]], list[Any]]
    ) -> list[Any]:
        """Return the answer to every request, asking only for those that are not known."""
        seen: Counter[tuple[str, ItemKey, int]] = Counter()
        keys = []
        for item in requests:
            place = (kind, item_key(item), item.idx)
            keys.append((*place, seen[place]))  # a repeated request stands as often as it is repeated
            seen[place] += 1
        new = [(key, item) for key, item in zip(keys, requests, strict=True) if key not in self.known]
        if new:
            found = ask([item for _, item in new])
            self.known.update((key, answer) for (key, _), answer in zip(new, found, strict=True))
        return [self.known[key] for key in keys]


class EngineLM(TemplateLM):  # type: ignore[misc]
    """One arm of an engine as an lm-eval model. `facts` maps (task, number of the item in this run) to what
    was seen of it; `truncated` holds the items with a prompt that was cut on the left. `encodings` given to
    several arms lets them share the token ids of equal requests; `answers` given to several runs of one arm
    lets them share what was answered.
    """

    def __init__(
        self,
        engine: Engine,
        arm: str,
        *,
        seed: int = 1234,
        progress: Progress = silent,
        encodings: Encodings | None = None,
        answers: Answers | None = None,
    ) -> None:
        super().__init__()
        self.engine = engine
        self.arm = arm
        self.tokenizer = engine.tokenizer
        self._answers = answers
        seen = answers if answers is not None else Answers()
        self.facts, self.truncated = seen.facts, seen.truncated
        self._seed = seed
        self._progress = progress
        self._encodings = encodings or Encodings()
        self._encoder = Encoder(self.tokenizer)

    @property
    def eot_token_id(self) -> int:
        """The end-of-sequence token."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before an empty context: the tokenizer's first token, else its last."""
        return self._encoder.prefix_token_id

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name, as lm-eval's `hf` model gives it."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return token ids; a text that begins with the first token's text does not get it twice."""
        rule = None if add_special_tokens is None else lambda _: add_special_tokens
        return list(self._encoder.encode([string], rule)[string])

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return the conversation as the tokenizer's template renders it."""
        if not self.tokenizer.chat_template:
            raise TaskError(
                f"arm {self.arm}: its tokenizer has no chat template, which the suite asks for; "
                "put one on it with `lora-eval template apply`, or use a suite without apply_chat_template"
            )
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = True
    ) -> list[tuple[float, bool]]:
        """Return (log-likelihood, is greedy) of each continuation."""
        return self._answered("score", requests, self._score)

    def _answered(
        self, kind: str, requests: Sequence[Instance], ask: Callable[[Sequence[Instance]], list[Any]]
    ) -> list[Any]:
        return ask(requests) if self._answers is None else self._answers.missing(kind, requests, ask)

    def _score(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        encoded = self._encodings.scores(requests, self.tokenizer, self.engine.max_length)
        self._note(encoded)
        scores = self.engine.score(self.arm, encoded.requests, self._progress)
        return [(score.log_likelihood, score.is_greedy) for score in scores]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        raise NotImplementedError("loglikelihood takes another way, through batches")

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[float]:
        """Return the log-likelihood of each whole text, in windows as long as the model reads."""
        return self._answered("rolling", requests, self._score_whole)

    def _score_whole(self, requests: Sequence[Instance]) -> list[float]:
        encoded = self._encodings.windows(requests, self.tokenizer, self.engine.max_length)
        self._note(encoded)
        scores = self.engine.score(self.arm, encoded.requests, self._progress)
        totals = [0.0] * len(requests)
        for owner, score in zip(encoded.owners, scores, strict=True):
            totals[owner] += score.log_likelihood
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[str]:
        """Return each answer up to its stop text."""
        return self._answered("generate", requests, self._generate)

    def _generate(self, requests: Sequence[Instance]) -> list[str]:
        encoded = self._encodings.generations(requests, self.tokenizer, self.engine.max_length, self._seed)
        self._note(encoded)
        answers = self.engine.generate(self.arm, encoded.requests, self._progress)
        for item, answer in zip(requests, answers, strict=True):
            self.facts[item_key(item)].finish_reason = answer.finish_reason
        return [answer.text for answer in answers]

    def _note(self, encoded: Encoded) -> None:
        for key, tokens in encoded.prompt_tokens.items():
            self.facts.setdefault(key, ItemFacts(tokens))
        self.truncated |= encoded.truncated


class LoraEvalLM(EngineLM):
    """`lm_eval --model lora_eval`: base, or base with an adapter that is attached and never merged.

    Model arguments: pretrained, peft, dtype, batch_tokens. lm-eval's batch size has no meaning here.
    """

    def __init__(
        self,
        pretrained: str,
        peft: str | None = None,
        dtype: str = "auto",
        batch_tokens: int | None = None,
        device: str | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
    ) -> None:
        from lora_eval.models import open_resident, read_lineage, resolve_adapter, resolve_model
        from lora_eval.registry import get

        adapters: dict[str, Path] = {"adapter": resolve_adapter(peft)} if peft else {}
        lineage = read_lineage(adapters["adapter"]) if peft else None
        resident = open_resident(
            resolve_model(pretrained),
            adapters,
            dtype=dtype,
            quantization=lineage.quantization if lineage else None,
            device="auto" if device in _DEFAULT_DEVICES else device,
        )
        from lora_eval.suites.reference import covered

        engine = covered(get("engine", "transformers")(resident, batch_tokens=batch_tokens))
        super().__init__(engine, resident.arms[-1])


# Not the decorator: it refuses a name that an entry point has announced, and importing us is how one is read.
if "lora_eval" not in model_registry:
    model_registry.register("lora_eval", target=LoraEvalLM)
