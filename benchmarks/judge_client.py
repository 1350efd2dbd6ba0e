"""Calls a second to one judge on this machine: `judge run` against `alpaca_eval evaluate`, at equal verdicts.

    python benchmarks/judge_client.py [--pairs 400] [--delay 0.05]

Both ask a loopback judge (a process of its own) that answers after `--delay` seconds, with their own default
number of requests at once and with 64. Prints the calls of each, their seconds, and the ratio of their rates;
ends with status 1 where a preference differs by more than 1e-9.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent
# alpaca_eval's own function, on the stand-in that lets it be imported.
UPSTREAM = """
import json, sys, time
from lora_eval.judges import alpaca
model, reference, procs, out = sys.argv[1:]
with alpaca._contained():
    import alpaca_eval
    options = {} if procs == "default" else {"num_procs": int(procs), "chunksize": 128}
    started = time.perf_counter()
    _, rows = alpaca_eval.evaluate(
        model_outputs=json.load(open(model)), reference_outputs=json.load(open(reference)),
        annotators_config="weighted_alpaca_eval_gpt4_turbo", is_return_instead_of_print=True,
        precomputed_leaderboard=None, caching_path=None, output_path=None, fn_metric="get_winrate",
        sort_by="win_rate", is_overwrite_leaderboard=True, metric_kwargs={}, annotation_kwargs=options,
    )
    seconds = time.perf_counter() - started
found = {row["instruction"]: row["preference"] for row in rows}
json.dump({"seconds": seconds, "preferences": found}, open(out, "w"))
"""
OURS = """
import json, sys, time
from pathlib import Path
from lora_eval.judges.answers import read_answers
from lora_eval.judges.calls import make_plan
from lora_eval.judges.own_rows import last_replies, preferences
from lora_eval.judges.profiles import load_profile
from lora_eval.judges.run import run_plan
from lora_eval.records import JudgeLimits
model, reference, url, concurrency, folder, out = sys.argv[1:]
profile = load_profile("alpaca-logprob", model="stub", base_url=url)
if concurrency != "default":
    profile = profile.model_copy(update={"limits": JudgeLimits(concurrency=int(concurrency))})
sets = read_answers({"base": Path(reference), "tuned": Path(model)})
started = time.perf_counter()
plan = make_plan("alpaca-eval", profile, sets, orders="alpaca")
found = preferences(last_replies(run_plan(plan, Path(folder), max_cost=None).verdicts))
seconds = time.perf_counter() - started
texts = {key: question.turns[0] for key, question in sets[0].questions.items()}
json.dump({"seconds": seconds, "preferences": {texts[p.prompt]: p.value for p in found}}, open(out, "w"))
"""


def main() -> int:
    """Measure, print, and say whether the verdicts are equal."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--delay", type=float, default=0.05)
    parser.add_argument("--port", type=int, default=8799)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_outputs(folder, options.pairs)
        environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": ""}
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.judges.stub", str(options.port), str(options.delay)],
            cwd=CHECKOUT, env=environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            return measure(folder, url, options.pairs, environment)
        finally:
            server.kill()
            server.wait()


def measure(folder: Path, url: str, pairs: int, environment: dict[str, str]) -> int:
    """Run both at their defaults and at 64 requests at once; print a line for each."""
    (folder / "client.yaml").write_text(f"default: [{{api_key: EMPTY, base_url: '{url}'}}]", "utf-8")
    environment = environment | {"OPENAI_CLIENT_CONFIG_PATH": str(folder / "client.yaml")}
    files = [str(folder / "tuned.json"), str(folder / "base.json")]
    rates: dict[tuple[str, str], float] = {}
    verdicts = []
    for at_once in ("default", "64"):
        for who, arguments in (
            ("alpaca_eval", ["-c", UPSTREAM, *files, at_once]),
            ("lora-eval", ["-c", OURS, *files, url, at_once, str(folder / f"store-{at_once}")]),
        ):
            out = folder / f"{who}-{at_once}.json"
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments, str(out)], check=True, env=environment, cwd=CHECKOUT,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
            found = json.loads(out.read_text("utf-8"))
            rates[who, at_once] = pairs / found["seconds"]
            verdicts.append(found["preferences"])
            rate, whole = pairs / found["seconds"], time.perf_counter() - started
            taken = f"{pairs} calls in {found['seconds']:7.2f} s: {rate:7.1f} calls/s"
            print(f"{who:12} at once: {at_once:8} {taken}")
            print(f"{'':12} with start-up {whole:.1f} s")
    for at_once in ("default", "64"):
        print(f"ratio at {at_once}: {rates['lora-eval', at_once] / rates['alpaca_eval', at_once]:.1f}")
    worst = max(abs(each[key] - verdicts[0][key]) for each in verdicts for key in verdicts[0])
    print(f"largest difference of a preference: {worst:.1e}")
    return int(worst > 1e-9)


def write_outputs(folder: Path, pairs: int) -> None:
    """Outputs of two models with the marks that the loopback judge reads."""
    draw = random.Random(0)
    for arm in ("base", "tuned"):
        marks = [f"{arm} QUALITY={draw.gauss(0, 1):.3f} " + "word " * 60 for _ in range(pairs)]
        rows = [
            {"instruction": f"Question {i}?", "output": text, "generator": arm}
            for i, text in enumerate(marks)
        ]
        (folder / f"{arm}.json").write_text(json.dumps(rows), "utf-8")


if __name__ == "__main__":
    sys.exit(main())
