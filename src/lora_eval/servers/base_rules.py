"""Rules about the model itself: the form of its weights, its dtype, its context length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lora_eval.models.legacy import is_new_tokenizer
from lora_eval.models.locate import read_config
from lora_eval.records import Finding
from lora_eval.servers.commands import requantize_fix
from lora_eval.servers.inputs import Model

_DEFAULT_THETA = 10_000.0
FormatRule = Callable[[Model], Iterator[Finding]]
_CODES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def stored_dtype(model: Model) -> str:
    """Return the dtype of the model's weights: as config.json says, else that of most of its tensors."""
    said = model.value("dtype", "torch_dtype")
    if said:
        return str(said)
    codes = [tensor.dtype for tensor in model.tensors.values() if tensor.dtype in _CODES]
    return _CODES[max(sorted(set(codes)), key=codes.count)] if codes else "bfloat16"


def dtype_findings(model: Model, chosen: str, served: Sequence[str], server: str) -> Iterator[Finding]:
    """Another precision than the stored one is another model than the one measured, if a near one."""
    stored = stored_dtype(model)
    if chosen not in served:
        reason = f"{server} serves {', '.join(served)}, and not {chosen}; give one of them as --dtype"
        yield Finding(arm=model.name, rule="dtype", severity="refused", reason=reason)
    elif chosen != stored:
        reason = (
            f"it is stored in {stored} and will be served in {chosen}: figures measured in {stored} are not "
            f"those of this server; measure in {chosen} (`lora-eval compare --dtype {chosen}`)"
        )
        yield Finding(arm=model.name, rule="dtype", severity="warning", reason=reason)


def context_length(model: Model) -> int | None:
    """Return how many positions the model has, or None where its configuration does not say."""
    value = model.value("max_position_embeddings", "n_positions", "max_sequence_length")
    return int(value) if value is not None else None


def context_findings(model: Model, asked: int | None) -> Iterator[Finding]:
    """No server goes beyond the positions that the model has, unless it is told to (and then it is wrong)."""
    own = context_length(model)
    if own is None and asked is None:
        reason = "config.json does not say how many positions it has; give --max-model-len"
        yield Finding(arm=model.name, rule="context-length", severity="refused", reason=reason)
    if own is not None and asked is not None and asked > own:
        reason = f"--max-model-len {asked} is more than the {own} positions it has"
        yield Finding(arm=model.name, rule="context-length", severity="refused", reason=reason)


def parallel_findings(model: Model, gpus: int) -> Iterator[Finding]:
    """Attention is shared out by heads: they must come out even (vLLM's and SGLang's layers assert it)."""
    heads = model.value("num_attention_heads", "n_head")
    if heads is not None and int(heads) % gpus:
        reason = f"its {heads} attention heads cannot be shared out to --tensor-parallel {gpus} GPUs"
        yield Finding(arm=model.name, rule="tensor-parallel", severity="refused", reason=reason)


def head_width(model: Model) -> int | None:
    """Length of a head's keys: config.json's, else hidden size over heads; None where neither is there."""
    own = model.value("head_dim")
    if own is not None:
        return int(own)
    hidden, heads = model.value("hidden_size", "n_embd"), model.value("num_attention_heads", "n_head")
    return int(hidden) // int(heads) if hidden and heads else None


def vllm_format(model: Model, device: str) -> Iterator[Finding]:
    """What vLLM 0.32.0 says to quantized weights: measured with its CPU build, for GPUs read in its source
    (`gptq_utils.normalize_and_validate_gptq_desc_act` and `TYPE_MAP` refuse on every device).
    """
    quantization = model.quantization
    method = quantization.get("quant_method")
    if method == "gptq":
        yield from _gptq(model, quantization, device)
    elif method == "bitsandbytes" and device == "cpu":
        reason = (
            "vLLM 0.32 refuses bitsandbytes checkpoints on a CPU: serve the weights that they stand for "
            "(`lora-eval export base --dequantized`)"
        )
        yield _format(model, "refused", reason)
    elif method == "compressed-tensors":
        yield from _compressed(model, quantization, device)
    elif method is not None:
        yield _format(model, "warning", f"{method} weights were never tried with vLLM 0.32 here")
    if any(path.suffix == ".gguf" for path in model.folder.iterdir()) and device == "cpu":
        yield _format(model, "warning", "vLLM 0.32 refuses GGUF files on a CPU; the safetensors are served")


def tokenizer_findings(model: Model, server: str) -> Iterator[Finding]:
    """The server opens the model folder's own tokenizer, and stops at one that transformers 5 has saved
    (measured with the shard of TGI 3.3.7; what `--tokenizer-config-path` names is read by its router alone).
    """
    path = model.folder / "tokenizer_config.json"
    if path.is_file() and is_new_tokenizer(read_config(model.folder, path.name)):
        reason = (
            f"tokenizer_config.json is written as transformers 5 does, and {server} stops at it: "
            "tokenizer_class must be PreTrainedTokenizerFast, and additional_special_tokens hold the list of "
            "extra_special_tokens; `lora-eval export merge --server tgi` writes it so"
        )
        yield Finding(arm=model.name, rule="tokenizer", severity="refused", reason=reason)


def positions_findings(model: Model, server: str) -> Iterator[Finding]:
    """Positions must be told as transformers 4 reads them: rope_theta and rope_scaling. Of transformers 5's
    rope_parameters it reads nothing, and its default of 10,000 counts without a word (measured with the shard
    of TGI 3.3.7: 1.2 nats a token for a model of 500,000, 0.02 with rope_theta beside).
    """
    rotation = model.value("rope_parameters")
    if not rotation or model.value("rope_theta") is not None:
        return
    plain = rotation.get("rope_type", "default") == "default" and "rope_theta" in rotation
    if plain and float(rotation["rope_theta"]) == _DEFAULT_THETA:
        return
    reason = (
        f"config.json says where tokens stand as transformers 5 does (rope_parameters); {server} reads "
        "rope_theta and rope_scaling only, and serves it with rope_theta 10,000: write these two beside "
        "rope_parameters"
    )
    yield Finding(arm=model.name, rule="positions", severity="ignored", reason=reason)


def untried_format(model: Model, server: str) -> Iterator[Finding]:
    """Quantized weights on a server that none were tried on."""
    method = model.quantization.get("quant_method")
    if method is not None:
        reason = f"{method} weights were never tried with {server} here: ask the running server with smoke"
        yield _format(model, "warning", reason)


def _gptq(model: Model, quantization: dict[str, Any], device: str) -> Iterator[Finding]:
    fix = requantize_fix(model, "gptq")
    if quantization.get("desc_act") and quantization.get("group_size") != -1:
        yield _format(model, "refused", "vLLM 0.32 refuses GPTQ models with desc_act (activation order)", fix)
    if quantization.get("sym") is False:
        yield _format(model, "refused", "vLLM 0.32 refuses asymmetric GPTQ models", fix)
    if quantization.get("bits") == 8 and device == "cpu":
        yield _format(model, "refused", "vLLM 0.32 does not serve 8-bit GPTQ models on a CPU", fix)


def _compressed(model: Model, quantization: dict[str, Any], device: str) -> Iterator[Finding]:
    groups = (quantization.get("config_groups") or {}).values()
    weights = [group.get("weights") or {} for group in groups]
    wide = any(weight.get("num_bits") == 8 and weight.get("type") == "int" for weight in weights)
    if device == "cpu" and wide:
        fix = requantize_fix(model, "awq")
        yield _format(model, "refused", "vLLM 0.32 does not serve 8-bit AWQ models on a CPU", fix)
    if any(weight.get("actorder") in ("group", True) for weight in weights):
        reason = "vLLM 0.32 refuses activation order by group in compressed-tensors models"
        yield _format(model, "refused", reason)


def _format(model: Model, severity: Any, reason: str, fix: str | None = None) -> Finding:
    return Finding(arm=model.name, rule="quantized-format", severity=severity, reason=reason, fix=fix)
