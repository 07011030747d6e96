"""Calls what a reference names with the parameters that came with it, and explains what does not fit."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from robustbench_inv.catalogue.fields import Mismatch, check_fields
from robustbench_inv.catalogue.references import nearest
from robustbench_inv.errors import BadParameter, InvbenchError

__all__ = ["call_factory"]


def call_factory(
    factory: Callable[..., object], parameters: Mapping[str, Any], name: str
) -> object:
    """Return what a class or function makes of the parameters.

    Args:
        factory: a dataclass, whose values are checked against its annotations, or any other callable, whose
            signature must accept the names.
        parameters: by name.
        name: how the user called it, for messages.

    Raises:
        BadParameter: for a parameter that it does not have, misses, or cannot use.
    """
    if dataclasses.is_dataclass(factory):
        return factory(**_checked(factory, parameters, name))
    _check_signature(factory, parameters, name)
    try:
        return factory(**parameters)
    except InvbenchError:
        raise
    except Exception as error:
        problem = f"{name} raised {type(error).__name__}: {error}"
        raise BadParameter(problem, got=dict(parameters) or None) from error


def _checked(kind: type[Any], parameters: Mapping[str, Any], name: str) -> dict[str, Any]:
    try:
        return check_fields(kind, parameters)
    except Mismatch as mismatch:
        problem = mismatch.problem.replace("unknown key", "unknown parameter")
        raise BadParameter(f"{name}: {problem}", **mismatch.details()) from None


def _check_signature(
    factory: Callable[..., object], parameters: Mapping[str, Any], name: str
) -> None:
    known = inspect.signature(factory).parameters
    if any(p.kind is p.VAR_KEYWORD for p in known.values()):
        return
    for key in parameters:
        if key not in known:
            expected = "one of " + ", ".join(known) if known else "none at all"
            remedy = nearest(key, known)
            raise BadParameter(f"{name}: unknown parameter {key}", expected=expected, remedy=remedy)
    for key, p in known.items():
        if key not in parameters and p.default is p.empty and p.kind is not p.VAR_POSITIONAL:
            remedy = f"append :{key}=VALUE to the name"
            raise BadParameter(f"{name}: parameter {key} is missing", remedy=remedy)
