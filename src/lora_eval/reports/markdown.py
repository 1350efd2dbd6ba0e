"""The comparison as Markdown, for pull requests and model cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lora_eval.records import Comparison, LoadedRun, Verification
from lora_eval.reports.controls import controls
from lora_eval.reports.gates import gate_lines
from lora_eval.reports.methods import methods_text
from lora_eval.reports.origins import Origin
from lora_eval.reports.page import render_template
from lora_eval.reports.provenance import costs, looks, settings, steps, trainings
from lora_eval.reports.scores import score_lines
from lora_eval.reports.words import base_arm, findings, headline, pair_names, rows_of


def render_markdown(
    comparison: Comparison,
    verifications: Sequence[Verification] = (),
    origins: Mapping[str, Origin] | None = None,
    runs: Mapping[str, LoadedRun] | None = None,
) -> str:
    """Return the report's text; every figure comes from the records."""
    return render_template(
        "report.md.jinja",
        comparison=comparison,
        base=base_arm(comparison),
        headline=headline(comparison),
        findings=findings(comparison, verifications),
        pairs=[(a, b, rows_of(comparison, a, b, primary=False)) for a, b in pair_names(comparison)],
        gate=gate_lines(comparison),
        scores=score_lines(comparison),
        verifications=verifications,
        controls=controls(comparison),
        trainings=trainings(origins or {}),
        steps=steps(origins or {}),
        costs=costs(comparison),
        looks=looks(comparison),
        settings=settings(comparison, runs or {}),
        methods=methods_text(comparison),
        cell=table_cell,
    )


def table_cell(text: object) -> str:
    """Text that cannot break out of a Markdown table's cell."""
    return " ".join(str(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())
