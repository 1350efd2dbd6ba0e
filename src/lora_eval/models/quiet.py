"""What the libraries print, and what PEFT imports without need, kept away for a while."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator

_LOGGERS = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "lm_eval",
    "peft",
    "torch",
    "torchao",
    "transformers",
    "trl",
)


@contextlib.contextmanager
def quiet(verbose: bool = False) -> Iterator[None]:
    """Keep the libraries' warnings, logs and bars away (`verbose`: show them), and stdout free of them."""
    with contextlib.redirect_stdout(sys.stderr):
        if verbose:
            yield
            return
        with warnings.catch_warnings(), _errors_only(), no_bars():
            warnings.simplefilter("ignore")
            yield


@contextlib.contextmanager
def without_gptqmodel() -> Iterator[None]:
    """Within this, PEFT and transformers take gptqmodel for not installed; afterwards it is as before.

    PEFT imports it to see whether a layer is a GPTQ one, whenever it adds LoRA to a base that is not
    quantized: 2.3 s, a banner, and CUDA_DEVICE_ORDER and PYTORCH_ALLOC_CONF set for the whole process.
    Not to be used around a GPTQ base.
    """
    if "gptqmodel" in sys.modules:
        yield
        return
    sys.modules["gptqmodel"] = None  # type: ignore[assignment]
    _forget_what_is_installed()
    try:
        yield
    finally:
        if sys.modules.get("gptqmodel") is None:
            sys.modules.pop("gptqmodel", None)
        _forget_what_is_installed()


def _forget_what_is_installed() -> None:
    """Both libraries remember the answer to "is gptqmodel there?" for the rest of the process."""
    for name in ("peft.import_utils", "transformers.utils.import_utils"):
        if name in sys.modules:
            sys.modules[name].is_gptqmodel_available.cache_clear()


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Without the bar that transformers draws while it reads weights."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
