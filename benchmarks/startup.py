"""How long a person waits for `--help`: lora-eval beside lm-eval and trl, in one run on one machine.

Run it in an environment with all three:

    python benchmarks/startup.py [--rounds 7]

Each command is started ROUNDS times in turn with the others, so that a busy moment hits all of them; the
median counts. The last column is how many times longer the command takes than `lora-eval --help`.
"""

import argparse
import platform
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


def seconds(command: tuple[Path | str, ...]) -> float:
    """Wall time of one start."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def measure(rounds: int) -> dict[str, list[float]]:
    """Times of each command; one uncounted round first, so that files are in the page cache."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
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
    first = statistics.median(times["lora-eval --help"])
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("lora-eval", "lm-eval", "trl", "transformers")
    )
    print(f"Python {platform.python_version()}, {platform.machine()}; {packages}\n")
    print("| command | median s | fastest s | slowest s | times `lora-eval --help` |")
    print("|---|---|---|---|---|")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"| `{name}` | {median:.3f} | {min(values):.3f} | {max(values):.3f} | {median / first:.1f} |")


if __name__ == "__main__":
    main()
