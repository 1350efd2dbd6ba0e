"""Rows of real data sets under the column names of their lm-eval tasks, read from `../shared/data`.

`python -m tests.parity.excerpts` writes the committed excerpts (data/*.jsonl) again. Data whose licence is
share-alike or in doubt is never committed: ARC, BoolQ, PIQA and COPA are read where they are.
"""

from __future__ import annotations

import gzip
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parents[2]
SHARED = CHECKOUT.parent / "shared" / "data"
DATA = Path(__file__).parent / "data"
MMLU = ("mmlu_miscellaneous", "mmlu_anatomy", "mmlu_management")
BBH = ("bbh_cot_fewshot_navigate", "bbh_cot_fewshot_boolean_expressions")
COMMITTED = (
    "hellaswag", *MMLU, "openbookqa", "truthfulqa", "lambada_openai", "gsm8k", *BBH, "math500", "ifeval"
)  # fmt: skip
NOT_COMMITTED = ("arc_easy", "boolq", "piqa", "copa")
Row = dict[str, Any]


def rows_of(name: str, n: int) -> list[Row]:
    """Return the rows of a data set, each with its `split`: at most `n` to evaluate, and those for shots.

    Raises:
        FileNotFoundError: the data set is not there.
    """
    family = next((family for family in ("mmlu", "bbh") if name.startswith(f"{family}_")), name)
    wanted = {"train": SHOTS.get(family, 0), "dev": 5, EVALUATED.get(family, "test"): n}
    counts: dict[str, int] = {}
    kept = []
    for row in READERS[family](name):
        split = row["split"]
        counts[split] = counts.get(split, 0) + 1
        if counts[split] <= wanted.get(split, 0):
            kept.append(row)
    return kept


SHOTS = {"arc_easy": 30, "openbookqa": 30, "gsm8k": 8}  # rows to draw shots from
EVALUATED = {
    "hellaswag": "validation", "boolq": "validation", "piqa": "validation", "copa": "validation",
    "truthfulqa": "validation", "ifeval": "train",
}  # fmt: skip


def _lines(path: str) -> Iterator[Row]:
    file = SHARED / path
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    # By \n only: real texts hold U+2028.
    return (json.loads(line) for line in data.decode("utf-8").split("\n") if line)


def _hellaswag(name: str) -> Iterator[Row]:
    for row in _lines("benchmarks/hellaswag/val_sample1000.jsonl.gz"):
        # The carrier stores the text as lm-eval's `process_docs` makes it: "activity: context".
        label, _, context = row["query"].partition(": ")
        yield {
            "split": "validation", "activity_label": label, "ctx_a": context, "ctx_b": "",
            "endings": row["choices"], "label": str(row["gold"]),
        }  # fmt: skip


def _arc(name: str) -> Iterator[Row]:
    for i, row in enumerate(_lines("benchmarks/arc_easy/validation.jsonl.gz")):
        yield {"split": "train" if i < 30 else "test", **row}


def _mmlu(name: str) -> Iterator[Row]:
    yield from _lines(f"benchmarks/mmlu/{name.removeprefix('mmlu_')}.jsonl.gz")


def _piqa(name: str) -> Iterator[Row]:
    labels = (SHARED / "benchmarks/piqa/valid-labels.lst").read_text("utf-8").split()
    for row, label in zip(_lines("benchmarks/piqa/valid.jsonl.gz"), labels, strict=True):
        yield {"split": "validation", **row, "label": int(label)}


def _boolq(name: str) -> Iterator[Row]:
    for row in _lines("benchmarks/boolq/validation.jsonl.gz"):
        yield {"split": "validation", "question": row["question"], "passage": row["passage"],
               "label": int(row["answer"])}  # fmt: skip


def _openbookqa(name: str) -> Iterator[Row]:
    for i, row in enumerate(_lines("benchmarks/openbookqa/validation.jsonl.gz")):
        yield {"split": "train" if i < 30 else "test", **row}


def _copa(name: str) -> Iterator[Row]:
    for item in ET.parse(SHARED / "benchmarks/copa/copa-dev.xml").getroot():
        texts = {part.tag: part.text for part in item}
        yield {
            "split": "validation", "premise": texts["p"], "choice1": texts["a1"], "choice2": texts["a2"],
            "question": item.attrib["asks-for"], "label": int(item.attrib["most-plausible-alternative"]) - 1,
        }  # fmt: skip


def _truthfulqa(name: str) -> Iterator[Row]:
    for row in _lines("benchmarks/truthfulqa/TruthfulQA.jsonl.gz"):
        right, wrong = (
            [text.strip() for text in row[key].split(";") if text.strip()]
            for key in ("Correct Answers", "Incorrect Answers")
        )
        yield {
            "split": "validation",
            "question": row["Question"],
            "mc1_targets": {"choices": [row["Best Answer"], *wrong], "labels": [1] + [0] * len(wrong)},
            "mc2_targets": {"choices": [*right, *wrong], "labels": [1] * len(right) + [0] * len(wrong)},
        }


def _lambada(name: str) -> Iterator[Row]:
    for row in _lines("benchmarks/lambada/lambada_test_openai.jsonl.gz"):
        yield {"split": "test", "text": row["text"]}


def _gsm8k(name: str) -> Iterator[Row]:
    for split, file in (("train", "train_sample"), ("test", "test")):
        for row in _lines(f"benchmarks/gsm8k/{file}.jsonl.gz"):
            yield {"split": split, "question": row["question"], "answer": row["answer"]}


def _bbh(name: str) -> Iterator[Row]:
    file = SHARED / f"benchmarks/bbh/{name.removeprefix('bbh_cot_fewshot_')}.json.gz"
    for row in json.loads(gzip.decompress(file.read_bytes()))["examples"]:
        yield {"split": "test", **row}


def _math500(name: str) -> Iterator[Row]:
    for row in _lines("benchmarks/math500/math_oai_test.jsonl.gz"):
        yield {"split": "test", "problem": row["problem"], "solution": row["solution"]}


def _ifeval(name: str) -> Iterator[Row]:
    for row in _lines("benchmarks/ifeval/input_data_v2_2024-09.jsonl"):
        yield {"split": "train", **row}


def _documents(name: str) -> Iterator[Row]:
    """Whole articles, as lm-eval's `wikitext` has them: a heading of one level begins a new one."""
    page: list[str] = []
    for row in _lines("datasets/plain_text/wikitext2_val_sample_open.jsonl.gz"):
        if row["text"].startswith(" = ") and not row["text"].startswith(" = = ") and page:
            yield {"split": "test", "page": "".join(page)}
            page = []
        page.append(row["text"])


READERS: dict[str, Callable[[str], Iterator[Row]]] = {
    "hellaswag": _hellaswag, "arc_easy": _arc, "mmlu": _mmlu, "piqa": _piqa, "boolq": _boolq,
    "openbookqa": _openbookqa, "copa": _copa, "truthfulqa": _truthfulqa, "lambada_openai": _lambada,
    "gsm8k": _gsm8k, "bbh": _bbh, "math500": _math500, "ifeval": _ifeval, "documents": _documents,
}  # fmt: skip


def write_rows(path: Path, rows: list[Row]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def main() -> None:
    """Write the committed excerpts again."""
    for name in COMMITTED:
        write_rows(DATA / f"{name}.jsonl", rows_of(name, 6))


if __name__ == "__main__":
    main()
