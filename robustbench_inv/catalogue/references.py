"""References: a name with parameters in one word, ``pgd:steps=20,loss=ce``, and the code that a name imports."""

import importlib
import importlib.util
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from robustbench_inv.catalogue.trust import check_definition, check_file, check_module
from robustbench_inv.errors import BadCatalogue, BadParameter, InvbenchError, UnknownName, suggest
from robustbench_inv.foreign import code_folders, keep_on_path
from robustbench_inv.identity import digest_file

__all__ = [
    "DATA_SOURCES",
    "LIBRARY_PREFIXES",
    "MODEL_LIBRARIES",
    "Reference",
    "Scalar",
    "check_implementation",
    "import_module",
    "import_object",
    "locate_code",
    "locate_threat",
    "parse_panel",
    "parse_reference",
    "parse_source",
    "source_file",
]

Scalar = int | float | bool | str
"""Types of a parameter on the command line."""


@dataclass(frozen=True)
class Reference:
    """A name and its parameters.

    Example:
        >>> str(Reference("pgd", {"steps": 20, "warm_start": False}))
        'pgd:steps=20,warm_start=false'
    """

    name: str
    parameters: Mapping[str, Scalar] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.parameters:
            return self.name
        pairs = (f"{key}={_write(value)}" for key, value in self.parameters.items())
        return f"{self.name}:{','.join(pairs)}"


def parse_reference(text: str) -> Reference:
    """Read ``NAME[:key=value,…]``; the last ``:``-segment is parameters if and only if it contains ``=``.

    Args:
        text: the user's text.

    Returns:
        Name and parameters; a value is an int, a finite float, a bool (``true``, ``false``) or else a string.

    Raises:
        BadParameter: for an empty name, a parameter without ``=``, or a repeated parameter.

    Example:
        >>> parse_reference("foolbox:LinfPGD:steps=20,rel_stepsize=0.1")
        Reference(name='foolbox:LinfPGD', parameters={'steps': 20, 'rel_stepsize': 0.1})
        >>> parse_reference("defences.py:build").name
        'defences.py:build'
    """
    name, _, tail = text.strip().rpartition(":")
    if "=" not in tail:
        name, tail = text.strip(), ""
    if not name:
        raise BadParameter("no name", got=text, expected="NAME or NAME:key=value,key=value")
    return Reference(name, _read_parameters(tail, text))


def parse_source(text: str) -> tuple[str, Reference] | None:
    """Read ``SOURCE:PLACE[,key=value…]`` or ``FILE.py:NAME[,key=value…]``; a colon may come before the parameters, too.

    Args:
        text: the user's text.

    Returns:
        The source (``code`` for a Python file) and its place with parameters; None for any other text.

    Raises:
        BadParameter: for a parameter without ``=``, or a repeated one.

    Example:
        >>> parse_source("folder:photos,size=224")
        ('folder', Reference(name='photos', parameters={'size': 224}))
        >>> parse_source("mine.py:build:count=5")
        ('code', Reference(name='mine.py:build', parameters={'count': 5}))
    """
    text = text.strip()
    code = re.fullmatch(r"(.+\.py:\w+)(?:[:,](.*))?", text, re.DOTALL)
    if code:
        return "code", Reference(code[1], _read_parameters(code[2] or "", text))
    kind, _, rest = text.partition(":")
    if kind not in DATA_SOURCES or not rest:
        return None
    found = re.fullmatch(r"(.*?)[:,](\s*\w+\s*=.*)", rest, re.DOTALL)
    if found is None or Path(rest).expanduser().exists():
        return kind, Reference(rest)
    return kind, Reference(found[1], _read_parameters(found[2], text))


def parse_panel(text: str) -> tuple[list[str], str] | None:
    """Read ``panel:MODEL,MODEL,…[,rule=RULE]``: an oracle of the user's own models.

    Args:
        text: the oracle of a threat. A part ``key=value`` is a parameter of the model before it; ``rule`` is the last.

    Returns:
        The models' references, and the rule (``majority`` if there is none); None for any other oracle.

    Example:
        >>> parse_panel("panel:a.py:build:width=8,weights=a.pt,b.py:build,rule=unanimous")
        (['a.py:build:width=8,weights=a.pt', 'b.py:build'], 'unanimous')
        >>> parse_panel("mnist-panel")
    """
    kind, _, rest = text.strip().partition(":")
    if kind != "panel":
        return None
    listed, *rule = re.split(r"(?:^|[:,])\s*rule\s*=", rest, maxsplit=1)
    members = re.split(r",(?!\s*\w+\s*=)", listed)
    named = [member.strip() for member in members if member.strip()]
    return named, "".join(rule).strip() or "majority"


DATA_SOURCES = ("folder", "npz", "npy", "torchvision", "hf")
"""Sources of data that are named with a path or the library's name; see ``data.sources.SOURCES``."""


def import_object(reference: str, folder: Path | None = None) -> object:
    """Import the object of ``module:Name`` or ``file.py:Name``.

    Args:
        reference: module or file, a colon, and a name in it.
        folder: folder of the catalogue file that contains the reference, which must be trusted (see ``trust``) and
            whose paths are relative to it; None for a reference of the user.

    Raises:
        BadCatalogue: for a missing module or file, one whose import fails, or one that is not trusted.
        UnknownName: if it does not define the name.
    """
    place, _, name = reference.rpartition(":")
    module = import_module(reference, folder)
    try:
        found: object = getattr(module, name)
    except AttributeError:
        public = [known for known in vars(module) if not known.startswith("_")]
        raise UnknownName(
            f"{place} has no {name!r}", remedy=suggest(name, public) or "check the spelling"
        ) from None
    if folder is not None and not _is_file(place):
        check_definition(found, reference, folder)
    return found


def import_module(reference: str, folder: Path | None = None) -> ModuleType:
    """Import the module or file of ``module:Name`` or ``file.py:Name``; raises as ``import_object`` does."""
    place, _, name = reference.rpartition(":")
    if not place or not name.isidentifier():
        raise BadCatalogue("not a reference to code", got=reference, expected="module:Name")
    if folder is not None:
        _check_trust(place, folder)
    return _import_file(source_file(reference, folder)) if _is_file(place) else _import(place)


def source_file(reference: str, folder: Path | None = None) -> Path | None:
    """Return the file that ``file.py:Name`` names, absolute; None for ``module:Name``."""
    place = reference.rpartition(":")[0]
    return ((folder or Path.cwd()) / place).resolve() if _is_file(place) else None


def check_implementation(reference: str, path: Path) -> None:
    """Check that a catalogue file may name its implementation, without importing it.

    Args:
        reference: ``module:Name`` or ``file.py:Name``.
        path: the catalogue file.

    Raises:
        BadCatalogue: if it names no code, or code that it may not name.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name.isidentifier():
        expected = "module:Name or file.py:Name"
        raise BadCatalogue(f"{path}: implementation does not fit", got=reference, expected=expected)
    _check_trust(place, path.parent)


def locate_code(text: str, folder: Path) -> str:
    """Return a name from a catalogue file, with the absolute paths of its code and of its files of weights.

    Args:
        text: name of a model or attack, with optional parameters.
        folder: folder of the catalogue file.

    Raises:
        BadCatalogue: if it names code that the file may not name.
    """
    text = _locate_files(text, folder)
    name = parse_reference(text).name
    place, _, inner = name.rpartition(":")
    if not (place and inner.isidentifier()) or name.partition(":")[0] in (
        *LIBRARY_PREFIXES,
        *MODEL_LIBRARIES,
    ):
        return text
    if path := source_file(name, folder):
        _check_trust(place, folder)
        return text.strip().replace(name, f"{path}:{inner}", 1)
    import_object(name, folder)
    return text


def locate_threat(threat: str, folder: Path) -> str:
    """Return a threat from a catalogue file, with the absolute paths of the files of its substitute and its oracle.

    Raises:
        BadCatalogue: if it names code that the file may not name.
    """
    first, word, model = _partition(threat, "substitute|guide")
    budget, given, oracle = _partition(first, "oracle")
    if panel := parse_panel(oracle):
        members = [locate_code(member, folder) for member in panel[0]]
        oracle = f"panel:{','.join(members)},rule={panel[1]}"
    elif (folder / oracle).is_file():
        oracle = str((folder / oracle).resolve())
    return f"{budget}{given}{oracle}{word}{locate_code(model, folder) if model.strip() else model}"


def _partition(threat: str, words: str) -> tuple[str, str, str]:
    """Return what comes before the first of the words, the word as it is written, and what comes after it."""
    before, *rest = re.split(rf"(:\s*(?:{words})\s*=)", threat, maxsplit=1)
    word, after = rest or ("", "")
    return before, word, after


def _locate_files(text: str, folder: Path) -> str:
    """Return a name with the absolute paths of the files in a folder that it names, as a network or as weights."""
    return re.sub(
        r"(^|\b(?:weights|thresholds)=)([^,:]+)",
        lambda found: found[1] + _absolute(found[2].strip(), folder),
        text.strip(),
    )


def _absolute(place: str, folder: Path) -> str:
    path = folder / Path(place).expanduser()
    return str(path.resolve()) if path.is_file() and not _is_file(place) else place


LIBRARY_PREFIXES = ("foolbox", "torchattacks", "adv-lib")
"""Names of libraries whose attacks are named like code, as in ``foolbox:LinfPGD``."""

MODEL_LIBRARIES = ("timm", "torchvision", "hf", "robustbench")
"""Prefixes of networks of other libraries, as in ``timm:resnet18``."""


def _check_trust(place: str, folder: Path) -> None:
    if _is_file(place):
        check_file(folder / place, folder)
    else:
        check_module(place, folder)


def _read_parameters(tail: str, text: str) -> dict[str, Scalar]:
    parameters: dict[str, Scalar] = {}
    for pair in tail.split(",") if tail else ():
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not (key and equals and value):
            raise BadParameter(f"unreadable parameter in {text}", got=pair, expected="key=value")
        if key in parameters:
            raise BadParameter(f"parameter {key} is given twice", got=text)
        parameters[key] = _read(value)
    return parameters


def _read(value: str) -> Scalar:
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    if "_" in value or not value.isascii():  # Python reads 1_0 as 10
        return value
    try:
        return int(value)
    except ValueError:
        pass
    try:
        number = float(value)
    except ValueError:
        return value
    return number if math.isfinite(number) else value


def _write(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _is_file(place: str) -> bool:
    return place.endswith(".py")


def _import(place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except InvbenchError:
        raise
    except Exception as error:
        raise BadCatalogue(
            f"cannot import {place}: {type(error).__name__}: {error}",
            remedy="install it, or name a file as file.py:NAME",
        ) from error


def _import_file(path: Path | None) -> ModuleType:
    if path is None or not path.is_file():
        raise BadCatalogue("no such file", got=str(path))
    # named after its content: a class of the file then has the same full name wherever the file lies
    name = f"_invbench_{path.stem}_{digest_file(path)[:12]}"
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path):
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BadCatalogue("not a Python file", got=str(path))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while the file runs
    _add_folder(path.parent)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise BadCatalogue(f"{path.name} raised {type(error).__name__}: {error}") from error
    return module


def _add_folder(folder: Path) -> None:
    """Let a file import modules of its own folder, now and when they are needed, also in other processes.

    Modules of the same name that came from the folder of another file are imported again.
    """
    for name in {each.stem for each in folder.iterdir()} & sys.modules.keys():
        place = Path(getattr(sys.modules[name], "__file__", None) or "").parent
        homes = {str(place), str(place.parent)}  # of a module, and of a package
        if homes & set(code_folders) and str(folder) not in homes:
            for each in [each for each in sys.modules if each.partition(".")[0] == name]:
                del sys.modules[each]
    keep_on_path(str(folder))
    importlib.invalidate_caches()
