"""The engine on vLLM: base and adapters of one model folder, in the model server's own arithmetic.

What this vLLM gets wrong for this model is found by a probe when the engine is opened, and then refused
for each arm (`vllm_startup`). Arms are never mixed in a batch; equal calls are computed in equal batches.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_eval.engines.decoding import end_tokens
from lora_eval.engines.vllm_process import EngineDied, VllmProcess, version
from lora_eval.engines.vllm_replicas import VllmReplicas
from lora_eval.engines.vllm_requests import Ask, Told, generation_arguments, read_generation
from lora_eval.engines.vllm_startup import GENERATE, SCORE, Learned, Settled, learn, lora_rank, settle
from lora_eval.errors import InputError
from lora_eval.models import IDENTITY
from lora_eval.models.locate import read_config
from lora_eval.protocols import Finished, GenerateRequest, Generation, Progress, Score, ScoreRequest
from lora_eval.sequences import count_work

# vLLM computes prompt log-probabilities for a whole chunk at once and outside its own memory plan: 2048 rows
# of a vocabulary of 150,000 are 1.2 GB.
_BATCH_TOKENS = 2048
_CPU_BLOCK = (
    32  # tokens that the prefix cache shares at once; vLLM's 128 on a CPU is longer than most prompts
)
_OURS = {
    "model", "tokenizer", "dtype", "quantization", "max_model_len", "enable_prefix_caching",
    "generation_config", "enable_lora", "max_loras", "max_cpu_loras", "max_lora_rank",
    "max_num_batched_tokens", "logprobs_mode", "skip_tokenizer_init",
}  # fmt: skip


def _silent(what: str, done: int, total: int) -> None:
    pass


def open_engine(
    base: Path,
    adapters: Mapping[str, Path] | None = None,
    *,
    base_name: str = "base",
    dtype: str = "auto",
    quantization: Mapping[str, Any] | None = None,
    batch_tokens: int | None = None,
    identity_control: bool = False,
    progress: Progress = _silent,
    **options: Any,
) -> VllmEngine:
    """Return the engine for a model folder (base, merged or GPTQ) and its adapters; `close()` it afterwards.

    `options` are engine arguments under vLLM's own names (`tensor_parallel_size`, `pipeline_parallel_size`,
    `block_size`, `max_num_seqs`, ...), and `data_parallel_size`: so many copies of the model, each on GPUs of
    its own, of which the first is probed. `identity_control` adds the arm `IDENTITY`.

    Raises:
        InputError: an NF4 base, or an option that is ours to set or unknown to vLLM.
        ModelError: the model or an adapter cannot be opened.
        MissingExtraError: vllm is not installed.
    """
    check_arguments(base, quantization, batch_tokens, options)
    options = dict(options)
    copies = int(options.pop("data_parallel_size", 1))
    folder = tempfile.TemporaryDirectory(prefix="lora-eval-vllm-")
    process: VllmProcess | VllmReplicas | None = None
    try:
        progress("opening the base in transformers, for vLLM's probe", 0, 1)
        learned = learn(base, dict(adapters or {}), base_name=base_name, dtype=dtype,
                        identity=Path(folder.name) if identity_control else None)  # fmt: skip
        settings = {"max_num_batched_tokens": batch_tokens or _BATCH_TOKENS}
        settings |= _settings(learned, options) | options
        progress("starting vLLM", 0, 1)
        process = first = VllmProcess(base, settings, learned.folders, part=(0, copies))
        progress("probing vLLM", 0, 1)
        settled = settle(first, learned)
        if copies > 1:
            process = VllmReplicas.open(first, base, settings, learned.folders, copies)
        return VllmEngine(process, learned, settled, folder)
    except BaseException:
        if process is not None:
            process.close()
        folder.cleanup()
        raise


open_engine.opens = "paths"  # type: ignore[attr-defined]  # not a Resident: vLLM loads the weights itself


def check_arguments(
    base: Path, quantization: Mapping[str, Any] | None, batch_tokens: int | None, options: Mapping[str, Any]
) -> None:
    """Raise InputError for what this engine cannot do, before anything is loaded."""
    stored = read_config(base, "config.json").get("quantization_config") or {}
    if quantization or stored.get("quant_method") == "bitsandbytes":
        raise InputError(
            f"{base}: the base would be quantized by bitsandbytes, as it was in training; vLLM does not "
            "compute with those weights (it quantizes in its own way on a GPU, and not at all on a CPU). Use "
            "--engine transformers; or --quantize none, which measures the adapter on the 16-bit base that "
            "it was not trained on; or `lora-eval export merge`, and give the folder as "
            "--arm NAME=merged:PATH"
        )
    if batch_tokens is not None and batch_tokens < 1:
        raise InputError(f"batch tokens must be at least 1, got {batch_tokens}")
    copies = options.get("data_parallel_size", 1)
    if not isinstance(copies, int) or copies < 1:
        raise InputError(f"data_parallel_size must be a whole number of at least 1, got {copies!r}")
    taken = sorted(_OURS & set(options))
    if taken:
        raise InputError(f"engine options {', '.join(taken)}: set by lora-eval itself; leave them out")


def _settings(learned: Learned, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return vLLM's engine arguments for this model."""
    found: dict[str, Any] = {
        "dtype": learned.dtype,
        "max_model_len": learned.max_length + 1,  # the last token is only predicted
        "enable_prefix_caching": True,
        "generation_config": "vllm",  # settings come from us, request by request
        "seed": 0,
    }
    if learned.folders:
        rank = lora_rank(learned.folders)
        # One slot stays empty: on a CPU vLLM 0.32 reads "no adapter" as the last slot, and adds what is there
        # to the base (measured: an adapter's lm_head in every answer of the base).
        found |= {"enable_lora": True, "max_loras": len(learned.folders) + 1, "max_lora_rank": rank}
    if learned.on_cpu:
        found |= {"block_size": _CPU_BLOCK}
        if int(options.get("pipeline_parallel_size", 1)) == 1:
            found |= {"enforce_eager": True}
        else:
            # The later stages get their buffers in the warm-up, which vLLM 0.32 leaves out in eager mode and
            # then ends with `assert self.intermediate_tensors is not None`. This traces the model for the
            # warm-up's sake and runs its operations as they are: no C++ compiler is needed.
            found |= {"compilation_config": {"mode": 1, "backend": "eager"}}
    return found


class VllmEngine:
    """Scores and generates with one model in vLLM. Made by `open_engine`.

    `notes` says what a report must say; `refused` maps (arm, "score" or "generate") to the reason.
    """

    name = "vllm"

    def __init__(
        self,
        process: VllmProcess | VllmReplicas,
        learned: Learned,
        settled: Settled,
        folder: tempfile.TemporaryDirectory[str] | None = None,
    ) -> None:
        self.dtype = learned.dtype
        self.max_length = learned.max_length
        self.work: Counter[str] = Counter()
        self.notes = tuple(settled.notes)
        self.refused = dict(settled.refused)
        self._width = dict(settled.width)
        self._process = process
        self._learned = learned
        self._folder = folder

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the model folder."""
        return self._learned.tokenizer

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms, base first; the identity control is not among them."""
        return tuple(name for name in self._learned.expected if name != IDENTITY)

    @property
    def every_arm(self) -> tuple[str, ...]:
        """Names of the arms with the identity control, where there is one."""
        return tuple(self._learned.expected)

    def score(
        self, arm: str, requests: Sequence[ScoreRequest], progress: Progress, finished: Finished | None = None
    ) -> list[Score]:
        """Return the log-likelihood of each continuation; equal inputs are put once.

        Raises:
            InputError: the probe found vLLM's log-likelihoods of this arm wrong, or vLLM has ended.
        """
        adapter = self._check(arm, SCORE)
        started = time.perf_counter()
        scores: dict[int, Score] = {}

        def heard(found: Sequence[tuple[int, Score]]) -> None:
            scores.update(found)
            if finished:
                finished(found)
            progress(f"{arm}: scoring", len(scores), len(requests))

        try:
            computed = self._process.score(requests, adapter, heard, width=self._width[SCORE])
        except EngineDied as error:
            raise _ended(error) from error
        self.work["forwarded_tokens"] += computed
        self._count([(r.context_ids + r.continuation_ids)[:-1] for r in requests], (), started)
        return [scores[index] for index in range(len(requests))]

    def generate(
        self,
        arm: str,
        requests: Sequence[GenerateRequest],
        progress: Progress,
        finished: Finished | None = None,
    ) -> list[Generation]:
        """Return each answer up to its own stop text, end-of-sequence token or number of tokens.

        Raises:
            InputError: a setting that vLLM does not compute as transformers does, the probe found vLLM's
                answers of this arm wrong, or vLLM has ended.
        """
        adapter = self._check(arm, GENERATE)
        started = time.perf_counter()
        defaults = self._learned.defaults
        ends = end_tokens(defaults.get("eos_token_id"))
        answers: dict[int, Generation] = {}
        again: list[int] = []

        def ask(order: Sequence[int], **changed: Any) -> None:
            def heard(place: int, told: Told) -> None:
                index = order[place]
                # The last new token is only predicted.
                read = len(requests[index].input_ids) + len(told.token_ids) - 1
                self.work["forwarded_tokens"] += read - told.cached_tokens
                answer = read_generation(requests[index], told, ends, self.tokenizer)
                if answer is None:
                    again.append(index)
                    return
                answers[index] = answer
                if finished:
                    finished([(index, answer)])
                progress(f"{arm}: generating", len(answers), len(requests))

            asked = [generation_arguments(requests[index], defaults, ends) | changed for index in order]
            asks = [Ask(requests[i].input_ids, a, adapter) for i, a in zip(order, asked, strict=True)]
            self._process.run(asks, heard, width=self._width[GENERATE])

        try:
            # Equal beginnings follow one another, so that the prefix cache still holds them.
            ask(sorted(range(len(requests)), key=lambda i: (requests[i].input_ids, i)))
            if again:
                ask(tuple(again), stop=[])
        except EngineDied as error:
            raise _ended(error) from error
        self._count([r.input_ids for r in requests], [len(a.token_ids) for a in answers.values()], started)
        return [answers[index] for index in range(len(requests))]

    def _check(self, arm: str, kind: str) -> str | None:
        """Return the adapter of an arm that may be asked."""
        if arm not in self._learned.expected:
            raise KeyError(f"no arm '{arm}'; there are {', '.join(self._learned.expected)}")
        if reason := self.refused.get((arm, kind)):
            raise InputError(f"arm {arm}: {reason}")
        return None if arm == self._learned.base else arm

    def _count(self, inputs: Sequence[tuple[int, ...]], new: Sequence[int], started: float) -> None:
        self.work.update(count_work(inputs, new))
        self.work["seconds"] += time.perf_counter() - started  # type: ignore[assignment]

    def close(self) -> None:
        """End vLLM's processes; the engine cannot be used afterwards."""
        self._process.close()
        if self._folder is not None:
            self._folder.cleanup()


def _ended(error: EngineDied) -> InputError:
    return InputError(
        f"vLLM {version()} has ended while it was computing: {error}; start the command again, or use "
        "--engine transformers"
    )
