"""What a reproduction measures instead of running attacks, and what is expected of its numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Expectation", "Measurement"]


@dataclass(frozen=True)
class Measurement:
    """What is measured.

    Args:
        by: ``module:function``, called with what was asked for and the parameters.
        parameters: by name; ``{data}`` in a text stands for the data set.
    """

    by: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def filled(self, data: str) -> dict[str, Any]:
        """Return the parameters for a data set.

        Example:
            >>> Measurement("m:f", {"pairs": {"DV": ["{data}-c-dv"]}, "n": 2}).filled("mnist")
            {'pairs': {'DV': ['mnist-c-dv']}, 'n': 2}
        """
        return {key: _filled(value, data) for key, value in self.parameters.items()}


@dataclass(frozen=True)
class Expectation:
    """A number, or the difference of two, that is to lie between limits.

    Args:
        text: one sentence.
        rows: labels of rows; every one must fulfil it.
        columns: names of columns; every one must fulfil it.
        minus: a column whose number in the same row is subtracted; empty to take the number itself.
        at_least: in per cent or points, or the amount itself; None for no limit.
        at_most: likewise.
    """

    text: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    minus: str = ""
    at_least: float | None = None
    at_most: float | None = None


def _filled(value: object, data: str) -> object:
    if isinstance(value, str):
        return value.replace("{data}", data)
    if isinstance(value, Mapping):
        return {key: _filled(each, data) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, data) for each in value]
    return value
