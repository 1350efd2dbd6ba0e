"""Which tasks, metrics and arms a gate's rules mean; a rule that means nothing is an error, never a pass."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from lora_eval.errors import RecordError
from lora_eval.records import Comparison, Gate, GateRule, Pair, TaskComparison
from lora_eval.schema import suggest
from lora_eval.stats.pairing import LIKELIHOOD_METRICS


@dataclass(frozen=True, slots=True)
class Target:
    """One rule (counted from 0) on one task and one pair of arms."""

    index: int
    rule: GateRule
    task: TaskComparison
    pair: Pair


def match_rules(comparison: Comparison, gate: Gate, source: str = "gate") -> list[Target]:
    """Return what every rule is checked on, rule by rule, in the order of the comparison.

    A name or glob means the tasks and groups that verdicts rest on; only where it fits none of them it means
    the tasks inside groups. Without a metric the main one counts, for `max_perplexity_ratio` the first
    perplexity. Without an arm every arm but the base is checked, always against the base.

    Raises:
        RecordError: a rule fits no task, metric or arm; all such rules at once, with the known names.
    """
    found, problems = list[Target](), list[str]()
    for index, rule in enumerate(gate.rules):
        try:
            found += _targets(comparison, index, rule)
        except _NoMatchError as error:
            problems.append(f"rules[{index}].{error}")
    if problems:
        raise RecordError(source, problems)
    return found


def base_name(comparison: Comparison) -> str:
    """Return the arm that gains are over: the first of kind `base`, else the first."""
    return next((arm.name for arm in comparison.arms if arm.kind == "base"), comparison.arms[0].name)


class _NoMatchError(Exception):
    """A rule fits nothing; the text names the key."""


def _targets(comparison: Comparison, index: int, rule: GateRule) -> list[Target]:
    pairs = _pairs(comparison, rule)
    return [
        Target(index, rule, line, pair)
        for line in _lines(_tasks(comparison, rule), rule)
        for pair in line.pairs
        if (pair.a, pair.b) in pairs
    ]


def _tasks(comparison: Comparison, rule: GateRule) -> dict[str, list[TaskComparison]]:
    """Every metric of the tasks that the rule names, by task."""
    named: dict[str, list[TaskComparison]] = {}
    for line in comparison.tasks:
        named.setdefault(line.task, []).append(line)
    if rule.task in named:
        return {rule.task: named[rule.task]}
    fitting = {name: lines for name, lines in named.items() if fnmatchcase(name, rule.task)}
    main = {name: lines for name, lines in fitting.items() if any(line.primary for line in lines)}
    if not fitting:
        raise _NoMatchError(
            f"task: no task or group '{rule.task}'{suggest(rule.task, list(named))}; "
            f"known: {', '.join(named)}"
        )
    return main or fitting


def _lines(tasks: dict[str, list[TaskComparison]], rule: GateRule) -> list[TaskComparison]:
    """The line of each task that holds the rule's metric; a task without it is left out if another has it."""
    ratio = rule.condition == "max_perplexity_ratio"
    chosen = []
    for lines in tasks.values():
        fitting = [line for line in lines if _is_metric(line, rule.metric)]
        fitting = [line for line in fitting if not ratio or is_perplexity(line)]
        chosen += fitting[:1]
    if not chosen:
        known = list(dict.fromkeys(_metric(line) for lines in tasks.values() for line in lines))
        if ratio:
            wanted = f" {rule.metric}" if rule.metric else ""
            raise _NoMatchError(
                f"max_perplexity_ratio: no perplexity{wanted} among the metrics of {', '.join(tasks)}; "
                f"known: {', '.join(known)}"
            )
        raise _NoMatchError(
            f"metric: no metric '{rule.metric}' of {', '.join(tasks)}{suggest(str(rule.metric), known)}; "
            f"known: {', '.join(known)}"
        )
    return chosen


def _pairs(comparison: Comparison, rule: GateRule) -> set[tuple[str, str]]:
    """The pairs of arms that the rule is about: each against the base."""
    base = base_name(comparison)
    kinds = {arm.name: arm.kind for arm in comparison.arms}
    known = list(dict.fromkeys(p.b for line in comparison.tasks for p in line.pairs if p.a == base))
    if rule.arm is None:
        chosen = [name for name in known if kinds.get(name) != "base"] or known
    else:
        chosen = [name for name in known if name == rule.arm or fnmatchcase(name, rule.arm)]
    if not chosen:
        wanted, near = (f"no arm '{rule.arm}'", suggest(rule.arm, known)) if rule.arm else ("no arm", "")
        raise _NoMatchError(
            f"arm: {wanted} was compared with {base}{near}; known: {', '.join(known) or 'none'}"
        )
    return {(base, name) for name in chosen}


def is_perplexity(line: TaskComparison) -> bool:
    """Whether the line's figure is a perplexity, of which a ratio is known."""
    return LIKELIHOOD_METRICS.get(line.metric) == "perplexity"


def _metric(line: TaskComparison) -> str:
    return line.metric if line.filter == "none" else f"{line.metric},{line.filter}"


def _is_metric(line: TaskComparison, wanted: str | None) -> bool:
    if wanted is None:
        # Of a task inside a group only the main metric stands in the record.
        return True
    metric, comma, filter_name = wanted.partition(",")
    return metric.strip() == line.metric and (not comma or filter_name.strip() == line.filter)
