"""LoRAX, dormant since 2025-04: reads an adapter as TGI does (`adapters/lora.py`, from which TGI's comes),
when a request names it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from lora_eval.protocols import DeployRequest
from lora_eval.records import Finding
from lora_eval.servers.base import Launch, LoraServer, Place, Plan, flags
from lora_eval.servers.base_rules import positions_findings, tokenizer_findings, untried_format
from lora_eval.servers.inputs import Adapter, Model
from lora_eval.servers.rules import partial_findings
from lora_eval.servers.texts import Packaging, legacy_tokenizer_config
from lora_eval.servers.tgi import TOKENIZER, five_field_answers

_QUANTIZED = ("gptq", "awq")  # values of --quantize that models of this form need
_ISSUES = "https://github.com/predibase/lorax/issues"


class LoraxServer(LoraServer):
    """LoRAX on a GPU; adapters are loaded by request, from the deployment's folder."""

    name = "lorax"
    title = "LoRAX"
    version = "latest"
    image = "ghcr.io/predibase/lorax:latest"
    inner_port = 80
    answers = five_field_answers("LoRAX")
    packaging = Packaging("LoRAX", has_stop_option=False, legacy=True)
    options = ("dtype", "max_model_len", "port", "targets")

    def format_findings(self, request: DeployRequest, model: Model) -> Iterator[Finding]:
        """Quantized weights were never tried; files must be such as transformers 4 reads."""
        yield from untried_format(model, self.title)
        yield from positions_findings(model, self.title)
        yield from tokenizer_findings(model, self.title)

    def adapter_findings(self, adapter: Adapter, model: Model) -> Iterator[Finding]:
        """Kinds of layers that only some layers adapt."""
        yield from partial_findings(adapter, model)

    def deployment_findings(
        self, request: DeployRequest, model: Model, adapters: Sequence[Adapter]
    ) -> Iterator[Finding]:
        """What is known to be wrong with it, and that nobody mends."""
        if not adapters:
            return
        reason = "with stream=true the adapter is ignored and the base answers: ask without streaming"
        issue = f"{_ISSUES}/777"
        yield Finding(arm=model.name, rule="streaming", severity="warning", reason=reason, issue=issue)
        reason = (
            "the project is dormant, and its image was never tried with adapters that today's PEFT writes: "
            "ask the running server whether each adapter is live"
        )
        yield Finding(arm=model.name, rule="untried", severity="warning", reason=reason)

    def launch(self, plan: Plan, place: Place) -> Launch:
        """The image's own launcher; it is told of no adapter."""
        method = plan.model.quantization.get("quant_method")
        arguments = flags(
            model_id=place.model,
            hostname=place.host,
            port=place.port,
            # The launcher: dtype "cannot be used with --quantize".
            dtype=None if method else plan.dtype,
            quantize=method if method in _QUANTIZED else None,
            max_total_tokens=plan.length,
            max_input_length=plan.length - 1,
            tokenizer_config_path=f"{place.files}/{TOKENIZER}",
        )
        return Launch((), arguments, {"HF_HUB_OFFLINE": "1"})

    def companions(self, plan: Plan) -> dict[str, str]:
        """tokenizer_config.json with the template in it."""
        config = legacy_tokenizer_config(plan.model, plan.texts.template)
        return {TOKENIZER: json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n"}
