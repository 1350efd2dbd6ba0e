"""Models in memory: one copy of the base's weights, shared by every adapter; other folders on their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_eval.errors import ModelError
from lora_eval.fingerprint import fingerprint_data
from lora_eval.models.adapters import check_adapter, needs_own_base, resized_vocabulary
from lora_eval.models.compressed import compressed_note, dequantizing_config, make_plain
from lora_eval.models.dense import dequantize_nf4, fits_dense
from lora_eval.models.locate import read_adapter_config, read_config, resolve_model
from lora_eval.models.quiet import no_bars, without_gptqmodel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IDENTITY = "__identity__"
# What `--quantize nf4` stands for, for adapters without a lineage: the QLoRA paper's settings
# (arXiv 2305.14314, section 3: NF4, double quantization, bf16 compute).
NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "bfloat16",
}
_DTYPES = ("auto", "float32", "bfloat16", "float16")


class Resident:
    """A model in memory and the arms it can answer for.

    `model` is the transformers model (adapters sit inside its linear layers), `dtype` the name of its
    floating-point type, `notes` what a report must say about how it was opened.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        arms: Mapping[str, str | None],
        *,
        peft: Any = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.notes = notes
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.device = model.device
        self._peft = peft
        self._arms = dict(arms)

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms, base first; the identity control is not among them."""
        return tuple(name for name in self._arms if name != IDENTITY)

    @property
    def every_arm(self) -> tuple[str, ...]:
        """Names of the arms with the identity control, where there is one."""
        return tuple(self._arms)

    @property
    def device_name(self) -> str:
        """The kind of device that computes: `cpu`, or the GPU's name."""
        if self.device.type != "cuda":
            return str(self.device.type)
        import torch

        return str(torch.cuda.get_device_name(self.device))

    @property
    def generation_digest(self) -> str:
        """Digest of the generation settings that the model brings along."""
        settings = self.model.generation_config.to_dict()
        return fingerprint_data({k: v for k, v in settings.items() if k != "transformers_version"})

    @contextlib.contextmanager
    def activate(self, arm: str) -> Iterator[PreTrainedModel]:
        """Yield the model with that arm live: the base with every adapter off, or one adapter on."""
        if arm not in self._arms:
            raise KeyError(f"no arm '{arm}'; there are {', '.join(self._arms)}")
        adapter = self._arms[arm]
        if self._peft is None:
            yield self.model
        elif adapter is None:
            with self._peft.disable_adapter():
                yield self.model
        else:
            self._peft.set_adapter(adapter, inference_mode=True)
            yield self.model


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the folder's tokenizer (ModelError where it has none)."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(
            f"{folder}: the tokenizer cannot be loaded ({_first_line(error)}); "
            "expected tokenizer.json and tokenizer_config.json beside the weights"
        ) from error


def load_base(
    folder: Path,
    *,
    dtype: str = "auto",
    quantization: dict[str, Any] | None = None,
    attn_implementation: str | None = None,
    device: str = "auto",
) -> PreTrainedModel:
    """Return the folder's model in eval mode.

    `quantization` holds arguments of `BitsAndBytesConfig` (None or empty: weights as stored); `dtype` is
    "auto" (the config's), "float32", "bfloat16" or "float16"; `device` "auto" is the GPU of this process
    (the first, unless a launcher started several), else the CPU.

    Raises:
        ModelError: files are missing, or transformers cannot load them.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    resolve_model(str(folder))
    if dtype not in _DTYPES:
        raise ModelError(f"dtype '{dtype}' is unknown; expected one of {', '.join(_DTYPES)}")
    here = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    target = here if device == "auto" else device
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "device_map": {"": target}}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    try:
        if quantization:
            options["quantization_config"] = BitsAndBytesConfig(**quantization)
        elif (config := dequantizing_config(folder)) is not None:
            options["config"] = config
        with no_bars():
            model = AutoModelForCausalLM.from_pretrained(folder, **options)
    except (OSError, ValueError, TypeError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(f"{folder}: transformers cannot load this model: {_first_line(error)}") from error
    if "config" in options:
        make_plain(model)
    keep_quantized_weights(model)
    return model.eval()


def keep_quantized_weights(model: Any) -> None:
    """From now on no forward pass changes the model's NF4 weights.

    On CPUs with AVX512-BF16 the first forward in eval mode repacks them in place: scales are rounded for
    good, later gradients are cut, and dequantizing gives garbage (bitsandbytes 0.50.2, `nn/modules.py`).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def open_resident(
    base: Path,
    adapters: Mapping[str, Path] | None = None,
    *,
    base_name: str = "base",
    dtype: str = "auto",
    quantization: dict[str, Any] | None = None,
    identity_control: bool = False,
    device: str = "auto",
) -> Resident:
    """Return one copy of the base with all adapters attached; nothing is merged and nothing resized.

    `identity_control` adds an adapter that does nothing (B = 0) as the arm `IDENTITY`.

    Raises:
        ModelError: the base or an adapter cannot be used (see `check_adapter`), or an adapter changes the
            base's own weights and so cannot share them (`open_adapter`).
    """
    adapters = dict(adapters or {})
    for adapter in adapters.values():
        check_adapter(adapter, base)
        if needs_own_base(adapter, base):
            raise ModelError(
                f"{adapter}: changes the base's own weights, so it cannot share them with other arms; "
                "`lora-eval compare` measures it on a copy of its own"
            )
    arms: dict[str, str | None] = {base_name: None}
    # Not the arm's name: PEFT's names may hold no dot.
    arms |= {name: f"arm{number}" for number, name in enumerate(adapters)}
    if identity_control:
        arms[IDENTITY] = "identity"
    named = {str(arms[name]): folder for name, folder in adapters.items()}
    return _open(base, arms, named, dtype=dtype, quantization=quantization, device=device)


def open_adapter(
    base: Path,
    adapter: Path,
    *,
    name: str,
    dtype: str = "auto",
    quantization: dict[str, Any] | None = None,
    device: str = "auto",
) -> Resident:
    """Return a copy of the base with an adapter that changes its weights (`needs_own_base`), as the only arm.

    Raises:
        ModelError: the base or the adapter cannot be used (see `check_adapter`).
    """
    check_adapter(adapter, base)
    resized = resized_vocabulary(adapter, base)
    initial = read_adapter_config(adapter).get("init_lora_weights")
    why = f"a vocabulary of {resized[0]} rows" if resized else f"init_lora_weights '{initial}'"
    note = f"{why} changes the base's own weights: measured on a copy of its own, apart from the base arm's"
    return _open(
        base, {name: "arm0"}, {"arm0": adapter}, dtype=dtype, quantization=quantization, device=device,
        resized=resized, notes=(note,),
    )  # fmt: skip


def _open(
    base: Path,
    arms: Mapping[str, str | None],
    adapters: Mapping[str, Path],
    *,
    dtype: str,
    quantization: dict[str, Any] | None,
    device: str,
    resized: tuple[int, frozenset[str]] | None = None,
    notes: tuple[str, ...] = (),
) -> Resident:
    """Load the base and attach `adapters` under PEFT's names, and the identity where an arm has it. A base
    whose vocabulary was resized (see `resized_vocabulary`) gets it from its adapter.
    """
    tokenizer = load_tokenizer(base)
    model = load_base(base, dtype=dtype, quantization=quantization, device=device)
    if resized:
        (adapter,) = adapters.values()
        tokenizer = _resize(model, adapter, *resized) or tokenizer
    if quantization:
        notes += (f"base quantized with bitsandbytes: {_shown(quantization)}",)
    # PEFT asks gptqmodel whether a layer is one of its own; for other bases that import is 2 s for nothing.
    is_gptq = getattr(model.config, "quantization_config", None) and not quantization
    with contextlib.nullcontext() if is_gptq else without_gptqmodel():
        peft = _attach_identity(model) if IDENTITY in arms else None
        for name, folder in adapters.items():
            peft = _attach(peft or model, folder, name)
    if peft is not None:
        peft.eval()
        keep_quantized_weights(peft)
    if quantization and fits_dense(model):
        # Last: PEFT chooses its layers by the class of the base's.
        count = dequantize_nf4(model)
        notes += (
            f"{count} NF4 layers evaluated with their dequantized weights, the values they multiply by",
        )
    return Resident(model, tokenizer, arms, peft=peft, notes=notes)


def open_folder(folder: Path, *, name: str, dtype: str = "auto", device: str = "auto") -> Resident:
    """Return a merged, GPTQ or AWQ folder as a model of its own, with one arm."""
    model = load_base(folder, dtype=dtype, device=device)
    notes: tuple[str, ...] = ()
    if read_config(folder, "config.json").get("quantization_config"):
        from lora_eval.models.dense import dequantize_for_cpu

        notes = dequantize_for_cpu(model) + compressed_note(folder, model)
    return Resident(model, load_tokenizer(folder), {name: None}, notes=notes)


def _resize(model: Any, adapter: Path, rows: int, held: frozenset[str]) -> PreTrainedTokenizerBase | None:
    """Give the model the rows that the adapter brings for the modules in `held`; returns the adapter's
    tokenizer, if any.

    Raises:
        ModelError: the adapter brings them for one end of the model only, and the other end has its own.
    """
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    named = {id(end.weight): path for path, end in model.named_modules() if any(end is each for each in ends)}
    missing = sorted(path for path in named.values() if path not in held)
    if missing and len(named) > 1:
        raise ModelError(
            f"{adapter}: brings {rows} rows for {', '.join(sorted(held))} and none for {missing[0]}, so what "
            "training gave that one is lost; save it again with save_embedding_layers=True"
        )
    model.resize_token_embeddings(rows, mean_resizing=False)
    return load_tokenizer(adapter) if (adapter / "tokenizer_config.json").is_file() else None


def _attach(target: Any, adapter: Path, name: str) -> Any:
    """Attach a saved adapter to a model, or to a PEFT model that has others; returns the PEFT model."""
    from peft import PeftModel

    try:
        if isinstance(target, PeftModel):
            target.load_adapter(adapter, name)
            return target
        return PeftModel.from_pretrained(target, adapter, adapter_name=name)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ModelError(f"{adapter}: PEFT cannot load this adapter: {_first_line(error)}") from error


def _attach_identity(model: Any) -> Any:
    """Attach an adapter with a random A and a zero B on all linear layers: x + B(A(x)) is exactly x."""
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM")
    with torch.random.fork_rng(enabled=True):
        return get_peft_model(model, config, adapter_name="identity")


def _shown(quantization: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(quantization.items()))


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
