"""Output of the commands: results on standard output; progress, messages and warnings on standard error."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robustbench_inv.evaluation.engine import Progress

__all__ = [
    "print_card",
    "print_json",
    "print_message",
    "print_names",
    "print_warnings",
    "show_progress",
]


_OMITTED_VALUES: tuple[object, ...] = ("", None, [], (), {})
"""Values that are left out of a printed card."""


def print_json(value: object) -> None:
    """Print a value as JSON on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_names(entries: Sequence[Mapping[str, object]]) -> None:
    """Print name and summary of each entry, aligned."""
    width = max((len(str(entry["name"])) for entry in entries), default=0)
    for entry in entries:
        sys.stdout.write(f"{entry['name']!s:<{width}}  {entry.get('summary', '')}".rstrip() + "\n")


def print_card(kind: str, card: Mapping[str, object]) -> None:
    """Print a card as ``key: value`` lines without empty values."""
    sys.stdout.write(f"kind of entry: {kind.removesuffix('s')}\n")
    for key, value in card.items():
        if key == "deviations" and card.get("algorithm"):
            sys.stdout.write(f"deviations from the algorithm: {_format_sentences(value)}\n")
        elif value not in _OMITTED_VALUES:
            sys.stdout.write(f"{key}: {_format_value(value)}\n")


def print_message(line: str) -> None:
    """Print one line of progress on standard error."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def print_warnings(problems: Iterable[str]) -> None:
    """Print each problem as one line on standard error."""
    for problem in problems:
        print_message(f"warning: {problem}")


def _format_value(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(
            f"{key}={_format_value(each)}"
            for key, each in value.items()
            if each not in _OMITTED_VALUES
        )
    if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
        return "".join(f"\n  {_format_value(each)}" for each in value)
    if isinstance(value, list | tuple):
        return ", ".join(map(_format_value, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _format_sentences(value: object) -> str:
    assert isinstance(value, list | tuple)
    return "".join(f"\n  - {sentence}" for sentence in value) or "none"


ProgressCallback = Callable[["Progress"], None]


@contextmanager
def show_progress() -> Iterator[ProgressCallback]:
    """Yield a callback that displays the progress of an evaluation."""
    if not sys.stderr.isatty():
        yield _line_callback()
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
        yield _bar_callback(bars.add_task, bars.update)


def _line_callback() -> ProgressCallback:
    start = time.perf_counter()

    def report(progress: "Progress") -> None:
        if progress.state != "running":
            word = "done" if progress.state == "completed" else "failed"
            seconds = time.perf_counter() - start
            place = f"[{progress.cell}/{progress.cells}] {progress.title}"
            print_message(f"{place}: {word} after {seconds:.1f} s")

    return report


def _bar_callback(add: Callable[..., object], update: Callable[..., None]) -> ProgressCallback:
    tasks: dict[str, object] = {}

    def report(progress: "Progress") -> None:
        description = f"[{progress.cell}/{progress.cells}] {progress.title}"
        if progress.digest not in tasks:
            tasks[progress.digest] = add(description, total=progress.total)
        if progress.state == "failed":
            description += ": failed"
        update(tasks[progress.digest], completed=progress.done, description=description)

    return report
