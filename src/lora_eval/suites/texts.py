"""What a suite's items say, without a model: for a look at whether other data hold them."""

from __future__ import annotations

from typing import Any

from lora_eval.suites.catalog import load_suite
from lora_eval.suites.lm_eval import LmEvalSuite, quiet


def item_texts(name_or_path: str) -> dict[str, list[str]]:
    """Return the text of every item of a suite by leaf task: the question as the task puts it, without shots
    or chat template; where it puts none (perplexity of documents), what is scored.

    Raises:
        PluginError, RecordError, TaskError: the suite is unknown or faulty, or a task's data is not here.
    """
    suite = LmEvalSuite(*load_suite(name_or_path))
    texts = {}
    with quiet():
        for item in suite._loaded:
            for name, task in item.tasks.items():
                docs = list(task.eval_docs)
                texts[name] = [_text(task, docs[number]) for number in suite.items[name]]
    return texts


def _text(task: Any, doc: Any) -> str:
    text = task.doc_to_text(doc)
    if not isinstance(text, str):  # Winogrande: the number of the right beginning; all have one end
        text = task.doc_to_choice(doc)[text]
    if text.strip():
        return str(text)
    return str(task.doc_to_target(doc))
