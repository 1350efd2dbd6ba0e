"""`--check-reference K`: some items answered once more by lm-eval's own model, and what comes out otherwise.

In float32 the two agree to rounding. In 16 bits, NF4 and GPTQ they differ as lm-eval differs from itself at
another batch size; this is the figure that says by how much.
"""

from __future__ import annotations

from collections.abc import Sequence

from lora_eval.engines.parallel import ALONE, Processes, parallel
from lora_eval.errors import ControlFailed, InputError
from lora_eval.evaluate.selection import AnySuite, drawn
from lora_eval.models import Resident
from lora_eval.protocols import Engine, Progress
from lora_eval.records.reference import ReferenceCheck
from lora_eval.records.run import SampleRow


def check_reference(
    engine: Engine,
    suite: AnySuite,
    arm: str,
    k: int,
    progress: Progress,
    processes: Processes = ALONE,
) -> ReferenceCheck:
    """Answer `k` items (or all, if there are fewer) on `arm` twice, by the engine and by stock lm-eval at
    batch size 1 on the same model, and count what differs. The items are drawn at random, with the suite's
    seed, from those of all tasks together.

    Raises:
        InputError: k is below 1, or the engine holds no model in this process.
        ControlFailed: the two were given different prompts.
    """
    if k < 1:
        raise InputError(f"--check-reference must be at least 1 item, got {k}")
    resident = getattr(engine, "resident", None)
    if not isinstance(resident, Resident):
        raise InputError(
            f"--check-reference: the engine '{engine.name}' holds no model in this process that lm-eval "
            "could run; use it with the transformers engine"
        )
    from lora_eval.suites.reference import ReferenceEngine

    seed = suite.record.seed
    items = drawn(suite, k, seed)
    stock = parallel(ReferenceEngine(resident, softmax_dtype=None), processes)
    ours = suite.run(engine, arm, _labelled(progress, "reference check"), items=items).rows
    theirs = suite.run(stock, arm, _labelled(progress, "reference check, lm-eval"), items=items).rows
    return compare_rows(ours, theirs, arm=arm, engine=engine.name, dtype=engine.dtype, seed=seed)


def compare_rows(
    ours: Sequence[SampleRow], theirs: Sequence[SampleRow], *, arm: str, engine: str, dtype: str, seed: int
) -> ReferenceCheck:
    """Return what differs between two runs of the same items, which were drawn with `seed`.

    Raises:
        ControlFailed: the runs are not of the same items and prompts.
    """
    pairs = list(zip(ours, theirs, strict=False))
    if len(ours) != len(theirs) or any(_place(a) != _place(b) for a, b in pairs):
        raise ControlFailed("reference check: lm-eval's own model was given other prompts than the engine")
    # An item has a row for each filter; its numbers and its text stand in every one of them.
    first = {(a.task, a.item_id, a.repeat): (a, b) for a, b in reversed(pairs)}
    items = list(first.values())
    scored = [(a.log_likelihoods, b.log_likelihoods) for a, b in items if b.log_likelihoods]
    values = [(x, y) for a, b in scored for x, y in zip(a, b, strict=True)]
    texts = [(a.output, b.output) for a, b in items if not b.log_likelihoods]
    metrics = [(x, b.metrics[name]) for a, b in pairs for name, x in a.metrics.items()]
    yes_no = [(x, y) for x, y in metrics if x in (0, 1) and y in (0, 1)]
    choices = [(_best(a), _best(b)) for a, b in scored if len(b) > 1]
    differences = [abs(x - y) for x, y in values]
    return ReferenceCheck(
        arm=arm,
        engine=engine,
        dtype=dtype,
        seed=seed,
        items=len(items),
        requests=len(values) + len(texts),
        log_likelihoods=len(values),
        max_difference=max(differences, default=None),
        mean_difference=sum(differences) / len(differences) if differences else None,
        max_relative_difference=max((abs(x - y) / abs(y) for x, y in values if y), default=None),
        choices=len(choices),
        choice_flips=_unequal(choices),
        metrics=len(yes_no),
        metric_flips=_unequal(yes_no),
        texts=len(texts),
        text_differences=_unequal(texts),
    )


def _labelled(progress: Progress, what: str) -> Progress:
    return lambda _, done, total: progress(what, done, total)


def _place(row: SampleRow) -> tuple[object, ...]:
    return (row.task, row.item_id, row.filter, row.repeat, row.prompt_sha256)


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _unequal(pairs: Sequence[tuple[object, object]]) -> int:
    return sum(a != b for a, b in pairs)
