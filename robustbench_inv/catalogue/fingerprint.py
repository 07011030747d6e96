"""Objects as plain values: short for a reader, or complete for a digest."""

import dataclasses
import functools
import io
import logging
import random
import sys
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from robustbench_inv.catalogue.code_identity import (
    enclosed_values,
    function_code,
    global_values,
    is_local,
    library_version,
    module_of,
    origin_of,
    read_files,
    saved_constants,
    used_names,
)
from robustbench_inv.identity import canonical_json, digest_bytes, digest_value

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["content", "describe", "digest_tensors", "digest_weights", "plain"]


LARGE_FILE = 2**30
"""Bytes of an array in a file beyond which at most 256 evenly spaced rows of it are digested."""


def describe(thing: object) -> dict[str, Any]:
    """Return an object's type and attributes as plain values (see ``plain``)."""
    return _Walk(path={id(thing)}).thing(thing)


def plain(value: object) -> Any:  # noqa: ANN401 - nested plain values have no better type
    """Return a value as nested dicts and lists of strings, finite numbers, booleans and None.

    Tensors and bytes become their SHA-256, functions and classes their names, other objects their description
    (see ``describe``).

    Example:
        >>> plain({"eps": (0.1, float("inf")), "kind": int})
        {'eps': [0.1, 'inf'], 'kind': 'builtins:int'}
    """
    return _Walk().value(value)


def content(value: object) -> Any:  # noqa: ANN401 - nested plain values have no better type
    """Return a value as ``plain`` does, with everything that its behaviour depends on, for a digest.

    - An object: its class and all its attributes, also private ones, without cached values of properties.
    - A network, in addition: all its tensors, also those that are not saved, its parts and its hooks, without
      ``training`` and the device.
    - A user's class or function: its code, that is the file and the local modules that it imports, or the bytecode
      without a file, its enclosed variables, its defaults, and the global values that it uses.
    - A library's class or function: its name and the library's version (see ``code_identity.STABLE``).
    - A class or function of this package: its name. A method that the user replaced counts as the user's code.
    """
    return _Walk(by_code=True).value(value)


def digest_weights(model: object) -> str | None:
    """Return the SHA-256 of a network's state, None for a network without state, or another object."""
    from torch import nn

    weights = model.state_dict() if isinstance(model, nn.Module) else {}
    return digest_value({key: plain(each) for key, each in weights.items()}) if weights else None


def digest_tensors(model: object) -> str:
    """Return the SHA-256 of a network's parameters and buffers, saved or not; empty for another object."""
    from torch import nn

    if not isinstance(model, nn.Module):
        return ""
    named = (*model.named_parameters(), *model.named_buffers())
    return digest_value({name: plain(tensor) for name, tensor in named})


@dataclass
class _Walk:
    """A walk through an object.

    Args:
        by_code: identify classes and functions by their code instead of their names.
        path: ids of the objects around the current one.
        known: digest of each visited class, function and module, and the object itself, which keeps its id valid.
    """

    by_code: bool = False
    path: set[int] = field(default_factory=set)
    known: dict[int, tuple[object, object]] = field(default_factory=dict)

    def value(self, value: object) -> object:
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if abs(value) < float("inf") else str(value)
        if (text := self._leaf(value)) is not None:
            return text
        if not self.by_code and isinstance(getattr(value, "__qualname__", None), str):
            return _qualified(value)
        code = self.by_code and isinstance(value, _CODE)
        return self._once(value) if code else self._inside(value, self._parts)

    def thing(self, value: object) -> dict[str, Any]:
        parts = _attributes(value)
        # "class" cannot be the name of an attribute, "type" can: readers see "type", digests need the other
        about: dict[str, Any] = {"class" if self.by_code else "type": self.value(type(value))}
        about |= {name: self.value(each) for name, each in parts.items()}
        return {**about, "()": self.value(_reduced(value))} if self.by_code and not parts else about

    def _inside(self, value: object, look: Callable[[Any], object]) -> object:
        """Visit an object, unless the walk is inside of it already."""
        if id(value) in self.path:
            return "…"
        self.path.add(id(value))
        found = look(value)
        self.path.discard(id(value))
        return found

    def _once(self, value: object) -> object:
        """Return the name of a class, function or module, or a digest of its code."""
        if id(value) not in self.known:
            looks: tuple[Callable[[Any], object], ...]
            looks = (self._function, self._class, self._source)
            look = next(f for kind, f in zip(_CODE, looks, strict=True) if isinstance(value, kind))
            found = self._inside(value, look)
            text = found if isinstance(found, str) else digest_value({"code": found})
            if text == "…":
                return text
            self.known[id(value)] = (value, text)
        return self.known[id(value)][1]

    def _leaf(self, value: object) -> str | None:
        """Return the text of a value that has no parts, None for any other."""
        import numpy as np
        import torch

        if isinstance(value, random.Random):
            value = repr(value.getstate()).encode()
        if isinstance(value, bytes | bytearray | memoryview):
            return digest_bytes(bytes(value))
        if isinstance(value, torch.Tensor):
            return _tensor(value)
        if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
            if isinstance(value, np.memmap) and value.nbytes > LARGE_FILE:
                value = value[:: len(value) // 256 + 1]
            array = np.ascontiguousarray(value).tobytes()
            hidden = np.ma.getmaskarray(value).tobytes() if np.ma.isMaskedArray(value) else b""
            return f"{value.dtype.str} {list(value.shape)} {digest_bytes(array + hidden)}"
        if isinstance(value, torch.dtype):
            return str(value)
        if isinstance(value, torch.device):  # where a model computes is no part of what it is
            return "device" if self.by_code else str(value)
        return _qualified(type(value)) if self.by_code and isinstance(value, _opaque()) else None

    def _parts(self, value: object) -> object:
        import torch

        if isinstance(value, torch.nn.Module):
            return self._module(value)
        if isinstance(value, Mapping | set | frozenset | list | tuple):
            return self._container(value)
        if isinstance(value, functools.partial):
            return [self.value(each) for each in (value.func, value.args, value.keywords)]
        if isinstance(value, property):
            return [self.value(each) for each in (value.fget, value.fset)]
        if isinstance(value, staticmethod | classmethod | types.MethodType):
            of = self.value(getattr(value, "__self__", None))
            return {"method": self.value(value.__func__), "of": of}
        return self.thing(value)

    def _container(self, value: Any) -> object:  # noqa: ANN401 - of any kind
        if isinstance(value, Mapping):
            items: object = self._mapping(value)
        elif isinstance(value, set | frozenset):
            found = [self.value(each) for each in value]
            items = sorted(found, key=canonical_json) if self.by_code else sorted(map(str, found))
        else:
            items = [self.value(each) for each in value]
        if not self.by_code:
            return items
        if (made := getattr(value, "default_factory", None)) is not None:
            return {"items": items, "default": self.value(made)}
        own = origin_of(type(value).__module__) == "local"
        return {"items": items, "as": self.thing(value)} if own else items

    def _mapping(self, value: Mapping[Any, Any]) -> object:
        """Return a dict; for a digest, pairs unless the keys are sorted, since JSON forgets their order."""
        keys = list(value)
        if self.by_code and not (all(isinstance(k, str) for k in keys) and keys == sorted(keys)):
            return [[self.value(key), self.value(each)] for key, each in value.items()]
        return {str(key): self.value(each) for key, each in value.items()}

    def _module(self, module: "nn.Module") -> dict[str, Any]:
        parts = dict(module._modules.items())
        if "_orig_mod" in parts:  # torch.compile changes how it is computed, not what
            return self._module(parts["_orig_mod"])  # type: ignore[arg-type]
        kept: dict[str, Any] = {"recurse": False, "remove_duplicate": False}
        everywhere = self.value(_global_hooks())
        return {
            **({"hooks of all modules": everywhere} if everywhere else {}),
            "type": self.value(type(module)),
            "attributes": {k: self.value(v) for k, v in _own_attributes(module).items()},
            "parameters": self.value(dict(module.named_parameters(**kept))),
            "buffers": self.value(dict(module.named_buffers(**kept))),
            "parts": self._mapping(parts),
            "hooks": self.value([list(getattr(module, kind, {}).values()) for kind in _HOOKS]),
        }

    def _class(self, kind: type) -> object:
        origin, name = origin_of(str(kind.__module__)), kind.__qualname__
        if origin == "local":
            own = {key: self.value(each) for key, each in vars(kind).items() if _counts(key, each)}
            files = read_files(kind.__module__)
            return {"name": name, "files": files, "bases": self.value(kind.__bases__), "own": own}
        text = name if origin == "package" else _with_version(kind)
        members = [(base, key, each) for base in kind.__mro__ for key, each in vars(base).items()]
        patches = {f"{b.__qualname__}.{k}": self.value(v) for b, k, v in members if is_local(v)}
        return {"name": text, "patches": patches} if patches else text

    def _function(self, function: types.FunctionType) -> object:
        local, module = is_local(function), module_of(function)
        enclosed = [self.value(each) for each in enclosed_values(function)]
        if not local:
            name = function.__code__.co_qualname
            if origin_of(module) == "library":
                name = f"{module}:{name} {library_version(module)}".strip()
            return {"name": name, "enclosed": enclosed} if enclosed else name
        return {
            "code": function_code(function),
            "files": read_files(module),
            "enclosed": enclosed,
            "defaults": self.value([function.__defaults__, function.__kwdefaults__]),
            "attributes": self.value(vars(function)),
            "globals": {name: self.value(each) for name, each in global_values(function).items()},
            **self._used(function),
        }

    def _used(self, function: types.FunctionType) -> dict[str, object]:
        """Return the values in other modules that a user's function names: they may differ from their files."""
        names = used_names(function.__code__)
        known = [v for v in global_values(function).values() if isinstance(v, types.ModuleType)]
        pending = [*known, *(sys.modules[name] for name in names if name in sys.modules)]
        found: dict[str, object] = {}
        for module in pending:
            local = origin_of(module.__name__) == "local"
            values = {n: vars(module)[n] for n in sorted(names) if n in vars(module)}
            inner = (v for v in values.values() if isinstance(v, types.ModuleType))
            pending += [v for v in inner if id(v) not in map(id, pending)]
            kept = {n: v for n, v in values.items() if _may_differ(v, local=local)}
            found |= {f"{module.__name__}.{name}": self.value(v) for name, v in kept.items()}
        return {"used": found} if found else {}

    def _source(self, module: types.ModuleType) -> object:
        name = module.__name__
        if origin_of(name) == "local":
            return {"files": read_files(name)}
        return f"{name} {library_version(name)}".strip()


_CODE = (types.FunctionType, type, types.ModuleType)

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")

_GENERATED = frozenset(
    f"__{name}__"
    for name in (
        "init",
        "repr",
        "eq",
        "lt",
        "le",
        "gt",
        "ge",
        "hash",
        "setattr",
        "delattr",
        "replace",
    )
)
"""Methods that ``dataclass`` generates."""


@functools.cache
def _opaque() -> tuple[type, ...]:
    """Return the types of values that no output depends on and that may differ between processes."""
    from torch.utils.hooks import RemovableHandle

    return (logging.Logger, io.IOBase, weakref.ReferenceType, RemovableHandle)


@functools.cache
def _bookkeeping() -> frozenset[str]:
    """Return the names of what PyTorch keeps of each network; tensors, parts and hooks are looked at by themselves."""
    from torch import nn

    return frozenset({*vars(nn.Module()), "_compiled_call_impl", "_is_torch_compile"})


def _own_attributes(module: "nn.Module") -> dict[str, Any]:
    """Return a network's attributes; for a traced or exported network, from its serialised form."""
    import torch

    if isinstance(module, torch.jit.ScriptModule):
        code = getattr(module, "code", "") if module._c._has_method("forward") else ""
        if not hasattr(module, "_concrete_type"):
            return {"code": code, "constants": saved_constants(module)}
        names = (*module._concrete_type.get_constants(), *module._concrete_type.get_attributes())
        return {"code": code, **{name: getattr(module, name) for name in names}}
    if isinstance(module, torch.fx.GraphModule):
        return {"code": module.code}
    return {k: v for k, v in _attributes(module).items() if k not in _bookkeeping()}


def _attributes(value: object) -> dict[str, Any]:
    """Return fields, slots and all other attributes of an object, but for values that its properties keep."""
    names = [f.name for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
    names += [name for kind in type(value).__mro__ for name in _slots(kind)]
    names += getattr(value, "__dict__", {})
    kept = [n for n in names if not isinstance(_of_class(value, n), functools.cached_property)]
    return {name: getattr(value, name) for name in kept if hasattr(value, name)}


def _slots(kind: type) -> list[str]:
    if origin_of(str(kind.__module__)) == "library":
        return []
    slots = vars(kind).get("__slots__", ())
    return [slots] if isinstance(slots, str) else [n for n in slots if not n.startswith("__")]


def _of_class(value: object, name: str) -> object:
    return next((vars(kind)[name] for kind in type(value).__mro__ if name in vars(kind)), None)


def _reduced(value: object) -> object:
    """Return what pickle would keep of an object that has no attributes, such as a deque."""
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:  # a lock, a socket, or whatever a user's class raises
        return None
    if isinstance(reduced, str):
        return reduced
    parts = [list(each) if isinstance(each, Iterator) else each for each in reduced]
    if hasattr(value, "__dict__") and len(parts) > 2:
        parts[2] = None  # its attributes, which are not needed
    return parts


def _tensor(value: "Tensor") -> str:
    import torch

    about = f"{value.dtype} {list(value.shape)}"
    if value.is_meta:
        return about
    dense = value.detach().to_dense() if value.layout != torch.strided else value.detach()
    plain = dense.dequantize() if dense.is_quantized else dense.resolve_conj().resolve_neg()
    flat = plain.cpu().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return f"{about} {digest_bytes(data)}"


def _counts(name: str, member: object) -> bool:
    """Return whether a member of a class's body defines its behaviour."""
    function = isinstance(member, types.FunctionType | staticmethod | classmethod | property)
    if name in _GENERATED and isinstance(member, types.FunctionType):
        return member.__code__.co_filename != "<string>"
    known = isinstance(member, types.MemberDescriptorType | types.GetSetDescriptorType)
    return function or not (known or name.startswith("__") or name == "_abc_impl")


def _may_differ(value: object, *, local: bool) -> bool:
    """Is a value of a module the user's? All of a local module are, but for modules; of a library, patches are."""
    return is_local(value) or (local and not isinstance(value, types.ModuleType))


def _global_hooks() -> list[object]:
    """Return the hooks that PyTorch runs for every module."""
    from torch.nn.modules import module

    return [each for kind in _HOOKS for each in getattr(module, f"_global{kind}", {}).values()]


def _with_version(kind: type) -> str:
    return f"{_qualified(kind)} {library_version(str(kind.__module__))}".strip()


def _qualified(value: object) -> str:
    return f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', '')}"
