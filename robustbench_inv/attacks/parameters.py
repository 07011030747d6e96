"""Checks of attack parameters: ranges for our own attacks, signatures for the attacks of other libraries."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin

from robustbench_inv.errors import BadParameter, UnknownName, did_you_mean, suggest

__all__ = [
    "Reserved",
    "check_below",
    "check_least",
    "check_parameters",
    "check_positive",
    "find_attack",
]


def check_positive(attack: object, *names: str) -> None:
    """Raise BadParameter for the first field that is not finite and above 0; None passes."""
    for name in names:
        value = getattr(attack, name)
        _check(attack, name, value is None or 0 < value < math.inf, "> 0")


def check_least(attack: object, **least: float) -> None:
    """Raise BadParameter for the first field that is not finite or below its smallest value."""
    for name, bound in least.items():
        _check(attack, name, bound <= getattr(attack, name) < math.inf, f">= {bound}")


def check_below(attack: object, **most: float) -> None:
    """Raise BadParameter for the first field that is not above 0 and below its bound."""
    for name, bound in most.items():
        _check(attack, name, 0 < getattr(attack, name) < bound, f"> 0 and < {bound:g}")


def _check(attack: object, name: str, valid: bool, expected: str) -> None:
    if not valid:
        raise BadParameter(f"unusable {name}", got=getattr(attack, name), expected=expected)


Reserved = Mapping[str, str]
"""Parameters of a library that the benchmark sets, and what to do instead."""


def find_attack(library: str, known: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401
    """Return the attack of this name in a library.

    Raises:
        UnknownName: with the closest known names.
    """
    if name not in known:
        raise UnknownName(f"{library} has no attack {name!r}", remedy=suggest(name, known))
    return known[name]


def check_parameters(
    name: str, factory: Callable[..., object], given: Mapping[str, object], reserved: Reserved
) -> dict[str, Any]:
    """Return the parameters converted to the types that the attack expects.

    Args:
        name: of the attack, for messages.
        factory: its signature defines the parameters.
        given: values by name; lists become tuples, and so does ``2x10`` where the default is a tuple.
        reserved: parameters that may not be set.

    Raises:
        BadParameter: for an unknown parameter, or a value of another type than the default.
    """
    accepted = _accepted(factory, reserved)
    for key in given:
        if key in reserved:
            raise BadParameter(f"{name}: {key} cannot be set", remedy=reserved[key])
        if key not in accepted:
            raise BadParameter(
                f"{name}: unknown parameter {key}",
                expected="one of " + ", ".join(accepted) if accepted else "none at all",
                remedy=did_you_mean(key, accepted),
            )
    return {key: _checked(f"{name}: {key}", value, accepted[key]) for key, value in given.items()}


def _accepted(factory: Callable[..., object], reserved: Reserved) -> dict[str, inspect.Parameter]:
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(factory).parameters
    return {
        key: parameter
        for key, parameter in found.items()
        if parameter.kind not in variable and key not in reserved
    }


def _checked(what: str, value: object, parameter: inspect.Parameter) -> object:
    choices = _choices(parameter.annotation)
    if choices and value not in choices:
        expected = "one of " + ", ".join(str(choice) for choice in choices)
        raise BadParameter(f"{what} does not fit", got=value, expected=expected)
    if isinstance(value, float) and not math.isfinite(value):
        raise BadParameter(f"{what} does not fit", got=value, expected="a finite number")
    if isinstance(parameter.default, tuple) or isinstance(value, list | tuple):
        return _tuple(what, value)
    return _scalar(what, value, parameter)


def _choices(annotation: object) -> tuple[object, ...]:
    """Return the values of all ``Literal`` in an annotation."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(choice for part in get_args(annotation) for choice in _choices(part))


def _tuple(what: str, value: object) -> tuple[object, ...]:
    if isinstance(value, list | tuple):
        return tuple(value)
    parts = str(value).split("x")
    try:
        return tuple(int(part) for part in parts)
    except ValueError:
        raise BadParameter(f"{what} does not fit", got=value, expected="such as 2x10") from None


def _scalar(what: str, value: object, parameter: inspect.Parameter) -> object:
    kind = type(parameter.default)
    whole = int in (parameter.annotation, kind) and parameter.annotation is not float
    if kind is bool and not isinstance(value, bool):
        raise BadParameter(f"{what} does not fit", got=value, expected="true or false")
    if kind is str and not isinstance(value, str):
        raise BadParameter(f"{what} does not fit", got=value, expected="a word")
    if kind in (int, float) or parameter.annotation in (int, float):
        return _number(what, value, whole=whole and parameter.name not in _REAL_VALUED)
    return value


_REAL_VALUED = ("beta", "c", "confidence", "kappa", "lam", "scale", "std")
"""Real parameters whose default is a whole number."""


def _number(what: str, value: object, *, whole: bool) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadParameter(f"{what} does not fit", got=value, expected="a number")
    if whole and (not isinstance(value, int) or value < 0):
        raise BadParameter(f"{what} does not fit", got=value, expected="a whole number >= 0")
    return value
