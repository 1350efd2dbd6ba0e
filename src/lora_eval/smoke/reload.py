"""With `--allow-load`: loading and unloading adapters while the server runs, and what its cache keeps.

The server changes: a copy of an adapter is loaded under a name of ours, and taken out again whatever happens.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from lora_eval.engines.http_client import Refused
from lora_eval.engines.http_requests import COMPLETIONS, name_prefix, read_answer
from lora_eval.models.locate import adapter_weights
from lora_eval.records import SmokeCheck
from lora_eval.smoke.answers import distance
from lora_eval.smoke.local import LocalArm
from lora_eval.smoke.served import Outcome, Served, bodies_of, outcome

LOAD, UNLOAD = "load_lora_adapter", "unload_lora_adapter"
_NO_ROUTE = (
    "the server does not load adapters while it runs ({error}); vLLM does with "
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
)


def _tell(served: Served, what: str, **body: str) -> None:
    """Ask for a load or an unload at vLLM's place, else at SGLang's.

    Raises:
        Refused: the server has neither, or does not do it.
    """
    try:
        served.client.tell(f"/v1/{what}", body)
    except Refused as error:
        if not _no_route(error):
            raise
        served.client.tell(f"/{what}", body)


def _no_route(error: Refused) -> bool:
    return error.status in (404, 405) and "adapter" not in str(error).lower()


@contextlib.contextmanager
def loaded_copies(served: Served, adapter: Path, count: int, prefix: str = "") -> Iterator[list[str]]:
    """Yield what requests call `count` copies of an adapter that were loaded (`prefix` and their names); they
    are unloaded afterwards. The server must see this machine's temporary folder.

    Raises:
        Refused: the server does not load one.
    """
    names: list[str] = []
    with tempfile.TemporaryDirectory(prefix="lora-eval-smoke-") as folder:
        try:
            for number in range(count):
                copy = shutil.copytree(adapter, Path(folder) / f"copy{number}")
                name = f"lora-eval-smoke-{uuid.uuid4().hex[:8]}"
                _tell(served, LOAD, lora_name=name, lora_path=str(copy))
                names.append(name)
            yield [prefix + name for name in names]
        finally:
            for name in names:
                with contextlib.suppress(Refused):
                    _tell(served, UNLOAD, lora_name=name)


def check_reload(served: Served, arm: LocalArm) -> list[SmokeCheck]:
    """Load a copy of the adapter, ask it, put other weights (B = 0, which is the base) into the same folder,
    unload and load it, ask again, unload it, and ask once more.
    """
    name, checks = f"lora-eval-smoke-{uuid.uuid4().hex[:8]}", []
    with tempfile.TemporaryDirectory(prefix="lora-eval-smoke-") as folder:
        copy = shutil.copytree(arm.path, Path(folder) / "adapter")

        def step(what: str, check: Callable[[], Outcome]) -> bool:
            checks.append(outcome(what, arm.name, check))
            return checks[-1].passed is not False

        try:
            if step("hot-load", lambda: _load(served, arm, name, copy)):
                step("reload-cache", lambda: _reload(served, arm, name, copy))
                step("unload", lambda: _unload(served, arm, name))
        finally:
            with contextlib.suppress(Refused):
                _tell(served, UNLOAD, lora_name=name)
    return checks


def _asked(served: Served, arm: LocalArm, name: str) -> str:
    """What requests call an adapter that was loaded as `name`."""
    return name_prefix(served.models or {}, arm.name) + name


def _load(served: Served, arm: LocalArm, name: str, folder: Path) -> Outcome:
    try:
        _tell(served, LOAD, lora_name=name, lora_path=str(folder))
    except Refused as error:
        if _no_route(error):
            return False, _NO_ROUTE.format(error=error)
        return False, f"a copy in {folder} is not loaded: {error}"
    told = [
        read_answer(served.client.post(COMPLETIONS, b))
        for b in bodies_of(_asked(served, arm, name), arm.probe.generations)
    ]
    found = distance(told, arm.expected, arm.tolerance, arm.tokenizer)
    if found.parted:
        return False, f"loaded while the server runs, it answers otherwise: {found.parted[0]}"
    return (
        True,
        f"{found.equal} of {len(told)} answers of a copy loaded while the server runs are the local ones",
    )


def _reload(served: Served, arm: LocalArm, name: str, folder: Path) -> Outcome:
    base = arm.others[arm.base or arm.name]
    apart = distance(served.answers(arm.name, arm.probe.generations), base, arm.tolerance, arm.tokenizer).away
    if apart <= arm.tolerance.mean:
        return None, f"cannot be told: the adapter's answers are only {apart:.2g} nats from the base's"
    if adapter_weights(folder).suffix != ".safetensors":
        return None, f"{arm.path}: weights in .bin are not written again; save the adapter as safetensors"
    _tell(served, UNLOAD, lora_name=name)
    _zero(folder)
    _tell(served, LOAD, lora_name=name, lora_path=str(folder))
    told = [
        read_answer(served.client.post(COMPLETIONS, b))
        for b in bodies_of(_asked(served, arm, name), arm.probe.generations)
    ]
    found = distance(told, base, arm.tolerance, arm.tokenizer)
    longest = max(len(r.input_ids) for r in arm.probe.generations)
    if found.parted or found.away > arm.tolerance.mean:
        why = found.parted[0] if found.parted else f"{found.away:.2g} nats in the mean"
        return False, (
            f"other weights from the same path, and prompts of {longest} tokens that were asked before: the "
            f"answers are not those of the new weights ({why}); give every version of an adapter a folder of "
            "its own (lora-eval deploy does), or send cache_salt"
        )
    return True, f"other weights from the same path answer at once, on prompts of {longest} tokens too"


def _unload(served: Served, arm: LocalArm, name: str) -> Outcome:
    _tell(served, UNLOAD, lora_name=name)
    try:
        served.client.post(COMPLETIONS, bodies_of(_asked(served, arm, name), arm.probe.generations[:1])[0])
    except Refused as error:
        return True, f"an unloaded adapter is refused ({error.status})"
    return False, "an unloaded adapter is still answered for"


def _zero(folder: Path) -> None:
    """Set every lora_B of a saved adapter to 0, as another training would put other weights there."""
    from safetensors.torch import load_file, save_file

    path = adapter_weights(folder)
    tensors = load_file(path)
    changed = {
        key: value * 0 if "lora_B" in key or "embedding_B" in key else value for key, value in tensors.items()
    }
    save_file(changed, path, {"format": "pt"})
