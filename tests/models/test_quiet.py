"""What the libraries print is kept away, and everything is as before afterwards."""

from __future__ import annotations

import importlib.util
import logging
import sys
import warnings

import pytest

from lora_eval.models.quiet import quiet, without_gptqmodel


def chatter() -> None:
    print("a banner")
    warnings.warn("a warning", UserWarning, stacklevel=1)
    logging.getLogger("some.library").warning("a log line")


def test_quiet_keeps_chatter_away(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with quiet():
        chatter()
        logging.getLogger("some.library").error("an error")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "")
    assert [record.message for record in caplog.records] == ["an error"]
    logging.getLogger("some.library").warning("afterwards")
    assert caplog.records[-1].message == "afterwards"


def test_verbose_shows_it(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with quiet(verbose=True), pytest.warns(UserWarning, match="a warning"):
        chatter()
    assert capsys.readouterr() == ("", "a banner\n")  # stdout is for --json
    assert [record.message for record in caplog.records] == ["a log line"]


@pytest.mark.skipif(importlib.util.find_spec("gptqmodel") is None, reason="gptqmodel is not installed")
def test_gptqmodel_is_hidden_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.import_utils import is_gptqmodel_available

    if sys.modules.get("gptqmodel") is not None:
        monkeypatch.delitem(sys.modules, "gptqmodel")
    is_gptqmodel_available.cache_clear()
    assert is_gptqmodel_available()
    with without_gptqmodel():
        assert not is_gptqmodel_available()
    assert is_gptqmodel_available()
    assert "gptqmodel" not in sys.modules
