"""Several copies of one model in vLLM, each of which answers a part of the requests at the same time. vLLM's
own data parallelism (`data_parallel_size`) is for servers: its offline engine refuses it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from lora_eval.engines.parallel import plan_parts, split
from lora_eval.engines.vllm_process import Heard, VllmProcess
from lora_eval.engines.vllm_requests import Ask
from lora_eval.protocols import Score, ScoreRequest
from lora_eval.sequences import as_bytes

Value = TypeVar("Value")


class VllmReplicas:
    """Asked like one `VllmProcess`. Parts are stretches of the token tree's order, so equal beginnings meet
    the same prefix cache; equal calls are cut into equal parts.
    """

    def __init__(self, processes: Sequence[VllmProcess]) -> None:
        self._processes = tuple(processes)
        self._one_at_a_time = threading.Lock()

    @classmethod
    def open(
        cls,
        first: VllmProcess,
        model: Path,
        settings: Mapping[str, Any],
        adapters: Mapping[str, Path],
        count: int,
    ) -> VllmReplicas:
        """Open copies beside the first; raises as `VllmProcess`, with all but the first closed again."""
        found = cls([first])
        try:
            for number in range(1, count):
                found._processes += (VllmProcess(model, settings, adapters, part=(number, count)),)
        except BaseException:
            for process in found._processes[1:]:
                process.close()
            raise
        return found

    def run(self, asks: Sequence[Ask], heard: Heard, *, width: int | None = None) -> None:
        """Put all requests; as `VllmProcess.run`, with `width` for each copy."""
        texts = [as_bytes(ask.input_ids) for ask in asks]
        parts = split(texts, [ask.arguments["max_tokens"] for ask in asks], len(self._processes))

        def work(process: VllmProcess, part: Sequence[int]) -> None:
            def told(place: int, answer: Any) -> None:
                with self._one_at_a_time:
                    heard(part[place], answer)

            process.run([asks[place] for place in part], told, width=width)

        self._together(work, parts)

    def score(
        self,
        requests: Sequence[ScoreRequest],
        adapter: str | None,
        heard: Callable[[Sequence[tuple[int, Score]]], None],
        *,
        width: int | None = None,
    ) -> int:
        """As `VllmProcess.score`, with `width` for each copy."""
        parts, _ = plan_parts(requests, len(self._processes))

        def work(process: VllmProcess, part: Sequence[int]) -> int:
            def told(found: Sequence[tuple[int, Score]]) -> None:
                with self._one_at_a_time:
                    heard([(part[place], score) for place, score in found])

            return process.score([requests[place] for place in part], adapter, told, width=width)

        return sum(self._together(work, parts))

    def _together(
        self, work: Callable[[VllmProcess, Sequence[int]], Value], parts: Sequence[Sequence[int]]
    ) -> list[Value]:
        """Give each copy its part; an error of one is raised when the others have finished theirs."""
        with ThreadPoolExecutor(len(parts)) as pool:
            running = [
                pool.submit(work, process, part)
                for process, part in zip(self._processes, parts, strict=True)
                if part
            ]
        return [future.result() for future in running]

    def close(self) -> None:
        """End the processes of all copies."""
        for process in self._processes:
            process.close()
