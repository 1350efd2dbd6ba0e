"""The tables of docs/deploy.md are those of the servers."""

from __future__ import annotations

import re

from lora_eval.registry import get
from lora_eval.servers.features import DETECTORS
from tests.conftest import CHECKOUT
from tests.servers.conftest import SERVERS

PAGE = (CHECKOUT / "docs" / "deploy.md").read_text("utf-8")


def test_the_table_of_features_is_what_each_server_does() -> None:
    rows = re.findall(r"^\| `([\w-]+)`[^|]*\| ([\w-]+) \| ([\w-]+) \| ([\w-]+) \| ([\w-]+) \|$", PAGE, re.M)
    told = {rule: tuple(severities) for rule, *severities in rows if rule in DETECTORS}

    answers = [get("server", name).answers for name in SERVERS]
    assert told == {
        rule: tuple(each[rule].severity if rule in each else "-" for each in answers)
        for rule in DETECTORS
        if any(rule in each for each in answers)
    }


def test_versions_are_those_of_the_servers() -> None:
    for name in SERVERS:
        assert f"| `{name}` | {get('server', name).version} |" in PAGE
