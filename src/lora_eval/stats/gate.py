"""The gate: a one-sided confidence bound of the gain against each rule's threshold.

PASS          the lower bound of the gain is above the threshold
FAIL          the upper bound of the gain is below the threshold
INCONCLUSIVE  the threshold lies between the two

The gain is b minus a in the metric's better direction; `max_drop: x` is `min_gain: -x`, a non-inferiority
test with margin x (ICH E9, section 3.3.2). A ratio of perplexities is judged the same way on its own scale,
where less is better. The whole gate passes only if every rule does, so a false PASS stays as rare as the
level says without a correction for the number of rules (intersection-union test: Berger 1982, Technometrics
24:295; Berger and Hsu 1996, Statistical Science 11:283).
"""

from __future__ import annotations

from lora_eval.errors import ControlFailed
from lora_eval.records import Comparison, Gate, GateCheck, GateResult, GateVerdict
from lora_eval.stats.gate_bounds import Bounds, gate_bounds
from lora_eval.stats.gate_rules import Target, match_rules
from lora_eval.stats.power import needed_n, normal_mde
from lora_eval.stats.verdict import FEW_PAIRS


def judge_gate(comparison: Comparison, gate: Gate, source: str = "gate") -> GateResult:
    """Return the verdict of every rule and of the gate. Needs nothing but the comparison's record.

    `source` names the gate's file in errors and in the result.

    Raises:
        RecordError: a rule fits no task, metric or arm.
        ControlFailed: a control of the comparison did not pass: no verdict can rest on its figures.
    """
    failed = [
        name
        for name, value in comparison.controls.items()
        if isinstance(value, dict) and value.get("passed") is False
    ]
    if failed:
        raise ControlFailed(
            f"{source}: the comparison's control '{failed[0]}' did not pass, so its differences may not be "
            "the adapter's; run the comparison again"
        )
    checks = tuple(check_target(target, gate.level) for target in match_rules(comparison, gate, source))
    has_identity = isinstance(comparison.controls.get("identity"), dict)
    note = "no control of the base against itself (through an adapter that does nothing) stands in the record"
    return GateResult(
        verdict=overall([check.verdict for check in checks]),
        level=gate.level,
        rules=gate.rules,
        checks=checks,
        source=source,
        notes=() if has_identity else (note,),
    )


def gated(comparison: Comparison, gate: Gate, source: str) -> Comparison:
    """Return the comparison with the gate's result in its record (raises as `judge_gate`)."""
    return comparison.model_copy(update={"gate": judge_gate(comparison, gate, source)})


def overall(verdicts: list[GateVerdict]) -> GateVerdict:
    """Return FAIL if a verdict is FAIL, else INCONCLUSIVE if one is (or there are none), else PASS."""
    if "FAIL" in verdicts:
        return "FAIL"
    return "INCONCLUSIVE" if "INCONCLUSIVE" in verdicts or not verdicts else "PASS"


def decide(low: float | None, high: float | None, threshold: float) -> GateVerdict:
    """Return the verdict on a gain above `low` and below `high`, each at the gate's level (None: unknown)."""
    if low is not None and low > threshold:
        return "PASS"
    return "FAIL" if high is not None and high < threshold else "INCONCLUSIVE"


def threshold_of(condition: str, limit: float) -> float:
    """Return a rule's number on the scale that is bounded: a drop is a negative gain."""
    return (-limit if condition == "max_drop" else limit) + 0.0  # + 0.0: no -0.0, which would be printed


def check_target(target: Target, level: float) -> GateCheck:
    """Return the check of one rule on one task and pair of arms, at the one-sided `level`."""
    rule, line, pair = target.rule, target.task, target.pair
    ratio = rule.condition == "max_perplexity_ratio"
    threshold = threshold_of(rule.condition, rule.limit)
    bounds = gate_bounds(line, pair, level, ratio=ratio)
    if ratio:
        found = decide(_minus(bounds.high), _minus(bounds.low), -threshold)
    else:
        found = decide(bounds.low, bounds.high, threshold)
    verdict, reasons = _with_requirements(target, found, _statement(bounds, found, threshold, ratio=ratio))
    needed = _needed(target, bounds, threshold) if found == "INCONCLUSIVE" and not ratio else None
    return GateCheck(
        rule=target.index,
        task=line.task,
        metric=line.metric,
        filter=line.filter,
        a=pair.a,
        b=pair.b,
        condition=rule.condition,
        limit=rule.limit,
        measure="ratio" if ratio else "gain",
        threshold=threshold,
        estimate=bounds.estimate,
        low=bounds.low,
        high=bounds.high,
        level=bounds.level,
        method=bounds.method,
        n=pair.n,
        invalid=pair.missing,
        verdict=verdict,
        reasons=reasons,
        n_needed=needed,
    )


def _statement(bounds: Bounds, verdict: GateVerdict, threshold: float, *, ratio: bool) -> list[str]:
    """Say why the interval gives this verdict, in the metric's own units."""
    what, sign = ("ratio", "") if ratio else ("gain", "+")
    at = f"{100 * bounds.level:g} %"
    if verdict == "INCONCLUSIVE":
        if bounds.low is None or bounds.high is None:
            return [bounds.reason or "nothing bounds the difference yet"]
        between = f"{bounds.low:{sign}.4g} and {bounds.high:{sign}.4g}"
        return [f"the {what} lies between {between} (each at {at}), so {threshold:{sign}g} is not decided"]
    lower = (verdict == "PASS") != ratio
    side, number, word = ("least", bounds.low, "above") if lower else ("most", bounds.high, "below")
    return [f"the {what} is at {side} {number:{sign}.4g} ({at}), {word} {threshold:{sign}g}"]


def _with_requirements(
    target: Target, verdict: GateVerdict, reasons: list[str]
) -> tuple[GateVerdict, tuple[str, ...]]:
    """Apply the rule's demands on the data: too few items take a PASS away, too many invalid ones fail."""
    rule, pair = target.rule, target.pair
    asked = pair.n + pair.missing
    own = []
    if rule.min_n is not None and pair.n < rule.min_n:
        own.append(f"{pair.n} items have a value in both arms, min_n asks for {rule.min_n}")
        verdict = "FAIL" if verdict == "FAIL" else "INCONCLUSIVE"
    if rule.max_invalid is not None and asked and pair.missing > rule.max_invalid * asked:
        share = f"{pair.missing} of {asked} items ({pair.missing / asked:.3g})"
        own.append(f"{share} have no value in one of the arms, max_invalid allows {rule.max_invalid:g}")
        verdict = "FAIL"
    if 0 < pair.n < FEW_PAIRS:
        own.append(f"only {pair.n} pairs: fewer than {FEW_PAIRS} say little, whatever the interval")
    return verdict, (*own, *reasons)


def _needed(target: Target, bounds: Bounds, threshold: float) -> int | None:
    """The items that would decide with power 0.8 if the gain seen is the true one.

    `mde` was made for the two-sided level of the comparison; it goes with the sum of the two quantiles.
    """
    pair = target.pair
    if pair.mde is None or bounds.estimate is None:
        return None
    confidence, distance = 2.0 * bounds.level - 1.0, abs(bounds.estimate - threshold)
    mde = pair.mde * normal_mde(1.0, confidence) / normal_mde(1.0, pair.level)
    if distance < 1e-4 * mde:  # a hundred million times the items: no number to give
        return None
    return needed_n(pair.n, mde, distance, level=confidence)


def _minus(value: float | None) -> float | None:
    return None if value is None else -value
