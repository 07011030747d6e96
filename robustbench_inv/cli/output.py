"""Output of the commands: results on standard output; progress, messages and warnings on standard error."""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from typing import TextIO

from robustbench_inv.arguments import printable, printable_json
from robustbench_inv.progress import print_message, show_progress

__all__ = [
    "print_card",
    "print_json",
    "print_line",
    "print_message",
    "print_names",
    "print_warnings",
    "reserved_stdout",
    "results_stream",
    "seconds_so_far",
    "show_progress",
    "start_clock",
]


_OMITTED_VALUES: tuple[object, ...] = ("", None, [], (), {})
"""Values that are left out of a printed card."""


_started: list[float] = []


def start_clock() -> None:
    """Note when the program began; see ``seconds_so_far``."""
    _started[:] = [time.perf_counter()]


def seconds_so_far() -> float:
    """Return the seconds since the program began; 0 if it is a part of another program."""
    return time.perf_counter() - _started[0] if _started else 0.0


_reserved: list[TextIO] = []


def results_stream() -> TextIO:
    """Return the stream of results: standard output, also while ``reserved_stdout`` keeps other code from it."""
    return _reserved[-1] if _reserved else sys.stdout


@contextmanager
def reserved_stdout() -> Iterator[None]:
    """Keep standard output for results, so that ``--json`` prints JSON alone.

    What other code prints there, in C, in threads and in worker processes as well, goes to standard error.
    """
    with ExitStack() as stack:
        reserve = _reserved_descriptor if _is_descriptor(sys.stdout) else nullcontext
        _reserved.append(stack.enter_context(reserve(sys.stdout)))
        stack.callback(_reserved.pop)
        stack.enter_context(redirect_stdout(sys.stderr))
        yield


def _is_descriptor(stream: TextIO) -> bool:
    try:
        return stream.fileno() == STDOUT
    except (OSError, ValueError):  # closed, or replaced by a test
        return False


STDOUT, STDERR = 1, 2


@contextmanager
def _reserved_descriptor(stream: TextIO) -> Iterator[TextIO]:
    """Yield standard output under another descriptor, while its own leads to standard error."""
    stream.flush()
    kept = os.dup(STDOUT)
    try:
        os.dup2(STDERR, STDOUT)
    except OSError:  # standard error is closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), STDOUT)
    try:
        with open(kept, "w", encoding=stream.encoding, errors=stream.errors, closefd=False) as own:
            yield own
    finally:
        os.dup2(kept, STDOUT)
        os.close(kept)


def print_line(text: object) -> None:
    """Print one line of results on standard output, without control characters."""
    results_stream().write(printable(f"{text}\n"))


def print_json(value: object) -> None:
    """Print a value as JSON on standard output."""
    print_line(printable_json(json.dumps(value, indent=2, ensure_ascii=False)))


def print_names(entries: Sequence[Mapping[str, object]]) -> None:
    """Print name and summary of each entry, aligned."""
    width = max((len(str(entry["name"])) for entry in entries), default=0)
    for entry in entries:
        print_line(f"{entry['name']!s:<{width}}  {entry.get('summary', '')}".rstrip())


def print_card(kind: str, card: Mapping[str, object]) -> None:
    """Print a card as ``key: value`` lines without empty values."""
    print_line(f"kind of entry: {kind.removesuffix('s')}")
    for key, value in card.items():
        if key == "deviations" and card.get("algorithm"):
            print_line(f"deviations from the algorithm: {_format_sentences(value)}")
        elif key == "bibtex":
            print_line(f"\n{value}")
        elif value not in _OMITTED_VALUES:
            print_line(f"{key}: {_format_value(value)}")


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
