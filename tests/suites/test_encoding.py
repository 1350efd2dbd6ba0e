"""Token ids in batches are those of lm-eval's `hf` model, text by text, and equal ones are shared."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.huggingface import HFLM

from lora_eval.errors import TaskError
from lora_eval.suites.encoding import Encodings
from lora_eval.suites.tokens import Encoder, tokenizer_key

TEXTS = st.text(alphabet=st.sampled_from("ab c\n\tthe é<s>\u3000"), max_size=12)


class Theirs(TemplateLM):
    """lm-eval's `hf` model without a model: only what turns texts into tokens."""

    tok_encode = HFLM.tok_encode
    eot_token_id = property(lambda self: self.tokenizer.eos_token_id)
    prefix_token_id = HFLM.prefix_token_id
    add_bos_token = None
    custom_prefix_token_id = None

    def __init__(self, tokenizer: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.seen: list[Any] = []

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> Any:
        return [(tuple(context), tuple(answer)) for _, context, answer in requests]

    loglikelihood_rolling = generate_until = None


def _plain(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def _with_first_token(folder: Path) -> Any:
    """A tokenizer that puts its first token before every text, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = _plain(folder)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    first = ("<s>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[first])
    return tokenizer


def _in_python(_: Path) -> Any:
    """A tokenizer without a serializable core: a token for each byte, and the end token after every text."""
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


@pytest.fixture(scope="module", params=[_plain, _with_first_token, _in_python])
def tokenizer(request: pytest.FixtureRequest, tiny_llama: Path) -> Any:
    return request.param(tiny_llama)


def _instances(pairs: Any, kind: str = "loglikelihood") -> list[Instance]:
    return [Instance(kind, {}, pair, 0, metadata=("t", i, 1)) for i, pair in enumerate(pairs)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8))
def test_pairs_are_split_as_lm_eval_splits_them(pairs: list[tuple[str, str]], tokenizer: Any) -> None:
    theirs = Theirs(tokenizer)
    fit = [pair for pair in pairs if _fits(theirs, pair)]
    expected = theirs.loglikelihood(_instances(fit), disable_tqdm=True)
    found = Encodings().scores(_instances(fit), tokenizer, 1000)
    assert [(r.context_ids, r.continuation_ids) for r in found.requests] == expected
    assert not found.truncated
    for pair in pairs:
        if pair not in fit:
            with pytest.raises(TaskError, match=r"no tokens|has 0 tokens"):
                Encodings().scores(_instances([pair]), tokenizer, 1000)


def _fits(theirs: Theirs, pair: tuple[str, str]) -> bool:
    """Whether lm-eval finds tokens in both; its `hf` model stops at the pair if not."""
    try:
        ((context, answer),) = theirs.loglikelihood(_instances([pair]), disable_tqdm=True)
    except IndexError:
        return False
    return bool(context and answer)


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(TEXTS, max_size=300), add=st.sampled_from([None, True, False]))
def test_batches_give_what_one_text_gives(texts: list[str], add: bool | None, tokenizer: Any) -> None:
    theirs = Theirs(tokenizer)
    found = Encoder(tokenizer).encode(texts, None if add is None else lambda _: add)
    assert found == {text: tuple(theirs.tok_encode(text, add_special_tokens=add)) for text in texts}


def test_choices_share_their_context_and_numbers_are_one_object(tokenizer: Any) -> None:
    pairs = [(f"the cat sat {i} ", f" {end}") for i in range(3) for end in ("a", "dog", "dog")]
    requests = Encodings().scores(_instances(pairs), tokenizer, 1000).requests
    contexts = {id(request.context_ids) for request in requests}
    assert len(contexts) == 3
    numbers = [number for request in requests for number in request.context_ids + request.continuation_ids]
    assert len({id(number) for number in numbers}) == len(set(numbers))
    answers = [request.continuation_ids for request in requests]
    assert len({id(answer) for answer in answers}) == len(set(answers))


def test_cut_contexts_are_shared_and_counted(tokenizer: Any) -> None:
    pairs = [("the cat sat on the mat", " a"), ("the cat sat on the mat", " a"), ("a", " b")]
    whole = Encodings().scores(_instances(pairs), tokenizer, 1000).requests
    limit = len(whole[0].context_ids) - 2
    found = Encodings().scores(_instances(pairs), tokenizer, limit)
    cut = found.requests[0]
    assert (
        cut.context_ids + cut.continuation_ids
        == ((whole[0].context_ids + whole[0].continuation_ids)[-(limit + 1) :])
    )
    assert found.requests[1].context_ids is cut.context_ids
    assert found.truncated == {("t", 0), ("t", 1)}
    assert found.prompt_tokens[("t", 0)] == len(whole[0].context_ids)
    with pytest.raises(TaskError, match="task t, item 0: an answer to be scored has"):
        Encodings().scores(_instances([("a", " the cat sat on the mat" * 20)]), tokenizer, 16)


def test_kept_for_equal_tokenizers_and_limits_only(tiny_llama: Path) -> None:
    encodings, instances = Encodings(), _instances([("the cat", " sat"), ("the cat", " ran")])
    first = encodings.scores(instances, _plain(tiny_llama), 100)
    assert encodings.scores(list(instances), _plain(tiny_llama), 100) is first  # a copy of its own
    assert encodings.scores(instances, _plain(tiny_llama), 99) is not first
    other = encodings.scores(instances, _with_first_token(tiny_llama), 100)
    assert len(other.requests[0].context_ids) == len(first.requests[0].context_ids) + 1
    again = encodings.scores(_instances([("the cat", " sat"), ("the cat", " ran")]), _plain(tiny_llama), 100)
    assert again is not first
    assert again == first
    prompts = _instances([("the cat", {"until": ["x"], "max_gen_toks": 4})], "generate_until")
    answers = encodings.generations(prompts, _plain(tiny_llama), 100, 1)
    assert encodings.generations(prompts, _plain(tiny_llama), 100, 1) is answers
    assert encodings.generations(prompts, _plain(tiny_llama), 100, 2) is not answers
    assert encodings.scores(instances, _plain(tiny_llama), 100) == first  # kinds do not displace each other


def test_what_makes_tokenizers_differ(tokenizer: Any) -> None:
    key = tokenizer_key(tokenizer)
    assert tokenizer_key(tokenizer) == key
    if tokenizer.is_fast:
        assert tokenizer_key(copy.deepcopy(tokenizer)) == key
    else:
        assert tokenizer_key(copy.deepcopy(tokenizer)) != key
    changed = copy.deepcopy(tokenizer)
    changed.add_tokens(["zebra"])
    assert tokenizer_key(changed) != key
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = "{{ messages }}"
    assert tokenizer_key(changed) != key


def test_a_class_with_an_encode_of_its_own_is_asked_text_by_text(tiny_llama: Path) -> None:
    tokenizer = _plain(tiny_llama)

    class Own(type(tokenizer)):
        def encode(self, text: str, **options: Any) -> list[int]:
            return [7, *super().encode(text, **options)]

    tokenizer.__class__ = Own
    assert Encoder(tokenizer).encode(["the", "cat"])["cat"] == tuple(tokenizer.encode("cat"))


def test_truncation_that_somebody_left_on_does_not_cut(tiny_llama: Path) -> None:
    tokenizer = _plain(tiny_llama)
    expected = {text: tuple(tokenizer.encode(text)) for text in ("the cat sat", "a", "")}
    tokenizer(["the cat sat", "a"], truncation=True, max_length=2, padding=True)
    assert Encoder(tokenizer).encode(expected) == expected
    tokenizer.split_special_tokens = True
    text = f"a{tokenizer.eos_token}b"
    assert Encoder(tokenizer).encode([text, "a"])[text] == tuple(tokenizer.encode(text))
    assert len(tokenizer.encode(text)) > 3
