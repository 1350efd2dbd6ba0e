"""Compare runs: every pair of arms, task by task, with interval, test and verdict.

Reads runs and writes `comparison.json`, `report.md` and `report.html`. It imports no model library, so a
comparison can be made again on a laptop from the run folders. The mathematics is in `lora_eval.stats`, what
is a task and which metric counts in `lora_eval.stats.tasks`.
"""

from lora_eval.compare.files import Stored, load_runs, load_stored, write_comparison, write_reports
from lora_eval.compare.pairs import default_pairs
from lora_eval.compare.stage import compare_loaded, compare_runs

__all__ = [
    "Stored",
    "compare_loaded",
    "compare_runs",
    "default_pairs",
    "load_runs",
    "load_stored",
    "write_comparison",
    "write_reports",
]
