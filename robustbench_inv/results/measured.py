"""The numbers that attacks keep of each sample beside its record, read from a cell's notes."""

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["MEASURED", "read_measured"]

MEASURED = "measured"
"""Kind of the notes that hold such numbers."""

Column = dict[int, float | None]


def read_measured(events: Iterable[Mapping[str, Any]]) -> dict[str, Column]:
    """Return name → sample → number; None for one that was not finite.

    A block that is evaluated again notes its numbers again: the last one counts.

    Example:
        >>> note = {"kind": "measured", "samples": [3, 8], "values": {"donor": [5, 1]}}
        >>> read_measured([{"kind": "time"}, note])
        {'donor': {3: 5, 8: 1}}
    """
    columns: dict[str, Column] = {}
    for event in events:
        if event.get("kind") != MEASURED:
            continue
        for name, values in event["values"].items():
            columns.setdefault(name, {}).update(zip(event["samples"], values, strict=True))
    return columns
