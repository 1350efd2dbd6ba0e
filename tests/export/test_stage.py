"""The export stage: whole or not at all, options checked, exporters of other packages like our own."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from lora_eval.errors import InputError, ModelError, OutputError, PluginError
from lora_eval.export import export
from lora_eval.fingerprint import fingerprint_folder
from lora_eval.models import read_lineage


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_empty_folder_is_filled(tiny_llama, tiny_adapter, tmp_path):
    (tmp_path / "out").mkdir()
    lineage = export("merge", base=tiny_llama, adapter=tiny_adapter, out=tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert lineage == read_lineage(tmp_path / "out")
    assert lineage.variants[-1].path == str(tmp_path / "out")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_there_stays(tiny_llama, tiny_adapter, tmp_path, kind):
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    else:
        out.write_text("mine")
    with pytest.raises(OutputError, match=r"out: is (not empty|a file)"):
        export("merge", base=tiny_llama, adapter=tiny_adapter, out=out)
    assert names(tmp_path) == ["out"]
    assert (out / "mine.txt" if kind == "folder" else out).read_text() == "mine"


def test_a_link_stays_and_what_it_points_to_is_filled(tiny_llama, tiny_adapter, tmp_path):
    for name in ("empty", "new"):
        (tmp_path / f"to-{name}").symlink_to(name)
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new"):
        export("merge", base=tiny_llama, adapter=tiny_adapter, out=tmp_path / f"to-{name}")
        assert (tmp_path / name / "config.json").is_file()
    assert names(tmp_path) == ["empty", "new", "to-empty", "to-new"]


@pytest.mark.parametrize("name", ["a mount point", "this folder"])
def test_a_folder_whose_place_no_other_can_take_is_refused_at_once(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    out = Path("." if name == "this folder" else "mounted")
    if name == "a mount point":
        out.mkdir()
        monkeypatch.setattr(Path, "is_mount", lambda self: self.name == "mounted")
    with pytest.raises(OutputError, match=f"is {name}, .* give a new folder in it as --out"):
        export("merge", base=tmp_path / "no base", adapter=tmp_path / "no adapter", out=out)


def test_a_full_disk_leaves_nothing(tiny_llama, tiny_adapter, tmp_path, full_disk):
    full_disk(50_000)
    with pytest.raises(OutputError, match="no space left on the disk"):
        export("merge", base=tiny_llama, adapter=tiny_adapter, out=tmp_path / "out")
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made(tiny_llama, tiny_adapter, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        export("merge", base=tiny_llama, adapter=tiny_adapter, out=tmp_path / "file" / "out")


def test_a_fault_half_way_leaves_nothing(tiny_llama, tiny_adapter, tmp_path):
    base = shutil.copytree(tiny_llama, tmp_path / "base")
    adapter = shutil.copytree(tiny_adapter, tmp_path / "adapter")
    (base / "tokenizer.json").unlink()
    (base / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="no tokenizer"):  # after the weights were written
        export("merge", base=base, adapter=adapter, out=tmp_path / "out")
    assert names(tmp_path) == ["adapter", "base"]


def test_an_interruption_half_way_leaves_nothing(tiny_llama, tiny_adapter, tmp_path):
    """By Ctrl-C; `lora_eval.cli.main` lets SIGTERM end a command in the same way."""

    def progress(what, done, total):
        if done == 5:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        export("merge", base=tiny_llama, adapter=tiny_adapter, out=tmp_path / "out", progress=progress)
    assert names(tmp_path) == []


def test_options_are_checked_before_anything_is_done(tiny_llama, tiny_adapter, tmp_path):
    with pytest.raises(InputError, match="no option 'dtyp'; did you mean 'dtype'"):
        export("merge", base=tiny_llama, adapter=tiny_adapter, out=tmp_path / "out", options={"dtyp": "x"})
    with pytest.raises(PluginError, match="Did you mean 'merge'"):
        export("merg", base=tiny_llama, adapter=tiny_adapter, out=tmp_path / "out")


@pytest.mark.usefixtures("plugin_example")
def test_an_exporter_of_another_package(tiny_llama, tmp_path):
    lineage = export("acme-copy", base=tiny_llama, adapter=None, out=tmp_path / "out")
    assert [variant.kind for variant in lineage.variants] == ["base", "merged"]
    assert lineage.variants[-1].fingerprint == fingerprint_folder(tiny_llama)
    assert lineage.variants[-1].path == str(tmp_path / "out")
    assert read_lineage(tmp_path / "out") == lineage
