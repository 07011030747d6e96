"""Shows the progress of an evaluation: bars in a terminal, one line that changes in a notebook, else lines of text."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from html import escape
from importlib import import_module
from typing import TYPE_CHECKING, Any

from robustbench_inv.arguments import printable

if TYPE_CHECKING:
    from robustbench_inv.evaluation.engine import Progress

__all__ = ["is_interactive", "print_message", "show_progress"]


def print_message(line: str) -> None:
    """Print one line of progress on standard error, without control characters."""
    with suppress(OSError, ValueError):  # standard error is closed: the results are not lost
        sys.stderr.write(printable(" ".join(line.splitlines())) + "\n")
        sys.stderr.flush()


ProgressCallback = Callable[["Progress"], None]


@contextmanager
def show_progress() -> Iterator[ProgressCallback]:
    """Yield a callback that displays the progress of an evaluation."""
    if shell := _notebook():
        yield _notebook_callback(shell)
        return
    if not sys.stderr.isatty():
        yield _line_callback()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        yield _bar_callback(bars.add_task, bars.update)


def is_interactive() -> bool:
    """Return whether somebody watches: standard error is a terminal, or the code runs in a notebook."""
    return bool(_notebook()) or sys.stderr.isatty()


def _notebook() -> Any:  # noqa: ANN401 - a module of IPython, which is not required
    """Return the module that shows results in a notebook; None outside of one."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return import_module("IPython.display") if hasattr(shell, "kernel") else None


LINE_SECONDS = 30.0
"""Seconds between two lines about a running evaluation if standard error is no terminal."""


def _line_callback() -> ProgressCallback:
    start = printed = time.perf_counter()

    def report(progress: "Progress") -> None:
        nonlocal printed
        now = time.perf_counter()
        place = f"[{progress.cell}/{progress.cells}] {progress.title}"
        if progress.state != "running":
            word = "done" if progress.state == "completed" else "failed"
            print_message(f"{place}: {word} after {now - start:.1f} s")
        elif now - printed >= LINE_SECONDS:
            done = f"{progress.done} of {progress.total} samples done"
            inside = f"; {progress.detail}" if progress.detail else ""
            print_message(f"{place}: {done} after {now - start:.0f} s{inside}")
        else:
            return
        printed = now

    return report


def _bar_callback(add: Callable[..., object], update: Callable[..., None]) -> ProgressCallback:
    tasks: dict[str, object] = {}

    def report(progress: "Progress") -> None:
        description = printable(f"[{progress.cell}/{progress.cells}] {progress.title}")
        if progress.digest not in tasks:
            tasks[progress.digest] = add(description, total=progress.total)
        if progress.state == "failed":
            description += ": failed"
        elif progress.detail:
            description += f": {progress.detail}"
        update(tasks[progress.digest], completed=progress.done, description=description)

    return report


class _Line:
    """One line about an evaluation, with a bar in a notebook."""

    def __init__(self) -> None:
        self.text, self.done, self.total = "", 0, 1

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        bar = f'<progress value="{self.done}" max="{self.total}"></progress>'
        return f"{bar} {escape(self.text)}"


def _notebook_callback(display: Any) -> ProgressCallback:  # noqa: ANN401 - a module of IPython
    line, handle = _Line(), display.DisplayHandle()
    handle.display(line)

    def report(progress: "Progress") -> None:
        words = (f"{progress.done} of {progress.total} samples", progress.detail)
        state = "failed" if progress.state == "failed" else ", ".join(filter(None, words))
        place = f"[{progress.cell}/{progress.cells}] {progress.title}"
        line.text = printable(f"{place}: {state}")
        line.done, line.total = progress.done, max(1, progress.total)
        handle.update(line)

    return report
