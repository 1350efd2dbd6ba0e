"""vLLM in processes of its own: opened, asked, ended. The one home of vllm."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_eval.engines.vllm_environment import environment, interruptible, output_to
from lora_eval.engines.vllm_requests import Ask, Reading, Told, plan_readings, read_scores
from lora_eval.errors import InputError, MissingExtraError, ModelError
from lora_eval.extras import require
from lora_eval.protocols import Score, ScoreRequest
from lora_eval.watchdog import Watchdog, make_folder, temporary_files

Heard = Callable[[int, Told], None]
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM 0.32 takes as max_lora_rank
# Requests that vLLM knows before it begins: enough to fill its batches, and few to hold in memory.
_WAVE = 1024
_MORE = 4  # lines of an error that are read
_PREFIX = re.compile(r"^(\(\S+ pid=\d+\) )?(ERROR|WARNING|INFO) .*?\] ?")  # of vLLM's log lines
_NOISE = re.compile(r"Worker failed with error '(.+?)', please check|(\w*(?:Error|Exception): .+)")


class EngineDied(Exception):
    """vLLM's process has ended; the text is its last error."""


class VllmProcess:
    """One model in vLLM with its adapters, as copy `part[0]` of `part[1]` on this machine. `refused` says why
    an adapter could not be loaded.

    Raises:
        MissingExtraError: vllm is not installed or cannot be imported.
        InputError: `settings` holds a name that vLLM does not know, or asks for more GPUs than there are.
        ModelError: vLLM cannot open the model.
    """

    def __init__(
        self,
        model: Path,
        settings: Mapping[str, Any],
        adapters: Mapping[str, Path],
        *,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.refused: dict[str, str] = {}
        self._model = model
        self._settings = dict(settings)
        self._adapters = dict(adapters)
        self._part = part
        self._llm: Any = None
        self._numbers = 0
        self._watchdog: Watchdog | None = None
        self._log = Path(tempfile.mkstemp(prefix="lora-eval-vllm-", suffix=".log")[1])
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def restart(self) -> None:
        """Open the model again, after `EngineDied`."""
        self._end()
        self._open()

    def run(self, asks: Sequence[Ask], heard: Heard, *, width: int | None = None) -> None:
        """Put all requests, and call `heard(place, answer)` for each answer; at most `width` at a time.

        The cache of earlier calls is emptied, and vLLM starts only when it has all requests of a wave: equal
        calls are computed in equal batches.

        Raises:
            EngineDied: vLLM's process has ended.
            InputError: vLLM refuses a request.
        """
        size = width or _WAVE
        try:
            self._llm.reset_prefix_cache()
            for start in range(0, len(asks), size):
                self._run_wave(range(start, min(start + size, len(asks))), asks, heard)
        except _dead() as error:
            raise EngineDied(last_error(self._log) or str(error)) from error

    def score(
        self,
        requests: Sequence[ScoreRequest],
        adapter: str | None,
        heard: Callable[[Sequence[tuple[int, Score]]], None],
        *,
        width: int | None = None,
    ) -> int:
        """Call `heard` with the scores of each input as it is answered; returns the number of tokens that
        vLLM computed.

        The prefix cache is read, and an answer is accepted only where no wanted position was a cached one;
        the others are asked for again without the cache. Raises as `run`.
        """
        computed = 0
        again: list[Reading] = []

        def read(readings: Sequence[Reading], *, cache: bool) -> None:
            def told(place: int, answer: Told) -> None:
                nonlocal computed
                reading = readings[place]
                computed += len(reading.input_ids) - answer.cached_tokens
                if reading.is_answered(answer):
                    heard(read_scores(reading, requests, answer))
                else:
                    again.append(reading)

            asks = [Ask(reading.input_ids, reading.arguments(cache=cache), adapter) for reading in readings]
            self.run(asks, told, width=width)

        read(plan_readings(requests), cache=True)
        if again:
            read(tuple(again), cache=False)
        return computed

    def _run_wave(self, places: range, asks: Sequence[Ask], heard: Heard) -> None:
        engine = self._llm.llm_engine
        if len(places) > 1:
            self._llm.sleep(level=0)  # requests are taken, and none is begun
        owners: dict[str, int] = {}
        try:
            for place in places:
                owners[self._add(engine, asks[place])] = place
        except Exception as error:  # its validation errors have no common base that lasts
            engine.abort_request(list(owners))
            if isinstance(error, _dead()):
                raise
            raise InputError(f"vLLM refuses a request: {_first_line(error)}") from error
        finally:
            if len(places) > 1:
                self._llm.wake_up(tags=["scheduling"])
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    heard(owners[output.request_id], _told(output))

    def _add(self, engine: Any, ask: Ask) -> str:
        self._numbers += 1
        name = str(self._numbers)
        engine.add_request(
            name,
            {"prompt_token_ids": list(ask.input_ids)},
            _vllm().SamplingParams(**ask.arguments),
            lora_request=self._lora(ask.adapter) if ask.adapter else None,
        )
        return name

    def _lora(self, adapter: str) -> Any:
        request = require("vllm.lora.request", "vllm").LoRARequest
        number = list(self._adapters).index(adapter) + 1
        return request(f"arm{number}", number, str(self._adapters[adapter]))

    def _open(self) -> None:
        folder = make_folder()
        self._watchdog = watchdog = Watchdog(folder)
        with (
            environment(self._settings, self._part, temporary_files(folder)),
            output_to(self._log),
            interruptible(),
        ):
            arguments = engine_arguments(_vllm(), self._settings)
            try:
                self._llm = _vllm().LLM(model=str(self._model), **arguments)
            except Exception as error:
                raise ModelError(
                    f"{self._model}: vLLM {version()} cannot open this model: "
                    f"{last_error(self._log) or _first_line(error)}"
                ) from error
        watchdog.complete()
        for adapter in self._adapters:
            try:
                self._llm.llm_engine.add_lora(self._lora(adapter))
            except Exception as error:
                self.refused[adapter] = f"vLLM {version()} does not load it: {_first_line(error)}"

    def _end(self) -> None:
        if self._llm is not None:
            # vLLM gives LLM no way to end before the interpreter does.
            self._llm.llm_engine.engine_core.shutdown()
        self._llm = None
        if self._watchdog is not None:
            self._watchdog.close()

    def close(self) -> None:
        """End vLLM's processes and remove their log."""
        self._end()
        self._log.unlink(missing_ok=True)


def engine_arguments(vllm: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings, after a check that vLLM knows each name (InputError with the nearest one)."""
    from dataclasses import fields

    from lora_eval.schema import suggest

    known = [field.name for field in fields(vllm.EngineArgs)]
    for name in settings:
        if name not in known:
            raise InputError(f"vLLM {version()} has no engine argument '{name}'{suggest(name, known)}")
    return dict(settings)


def version() -> str:
    """Return vLLM's version; its CPU build is a distribution of its own name."""
    return str(getattr(sys.modules.get("vllm"), "__version__", "of an unknown version"))


def last_error(log: Path) -> str:
    """Return the last error that vLLM's processes wrote, or an empty text."""
    found = ""
    if log.is_file():
        lines = log.read_text("utf-8", errors="replace").splitlines()
        for place, line in enumerate(lines):
            if match := _NOISE.search(line):
                text = (match[1] or match[2]).strip().removeprefix("RuntimeError: ")
                following = (_PREFIX.sub("", line) for line in lines[place + 1 : place + _MORE])
                text = _with_reasons(text, following)
                # "see above" of an outer process says less than what stands above.
                found = found if "root cause" in text and found else text
    return found[:500]


def _vllm() -> Any:
    """Return the module; imported by name, because it fits no environment beside our other extras."""
    try:
        vllm = require("vllm", "vllm")
        _ = vllm.LLM, vllm.EngineArgs, vllm.SamplingParams  # imported on first use
    except (ImportError, RuntimeError) as error:
        remedy = "install it in an environment of its own, see docs/vllm.md"
        if any(name in str(error) for name in ("torchvision", "torchaudio", "torchcodec")):
            remedy = (
                "these builds of torchvision, torchaudio and torchcodec do not fit torch and are not needed: "
                "pip uninstall -y torchvision torchaudio torchcodec"
            )
        raise MissingExtraError(f"vllm cannot be imported ({_first_line(error)}); {remedy}") from error
    return vllm


def _dead() -> type[Exception]:
    return require("vllm.v1.engine.exceptions", "vllm").EngineDeadError  # type: ignore[no-any-return]


def _told(output: Any) -> Told:
    answer = output.outputs[0]
    return Told(
        tuple(answer.token_ids),
        str(answer.finish_reason),
        output.num_cached_tokens or 0,
        output.prompt_logprobs,
        answer.logprobs,
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return _with_reasons(*_parted(text)) if text else type(error).__name__


def _parted(text: str) -> tuple[str, list[str]]:
    first, *following = text.splitlines()
    return first, following[: _MORE - 1]


def _with_reasons(first: str, following: Iterable[str]) -> str:
    """Return an error's first line, with the next ones where these hold the reason (kernels one by one, and
    what pydantic says).
    """
    if not first.rstrip().endswith(":") and "validation error" not in first:
        return first
    return " ".join([first.strip(), *(line.strip() for line in following)])[:500]
