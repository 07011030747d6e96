"""Data sets by name."""

from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_inv.catalogue.references import parse_reference

if TYPE_CHECKING:
    from robustbench_inv.data.protocol import Dataset

__all__ = ["load_dataset", "usual_oracle"]


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
    from robustbench_inv.data.registry import DATASETS

    known = DATASETS.get(name.partition(":")[0])
    return known.oracle if known else ""
