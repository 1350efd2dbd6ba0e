"""The embedded suite in lm-eval itself: every task loads, with 200 distinct items, from any folder."""

import pytest
import yaml

from lora_eval.pocket.suite import ABILITIES
from lora_eval.resources import resource_folder

SUITE = resource_folder("evals") / "pocket"
TASKS = {f"pocket_{ability}" for ability in ABILITIES} | {"pocket_facts_chat"}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(SUITE), include_defaults=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        return manager.load(sorted(TASKS))["tasks"]


def test_suite_names_every_task():
    suite = yaml.safe_load((SUITE / "suite.yaml").read_text(encoding="utf-8"))
    assert {entry["task"] for entry in suite["tasks"]} == TASKS
    assert suite["items"] == 200 * len(TASKS)
    raw = {entry["task"] for entry in suite["tasks"] if entry.get("apply_chat_template") is False}
    assert raw == {"pocket_chat", "pocket_system", "pocket_story"}


@pytest.mark.parametrize("name", sorted(TASKS))
def test_task_has_200_distinct_items(tasks, name):
    task = tasks[name]
    docs = list(task.test_docs())
    texts = {(task.doc_to_text(doc), str(task.doc_to_target(doc))) for doc in docs}
    assert len(docs) == len(texts) == 200


def test_metrics_are_per_item_from_0_to_1(tasks):
    ticket = tasks["pocket_ticket"]
    doc = next(iter(ticket.test_docs()))
    assert ticket.process_results(doc, [doc["answer"]]) == {"exact_match": 1.0, "field_accuracy": 1.0}
    assert ticket.process_results(doc, ["no JSON"]) == {"exact_match": 0.0, "field_accuracy": 0.0}
    assert ticket.process_results(doc, ["[1]"])["field_accuracy"] == 0.0
    wrong = doc["answer"].replace('"hurry": "P', '"hurry": "Q')
    assert ticket.process_results(doc, [wrong]) == {"exact_match": 0.0, "field_accuracy": 0.8}


def test_helpers_import_no_torch():
    import subprocess
    import sys

    code = "import sys, utils; sys.exit('torch' in sys.modules or 'datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=SUITE, check=False).returncode == 0
