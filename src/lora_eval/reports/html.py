"""The comparison as one HTML file: no network, light and dark, readable when printed, below 2 MB."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from lora_eval.records import Comparison, LoadedRun, Verification
from lora_eval.reports.controls import controls
from lora_eval.reports.gates import MARKS, gate_lines, gate_sentence
from lora_eval.reports.items import list_items
from lora_eval.reports.methods import methods_text
from lora_eval.reports.origins import Origin
from lora_eval.reports.pack import Packed, pack_items
from lora_eval.reports.page import read_template, render_template
from lora_eval.reports.plot import forest_panels, legend
from lora_eval.reports.provenance import costs, looks, settings, steps, trainings
from lora_eval.reports.scores import score_lines
from lora_eval.reports.words import base_arm, findings, headline, pair_names, rows_of

PAGE_BYTES = 2_000_000
_SPARE = 1_000  # counts of items in the text, which are not known when the page is measured
_LEAST_ITEMS = 200_000


def render_html(
    comparison: Comparison,
    runs: Mapping[str, LoadedRun],
    verifications: Sequence[Verification] = (),
    origins: Mapping[str, Origin] | None = None,
    page_bytes: int = PAGE_BYTES,
) -> str:
    """Return the whole page. Texts of models and data sets are escaped or packed: they reach it as data, and
    its policy lets no other script run and nothing load.

    The browser of items takes what the tables leave of `page_bytes`; the page says how many items and texts
    that leaves out.
    """
    values = _values(comparison, runs, verifications, origins or {})
    nothing = Packed("", 0, 0, 0, 0, 0)
    rest = len(render_template("report.html.jinja", items=nothing, **values).encode())
    budget = max(page_bytes - rest - _SPARE, min(_LEAST_ITEMS, page_bytes // 2))
    items = pack_items(comparison, list_items(comparison, runs), budget)
    return render_template("report.html.jinja", items=items, **values)


def _values(
    comparison: Comparison,
    runs: Mapping[str, LoadedRun],
    verifications: Sequence[Verification],
    origins: Mapping[str, Origin],
) -> dict[str, Any]:
    from markupsafe import Markup

    references = list(dict.fromkeys(a for a, _ in pair_names(comparison)))
    plots = [(name, legend(comparison, name), forest_panels(comparison, name)) for name in references]
    script = read_template("diff.js") + read_template("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {
        "comparison": comparison,
        "base": base_arm(comparison),
        "headline": headline(comparison),
        "findings": findings(comparison, verifications),
        "gate": gate_lines(comparison),
        "gate_text": gate_sentence(comparison.gate) if comparison.gate else "",
        "marks": MARKS,
        "scores": score_lines(comparison),
        "plots": [plot for plot in plots if plot[2]],
        "pairs": [(a, b, rows_of(comparison, a, b, primary=False)) for a, b in pair_names(comparison)],
        "verifications": verifications,
        "methods": methods_text(comparison),
        "controls": controls(comparison),
        "trainings": trainings(origins),
        "steps": steps(origins),
        "costs": costs(comparison),
        "looks": looks(comparison),
        "settings": settings(comparison, runs),
        "script": Markup(script),
        "script_hash": f"'sha256-{digest}'",
    }
