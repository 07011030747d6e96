"""Ranges of an attack's parameters: one complaint for each kind of range, whichever attack has it."""

from robustbench_inv.errors import BadParameter

__all__ = ["check_below", "check_least", "check_positive"]


def check_positive(attack: object, *names: str) -> None:
    """Raise BadParameter for the first of the fields that is not above 0."""
    for name in names:
        _check(attack, name, getattr(attack, name) > 0, "> 0")


def check_least(attack: object, **least: float) -> None:
    """Raise BadParameter for the first of the fields that is less than its least value."""
    for name, bound in least.items():
        _check(attack, name, getattr(attack, name) >= bound, f">= {bound}")


def check_below(attack: object, **most: float) -> None:
    """Raise BadParameter for the first of the fields that is not above 0 and below its bound."""
    for name, bound in most.items():
        _check(attack, name, 0 < getattr(attack, name) < bound, f"> 0 and < {bound:g}")


def _check(attack: object, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise BadParameter(f"unusable {name}", got=getattr(attack, name), expected=expected)
