"""`compare --sequential`: after each look the comparison so far is made, and decided tasks stop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_eval.errors import InputError

if TYPE_CHECKING:
    from lora_eval.evaluate import Arms
    from lora_eval.evaluate.sequential import Decide, Reason
    from lora_eval.records import Gate, LoadedRun, Sequential


def check_sequential(arms: Arms, options: Mapping[str, Any]) -> None:
    """Raise InputError for what cannot be compared look by look."""
    if options["method"] != "auto":
        raise InputError(f"--method {options['method']} is made for one look at the items, not --sequential")
    if not arms.adapters:
        raise InputError(
            "--sequential: tasks are decided on adapters, which answer beside their base; give --adapter "
            "(--arm folders are then scored on the same items)"
        )


def decider(settings: Mapping[str, Any], gate: Gate | None, source: Path | None) -> Decide:
    """Return what is asked after each look: the tasks that are decided, by the comparison with `settings`
    (options of `compare_loaded`) and the gate's rules.
    """
    from lora_eval.compare import compare_loaded
    from lora_eval.stats.stopping import decided_tasks

    members = settings["training_runs"]
    owners = {run: arm for arm, runs in members.items() for run in runs}

    def decide(runs: Mapping[str, LoadedRun], record: Sequential) -> Mapping[str, Reason]:
        here = {owners.get(name, name) for name in runs}
        pairs = [pair for pair in settings["more_pairs"] if set(pair) <= here]
        comparison = compare_loaded(runs, **{**settings, "more_pairs": pairs}, sequential=record)
        return decided_tasks(comparison, gate, str(source))

    return decide
