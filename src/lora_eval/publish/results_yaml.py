"""`.eval_results/lora-eval.yaml`: figures on benchmarks of the Hub, written and read through its own types.

huggingface_hub checks nothing of it (2.4: NaN, dictionaries and invented ids pass), so our own schema does.
"""

from __future__ import annotations

from pathlib import Path

from lora_eval.errors import RecordError
from lora_eval.publish.card import main_figures
from lora_eval.records import Comparison, Publication
from lora_eval.records.publication import BenchmarkResult
from lora_eval.schema import dump_yaml, parse_record, parse_yaml

FOLDER = ".eval_results"


def eval_results_yaml(comparison: Comparison, publication: Publication) -> str | None:
    """Return the file's text; None where no task was said to be a benchmark of the Hub."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    entries = [
        EvalResultEntry(
            dataset_id=entry.dataset.dataset_id,
            task_id=entry.dataset.task_id,
            value=entry.value,
            date=entry.date,
            notes=entry.notes,
        )
        for entry in expected_entries(comparison, publication)
    ]
    return dump_yaml(eval_result_entries_to_yaml(entries)) if entries else None


def expected_entries(comparison: Comparison, publication: Publication) -> list[BenchmarkResult]:
    """Return the entries that follow from the comparison."""
    return [
        BenchmarkResult(
            task=task.task,
            dataset=publication.benchmarks[task.task],
            value=value,
            date=publication.date,
            notes=f"{task.metric}, {task.n} items, lora-eval {publication.version}",
        )
        for task, value in main_figures(comparison, publication.arm)
        if task.task in publication.benchmarks
    ]


def read_entries(path: Path, publication: Publication) -> list[BenchmarkResult]:
    """Return the entries of a file as a stranger's loader reads them, checked against our own schema.

    Raises:
        RecordError: the file is not one that the Hub's types read, or an entry is not sound.
    """
    from huggingface_hub import parse_eval_result_entries

    names = {(each.dataset_id, each.task_id): task for task, each in publication.benchmarks.items()}
    try:
        found = parse_eval_result_entries(parse_yaml(path.read_text("utf-8"), str(path)))
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(str(path), [f"not a list of evaluation results: {error!r}"]) from error
    return [
        parse_record(
            {
                "task": names.get((entry.dataset_id, entry.task_id), ""),
                "dataset": {"dataset_id": entry.dataset_id, "task_id": entry.task_id},
                "value": entry.value,
                "date": str(entry.date),
                "notes": entry.notes,
            },
            BenchmarkResult,
            f"{path} [{number}]",
        )
        for number, entry in enumerate(found)
    ]
