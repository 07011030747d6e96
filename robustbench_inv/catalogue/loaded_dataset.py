"""Data sets by name."""

from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_inv.catalogue.references import parse_reference

if TYPE_CHECKING:
    from robustbench_inv.data.protocol import Dataset
    from robustbench_inv.data.registry import DatasetEntry

__all__ = ["load_dataset", "usual_oracle", "usual_others"]


def load_dataset(source: "str | Dataset", *, data_root: "str | Path | None" = None) -> "Dataset":
    """Return a data set.

    Args:
        source: a name, with ``:key=value,…`` if it has parameters (``spheres:d=500,n=10``); or a data set,
            which is returned as it is.
        data_root: where its files are; None for INVBENCH_DATA and the places that are known.

    Raises:
        UnknownName: if nothing is called so.
        BadParameter: for a parameter that it does not have.
        BadData: if its files are missing or damaged.
    """
    if not isinstance(source, str):
        return source
    from robustbench_inv.data.registry import open_dataset

    reference = parse_reference(source)
    root = Path(data_root).expanduser() if data_root else None
    return open_dataset(reference.name, reference.parameters, root)


def usual_oracle(name: str) -> str:
    """Return the proxy that says what class a changed input of a data set has, empty if there is none.

    Args:
        name: of the data set, with or without parameters.
    """
    known = _known(name)
    return known.oracle if known else ""


def usual_others(name: str) -> str:
    """Return the data set whose inputs are shown as out of another's distribution, empty if there is none.

    Args:
        name: of the data set, with or without parameters.

    Example:
        >>> usual_others("fashion-mnist:split=train"), usual_others("spheres")
        ('mnist', '')
    """
    known = _known(name)
    return known.others if known else ""


def _known(name: str) -> "DatasetEntry | None":
    from robustbench_inv.data.registry import DATASETS

    return DATASETS.get(name.partition(":")[0])
