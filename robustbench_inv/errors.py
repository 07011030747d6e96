"""Errors for users: each states the problem, the value got, the value expected and the remedy on one line."""

import difflib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from types import ModuleType

__all__ = [
    "CONTROLS",
    "DEADLINE_PASSED",
    "TRACEBACK",
    "AttackFailed",
    "BadCatalogue",
    "BadData",
    "BadModel",
    "BadParameter",
    "BadResults",
    "CapabilityMismatch",
    "DeadlinePassed",
    "EvaluationWarning",
    "ForeignCodeError",
    "InvbenchError",
    "Locked",
    "MissingData",
    "MissingExtra",
    "TimeLimitExceeded",
    "UnknownName",
    "UsageError",
    "describe_error",
    "did_you_mean",
    "import_library",
    "print_trace",
    "printable",
    "suggest",
    "text_of",
]


TRACEBACK = "INVBENCH_TRACEBACK"
"""Environment variable: if set, errors print a traceback."""


class InvbenchError(Exception):
    """Base class of errors with an explanation for the user.

    Args:
        problem: what is wrong, in one clause.
        got: the value found, printed with ``repr``; omitted if None.
        expected: the accepted values; omitted if empty.
        remedy: what to do; omitted if empty.
    """

    exit_code = 1

    def __init__(
        self, problem: str, *, got: object = None, expected: str = "", remedy: str = ""
    ) -> None:
        self.problem, self.got, self.expected, self.remedy = problem, got, expected, remedy
        parts = [problem]
        if got is not None:
            parts.append(f"got {got!r}")
        if expected:
            parts.append(f"expected {expected}")
        line = ", ".join(parts)
        super().__init__(
            " ".join(f"{line}; {remedy}".split()) if remedy else " ".join(line.split())
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the four parts when the error is pickled."""
        return _rebuild, (type(self), self.problem, self.got, self.expected, self.remedy)


class EvaluationWarning(UserWarning):
    """Numbers of an evaluation in Python must not be published, or cells failed."""


class UsageError(InvbenchError):
    """A request that cannot be carried out; exit code 2."""

    exit_code = 2


class UnknownName(UsageError):
    """A name that is in no catalogue; the remedy gives the closest known names."""


class BadParameter(UsageError):
    """An unknown or out-of-range parameter of an attack, model, data set or threat."""


class BadCatalogue(UsageError):
    """An unreadable card, preset, suite, threat or plugin."""


class BadData(UsageError):
    """A data file that is missing, damaged, or of the wrong checksum, shape, type or range."""


class MissingData(BadData):
    """Files of a data set that are neither on this machine nor fetched."""


class BadModel(UsageError):
    """A model without declared bounds, or with outputs of the wrong shape or values."""


class BadResults(UsageError):
    """A results folder that cannot be read or does not belong to the plan."""


class Locked(BadResults):
    """A folder that another process is writing."""


class CapabilityMismatch(UsageError):
    """Incompatible model, attack, threat and data set; raised before anything runs."""


class RangeMismatch(CapabilityMismatch):
    """A model whose declared bounds are not those of the data: eps would have another size than stated."""


class MissingExtra(UsageError):
    """A missing optional package; the remedy gives the command that installs it."""


def import_library(module: str, extra: str) -> ModuleType:
    """Return a module of an optional library.

    Args:
        module: its dotted name.
        extra: the extra of this package that installs it.

    Raises:
        MissingExtra: if it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # torchvision raises RuntimeError beside another build of torch
        top = module.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and error.name == top
        reason = f"{top} is not installed" if missing else f"{top} cannot be imported: {error}"
        remedy = f'pip install "robustbench-inv[{extra}]"'
        if not missing:
            remedy += f", or the build of {top} that fits torch {version('torch')}"
        raise MissingExtra(reason, remedy=remedy) from error


class AttackFailed(InvbenchError):
    """An attack that raised an exception, or did not return a batch of images."""


class ForeignCodeError(InvbenchError):
    """Code of a model, attack or plugin that tried to end the program."""


DEADLINE_PASSED = "the time for all attacks is over"


class DeadlinePassed(UsageError):
    """The time for a whole evaluation is over; what is finished is kept."""


class TimeLimitExceeded(ForeignCodeError):
    """A call of foreign code that took longer than the time limit."""


_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours and the cursor
    r"|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # titles and links
    r"|\x1b[PX^_][^\x1b]*(?:\x1b\\)?|\x1b[ -/]*[0-~]?"
)
"""Escape sequences of terminals (ECMA-48)."""

CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters but tab and newline, separators of lines, marks of direction, and halves of characters."""


def printable(text: str) -> str:
    r"""Return a text without escape sequences of terminals and control characters, except tabs and newlines.

    Example:
        >>> printable("a \x1b[31mred\x1b[0m name\x07")
        'a red name'
    """
    return CONTROLS.sub("", _SEQUENCES.sub("", text))


MAX_MESSAGE = 300
"""Characters of a foreign exception's text that a message repeats."""


def text_of(error: BaseException) -> str:
    """Return the printable text of any exception, also of one that raises when it is printed."""
    try:
        return printable(str(error))
    except BaseException:  # whatever a user's class raises
        return "(its text cannot be read)"


def describe_error(error: BaseException) -> str:
    """Return the type and the first line of text of any exception, at most MAX_MESSAGE characters.

    Example:
        >>> describe_error(ValueError("too many"))
        'ValueError: too many'
    """
    name = type(error).__name__
    text = " ".join(text_of(error).strip().partition("\n")[0].split())
    line = f"{name}: {text}" if text else name
    return line if len(line) <= MAX_MESSAGE else line[:MAX_MESSAGE] + "…"


def print_trace(error: BaseException) -> None:
    """Print the traceback of what foreign code raised, once, if ``INVBENCH_TRACEBACK`` is set."""
    if os.environ.get(TRACEBACK) and not isinstance(error, InvbenchError):
        whole = error.__cause__ is not None  # the context is our search for the sample that fails
        _print_once("".join(traceback.format_exception(error, chain=whole)))


@cache
def _print_once(text: str) -> None:
    sys.stderr.write(text)


def _rebuild(
    kind: type[InvbenchError], problem: str, got: object, expected: str, remedy: str
) -> InvbenchError:
    return kind(problem, got=got, expected=expected, remedy=remedy)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean …?`` with the closest known names, ignoring case; empty if none is close.

    Example:
        >>> did_you_mean("pdg", ["fgsm", "pgd"])
        'did you mean pgd?'
    """
    lower = {each.lower(): each for each in sorted(known)}
    near = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(lower[each] for each in near)}?" if near else ""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``did_you_mean``, or the list of all known names if none is close; empty if there are none."""
    names = sorted(known)
    return did_you_mean(name, names) or (f"known: {', '.join(names)}" if names else "")
