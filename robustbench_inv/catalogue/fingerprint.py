"""What an object is made of, as plain values, so that equal objects have equal digests."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from robustbench_inv.identity import digest_bytes

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["describe", "plain"]


def describe(thing: object) -> dict[str, Any]:
    """Return an object's type and what it is made of, as plain values (see ``plain``).

    A module is its weights and the plain attributes of its parts (stride, slope, a user's temperature),
    ``training`` and private names aside.
    """
    return _object(thing, (id(thing),))


def plain(value: object) -> Any:  # noqa: ANN401 - nested plain values have no better type
    """Return a value as nested dicts and lists of strings, finite numbers, booleans and None.

    Tensors and bytes become their SHA-256, functions and classes their names, other objects what
    ``describe`` says of them.

    Example:
        >>> plain({"eps": (0.1, float("inf")), "kind": int})
        {'eps': [0.1, 'inf'], 'kind': 'builtins:int'}
    """
    return _plain(value, ())


def _plain(value: object, path: tuple[int, ...]) -> object:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    if isinstance(value, Mapping | set | frozenset | list | tuple):
        return _container(value, path)
    return _leaf(value) or ("…" if id(value) in path else _object(value, (*path, id(value))))


def _container(value: object, path: tuple[int, ...]) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(each, path) for key, each in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(str(_plain(each, path)) for each in value)
    assert isinstance(value, list | tuple)
    return [_plain(each, path) for each in value]


def _leaf(value: object) -> str:
    """Return the text of a value that has no parts, empty for any other."""
    import torch

    if isinstance(value, bytes):
        return digest_bytes(value)
    if isinstance(value, torch.Tensor):
        return _tensor(value)
    if isinstance(value, torch.dtype | torch.device):
        return str(value)
    return _qualified(value) if isinstance(getattr(value, "__qualname__", None), str) else ""


def _object(value: object, path: tuple[int, ...]) -> dict[str, Any]:
    import torch

    if isinstance(value, torch.nn.Module):
        return _module(value, path)
    if dataclasses.is_dataclass(value):
        parts = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    else:
        parts = getattr(value, "__dict__", {})
    return {"type": _qualified(type(value)), **{k: _plain(v, path) for k, v in parts.items()}}


def _tensor(value: "Tensor") -> str:
    import torch

    flat = value.detach().cpu().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return f"{value.dtype} {list(value.shape)} {digest_bytes(data)}"


def _module(value: "nn.Module", path: tuple[int, ...]) -> dict[str, Any]:
    parts = {name: _attributes(part, path) for name, part in value.named_modules()}
    weights = {name: _plain(weight, path) for name, weight in value.state_dict().items()}
    return {"type": _qualified(type(value)), "parts": parts, "weights": weights}


def _attributes(part: "nn.Module", path: tuple[int, ...]) -> dict[str, Any]:
    own = {k: v for k, v in vars(part).items() if not k.startswith("_") and k != "training"}
    return {"type": _qualified(type(part)), **{k: _plain(v, path) for k, v in own.items()}}


def _qualified(value: object) -> str:
    return f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', '')}"
