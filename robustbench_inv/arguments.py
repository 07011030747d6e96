"""Checks of single arguments before anything runs, texts without control characters, and commands as Python calls."""

import math
import os
import shlex
from pathlib import Path

from robustbench_inv.errors import CONTROLS, BadData, BadParameter, BadResults, printable

__all__ = [
    "MAX_SEED",
    "OBJECT",
    "check_file",
    "check_flag",
    "check_folder",
    "check_number",
    "check_path",
    "check_root",
    "check_seed",
    "check_text",
    "format_eps",
    "is_tiny",
    "printable",
    "printable_json",
    "python_call",
]

MAX_SEED = 2**63 - 1
"""Largest random seed, that of torch."""

OBJECT = "FILE.py:FUNCTION"
"""Pattern of the reference to a model or data set that was given as an object."""


def printable_json(text: str) -> str:
    r"""Return a JSON text in which control characters are escaped.

    Example:
        >>> printable_json('"\x9b"')
        '"\\u009b"'
    """
    return CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def format_eps(eps: float, digits: int = 6) -> str:
    """Return an eps as the field writes it: multiples of half a grey level as a fraction, others as a decimal number.

    Args:
        eps: in input units.
        digits: significant digits of decimal numbers; different budgets must stay distinct.

    Example:
        >>> format_eps(8 / 255), format_eps(0.1 + 0.2), format_eps(51 / 255)
        ('8/255', '0.3', '0.2')
    """
    short = f"{eps:.{digits}g}"
    halves = round(2 * GREY_LEVELS * eps) if 0 < eps < math.inf else 0
    is_decimal = math.isclose(float(short), eps, rel_tol=1e-13)  # so is 0.1 + 0.2
    if halves and not is_decimal and math.isclose(halves / 2 / GREY_LEVELS, eps, rel_tol=1e-9):
        return f"{halves / 2:g}/{GREY_LEVELS}"
    return short


def is_tiny(norm: str, eps: float, width: float) -> bool:
    """Return whether an eps is below a thousandth of the range, as 8/255 is where inputs reach to 255.

    Example:
        >>> is_tiny("linf", 8 / 255, 255), is_tiny("linf", 0.5 / 255, 1), is_tiny("l0", 3, 1e5)
        (True, False, False)
    """
    return norm in {"linf", "l2"} and 0 < eps < width / 1000


GREY_LEVELS = 255
"""Steps between black and white in eight bits."""


def check_text(value: object, name: str) -> str:
    """Return a text that is not blank.

    Args:
        value: the user's value.
        name: what it is, such as ``threat``, for the message.

    Raises:
        BadParameter: for another type, or a blank text.
    """
    if not isinstance(value, str):
        raise BadParameter(f"unusable {name}", got=value, expected="a text")
    if not value.strip():
        raise BadParameter(f"empty {name}", got=value, expected="a text", remedy="leave it out")
    return value


def check_number(value: object, name: str, low: int = 1, high: int | None = None) -> int:
    """Return a whole number.

    Args:
        value: the user's value.
        name: what it is, for the message.
        low: smallest number.
        high: largest number; None for no limit.

    Raises:
        BadParameter: for another type, or a number out of range.
    """
    fits = isinstance(value, int) and not isinstance(value, bool)
    if not fits or not low <= value or (high is not None and value > high):  # type: ignore[operator]
        expected = f"a whole number >= {low}" if high is None else f"{low} to {high}"
        raise BadParameter(f"unusable {name}", got=value, expected=expected)
    return value  # type: ignore[return-value]


def check_seed(value: object) -> int:
    """Return a random seed; raises BadParameter for other than a whole number from 0 to MAX_SEED."""
    return check_number(value, "seed", 0, MAX_SEED)


def check_flag(value: object, name: str) -> bool:
    """Return a flag; raises BadParameter for other than True or False."""
    if not isinstance(value, bool):
        raise BadParameter(f"unusable {name}", got=value, expected="True or False")
    return value


def check_path(value: object, name: str) -> Path:
    """Return a path.

    Args:
        value: the user's path, or a run, which stands for its folder.
        name: what it is, for the message.

    Raises:
        BadParameter: for a blank text, a NUL character, or no path at all.
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    text = check_text(value, name)
    if "\0" in text:
        raise BadParameter(f"unusable {name}", got=text, expected="a path without NUL")
    return Path(text)


def check_root(value: object) -> None:
    """Check a folder of data files, None for the default places.

    Raises:
        BadParameter: for no path.
        BadData: for a folder that does not exist.
    """
    if value is None:
        return
    root = check_path(value, "data root").expanduser()
    if not root.is_dir():
        raise BadData("no such data root", got=str(root), expected="an existing folder")


def check_folder(value: object, name: str = "folder of results") -> Path:
    """Return a folder that exists or can be created; nothing is written.

    Args:
        value: the user's path.
        name: what it is, for the message.

    Raises:
        BadParameter: for no path.
        BadResults: if a file is in its place, or it cannot be written.
    """
    path = check_path(value, name)
    _check_writable(path, path, name)
    return path


def check_file(value: object, name: str = "file") -> Path:
    """Return a file that can be written; nothing is written.

    Args:
        value: the user's path.
        name: what it is, for the message.

    Raises:
        BadParameter: for no path.
        BadResults: if a folder is in its place, or it cannot be written.
    """
    path = check_path(value, name)
    if path.is_dir() or not path.name:
        raise BadResults(f"unusable {name}", got=str(path), expected="a file, not a folder")
    _check_writable(path, path.parent, name)
    return path


def _check_writable(path: Path, folder: Path, name: str) -> None:
    """Check that a folder, or the nearest one above it that exists, is a folder and can be written."""
    whole = Path(os.path.normpath(folder.absolute()))
    nearest = next(place for place in (whole, *whole.parents) if os.path.lexists(place))
    problem, remedy = f"cannot write {path}", f"choose another path for the {name}"
    if not nearest.is_dir():
        got = f"the file {nearest}"
        raise BadResults(problem, got=got, expected="a folder", remedy=remedy)
    if not os.access(nearest, os.W_OK | os.X_OK):
        got = f"the read-only folder {nearest}"
        raise BadResults(problem, got=got, expected="write access", remedy=remedy)


def python_call(command: str, dataset: str) -> str:
    """Return the call that does what a command does; a command of several steps is returned unchanged.

    Args:
        command: where models and data that were given as objects are FILE.py:FUNCTION.
        dataset: name of the data set, ``arrays`` for x and y.

    Example:
        >>> python_call("invbench audit FILE.py:FUNCTION --dataset FILE.py:FUNCTION --threat l2=1", "arrays")
        'rbi.audit(net, x=x, y=y, threat="l2=1")'
    """
    _, verb, *words = shlex.split(command)
    if "&&" in words or verb not in ("audit", "evaluate"):
        return command
    words = ["--model", *words] if verb == "audit" else words
    options = {
        key.removeprefix("--"): value for key, value in zip(words[::2], words[1::2], strict=True)
    }
    model, data = options.pop("model"), options.pop("dataset", "")
    named = "net" if model == OBJECT else f'"{model}"'
    where = [f'dataset="{data}"'] if data else []
    if data == OBJECT:
        where = ["x=x, y=y"] if dataset.partition(" #")[0] == "arrays" else ["dataset=dataset"]
    rest = [
        f"{key}={value}" if value.isdecimal() else f'{key}="{value}"'
        for key, value in options.items()
    ]
    return f"rbi.{verb}({', '.join([named, *where, *rest])})"
