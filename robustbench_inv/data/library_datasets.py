"""Data sets of torchvision and of HuggingFace datasets, from files that are on this machine."""

import inspect
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustbench_inv.errors import (
    BadData,
    BadParameter,
    UnknownName,
    describe_error,
    import_library,
    suggest,
)

__all__ = ["ImageColumns", "load_hf", "load_torchvision"]

IMAGE_COLUMNS = ("image", "img", "pixel_values", "x")
LABEL_COLUMNS = ("label", "labels", "fine_label", "y")
"""Names of columns, in the order in which they are searched."""


def load_torchvision(name: str, root: str, split: str) -> Any:  # noqa: ANN401 - an untyped library
    """Return a data set of ``torchvision.datasets``; nothing is downloaded.

    Args:
        name: name of the class, such as ``CIFAR10``.
        root: folder with its files; empty for ``INVBENCH_DATA``, or else the current folder.
        split: ``train`` or ``test``, or another split of the class.

    Raises:
        MissingExtra: if torchvision cannot be imported.
        UnknownName: for an unknown class.
        BadData: if its files are missing or damaged.
    """
    module = import_library("torchvision.datasets", "torchvision")
    known = [each for each in getattr(module, "__all__", ()) if each[0].isupper()]
    kind = getattr(module, name, None) if name in known else None
    if not isinstance(kind, type):
        raise UnknownName("torchvision has no such data set", got=name, remedy=suggest(name, known))
    accepted = inspect.signature(kind).parameters
    chosen: dict[str, Any] = {"root": root or os.environ.get("INVBENCH_DATA", ".")}
    if "train" in accepted:
        if split not in ("train", "test"):
            raise BadParameter(f"unknown split of {name}", got=split, expected="train or test")
        chosen["train"] = split == "train"
    elif "split" in accepted:
        chosen["split"] = split
    chosen |= {"download": False} if "download" in accepted else {}
    with _readable(f"torchvision:{name}", "download it with torchvision, and give root=FOLDER"):
        return kind(**chosen)


class ImageColumns:
    """The images and labels of a HuggingFace data set as pairs, with the names of its classes.

    Args:
        rows: the data set.
        image: column of the images; empty for a usual name.
        label: column of the labels; empty for a usual name.

    Raises:
        BadData: if there is no such column.
    """

    def __init__(self, rows: Any, image: str = "", label: str = "") -> None:  # noqa: ANN401
        self.rows, names = rows, list(rows.column_names)
        self.image = _column(names, image, IMAGE_COLUMNS, "image")
        self.label = _column(names, label, LABEL_COLUMNS, "label")
        self.classes = list(getattr(rows.features[self.label], "names", None) or ())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        row = self.rows[index]
        return row[self.image], row[self.label]


def load_hf(name: str, split: str, image: str, label: str) -> ImageColumns:
    """Return a data set of HuggingFace from a local folder or the local cache; nothing is downloaded.

    Args:
        name: ``ORG/NAME`` in the cache, or a folder that ``save_to_disk`` wrote.
        split: name of the split.
        image: column of the images; empty for a usual name.
        label: column of the labels; empty for a usual name.

    Raises:
        MissingExtra: if datasets cannot be imported.
        BadData: if the data set, its split or a column is missing.
    """
    with _offline():
        library = import_library("datasets", "hf")
        with _readable(f"hf:{name}", "load it once with datasets.load_dataset, or save_to_disk"):
            if Path(name).is_dir():
                found = library.load_from_disk(name)
            else:
                found = library.load_dataset(name, split=split)
    if isinstance(found, Mapping):
        if split not in found:
            known = ", ".join(map(str, found))
            raise BadData(f"hf:{name} has no such split", got=split, expected=f"one of {known}")
        found = found[split]
    return ImageColumns(found, image, label)


def _column(names: Sequence[str], chosen: str, usual: Sequence[str], key: str) -> str:
    found = [name for name in ((chosen,) if chosen else usual) if name in names]
    if not found:
        raise BadData(
            f"the data set has no column {chosen or ' or '.join(usual)}",
            got=", ".join(names),
            remedy=f"name the column: {key}=NAME",
        )
    return found[0]


@contextmanager
def _readable(name: str, remedy: str) -> Iterator[None]:
    """Raise BadData for anything that a library raises while it opens files."""
    try:
        yield
    except Exception as error:
        raise BadData(f"cannot read {name}", got=describe_error(error), remedy=remedy) from error


@contextmanager
def _offline() -> Iterator[None]:
    """Keep the libraries of HuggingFace from using the network; they read the variables when they are imported."""
    names = ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
