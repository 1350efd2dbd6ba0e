"""What the libraries print, and what PEFT imports without need, kept away for a while."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(verbose: bool = False) -> Iterator[None]:
    """Keep the libraries' warnings, logs below errors, prints and bars away, and stdout free of them.

    `verbose` shows them on stderr.
    """
    if verbose:
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    # The global switch and not each library's level: torch and transformers set theirs while being imported,
    # and a level from before the import, put back afterwards, lets their INFO lines through.
    before = logging.root.manager.disable
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(), no_bars():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


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
def no_bars() -> Iterator[None]:
    """Without the bars that transformers and datasets draw."""
    import datasets
    from transformers.utils import logging as transformers_logging

    shown, hidden = transformers_logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
        if not hidden:
            datasets.enable_progress_bars()
