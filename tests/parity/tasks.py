"""lm-eval's own task files, with rows of ours: each file here includes the installed one and replaces where
its rows come from (and, where the file leaves it open, the number of shots; and splits that are not there).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.parity.excerpts import BBH, DATA, MMLU, NOT_COMMITTED, Row, rows_of, write_rows

UTILS = '''\
"""Rows of a file beside this one."""
import json
from pathlib import Path


def load(file, **_):
    from datasets import Dataset, DatasetDict

    splits = {}
    for line in (Path(__file__).parent / file).read_text("utf-8").split("\\n"):
        if line:
            row = json.loads(line)
            splits.setdefault(row.pop("split"), []).append(row)
    return DatasetDict({name: Dataset.from_list(rows) for name, rows in splits.items()})
'''


@dataclass(frozen=True, slots=True)
class Task:
    """One task: lm-eval's file (relative to its tasks; empty: none), whose rows, and lines of our own."""

    name: str
    file: str
    rows: str
    own: str = ""


_NO_TRAIN, _NO_VALIDATION = "training_split: null\n", "validation_split: null\n"
# Neither is a benchmark of lm-eval: a context that is empty, and an answer longer than most prompts.
_EMPTY = """\
test_split: test
output_type: loglikelihood
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
_LONG = _EMPTY.replace('doc_to_text: ""', "doc_to_text: \"{{text.split(' ')[0]}}\"").replace(
    "{{text}}", "{{text.split(' ')[1:]|join(' ')}}"
)
# lm-eval's own file without its metric, which needs a download (nltk's punkt_tab).
IFEVAL_TEXTS = """\
test_split: train
output_type: generate_until
doc_to_text: prompt
doc_to_target: "{{key}}"
num_fewshot: 0
generation_kwargs: {until: [], do_sample: false, temperature: 0.0, max_gen_toks: 1280}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""


def has_punkt() -> bool:
    """Whether nltk's sentence tokenizer is on this machine, without which `ifeval` cannot be scored."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


def all_tasks() -> list[Task]:
    """Every task, in a fixed order."""
    ifeval = ("ifeval/ifeval.yaml", "") if has_punkt() else ("", IFEVAL_TEXTS)
    return [
        Task("hellaswag", "hellaswag/hellaswag.yaml", "hellaswag", _NO_TRAIN),
        Task("arc_easy", "arc/arc_easy.yaml", "arc_easy", _NO_VALIDATION + "num_fewshot: 25\n"),
        *(Task(name, f"mmlu/default/{name}.yaml", name, "num_fewshot: 5\n") for name in MMLU),
        Task("piqa", "piqa/piqa.yaml", "piqa", _NO_TRAIN),
        Task("boolq", "super_glue/boolq/default.yaml", "boolq", _NO_TRAIN),
        Task(
            "openbookqa",
            "openbookqa/openbookqa.yaml",
            "openbookqa",
            _NO_VALIDATION + "num_fewshot: 25\n",
        ),
        Task("copa", "super_glue/copa/default.yaml", "copa", _NO_TRAIN),
        Task("truthfulqa_mc1", "truthfulqa/truthfulqa_mc1.yaml", "truthfulqa"),
        Task("truthfulqa_mc2", "truthfulqa/truthfulqa_mc2.yaml", "truthfulqa"),
        Task("lambada_openai", "lambada/lambada_openai.yaml", "lambada_openai"),
        Task("gsm8k", "gsm8k/gsm8k.yaml", "gsm8k"),
        *(Task(name, f"bbh/cot_fewshot/{name.removeprefix('bbh_cot_fewshot_')}.yaml", name) for name in BBH),
        Task("minerva_math500", "minerva_math/minerva_math500.yaml", "math500"),
        Task("hendrycks_math500", "hendrycks_math/hendrycks_math500.yaml", "math500"),
        Task("wikitext", "wikitext/wikitext.yaml", "documents", _NO_TRAIN + _NO_VALIDATION),
        Task("ifeval", ifeval[0], "ifeval", ifeval[1]),
        Task("empty_context", "", "lambada_openai", _EMPTY),
        Task("long_continuation", "", "lambada_openai", _LONG),
    ]


NAMES = [task.name for task in all_tasks()]


def committed_or_shared(name: str, n: int) -> list[Row] | Path:
    """Return the committed file of rows, or rows of data that is not committed."""
    return rows_of(name, n) if name in NOT_COMMITTED else DATA / f"{name}.jsonl"


def write_task(folder: Path, task: Task, rows: list[Row] | Path) -> None:
    """Write one task file with its rows into the folder."""
    import lm_eval.tasks

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "utils.py").write_text(UTILS, "utf-8")
    if isinstance(rows, Path):
        (folder / f"{task.rows}.jsonl").write_bytes(rows.read_bytes())
    else:
        write_rows(folder / f"{task.rows}.jsonl", rows)
    include = f"include: {Path(lm_eval.tasks.__file__).parent / task.file}\n" if task.file else ""
    text = (
        f"{include}task: {task.name}\ncustom_dataset: !function utils.load\n"
        f"dataset_kwargs: {{file: {task.rows}.jsonl}}\n{task.own}"
    )
    (folder / f"{task.name}.yaml").write_text(text, "utf-8")
