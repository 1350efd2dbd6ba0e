"""Base against adapter: lm-eval's `hf` model twice, and lora-eval's engine once, side by side in one run.

    python benchmarks/compare_vs_lm_eval.py --data DIR [--shape 25M] [--scale 1] [--only fixed_25]
        [--peer-batch 8] [--four-arms | --next-adapter]

DIR holds the public files hellaswag/val_sample1000.jsonl.gz, arc_easy/validation.jsonl.gz, mmlu/*.jsonl.gz
and gsm8k/{test,train_sample}.jsonl.gz. Every cell runs in a process of its own with one thread; what counts
is its CPU time (another program on the machine changes it little), from the first task to the last figure,
with models and libraries loaded before, the start-up probe and the controls left out. `bound` is the time
that the distinct tokens alone would take at the rate of a large torch matrix product, measured in the same
run. Figures of both sides must be equal. Working memory is the peak less what libraries and the loaded
model take.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from compare_setting import SHAPES, write_models, write_tasks

CELLS = (
    "choices_0", "fixed_25", "drawn_25", "letters_5", "answers_5_stop", "answers_5_never", "answers_5_drawn",
    "documents",
)  # fmt: skip
RANK = 16
COLUMNS = (
    "work", "lm-eval CPU s", "ours CPU s", "ratio", "wall ratio", "times the bound",
    "tokens asked / computed", "computed / distinct", "outside the engine", "peak GiB lm-eval / ours",
    "of it working memory", "figures",
)  # fmt: skip


def peer(arms: dict[str, str], task: str, tasks: Path, batch: int) -> dict:
    """lm-eval's own model, once for each arm."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    figures, cpu, wall, loaded = {}, 0.0, 0.0, 0.0
    for name, path in arms.items():
        options = {"pretrained": arms["base"], "peft": path} if name == "adapter" else {"pretrained": path}
        model = HFLM(**options, dtype="float32", batch_size=batch, device="cpu")
        manager = TaskManager(include_path=str(tasks), include_defaults=False)
        if not loaded:
            for parameter in model.model.parameters():
                parameter.sum()  # weights are mapped, and in memory only once they were read
            loaded = resident_gib()
        started, clock = time.process_time(), time.perf_counter()
        found = lm_eval.simple_evaluate(
            model=model, tasks=[task], task_manager=manager, bootstrap_iters=0, log_samples=True
        )
        cpu += time.process_time() - started
        wall += time.perf_counter() - clock
        figures[name] = results(found["results"])
        del model
    return {"cpu": cpu, "wall": wall, "figures": figures, "loaded": loaded}


def ours(arms: dict[str, str], task: str, tasks: Path, store: Path | None) -> dict:
    """lora-eval's engine: all adapters on one base, then the folders, as `compare` runs them."""
    from lora_eval.engines.store import ResultStore
    from lora_eval.engines.stored import StoredEngine
    from lora_eval.engines.transformers import open_engine
    from lora_eval.evaluate import open_suite
    from lora_eval.models import open_folder, open_resident

    adapters = {name: Path(path) for name, path in arms.items() if name == "adapter"}
    resident = open_resident(Path(arms["base"]), adapters, dtype="float32")
    engine = open_engine(resident)
    engine.drafts = drafts = {}
    suite = open_suite(tasks=[task], include_path=str(tasks))
    if store is not None:  # an earlier comparison, with another adapter, has filled it
        engine = StoredEngine(engine, ResultStore(store), {"base": {"arm": "base"}})
        suite.run(engine, "base", lambda *_: None)
    figures, work, cpu, wall = {}, {}, 0.0, 0.0
    loaded = resident_gib()
    for name in arms:
        if name not in resident.arms:
            engine = open_engine(open_folder(Path(arms[name]), name=name, dtype="float32"))
            engine.drafts = drafts
        before, started, clock = engine.work.copy(), time.process_time(), time.perf_counter()
        result = suite.run(engine, name, lambda *_: None)
        cpu += time.process_time() - started
        wall += time.perf_counter() - clock
        figures[name] = {f"{r.task}/{r.metric}": r.value for r in result.results}
        work[name] = {key: engine.work[key] - before[key] for key in engine.work}
    return {"cpu": cpu, "wall": wall, "figures": figures, "work": work, "loaded": loaded,
            "flops": sum(flops(engine, name in adapters) for name in arms)}  # fmt: skip


def flops(engine, adapted: bool) -> float:
    """Operations that scoring the engine's last plan takes: linear layers once for each distinct token,
    attention for each pair that sees one another, the head for each scored place. 0 for generation.
    """
    import numpy

    if not engine._plans:
        return 0.0
    config, plan = engine.resident.model.config, engine._plans[-1][1]
    inner, width = config.intermediate_size, config.hidden_size
    heads = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    shapes = [(width, heads), (width, kv), (width, kv), (heads, width), *[(width, inner)] * 3]
    linear = sum(a * b + (RANK * (a + b) if adapted else 0) for a, b in shapes) * config.num_hidden_layers
    pairs = float((plan.tree.depths + 1).sum())
    scored = len(numpy.unique(plan._nodes))
    return (
        2 * linear * len(plan.tree)
        + 4 * heads * config.num_hidden_layers * pairs
        + 2 * width * config.vocab_size * scored
    )


def resident_gib() -> float:
    """Memory of this process now: libraries and the loaded model, before the first request."""
    import psutil

    return psutil.Process().memory_info().rss / 2**30


def results(found: dict) -> dict[str, float]:
    """lm-eval's figures by task and metric, without errors and counts."""
    return {
        f"{task}/{name.partition(',')[0]}": value
        for task, figures in found.items()
        for name, value in figures.items()
        if "," in name and "_stderr" not in name
    }


def matrix_rate() -> float:
    """Floating-point operations a second of a large float32 product on this thread: the best of ten."""
    import torch

    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = 0.0
    for _ in range(10):
        started = time.perf_counter()
        a @ b
        best = max(best, 2 * 1024**3 / (time.perf_counter() - started))
    return best


def worker(side: str, arguments: argparse.Namespace) -> None:
    """Run one cell in this process and print its figures as one line of JSON."""
    import torch

    torch.set_num_threads(1)
    arms = json.loads(arguments.arms)
    if side == "peer":
        found = peer(arms, arguments.task, arguments.tasks, arguments.peer_batch)
    else:
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "results.sqlite" if arguments.next_adapter else None
            found = ours(arms, arguments.task, arguments.tasks, store)
        found["rate"] = matrix_rate()
    found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("RESULT " + json.dumps(found))


def run(side: str, arms: dict[str, str], task: str, tasks: Path, arguments: argparse.Namespace) -> dict:
    """Start a worker; returns what it found."""
    command = [sys.executable, __file__, "--worker", side, "--arms", json.dumps(arms), "--task", task,
               "--tasks", str(tasks), "--peer-batch", str(arguments.peer_batch), "--data", ".",
               *(["--next-adapter"] if arguments.next_adapter else [])]  # fmt: skip
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"{side} {task}: {done.stderr[-2000:]}")
    return json.loads(lines[0].removeprefix("RESULT "))


def equal(a: dict, b: dict) -> bool:
    """Whether all figures are the same; perplexities up to float32 rounding of their sums."""
    return a.keys() == b.keys() and all(
        a[name].keys() == b[name].keys()
        and all(
            abs(x - b[name][key]) <= 1e-5 * abs(x) if "perplexity" in key else x == b[name][key]
            for key, x in a[name].items()
        )
        for name in a
    )


def main() -> None:
    """Run every cell on both sides and print the table as Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--shape", choices=list(SHAPES), default="25M")
    parser.add_argument("--scale", type=float, default=1.0, help="times the number of items")
    parser.add_argument("--only", action="append", choices=CELLS)
    parser.add_argument("--peer-batch", type=int, default=8)
    parser.add_argument("--four-arms", action="store_true", help="base, adapter, merged and merged again")
    parser.add_argument("--next-adapter", action="store_true", help="the base's answers are in the store")
    parser.add_argument("--no-peer", action="store_true", help="only ours, for profiling")
    parser.add_argument("--work", type=Path, help="keep models and tasks here")
    for name in ("worker", "arms", "task"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    parser.add_argument("--tasks", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        write_tasks(arguments.data, folder / "tasks", arguments.scale)
        base, adapter, merged = write_models(arguments.data, folder, arguments.shape)
        arms = {"base": str(base), "adapter": str(adapter)}
        if arguments.four_arms:
            arms |= {"merged": str(merged), "again": str(merged)}
        table(arguments, arms, folder / "tasks")


def table(arguments: argparse.Namespace, arms: dict[str, str], tasks: Path) -> None:
    """Print one row for each cell."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "lm-eval"))
    print(
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}; Python {platform.python_version()}, {packages}; "
        f"{arguments.shape}, float32, {len(arms)} arms, lm-eval at batch {arguments.peer_batch}, "
        f"items x {arguments.scale}"
        f"{', base answered before' if arguments.next_adapter else ''}\n"
    )
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    for cell in arguments.only or CELLS:
        mine = run("ours", arms, cell, tasks, arguments)
        work = {key: sum(w[key] for w in mine["work"].values()) for key in next(iter(mine["work"].values()))}
        asked, forwarded = work["requested_tokens"], work["forwarded_tokens"]
        bound = mine["flops"] / mine["rate"]
        row = f"{mine['cpu'] / bound:.2f} | " if bound and not arguments.next_adapter else "- | "
        row += f"{asked / forwarded:.2f} | {forwarded / work['distinct_tokens']:.3f} | "
        row += f"{1 - work['seconds'] / mine['wall']:.0%}"
        if arguments.no_peer:
            print(
                f"| {cell} | - | {mine['cpu']:.1f} | - | - | {row} | - / {mine['peak']:.2f} | "
                f"- / {mine['peak'] - mine['loaded']:.2f} | - |",
                flush=True,
            )
            continue
        theirs = run("peer", arms, cell, tasks, arguments)
        same = "equal" if equal(theirs["figures"], mine["figures"]) else "DIFFERENT"
        print(f"| {cell} | {theirs['cpu']:.1f} | {mine['cpu']:.1f} | **{theirs['cpu'] / mine['cpu']:.1f}** | "
              f"{theirs['wall'] / mine['wall']:.1f} | {row} | {theirs['peak']:.2f} / {mine['peak']:.2f} | "
              f"{theirs['peak'] - theirs['loaded']:.2f} / {mine['peak'] - mine['loaded']:.2f} | "
              f"{same} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
