"""The group: light to start, helpful where a name is wrong, and true to the exit statuses."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import click
import pytest

from lora_eval import errors
from lora_eval.cli.main import _COMMANDS, group, main, run
from tests.conftest import Result

HEAVY = {
    *("accelerate", "bitsandbytes", "datasets", "gptqmodel", "lm_eval", "matplotlib", "optimum", "pandas"),
    *("peft", "pyarrow", "scipy", "tokenizers", "torch", "transformers", "trl"),
}


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["recipe", "list"], ["plugins"], ["recipe", "list", "--json"]]
)
def test_looking_around_imports_no_model_library(
    run_python: Callable[..., Result], arguments: list[str]
) -> None:
    code = (
        "import sys; from lora_eval.cli.main import run; status = run(sys.argv[1:]);"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr); sys.exit(status)"
    )
    result = run_python("-c", code, *arguments)

    assert result.status == 0, result.stderr
    assert result.stdout
    assert set(result.stderr.split()) & HEAVY == set()


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_command_has_help_with_an_example(run_cli: Callable[..., Result], name: str) -> None:
    result = run_cli(name, "--help")

    assert result.status == 0
    assert f"\n  Example:\n    lora-eval {name}" in result.stdout


@pytest.mark.parametrize("name", _COMMANDS)
def test_every_subcommand_has_help_with_an_example(run_cli: Callable[..., Result], name: str) -> None:
    command = group.get_command(click.Context(group), name)
    for inner in getattr(command, "commands", {}):
        result = run_cli(name, inner, "--help")

        assert result.status == 0
        assert f"\n  Example:\n    lora-eval {name} {inner}" in result.stdout


def test_help_lists_every_command(run_cli: Callable[..., Result]) -> None:
    text = run_cli("--help").stdout

    assert "\n  Example:\n    lora-eval quickstart\n" in text
    for name, (_, help_line) in _COMMANDS.items():
        assert name in text
        assert help_line.split(".")[0] in " ".join(text.split())


def test_python_m_is_the_command(runner: Callable[..., Result]) -> None:
    result = runner("--version")

    assert (result.status, result.stdout.split()[:2]) == (0, ["lora-eval,", "version"])


def test_a_misspelt_command_is_corrected(run_cli: Callable[..., Result]) -> None:
    result = run_cli("trian")

    assert result.status == 2
    assert "No such command 'trian'; did you mean 'train'?" in result.stderr


@pytest.mark.parametrize(
    "arguments", [["plugins", "--chek"], ["plugins", "--kind", "x"], ["plugins", "extra"]]
)
def test_wrong_usage_ends_with_2(run_cli: Callable[..., Result], arguments: list[str]) -> None:
    result = run_cli(*arguments)

    assert (result.status, result.stdout) == (2, "")
    assert "Error: " in result.stderr


@pytest.fixture
def command_that_raises(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Let `lora-eval plugins` raise."""

    def arrange(error: BaseException) -> None:
        def raise_it() -> None:
            raise error

        stand_in = click.Command("plugins", callback=raise_it)
        monkeypatch.setattr("lora_eval.cli.plugins.command", stand_in)

    return arrange


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (errors.DataError("rows.jsonl: line 3: x"), 2, "Error: rows.jsonl: line 3: x\n"),
        (errors.GateFailed("guard fell"), 3, "Error: guard fell\n"),
        (
            OSError(28, "No space left on device", "/x/y"),
            2,
            "Error: no space left on the disk while writing /x/y\n",
        ),
        (KeyboardInterrupt(), 130, "\ninterrupted; the same command resumes\n"),
        (click.exceptions.Abort(), 130, "interrupted; the same command resumes\n"),
    ],
)
def test_errors_end_with_their_status_and_one_message(
    run_cli: Callable[..., Result],
    command_that_raises: Callable[[BaseException], None],
    error: BaseException,
    status: int,
    said: str,
) -> None:
    command_that_raises(error)

    assert run_cli("plugins") == Result(status, "", said)


@pytest.mark.parametrize(
    "error", [errors.LoraEvalError("a fault of ours"), ValueError("x"), PermissionError(13, "x")]
)
def test_a_fault_of_ours_keeps_its_traceback(
    run_cli: Callable[..., Result], command_that_raises: Callable[[BaseException], None], error: Exception
) -> None:
    command_that_raises(error)

    with pytest.raises(type(error)):
        run_cli("plugins")


def test_a_reader_that_stops_reading_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "lora_eval", "plugins"], stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)

    assert (done.returncode, done.stderr) == (0, "")


def test_a_command_that_is_none_is_told_to_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_eval.cli.plugins.command", object())

    with pytest.raises(
        TypeError, match=r"lora_eval\.cli\.plugins\.command is object, expected a click command"
    ):
        run(["plugins"])


@pytest.fixture
def goes_on() -> Iterator[None]:
    """What `main` sets for a process that it ends is as before: this one goes on."""
    heard, threshold = signal.getsignal(signal.SIGTERM), gc.get_threshold()
    yield
    signal.signal(signal.SIGTERM, heard)
    gc.set_threshold(*threshold)
    gc.unfreeze()


@pytest.mark.usefixtures("goes_on")
def test_main_ends_the_process_with_the_status() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])

    assert caught.value.code == 0


def test_sigterm_ends_a_command_as_ctrl_c_does() -> None:
    code = (
        "import importlib, os, signal, click\n"
        "module = importlib.import_module('lora_eval.cli.main')\n"
        "@click.command()\n"
        "def stand_in():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    finally:\n"
        "        print('closed')\n"
        "module.group = stand_in\n"
        "module.main([])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (130, "closed\n")
    assert "interrupted" in done.stderr
