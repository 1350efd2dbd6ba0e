"""Token ids as lm-eval's `hf` model makes them, in batches, with equal ids as one object."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

from lm_eval.models.utils import has_bos_prefix

from lora_eval.fingerprint import sha256_text

Ids = tuple[int, ...]
Special = bool | None
_BATCH = 128  # texts; until its ids are taken out, an encoding takes some 100 bytes a token


class _Numbers(dict[int, int]):
    """Each integer once: those above 256 are new objects in everything a tokenizer returns."""

    def __missing__(self, number: int) -> int:
        self[number] = number
        return number


class Encoder:
    """One tokenizer with lm-eval's rules for the first token."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        first = tokenizer.bos_token_id
        self.prefix_token_id = int(first if first is not None else tokenizer.eos_token_id)
        self._prefix = tokenizer.decode(self.prefix_token_id)
        self._numbers = _Numbers()
        self._batches = _is_batchable(tokenizer)

    def special_tokens(self, text: str) -> Special:
        """Return False for a text that begins with the first token's text, so that it does not get it twice;
        None leaves it to the tokenizer.
        """
        return False if has_bos_prefix(text, self._prefix) else None

    def special_tokens_of_prompt(self, text: str) -> Special:
        """As `special_tokens`, by lm-eval's rule for generation, which looks at `bos_token` only."""
        return False if has_bos_prefix(text, getattr(self.tokenizer, "bos_token", None)) else None

    def encode(self, texts: Iterable[str], special: Callable[[str], Special] | None = None) -> dict[str, Ids]:
        """Return the ids of each distinct text, the same as one by one."""
        rule = special or self.special_tokens
        groups: dict[Special, dict[str, None]] = {}
        for text in texts:
            groups.setdefault(rule(text), {})[text] = None
        found: dict[str, Ids] = {}
        for add, members in groups.items():
            options = {} if add is None else {"add_special_tokens": add}
            distinct = list(members)
            for start in range(0, len(distinct), _BATCH):
                batch = distinct[start : start + _BATCH]
                for text, ids in zip(batch, self._encode(batch, options), strict=True):
                    found[text] = tuple(map(self._numbers.__getitem__, ids))
        return found

    def _encode(self, texts: list[str], options: dict[str, bool]) -> list[list[int]]:
        if not self._batches:
            return [self.tokenizer.encode(text, **options) for text in texts]
        # Sets the core to no padding, no truncation, and the tokenizer's own treatment of special tokens.
        self.tokenizer(texts[:1], **options)
        # Without offsets into the text, which nobody reads: a quarter less time for the same ids.
        core = self.tokenizer.backend_tokenizer
        found = core.encode_batch_fast(texts, add_special_tokens=options.get("add_special_tokens", True))
        return [encoding.ids for encoding in found]


def tokenizer_key(tokenizer: Any) -> Hashable:
    """Return what two tokenizers have in common if and only if they render and encode every text alike.

    A tokenizer without a serializable core (Python or sentencepiece) is like itself only.
    """
    backend = tokenizer.backend_tokenizer if _is_fast(tokenizer) else None
    return (
        tokenizer if backend is None else sha256_text(backend.to_str()),
        f"{type(tokenizer).__module__}.{type(tokenizer).__qualname__}",
        repr(tokenizer.chat_template),
        repr(sorted(tokenizer.special_tokens_map.items())),
        getattr(tokenizer, "split_special_tokens", None),
        getattr(tokenizer, "clean_up_tokenization_spaces", None),
    )


def _is_batchable(tokenizer: Any) -> bool:
    """Whether a list goes through the same code as one text: not where a class changed one of the two."""
    if not _is_fast(tokenizer):
        return False
    names = ("encode", "__call__", "_encode_plus")
    homes = [next(c.__module__ for c in type(tokenizer).__mro__ if name in vars(c)) for name in names]
    return all(home.startswith("transformers.tokenization_utils_") for home in homes)


def _is_fast(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "is_fast", False))  # mistral-common's class does not say
