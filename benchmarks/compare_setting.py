"""Models and tasks of `compare_vs_lm_eval.py`: fixed random weights in real shapes, real questions.

Weights are random because only their shape decides the speed; the figures of both sides must still be equal.
Tasks are lm-eval's own (hellaswag, arc_easy, mmlu, gsm8k, wikitext) with local files as their data.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

SHAPES = {  # hidden, layers, heads, kv heads, intermediate, vocabulary
    "25M": (384, 12, 6, 2, 1024, 16384),
    "135M": (576, 30, 9, 3, 1536, 49152),  # the shape of SmolLM2-135M
    "0.5B": (896, 24, 14, 2, 4864, 151936),  # the shape of Qwen2.5-0.5B: for memory, with few items
}
SUBJECTS = ("anatomy", "marketing", "global_facts", "management")
ITEMS = {"choices_0": 100, "fixed_25": 30, "drawn_25": 30, "letters_5": 80, "answers_5": 32, "documents": 40}
LOADER = '''\
"""Rows of a file beside this one."""
import json
from pathlib import Path


def load(file, shots=None, **_):
    from datasets import Dataset

    def rows(name):
        lines = (Path(__file__).parent / name).read_text("utf-8").split("\\n")
        return Dataset.from_list([json.loads(line) for line in lines if line])

    return {"test": rows(file)} | ({"shots": rows(shots)} if shots else {})
'''
LETTERS = (
    '"{{question.strip()}}\\nA. {{choices[0]}}\\nB. {{choices[1]}}\\n'
    'C. {{choices[2]}}\\nD. {{choices[3]}}\\nAnswer:"'
)
ACC = "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
ARC = """\
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{choices.label.index(answerKey)}}"
doc_to_choice: "{{choices.text}}"
num_fewshot: 25
"""
GSM8K = """\
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
num_fewshot: 5
"""
PERPLEXITY = """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{page}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
"""
FIRST = "fewshot_split: shots\nfewshot_config: {sampler: first_n}\n"
DRAWN = "fewshot_split: shots\n"
# With random weights nothing means anything, but rows stop at different places at texts like these.
STOPS = '{until: ["e", "\\n", "is"], do_sample: false, max_gen_toks: 128}'
NEVER = '{until: ["<never>"], do_sample: false, max_gen_toks: 128}'
TASKS = {
    "choices_0": 'output_type: multiple_choice\ndoc_to_text: "{{query}}"\ndoc_to_target: "{{gold}}"\n'
    "doc_to_choice: choices\n" + ACC,
    "fixed_25": ARC + FIRST + ACC,
    "drawn_25": ARC + DRAWN + ACC,
    "answers_5_stop": GSM8K + FIRST + f"generation_kwargs: {STOPS}\n",
    "answers_5_never": GSM8K + FIRST + f"generation_kwargs: {NEVER}\n",
    "answers_5_drawn": GSM8K + DRAWN + f"generation_kwargs: {NEVER}\n",
    "documents": PERPLEXITY,
}
FILES = {
    "choices_0": "hellaswag",
    "fixed_25": "arc",
    "drawn_25": "arc",
    "answers_5_stop": "gsm8k",
    "answers_5_never": "gsm8k",
    "answers_5_drawn": "gsm8k",
    "documents": "documents",
}


def rows(path: Path) -> list[dict]:
    """Rows of a gzipped JSON-lines file."""
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        return [json.loads(line) for line in file]


def write(path: Path, items: list[dict]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(item) + "\n" for item in items), "utf-8")


def write_tasks(data: Path, out: Path, scale: float) -> None:
    """Write task files and their rows; `scale` multiplies the number of items."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "utils.py").write_text(LOADER)

    def cut(name: str) -> int:
        return max(2, round(ITEMS[name] * scale))

    hellaswag = rows(data / "hellaswag" / "val_sample1000.jsonl.gz")
    write(out / "hellaswag.jsonl", hellaswag[: cut("choices_0")])
    arc = rows(data / "arc_easy" / "validation.jsonl.gz")
    write(out / "arc.jsonl", arc[: cut("fixed_25")])
    write(out / "arc_shots.jsonl", arc[200:400])
    gsm8k = rows(data / "gsm8k" / "test.jsonl.gz")
    write(out / "gsm8k.jsonl", [{k: r[k] for k in ("question", "answer")} for r in gsm8k[: cut("answers_5")]])
    write(out / "gsm8k_shots.jsonl", rows(data / "gsm8k" / "train_sample.jsonl.gz")[:200])
    # Documents of 100 to 2,600 tokens: real questions and solutions, one to thirteen on a page. The lengths
    # of wikitext's pages differ more.
    texts = [row["question"] + "\n" + row["answer"] for row in gsm8k]
    pages = ["\n\n".join(texts[13 * i : 13 * i + 1 + 5 * i % 13]) for i in range(cut("documents"))]
    write(out / "documents.jsonl", [{"page": page} for page in pages])
    for name, text in TASKS.items():
        file = FILES[name]
        shots = f", shots: {file}_shots.jsonl" if "fewshot_split" in text else ""
        head = f"task: {name}\ncustom_dataset: !function utils.load\ntest_split: test\n"
        (out / f"{name}.yaml").write_text(f"{head}dataset_kwargs: {{file: {file}.jsonl{shots}}}\n{text}")
    for subject in SUBJECTS:
        items = rows(data / "mmlu" / f"{subject}.jsonl.gz")
        n = max(1, cut("letters_5") // len(SUBJECTS))
        write(out / f"{subject}.jsonl", [row for row in items if row["split"] == "test"][:n])
        write(out / f"{subject}_shots.jsonl", [row for row in items if row["split"] == "dev"])
        (out / f"{subject}.yaml").write_text(
            f"task: letters_5_{subject}\ntag: letters_5\ncustom_dataset: !function utils.load\n"
            "test_split: test\n"
            f"dataset_kwargs: {{file: {subject}.jsonl, shots: {subject}_shots.jsonl}}\n"
            f"output_type: multiple_choice\ndoc_to_text: {LETTERS}\ndoc_to_choice: [A, B, C, D]\n"
            f"doc_to_target: answer\nnum_fewshot: 5\n{FIRST}{ACC}"
        )


def write_models(data: Path, out: Path, shape: str) -> tuple[Path, Path, Path]:
    """Write base, adapter and the adapter merged in float32; returns the folders. Always the same bytes."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    base, adapter, merged = (out / f"{shape}-{kind}" for kind in ("base", "adapter", "merged"))
    if merged.exists():
        return base, adapter, merged
    hidden, layers, heads, kv_heads, inner, vocabulary = SHAPES[shape]
    tokenizer = train_tokenizer(data, vocabulary)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, head_dim=64, intermediate_size=inner, max_position_embeddings=4096,
        initializer_range=0.04, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    ))  # fmt: skip
    model.generation_config.eos_token_id = 0
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    peft = get_peft_model(
        model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    peft.save_pretrained(adapter)
    peft.merge_and_unload().save_pretrained(merged)
    tokenizer.save_pretrained(merged)
    return base, adapter, merged


def train_tokenizer(data: Path, vocabulary: int):
    """A byte-level BPE of that many tokens, trained on the questions and on Python's standard library."""
    import sysconfig

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    texts = [str(row) for row in rows(data / "hellaswag" / "val_sample1000.jsonl.gz")]
    texts += [
        path.read_text("utf-8", errors="replace")
        for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<end>", eos_token="<end>", model_max_length=4096
    )
