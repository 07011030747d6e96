"""Types of the values in result files: a damaged value is refused when a file is read, not where it is used."""

import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from math import isfinite
from types import UnionType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints

from robustbench_inv.results.rate import Decision

__all__ = ["check_plan", "check_types", "is_verdict"]


def check_types(value: object) -> None:
    """Check the fields of a dataclass against their annotations, nested dataclasses and tuples included.

    Raises:
        TypeError: for a value of another type; a whole number is a number.
        ValueError: for a number that is not finite.
    """
    for name, hint in _hints(type(value)).items():  # type: ignore[arg-type]
        _check_type(getattr(value, name), hint, name)


@cache  # a run has many cells of one kind
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _check_type(value: object, hint: object, name: str) -> None:
    origin, parts = get_origin(hint) or hint, get_args(hint)
    if origin in (Union, UnionType):
        fitting = [part for part in parts if _is_kind(value, part)]
        if not fitting:
            _refuse_type(value, name)
        _check_type(value, fitting[0], name)
    elif not _is_kind(value, hint):
        _refuse_type(value, name)
    elif is_dataclass(value):
        check_types(value)
    elif isinstance(value, tuple) and parts == (int, ...):
        if not {int}.issuperset(map(type, value)):  # many, as the ids of samples
            _refuse_type(value, name)
    elif isinstance(value, tuple):
        hints = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        for each, part in zip(value, hints, strict=True):
            _check_type(each, part, name)
    elif isinstance(value, float) and not isfinite(value):
        raise ValueError(f"{name} is not finite")


def _is_kind(value: object, hint: object) -> bool:
    kind = get_origin(hint) or hint
    if kind is float:
        return type(value) in (int, float)
    if kind in (int, str, bool):
        return type(value) is kind
    return kind is Any or (isinstance(kind, type) and isinstance(value, kind)) or value is kind


def _refuse_type(value: object, name: str) -> NoReturn:
    raise TypeError(f"{name} is {str(value)[:60]!r}")


_VERDICT_TEXTS = ("id", "title", "scope", "subject", "verdict", "evidence")


def is_verdict(value: object) -> bool:
    """Is it a verdict, with strings and one number or null?"""
    if not isinstance(value, dict) or "value" not in value:
        return False
    texts = [value.get(key) for key in _VERDICT_TEXTS] + [value.get("rule", value.get("limit"))]
    number = value.get("value")
    fitting = number is None or (type(number) in (int, float) and isfinite(number))
    fitting &= type(value.get("samples") or 0) is int and isinstance(value.get("records", ""), str)
    return fitting and all(isinstance(text, str) for text in texts)


_PLAN_ENTRY = {"digest": str, "model": str, "attack": str, "dataset": str}


_DIGEST = re.compile("[0-9a-f]+")


def check_plan(plan: Mapping[str, Any]) -> None:
    """Raise KeyError, TypeError or ValueError if a value of plan.json is missing or has the wrong type."""
    for key, kind in (("name", str), ("cells", list), ("samples", list), ("commands", list)):
        if type(plan[key]) is not kind:
            raise TypeError(f"{key} is {str(plan[key])[:60]!r}")
    if not all(type(sample) is int for sample in plan["samples"]):
        raise TypeError("samples are not whole numbers")
    if not all(type(word) is str for command in plan["commands"] for word in command):
        raise TypeError("commands are not lists of words")
    for each in plan.get("decisions", ()):
        Decision.from_json(each)
    for cell in plan["cells"]:
        if wrong := [key for key, kind in _PLAN_ENTRY.items() if type(cell[key]) is not kind]:
            raise TypeError(f"{wrong[0]} of a cell is {str(cell[wrong[0]])[:60]!r}")
        if not _DIGEST.fullmatch(cell["digest"]):
            raise ValueError(f"a cell is called {cell['digest'][:60]!r}")
