"""The oracle's own error rate, measured where the true class is known, stored beside a cell's records."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from robustbench_inv.errors import BadResults
from robustbench_inv.results.files import FORMAT_VERSION, read_versioned, write_json
from robustbench_inv.results.summary import Rate

__all__ = ["ORACLE_FILE", "OracleError", "read_oracle_error", "write_oracle_error"]


ORACLE_FILE = "oracle.json"


@dataclass(frozen=True)
class OracleError:
    """What an oracle said of inputs whose class is known.

    Args:
        source: the oracle, as records name it.
        measured_on: ``clean inputs`` of the cell, or a rater's ``catch trials``.
        trials: how many.
        wrong: those of which it named another class.
        unknown: those of which it named none.
    """

    source: str
    measured_on: str
    trials: int
    wrong: int
    unknown: int

    @property
    def error_rate(self) -> Rate:
        """The share that it got wrong, of all trials."""
        return Rate(self.wrong, self.trials)

    @property
    def undecided_rate(self) -> Rate:
        """The share of which it named no class, of all trials."""
        return Rate(self.unknown, self.trials)

    def to_json(self) -> dict[str, Any]:
        """Return the content of oracle.json but for its version."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "OracleError":
        """Read what ``to_json`` returned; other keys are passed over."""
        return cls(**{name: value[name] for name in cls.__dataclass_fields__})


def read_oracle_error(cell: Path) -> OracleError | None:
    """Return what is known of the oracle of a cell's folder, None if nothing was measured.

    Raises:
        BadResults: if the file is damaged.
    """
    path = cell / ORACLE_FILE
    if not path.exists():
        return None
    try:
        return OracleError.from_json(read_versioned(path))
    except (KeyError, TypeError) as error:
        raise BadResults(f"{path} is damaged: {error!r}") from error


def write_oracle_error(cell: Path, error: OracleError) -> None:
    """Write what was measured of the oracle into a cell's folder.

    Raises:
        BadResults: if it cannot be written.
    """
    write_json(cell / ORACLE_FILE, {"version": FORMAT_VERSION, **error.to_json()})
