"""`compare --sequential`: after each look the comparison so far is made, and decided tasks stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    if not arms.shared:
        raise InputError(
            "--sequential: tasks are decided on adapters, which answer beside their base; give --adapter "
            "(--arm folders, and adapters that change their base, are then scored on the same items)"
        )


def decider(settings: Mapping[str, Any], gate: Gate | None, source: Path | None) -> Decide:
    """Return what is asked after each look: the tasks that are decided, by the comparison with `settings`
    (options of `compare_loaded`) and the gate's rules.
    """
    from lora_eval.compare import compare_loaded
    from lora_eval.stats.stopping import decided_tasks

    def decide(runs: Mapping[str, LoadedRun], record: Sequential) -> Mapping[str, Reason]:
        members = _present(settings["training_runs"], runs)
        owners = {run: arm for arm, own in members.items() for run in own}
        here = {owners.get(name, name) for name in runs}
        pairs = [pair for pair in settings["more_pairs"] if set(pair) <= here]
        changes = {"more_pairs": pairs, "training_runs": members}
        comparison = compare_loaded(runs, **{**settings, **changes}, sequential=record)
        return decided_tasks(comparison, gate, str(source))

    return decide


def _present(
    members: Mapping[str, Sequence[str]], runs: Mapping[str, LoadedRun]
) -> dict[str, tuple[str, ...]]:
    """The arms that have several training runs among `runs`: others are loaded later, apart."""
    found = {arm: tuple(name for name in own if name in runs) for arm, own in members.items()}
    return {arm: own for arm, own in found.items() if len(own) > 1}
