"""The table of docs/parity.md: more items than the tests take, and a trained model. pytest does not run it.

python -m tests.parity.full --base ../shared/models/stories260K --items 40
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from lora_eval.engines.transformers import open_engine
from lora_eval.models import open_resident
from lora_eval.models.quiet import without_gptqmodel
from tests.conftest import save_tiny_adapter
from tests.parity.compare import TaskParity, compare, stock_model, stock_results, suite_of
from tests.parity.excerpts import rows_of
from tests.parity.tasks import NAMES, all_tasks, write_task

_HEAD = """\
| task | items | requests | largest relative difference | greedy flips | texts that differ | figures |
|---|---|---|---|---|---|---|"""


def main() -> None:
    """Print one line for each task and the setting of the run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="model folder")
    parser.add_argument("--items", type=int, default=40, help="items of each task")
    parser.add_argument("--new-tokens", type=int, default=64, help="limit of generated tokens")
    parser.add_argument("--reads", type=int, default=8192, help="max_position_embeddings of the copy used")
    parser.add_argument("--tasks", nargs="+", choices=NAMES, default=NAMES, metavar="TASK")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _copy(options.base, folder / "base", options.reads)
        with without_gptqmodel():
            save_tiny_adapter(folder / "base", folder / "adapter", r=8)
        for task in all_tasks():
            if task.name in options.tasks:
                write_task(folder / "tasks", task, rows_of(task.rows, options.items))
        print(_HEAD, flush=True)
        ours, theirs = _run(folder, options.tasks, {"max_gen_toks": options.new_tokens})
    print(
        f"\n{options.base.name} with room for {options.reads} tokens, base and a random LoRA (r 8, all "
        f"linear layers), float32; at most {options.items} items of a task and {options.new_tokens} new "
        f"tokens; {_setting()}. Processor time of both arms: lm-eval at batch size 1 {theirs:.0f} s, "
        f"ours {ours:.0f} s."
    )


def _copy(base: Path, folder: Path, reads: int) -> None:
    """The same weights with room for the shots: rotary positions have no table that ends."""
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"max_position_embeddings": reads}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")


def _run(folder: Path, names: list[str], generation: dict[str, int]) -> tuple[float, float]:
    """Print each task's line; returns the processor seconds of both ways."""
    engine = open_engine(open_resident(folder / "base", {"adapter": folder / "adapter"}))
    arms = {"base": None, "adapter": folder / "adapter"}
    stock = {arm: stock_model(folder / "base", adapter) for arm, adapter in arms.items()}
    ours = theirs = 0.0
    for name in names:
        suite = suite_of([name], folder / "tasks", generation=generation)
        found = []
        for arm in arms:
            began = time.process_time()
            expected = stock_results(stock[arm], [name], folder / "tasks", generation=generation)
            between = time.process_time()
            found.append(compare(suite, engine, arm, expected)[name])
            ours += time.process_time() - between
            theirs += between - began
        print(_line(found), flush=True)
    return ours, theirs


def _line(arms: list[TaskParity]) -> str:
    """One task, both arms together."""
    differing = [line for parity in arms for line in parity.metrics]
    worst = max(parity.worst for parity in arms)
    requests, flips, texts = (
        sum(getattr(parity, name) for parity in arms)
        for name in ("requests", "greedy_flips", "text_differences")
    )
    shown = f"{worst:.1e}" if worst else ""
    return (
        f"| {arms[0].task} | {arms[0].items} | {requests} | {shown} | {flips} | {texts} "
        f"| {'; '.join(differing) or 'equal'} |"
    )


def _setting() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "lm-eval"))
    return f"{datetime.now(UTC):%Y-%m-%d}, {packages}, Python {platform.python_version()}, {_processor()}"


def _processor() -> str:
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{found[0] if found else platform.machine()}, threads: {torch.get_num_threads()}"


if __name__ == "__main__":
    main()
