"""A measured adapter and a verified merged model, and a hub on loopback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora_eval.compare import compare_loaded, write_comparison
from lora_eval.fingerprint import fingerprint_folder
from lora_eval.records import Divergence, Lineage, LoadedRun, Step, Variant, Verification
from lora_eval.runstore import write_run
from lora_eval.schema import write_record
from tests.conftest import save_tiny_llama
from tests.publish.hub_server import Hub, serve
from tests.reports.records import make_training_log
from tests.simulated import make_runs, make_suite

TOKEN = "hf_" + "q" * 34


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on loopback that huggingface_hub talks to; nothing waits between its tries."""
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import _http

    found = Hub()
    server, address = serve(found)
    for name, value in (("HF_HUB_OFFLINE", False), ("ENDPOINT", address)):
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(hf_api.api, "endpoint", address)  # the one of huggingface_hub's plain functions
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda _: None))
    _http.close_session()
    yield found
    server.shutdown()
    server.server_close()
    _http.close_session()


@pytest.fixture(scope="module")
def measured(tiny_llama: Path, tiny_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `adapter/`, `merged/` (verified) and `runs/mine/`; records name paths of this machine."""
    folder = tmp_path_factory.mktemp("measured")
    adapter = shutil.copytree(tiny_adapter, folder / "adapter")
    (adapter / "README.md").unlink(missing_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tiny_llama / name, adapter / name)
    merged = folder / "merged"
    save_tiny_llama(merged, seed=5)
    parts = {
        "base": _variant("base", tiny_llama, None),
        "adapter": _variant("adapter", adapter, fingerprint_folder(tiny_llama)),
    }
    parts["merged"] = _variant("merged", merged, parts["adapter"].fingerprint)
    write_record(adapter / "training_log.json", make_training_log())
    _write_lineage(adapter, parts["base"], parts["adapter"])
    _write_lineage(merged, *parts.values())
    write_record(merged / "verification.json", make_verification(parts["adapter"], parts["merged"]))
    out = folder / "runs" / "mine"
    runs = {
        arm: LoadedRun(loaded.run.model_copy(update={"variant": parts[arm]}), loaded.rows)
        for arm, loaded in make_runs(200, arms=["base", "adapter"]).items()
    }
    for arm, loaded in runs.items():
        write_run(out / "runs" / arm, loaded.run, loaded.rows)
    write_comparison(compare_loaded(runs, suite=make_suite()), runs, out)
    return folder


@pytest.fixture(scope="module")
def quantized(measured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `measured` with `gptq/`, made from `merged/` and verified."""
    return _quantized("gptq", measured, tmp_path_factory.mktemp("quantized") / "own", {})


@pytest.fixture(scope="module")
def awq(measured: Path, llm_compressor: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `measured` with `awq/`, made from `merged/` and verified."""
    return _quantized("awq", measured, tmp_path_factory.mktemp("awq") / "own", {"python": llm_compressor})


def _quantized(kind: str, measured: Path, folder: Path, options: dict[str, Any]) -> Path:
    from lora_eval.export import export

    shutil.copytree(measured, folder)
    chats = folder / "chats.jsonl"
    rows = [
        [{"role": "user", "content": f"Where is {n}?"}, {"role": "assistant", "content": "Here."}]
        for n in range(40)
    ]
    chats.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    options = {"calibration": chats, "samples": 32} | options
    lineage = export(kind, base=folder / "merged", adapter=None, out=folder / kind, options=options)
    record = make_verification(lineage.variants[1], lineage.variants[-1])
    write_record(folder / kind / "verification.json", record)
    return folder


def make_verification(reference: Variant, candidate: Variant, **changes: Any) -> Verification:
    """A passed verification."""
    measured = Divergence(
        tokens=900, mean_kl=1e-6, p99_kl=1e-5, max_kl=1e-4, top1_agreement=0.999, items=40, item_flips=0
    )
    values = {
        "reference": reference,
        "candidate": candidate,
        "measured": measured,
        "floor": measured,
        "tolerance": {"mean_kl": 1e-5},
        "tolerance_source": "the floor",
        "passed": True,
    }
    return Verification(**(values | changes))


def _variant(kind: Any, folder: Path, parent: str | None) -> Variant:
    return Variant(kind=kind, path=str(folder), fingerprint=fingerprint_folder(folder), parent=parent)


def _write_lineage(folder: Path, *variants: Variant) -> None:
    quantization = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    steps = tuple(Step(tool="lora-eval train", version="0.1.0") for _ in variants[1:])
    write_record(
        folder / "lineage.json",
        Lineage(variants=variants, steps=steps, quantization=quantization, base_model=variants[0].path),
    )


@pytest.fixture
def own(measured: Path, tmp_path: Path) -> Path:
    """A copy of `measured` that a test may change (its records still name the first folder)."""
    return shutil.copytree(measured, tmp_path / "own")


@pytest.fixture
def publish_cli(measured: Path) -> Callable[..., tuple[int, str, str]]:
    """`publish_cli(*arguments)` runs the command; returns status, stdout, stderr."""
    from click.testing import CliRunner

    from lora_eval.cli.main import group
    from lora_eval.errors import LoraEvalError

    def call(*arguments: object) -> tuple[int, str, str]:
        done = CliRunner().invoke(group, ["publish", *map(str, arguments)], standalone_mode=False)
        if isinstance(done.exception, LoraEvalError):
            return done.exception.exit_status, done.stdout, str(done.exception)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.return_value or 0, done.stdout, done.stderr

    return call


GIVEN = ("--repo", "me/tuned", "--base-model", "org/base@v1", "--license", "apache-2.0", "-q")
