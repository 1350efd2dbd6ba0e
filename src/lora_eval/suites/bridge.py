"""lm-eval's view of an engine: the same tokens as its own `hf` model at batch size 1, our scores and answers.

Importing this module registers the model `lora_eval` with lm-eval:
`lm_eval.simple_evaluate(model="lora_eval", model_args="pretrained=BASE,peft=ADAPTER", tasks=[...])`.
It imports lm_eval and torch, so it is imported only where a suite runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lora_eval.errors import TaskError
from lora_eval.protocols import Engine, GenerateRequest, Progress, ScoreRequest

_MAX_NEW_TOKENS = 256  # lm-eval's, for a task that does not say
ItemKey = tuple[str, int]


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(slots=True)
class ItemFacts:
    """What the bridge saw of an item that lm-eval's samples do not hold."""

    prompt_tokens: int
    finish_reason: str | None = None


class EngineLM(TemplateLM):  # type: ignore[misc]
    """One arm of an engine as an lm-eval model. `facts` maps (task, number of the item in this run) to what
    was seen of it; `truncated` counts prompts that were cut on the left.
    """

    def __init__(self, engine: Engine, arm: str, *, seed: int = 1234, progress: Progress = silent) -> None:
        super().__init__()
        self.engine = engine
        self.arm = arm
        self.tokenizer = engine.tokenizer
        self.facts: dict[ItemKey, ItemFacts] = {}
        self.truncated: set[ItemKey] = set()
        self._seed = seed
        self._progress = progress
        self._encode = lru_cache(maxsize=4096)(self._encode_text)

    @property
    def eot_token_id(self) -> int:
        """The end-of-sequence token."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before an empty context: the tokenizer's first token, else its last."""
        first = self.tokenizer.bos_token_id
        return int(first if first is not None else self.tokenizer.eos_token_id)

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name, as lm-eval's `hf` model gives it."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return token ids; a text that begins with the first token's text does not get it twice."""
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        return list(self._encode(string, add_special_tokens))

    def _encode_text(self, string: str, add_special_tokens: bool | None) -> tuple[int, ...]:
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return tuple(self.tokenizer.encode(string, **options))

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
        self._current = list(requests)
        return list(super().loglikelihood(requests, disable_tqdm=True))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [
            self._fit(item, context, continuation)
            for item, (_text, context, continuation) in zip(self._current, requests, strict=True)
        ]
        scores = self.engine.score(self.arm, pairs, self._progress)
        return [(score.log_likelihood, score.is_greedy) for score in scores]

    def _fit(self, item: Instance, context: list[int], continuation: list[int]) -> ScoreRequest:
        """Cut the context on the left where both together are longer than the model reads."""
        key = _key(item)
        self.facts.setdefault(key, ItemFacts(len(context)))
        if not continuation or len(continuation) > self.engine.max_length:
            raise TaskError(
                f"task {key[0]}, item {key[1]}: an answer to be scored has {len(continuation)} tokens; "
                f"expected 1 to {self.engine.max_length}"
            )
        both = (context + continuation)[-(self.engine.max_length + 1) :]
        if len(both) < len(context) + len(continuation):
            self.truncated.add(key)
        split = len(both) - len(continuation)
        return ScoreRequest(tuple(both[:split]), tuple(both[split:]))

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[float]:
        """Return the log-likelihood of each whole text, in windows as long as the model reads."""
        windows: list[ScoreRequest] = []
        owners: list[int] = []
        for owner, item in enumerate(requests):
            ids = self.tok_encode(item.args[0])
            self.facts[_key(item)] = ItemFacts(len(ids))
            for pair in get_rolling_token_windows(
                token_list=ids,
                prefix_token=self.prefix_token_id,
                max_seq_len=self.engine.max_length,
                context_len=1,
            ):
                context, continuation = make_disjoint_window(pair)
                windows.append(ScoreRequest(tuple(context), tuple(continuation)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, score in zip(owners, self.engine.score(self.arm, windows, self._progress), strict=True):
            totals[owner] += score.log_likelihood
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = True) -> list[str]:
        """Return each answer up to its stop text."""
        repeats: dict[tuple[ItemKey, int], int] = {}
        wanted = []
        for item in requests:
            place = (_key(item), item.idx)
            repeats[place] = repeats.get(place, -1) + 1
            wanted.append(self._generation(item, repeats[place]))
        answers = self.engine.generate(self.arm, wanted, self._progress)
        for item, request, answer in zip(requests, wanted, answers, strict=True):
            self.facts[_key(item)] = ItemFacts(len(request.input_ids), answer.finish_reason)
        return [answer.text for answer in answers]

    def _generation(self, item: Instance, repeat: int) -> GenerateRequest:
        context, asked = item.args
        settings = dict(normalize_gen_kwargs(asked, _MAX_NEW_TOKENS))
        until = handle_stop_sequences(settings.pop("until"), eos=self.tokenizer.decode(self.eot_token_id))
        new_tokens = settings.pop("max_gen_toks")
        room = self.engine.max_length - new_tokens
        if room <= 0:
            raise TaskError(
                f"task {item.task_name}: asks for {new_tokens} new tokens, but the model reads at most "
                f"{self.engine.max_length} with the prompt; set generation max_gen_toks lower in the suite"
            )
        plain = has_bos_prefix(context, getattr(self.tokenizer, "bos_token", None))
        ids = self._encode(context, False if plain else None)
        if len(ids) > room:
            self.truncated.add(_key(item))
        if not settings["do_sample"]:
            settings = {key: settings[key] for key in settings if key not in ("do_sample", "temperature")}
        return GenerateRequest(
            ids[-room:], tuple(until), new_tokens, settings, _item_seed(self._seed, item, repeat)
        )


def _key(item: Instance) -> ItemKey:
    return str(item.task_name), int(item.doc_id or 0)


def _item_seed(seed: int, item: Instance, repeat: int) -> int:
    text = f"{seed}\0{item.task_name}\0{item.doc_id}\0{item.idx}\0{repeat}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


@register_model("lora_eval")
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
            device=device or "auto",
        )
        open_engine = get("engine", "transformers")
        super().__init__(open_engine(resident, batch_tokens=batch_tokens), resident.arms[-1])
