"""How long a person waits for `--help`: lora-eval beside lm-eval and trl, in one run on one machine.

Run it in an environment with all three:

    python benchmarks/startup.py [--rounds 7]

Each command is started ROUNDS times in turn with the others, so that a busy moment hits all of them; the
median counts. CPU seconds are what a start costs on a machine that has nothing else to do; wall seconds grow
with the load. The last column is the ratio of CPU seconds to those of `lora-eval --help`.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

BIN = Path(sys.executable).parent
COMMANDS = {
    "lora-eval --help": (BIN / "lora-eval", "--help"),
    "lora-eval recipe list": (BIN / "lora-eval", "recipe", "list"),
    "lora-eval plugins": (BIN / "lora-eval", "plugins"),
    "lm-eval --help": (BIN / "lm-eval", "--help"),
    "trl --help": (BIN / "trl", "--help"),
}


def seconds(command: tuple[Path | str, ...]) -> tuple[float, float]:
    """Wall and CPU time of one start."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Times of each command; one uncounted round first, so that files are in the page cache."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for number in range(rounds + 1):
        for name, command in COMMANDS.items():
            taken = seconds(command)
            if number:
                times[name].append(taken)
    return times


def main() -> None:
    """Measure, and print the table as Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    times = measure(parser.parse_args().rounds)
    first = statistics.median(cpu for _, cpu in times["lora-eval --help"])
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("lora-eval", "lm-eval", "trl", "transformers")
    )
    machine = f"{os.cpu_count()} {platform.machine()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"Python {platform.python_version()}, {machine}; {packages}\n")
    print("| command | median wall s | fastest wall s | median CPU s | times `lora-eval --help` |")
    print("|---|---|---|---|---|")
    for name, pairs in times.items():
        walls, cpu = [wall for wall, _ in pairs], statistics.median(cpu for _, cpu in pairs)
        wall, ratio = statistics.median(walls), cpu / first
        print(f"| `{name}` | {wall:.3f} | {min(walls):.3f} | {cpu:.3f} | {ratio:.1f} |")


if __name__ == "__main__":
    main()
