"""README and documentation say what the program does now."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lora_eval.cli.main import _COMMANDS, group
from tests.conftest import CHECKOUT, Result

README = (CHECKOUT / "README.md").read_text("utf-8")
PAGES = [CHECKOUT / name for name in ("README.md", "CONTRIBUTING.md")] + sorted(
    (CHECKOUT / "docs").glob("*.md")
)


def command_under(marker: str) -> str:
    """The one line in the fenced block right under `<!-- command: MARKER -->`."""
    (found,) = re.findall(rf"^<!-- command: {marker} -->\n```bash\n([^\n]+)\n```$", README, re.MULTILINE)
    return found


def test_the_page_of_commands_is_current(run_python: Callable[..., Result]) -> None:
    # In a process of its own: click remembers the help option that a command first showed.
    printed = run_python(CHECKOUT / "docs" / "commands.py", "--print")

    assert printed.status == 0, printed.stderr
    page = (CHECKOUT / "docs" / "commands.md").read_text("utf-8")
    assert page == printed.stdout, "run: python docs/commands.py"


def test_the_readme_lists_every_command_with_its_line() -> None:
    rows = dict(re.findall(r"^\| `lora-eval ([\w-]+)` \| (.+) \|$", README, re.MULTILINE))

    assert rows == {name: text for name, (_, text) in _COMMANDS.items()}


def test_ci_runs_the_readmes_test_command() -> None:
    lines = (CHECKOUT / ".ci" / "run").read_text("utf-8").splitlines()

    assert command_under("test") in lines
    assert (CHECKOUT / ".ci" / "run").stat().st_mode & 0o111


def test_the_readmes_main_command_ends_with_the_quickstart() -> None:
    assert command_under("main").endswith("/lora-eval quickstart")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text("utf-8"))

    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_in_the_text_exist(page: Path) -> None:
    text = page.read_text("utf-8").replace("\\\n", " ")
    for line in re.findall(r"^(?:\.venv/bin/)?lora-eval ([^\n#|]+)", text, re.MULTILINE):
        words = line.split()
        if words[0] not in _COMMANDS:
            assert words[0].startswith("-"), line
            continue
        command = group.get_command(
            group.make_context("lora-eval", [words[0], "--help"], resilient_parsing=True), words[0]
        )
        while hasattr(command, "commands") and len(words) > 1 and words[1] in command.commands:
            words, command = words[1:], command.commands[words[1]]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert {word.split("=")[0] for word in words if word.startswith("--")} <= known, line


def test_every_page_is_in_the_navigation() -> None:
    settings = yaml.safe_load((CHECKOUT / "mkdocs.yml").read_text("utf-8"))
    listed = {page for entry in settings["nav"] for page in entry.values()}

    assert {path.name for path in (CHECKOUT / "docs").glob("*.md")} == listed
