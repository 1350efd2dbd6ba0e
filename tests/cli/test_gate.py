"""The gate command and `compare --gate`: exit status, record, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from lora_eval.compare import compare_loaded
from lora_eval.records import Comparison, GateResult
from lora_eval.schema import dump_yaml, read_record, write_record
from tests.simulated import make_runs, make_suite
from tests.suites.conftest import write_tasks

PASS = {"task": "tickets", "min_gain": 0.3}
FAIL = {"task": "reading", "max_drop": 0.01, "arm": "adapter"}
OPEN = {"task": "terms", "min_gain": 0.3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a comparison of base and adapter on 200 simulated items of each task."""
    made = tmp_path_factory.mktemp("gated")
    control = {"items": 64, "differences": 0, "passed": True}
    comparison = compare_loaded(
        make_runs(arms=("base", "adapter")), suite=make_suite(), controls={"identity": control}
    )
    write_record(made / "comparison.json", comparison)
    return made


@pytest.fixture
def gate(tmp_path: Path) -> Callable[..., Path]:
    def write(*rules: dict, **options: object) -> Path:
        path = tmp_path / "gate.yaml"
        path.write_text(dump_yaml({"schema": 1, **options, "rules": list(rules)}), "utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("rules", "verdict", "status", "strict"),
    [
        ([PASS], "PASS", 0, 0),
        ([PASS, FAIL], "FAIL", 3, 3),
        ([PASS, OPEN], "INCONCLUSIVE", 0, 4),
        ([OPEN, FAIL], "FAIL", 3, 3),
    ],
)
def test_exit_status_is_the_verdict(run_cli, folder, gate, rules, verdict, status, strict):
    result = run_cli("gate", folder, gate(*rules))
    assert result.status == status
    assert result.stdout.lstrip().startswith(f"{verdict}. The gate ")
    # A status 0 that is no PASS is told, whatever is printed.
    assert ("INCONCLUSIVE; the status is 0" in result.stderr) == (verdict == "INCONCLUSIVE")
    again = run_cli("gate", folder / "comparison.json", gate(*rules), "--strict")
    assert (again.status, again.stderr) == (strict, "")


def test_json_is_the_record(run_cli, folder, gate):
    result = run_cli("gate", folder, gate(PASS, FAIL, level=0.9), "--json")
    assert result.status == 3
    found = GateResult.model_validate(json.loads(result.stdout))
    assert (found.verdict, found.level) == ("FAIL", 0.9)
    assert [check.verdict for check in found.checks] == ["PASS", "FAIL"]
    assert found.checks[1].reasons[0].endswith("(90 %), below -0.01")


def test_quiet_is_one_line(run_cli, folder, gate):
    result = run_cli("gate", folder, gate(PASS), "-q")
    assert result.stdout == "PASS. The gate passes: its one check.\n"


def test_every_kind_of_metric_is_bounded_at_the_gates_own_level(run_cli, folder, gate):
    """Right-or-wrong items, scores and perplexities, from the stored record alone."""
    everything = {"task": "*", "max_drop": 0.5}
    for level in (0.9, 0.99):
        result = run_cli("gate", folder, gate(everything, level=level), "--json")
        checks = json.loads(result.stdout)["checks"]
        assert {check["task"] for check in checks} == set(make_suite().entries()[i].task for i in range(8))
        assert {check["level"] for check in checks} == {level}


def test_junit_agrees_with_the_exit_status(run_cli, folder, gate, tmp_path):
    path = tmp_path / "gate.xml"
    for option, counts in ((), ("0", "1")), (("--strict",), ("1", "0")):
        result = run_cli("gate", folder, gate(PASS, OPEN), "--junit", path, *option)
        assert f"wrote {path}" in result.stderr
        suite = ElementTree.parse(path).getroot()[0]
        assert (suite.get("failures"), suite.get("skipped")) == counts


def test_every_fault_of_the_file_is_told(run_cli, folder, gate):
    faulty = gate({"task": "tickets", "min_gian": 0.1, "min_n": 0}, {"max_drop": 0.1}, level=95)
    result = run_cli("gate", folder, faulty)
    assert result.status == 2
    assert [line.partition(f"{faulty}: ")[2] for line in result.stderr.splitlines()] == [
        "level: input should be less than 1, got 95",
        "rules[0].min_n: input should be greater than or equal to 1, got 0",
        "unknown key 'rules[0].min_gian'; did you mean 'min_gain'?",
        "rules[0]: exactly one of min_gain, max_drop, max_perplexity_ratio is needed, got 'none of them'",
        "missing key 'rules[1].task'",
    ]


def test_a_rule_that_fits_nothing_is_bad_input(run_cli, folder, gate):
    result = run_cli("gate", folder, gate({"task": "ticket", "min_gain": 0}))
    assert result.status == 2
    assert "rules[0].task: no task or group 'ticket'; did you mean 'tickets'?" in result.stderr


def test_a_comparison_whose_control_failed_gives_no_verdict(run_cli, folder, gate, tmp_path):
    comparison = read_record(folder / "comparison.json", Comparison)
    broken = comparison.model_copy(update={"controls": {"identity": {"passed": False, "differences": 3}}})
    write_record(tmp_path / "comparison.json", broken)
    result = run_cli("gate", tmp_path, gate(PASS))
    assert (result.status, result.stdout) == (3, "")
    assert "control 'identity' did not pass" in result.stderr


def test_a_missing_comparison_is_bad_input(run_cli, tmp_path, gate):
    result = run_cli("gate", tmp_path, gate(PASS))
    assert result.status == 2
    assert "no such file" in result.stderr


# compare --gate


@pytest.fixture(scope="module")
def compare(run_cli, tiny_llama, tiny_adapter, tmp_path_factory):
    """`compare(gate_file, *options)`: the command on the tiny models, and its folder."""
    tasks = write_tasks(tmp_path_factory.mktemp("tasks"))
    out = tmp_path_factory.mktemp("compared") / "out"
    asked = ["--base", tiny_llama, "--adapter", tiny_adapter, "--tasks", "t_last", "--include-path", tasks]
    return lambda *options: (run_cli("compare", *asked, "--out", out, *options), out)


def test_compare_records_the_gate_and_ends_with_it(compare, gate, run_cli):
    rules = gate({"task": "t_last", "metric": "acc", "max_drop": 1})
    result, out = compare("--gate", rules, "-q")
    assert result.status == 0, result
    assert "The gate passes: its one check." in result.stdout
    stored = read_record(out / "comparison.json", Comparison)
    assert stored.gate.source == str(rules)
    # The same verdict, bounds and reasons again from the record alone.
    again = run_cli("gate", out, rules, "--json")
    assert GateResult.model_validate_json(again.stdout) == stored.gate
    failing = gate({"task": "t_last", "metric": "acc", "min_gain": 0.99})
    assert compare("--gate", failing, "--json")[0].status == 3
    undecided = gate({"task": "t_last", "metric": "acc", "max_drop": 0.001})
    assert compare("--gate", undecided, "-q", "--strict")[0].status == 4
    let_pass = compare("--gate", undecided, "-q")[0]
    assert (let_pass.status, "INCONCLUSIVE" in let_pass.stderr) == (0, True)


def test_a_misspelt_name_is_told_before_anything_is_scored(compare, gate, tmp_path):
    out = tmp_path / "out"
    result, _ = compare("--gate", gate({"task": "t_lst", "arm": "adaptor", "max_drop": 1}), "--out", out)
    assert result.status == 2
    assert "no task or group 't_lst'; did you mean 't_last'?" in result.stderr
    assert "no arm 'adaptor' is compared with base; did you mean 'adapter'?" in result.stderr
    assert not out.exists()


def test_a_misspelt_metric_keeps_what_was_scored(compare, gate):
    result, out = compare("--gate", gate({"task": "t_last", "metric": "ac", "max_drop": 1}), "-q")
    assert result.status == 2
    assert "no metric 'ac' of t_last; did you mean 'acc'?" in result.stderr
    assert read_record(out / "comparison.json", Comparison).gate is None


def test_strict_needs_a_gate(compare):
    result, _ = compare("--strict")
    assert result.status == 2
    assert "--strict" in result.stderr
