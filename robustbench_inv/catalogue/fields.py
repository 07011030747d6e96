"""Checks values from files and users against the annotations of a dataclass, or the signature of a factory."""

import dataclasses
import inspect
import math
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from robustbench_inv.errors import BadParameter, InvbenchError, did_you_mean

__all__ = ["Mismatch", "call_factory", "check_fields", "check_signature", "explain_mismatch"]


SCALARS = {
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
}
"""Names of types in error messages."""


class Mismatch(Exception):
    """An invalid key or value; ``explain_mismatch`` adds its place.

    Args:
        problem: the problem, one clause.
        got: the value found; None for an invalid key.
        expected: description of valid values.
        remedy: the closest valid keys.
    """

    def __init__(
        self, problem: str, *, got: object = None, expected: str = "", remedy: str = ""
    ) -> None:
        super().__init__(problem)
        self.problem, self.got, self.expected, self.remedy = problem, got, expected, remedy


@contextmanager
def explain_mismatch(error: type[InvbenchError], place: str) -> Iterator[None]:
    """Raise a mismatch as another error, whose message starts with its place: a file, or a name with parameters."""
    try:
        yield
    except Mismatch as mismatch:
        problem = mismatch.problem
        if error is BadParameter:
            problem = problem.replace("unknown key", "unknown parameter")
        raise error(
            f"{place}: {problem}",
            got=mismatch.got,
            expected=mismatch.expected,
            remedy=mismatch.remedy,
        ) from None


def check_fields(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values in the types of a dataclass: lists as tuples, whole numbers as floats.

    Args:
        kind: a dataclass whose annotations define the valid values.
        values: the values found, by field name.

    Raises:
        Mismatch: for an unknown or missing key, or a value of the wrong type.
    """
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    for key in values:
        if key not in fields:
            raise Mismatch(
                f"unknown key {key}", expected=_all(fields), remedy=did_you_mean(key, fields)
            )
    for name, f in fields.items():
        if name not in values and _required(f):
            raise Mismatch(f"key {name} is missing")
    hints = get_type_hints(kind)
    return {key: _convert(key, value, hints[key]) for key, value in values.items()}


def _all(names: Iterable[str]) -> str:
    return "one of " + ", ".join(names) if names else "none at all"


def _required(f: "dataclasses.Field[Any]") -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _convert(key: str, value: object, hint: object) -> object:
    origin = get_origin(hint)
    if isinstance(hint, type) and hint in SCALARS:
        return _scalar(key, value, hint)
    if origin is Literal:
        return _choice(key, value, get_args(hint))
    if origin is tuple:
        return _tuple(key, value, get_args(hint))
    if origin in (Union, types.UnionType):
        return _union(key, value, get_args(hint))
    if isinstance(origin, type) and issubclass(origin, Mapping) and not isinstance(value, Mapping):
        raise Mismatch(f"{key} does not fit", got=value, expected="a table")
    return value


def _scalar(key: str, value: object, kind: type) -> object:
    if kind is not float and type(value) is kind:
        return value
    if (
        kind is float
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    ):
        return float(value)
    raise Mismatch(f"{key} does not fit", got=value, expected=SCALARS[kind])


def _choice(key: str, value: object, choices: tuple[object, ...]) -> object:
    if value in choices and type(value) in {type(choice) for choice in choices}:
        return value
    known = [str(choice) for choice in choices]
    remedy = did_you_mean(str(value), known)
    raise Mismatch(f"{key} does not fit", got=value, expected=_all(known), remedy=remedy)


def _tuple(key: str, value: object, hints: tuple[object, ...]) -> tuple[object, ...]:
    if not isinstance(value, list | tuple):
        raise Mismatch(f"{key} does not fit", got=value, expected="a list")
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = (hints[0],) * len(value)
    if len(hints) != len(value):
        raise Mismatch(f"{key} does not fit", got=value, expected=f"a list of {len(hints)}")
    return tuple(_convert(key, each, hint) for each, hint in zip(value, hints, strict=True))


def _union(key: str, value: object, hints: tuple[object, ...]) -> object:
    if type(None) in hints and value in (None, "none"):
        return None
    mismatches = []
    for hint in hints:
        if hint is not type(None):
            try:
                return _convert(key, value, hint)
            except Mismatch as mismatch:
                mismatches.append(mismatch)
    expected = " or ".join(m.expected for m in mismatches)
    raise Mismatch(f"{key} does not fit", got=value, expected=expected)


def call_factory(
    factory: Callable[..., object], parameters: Mapping[str, Any], name: str
) -> object:
    """Return the result of a class or function, called with checked parameters.

    Args:
        factory: a dataclass, whose values are checked against its annotations, or any other callable, whose
            signature must accept the names.
        parameters: by name.
        name: the user's name for it, for messages.

    Raises:
        BadParameter: for an unknown, missing or unusable parameter.
    """
    if dataclasses.is_dataclass(factory):
        with explain_mismatch(BadParameter, name):
            return factory(**check_fields(factory, parameters))
    check_signature(factory, parameters, name)
    try:
        return factory(**parameters)
    except InvbenchError:
        raise
    except Exception as error:
        problem = f"{name} raised {type(error).__name__}: {error}"
        raise BadParameter(problem, got=dict(parameters) or None) from error


def check_signature(
    factory: Callable[..., object], parameters: Mapping[str, Any], name: str
) -> None:
    """Check that a factory takes parameters of these names and needs no others.

    Raises:
        BadParameter: for an unknown or missing parameter.
    """
    known = inspect.signature(factory).parameters
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return
    for key in parameters:
        if key not in known:
            expected = "one of " + ", ".join(known) if known else "none at all"
            remedy = did_you_mean(key, known)
            raise BadParameter(f"{name}: unknown parameter {key}", expected=expected, remedy=remedy)
    for key, p in known.items():
        if key not in parameters and p.default is p.empty and p.kind is not p.VAR_POSITIONAL:
            remedy = f"append :{key}=VALUE to the name"
            raise BadParameter(f"{name}: parameter {key} is missing", remedy=remedy)
