"""SGLang 0.5.23: what it makes of adapters (read in `srt/lora/lora.py`, `lora_config.py`, `lora_manager.py`
and `srt/utils/common.py` of that release; no server was run), and how it is started.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lora_eval.protocols import DeployRequest
from lora_eval.records import Finding
from lora_eval.servers.base import Launch, LoraServer, Place, Plan, flags
from lora_eval.servers.base_rules import untried_format
from lora_eval.servers.commands import merge_fix
from lora_eval.servers.features import Answer
from lora_eval.servers.inputs import Adapter, Model, layer_number
from lora_eval.servers.layout import adapter_folder
from lora_eval.servers.rules import target_findings
from lora_eval.servers.texts import Packaging

_PULLS = "https://github.com/sgl-project/sglang/pull"
_UNREAD = "SGLang 0.5.23 does not read it, and serves the adapter without it"
# SUPPORTED_LORA_TARGET_MODULES, the choices of --lora-target-modules.
TARGETS = (
    "q_proj", "k_proj", "v_proj", "o_proj", "q_a_proj", "kv_a_proj_with_mqa", "q_b_proj", "kv_b_proj", "wq_b",
    "wk", "weights_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj", "embed_tokens",
    "lm_head", "qkvr", "wo_ud",
)  # fmt: skip

# What it computes as one, and which of these must have LoRA where any has (measured on a CPU with 0.5.23).
FUSED = (
    (frozenset({"q_proj", "k_proj", "v_proj"}), frozenset({"q_proj", "v_proj"})),
    (frozenset({"gate_proj", "up_proj"}), frozenset({"gate_proj"})),
)

ANSWERS = {
    "peft-type": Answer("refused", "SGLang serves LoRA only"),
    "file-format": Answer("refused", "its shapes cannot be checked; save it as safetensors"),
    "dora": Answer("refused", "SGLang does not load DoRA"),
    "rslora": Answer("ignored", "SGLang 0.5.23 scales by alpha / r, not by alpha / sqrt(r)", remedy="lora"),
    "patterns": Answer(
        "ignored", "SGLang 0.5.23 gives every layer the adapter's own rank and alpha", remedy="lora"
    ),
    "modules-to-save": Answer("ignored", _UNREAD),
    "bias": Answer("ignored", _UNREAD),
    "lora-bias": Answer("ignored", _UNREAD),
    "initialisation": Answer(
        "ignored", "SGLang 0.5.23 serves it on the unchanged base: another model", remedy="lora"
    ),
    "alora": Answer("ignored", _UNREAD),
    "layer-replication": Answer("ignored", _UNREAD),
    "bdlora": Answer("ignored", _UNREAD),
    "qalora": Answer("ignored", _UNREAD),
    "trained-tokens": Answer("ignored", _UNREAD),
    "resized-vocabulary": Answer("ignored", _UNREAD),
    "target-pattern": Answer(
        "refused", "SGLang takes a list of names, or 'all-linear', and no other pattern", remedy="lora"
    ),
    "lm-head": Answer("info", "served since that pull request", f"{_PULLS}/14177"),
    "other-options": Answer("ignored", _UNREAD),
}


class SglangServer(LoraServer):
    """SGLang on a GPU; base and adapters may share one batch."""

    name = "sglang"
    title = "SGLang 0.5.23"
    version = "0.5.23"
    image = "lmsysorg/sglang:v0.5.23"
    inner_port = 30000
    answers = ANSWERS
    packaging = Packaging("SGLang", has_stop_option=False)
    dtypes = ("bfloat16", "float16", "float32")
    options = (*LoraServer.options, "tensor_parallel", "replicas")
    asked_as = "{base}:{adapter}"
    runs_in_python = True

    def slots(self, request: DeployRequest, adapters: Sequence[Adapter]) -> int:
        """One more than there are adapters: its base takes a place in a batch too."""
        asked = request.options.get("max_loras")
        return int(asked) if asked else len(adapters) + 1

    def format_findings(self, request: DeployRequest, model: Model) -> Iterator[Finding]:
        """Quantized weights were never tried."""
        return untried_format(model, self.title)

    def adapter_findings(self, adapter: Adapter, model: Model) -> Iterator[Finding]:
        """Layers beside the choices of --lora-target-modules, and fused ones of which some are missing."""
        answer = f"{self.title} has LoRA for"
        yield from target_findings(adapter, model, TARGETS, answer, "refused", None)
        yield from fused_findings(adapter, model)

    def launch(self, plan: Plan, place: Place) -> Launch:
        """`python3 -m sglang.launch_server`, with rank and modules said: later adapters need them, and with
        strict loading, which refuses keys that do not match.
        """
        arguments = flags(
            model_path=place.model,
            served_model_name=plan.model.name,
            host=place.host,
            port=place.port,
            dtype=plan.dtype,
            context_length=plan.length,
            tp_size=plan.gpus if plan.gpus > 1 else None,
            chat_template=f"{place.files}/chat_template.jinja" if plan.texts.changed else None,
        )
        if plan.adapters:
            arguments += ("--enable-lora", "--lora-strict-loading")
            arguments += flags(
                max_loras_per_batch=plan.slots,
                max_lora_rank=plan.rank,
                lora_target_modules=plan.target_modules,
                lora_paths=[f"{one.name}={place.files}/{adapter_folder(one)}" for one in plan.adapters],
            )
        return Launch(("python3", "-m", "sglang.launch_server"), arguments, {"HF_HUB_OFFLINE": "1"})

    def router(self, plan: Plan, workers: Sequence[str], host: str, port: int) -> Launch:
        """`python3 -m sglang_router.launch_router` (sglang-router 0.3.2). By default it sends a prompt to the
        copy that has its beginning in its cache, and to another one where that has too much to do.
        """
        arguments = flags(host=host, port=port, policy="cache_aware", worker_urls=list(workers) or None)
        return Launch(("python3", "-m", "sglang_router.launch_router"), arguments)

    def companions(self, plan: Plan) -> dict[str, str]:
        """The adapters' template."""
        text = plan.texts.template
        return {"chat_template.jinja": text} if plan.texts.changed and text is not None else {}


def fused_findings(adapter: Adapter, model: Model) -> Iterator[Finding]:
    """Several layers that are computed as one need LoRA on certain ones of them."""
    own: dict[int, set[str]] = {}
    for tensor in adapter.lora:
        number = layer_number(tensor.module)
        if number is not None:
            own.setdefault(number, set()).add(tensor.module.rpartition(".")[2])
    for fused, needed in FUSED:
        layers = sorted(number for number, names in own.items() if names & fused and not needed <= names)
        if not layers:
            continue
        there, missing = (sorted(each) for each in (own[layers[0]] & fused, needed - own[layers[0]]))
        reason = (
            f"layer {layers[0]} has LoRA on {', '.join(there)} and none on {', '.join(missing)}: SGLang "
            "0.5.23 computes these as one, and refuses the adapter or ends at its first request"
        )
        fix = merge_fix(adapter, model)
        yield Finding(arm=adapter.name, rule="fused-layers", severity="refused", reason=reason, fix=fix)
