"""GGUF: the converter is looked for, its words are passed on, and what it wrote is looked at.

A real conversion where llama.cpp's script is (LORA_EVAL_GGUF_CONVERTER), with sentencepiece in its Python.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from lora_eval.errors import InputError, MissingExtraError, ModelError, VerificationFailed
from lora_eval.export import export
from lora_eval.exporters.gguf import CONVERTER, SCRIPT, find_converter
from lora_eval.fingerprint import fingerprint_folder
from lora_eval.models import read_lineage
from tests.conftest import CHECKOUT

STORIES = CHECKOUT.parent / "shared" / "models" / "stories260K"


@pytest.fixture
def no_converter(monkeypatch):
    """None given, none on the PATH."""
    monkeypatch.delenv(CONVERTER, raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


def script(folder: Path, text: str) -> Path:
    """A program that is called as the converter is."""
    path = folder / SCRIPT
    path.write_text(f"import sys\nfrom pathlib import Path\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.slow
@pytest.mark.skipif(
    CONVERTER not in os.environ or not STORIES.is_dir(),
    reason=f"no converter: set ${CONVERTER} to llama.cpp's {SCRIPT}",
)
def test_a_real_conversion_holds_the_models_tensors(tmp_path, monkeypatch):
    import torch
    from safetensors.torch import load_file

    lineage = export("gguf", base=STORIES, adapter=None, out=tmp_path / "gguf", options={"outtype": "f32"})
    assert [variant.kind for variant in lineage.variants] == ["base", "gguf"]
    monkeypatch.syspath_prepend(str(Path(os.environ[CONVERTER]).parent / "gguf-py"))
    from gguf import GGUFReader

    tensors = {
        tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "gguf" / "model-f32.gguf").tensors
    }
    stored = load_file(STORIES / "model.safetensors")
    up = stored["model.layers.0.mlp.up_proj.weight"].float()
    assert torch.equal(torch.tensor(tensors["blk.0.ffn_up.weight"].copy()), up)


def test_the_folder_is_complete_and_has_its_own_fingerprint(tiny_llama, tmp_path):
    text = (
        "model, _, out, _, kind = sys.argv[1:]\n"
        "print('not for our stdout')\n"
        "Path(out).write_bytes(b'GGUF' + kind.encode() + (Path(model) / 'config.json').read_bytes())"
    )
    found = set()
    for kind in ("f16", "q8_0"):
        options = {"converter": script(tmp_path, text), "outtype": kind}
        lineage = export("gguf", base=tiny_llama, adapter=None, out=tmp_path / kind, options=options)
        assert lineage == read_lineage(tmp_path / kind)
        assert lineage.steps[-1].arguments["outtype"] == kind
        assert {path.name for path in (tmp_path / kind).iterdir()} >= {f"model-{kind}.gguf", "tokenizer.json"}
        found.add(fingerprint_folder(tmp_path / kind))
    assert len(found) == 2


def test_where_the_converter_is_looked_for(no_converter, tmp_path, monkeypatch):
    with pytest.raises(MissingExtraError, match=r"git clone .*llama\.cpp.*--converter or \$LORA_EVAL_GGUF"):
        find_converter(None)
    path = script(tmp_path, "")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin")
    assert find_converter(None) == path
    with pytest.raises(InputError, match="no such file"):
        find_converter(tmp_path / "other.py")
    monkeypatch.setenv(CONVERTER, str(tmp_path / "other.py"))
    with pytest.raises(InputError, match="no such file"):
        find_converter(None)
    assert find_converter(path) == path


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("raise NotImplementedError('BPE pre-tokenizer')", ModelError, "NotImplementedError: BPE pre-token"),
        ("import no_such_package", MissingExtraError, f"No module named 'no_such_package'.*{sys.executable}"),
        ("sys.exit(7)", ModelError, "it ended with status 7"),
        ("pass", VerificationFailed, "wrote no model-bf16.gguf"),
        ("Path(sys.argv[3]).write_bytes(b'GGML')", VerificationFailed, "does not begin with GGUF's mark"),
    ],
)
def test_what_goes_wrong_is_said_and_nothing_is_left(tiny_llama, tmp_path, text, error, said):
    options = {"converter": script(tmp_path, text)}
    with pytest.raises(error, match=re.escape(said) if ".*" not in said else said):
        export("gguf", base=tiny_llama, adapter=None, out=tmp_path / "out", options=options)
    assert {path.name for path in tmp_path.iterdir()} == {SCRIPT}


def test_what_cannot_work_is_refused(tiny_llama, tiny_adapter, tmp_path):
    with pytest.raises(InputError, match="merge the adapter first"):
        export("gguf", base=tiny_llama, adapter=tiny_adapter, out=tmp_path / "out")
    with pytest.raises(InputError, match="--outtype q4_k: expected one of f32, f16, bf16, q8_0"):
        export("gguf", base=tiny_llama, adapter=None, out=tmp_path / "out", options={"outtype": "q4_k"})
