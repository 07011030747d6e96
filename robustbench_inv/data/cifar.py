"""CIFAR-10 from its binary files, with images in any order."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.data.fetch import Source, search_folders
from robustbench_inv.errors import BadData, BadParameter

__all__ = ["SPLITS", "open_cifar10", "records_digest"]

SPLITS = {
    "test": (
        ("test_batch.bin",),
        "ab21d127e2bbf4b95f1588dcadf3c8502b8fedb328dd5315bc7fa51b5ab965c0",
    ),
    "train": (
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        "d17523651dcffdf1be45e6671e5077f61b15cbf5376a64e556c870e6fb6066d3",
    ),
}
"""Files of each split, and ``records_digest`` of their content."""

BUDGETS = ("cifar10-linf", "cifar10-l2", "l1=12")
"""Customary budgets; the l1 eps is that of Croce and Hein, Mind the box, ICML 2021."""

FOLDER = "cifar-10-batches-bin"
RECORD = 1 + 3 * 32 * 32


def open_cifar10(split: str = "test", root: Path | None = None) -> ArrayDataset:
    """Return ``cifar10``: 32×32 colour images of ten classes.

    The binary version of the data set is a folder of files. A record has one label and 3,072 bytes: all red, then all
    green, then all blue values. The files are not fetched: unpack the archive yourself.

    Args:
        split: ``test`` (10,000 images) or ``train`` (50,000).
        root: folder with ``cifar-10-batches-bin/`` or ``cifar10/cifar-10-batches-bin/``; None for ``INVBENCH_DATA`` and
            the cache.

    Raises:
        BadParameter: for an unknown split.
        BadData: if files are missing, or contain other images or labels than those of the split.

    References:
        Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """
    if split not in SPLITS:
        expected = "one of " + ", ".join(SPLITS)
        raise BadParameter("unknown split of cifar10", got=split, expected=expected)
    files, digest = SPLITS[split]
    folder = _folder(files, root)
    records = np.concatenate([_records(folder / file) for file in files])
    if (found := records_digest(records)) != digest:
        raise BadData(
            f"{folder} does not contain the {split} images of CIFAR-10",
            got=f"digest {found[:16]}… of its {len(records)} records",
            expected=f"{digest[:16]}…",
            remedy="unpack the archive of the binary version again",
        )
    name = "cifar10" if split == "test" else f"cifar10:split={split}"
    images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32))
    return ArrayDataset(images, records[:, 0].copy(), name, num_classes=10, budgets=BUDGETS)


def records_digest(records: NDArray[np.uint8]) -> str:
    """Return the sum of the SHA-256 of all records modulo 2^256, 64 hexadecimal digits.

    The digest does not depend on the order of the records. A shuffled copy has the same digest, but its samples have other
    ids and another ``Dataset.digest``.

    Args:
        records: (n, 3073) bytes.
    """
    digests = (hashlib.sha256(record).digest() for record in records)
    return f"{sum(int.from_bytes(digest) for digest in digests) % (1 << 256):064x}"


def _folder(files: tuple[str, ...], root: Path | None) -> Path:
    """Return the first folder with all files."""
    origin = Source("cifar10", {}, (FOLDER, f"cifar10/{FOLDER}"))
    searched = list(search_folders(origin, root))
    for folder in searched:
        if all((folder / file).is_file() for file in files):
            return folder
    raise BadData(
        "cannot find the files of cifar10",
        got=f"no {files[0]} in {', '.join(map(str, searched))}",
        remedy=f"unpack cifar-10-binary.tar.gz so that DIR/{FOLDER} exists and give --data-root DIR",
    )


def _records(path: Path) -> NDArray[np.uint8]:
    content = np.fromfile(path, np.uint8)
    if content.size % RECORD:
        expected = f"a multiple of {RECORD}"
        raise BadData(f"{path} is damaged", got=f"{content.size} bytes", expected=expected)
    return content.reshape(-1, RECORD)
