"""`compare --suite alpaca-eval|mt-bench|pairwise`: suites whose answers another model judges."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from lora_eval.cli.judge_options import SUITES
from lora_eval.errors import InputError

# What only lm-eval's tasks know, and what it is where it was not given.
_OF_TASKS = {
    "tasks": None, "include_path": None, "num_fewshot": None, "add_original": False,
    "engine": "transformers", "engine_options": (), "batch_tokens": "auto", "store": None,
    "check_reference": None, "fixed_fewshot": False, "pairs": (), "method": "auto", "margins": (),
    "sequential": False, "plan": False,
}  # fmt: skip
# What only judged suites know.
_OF_JUDGES = {
    "judge": None, "judge_model": None, "judge_url": None, "questions": None, "max_new_tokens": 1024,
    "temperature": None, "max_cost": None, "calibration": None, "trust_judge": False, "control": None,
}  # fmt: skip


def check_not_judged(options: Mapping[str, Any]) -> None:
    """Raise InputError for an option of judged suites, which other tasks would not look at."""
    given = [name for name, value in _OF_JUDGES.items() if options[name] != value]
    if given:
        raise InputError(
            f"--{given[0].replace('_', '-')}: is for a judged suite; give --suite {', '.join(SUITES)}"
        )


def compare_judged(
    base: str | None,
    adapters: tuple[str, ...],
    others: tuple[str, ...],
    out: Path,
    options: dict[str, Any],
    as_json: bool,
    silent: bool,
) -> int:
    """Compare by a judge; returns the exit status."""
    from lora_eval.cli.judge_compare import compare

    given = [name for name, value in _OF_TASKS.items() if options[name] != value]
    if len(options["suites"]) > 1 or given:
        more = f"--{given[0].replace('_', '-')}" if given else "a second --suite"
        suite = options["suites"][0]
        raise InputError(f"--suite {suite} is judged by a model and takes no {more}; compare it alone")
    for name, value in (("--base", base), ("--judge", options["judge"])):
        if value is None:
            raise InputError(f"--suite {options['suites'][0]}: give {name}")
    kept = options.keys() - _OF_TASKS.keys() - {"suites"}
    asked = {name: options[name] for name in kept} | {"seed": options["seed"] or 0}
    return int(click.get_current_context().invoke(
        compare, base=base, adapters=adapters, others=others, out=out, suite=options["suites"][0],
        as_json=as_json, silent=silent, **asked,
    ))  # fmt: skip
