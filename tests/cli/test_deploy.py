"""`lora-eval deploy`: the contract of its statuses and of --json, and what a person reads."""

from __future__ import annotations

import json

import pytest

from tests.conftest import save_tiny_adapter


@pytest.fixture(scope="module")
def dora(tiny_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "dora"
    save_tiny_adapter(tiny_llama, folder, use_dora=True)
    return folder


def test_a_servable_adapter(run_cli, tiny_llama, tiny_adapter, tmp_path) -> None:
    out = tmp_path / "serving"

    result = run_cli(
        "deploy", "vllm", "--base", tiny_llama, "--adapter", f"tuned={tiny_adapter}", "--out", out
    )

    assert (result.status, result.stdout) == (0, "")
    assert "wrote " in result.stderr
    assert {path.name for path in out.iterdir()} == {
        "README.md", "adapters", "compose.yaml", "deployment.json", "kubernetes.yaml", "serve.sh",
        "server.env",
    }  # fmt: skip
    assert (out / "serve.sh").stat().st_mode & 0o111
    assert "`tuned`" in (out / "README.md").read_text("utf-8")


@pytest.mark.parametrize("server", ["vllm", "tgi"])
def test_an_arm_that_would_be_another_model(run_cli, server, tiny_llama, dora, tmp_path) -> None:
    out = tmp_path / "serving"

    result = run_cli("deploy", server, "--base", tiny_llama, "--adapter", dora, "--out", out, "--json")

    assert (result.status, out.exists()) == (3, False)
    data = json.loads(result.stdout)
    assert list(data) == ["server", "version", "findings", "files"]
    assert (data["server"], data["files"]) == (server, [])
    (finding,) = [f for f in data["findings"] if f["severity"] in ("refused", "ignored")]
    assert set(finding) == {"arm", "rule", "severity", "reason", "issue", "fix"}
    assert (finding["arm"], finding["rule"]) == ("dora", "dora")
    assert finding["fix"].startswith("lora-eval export merge ")


def test_the_fix_makes_it_servable(run_cli, tiny_llama, dora, tmp_path, monkeypatch) -> None:
    """The printed command, run as it stands."""
    import shlex

    monkeypatch.chdir(tmp_path)
    args = ("deploy", "vllm", "--base", tiny_llama, "--adapter", dora, "--out", tmp_path / "serving")
    refused = json.loads(run_cli(*args, "--json").stdout)
    fix = next(finding["fix"] for finding in refused["findings"] if finding["fix"])

    merged = run_cli(*shlex.split(fix)[1:], "--no-verify")
    served = run_cli("deploy", "vllm", "--model", "dora-merged", "--out", "serving")

    assert (merged.status, served.status) == (0, 0), merged.stderr + served.stderr


def test_what_forbids_it_is_printed_quietly_too(run_cli, tiny_llama, dora, tmp_path) -> None:
    result = run_cli("deploy", "vllm", "--base", tiny_llama, "--adapter", dora, "--out", tmp_path / "o", "-q")

    assert result.status == 3
    lines = result.stderr.splitlines()
    assert lines[0].startswith("refused: dora: dora: use_dora is True: vLLM does not load DoRA")
    assert lines[1] == "  see https://github.com/vllm-project/vllm/issues/6983"
    assert lines[2].startswith("  fix: lora-eval export merge ")
    assert lines[3] == "nothing written: 1 finding forbids it"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either --base with --adapter, or --model"),
        (("--base", "BASE"), "--base needs at least one --adapter"),
        (("--model", "BASE", "--adapter", "ADAPTER"), "--adapter goes with --base"),
        (
            ("--base", "BASE", "--adapter", "a=ADAPTER", "--adapter", "a=ADAPTER"),
            "two adapters are called 'a'",
        ),
        (("--base", "BASE", "--adapter", "ADAPTER", "--max-model-len", "0"), "0 is not in the range"),
        (("--base", "BASE", "--adapter", "./nowhere"), "nowhere: no such folder"),
    ],
)
def test_bad_input(run_cli, arguments, message, tiny_llama, tiny_adapter, tmp_path) -> None:
    words = [
        word.replace("BASE", str(tiny_llama)).replace("ADAPTER", str(tiny_adapter)) for word in arguments
    ]

    result = run_cli("deploy", "vllm", *words, "--out", tmp_path / "out")

    assert (result.status, message in result.stderr) == (2, True), result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_server(run_cli, tiny_llama, tmp_path) -> None:
    result = run_cli("deploy", "vlm", "--model", tiny_llama, "--out", tmp_path / "out")

    assert result.status == 2
    assert "No server named 'vlm'. Did you mean 'vllm'? Known: lorax, sglang, tgi, vllm." in result.stderr


def test_help_imports_no_server(run_python) -> None:
    code = (
        "import sys; from lora_eval.cli.main import run; status = run(['deploy', '--help']);"
        "assert not [m for m in sys.modules if m.startswith(('lora_eval.servers', 'torch', 'jinja2'))];"
        "sys.exit(status)"
    )
    result = run_python("-c", code)

    assert result.status == 0, result.stderr
    assert "Example:" in result.stdout
