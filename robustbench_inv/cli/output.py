"""What commands print: results on standard output, everything else on standard error."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["complain", "print_card", "print_json", "print_names", "say"]


_EMPTY: tuple[object, ...] = ("", None, [], (), {})
"""What a card does not show."""


def print_json(value: object) -> None:
    """Print a value as JSON on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def print_names(entries: Sequence[Mapping[str, object]]) -> None:
    """Print name and summary of each entry, aligned."""
    width = max((len(str(entry["name"])) for entry in entries), default=0)
    for entry in entries:
        sys.stdout.write(f"{entry['name']!s:<{width}}  {entry.get('summary', '')}".rstrip() + "\n")


def print_card(kind: str, card: Mapping[str, object]) -> None:
    """Print a card as ``key: value`` lines; what is empty is left out."""
    sys.stdout.write(f"kind of entry: {kind.removesuffix('s')}\n")
    for key, value in card.items():
        if value not in _EMPTY:
            sys.stdout.write(f"{key}: {_show(value)}\n")


def say(line: str) -> None:
    """Print one line of progress on standard error."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def complain(problems: Iterable[str]) -> None:
    """Print each problem as one line on standard error."""
    for problem in problems:
        say(f"warning: {problem}")


def _show(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(
            f"{key}={_show(each)}" for key, each in value.items() if each not in _EMPTY
        )
    if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
        return "".join(f"\n  {_show(each)}" for each in value)
    if isinstance(value, list | tuple):
        return ", ".join(map(_show, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
