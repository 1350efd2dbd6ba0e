# mypy: allow-untyped-decorators
"""Checkpoints of a pretraining run, written whole or not at all, and the export to a transformers folder."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from ..tokenizer import load_tokenizer
from .network import PocketLlama, Shape

CHECKPOINT = "checkpoint.pt"


def save(folder: Path, state: dict[str, Any]) -> None:
    """``state`` replaces the folder's checkpoint in one step."""
    partial = folder / f"{CHECKPOINT}.partial"
    torch.save(state, partial)
    with partial.open("rb+") as stream:
        os.fsync(stream.fileno())
    partial.replace(folder / CHECKPOINT)


def load(folder: Path) -> dict[str, Any] | None:
    """The folder's checkpoint, or None for a new run."""
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _config(shape: Shape, eos: int, bos: int, pad: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        head_dim=shape.head_size,
        max_position_embeddings=shape.max_positions,
        rms_norm_eps=shape.norm_eps,
        rope_theta=shape.rope_theta,
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
    )


def export(weights: dict[str, Any], tokenizer_folder: Path, folder: Path) -> None:
    """Writes model, generation settings and tokenizer to ``folder``, in bfloat16.

    Raises:
        RuntimeError: if transformers computes other logits than the network that was trained.
    """
    from transformers import GenerationConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.save_pretrained(str(folder))
    shape = Shape()
    special = {"eos": tokenizer.eos_token_id, "bos": tokenizer.bos_token_id, "pad": tokenizer.pad_token_id}
    model = LlamaForCausalLM(_config(shape, **special))
    model.load_state_dict({f"model.{name}": value for name, value in weights.items()}, strict=False)
    model.tie_weights()
    _require_equal(model, weights, shape)
    model.generation_config = GenerationConfig(
        eos_token_id=special["eos"], bos_token_id=special["bos"], pad_token_id=special["pad"], do_sample=False
    )
    model.to(torch.bfloat16).save_pretrained(str(folder))


@torch.no_grad()
def _require_equal(model: Any, weights: dict[str, Any], shape: Shape) -> None:
    network = PocketLlama(shape)
    network.load_state_dict(weights)
    ids = torch.arange(6, 70)[None]
    mask = torch.zeros(1, 1, 64, 64).masked_fill_(~torch.ones(64, 64, dtype=torch.bool).tril(), -1e4)
    ours = network(ids, torch.arange(64)[None], mask) @ network.embed_tokens.weight.T
    theirs = model.eval()(ids).logits
    difference = float((ours - theirs).abs().max())
    if difference > 1e-3:
        raise RuntimeError(f"transformers' logits differ from the trained network's by {difference:.2g}")


def write_json(path: Path, value: dict[str, Any]) -> None:
    """``value`` as an indented JSON file."""
    path.write_text(json.dumps(value, indent=1) + "\n")
