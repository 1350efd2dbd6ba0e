"""Which arms are compared with which, whether they may be, and arms that are several trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lora_eval.errors import InputError
from lora_eval.records import LoadedRun
from lora_eval.schema import suggest
from lora_eval.stats.lines import PairNames
from lora_eval.stats.training_runs import average_runs


def default_pairs(runs: Mapping[str, LoadedRun]) -> list[PairNames]:
    """Return every arm against the base, then every exported arm against the first adapter.

    The base is the first arm of kind `base`, else the first arm.
    """
    kinds = {name: run.run.variant.kind for name, run in runs.items()}
    base = next((name for name, kind in kinds.items() if kind == "base"), next(iter(kinds)))
    pairs = [(base, name) for name in kinds if name != base]
    adapter = next((name for name, kind in kinds.items() if kind == "adapter"), None)
    if adapter is not None and {"merged", "gptq", "awq", "served"} & set(kinds.values()):
        pairs += [(adapter, name) for name in kinds if name not in (base, adapter)]
    return pairs


def check_pairs(runs: Mapping[str, LoadedRun], pairs: Sequence[PairNames]) -> list[PairNames]:
    """Return the pairs; InputError for an arm that is not among the runs, or paired with itself."""
    for a, b in pairs:
        for name in (a, b):
            if name not in runs:
                known = list(runs)
                raise InputError(
                    f"pair {a}, {b}: no arm '{name}'{suggest(name, known)}; arms: {', '.join(known)}"
                )
        if a == b:
            raise InputError(f"pair {a}, {b}: an arm cannot be compared with itself")
    return list(dict.fromkeys(pairs))


def check_pairable(runs: Mapping[str, LoadedRun]) -> None:
    """InputError unless all runs are complete and of one suite, with the same seeds."""
    if len(runs) < 2:
        raise InputError(f"a comparison needs two arms, got {', '.join(runs) or 'none'}")
    first_name, first = next((name, run.run) for name, run in runs.items())
    for name, loaded in runs.items():
        run = loaded.run
        if run.status != "complete":
            raise InputError(f"arm {name}: its run is not complete; run the same command again to finish it")
        for what, one, other in (
            ("suite fingerprint", first.suite_fingerprint, run.suite_fingerprint),
            ("seeds", first.seeds, run.seeds),
            ("limit", first.limit, run.limit),
        ):
            if one != other:
                raise InputError(
                    f"arm {name}: its run's {what} is {other}, but arm {first_name} has {one}; "
                    "run both with the same suite and settings"
                )


def mean_arms(
    runs: Mapping[str, LoadedRun], members: Mapping[str, Mapping[str, LoadedRun]]
) -> dict[str, LoadedRun]:
    """Return the run of every arm: training runs are replaced, in their place, by their mean."""
    owners = {name: arm for arm, own in members.items() for name in own}
    found: dict[str, LoadedRun] = {}
    for name, run in runs.items():
        arm = owners.get(name)
        if arm is None:
            found[name] = run
        elif arm not in found:
            found[arm] = average_runs(arm, members[arm])
    return found
