"""The data sets of 28 x 28 grey images: ``mnist5k`` from the package, ``mnist`` and ``fashion-mnist`` from files."""

from pathlib import Path

import torch
from torch.nn.functional import pad as padded

from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.data.fetch import fetch_file
from robustbench_inv.data.idx import parse_images, parse_labels
from robustbench_inv.data.sources import Source, locate, source, verified
from robustbench_inv.errors import BadData, BadParameter

__all__ = ["SPLITS", "open_images", "open_mnist5k"]

SPLITS = {"test": "t10k", "train": "train"}
"""Split → how the names of its files begin."""


def open_mnist5k() -> ArrayDataset:
    """Return the 5,000 digits that the package ships, sorted by class."""
    origin = source("mnist5k")
    return _read(origin, ("images-idx3-ubyte", "labels-idx1-ubyte"), None, origin.name)


def open_images(
    name: str, split: str = "test", root: Path | None = None, *, pad: int = 0
) -> ArrayDataset:
    """Return ``mnist`` or ``fashion-mnist``, fetched if it is nowhere on this machine.

    Args:
        name: the data set.
        split: ``test`` (10,000 images) or ``train`` (60,000).
        root: folder that holds ``mnist/`` and ``fashion-mnist/``; None for ``INVBENCH_DATA``, the system's
            folders and the user's cache alone.
        pad: black pixels to be added on each side, 0 to 18: 2 make images of 32 x 32.

    Raises:
        BadParameter: for an unknown split, or more pixels than that.
        BadData: if the root does not exist, a file is damaged, or is missing and cannot be fetched.
    """
    if split not in SPLITS:
        raise BadParameter(
            f"unknown split of {name}", got=split, expected="one of " + ", ".join(SPLITS)
        )
    if not 0 <= pad <= 18:
        raise BadParameter(f"unusable pad of {name}", got=pad, expected="0 to 18")
    if root is not None and not root.is_dir():
        raise BadData("no such data root", got=str(root), expected="an existing folder")
    files = (f"{SPLITS[split]}-images-idx3-ubyte", f"{SPLITS[split]}-labels-idx1-ubyte")
    chosen = {"split": split} if split != "test" else {}
    chosen |= {"pad": str(pad)} if pad else {}
    full = ":".join([name, *([",".join(f"{k}={v}" for k, v in chosen.items())] if chosen else [])])
    return _read(source(name), files, root, full, pad)


def _read(
    origin: Source, files: tuple[str, str], root: Path | None, name: str, pad: int = 0
) -> ArrayDataset:
    paths = [
        locate(origin, file, root) or fetch_file(origin, file, origin.target(root))
        for file in files
    ]
    data = [verified(path, origin.sha256[file]) for path, file in zip(paths, files, strict=True)]
    images, labels = parse_images(data[0], str(paths[0])), parse_labels(data[1], str(paths[1]))
    framed = padded(torch.from_numpy(images)[:, None], [pad] * 4)
    return ArrayDataset(framed, labels, name, num_classes=10)
