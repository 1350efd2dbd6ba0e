"""What was found, in plain words: the same sentences in the terminal, in Markdown and in HTML.

`better` and `worse` are said only where the verdict says so (adjusted test and interval); a drop is told as
prominently as a gain, and "nothing found" comes with the size that would have been found.
"""

from __future__ import annotations

from collections.abc import Sequence

from lora_eval.records import Arm, Comparison, Pair, TaskComparison, Verification
from lora_eval.reports.finding import Finding, Tone, verification_finding
from lora_eval.reports.gates import gate_lines, gate_sentence
from lora_eval.reports.numbers import (
    about_text,
    count_text,
    difference_text,
    gain,
    interval_text,
    is_share,
    mean_text,
    ratio_interval_text,
    ratio_text,
    size_text,
)
from lora_eval.stats.gate_rules import base_name
from lora_eval.stats.pairing import LIKELIHOOD_METRICS

SHIPPED = ("merged", "gptq", "awq", "served")
GLYPHS = {"better": "▲", "worse": "▼", "not_worse": "✓", "inconclusive": "?", "same": "="}
LABELS = {
    "better": "better",
    "worse": "worse",
    "not_worse": "not worse",
    "inconclusive": "inconclusive",
    "same": "no change",
}
Row = tuple[TaskComparison, Pair]


def mark(pair: Pair) -> str:
    """The pair's verdict, with `same` for an undecided pair none of whose items changed."""
    unchanged = pair.n > 0 and pair.ties == pair.n
    return "same" if pair.verdict == "inconclusive" and unchanged else pair.verdict


def base_arm(comparison: Comparison) -> Arm:
    """The arm that the others are compared with, as the gate takes it (InputError: no arm)."""
    name = base_name(comparison)
    return next(arm for arm in comparison.arms if arm.name == name)


def tuned_arms(comparison: Comparison) -> list[Arm]:
    """The adapters; where there are none, every arm but the base."""
    base = base_arm(comparison)
    adapters = [arm for arm in comparison.arms if arm.kind == "adapter"]
    return adapters or [arm for arm in comparison.arms if arm.name != base.name]


def rows_of(comparison: Comparison, a: str, b: str, *, primary: bool = True) -> list[Row]:
    """The lines of one pair of arms, in the order of the tasks."""
    return [
        (task, pair)
        for task in comparison.tasks
        for pair in task.pairs
        if (pair.a, pair.b) == (a, b) and (task.primary or not primary)
    ]


def pair_names(comparison: Comparison) -> list[tuple[str, str]]:
    """Every pair of arms that was compared, in order."""
    return list(dict.fromkeys((pair.a, pair.b) for task in comparison.tasks for pair in task.pairs))


def headline(comparison: Comparison) -> str:
    """The verdict in one sentence."""
    base = base_arm(comparison)
    parts = []
    for arm in tuned_arms(comparison):
        rows = rows_of(comparison, base.name, arm.name)
        if rows:
            parts.append(f"{arm.name} {_clause(rows, base.name)}")
    text = "; ".join(parts) + "." if parts else "Nothing was compared."
    return text if comparison.gate is None else f"{text} {gate_sentence(comparison.gate)}"


def findings(comparison: Comparison, verifications: Sequence[Verification] = ()) -> list[Finding]:
    """Everything that a reader must know, most important first."""
    base, found = base_arm(comparison), gate_findings(comparison)
    tuned = tuned_arms(comparison)
    for arm in tuned:
        suffix = f": {arm.name}" if len(tuned) > 1 else ""
        rows = rows_of(comparison, base.name, arm.name)
        targets = [row for row in rows if row[0].role == "target"]
        others = [row for row in rows if row[0].role != "target"]
        if targets:
            found.append(_target_finding(targets, arm.name, base.name, suffix))
        if others:
            found.append(_guard_finding(others, arm.name, base.name, suffix))
    shipped = [_shipped_finding(comparison, arm) for arm in comparison.arms if arm.kind in SHIPPED]
    found += [finding for finding in shipped if finding is not None]
    return found + [verification_finding(record) for record in verifications]


def gate_findings(comparison: Comparison) -> list[Finding]:
    """What the gate says, with every check that did not pass; nothing where there is no gate."""
    if comparison.gate is None:
        return []
    tones: dict[str, Tone] = {"PASS": "safe", "FAIL": "loss", "INCONCLUSIVE": "open"}
    lines = tuple(
        f"{GLYPHS[line.mark]} {line.rule} on {line.task}, {line.pair}: {line.reason}"
        for line in gate_lines(comparison)
        if line.verdict != "PASS"
    )
    gate = comparison.gate
    return [Finding(f"Gate: {gate.verdict}", tones[gate.verdict], gate_sentence(gate), (*lines, *gate.notes))]


def row_text(row: Row) -> str:
    """One line: `tickets: 0.0 % to 64.5 %, +64.5 points (95 % interval +57.1 to +70.8, 200 items)`."""
    task, pair = row
    unit = " points" if is_share(task) else f" {task.metric.replace('_', ' ')}"
    means = f"{mean_text(task, task.means.get(pair.a))} to {mean_text(task, task.means.get(pair.b))}"
    change = f"{difference_text(task, pair)}{unit}"
    interval = (
        f"{pair.level * 100:g} % interval {interval_text(task, pair)}, " if pair.ci_low is not None else ""
    )
    return f"{task.task}: {means}, {change} ({interval}{count_text(pair.n)} items)"


def _clause(rows: Sequence[Row], base: str) -> str:
    targets = [row for row in rows if row[0].role == "target"]
    others = [row for row in rows if row[0].role != "target"]
    noun = "guard" if any(task.role == "guard" for task, _ in others) else "task"
    if not targets:
        return f"against {base}: {_tally(others)} of {len(others)} {noun}s"
    gained = [row for row in targets if row[1].verdict == "better"]
    lost = [row for row in targets if row[1].verdict == "worse"]
    dropped = [row for row in others if row[1].verdict == "worse"]
    plural = len(targets) > 1
    share = "both" if len(gained) == len(targets) == 2 else f"{len(gained)} of {len(targets)}"
    where = f"{share} targets" if plural else f"the target {targets[0][0].task}"
    if lost:
        names = ", ".join(task.task for task, _ in lost)
        first = f"is worse than {base} on the target{'s' if len(lost) > 1 else ''} {names}"
    elif gained:
        first = f"is better than {base} on {where}"
    else:
        first = f"is not shown to be better than {base} on {where if not plural else 'any target'}"
    if not others:
        return first
    if dropped:
        joint = "and" if lost or not gained else "but"
        return f"{first}, {joint} worse on {len(dropped)} of {len(others)} {noun}s"
    return f"{first}, and no {noun} is measurably worse ({len(others)} checked)"


def _tally(rows: Sequence[Row]) -> str:
    counted = {word: sum(pair.verdict == word for _, pair in rows) for word in LABELS}
    return ", ".join(f"{LABELS[word]} on {n}" for word, n in counted.items() if n) or "nothing decided"


def _target_finding(rows: Sequence[Row], arm: str, base: str, suffix: str) -> Finding:
    lines = tuple(map(_target_text, rows))
    better = [task.task for task, pair in rows if pair.verdict == "better"]
    worse = [task.task for task, pair in rows if pair.verdict == "worse"]
    heading = f"Target{suffix}"
    if worse:
        return Finding(heading, "loss", f"{arm} is worse than {base} on {_listed(worse)}.", lines)
    if len(better) == len(rows):
        return Finding(heading, "gain", f"{arm} is better than {base} on {_listed(better)}.", lines)
    if better:
        rest = _listed([task.task for task, pair in rows if pair.verdict != "better"])
        text = f"{arm} is better on {_listed(better)}; no gain is shown on {rest}."
        return Finding(heading, "gain", text, lines)
    return Finding(heading, "open", f"No target is shown to have improved over {base}.", lines)


def _guard_finding(rows: Sequence[Row], arm: str, base: str, suffix: str) -> Finding:
    guards = any(task.role == "guard" for task, _ in rows)
    heading, noun = (f"Guards{suffix}", "guard") if guards else (f"Tasks{suffix}", "task")
    worse = sorted((row for row in rows if row[1].verdict == "worse"), key=_relative_gain)
    better = [row for row in rows if row[1].verdict == "better"]
    rest = _rest_lines(rows)
    if worse:
        lines = (*(f"{GLYPHS['worse']} {row_text(row)}" for row in worse), *rest)
        names = _listed([task.task for task, _ in worse])
        return Finding(heading, "loss", f"{arm} is worse than {base} on {names}.", lines)
    if better and not guards:
        lines = (*(f"{GLYPHS['better']} {row_text(row)}" for row in better), *rest)
        names = _listed([task.task for task, _ in better])
        return Finding(
            heading, "gain", f"{arm} is better than {base} on {names}, and measurably worse on none.", lines
        )
    safe = sum(pair.verdict in ("not_worse", "better") for _, pair in rows)
    shown = f"; {safe} of {len(rows)} shown not to be worse" if safe else ""
    return Finding(
        heading, "safe" if safe == len(rows) else "open", f"No {noun} is measurably worse{shown}.", rest
    )


def _rest_lines(rows: Sequence[Row]) -> tuple[str, ...]:
    lines = []
    better = [row for row in rows if row[1].verdict == "better" and row[0].role == "guard"]
    lines += [f"{GLYPHS['better']} {row_text(row)}" for row in better]
    safe = [task.task for task, pair in rows if pair.verdict == "not_worse"]
    if safe:
        lines.append(f"{GLYPHS['not_worse']} not worse within the stated margin: {', '.join(safe)}")
    same = [task.task for task, pair in rows if mark(pair) == "same"]
    if same:
        lines.append(f"{GLYPHS['same']} no item changed: {', '.join(same)}")
    undecided = [(task, pair) for task, pair in rows if mark(pair) == "inconclusive"]
    if undecided:
        lines.append(f"{GLYPHS['inconclusive']} undecided: {', '.join(map(_undecided_text, undecided))}")
    if any(pair.mde is not None for _, pair in undecided):
        told = "the smallest change that is found four times in five; n: items that would decide"
        lines.append(f"(detectable: {told})")
    return tuple(lines)


def _undecided_text(row: Row) -> str:
    task, pair = row
    found = [f"detectable {size_text(task, pair, pair.mde)}"] if pair.mde is not None else []
    found += [f"n {about_text(pair.n_needed)}"] if pair.n_needed else []
    text = f"{task.task} {difference_text(task, pair)}"
    return f"{text} ({', '.join(found)})" if found else text


def _target_text(row: Row) -> str:
    """A target's line; an undecided one says what would have been found, and how many items would decide."""
    task, pair = row
    text = f"{GLYPHS[mark(pair)]} {row_text(row)}"
    if mark(pair) != "inconclusive":
        return text
    text += f", detectable {size_text(task, pair, pair.mde)}" if pair.mde is not None else ""
    return text + (f", about {about_text(pair.n_needed)} items would decide" if pair.n_needed else "")


def _shipped_finding(comparison: Comparison, arm: Arm) -> Finding | None:
    """Whether an exported model answers as the adapter that was measured (None: not compared with it)."""
    adapter = next((other for other in comparison.arms if other.kind == "adapter"), None)
    rows = rows_of(comparison, adapter.name, arm.name) if adapter else []
    if adapter is None or not rows:
        return None
    counted = [(task, pair) for task, pair in rows if task.metric not in LIKELIHOOD_METRICS]
    items, won, lost = (sum(getattr(pair, name) for _, pair in counted) for name in ("n", "wins", "losses"))
    worse = [row for row in rows if row[1].verdict == "worse"]
    ratios = tuple(_ratio_text(row) for row in rows if row[1].ratio is not None and row not in worse)
    heading = f"What ships: {arm.name}"
    if not won + lost and not worse:
        text = f"{arm.name} scores as {adapter.name} on every one of {count_text(items)} items."
        return Finding(heading, "safe", text, ratios)
    text = (
        f"{arm.name} against {adapter.name}: {count_text(won + lost)} of {count_text(items)} items score "
        f"differently: {count_text(won)} gained, {count_text(lost)} lost."
    )
    rest = [row for row in rows if row[1].verdict in ("better", "not_worse")]
    lines = (*(f"{GLYPHS['worse']} {row_text(row)}" for row in worse), *_rest_lines(rest), *ratios)
    return Finding(heading, "loss" if worse else "open", text, lines)


def _ratio_text(row: Row) -> str:
    task, pair = row
    text = f"{GLYPHS[mark(pair)]} {task.task}: {task.metric.replace('_', ' ')} times {ratio_text(pair)}"
    return text if pair.ratio_low is None else f"{text} ({ratio_interval_text(pair)})"


def _relative_gain(row: Row) -> float:
    """A drop's size that can be ranked across metrics: points for shares, else relative to the mean."""
    task, pair = row
    change, mean = gain(task, pair.difference) or 0.0, task.means.get(pair.a)
    return change if is_share(task) or not mean else change / abs(mean)


def _listed(names: Sequence[str]) -> str:
    """Up to four names, else how many there are: the lines below a sentence name them all."""
    if len(names) > 4:
        return f"{len(names)} tasks"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
