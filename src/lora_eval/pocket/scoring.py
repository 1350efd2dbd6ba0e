"""Scores a model folder on the world's abilities with plain transformers: the figures of docs/pocket.md.

``python -m lora_eval.pocket.scoring [--model DIR] [--split heldout|final] [--count N]`` prints one JSON
object.
The suite in ``evals/pocket`` asks the same held-out items through lm-eval; this module is independent of it.
"""

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from . import model_path
from .items import Item, Split
from .suite import ABILITIES, ITEMS_PER_ABILITY, items_of
from .tickets import field_accuracy

_MAX_NEW_TOKENS = {"ticket": 72}
_BATCH = 50
CHOICE = ("terms", "facts", "cloze")


def load_model(folder: Path) -> tuple[Any, Any]:
    """The model of ``folder`` in float32 and its tokenizer, padding on the left."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder), padding_side="left")
    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval(), tokenizer


def prompt_of(tokenizer: Any, item: Item) -> str:
    """The item as the model reads it, up to the assistant's turn."""
    return str(tokenizer.apply_chat_template(list(item.messages), tokenize=False, add_generation_prompt=True))


def generated(model: Any, tokenizer: Any, prompts: list[str], max_new_tokens: int) -> list[str]:
    """Greedy answers, cut at the end of turn."""
    import torch

    answers: list[str] = []
    for start in range(0, len(prompts), _BATCH):
        inputs = tokenizer(
            prompts[start : start + _BATCH], return_tensors="pt", padding=True, add_special_tokens=False
        )
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            made = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        answers += tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def log_likelihoods(model: Any, tokenizer: Any, pairs: list[tuple[str, str]]) -> list[tuple[float, int]]:
    """For each (context, continuation): the continuation's log-likelihood and its number of tokens."""
    import torch

    results: list[tuple[float, int]] = []
    tokenizer.padding_side = "right"
    for start in range(0, len(pairs), _BATCH):
        chunk = pairs[start : start + _BATCH]
        inputs = tokenizer(
            [a + b for a, b in chunk], return_tensors="pt", padding=True, add_special_tokens=False
        )
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        with torch.inference_mode():
            scores = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
        picked = scores.gather(-1, ids[:, 1:, None])[..., 0] * mask[:, 1:]  # (batch, seq - 1)
        for row, (context, _) in enumerate(chunk):
            prefix = len(tokenizer(context, add_special_tokens=False)["input_ids"])
            results.append((float(picked[row, prefix - 1 :].sum()), int(mask[row].sum()) - prefix))
    tokenizer.padding_side = "left"
    return results


def _choice_scores(model: Any, tokenizer: Any, items: list[Item]) -> list[float]:
    pairs = [(prompt_of(tokenizer, item), choice) for item in items for choice in item.choices]
    values = [value for value, _ in log_likelihoods(model, tokenizer, pairs)]
    scores: list[float] = []
    for item in items:
        mine, values = values[: len(item.choices)], values[len(item.choices) :]
        scores.append(float(item.choices[mine.index(max(mine))] == item.answer))
    return scores


def score(model: Any, tokenizer: Any, ability: str, split: Split, count: int) -> dict[str, Any]:
    """The ability's figures: exact match (per kind too), accuracy, or perplexity; fields for tickets."""
    items = items_of(ability, split, count)
    if ability == "story":
        values = log_likelihoods(model, tokenizer, [(tokenizer.bos_token, item.answer) for item in items])
        words = sum(len(item.answer.split()) for item in items)
        total = sum(value for value, _ in values)
        per_token = math.exp(-total / sum(size for _, size in values))
        return {"token_perplexity": per_token, "word_perplexity": math.exp(-total / words), "n": count}
    if ability in CHOICE:
        return {"accuracy": sum(_choice_scores(model, tokenizer, items)) / count, "n": count}
    prompts = [prompt_of(tokenizer, item) for item in items]
    answers = generated(model, tokenizer, prompts, _MAX_NEW_TOKENS.get(ability, 24))
    return _generation_figures(ability, items, answers)


def _generation_figures(ability: str, items: list[Item], answers: list[str]) -> dict[str, Any]:
    by_kind: dict[str, list[float]] = defaultdict(list)
    for item, answer in zip(items, answers, strict=True):
        by_kind[item.kind].append(float(answer == item.answer))
    hits = sum(sum(values) for values in by_kind.values())
    kinds = {kind: f"{sum(values):.0f}/{len(values)}" for kind, values in sorted(by_kind.items())}
    figures: dict[str, Any] = {"exact_match": hits / len(items), "kinds": kinds, "n": len(items)}
    if ability == "ticket":
        fields = [field_accuracy(answer, item.answer) for item, answer in zip(items, answers, strict=True)]
        figures["field_accuracy"] = sum(fields) / len(fields)
    return figures


def main() -> None:
    """Prints the figures of every ability."""
    parser = argparse.ArgumentParser(prog="python -m lora_eval.pocket.scoring", description=__doc__)
    parser.add_argument("--model", type=Path, default=model_path())
    parser.add_argument("--split", choices=("heldout", "final"), default="heldout")
    parser.add_argument("--count", type=int, default=ITEMS_PER_ABILITY)
    options = parser.parse_args()
    model, tokenizer = load_model(options.model)
    figures = {name: score(model, tokenizer, name, options.split, options.count) for name in ABILITIES}
    print(json.dumps({"split": options.split, "abilities": figures}, indent=1))


if __name__ == "__main__":
    main()
