"""What all tests share: an offline environment, a tiny random Llama, and two ways to run the command.

No test reaches the network, needs a GPU, or sees the caches of the person who runs it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from lora_eval.models.legacy import legacy_tokenizer

# Before any library reads them: conftest is imported first. Child processes inherit them.
_CACHE = Path(tempfile.mkdtemp(prefix="lora-eval-tests-"))
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": str(_CACHE / "huggingface"),
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "LORA_EVAL_STORE": str(_CACHE / "results.sqlite"),
    "TOKENIZERS_PARALLELISM": "false",
    "COLUMNS": "110",
    "NO_COLOR": "1",
}
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # one worker for each core is faster than threads on tiny models

CHECKOUT = Path(__file__).parent.parent
CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


class Result(NamedTuple):
    """What a command gave back."""

    status: int
    stdout: str
    stderr: str


def pytest_sessionfinish() -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def llm_compressor() -> Path:
    """A Python with llm-compressor: that of the variable, or the one that an export has kept."""
    from lora_eval.exporters.environment import PYTHON, default_folder

    python = Path(os.environ.get(PYTHON) or default_folder() / "bin" / "python")
    if not python.is_file():
        reason = f"llm-compressor is not installed here: set ${PYTHON}, or run `lora-eval export awq` once"
        if os.environ.get("CI") == "true":  # tox makes an environment for it
            pytest.fail(reason)
        pytest.skip(reason)
    return python


@pytest.fixture(scope="session")
def run_cli() -> Callable[..., Result]:
    """`run_cli("recipe", "list")` runs the command in this process. A fault of ours (status 1) is raised."""
    from lora_eval.cli.main import run

    def call(*arguments: object) -> Result:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run([str(argument) for argument in arguments])
        return Result(status, out.getvalue(), err.getvalue())

    return call


@pytest.fixture(scope="session")
def run_python() -> Callable[..., Result]:
    """`run_python("-c", code)` runs this Python in a process of its own; `cwd`, `env` (added), `timeout`."""

    def call(
        *arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: float = 300
    ) -> Result:
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=cwd,
            env=os.environ | (env or {}),
            timeout=timeout,
            capture_output=True,
            text=True,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def runner(run_python: Callable[..., Result]) -> Callable[..., Result]:
    """`runner("recipe", "list")` runs the command in a process of its own; options as `run_python`, and
    `module` for another entry (`lora_eval.train`).
    """

    def call(*arguments: object, module: str = "lora_eval", **options: object) -> Result:
        return run_python("-m", module, *arguments, **options)

    return call


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama (2 layers, hidden 64, 2 heads of 32, one key-value head, float32) and a
    byte-level tokenizer with a ChatML template; eos `<|im_end|>`, pad `<|pad|>`.

    The embedding has 320 rows and the tokenizer 259 tokens, as in real families that round up: code that
    resizes the embedding changes the model. Shared: copy it before changing anything in it.
    """
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    save_tiny_llama(folder)
    return folder


def save_tiny_llama(folder: Path, *, seed: int = 0, **config: object) -> None:
    """Write the model of `tiny_llama` to `folder`, with other weights (`seed`) or `LlamaConfig` values."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    save_tiny_tokenizer(folder)
    values = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "bos_token_id": None,
        "eos_token_id": 257,
        "pad_token_id": 258,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,  # ten times the usual: answers then differ from one prompt to another
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**(values | config)))
    with torch.no_grad():
        model.get_input_embeddings().weight[259:] = 0  # no token stands there: never the likeliest answer
    model.generation_config = GenerationConfig(eos_token_id=257, pad_token_id=258)
    model.save_pretrained(folder)


def save_tiny_tokenizer(folder: Path, *, chat_template: str | None = CHATML) -> None:
    """Write the tokenizer of `tiny_llama`: token ids are byte values in the byte-level alphabet's order,
    then `<|im_start|>` 256, `<|im_end|>` 257, `<|pad|>` 258. Its tokenizer_config.json is of the form that
    models on the Hub have, which transformers 4 wrote.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|im_start|>", "<|im_end|>", "<|pad|>"]
    backend.add_special_tokens([AddedToken(text, special=True) for text in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(legacy_tokenizer(json.loads(path.read_text("utf-8"))), indent=2), "utf-8")


@pytest.fixture(scope="session")
def install_package(run_python: Callable[..., Result]) -> Callable[[Path, Path], None]:
    """`install_package(project, target)` builds a project with pip and installs it into `target`."""

    def call(project: Path, target: Path) -> None:
        options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", target]
        done = run_python("-m", "pip", "install", *options, project)
        assert done.status == 0, done.stderr

    return call


@pytest.fixture(scope="session")
def plugin_example(
    install_package: Callable[[Path, Path], None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The third party's package of tests/plugin_example, importable here and in child processes: recipe
    `acme-support`, template `acme`, suite `acme-arithmetic` (25 items), exporter `acme-copy`.

    tox installs it; elsewhere pip installs it into a folder that is taken away after the session.
    """
    if importlib.util.find_spec("lora_eval_acme"):
        yield "lora-eval-acme"
        return
    folder = tmp_path_factory.mktemp("plugin")
    # A copy: building in the checkout could leave files in it, or meet another worker doing the same.
    project = shutil.copytree(CHECKOUT / "tests" / "plugin_example", folder / "project")
    install_package(project, folder / "site")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder / "site"))
        patch.setenv("PYTHONPATH", str(folder / "site"), prepend=os.pathsep)
        yield "lora-eval-acme"


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Callable[[int], None]]:
    """Call it with a size in bytes: from then on no file of this process may grow beyond it (a write then
    fails as on a full disk). Undone after the test.
    """
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture(scope="session")
def tiny_adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter for `tiny_llama` with random weights, rank 4 on all linear layers; shared: copy it."""
    folder = tmp_path_factory.mktemp("adapters") / "tiny-adapter"
    save_tiny_adapter(tiny_llama, folder)
    return folder


def save_tiny_adapter(base: Path, folder: Path, *, seed: int = 1, **config: object) -> None:
    """Write a LoRA adapter for `base` whose A and B are random, with other `LoraConfig` values if given."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    values = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**(values | config)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    model.save_pretrained(folder)
