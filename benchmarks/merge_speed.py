"""What a merge costs beside `cp`, PEFT's `merge_and_unload`, and bitsandbytes' own quantization.

    python benchmarks/merge_speed.py --work DIR [--shape 7b|3b|1b] [--rounds 1] [--layers 4] [--peft]

Makes a random-weight Llama of that shape in bfloat16 (7b: 13.5 GB; DIR needs twice that) and a LoRA of rank
16 on all its linear layers, both deleted at the end. Every step runs in a process of its own, with the base's
pages dropped from the cache before it and its files on the disk (fsync) at its end. Prints wall and processor
seconds and the peak of memory that no file backs, imports included, and what bitsandbytes' quantize_4bit
takes for the tensors of `--layers` layers, scaled to all. `--peft` loads the whole model into memory.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from math import prod
from pathlib import Path

SHAPES = {
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "3b": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
    },
}
RANK, SHARD = 16, 5_000_000_000
_PEFT = """
import sys, torch
from lora_eval.models.quiet import quiet, without_gptqmodel
with quiet(), without_gptqmodel():
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
    PeftModel.from_pretrained(model, sys.argv[2]).merge_and_unload().save_pretrained(sys.argv[3])
"""


def main() -> None:
    """Make the model, measure, print one Markdown table, delete the model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--peft", action="store_true")
    given = parser.parse_args()
    base, adapter = given.work / "base", given.work / "adapter"
    try:
        size = make_base(base, SHAPES[given.shape])
        make_adapter(adapter, base)
        print(
            f"{given.shape}: {size / 1e9:.2f} GB in {len(list(base.glob('*.safetensors')))} files", flush=True
        )
        print(
            "| step | wall s | CPU s | times cp: wall | CPU | peak MB |\n|---|---|---|---|---|---|",
            flush=True,
        )
        for _ in range(given.rounds):
            measure(given.work, base, adapter, peft=given.peft)
        quantize(base, given.layers)
    finally:
        shutil.rmtree(base, ignore_errors=True)
        shutil.rmtree(adapter, ignore_errors=True)


def measure(work: Path, base: Path, adapter: Path, *, peft: bool) -> None:
    """Run each step once and print its row."""
    out = work / "out"
    given = ["--base", str(base), "--adapter", str(adapter), "--quantize", "nf4", "--out", str(out)]
    merge = [sys.executable, "-m", "lora_eval", "export", "merge", *given, "--no-verify", "--quiet", "--onto"]
    steps = {
        "cp": ["cp", "-r", str(base), str(out)],
        "export merge --onto original": [*merge, "original"],
        "export merge --onto trained": [*merge, "trained"],
    }
    if peft:
        steps["PEFT merge_and_unload"] = [sys.executable, "-c", _PEFT, str(base), str(adapter), str(out)]
    copied = (0.0, 0.0)
    for name, command in steps.items():
        drop_from_cache(base)
        wall, cpu, peak = run(command, out)
        shutil.rmtree(out, ignore_errors=True)
        copied = (wall, cpu) if name == "cp" else copied
        times = f"{wall / copied[0]:.2f} | {cpu / copied[1]:.1f}"
        print(f"| `{name}` | {wall:.1f} | {cpu:.1f} | {times} | {peak:.0f} |", flush=True)


def run(command: list[str], out: Path) -> tuple[float, float, float]:
    """Return wall seconds until all is on the disk, processor seconds, the peak of anonymous memory in MB."""
    started = time.perf_counter()
    before = os.times()
    peak = 0.0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, anonymous_mb(process.pid))
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"{command[:2]} ended with {process.returncode}")
    for path in out.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - started, cpu, peak


def anonymous_mb(pid: int) -> float:
    """Return the process's memory that no file backs, 0 where it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    lines = [line for line in text.splitlines() if line.startswith("RssAnon")]
    return int(lines[0].split()[1]) / 1024 if lines else 0.0


def drop_from_cache(folder: Path) -> None:
    """Take the folder's files out of the page cache, so that every step reads from the disk."""
    os.sync()
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def quantize(base: Path, layers: int) -> None:
    """Print what bitsandbytes takes for the linear layers of some blocks, scaled to all blocks."""
    import torch
    from bitsandbytes import functional
    from safetensors import safe_open

    count = json.loads((base / "config.json").read_text())["num_hidden_layers"]
    wall, cpu, elements = 0.0, 0.0, 0
    for path in sorted(base.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                if "proj" not in name or int(name.split(".")[2]) >= layers:
                    continue
                weight = file.get_tensor(name).clone()
                begun, spent = time.perf_counter(), time.process_time()
                functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True, blocksize=64)
                wall += time.perf_counter() - begun
                cpu += time.process_time() - spent
                elements += weight.numel()
    scale = count / layers
    print(
        f"bitsandbytes quantize_4bit on {torch.get_num_threads()} threads, {layers} of {count} blocks "
        f"({elements / 1e9:.2f}e9 values): {wall:.1f} s wall, {cpu:.1f} s CPU; all blocks: "
        f"{wall * scale:.0f} s wall, {cpu * scale:.0f} s CPU",
        flush=True,
    )


def make_base(folder: Path, shape: dict[str, int]) -> int:
    """Write the random model, a tensor at a time; returns the bytes of its weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from lora_eval.exporters.weights import TensorInfo, open_writer, write_index
    from tests.conftest import save_tiny_tokenizer

    save_tiny_tokenizer(folder)
    ends = {"vocab_size": 32000, "eos_token_id": 257, "architectures": ["LlamaForCausalLM"]}
    config = LlamaConfig(dtype="bfloat16", **ends, **shape)
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    infos = [TensorInfo(name, tuple(t.shape), "BF16") for name, t in model.state_dict().items()]
    shards: list[list[TensorInfo]] = [[]]
    for info in infos:
        if sum(other.n_bytes("BF16") for other in shards[-1]) + info.n_bytes("BF16") > SHARD:
            shards.append([])
        shards[-1].append(info)
    largest = max(prod(info.shape) for info in infos)
    pool = (torch.randn(largest + (1 << 16)) * 0.02).bfloat16()
    weight_map, size = {}, 0
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        with open_writer(folder / name, {info.name: (info, "BF16") for info in tensors}) as writer:
            for index, info in enumerate(tensors):
                offset = (number * 7919 + index * 104729) % (1 << 16)
                writer.write(info.name, pool[offset : offset + prod(info.shape)].view(info.shape))
                weight_map[info.name], size = name, size + info.n_bytes("BF16")
    write_index(folder, weight_map, size)
    return size


def make_adapter(folder: Path, base: Path) -> None:
    """Write a LoRA of rank 16 with random A and B on all linear layers but the head."""
    import torch
    from safetensors.torch import save_file

    from lora_eval.exporters.base_files import open_base

    tensors = {}
    for module, layer in open_base(base, None).layers.items():
        if "proj" in module:
            out, inputs = layer.shape
            tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(RANK, inputs) * 0.02
            tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(out, RANK) * 0.02
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 32, "task_type": "CAUSAL_LM", "bias": "none",
              "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
              "base_model_name_or_path": str(base)}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    main()
