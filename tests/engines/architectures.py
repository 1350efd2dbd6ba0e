"""Tiny random models of many architectures, by name: (model type, configuration)."""

from __future__ import annotations

from typing import Any

Case = tuple[str, dict[str, Any]]
WINDOW = 8
_COMMON = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
_HEADS: dict[str, Any] = {"head_dim": 16}
_EXPERTS: dict[str, Any] = {
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
_LATENT: dict[str, Any] = {
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
    "head_dim": 8,
}
_WINDOW: dict[str, Any] = {"sliding_window": WINDOW}
_GPT2: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 96}
_MIXED: dict[str, Any] = {**_WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_GEMMA: dict[str, Any] = {**_HEADS, **_MIXED, "query_pre_attn_scalar": 16}
_LINEAR: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}

# Through the engine's attention.
WHOLE: dict[str, Case] = {
    "llama": ("llama", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", _HEADS),
    "gemma": ("gemma", _HEADS),
    "phi": ("phi", {}),
    "phi3": ("phi3", {"sliding_window": None}),
    "gpt2": ("gpt2", _GPT2),
    "gpt_neox": ("gpt_neox", {}),
    "opt": ("opt", {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "stablelm": ("stablelm", {}),
    "cohere": ("cohere", {}),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "starcoder2": ("starcoder2", {}),
    "granite": ("granite", {}),
    "smollm3": ("smollm3", {"layer_types": ["full_attention"] * 4, "num_hidden_layers": 4}),
    "glm4": ("glm4", _HEADS),
    "nemotron": ("nemotron", {}),
    "mixtral": ("mixtral", _EXPERTS),
    "qwen2_moe": ("qwen2_moe", _EXPERTS),
    "qwen3_moe": ("qwen3_moe", _EXPERTS | _HEADS),
    "olmoe": ("olmoe", _EXPERTS),
    "granitemoe": ("granitemoe", _EXPERTS),
    "glm4_moe": ("glm4_moe", _EXPERTS | _HEADS),
    "gpt_bigcode": ("gpt_bigcode", _GPT2),
    "biogpt": ("biogpt", {}),
    "persimmon": ("persimmon", {}),
    "hunyuan": ("hunyuan_v1_dense", _HEADS),
    "ernie4_5": ("ernie4_5", _HEADS),
    "seed_oss": ("seed_oss", _HEADS),
    "arcee": ("arcee", {}),
    "apertus": ("apertus", {}),
}
WINDOWS: dict[str, Case] = {
    "mistral-window": ("mistral", _WINDOW),
    "phi3-window": ("phi3", _WINDOW),
    "starcoder2-window": ("starcoder2", _WINDOW),
    "qwen2-window": (
        "qwen2",
        {
            **_WINDOW,
            "use_sliding_window": True,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "gemma3": ("gemma3_text", _GEMMA),
    "cohere2": ("cohere2", _HEADS | _MIXED),
    "olmo3": ("olmo3", _HEADS | _MIXED),
    "exaone4": ("exaone4", _MIXED),
}
# Through their own attention: another interface, more than keys and values, or other keys in the cache.
MASKED: dict[str, Case] = {
    "falcon": ("falcon", {"alibi": False}),
    "falcon-groups": ("falcon", {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "gptj": ("gptj", _GPT2 | {"rotary_dim": 8}),
    "codegen": ("codegen", _GPT2 | {"rotary_dim": 8, "n_ctx": 256}),
    "deepseek_v2": ("deepseek_v2", _LATENT | _EXPERTS),
    "deepseek_v3": ("deepseek_v3", _LATENT | _EXPERTS),
    "minicpm3": ("minicpm3", _LATENT),
    "jetmoe": ("jetmoe", _EXPERTS | {"kv_channels": 16}),
    "gemma2": ("gemma2", _GEMMA | {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 30.0}),
    "gpt_oss": ("gpt_oss", _HEADS | _MIXED | _EXPERTS),
}
# Said from the configuration, by the model's own code, or by the numbers: (case, part of the reason).
REFUSED: dict[str, tuple[Case, str]] = {
    "mpt": (
        ("mpt", {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}),
        "masked: log-likelihoods differ",
    ),
    "bloom": (("bloom", {"n_layer": 2, "n_head": 4}), "ValueError"),
    "falcon-alibi": (("falcon", {"alibi": True}), "ValueError"),
    "rwkv": (
        ("rwkv", {"attention_hidden_size": 64, "context_length": 256}),
        "keeps no keys and values",
    ),
    "gpt_neo": (
        (
            "gpt_neo",
            {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
        ),
        "layers with window_size",
    ),
    "mamba": (("mamba", {}), "layers with linear_attention"),
    "falcon_mamba": (("falcon_mamba", {}), "layers with linear_attention"),
    "lfm2": (("lfm2", {"layer_types": ["conv", "full_attention"]}), "layers with conv"),
    "qwen3_next": (("qwen3_next", _EXPERTS | _HEADS | _LINEAR), "layers with linear_attention"),
    "recurrent_gemma": (
        (
            "recurrent_gemma",
            {
                "lru_width": 64,
                "num_hidden_layers": 3,
                "block_types": ["recurrent", "recurrent", "attention"],
            },
        ),
        "attention_window_size",
    ),
    "llama4": (
        (
            "llama4_text",
            _EXPERTS
            | _HEADS
            | {
                "attention_chunk_size": 8192,
                "intermediate_size_mlp": 96,
                "layer_types": ["chunked_attention", "full_attention"],
            },
        ),
        "layers with chunked_attention",
    ),
}


def build_model(case: Case, *, seed: int = 0) -> Any:
    """Return the model in eval mode, in float32, with weights so large that positions and windows matter."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, values = case
    config = AutoConfig.for_model(kind, **(_COMMON | values))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.15)
                elif "bias" in name:
                    parameter.normal_(0, 0.1)
    return model.eval()
