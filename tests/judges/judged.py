"""Small answer files with known qualities, for the stub judge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_eval.judges.answers import read_answers
from lora_eval.judges.calls import Plan, make_plan
from lora_eval.judges.profiles import load_profile


def write_answers(folder: Path, qualities: dict[str, Sequence[float]]) -> dict[str, Path]:
    """One alpaca_eval file of outputs for each arm; the stub reads the QUALITY marks."""
    files = {}
    for arm, values in qualities.items():
        rows = [
            {"instruction": f"Question {i}?", "output": f"From {arm}: QUALITY={value} {'w ' * (i % 5)}"}
            for i, value in enumerate(values)
        ]
        files[arm] = folder / f"{arm}.json"
        files[arm].write_text(json.dumps(rows), "utf-8")
    return files


def plan_of(
    files: dict[str, Path], url: str, judge: str = "openai-text", suite: str = "pairwise", **values: Any
) -> Plan:
    """The plan that `judge run` would make; `changes` are fields of the profile."""
    changes = {"retries": 3, **values.pop("changes", {})}
    profile = load_profile(judge, model="stub", base_url=url).model_copy(update=changes)
    return make_plan(suite, profile, read_answers(files), **values)
