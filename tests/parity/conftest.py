"""A tiny random Llama with a real subword tokenizer, an adapter, and both ways of evaluating them."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lora_eval.engines.transformers import open_engine
from lora_eval.models import Resident, open_resident
from lora_eval.pocket import model_path
from tests.conftest import save_tiny_adapter
from tests.parity.compare import TaskParity, compare, stock_model, stock_results, suite_of
from tests.parity.excerpts import NOT_COMMITTED, SHARED
from tests.parity.tasks import all_tasks, committed_or_shared, write_task

READS = {"long": 8192, "short": 384}  # tokens; 25 shots fit into the one, hardly any prompt into the other
NEW_TOKENS = 40  # lm-eval's limits are 256 to 1280, which cost minutes here and show nothing else


class Models(NamedTuple):
    """One base and adapter, as folders and resident."""

    base: Path
    adapter: Path
    resident: Resident


def save_model(folder: Path, reads: int) -> None:
    """Write a random Llama with the embedded model's tokenizer (2,048 tokens; the embedding has more)."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=2112,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=24,
        max_position_embeddings=reads,
        bos_token_id=5,
        eos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=True,
        initializer_range=0.15,  # answers then differ from one prompt to another
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight[2048:] = 0  # no token stands there: never the likeliest answer
    model.generation_config = GenerationConfig(bos_token_id=5, eos_token_id=1, pad_token_id=0)
    model.save_pretrained(folder)
    for path in model_path().iterdir():
        if path.name.startswith("tokenizer") or path.suffix == ".jinja":
            shutil.copy(path, folder / path.name)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Models]:
    """`models("long")` or `models("short")`: the same weights, with room for more or fewer tokens."""

    @functools.cache
    def build(reads: str) -> Models:
        folder = tmp_path_factory.mktemp("parity-models")
        base, adapter = folder / "base", folder / "adapter"
        save_model(base, READS[reads])
        save_tiny_adapter(base, adapter)
        return Models(base, adapter, open_resident(base, {"tuned": adapter}))

    return build


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every task whose data is here."""
    folder = tmp_path_factory.mktemp("parity-tasks")
    for task in all_tasks():
        if SHARED.is_dir() or task.rows not in NOT_COMMITTED:
            write_task(folder, task, committed_or_shared(task.rows, 6))
    return folder


@pytest.fixture(scope="session")
def stock(models: Callable[[str], Models], task_folder: Path) -> Callable[..., dict[str, Any]]:
    """`stock(reads, arm, names, chat, until)`: lm-eval's own results, computed once."""

    @functools.cache
    def lm(reads: str, arm: str) -> Any:
        found = models(reads)
        return stock_model(found.base, found.adapter if arm == "tuned" else None)

    @functools.cache
    def call(reads: str, arm: str, names: tuple[str, ...], chat: bool, until: str) -> dict[str, Any]:
        return stock_results(lm(reads, arm), names, task_folder, chat=chat, generation=_settings(until))

    return call


def _settings(until: str) -> dict[str, Any]:
    return {"max_gen_toks": NEW_TOKENS, **({"until": until.split("|")} if until else {})}


@pytest.fixture(scope="session")
def parities(
    models: Callable[[str], Models], task_folder: Path, stock: Callable[..., dict[str, Any]]
) -> Callable[..., dict[str, TaskParity]]:
    """`parities(reads, arm, names, chat=, until=, engine=)`: by task, what differs from lm-eval's own."""

    def call(
        reads: str,
        arm: str,
        names: Sequence[str],
        *,
        chat: bool = False,
        until: str = "",
        engine: Any = None,
    ) -> dict[str, TaskParity]:
        suite = suite_of(names, task_folder, apply_chat_template=chat, generation=_settings(until))
        theirs = stock(reads, arm, tuple(names), chat, until)
        return compare(suite, engine or open_engine(models(reads).resident), arm, theirs)

    return functools.cache(call)
