"""The oracle's own error rate, measured on inputs of known class and stored beside a cell's records."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from robustbench_inv.errors import BadResults
from robustbench_inv.results.field_types import check_types
from robustbench_inv.results.files import FORMAT_VERSION, read_versioned, write_json
from robustbench_inv.results.rate import ChangeDetection, Rate

__all__ = [
    "ORACLE_FILE",
    "OracleError",
    "has_readable_oracle",
    "read_oracle_error",
    "write_oracle_error",
]


ORACLE_FILE = "oracle.json"

_KEYS_V1 = {"wrong": "errors", "unknown": "undecided"}


@dataclass(frozen=True)
class OracleError:
    """How often an oracle errs on inputs whose true class is known.

    Args:
        source: the oracle's name in records.
        measured_on: ``clean inputs`` of the cell, or a rater's ``catch trials``.
        trials: number of inputs.
        errors: inputs for which it names a wrong class.
        undecided: inputs for which it names no class.
        detection: changes of the class that it reports; None if that was not measured.
    """

    source: str
    measured_on: str
    trials: int
    errors: int
    undecided: int
    detection: ChangeDetection | None = None

    @property
    def error_rate(self) -> Rate:
        """The share of errors in all trials."""
        return Rate(self.errors, self.trials)

    @property
    def undecided_rate(self) -> Rate:
        """The share of undecided inputs in all trials."""
        return Rate(self.undecided, self.trials)

    def to_json(self) -> dict[str, Any]:
        """Return the content of oracle.json but for its version."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "OracleError":
        """Read oracle.json of version 1 or 2; other keys are ignored."""
        known = {_KEYS_V1.get(key, key): entry for key, entry in value.items()}
        detection = known.pop("detection", None)
        names = cls.__dataclass_fields__.keys() - {"detection"}
        error = cls(**{name: known[name] for name in names})
        check_types(error)
        return replace(error, detection=_read_detection(detection)) if detection else error


def _read_detection(value: Mapping[str, Any]) -> ChangeDetection:
    names = ChangeDetection.__dataclass_fields__
    detection = ChangeDetection(**{key: number for key, number in value.items() if key in names})
    check_types(detection)
    return detection


def read_oracle_error(cell: Path) -> OracleError | None:
    """Read the oracle's error rate from a cell's folder; None if it was not measured.

    Raises:
        BadResults: if the file is damaged.
    """
    path = cell / ORACLE_FILE
    if not path.exists():
        return None
    try:
        return OracleError.from_json(read_versioned(path))
    except (KeyError, TypeError, ValueError) as error:
        remedy = "restore it, or evaluate again with --existing repair"
        raise BadResults(f"{path} is damaged: {error!r}", remedy=remedy) from error


def write_oracle_error(cell: Path, error: OracleError) -> None:
    """Write the oracle's error rate into a cell's folder.

    Raises:
        BadResults: if it cannot be written.
    """
    write_json(cell / ORACLE_FILE, {"version": FORMAT_VERSION, **error.to_json()})


def has_readable_oracle(folder: Path) -> bool:
    """Is the oracle's error rate undamaged, or missing?"""
    try:
        read_oracle_error(folder)
    except BadResults:
        return False
    return True
