"""When a sequential task may stop: its rules of the gate, or its verdicts, are decided."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Literal

from lora_eval.records import Comparison, Gate, GateRule, Sequential
from lora_eval.stats.gate import judge_gate


def decided_tasks(
    comparison: Comparison, gate: Gate | None = None, source: str = "gate"
) -> dict[str, Literal["gate", "verdict"]]:
    """Return the tasks of a sequential comparison that are decided at this look, and by what.

    A task that the gate has rules for is decided when each of them passes or fails on every arm here; any
    other when each pair of arms is better, worse or not worse. Rules on other arms only are left out.

    Raises:
        RecordError: a rule fits no task or metric.
    """
    if comparison.sequential is None:
        return {}
    owners = _owners(comparison.sequential)
    by_rule = _gate_decisions(comparison, gate, source, owners)
    verdicts: dict[str, bool] = {}
    for line in comparison.tasks:
        if line.primary:
            done = bool(line.pairs) and all(pair.verdict != "inconclusive" for pair in line.pairs)
            name = owners.get(line.task, line.task)
            verdicts[name] = verdicts.get(name, True) and done
    found: dict[str, Literal["gate", "verdict"]] = {name: "gate" for name, done in by_rule.items() if done}
    found |= {name: "verdict" for name, done in verdicts.items() if done and name not in by_rule}
    return found


def _owners(sequential: Sequential) -> dict[str, str]:
    """The entry of the suite that a task, or a task of a group, belongs to."""
    return {name: task.task for task in sequential.tasks for name in (task.task, *task.leaves)}


def _gate_decisions(
    comparison: Comparison, gate: Gate | None, source: str, owners: dict[str, str]
) -> dict[str, bool]:
    """Whether all rules are decided, for each entry that has some."""
    arms = [arm.name for arm in comparison.arms]
    rules = tuple(rule for rule in gate.rules if _concerns(rule, arms)) if gate else ()
    if gate is None or not rules:
        return {}
    found: dict[str, bool] = {}
    for check in judge_gate(comparison, gate.model_copy(update={"rules": rules}), source).checks:
        name = owners.get(check.task, check.task)
        found[name] = found.get(name, True) and check.verdict != "INCONCLUSIVE"
    return found


def _concerns(rule: GateRule, arms: list[str]) -> bool:
    return rule.arm is None or any(name == rule.arm or fnmatchcase(name, rule.arm) for name in arms)
