"""Task files of every request type over local data, one resident tiny model, and lm-eval's own `hf` model."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_eval.engines.transformers import TransformersEngine
from lora_eval.models import open_resident

TEXT = "the a cat dog sat ran on under mat tree red blue and then it was happy sad"
WORDS = TEXT.split()
BASE = """\
custom_dataset: !function utils.load
test_split: test
metadata: {version: 2.0}
"""
TASKS = {
    "choice": """\
include: _base
task: t_choice
tag: t_all
dataset_kwargs: {file: items.jsonl}
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
num_fewshot: 2
fewshot_split: test
fewshot_config: {sampler: default}
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "generate": """\
include: _base
task: t_generate
tag: t_all
dataset_kwargs: {file: items.jsonl}
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: ["e", "zz"], do_sample: false, max_gen_toks: 24}
filter_list:
  - {name: first, filter: [{function: take_first}]}
  - {name: letters, filter: [{function: regex, regex_pattern: "([a-z]+)"}, {function: take_first}]}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
    "rolling": """\
include: _base
task: t_rolling
dataset_kwargs: {file: texts.jsonl}
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
""",
    "last": """\
include: _base
task: t_last
dataset_kwargs: {file: items.jsonl}
output_type: loglikelihood
doc_to_text: ""
doc_to_target: "{{choices[label]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "group": """\
group: t_group
task: [t_choice, t_last]
aggregate_metric_list:
  - {metric: acc, aggregation: mean, weight_by_size: true}
""",
}
UTILS = '''\
"""Rows of a file beside this one."""
import json
from pathlib import Path


def load(file, **_):
    from datasets import Dataset

    lines = (Path(__file__).parent / file).read_text("utf-8").splitlines()
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}
'''


def write_tasks(folder: Path) -> Path:
    """Write the task files and their data; the same every time."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(3)

    def words(low: int, high: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))

    items = [
        {
            "question": words(2, 9),
            "choices": [words(1, 4) for _ in range(3)],
            "label": rng.randrange(3),
            "topic": f"topic {i % 4}",
        }
        for i in range(14)
    ]
    # The last text is longer than the model reads (1024 tokens, one for each letter).
    texts = [{"text": words(3, 40)} for _ in range(5)] + [{"text": words(400, 420)}]
    for name, rows in (("items", items), ("texts", texts)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, "utf-8")
    (folder / "utils.py").write_text(UTILS, "utf-8")
    (folder / "_base").write_text(BASE, "utf-8")
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(text, "utf-8")
    return folder


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="session")
def engine(tiny_llama: Path, tiny_adapter: Path) -> TransformersEngine:
    return TransformersEngine(open_resident(tiny_llama, {"tuned": tiny_adapter}, identity_control=True))


@pytest.fixture(scope="session")
def reference(tiny_llama: Path, tiny_adapter: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """`reference(arm, names, include, **options)`: lm-eval's own results at batch size 1, in float32."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)

    def model(arm: str) -> Any:
        plain = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
        # Given as an object: by name, lm-eval would shrink the embedding to the tokenizer's length.
        return plain if arm == "base" else PeftModel.from_pretrained(plain, tiny_adapter).eval()

    def call(arm: str, names: list[str], include: Path, **options: Any) -> dict[str, Any]:
        lm = HFLM(pretrained=model(arm), tokenizer=tokenizer, batch_size=1)
        manager = TaskManager(include_path=str(include), include_defaults=False)
        return lm_eval.simple_evaluate(
            model=lm, tasks=names, task_manager=manager, bootstrap_iters=0, verbosity=None, **options
        )

    yield call
