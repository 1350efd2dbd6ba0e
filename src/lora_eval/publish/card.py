"""The model card: front matter through huggingface_hub's own types, text from `templates/cards/` and records.

The card is a function of the records and of `publication.json` alone, so that anyone can make it again from a
repository and see whether a number was edited.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lora_eval.publish import facts
from lora_eval.publish.facts import Row
from lora_eval.publish.records import EVALUATION, Records
from lora_eval.records import Comparison, LoadedRun, Publication, TaskComparison, TrainingLog
from lora_eval.stats.pairing import LIKELIHOOD_METRICS

_KINDS = {
    "adapter": "a LoRA adapter for",
    "merged": "a LoRA adapter merged into",
    "gptq": "a merged fine-tune, quantized with GPTQ, of",
    "awq": "a merged fine-tune, quantized with AWQ, of",
}
_TAGS = {"adapter": ("lora", "peft"), "merged": ("merge",), "gptq": ("gptq",), "awq": ("awq",)}


def render_card(records: Records, publication: Publication) -> str:
    """Return README.md: front matter and text. Every figure comes from the records."""
    from lora_eval.reports.gates import gate_lines, gate_sentence
    from lora_eval.reports.markdown import table_cell
    from lora_eval.reports.origins import Origin
    from lora_eval.reports.page import render_template
    from lora_eval.reports.provenance import costs, settings, trainings
    from lora_eval.reports.words import base_arm, headline, row_text

    comparison = records.comparison
    base = base_arm(comparison)
    arm = next(arm for arm in comparison.arms if arm.name == publication.arm)
    rows = measured_rows(comparison, base.name, arm.name)
    found = trainings({arm.name: Origin(records.lineage, records.training)})
    headers = {name: LoadedRun(run) for name, run in records.headers.items()}
    gate = comparison.gate
    own_run = facts.own_run(arm, records, publication)
    dtype, quantization = facts.opening(records.headers.get(own_run or arm.name), records)
    body = render_template(
        "model.md.jinja",
        publication=publication,
        title=publication.repo_id.partition("/")[2],
        kind=_KINDS[publication.kind],
        records=records,
        comparison=comparison,
        base=base.name,
        # Of these weights alone: another arm's gains are none of theirs.
        headline=headline(comparison.model_copy(update={"arms": (base, arm)})),
        rows=rows,
        worse=[row_text(row) for row in rows if row[1].verdict == "worse"],
        unjudged=[row_text(row) for row in facts.unjudged_losses(comparison, base.name, arm.name)],
        undecided=[task.task for task, pair in rows if pair.verdict == "inconclusive"],
        gate_text=gate_sentence(gate) if gate else "",
        gate_failed=[line for line in gate_lines(comparison) if line.verdict == "FAIL"],
        opened=[(each.name, ", ".join(each.notes)) for each in (base, arm) if each.notes],
        own_run=own_run,
        arm_runs=[run.name for run in arm.runs],
        settings=settings(comparison, headers),
        costs=[cost for cost in costs(comparison) if cost.name in (base.name, arm.name)],
        training=found[0] if found else None,
        data=facts.data_facts(records, publication),
        curve=render_curve(records.training) is not None,
        dtype=dtype,
        quantization=quantization,
        own_template=facts.own_template(records),
        served_rank=facts.served_rank(records.rank or 16),
        loaders=facts.loaders(publication.kind),
        limits=facts.limits(records, rows),
        notices=facts.notices(publication.base_license),
        evaluation=EVALUATION,
        cell=table_cell,
    )
    return f"---\n{front_matter(records, publication)}\n---\n\n{body}"


def front_matter(records: Records, publication: Publication) -> str:
    """Return the card's YAML, with `model-index` over the arm's main figures."""
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        base_model=publication.base_model,
        base_model_relation=publication.base_model_relation,
        license=publication.license,
        license_name=publication.license_name,
        license_link=publication.license_link,
        language=list(publication.language) or None,
        library_name="peft" if publication.kind == "adapter" else "transformers",
        pipeline_tag="text-generation",
        tags=[*_TAGS[publication.kind], "lora-eval"],
        model_name=publication.repo_id.partition("/")[2],
        eval_results=_eval_results(records.comparison, publication),
    )
    return str(data.to_yaml())


def measured_rows(comparison: Comparison, base: str, arm: str) -> list[Row]:
    """Return the lines on which a verdict on the arm against the base rests, in the record's order."""
    return [
        (task, pair)
        for task in comparison.tasks
        for pair in task.pairs
        if task.primary and (pair.a, pair.b) == (base, arm)
    ]


def main_figures(comparison: Comparison, arm: str) -> list[tuple[TaskComparison, float]]:
    """Return every task's main metric with the arm's value, where it has one."""
    return [
        (task, value)
        for task in comparison.tasks
        if task.primary and (value := task.means.get(arm)) is not None
    ]


def render_curve(training: TrainingLog | None) -> str | None:
    """Return the loss curve as an SVG picture of its own; None where too few losses were logged."""
    from lora_eval.reports.lines import loss_chart
    from lora_eval.reports.page import render_template

    chart = loss_chart(training) if training is not None else None
    return render_template("curve.svg.jinja", chart=chart) if chart is not None else None


def _eval_results(comparison: Comparison, publication: Publication) -> Sequence[Any] | None:
    from huggingface_hub import EvalResult

    results = []
    for task, value in main_figures(comparison, publication.arm):
        known = publication.benchmarks.get(task.task)
        results.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=known.dataset_id if known else task.task,
                dataset_name=task.task,
                metric_type="perplexity" if task.metric in LIKELIHOOD_METRICS else task.metric,
                metric_name=task.metric if task.filter == "none" else f"{task.metric} ({task.filter})",
                metric_value=value,
            )
        )
    return results or None
