"""Identity of code for digests: its file and the local files that it imports, or bytecode without a file."""

import ast
import dis
import io
import sys
import sysconfig
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Literal

from robustbench_inv.catalogue.locate import ENTRY_POINT_GROUP
from robustbench_inv.identity import digest_bytes, digest_value

__all__ = [
    "Origin",
    "function_code",
    "global_names",
    "library_version",
    "module_of",
    "origin_of",
    "read_files",
    "saved_constants",
    "used_names",
]

Origin = Literal["package", "library", "local"]

PACKAGE = __name__.partition(".")[0]

STABLE = ("numpy", "torch")
"""Libraries whose classes are taken to stay what they are: a new version of these leaves digests alone."""


def origin_of(module: str) -> Origin:
    """Return whose code a module is, by its dotted name: this package's, a library's, or the user's.

    A plugin of this package is the user's, installed or not. What has no file is the user's, too: it was typed in.

    Example:
        >>> origin_of("robustbench_inv.threat.goals"), origin_of("torch.nn"), origin_of("__main__")
        ('package', 'library', 'local')
    """
    top = module.partition(".")[0]
    if top == PACKAGE:
        return "package"
    if top in _plugins() or top in _SCRIPTS:
        return "local"
    found = sys.modules.get(top)
    file = getattr(found, "__file__", None) or next(iter(getattr(found, "__path__", ())), None)
    if file is None:
        return "library" if top in sys.stdlib_module_names else "local"
    return "library" if _installed(Path(file)) else "local"


@cache
def library_version(module: str) -> str:
    """Return the version of the installed library that a module belongs to; empty for STABLE ones, Python's own and this."""
    top = module.partition(".")[0]
    if top in (*STABLE, PACKAGE) or top in sys.stdlib_module_names:
        return ""
    try:
        return version(top)
    except PackageNotFoundError:
        return str(getattr(sys.modules.get(top), "__version__", ""))


def read_files(module: str) -> list[tuple[str, str]]:
    """Return name and SHA-256 of a module's file and of every local file that it imports, sorted.

    Modules are found by their import statements, and nothing is run. Names are those of the imports, that of the
    first is its file's, so that a copy in another folder is the same. Empty for a module without a file.
    """
    found: dict[Path, tuple[str, str]] = {}
    pending = [_imported(module)]
    while pending:
        source = pending.pop(0)
        if source is None or source.path in found:
            continue
        name = source.name if found else source.path.stem
        found[source.path] = (name, digest_bytes(source.text))
        pending += [_find(each) for each in _imports(source.text, source.package)]
    return sorted(found.values())


def function_code(function: FunctionType) -> list[object]:
    """Return the identity of a user's function: its place in its file, or its bytecode.

    The place is enough if the file, which is digested as well, compiles to this code. The bytecode counts for a
    function that was typed in, made by ``exec``, edited since its import or put in another's place.
    """
    code = function.__code__
    source = _imported(str(function.__globals__.get("__name__")))
    named = "<lambda>" not in code.co_qualname  # several may share a line
    in_file = named and source and code.co_filename == str(source.path)
    if in_file and source and _bytecode(code) in _compiled(source.text):
        return [code.co_qualname, code.co_firstlineno]
    return [code.co_qualname, _bytecode(code)]


def saved_constants(module: object) -> dict[str, str]:
    """Return the digests of the constants of a frozen traced network, which hold its weights, by their place in its code."""
    import torch

    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    with zipfile.ZipFile(buffer) as archive:
        names = (name for name in archive.namelist() if "/constants/" in name)
        return {name.partition("/")[2]: digest_bytes(archive.read(name)) for name in sorted(names)}


def global_names(code: CodeType) -> set[str]:
    """Return the global names that a function looks up, those of the functions inside it included."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname in _LOOKUPS}
    return names.union(*(global_names(each) for each in code.co_consts if _is_code(each)))


def is_local(member: object) -> bool:
    """Return whether a function, method or property is the user's."""
    function = getattr(member, "fget", None) or getattr(member, "__func__", member)
    return isinstance(function, FunctionType) and origin_of(module_of(function)) == "local"


def module_of(function: FunctionType) -> str:
    """Return the name of the module that defines a function, wherever it was assigned since."""
    return str(function.__globals__.get("__name__"))


def global_values(function: FunctionType) -> dict[str, object]:
    """Return the global values that a function looks up, by name."""
    names, known = sorted(global_names(function.__code__)), function.__globals__
    return {name: known[name] for name in names if name in known and not name.startswith("__")}


def enclosed_values(function: FunctionType) -> list[object]:
    """Return the values of a function's closure; None for one that is not yet assigned."""
    found: list[object] = []
    for cell in function.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:
            found.append(None)
    return found


def used_names(code: CodeType) -> set[str]:
    """Return every name that a function looks up or imports: globals, attributes, modules, those of inner functions."""
    inner = (used_names(each) for each in code.co_consts if _is_code(each))
    return set(code.co_names).union(*inner)


_SCRIPTS = ("__main__", "__mp_main__")
"""Names of the program that Python runs, and of a notebook: their definitions are never a library's."""

_LOOKUPS = ("LOAD_GLOBAL", "LOAD_NAME")


@dataclass(frozen=True)
class _Source:
    """The file of a module: its dotted name, the package that relative imports begin at, its bytes."""

    name: str
    package: str
    path: Path
    text: bytes


@cache
def _plugins() -> frozenset[str]:
    return frozenset(
        point.module.partition(".")[0] for point in entry_points(group=ENTRY_POINT_GROUP)
    )


@lru_cache(maxsize=1024)
def _installed(file: Path) -> bool:
    """Does a file belong to Python or to an installed library?"""
    if {"site-packages", "dist-packages"} & set(file.parts):
        return True
    places = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    return any(file.resolve().is_relative_to(Path(place).resolve()) for place in places)


def _imported(name: str) -> _Source | None:
    """Return the file of a module that is imported, with the bytes that it had when it was first looked at."""
    module = sys.modules.get(name)
    path = Path(str(getattr(module, "__file__", None) or ""))
    if module is None or not _readable(name, path):
        return None
    return _Source(
        name, _package(module, name), path, _first_seen(getattr(module, "__spec__", None), path)
    )


def _readable(name: str, path: Path) -> bool:
    """Is a module's file one of the user's?"""
    own = name.partition(".")[0] in _plugins() or not _installed(path)
    return own and path.suffix == ".py" and path.is_file()


def _package(module: ModuleType, name: str) -> str:
    return name if hasattr(module, "__path__") else name.rpartition(".")[0]


_SEEN: dict[int, tuple[ModuleSpec, bytes]] = {}
"""What the files of imported modules held, by the id of their specs: a module stays what it was when its file is
edited, and gets a new spec when it is loaded again."""


def _first_seen(spec: ModuleSpec | None, path: Path) -> bytes:
    if spec is None:  # a script
        return path.read_bytes()
    if id(spec) not in _SEEN:
        _SEEN[id(spec)] = (spec, path.read_bytes())
    return _SEEN[id(spec)][1]


def _find(name: str) -> _Source | None:
    """Return a local module's file, whether it is imported or not; None for any other module, and for a name in one."""
    if name in sys.modules:
        return _imported(name) if origin_of(name) == "local" else None
    top = name.partition(".")[0]
    if top in sys.modules and origin_of(top) != "local":
        return None
    spec = _spec(name)
    path = Path(spec.origin or "") if spec else Path()
    if spec is None or not _readable(name, path):
        return None
    package = name if spec.submodule_search_locations else name.rpartition(".")[0]
    return _Source(name, package, path, path.read_bytes())


def _spec(name: str) -> ModuleSpec | None:
    """Find a module without importing the packages that it lies in."""
    parent = name.rpartition(".")[0]
    if not parent:
        return PathFinder.find_spec(name)
    module = sys.modules.get(parent)
    spec = None if module else _spec(parent)
    places = getattr(module, "__path__", None) or getattr(spec, "submodule_search_locations", None)
    return PathFinder.find_spec(name, places) if places else None


@lru_cache(maxsize=256)
def _imports(text: bytes, package: str) -> tuple[str, ...]:
    """Return the dotted names that a file may import: ``from a import b`` is of a, and of a.b if there is one."""
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError):
        return ()
    return tuple(dict.fromkeys(name for node in nodes for name in _named(node, package)))


def _named(node: ast.AST, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield from _with_parents(alias.name)
    elif isinstance(node, ast.ImportFrom):
        outer = package.split(".")[: 1 - node.level or None] if node.level else []
        base = ".".join(filter(None, [*outer, node.module]))
        if base:
            yield from _with_parents(base)
            yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))


@lru_cache(maxsize=64)
def _compiled(text: bytes) -> frozenset[str]:
    """Return the bytecode of every function in a file."""
    found: set[str] = set()
    pending = [compile(text, "", "exec", dont_inherit=True)]
    while pending:
        code = pending.pop()
        found.add(_bytecode(code))
        pending += [each for each in code.co_consts if _is_code(each)]
    return frozenset(found)


def _bytecode(code: CodeType) -> str:
    """Return a digest of a function's bytecode, without file, lines and comments."""
    return digest_value(_described(code))


def _described(code: CodeType) -> Mapping[str, object]:
    counts = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags]
    names = [code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars]
    constants = [_constant(each) for each in code.co_consts]
    return {"code": code.co_code.hex(), "names": names, "counts": counts, "constants": constants}


def _constant(value: object) -> object:
    if isinstance(value, CodeType):
        return _described(value)
    if isinstance(value, frozenset):
        return sorted(map(repr, value))  # its order differs from process to process
    if isinstance(value, tuple):
        return [_constant(each) for each in value]
    return repr(value)


def _is_code(value: object) -> bool:
    return isinstance(value, CodeType)
