"""Which tasks, metrics and arms a gate's rules mean; a rule that means nothing is an error, never a pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from lora_eval.errors import InputError, RecordError
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
    perplexity. Without an arm every arm but the base is checked. All are checked against the base.

    Raises:
        RecordError: a rule fits no task, metric or arm; all such rules at once, with the known names.
    """
    base = base_name(comparison)
    tasks = list(dict.fromkeys(line.task for line in comparison.tasks))
    arms = list(dict.fromkeys(p.b for line in comparison.tasks for p in line.pairs if p.a == base))
    tuned = [arm.name for arm in comparison.arms if arm.name in arms and arm.kind != "base"] or arms
    problems = list(_unknown_names(gate, tasks, arms, base))
    found = list[Target]()
    for index, rule in enumerate(gate.rules):
        chosen = tuned if rule.arm is None else _fitting(rule.arm, arms)
        lines = _lines(comparison, rule)
        own = [
            Target(index, rule, line, pair)
            for line in lines
            for pair in line.pairs
            if pair.a == base and pair.b in chosen
        ]
        if not lines and _fitting(rule.task, tasks):
            problems.append((index, _unknown_metric(comparison, rule)))
        elif lines and chosen and not own:
            problems.append((index, f"arm: {', '.join(chosen)} was not compared with {base} on these tasks"))
        found += own
    _raise(problems, source)
    return found


def check_names(gate: Gate, tasks: Sequence[str], arms: Sequence[str], base: str, source: str) -> None:
    """Raise RecordError where a rule names no task or arm: before hours of scoring, when names are known.

    `tasks` are tasks and groups, `arms` those that will be compared with the base.
    """
    _raise(list(_unknown_names(gate, tasks, arms, base)), source)


def base_name(comparison: Comparison) -> str:
    """Return the arm that gains are over: the first of kind `base`, else the first (InputError: no arm)."""
    if not comparison.arms:
        raise InputError("the comparison holds no arm, so nothing was compared; run compare again")
    return next((arm.name for arm in comparison.arms if arm.kind == "base"), comparison.arms[0].name)


def is_perplexity(line: TaskComparison) -> bool:
    """Whether the line's figure is a perplexity, of which a ratio is known."""
    return LIKELIHOOD_METRICS.get(line.metric) == "perplexity"


def _fitting(wanted: str, known: Sequence[str]) -> list[str]:
    """The name itself, else what the glob fits."""
    return [wanted] if wanted in known else [name for name in known if fnmatchcase(name, wanted)]


def _lines(comparison: Comparison, rule: GateRule) -> list[TaskComparison]:
    """The line of each task that holds the rule's metric; a task without it is left out if another has it."""
    named: dict[str, list[TaskComparison]] = {}
    for line in comparison.tasks:
        named.setdefault(line.task, []).append(line)
    fitting = [named[name] for name in _fitting(rule.task, list(named))]
    main = [lines for lines in fitting if any(line.primary for line in lines)]
    found = []
    for lines in main or fitting:
        found += [line for line in lines if _has_metric(line, rule)][:1]
    return found


def _has_metric(line: TaskComparison, rule: GateRule) -> bool:
    if rule.condition == "max_perplexity_ratio" and not is_perplexity(line):
        return False
    if rule.metric is None:
        return True
    metric, comma, filter_name = rule.metric.partition(",")
    return metric.strip() == line.metric and (not comma or filter_name.strip() == line.filter)


def _unknown_names(
    gate: Gate, tasks: Sequence[str], arms: Sequence[str], base: str
) -> Iterator[tuple[int, str]]:
    for index, rule in enumerate(gate.rules):
        if not _fitting(rule.task, tasks):
            near = suggest(rule.task, tasks)
            yield index, f"task: no task or group '{rule.task}'{near}; known: {', '.join(tasks)}"
        if rule.arm is not None and not _fitting(rule.arm, arms):
            near, known = suggest(rule.arm, arms), ", ".join(arms) or "none"
            yield index, f"arm: no arm '{rule.arm}' is compared with {base}{near}; known: {known}"


def _unknown_metric(comparison: Comparison, rule: GateRule) -> str:
    fitting = _fitting(rule.task, [line.task for line in comparison.tasks])
    lines = [line for line in comparison.tasks if line.task in fitting]
    known = list(dict.fromkeys(_metric(line) for line in lines))
    tasks = ", ".join(dict.fromkeys(fitting))
    if rule.condition == "max_perplexity_ratio":
        wanted = f" '{rule.metric}'" if rule.metric else ""
        return f"max_perplexity_ratio: no perplexity{wanted} of {tasks}; metrics: {', '.join(known)}"
    near = suggest(str(rule.metric), known)
    return f"metric: no metric '{rule.metric}' of {tasks}{near}; known: {', '.join(known)}"


def _metric(line: TaskComparison) -> str:
    return line.metric if line.filter == "none" else f"{line.metric},{line.filter}"


def _raise(problems: Sequence[tuple[int, str]], source: str) -> None:
    if problems:
        raise RecordError(source, [f"rules[{index}].{text}" for index, text in sorted(problems)])
