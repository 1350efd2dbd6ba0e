"""Stop texts and the choice of tokens against lm-eval's criteria and transformers' own processors."""

from __future__ import annotations

import copy
import importlib.resources
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lora_eval.engines.decoding import Row, StopTexts, chooser, end_tokens, generation_settings
from lora_eval.errors import InputError
from lora_eval.models import Resident, load_tokenizer
from lora_eval.protocols import GenerateRequest

STOPS = (
    "\n", "\n\n", "\n\n\n", "Q:", "</s>", "<|im_end|>", "Question", "a", " a", "a b", "ab", "é", "日本", ". ",
    "  ", "<|im_start|>user", "\r\n", "10", "e\nQ", " the ", "The answer is",
)  # fmt: skip
PIECES = (
    *STOPS,
    "b",
    " b",
    "The answer is 10.",
    " quest",
    "ion",
    "\t",
    "日",
    "本",
    "\U0001f642",
    "Q",
    ":",
    "<",
)


def _sentence_pieces(folder: Path) -> Any:
    """A tokenizer of the Llama-2 kind: spaces as U+2581, the first one stripped, other text by bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", *"abQ:ionquestThrwa10.\n", "\u2581a", "\n\n", "Qu"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    merges = [("\u2581", "a"), ("\n", "\n"), ("Q", "u")]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )
    tokenizer.save_pretrained(folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def tokenizers(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pocket = importlib.resources.files("lora_eval") / "pocket" / "model"
    return {
        "bytes": load_tokenizer(tiny_llama),
        "pocket": load_tokenizer(Path(str(pocket))),
        "pieces": _sentence_pieces(tmp_path_factory.mktemp("pieces")),
    }


def _spelled(tokenizer: Any, text: str, apart: bool) -> list[int]:
    """The text as the tokenizer writes it, or character by character, as a model may do."""
    if not apart:
        return list(tokenizer.encode(text, add_special_tokens=False))
    own = {character: tokenizer.get_vocab().get(character) for character in text}
    return [
        token
        for character in text
        for token in (
            tokenizer.encode(character, add_special_tokens=False)
            if own[character] is None
            else [own[character]]
        )
    ]


def _lm_eval_stop(tokenizer: Any, until: tuple[str, ...], prompt: list[int], tokens: list[int]) -> int | None:
    """After how many new tokens lm-eval stops a row that is alone in its batch."""
    from lm_eval.models.utils_hf import stop_sequences_criteria

    criteria = stop_sequences_criteria(tokenizer, list(until), len(prompt), 1)
    for n in range(1, len(tokens) + 1):
        if any(one(torch.tensor([[*prompt, *tokens[:n]]]), None) for one in criteria):
            return n
    return None


@pytest.mark.parametrize("name", ["bytes", "pocket", "pieces"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    until=st.lists(st.sampled_from(STOPS), max_size=4).map(tuple),
    texts=st.lists(st.tuples(st.sampled_from(PIECES), st.booleans()), min_size=1, max_size=8),
    numbers=st.lists(st.integers(0, 10**6), max_size=8),
)
@example(until=("\n\n",), texts=[("\n", False)] * 2, numbers=[])  # other tokens than the stop text's own
@example(until=("Question", "a"), texts=[("Question", True)], numbers=[])  # more tokens than are looked at
@example(
    until=("Question", "Q: one, two, three"), texts=[("Question", True)], numbers=[]
)  # each its own window
def test_a_row_stops_where_lm_eval_stops_it(
    tokenizers: dict[str, Any],
    name: str,
    until: tuple[str, ...],
    texts: list[tuple[str, bool]],
    numbers: list[int],
) -> None:
    tokenizer = tokenizers[name]
    tokens = [token for text, apart in texts for token in _spelled(tokenizer, text, apart)]
    for place, number in enumerate(numbers):  # as a model does that says anything
        tokens.insert((place * 7) % (len(tokens) + 1), number % len(tokenizer))
    prompt = tokenizer.encode("Q:\n\n", add_special_tokens=False)  # stop texts here do not count
    stops = StopTexts(tokenizer, until)
    found = next((n for n in range(1, len(tokens) + 1) if stops.found(tokens[:n])), None)
    assert found == _lm_eval_stop(tokenizer, until, prompt, tokens)


def _row(tokenizer: Any, until: tuple[str, ...] = (), limit: int = 5) -> Row:
    return Row(0, GenerateRequest((1, 2), until, limit), StopTexts(tokenizer, until))


def test_why_a_row_ends(tokenizers: dict[str, Any]) -> None:
    tokenizer = tokenizers["bytes"]
    a, b, end = (tokenizer.convert_tokens_to_ids(text) for text in ("a", "b", "<|im_end|>"))
    row = _row(tokenizer, limit=2)
    assert [row.add(a, frozenset({end})), row.add(b, frozenset({end}))] == [None, "length"]
    row = _row(tokenizer, limit=1)
    assert row.add(end, frozenset({end})) == "stop"  # the last token it may have, and a stop
    row = _row(tokenizer, ("ab",))
    assert [row.add(token, frozenset()) for token in (b, a, end, a, b)] == [None] * 4 + ["stop"]
    assert row.answer(tokenizer, "stop").token_ids == (b, a, end, a, b)
    # As lm-eval has it: special tokens are taken out before the text is cut, and then there is another "ab".
    assert row.answer(tokenizer, "stop").text == "ba"


def test_an_answer_is_cut_at_every_stop_text(tokenizers: dict[str, Any]) -> None:
    from lm_eval.models.utils import postprocess_generated_text

    tokenizer = tokenizers["pocket"]
    for text in ("one. two\nQ: three", "Q: x", "nothing", "\n", "é. Q:\n\n"):
        for until in (("\n", "Q:"), ("Q:", ". "), ("", "é"), ()):
            row = _row(tokenizer, until)
            row.tokens = tokenizer.encode(text, add_special_tokens=False)
            whole = tokenizer.decode(row.tokens, skip_special_tokens=True)
            assert row.answer(tokenizer, "stop").text == postprocess_generated_text(whole, list(until), None)


def test_end_tokens_of_the_settings(resident: Resident) -> None:
    own = copy.deepcopy(resident.model.generation_config)
    for value, expected in ((7, {7}), ([7, 9], {7, 9}), ((7,), {7}), (None, set())):
        own.eos_token_id = value
        assert end_tokens(own.eos_token_id) == expected


def test_settings_are_the_models_with_what_is_asked(resident: Resident) -> None:
    before = resident.model.generation_config.to_dict()
    sampling = {"do_sample": True, "temperature": 0.5, "repetition_penalty": 1.5, "num_beams": 1}
    own = generation_settings(resident.model, sampling)
    assert (own.repetition_penalty, own.do_sample, own.temperature, own.eos_token_id) == (
        1.5,
        False,
        None,
        257,
    )
    assert resident.model.generation_config.to_dict() == before
    for refused in ({"num_beams": 2}, {"guidance_scale": 2.0}, {"no_such": 1, "repetition_penalty": 2.0}):
        with pytest.raises(InputError):
            generation_settings(resident.model, refused)


def _choose(resident: Resident, sampling: dict[str, Any], seed: int = 0) -> Any:
    request = GenerateRequest((1, 2, 3), (), 4, sampling, seed)
    return chooser(resident.model, generation_settings(resident.model, sampling), request)


def test_without_rules_nothing_stands_between_logits_and_token(resident: Resident) -> None:
    assert _choose(resident, {}) is None
    assert _choose(resident, {"temperature": 1.0, "do_sample": False}) is None
    assert _choose(resident, {"repetition_penalty": 1.0}) is None


def test_a_sample_depends_on_its_seed_only(resident: Resident) -> None:
    logits = torch.randn(12, 320, generator=torch.Generator().manual_seed(0))
    drawn = []
    for seed in (0, 0, 1):
        choose = _choose(resident, {"do_sample": True}, seed)
        torch.manual_seed(len(drawn))  # the global generator plays no part
        drawn.append([choose((1, 2, 3), row) for row in logits])
    assert drawn[0] == drawn[1] != drawn[2]


def test_samples_come_from_transformers_distribution(resident: Resident) -> None:
    from transformers import LogitsProcessorList

    sampling = {"do_sample": True, "temperature": 1.7, "top_k": 12, "top_p": 0.9, "min_p": 0.02}
    own = copy.deepcopy(resident.model.generation_config)
    own.update(**sampling)
    processors: LogitsProcessorList = resident.model._get_logits_processor(own, input_ids_seq_length=3)
    logits = 2 * torch.randn(320, generator=torch.Generator().manual_seed(5))
    expected = processors(torch.tensor([[1, 2, 3]]), logits[None]).softmax(-1)[0]
    choose, n = _choose(resident, sampling, seed=11), 3000
    counts = torch.zeros(320)
    for _ in range(n):
        counts[choose((1, 2, 3), logits)] += 1
    assert 3 < int((expected > 0).sum()) <= 12
    assert not counts[expected == 0].any()
    spread = (expected * (1 - expected) / n).sqrt()
    assert bool(((counts / n - expected).abs() <= 5 * spread).all())


def _drawn(model: Any, sampling: dict[str, Any], logits: torch.Tensor, n: int = 400) -> set[int]:
    request = GenerateRequest((1, 2, 3), (), 4, sampling, 0)
    choose = chooser(model, generation_settings(model, sampling), request)
    assert choose is not None
    return {choose((1, 2, 3), logits) for _ in range(n)}


@pytest.mark.parametrize(
    "sampling", [{}, {"top_k": 0, "typical_p": 0.3}, {"top_k": 0, "epsilon_cutoff": 0.004}]
)
def test_samples_are_cut_as_generate_cuts_them(resident: Resident, sampling: dict[str, Any]) -> None:
    asked = {"do_sample": True, **sampling}
    own, _ = resident.model._prepare_generation_config(None, **asked)  # top_k is 50 where nothing is said
    rules = resident.model._get_logits_processor(own, input_ids_seq_length=3)
    logits = torch.randn(320, generator=torch.Generator().manual_seed(5))
    allowed = set((rules(torch.tensor([[1, 2, 3]]), logits[None])[0] > -torch.inf).nonzero()[:, 0].tolist())
    assert len(allowed) < 200
    assert _drawn(resident.model, asked, logits) <= allowed
