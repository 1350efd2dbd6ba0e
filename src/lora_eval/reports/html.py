"""The comparison as one HTML file: no network, light and dark, readable when printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lora_eval.records import Comparison, LoadedRun, Verification
from lora_eval.reports.controls import controls
from lora_eval.reports.items import BYTES, changed_items
from lora_eval.reports.methods import methods_text
from lora_eval.reports.page import render_template
from lora_eval.reports.plot import forest_svg, legend_html
from lora_eval.reports.words import base_arm, findings, headline, pair_names, rows_of


def render_html(
    comparison: Comparison,
    runs: Mapping[str, LoadedRun],
    verifications: Sequence[Verification] = (),
    item_bytes: int = BYTES,
) -> str:
    """Return the whole page. Texts of models and data sets are escaped: they reach the page as data.

    `item_bytes` caps the browser of items; the page says how many it leaves out.
    """
    from markupsafe import Markup

    references = list(dict.fromkeys(a for a, _ in pair_names(comparison)))
    plots = [(name, legend_html(comparison, name), forest_svg(comparison, name)) for name in references]
    return render_template(
        "report.html.jinja",
        comparison=comparison,
        base=base_arm(comparison),
        headline=headline(comparison),
        findings=findings(comparison, verifications),
        # Made by us, with every text from outside escaped in plot.py.
        plots=[(name, Markup(legend), Markup(svg)) for name, legend, svg in plots if svg],
        pairs=[(a, b, rows_of(comparison, a, b, primary=False)) for a, b in pair_names(comparison)],
        items=changed_items(comparison, runs, item_bytes),
        verifications=verifications,
        methods=methods_text(comparison),
        controls=controls(comparison),
        timing=comparison.timing,
    )
