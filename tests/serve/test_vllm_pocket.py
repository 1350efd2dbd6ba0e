"""What ships, on a real vLLM: the embedded base with two trained adapters that come and go, the merged model
and the GPTQ model. `lora-eval serve` serves each, `lora-eval smoke` asks it, and `lora-eval compare` scores
it beside the same weights here, item by item (see tests/real_vllm.py).
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean

import pytest

from lora_eval.pocket import model_path
from lora_eval.records import LoadedRun
from lora_eval.runstore import read_run
from tests.conftest import Result
from tests.real_vllm import needs_vllm
from tests.serve.running import serve_command

pytestmark = needs_vllm()
SMALL = ("--max-num-seqs", "16")
ITEMS = 4  # of each of the suite's 14 tasks
Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def shipped(run_cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `ticket` and `only` (adapters trained for 30 steps), `base` (dequantized, as they were
    trained on it), and `ticket` as `merged` and `gptq`.
    """
    out = tmp_path_factory.mktemp("shipped")

    def run(*arguments: object) -> None:
        done = run_cli(*arguments, "-q")
        assert done.status == 0, done.stderr

    run("train", "--recipe", "pocket-ticket", "--out", out / "ticket", "training.max_steps=30")
    more = ("training.max_steps=30", "training.seed=1")
    run("train", "--recipe", "pocket-ticket-only", "--out", out / "only", *more)
    trained = ("--base", model_path(), "--adapter", out / "ticket")
    run("export", "base", *trained, "--dequantized", "--dtype", "float32", "--out", out / "base")
    run("export", "merge", *trained, "--no-verify", "--out", out / "merged")
    settings = ("--group-size", "64", "--samples", "32", "--no-verify")
    run("export", "gptq", "--model", out / "merged", *settings, "--out", out / "gptq")
    return out


@pytest.fixture(scope="module")
def server(shipped: Path) -> Iterator[str]:
    """A server that began with `ticket` alone; `only` was loaded into it while it ran."""
    arguments = ("--base", f"pocket={shipped / 'base'}", "--adapter", f"ticket={shipped / 'ticket'}")
    with serve_command(*arguments, "--dtype", "float32", "--allow-load", vllm=SMALL) as running:
        assert running.models == ["pocket", "ticket"]
        assert change(running.url, "load", lora_name="only", lora_path=str(shipped / "only")) == 200
        yield running.url


def change(url: str, what: str, **body: str) -> int:
    """Load or unload an adapter as vLLM's users do; returns the status."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/{what}_lora_adapter", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def ask(run_cli: Cli, url: str, *arguments: object) -> tuple[int, dict[tuple[str, str | None], bool | None]]:
    """Return the status of `lora-eval smoke`, and what it says of each check and served name."""
    done = run_cli("smoke", url, *arguments, "--json")
    assert done.status in (0, 3), done.stderr
    return done.status, {
        (found["name"], found["arm"]): found["passed"] for found in json.loads(done.stdout)["checks"]
    }


def failed(checks: dict[tuple[str, str | None], bool | None]) -> set[tuple[str, str | None]]:
    return {check for check, passed in checks.items() if passed is not True}


def compared(run_cli: Cli, out: Path, *arguments: object) -> dict[str, LoadedRun]:
    """Run `lora-eval compare` on the pocket suite; returns the run of each arm."""
    suite = ("--suite", "pocket", "--limit", ITEMS, "--store", "none")
    done = run_cli("compare", "--base", model_path(), *arguments, *suite, "--out", out, "-q")
    assert done.status == 0, done.stderr
    return {folder.name: read_run(folder) for folder in (out / "runs").iterdir()}


def apart(one: LoadedRun, other: LoadedRun) -> tuple[float, float, float]:
    """How far two arms are apart: mean and largest difference of a log-likelihood in nats, and the share of
    answers that are not the same.
    """
    differences, answers = [], []
    for a, b in zip(one.rows, other.rows, strict=True):
        assert (a.task, a.item_id, a.prompt_sha256) == (b.task, b.item_id, b.prompt_sha256)
        pairs = zip(a.log_likelihoods, b.log_likelihoods, strict=True)
        differences += [abs(mine - theirs) for mine, theirs in pairs]
        answers += [] if a.log_likelihoods else [a.output != b.output]
    assert len(differences) > 50 and len(answers) > 20
    return fmean(differences), max(differences), fmean(answers)


def test_two_adapters_are_live_and_can_be_switched(run_cli: Cli, shipped: Path, server: str) -> None:
    arms = [f"--adapter={name}={shipped / name}" for name in ("ticket", "only")]
    base = ("--base", f"pocket={shipped / 'base'}", "--quantize", "none", "--dtype", "float32")
    status, checks = ask(run_cli, server, *base, *arms, "--allow-load")
    # vLLM's stale prefix cache (#42125): see test_vllm_server.py.
    assert (status, failed(checks)) == (3, {("reload-cache", "ticket")})
    assert {"not-the-base", "not-another-adapter", "mixed-batches", "hot-load", "unload"} < {
        name for name, _ in checks
    }


def test_an_adapter_is_missed_once_it_is_unloaded(run_cli: Cli, shipped: Path, server: str) -> None:
    base = ("--base", f"pocket={shipped / 'base'}", "--quantize", "none", "--dtype", "float32")
    arm = ("--adapter", f"later={shipped / 'only'}")
    assert change(server, "load", lora_name="later", lora_path=str(shipped / "only")) == 200
    assert ask(run_cli, server, *base, *arm)[0] == 0
    assert change(server, "unload", lora_name="later") == 200
    status, checks = ask(run_cli, server, *base, *arm)
    assert (status, failed(checks)) == (3, {("listed", "later")})
    assert change(server, "unload", lora_name="later") == 404


def test_served_adapters_have_the_figures_of_the_same_weights_here(
    run_cli: Cli, shipped: Path, server: str, tmp_path: Path
) -> None:
    here = [f"--adapter={name}={shipped / name}" for name in ("ticket", "only")]
    there = [f"--arm=served-{name}=served:{server}#{name}" for name in ("ticket", "only")]
    runs = compared(run_cli, tmp_path, *here, *there, "--dtype", "float32")
    for name in ("ticket", "only"):
        mean, largest, changed = apart(runs[name], runs[f"served-{name}"])
        assert mean < 1e-3 and largest < 1e-2 and changed < 0.05
    # What a server that answers with another model would look like.
    assert apart(runs["base"], runs["served-ticket"])[0] > 0.1
    assert apart(runs["only"], runs["served-ticket"])[0] > 0.1


@pytest.mark.parametrize(
    ("kind", "dtype", "limits"),
    [("merged", "float32", (1e-3, 1e-2, 0.05)), ("gptq", "float16", (0.1, 1.0, 0.2))],
)
def test_an_exported_model_is_served_as_it_was_measured(
    run_cli: Cli, shipped: Path, tmp_path: Path, kind: str, dtype: str, limits: tuple[float, ...]
) -> None:
    """vLLM computes GPTQ models in 16 bits only."""
    with serve_command("--model", f"prod={shipped / kind}", "--dtype", dtype, vllm=SMALL) as running:
        status, checks = ask(run_cli, running.url, "--model", f"prod={shipped / kind}", "--dtype", dtype)
        assert (status, failed(checks)) == (0, set())
        here = [f"--arm={name}={name}:{shipped / name}" for name in ("merged", "gptq")]
        there = f"--arm=prod=served:{running.url}#prod"
        runs = compared(run_cli, tmp_path, *here, there, "--dtype", dtype)
    found = {name: apart(run, runs["prod"]) for name, run in runs.items() if name != "prod"}
    own = found.pop(kind)
    assert all(value <= limit for value, limit in zip(own, limits, strict=True))
    assert min(mean for mean, _, _ in found.values()) > 5 * own[0]  # the base, and the other export
