"""The errors a user can meet: each names the value got, the value expected and the remedy, on one line."""

__all__ = [
    "AttackFailed",
    "BadCatalogue",
    "BadData",
    "BadModel",
    "BadParameter",
    "BadResults",
    "CapabilityMismatch",
    "InvbenchError",
    "MissingExtra",
    "UnknownName",
    "UsageError",
]


class InvbenchError(Exception):
    """Something went wrong that the program explains itself.

    Args:
        problem: what is wrong, one clause.
        got: the value that was found, shown with ``repr``; omitted when None.
        expected: what would have been accepted; omitted when empty.
        remedy: what to do about it; omitted when empty.
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
        """Keep the four parts when the error crosses a process boundary."""
        return _rebuild, (type(self), self.problem, self.got, self.expected, self.remedy)


class UsageError(InvbenchError):
    """The user asked for something that cannot be done; exit code 2."""

    exit_code = 2


class UnknownName(UsageError):
    """A name that is in no catalogue; the remedy carries the nearest known names."""


class BadParameter(UsageError):
    """A parameter of an attack, model, data set or threat that does not exist or is out of range."""


class BadCatalogue(UsageError):
    """A card, preset, suite, threat or plugin that cannot be read."""


class BadData(UsageError):
    """A data file that is missing, damaged, of the wrong checksum, shape, type or range."""


class BadModel(UsageError):
    """A model that declares no bounds, or whose output has the wrong shape or values."""


class BadResults(UsageError):
    """A results folder that cannot be read or does not belong to the plan."""


class CapabilityMismatch(UsageError):
    """Model, attack, threat and data set that do not fit together; found before anything runs."""


class MissingExtra(UsageError):
    """An optional package is not installed; the remedy names the extra."""


class AttackFailed(InvbenchError):
    """An attack raised, or returned something that is not a batch of images."""


def _rebuild(
    kind: type[InvbenchError], problem: str, got: object, expected: str, remedy: str
) -> InvbenchError:
    return kind(problem, got=got, expected=expected, remedy=remedy)
