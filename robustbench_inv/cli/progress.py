"""Progress of an evaluation on standard error: bars on a terminal, a line for each cell elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from robustbench_inv.cli.output import say

if TYPE_CHECKING:
    from robustbench_inv.evaluation.engine import Progress

__all__ = ["reporting"]

Report = Callable[["Progress"], None]


@contextmanager
def reporting() -> Iterator[Report]:
    """Yield what an evaluation calls as it goes on."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        yield _tasks(bars.add_task, bars.update)


def _lines() -> Report:
    start, told = time.perf_counter(), set[str]()

    def report(progress: "Progress") -> None:
        if progress.done >= progress.total and progress.title not in told:
            told.add(progress.title)
            seconds = time.perf_counter() - start
            say(f"[{progress.cell}/{progress.cells}] {progress.title}: done after {seconds:.1f} s")

    return report


def _tasks(add: Callable[..., object], update: Callable[..., None]) -> Report:
    tasks: dict[str, object] = {}

    def report(progress: "Progress") -> None:
        if progress.title not in tasks:
            description = f"[{progress.cell}/{progress.cells}] {progress.title}"
            tasks[progress.title] = add(description, total=progress.total)
        update(tasks[progress.title], completed=progress.done)

    return report
