"""The reference's side is computed once: a second candidate opens no reference, and gets the same figures."""

from __future__ import annotations

import json
import shutil
import weakref

import pytest

from lora_eval.errors import InputError, OutputError, RecordError
from lora_eval.verify import ArmPath, Options, arms, default_folder, verify


@pytest.fixture
def opened(monkeypatch):
    """Names of the arms that were opened, in order."""
    names: list[str] = []
    real = arms.ArmPath.open
    monkeypatch.setattr(
        arms.ArmPath, "open", lambda self, **options: names.append(self.name) or real(self, **options)
    )
    return names


def shipped(path):
    return ArmPath("shipped", "merged", path)


def test_the_second_candidate_needs_no_reference(qlora, adapter, prompts, tmp_path, opened):
    options = Options(samples=8, store=tmp_path / "store")
    first = verify(adapter, shipped(qlora / "trained"), prompts, options=options)
    assert (first.passed, first.reference_logits) == (True, "computed")
    opened.clear()
    again = verify(adapter, shipped(qlora / "trained"), prompts, options=options)
    assert opened == ["shipped"]
    assert again.reference_logits == "stored"
    same = {"reference_logits": "computed", "wall_seconds": first.wall_seconds}
    assert again.model_copy(update=same) == first
    wrong = verify(adapter, shipped(qlora / "original"), prompts, options=options)
    assert (wrong.passed, wrong.reference_logits) == (False, "stored")
    assert opened == ["shipped", "shipped"]


@pytest.mark.parametrize("expected", ["equal", "near"])
def test_the_two_models_are_never_in_memory_together(qlora, adapter, prompts, monkeypatch, expected):
    real, models, alive = arms.ArmPath.open, [], {}

    def opening(self, **options):
        alive[self.name] = [model() is not None for model in models]
        resident = real(self, **options)
        models.append(weakref.ref(resident.model))
        return resident

    monkeypatch.setattr(arms.ArmPath, "open", opening)
    verify(adapter, shipped(qlora / "trained"), prompts, options=Options(samples=4, expected=expected))
    assert alive["shipped"] and not any(alive["shipped"])


def test_kept_logits_of_a_large_vocabulary_decide_alike(qlora, adapter, prompts, tmp_path, monkeypatch):
    """With 64 of 320 tokens and 32 drawn ones stored, the verdicts and the figures are those of all."""
    from lora_eval.verify import kept

    whole = {
        name: verify(adapter, shipped(qlora / name), prompts, options=Options(samples=12))
        for name in ("trained", "original")
    }
    for name, value in (("TOP", 64), ("TAIL", 32), ("WHOLE", 10)):
        monkeypatch.setattr(kept, name, value)
    monkeypatch.setattr(kept.keep, "__kwdefaults__", {"top": 64, "tail": 32, "whole": 10})
    for name, expected in whole.items():
        found = verify(adapter, shipped(qlora / name), prompts, options=Options(samples=12))
        assert found.passed == expected.passed
        assert expected.measured.kl_error == 0 < found.measured.kl_error < 0.1 * found.measured.mean_kl
        assert found.measured.mean_kl == pytest.approx(
            expected.measured.mean_kl, abs=2 * found.measured.kl_error
        )
        assert found.measured.top1_agreement == expected.measured.top1_agreement
        assert found.perplexity.ratio == pytest.approx(expected.perplexity.ratio)


@pytest.mark.parametrize(
    "change",
    [{"samples": 7}, {"new_tokens": 4}, {"dtype": "float32"}, {"quantize": "none"}],
)
def test_other_questions_are_other_logits(qlora, adapter, prompts, tmp_path, opened, change):
    store = tmp_path / "store"
    verify(adapter, shipped(qlora / "trained"), prompts, options=Options(samples=8, store=store))
    opened.clear()
    found = verify(
        adapter,
        shipped(qlora / "trained"),
        prompts,
        options=Options(**({"samples": 8, "store": store} | change)),
    )
    assert found.reference_logits == "computed"
    assert opened[0] == "mine"


def test_another_reference_is_another_entry(qlora, adapter, prompts, tmp_path, opened):
    options = Options(samples=8, store=tmp_path / "store")
    verify(adapter, shipped(qlora / "trained"), prompts, options=options)
    changed = shutil.copytree(qlora / "adapter", tmp_path / "adapter")
    config = json.loads((changed / "adapter_config.json").read_text())
    (changed / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 16}))
    other = ArmPath("mine", "adapter", changed, base=qlora / "base")
    assert verify(other, shipped(qlora / "trained"), prompts, options=options).reference_logits == "computed"
    assert len(list((tmp_path / "store").iterdir())) == 2


def test_every_part_of_the_question_is_in_the_key(qlora, adapter, prompts, tmp_path, monkeypatch):
    """Other prompts, another base under the same adapter, another suite or package: other logits."""
    from types import SimpleNamespace

    from lora_eval.verify import reference as module
    from lora_eval.verify.reference import Reference

    def key(arm=adapter, rows=("one", "two"), suite=None):
        settings = {"samples": 8, "new_tokens": 4, "dtype": "auto", "quantize": "auto"}
        monkeypatch.setattr(Reference, "_compute", lambda self, key: None)
        monkeypatch.setattr(module, "read_record", lambda path, kind: None)
        return Reference(arm, list(rows), suite, settings, tmp_path, lambda *_: None).folder

    other = shutil.copytree(qlora / "base", tmp_path / "base")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    elsewhere = ArmPath("mine", "adapter", adapter.path, base=other)
    found = [
        key(),
        key(rows=("one", "three")),
        key(arm=elsewhere),
        key(suite=SimpleNamespace(fingerprint="a", limit=None)),
        key(suite=SimpleNamespace(fingerprint="b", limit=None)),
        key(suite=SimpleNamespace(fingerprint="b", limit=3)),
    ]
    monkeypatch.setattr(module, "package_versions", lambda: {"torch": "1"})
    found.append(key())
    assert len(set(found)) == len(found)
    assert key() == key()


def _flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content[:1000], "were changed or cut short"),
        (lambda content: b"something else", "were changed or cut short"),
        (_flipped, "were changed or cut short"),
        (None, "cannot be read: No such file"),
    ],
    ids=["cut", "another", "one bit", "gone"],
)
def test_damaged_logits_are_named(qlora, adapter, prompts, tmp_path, damage, said):
    options = Options(samples=8, store=tmp_path / "store")
    verify(adapter, shipped(qlora / "trained"), prompts, options=options)
    [file] = (tmp_path / "store").glob("*/00000.pt")
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(RecordError, match=rf"00000\.pt: stored logits {said}.*; delete the folder"):
        verify(adapter, shipped(qlora / "trained"), prompts, options=options)


def test_nothing_half_written_stays(qlora, adapter, prompts, tmp_path, full_disk):
    full_disk(20_000)
    with pytest.raises(OutputError, match=r"cannot be stored: .*; give another folder with --store"):
        verify(
            adapter, shipped(qlora / "trained"), prompts, options=Options(samples=8, store=tmp_path / "store")
        )
    assert list((tmp_path / "store").iterdir()) == []


def test_a_reference_that_gives_no_numbers_is_no_reference(qlora, prompts, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(qlora / "trained", tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"].fill_(float("nan"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="the reference's own logits are not finite"):
        verify(shipped(folder), shipped(qlora / "trained"), prompts, options=Options(samples=4))


def test_logits_lie_beside_the_store_of_answers(monkeypatch, tmp_path):
    monkeypatch.setenv("LORA_EVAL_STORE", str(tmp_path / "mine" / "results.sqlite"))
    assert default_folder() == tmp_path / "mine" / "references"
