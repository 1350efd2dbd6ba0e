"""Progress bars on stderr, for work that takes longer than two seconds."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

_SECONDS = 30.0


@contextlib.contextmanager
def progress_bar(shown: bool = True) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function (what, done, total) that draws one bar at a time on stderr; lines printed to stderr
    meanwhile stand above it. Where stderr is no terminal (a log of a CI job), a line is printed every half
    minute instead. With `shown` False nothing is.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not shown or not console.is_terminal:
        yield _lines() if shown else lambda what, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Not redirecting stdout: it may be a file that takes --json output.
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bars:
        task = bars.add_task("starting", total=None)

        def report(what: str, done: int, total: int) -> None:
            bars.update(task, description=what, completed=done, total=total)

        yield report


def _lines() -> Callable[[str, int, int], None]:
    said = time.monotonic()

    def report(what: str, done: int, total: int) -> None:
        nonlocal said
        if time.monotonic() - said >= _SECONDS:
            said = time.monotonic()
            print(f"{what}: {done}/{total}", file=sys.stderr)

    return report
