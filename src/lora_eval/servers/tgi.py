"""Text Generation Inference 3.3.7, its last version (frozen since 2025-12-11): of an adapter it reads r,
target_modules, fan_in_fan_out, lora_alpha and use_rslora (`adapters/lora.py`); everything else is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from lora_eval.protocols import DeployRequest
from lora_eval.records import Finding
from lora_eval.servers.base import Launch, LoraServer, Place, Plan, flags
from lora_eval.servers.base_rules import positions_findings, tokenizer_findings, untried_format
from lora_eval.servers.features import Answer, Answers
from lora_eval.servers.inputs import Adapter, Model
from lora_eval.servers.layout import adapter_folder
from lora_eval.servers.rules import partial_findings, target_findings
from lora_eval.servers.texts import Packaging, legacy_tokenizer_config

_ISSUES = "https://github.com/huggingface/text-generation-inference/issues"
# `adapter_layers` in `models/__init__.py`: what is loaded. It knows lm_head as a layer, and loads none for it
# (measured with its own shard: only a warning of unused weights).
TARGETS = (
    "q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "c_fc", "c_proj",
)  # fmt: skip
TOKENIZER = "tokenizer_config.json"


def five_field_answers(server: str) -> Answers:
    """What a server makes of adapters that reads the five fields only, as TGI and LoRAX do."""
    unread = f"{server} does not read it, and serves the adapter without it"
    ignored = Answer("ignored", unread)
    return {
        "peft-type": Answer("refused", f"{server} serves LoRA only"),
        "file-format": Answer("refused", f"{server} reads safetensors only: save it again"),
        "dora": ignored,
        "patterns": Answer(
            "ignored", f"{server} gives every layer the adapter's own rank and alpha", remedy="lora"
        ),
        "modules-to-save": Answer("ignored", f"{server} warns of unused weights, and serves without them"),
        "bias": ignored,
        "lora-bias": ignored,
        "initialisation": Answer(
            "ignored", f"{server} serves it on the unchanged base: another model", remedy="lora"
        ),
        "alora": ignored,
        "layer-replication": ignored,
        "bdlora": ignored,
        "qalora": ignored,
        "trained-tokens": ignored,
        "resized-vocabulary": ignored,
        "other-options": ignored,
    }


class TgiServer(LoraServer):
    """TGI on a GPU; adapters are loaded at start and never later."""

    name = "tgi"
    title = "TGI 3.3.7"
    version = "3.3.7"
    image = "ghcr.io/huggingface/text-generation-inference:3.3.7"
    inner_port = 80
    answers = five_field_answers("TGI")
    packaging = Packaging("TGI", has_stop_option=False, legacy=True, issue=f"{_ISSUES}/3247")
    options = ("dtype", "max_model_len", "port", "targets")
    reserved = ("tgi",)
    reserved_issue = f"{_ISSUES}/2939"

    def format_findings(self, request: DeployRequest, model: Model) -> Iterator[Finding]:
        """Quantized weights were never tried; files must be such as transformers 4 reads."""
        yield from untried_format(model, self.title)
        yield from positions_findings(model, self.title)
        yield from tokenizer_findings(model, self.title)

    def adapter_findings(self, adapter: Adapter, model: Model) -> Iterator[Finding]:
        """Layers that it has no LoRA for, and kinds of layers that only some layers adapt."""
        answer = f"{self.title} leaves other layers out with a warning; it has LoRA for"
        yield from target_findings(adapter, model, TARGETS, answer, "ignored", None)
        yield from partial_findings(adapter, model)

    def launch(self, plan: Plan, place: Place) -> Launch:
        """The image's own launcher."""
        listed = [f"{one.name}={place.files}/{adapter_folder(one)}" for one in plan.adapters]
        arguments = flags(
            model_id=place.model,
            hostname=place.host,
            port=place.port,
            # The launcher: "This option cannot be used with --quantize", which such a model sets by itself.
            dtype=None if plan.model.quantization else plan.dtype,
            max_total_tokens=plan.length,
            max_input_tokens=plan.length - 1,
            tokenizer_config_path=f"{place.files}/{TOKENIZER}",
            lora_adapters=",".join(listed) or None,
        )
        return Launch((), arguments, {"HF_HUB_OFFLINE": "1"})

    def companions(self, plan: Plan) -> dict[str, str]:
        """tokenizer_config.json with the template in it, the only place where it is looked for."""
        config = legacy_tokenizer_config(plan.model, plan.texts.template)
        return {TOKENIZER: json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n"}
