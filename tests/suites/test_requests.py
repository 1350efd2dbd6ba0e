"""What arms share: requests are built once and texts encoded once, and every arm's figures stay lm-eval's."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lm_eval.api.task
import lm_eval.utils
import numpy
import pytest

from lora_eval.models import IDENTITY
from lora_eval.protocols import Engine
from lora_eval.records import EvalSuite, TaskEntry
from lora_eval.suites.catalog import suite_of_tasks
from lora_eval.suites.lm_eval import LmEvalSuite
from lora_eval.suites.requests import SharedRequests, compiled_templates
from tests.suites.test_lm_eval import check_figure

# lm-eval's `hf` model and PEFT under it, not ours.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
NAMES = ["t_choice", "t_generate", "t_rolling", "t_last"]
ARMS = ("base", "tuned", IDENTITY)


def _silent(*_: Any) -> None:
    pass


def _suite(tasks: Path, names: list[str] | None = None, **changes: Any) -> LmEvalSuite:
    entries = tuple(TaskEntry(task=name) for name in names or NAMES)
    return LmEvalSuite(
        EvalSuite(name="x", version="1", tasks=entries, include_path=str(tasks), **changes), Path()
    )


class Watched:
    """An engine that remembers which lists of requests it was given."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.score_lists: list[Any] = []
        self.generate_lists: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def score(self, arm: str, requests: Any, progress: Any) -> Any:
        self.score_lists.append(requests)
        return self._engine.score(arm, requests, progress)

    def generate(self, arm: str, requests: Any, progress: Any) -> Any:
        self.generate_lists.append(requests)
        return self._engine.generate(arm, requests, progress)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts how often lm-eval builds the requests of each task."""
    counts: Counter[str] = Counter()
    build = lm_eval.api.task.Task.build_all_requests

    def counted(task: Any, **options: Any) -> None:
        counts[task.config.task] += 1
        build(task, **options)

    monkeypatch.setattr(lm_eval.api.task.Task, "build_all_requests", counted)
    return counts


@pytest.mark.parametrize("chat", [False, True])
def test_three_arms_build_and_encode_once_and_each_is_a_fresh_run(
    chat: bool, tasks: Path, engine: Engine, built: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = NAMES[:2] if chat else NAMES
    alone = [_suite(tasks, names, apply_chat_template=chat).run(engine, arm, _silent) for arm in ARMS]
    built.clear()
    encoded: Counter[tuple[str, bool | None]] = Counter()
    kind = type(engine.tokenizer)
    call = kind.__call__

    def counted(tokenizer: Any, texts: Any, **options: Any) -> Any:
        assert isinstance(texts, list)
        encoded.update((text, options.get("add_special_tokens")) for text in texts)
        return call(tokenizer, texts, **options)

    watched = Watched(engine)
    suite = _suite(tasks, names, apply_chat_template=chat)
    monkeypatch.setattr(kind, "__call__", counted)
    shared = [suite.run(watched, arm, _silent) for arm in ARMS]
    assert shared == alone
    assert shared[0].rows != shared[1].rows
    assert built == dict.fromkeys(names, 1)
    # Items are chosen from the same words, so whole texts may be equal; each is encoded once all the same.
    assert encoded
    assert max(encoded.values()) == 1
    kinds = 1 if chat else 2  # log-likelihoods and rolling
    assert len(watched.score_lists) == kinds * len(ARMS)
    assert len({id(requests) for requests in watched.score_lists}) == kinds
    assert len({id(requests) for requests in watched.generate_lists}) == 1


def test_controls_and_the_full_run_do_not_mix(tasks: Path, engine: Engine, built: Counter[str]) -> None:
    names = ["t_choice"]
    some = {"t_choice": [0, 3, 4, 9]}
    sample = _suite(tasks, names).run(engine, "base", _silent, items=some)
    whole = _suite(tasks, names).run(engine, "base", _silent)
    built.clear()
    suite = _suite(tasks, names)
    assert suite.run(engine, "base", _silent, items=some) == sample
    assert suite.run(engine, "base", _silent, items=some) == sample
    assert suite.run(engine, "base", _silent) == whole
    assert suite.run(engine, "base", _silent) == whole
    assert suite.run(engine, "base", _silent, items=some) == sample
    assert built["t_choice"] == 1


def test_entries_with_and_without_a_chat_template_keep_their_own_requests(
    tasks: Path, engine: Engine, built: Counter[str]
) -> None:
    entries = (TaskEntry(task="t_choice", apply_chat_template=True), TaskEntry(task="t_last"))
    record = EvalSuite(name="x", version="1", tasks=entries, include_path=str(tasks))
    suite = LmEvalSuite(record, Path())
    base, tuned = (suite.run(engine, arm, _silent) for arm in ("base", "tuned"))
    assert built == {"t_choice": 1, "t_last": 1}
    assert [row.prompt for row in base.rows] == [row.prompt for row in tuned.rows]
    assert tuned == LmEvalSuite(record, Path()).run(engine, "tuned", _silent)


def test_another_chat_template_is_another_prompt(
    tasks: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = _suite(tasks, ["t_choice"], apply_chat_template=True)
    first = suite.run(engine, "base", _silent).rows
    template = "{% for m in messages %}{{ m.role }} {{ m.content }}\n{% endfor %}"
    monkeypatch.setattr(engine.tokenizer, "chat_template", template)
    changed = suite.run(engine, "base", _silent).rows
    assert changed[0].prompt.startswith("user ")
    assert changed[0].prompt != first[0].prompt


def test_cuts_are_counted_for_every_arm_and_every_length(
    tasks: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = _suite(tasks, ["t_choice"])
    assert suite.run(engine, "base", _silent).notes == ()
    monkeypatch.setattr(engine, "max_length", 20)
    notes = [suite.run(engine, arm, _silent).notes for arm in ARMS]
    assert notes[0][0].startswith("t_choice: 14 prompts were cut on the left to fit the model; ")
    assert notes == [notes[0]] * 3
    monkeypatch.undo()
    assert suite.run(engine, "base", _silent).notes == ()


@pytest.mark.parametrize("arm", ["tuned", "base"])
def test_the_second_arm_has_lm_evals_figures(
    arm: str, tasks: Path, engine: Engine, reference: Callable
) -> None:
    suite = _suite(tasks)
    suite.run(engine, "base" if arm == "tuned" else "tuned", _silent)
    found = suite.run(engine, arm, _silent)
    theirs = reference(arm, NAMES, tasks)
    assert found.results
    for result in found.results:
        check_figure(result, theirs["results"][result.task][f"{result.metric},{result.filter}"])
    prompts = [s["arguments"][0][0] for name in NAMES[:2] for s in theirs["samples"][name]]
    assert [row.prompt for row in found.rows if row.task in NAMES[:2]] == prompts


def test_an_arm_that_fails_leaves_nothing_behind(
    tasks: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = _suite(tasks, ["t_choice", "t_generate"])
    expected = suite.run(engine, "tuned", _silent)

    def fail(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        suite.run(engine, "base", _silent)
    monkeypatch.undo()
    assert suite.run(engine, "tuned", _silent) == expected
    assert "from_string" not in vars(lm_eval.utils.env)


def test_global_generators_stand_where_building_left_them(tasks: Path) -> None:
    from lora_eval.suites.task_index import load_tasks

    task = load_tasks(["t_choice"], tasks).load(["t_choice"])["tasks"]["t_choice"]
    build = task.build_all_requests

    def drawing(**options: Any) -> None:
        random.random()
        numpy.random.random()
        build(**options)

    task.build_all_requests = drawing
    draws = []
    shared = SharedRequests()
    for _ in range(2):
        random.seed(0)
        numpy.random.seed(1234)
        task.set_fewshot_seed(seed=1)
        task.build_all_requests = drawing
        with shared.used_by({"t_choice": task}):
            task.build_all_requests(limit=3)
        draws.append((random.random(), float(numpy.random.random())))
    assert draws[0] == draws[1] != (random.Random(0).random(), draws[0][1])


def test_compiled_templates_render_as_before() -> None:
    environment = lm_eval.utils.env
    docs = [{"a": "x ", "b": [1, 2]}, {"a": "", "b": []}]
    texts = ["{{a.strip()}}{% for x in b %}{{x}}{% endfor %}\n", "{% set n = b|length %}{{n}}"]
    plain = [lm_eval.utils.apply_template(text, doc) for text in texts for doc in docs]
    with compiled_templates():
        assert [lm_eval.utils.apply_template(text, doc) for text in texts for doc in docs] == plain
        assert environment.from_string(texts[0]) is environment.from_string(texts[0])
    assert environment.from_string(texts[0]) is not environment.from_string(texts[0])


def test_a_suite_by_task_names_shares_too(tasks: Path, engine: Engine, built: Counter[str]) -> None:
    suite = LmEvalSuite(*suite_of_tasks(["t_group"], str(tasks)), limit=4)
    for arm in ARMS:
        assert suite.run(engine, arm, _silent).rows
    assert built == {"t_choice": 1, "t_last": 1}
