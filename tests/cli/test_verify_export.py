"""Every export ends with a verification on a small set, and the lineage says how it came out."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from lora_eval.cli.verify_export import check_export, conclude
from lora_eval.errors import VerificationFailed
from lora_eval.export import export
from lora_eval.models import read_lineage
from lora_eval.verify import small_set
from tests.exporters.conftest import qlora

__all__ = ["qlora"]


def silent(what, done, total):
    """Report nothing."""


@pytest.fixture
def made(qlora, tmp_path):
    """`made(onto)` merges into a new folder; returns the folder and its lineage."""

    def call(onto="trained"):
        out = tmp_path / onto
        options = {"onto": onto}
        return out, export("merge", base=qlora / "base", adapter=qlora / "adapter", out=out, options=options)

    return call


def check(qlora, out, lineage, **options):
    return check_export(qlora / "base", qlora / "adapter", out, lineage, options, silent)


def verified(out):
    return read_lineage(out).steps[-1].arguments["verified"]


def test_a_right_merge_is_marked_as_verified(qlora, made, capsys):
    out, lineage = made()
    marked, record, reason = check(qlora, out, lineage)
    assert (record.passed, reason, verified(out)) == (True, None, "passed")
    assert json.loads((out / "verification.json").read_text())["measured"]["items"] == 16
    assert marked == read_lineage(out)
    assert marked.variants == lineage.variants  # the fingerprint is still that of the weights
    conclude(record, reason, asked_for_another=False)
    assert "verified: it is the model that was measured" in capsys.readouterr().err


def test_another_model_than_the_measured_one_ends_with_3_unless_it_was_asked_for(qlora, made, capsys):
    out, lineage = made("original")
    _, record, reason = check(qlora, out, lineage)
    assert verified(out) == "failed"
    assert "kl_mean is" in read_lineage(out).steps[-1].arguments["verified_reason"]
    with pytest.raises(VerificationFailed, match="not the model that was measured"):
        conclude(record, reason, asked_for_another=False)
    conclude(record, reason, asked_for_another=True)
    said = capsys.readouterr().err
    assert "mean KL" in said and "lies on the original 16-bit base" in said


def test_without_a_verification_the_lineage_says_so(qlora, made, capsys):
    out, lineage = made()
    _, record, reason = check(qlora, out, lineage, no_verify=True)
    assert (record, reason, verified(out)) == (None, "--no-verify", "no")
    assert not (out / "verification.json").exists()
    conclude(record, reason, asked_for_another=False)
    assert "unverified: --no-verify" in capsys.readouterr().err


def test_what_cannot_be_opened_leaves_the_export_unverified(qlora, made, tmp_path):
    out, lineage = made()
    broken = shutil.copytree(qlora / "adapter", tmp_path / "adapter")
    (broken / "adapter_model.safetensors").unlink()
    _, record, reason = check_export(qlora / "base", broken, out, lineage, {}, silent)
    assert record is None
    assert "an adapter without weights" in reason
    assert verified(out) == "no"


def test_files_that_are_not_whole_fail(qlora, made):
    out, lineage = made()
    path = out / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(VerificationFailed, match="not whole"):
        check(qlora, out, lineage)
    assert verified(out) == "failed"


def test_a_whole_model_is_the_reference_of_what_is_made_from_it(qlora, made, tmp_path):
    """As for GPTQ; here the candidate is a copy."""
    out, _ = made()
    copy = shutil.copytree(out, tmp_path / "copy")
    _, record, _ = check_export(out, None, copy, read_lineage(copy), {}, silent)
    assert record.passed
    assert record.measured.max_kl == 0


def test_the_small_set_is_of_texts_where_no_training_data_is(qlora):
    rows = small_set(qlora / "adapter", 10)
    assert len(rows) == 10 == len(set(rows))


def test_the_command_ends_with_it(run_cli, qlora, tmp_path):
    arms = ("--base", qlora / "base", "--adapter", qlora / "adapter")
    done = run_cli("export", "merge", *arms, "--out", tmp_path / "trained", "--json")
    assert done.status == 0, done.stderr
    assert json.loads(done.stdout)["steps"][-1]["arguments"]["verified"] == "passed"
    done = run_cli("export", "merge", *arms, "--onto", "original", "--out", tmp_path / "original")
    assert done.status == 0, done.stderr
    assert "lies on the original 16-bit base" in done.stderr
    assert verified(tmp_path / "original") == "failed"
    done = run_cli("export", "merge", *arms, "--out", tmp_path / "unverified", "--no-verify")
    assert done.status == 0
    assert "unverified: --no-verify" in done.stderr
    assert verified(tmp_path / "unverified") == "no"
    done = run_cli("export", "base", *arms, "--dequantized", "--out", tmp_path / "base")
    assert done.status == 0, done.stderr
    assert verified(tmp_path / "base") == "passed"


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--verify-suite", "pockett", "did you mean|Did you mean 'pocket'"),
        ("--verify-prompts", "empty.jsonl", "empty.jsonl: holds no row"),
        ("--verify-prompts", ".", "--verify-prompts .*: the folder holds no run"),
    ],
)
def test_what_to_verify_with_is_looked_at_before_the_export(run_cli, qlora, tmp_path, option, value, said):
    """A wrong name must not end well, with an export that nobody verified."""
    (tmp_path / "empty.jsonl").write_text("")
    given = value if option == "--verify-suite" else tmp_path / value
    arms = ("--base", qlora / "base", "--adapter", qlora / "adapter", "--out", tmp_path / "out")
    done = run_cli("export", "merge", *arms, option, given)
    assert done.status == 2
    assert re.search(said, done.stderr), done.stderr
    assert not (tmp_path / "out").exists()
    done = run_cli("export", "merge", *arms, option, given, "--no-verify")
    assert done.status == 0, done.stderr


def test_a_plugins_export_is_verified_too(run_cli, plugin_example, tiny_llama, tmp_path):
    done = run_cli("export", "acme-copy", "--model", tiny_llama, "--out", tmp_path / "copy")
    assert done.status == 0, done.stderr
    assert verified(tmp_path / "copy") == "passed"
