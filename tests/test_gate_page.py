"""docs/gate.md and its GitHub example say what the program does now."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from lora_eval.cli.main import group
from lora_eval.records import Gate
from lora_eval.schema import parse_record, parse_yaml
from lora_eval.stats.gate import decide
from lora_eval.stats.score_interval import score_interval
from tests.conftest import CHECKOUT

PAGE = (CHECKOUT / "docs" / "gate.md").read_text("utf-8")
EXAMPLE = CHECKOUT / "docs" / "examples" / "github-actions.yml"
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def steps() -> list[dict]:
    workflow = yaml.safe_load(EXAMPLE.read_text("utf-8"))
    (job,) = workflow["jobs"].values()
    return job["steps"]


def test_the_page_holds_the_example_as_it_is() -> None:
    assert BLOCKS[-1] == EXAMPLE.read_text("utf-8")


def test_the_gate_on_the_page_is_one() -> None:
    gate = parse_record(parse_yaml(BLOCKS[0], "page"), Gate, "page")
    assert {rule.condition for rule in gate.rules} == {"min_gain", "max_drop", "max_perplexity_ratio"}
    names = (CHECKOUT / "evals" / "pocket" / "suite.yaml").read_text("utf-8")
    assert [rule.task for rule in gate.rules if rule.task not in names] == []


def test_the_python_on_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lora_eval.compare import compare_loaded
    from lora_eval.schema import write_record
    from tests.simulated import make_runs, make_suite

    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    comparison = compare_loaded(make_runs(arms=("base", "adapter")), suite=make_suite())
    write_record(tmp_path / "runs" / "mine" / "comparison.json", comparison)
    (tmp_path / "gate.yaml").write_text("rules: [{task: tickets, min_gain: 0.3}]\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out.startswith("PASS [(")


def test_every_key_of_a_rule_is_on_the_page() -> None:
    from lora_eval.records import GateRule

    assert [name for name in GateRule.model_fields if f"| `{name}` |" not in PAGE] == []


def test_every_command_of_the_example_parses(steps: list[dict]) -> None:
    found = []
    for line in "\n".join(step.get("run", "") for step in steps).splitlines():
        words = shlex.split(line.partition("||")[0])
        if words[:1] == ["lora-eval"]:
            context = group.make_context("lora-eval", words[1:])
            name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
            command.make_context(name, rest)  # a wrong option or argument is a UsageError
            found.append(name)
    assert found == ["compare", "gate"]


def test_what_the_example_uploads_and_comments_is_what_the_commands_write(steps: list[dict]) -> None:
    texts = "\n".join(str(step) for step in steps)
    assert "--out comparison" in texts and "--junit gate.xml" in texts
    (upload,) = (step for step in steps if "upload-artifact" in step.get("uses", ""))
    assert upload["with"]["path"].split() == [
        "comparison/comparison.json",
        "comparison/report.html",
        "comparison/report.md",
        "gate.xml",
    ]
    (comment,) = (step for step in steps if step.get("name") == "Comment")
    assert "comparison/report.md" in comment["run"] and "GH_TOKEN" in comment["env"]
    # The job fails by the gate's status; what follows must run all the same.
    after = steps[[step.get("name") for step in steps].index("Compare") + 1 :]
    assert all("!cancelled()" in step["if"] for step in after)
    permissions = yaml.safe_load(EXAMPLE.read_text("utf-8"))["permissions"]
    assert permissions == {"contents": "read", "pull-requests": "write"}


@pytest.mark.parametrize(("limit", "needed"), [(0.02, 133), (0.01, 268)])
def test_how_many_unchanged_items_a_drop_needs(limit: float, needed: int) -> None:
    found = [decide(*score_interval(0, 0, n, 0.9), -limit) for n in (needed - 1, needed)]
    assert found == ["INCONCLUSIVE", "PASS"]
    assert f"`max_drop: {limit}`" in PAGE and str(needed) in PAGE


@pytest.mark.slow
def test_error_rates_on_the_page_are_those_of_the_script() -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("gate_errors", CHECKOUT / "benchmarks" / "gate_errors.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for n, changed, limit in ((50, 0.04, 0.02), (200, 0.01, 0.01)):
        found = module.rates(n, changed, -limit, -limit)
        figures = " | ".join(f"{100 * found[name]:.1f} %" for name in ("PASS", "FAIL", "alone"))
        assert f"| {n} | `max_drop: {limit:g}` | {100 * changed:g} % | {figures} |" in PAGE
