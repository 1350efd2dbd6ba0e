"""How often the statistics are right: false alarms, coverage and power of every verdict, by simulation.

    python benchmarks/simulate_statistics.py [--runs 2000] [--only TABLE ...]

The tables go to benchmarks/results/simulation.md and, between its markers, to docs/simulation.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from simulated_comparisons import Row, Table, clusters, perplexities, rates, scores
from simulated_suites import macro, many_tasks, resampling, training_runs

ROOT = Path(__file__).resolve().parent.parent
TABLES: dict[str, tuple[str, Table]] = {
    "rates": ("Right-or-wrong items", rates),
    "clusters": ("Right-or-wrong items in clusters", clusters),
    "scores": ("Scores", scores),
    "perplexities": ("Perplexity", perplexities),
    "many_tasks": ("Many tasks", many_tasks),
    "macro": ("Suite score", macro),
    "training_runs": ("Several training runs", training_runs),
    "resampling": ("Resampling", resampling),
}


def as_markdown(title: str, rows: list[Row]) -> str:
    """A table, one line for each row."""
    names = list(rows[0])
    lines = [f"### {title}", "", f"| {' | '.join(names)} |", f"|{'--:|' * len(names)}"]
    for row in rows:
        cells = [
            f"{value:.3f}" if isinstance(value, float) and name in _RATES else str(value)
            for name, value in row.items()
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


_RATES = {
    *("covered", "better", "worse", "not_worse", "inconclusive", "equivalent", "rows alarm", "covered gain"),
    *("better gain", "any alarm Holm", "any alarm plain", "false share BH", "alarm", "found"),
    *("items only", "satterthwaite", "width"),
}


def main() -> None:
    """Run the tables and write them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--only", nargs="*", choices=list(TABLES), help="Print these, and write nothing.")
    options = parser.parse_args()
    texts = []
    for name in options.only or TABLES:
        started = time.perf_counter()
        title, table = TABLES[name]
        texts.append(as_markdown(title, list(table(options.runs))))
        print(f"{texts[-1]}\n\n({time.perf_counter() - started:.0f} s)\n", flush=True)
    if options.only:
        return
    made = f"`python benchmarks/simulate_statistics.py --runs {options.runs}`\n\n" + "\n\n".join(texts) + "\n"
    (ROOT / "benchmarks" / "results" / "simulation.md").write_text(made, "utf-8")
    page = ROOT / "docs" / "simulation.md"
    before, start, rest = page.read_text("utf-8").partition("<!-- tables -->\n")
    after = rest.partition("<!-- end of tables -->")[2]
    page.write_text(f"{before}{start}{made}<!-- end of tables -->{after}", "utf-8")


if __name__ == "__main__":
    main()
