"""With `--load`: answers per second and latencies, with the base alone and with adapters in rotation.

Loopback only, and bounded: it is a picture of a server that is one's own, not an attack on another's.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lora_eval.engines.http_client import Refused, is_loopback
from lora_eval.engines.http_requests import COMPLETIONS, name_prefix
from lora_eval.errors import InputError, ServerError
from lora_eval.protocols import GenerateRequest, Progress
from lora_eval.records import SmokeLoad
from lora_eval.smoke.reload import loaded_copies
from lora_eval.smoke.served import Served, bodies_of

ROTATIONS = (0, 1, 4, 16)  # adapters that take turns; 0 is the base alone
_REQUESTS, _SECONDS = 64, 20.0  # of one rotation, whichever comes first
_CONCURRENCY, _NEW_TOKENS = 8, 16


def check_loopback(url: str) -> None:
    """Raise InputError where the server is another machine's."""
    if not is_loopback(url):
        raise InputError(f"{url}: --load puts load on a server, and only on one of this machine (127.0.0.1)")


def measure_load(
    served: Served,
    base: str,
    adapters: Sequence[str],
    requests: Sequence[GenerateRequest],
    progress: Progress,
    *,
    copied: Path | None = None,
) -> list[SmokeLoad]:
    """Return one picture for each rotation. Where there are fewer adapters than a rotation wants, copies of
    the adapter in `copied` are loaded for the time (None: that rotation is not measured).
    """
    with contextlib.ExitStack() as stack:
        names, missing = list(adapters), max(ROTATIONS) - len(adapters)
        reason = f"the server has {len(names)} adapters; with --allow-load copies are loaded for the time"
        if copied is not None and missing > 0:
            try:
                prefix = name_prefix(served.models or {}, adapters[0])
                names += stack.enter_context(loaded_copies(served, copied, missing, prefix))
            except Refused as error:
                reason = f"the server has {len(names)} adapters, and loads no copies: {error}"
        found = []
        for place, count in enumerate(ROTATIONS):
            progress(f"load, {count or 'no'} adapters", place, len(ROTATIONS))
            if count > len(names):
                found.append(_not_measured(count, reason))
                continue
            found.append(_measure(served, names[:count] or [base], count, requests))
        return found


def _measure(
    served: Served, models: Sequence[str], count: int, requests: Sequence[GenerateRequest]
) -> SmokeLoad:
    """Ask the models in turn, `_CONCURRENCY` at a time, after one answer of each that is not counted."""
    import numpy as np

    prompts = [GenerateRequest(r.input_ids, (), _NEW_TOKENS) for r in requests]
    bodies = [bodies_of(models[i % len(models)], [prompts[i % len(prompts)]])[0] for i in range(_REQUESTS)]
    for model in models:
        served.client.post(COMPLETIONS, bodies_of(model, prompts[:1])[0])
    latencies: list[float] = []
    waiting, lock = iter(bodies), threading.Lock()
    started = time.perf_counter()

    def work() -> None:
        while time.perf_counter() - started < _SECONDS:
            with lock:
                body = next(waiting, None)
            if body is None:
                return
            asked = time.perf_counter()
            served.client.post(COMPLETIONS, body)
            latencies.append(1000 * (time.perf_counter() - asked))

    try:
        with ThreadPoolExecutor(_CONCURRENCY) as pool:
            for future in [pool.submit(work) for _ in range(_CONCURRENCY)]:
                future.result()
    except (Refused, ServerError) as error:
        return _not_measured(count, f"the server answers {error}")
    seconds = time.perf_counter() - started
    if not latencies:
        return _not_measured(count, f"no answer was begun within {_SECONDS:g} seconds")
    p50, p90, p99 = np.percentile(latencies, [50, 90, 99])
    return SmokeLoad(
        adapters=count,
        requests=len(latencies),
        concurrency=_CONCURRENCY,
        new_tokens=_NEW_TOKENS,
        seconds=round(seconds, 3),
        requests_per_second=round(len(latencies) / seconds, 2),
        p50_ms=round(float(p50), 1),
        p90_ms=round(float(p90), 1),
        p99_ms=round(float(p99), 1),
    )


def _not_measured(count: int, reason: str) -> SmokeLoad:
    return SmokeLoad(
        adapters=count, requests=0, concurrency=_CONCURRENCY, new_tokens=_NEW_TOKENS, seconds=0.0,
        requests_per_second=None, p50_ms=None, p90_ms=None, p99_ms=None, reason=reason,
    )  # fmt: skip
