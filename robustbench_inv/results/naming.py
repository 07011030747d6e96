"""How readers are told of a cell's attack: by its name, the class that it aims at, and the model that helped it."""

from collections.abc import Mapping
from typing import Any

__all__ = ["attack_name", "substitute_name", "with_substitute"]


def substitute_name(cell: Mapping[str, Any]) -> str | None:
    """Return the name of the model that answered or led the search in place of the attacked one, if any.

    Args:
        cell: the content of cell.json.
    """
    substitute = cell["threat"].get("substitute")
    return str(substitute["name"]) if substitute else None


def attack_name(cell: Mapping[str, Any]) -> str:
    """Return the name of a cell's attack with the class that it aims at and its substitute's, if any.

    Args:
        cell: the content of cell.json.
    """
    access = str(cell["threat"].get("access", "white-box"))
    name = str(cell["attack"]["name"]) + _aim(cell["threat"])
    return with_substitute(name, access, substitute_name(cell))


def with_substitute(attack: str, access: str, substitute: str | None) -> str:
    """Return how an attack is called when another model helps it: it is another attack then.

    Example:
        >>> with_substitute("fgsm", "transfer", "mnist-lenet5")
        'fgsm via mnist-lenet5'
        >>> with_substitute("pgd", "score", "mnist-lenet5")
        'pgd guided by mnist-lenet5'
    """
    if substitute is None:
        return attack
    return f"{attack} {'via' if access == 'transfer' else 'guided by'} {substitute}"


def _aim(threat: Mapping[str, Any]) -> str:
    """Return what stands behind an attack that aims at a class: for every class it is another attack."""
    about = threat.get("goal_parameters") or {}
    if not str(threat.get("goal", "")).startswith("target") or not about:
        return ""
    to = f"{about['label']}" if about.get("offset") is None else f"y+{about['offset']}"
    by = about.get("confidence") or 0.0
    return f" → {to} by {by:g}" if by else f" → {to}"
