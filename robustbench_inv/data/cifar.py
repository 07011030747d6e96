"""CIFAR-10 and CIFAR-100 from their published files: the binary ones, or the pickles that torchvision unpacks."""

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.data.fetch import Source, search_folders
from robustbench_inv.errors import BadData, BadParameter, MissingData

__all__ = [
    "PICKLES",
    "PICKLES_100",
    "SPLITS",
    "find_folder",
    "open_cifar10",
    "open_cifar100",
    "records_digest",
]

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
"""Binary files of each split of CIFAR-10, and ``records_digest`` of their content."""

PICKLES = {"test": ("test_batch",), "train": tuple(f"data_batch_{i}" for i in range(1, 6))}
"""Pickled files of each split of CIFAR-10, whose records are the same."""

PICKLES_100 = {
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "train": "16019d7e3df5f24257cddd939b257f8d",
}
"""MD5 of the pickled file of each split of CIFAR-100, as published with the data set."""

PER_CLASS_100 = {"test": 100, "train": 500}
"""Images of each class of CIFAR-100."""

BUDGETS = ("cifar10-linf", "cifar10-l2", "l1=12")
"""Customary budgets; the l1 eps is that of Croce and Hein, Mind the box, ICML 2021."""

FOLDER, PICKLED = "cifar-10-batches-bin", "cifar-10-batches-py"
BINARY_100, PICKLED_100 = "cifar-100-binary", "cifar-100-python"
PIXELS = 3 * 32 * 32
RECORD = 1 + PIXELS

LARGEST = 1 << 28
"""Bytes beyond which no file of these data sets is read."""


def open_cifar10(split: str = "test", root: Path | None = None) -> ArrayDataset:
    """Return ``cifar10``: 32×32 colour images of ten classes.

    The data set is a folder of files: the binary version, or the version for Python, which torchvision unpacks. A
    record has one label and 3,072 bytes: all red, then all green, then all blue values. ``invbench data
    fetch cifar10`` fetches and unpacks it.

    Args:
        split: ``test`` (10,000 images) or ``train`` (50,000).
        root: folder with ``cifar-10-batches-bin/`` or ``cifar-10-batches-py/``, or with these in a folder ``cifar10/``;
            None for ``INVBENCH_DATA`` and the cache.

    Raises:
        BadParameter: for an unknown split.
        BadData: if files are missing, or contain other images or labels than those of the split.

    References:
        Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """
    _check_split("cifar10", split)
    files, digest = SPLITS[split]
    folder = find_folder("cifar10", split, root)
    if not (folder / files[0]).is_file():
        records = np.concatenate([_unpickled(folder / file, b"labels") for file in PICKLES[split]])
    else:
        records = np.concatenate([_records(folder / file) for file in files])
    if (found := records_digest(records)) != digest:
        raise BadData(
            f"{folder} does not contain the {split} images of CIFAR-10",
            got=f"digest {found[:16]}… of its {len(records)} records",
            expected=f"{digest[:16]}…",
            remedy="unpack the archive again",
        )
    data = _dataset("cifar10", split, records, 10)
    data.budgets = BUDGETS
    return data


def open_cifar100(split: str = "test", root: Path | None = None) -> ArrayDataset:
    """Return ``cifar100``: 32×32 colour images of 100 classes.

    Args:
        split: ``test`` (10,000 images) or ``train`` (50,000).
        root: folder with ``cifar-100-binary/`` or with ``cifar-100-python/``, which torchvision unpacks, or with these in
            a folder ``cifar100/``; None for ``INVBENCH_DATA`` and the cache.

    Raises:
        BadParameter: for an unknown split.
        BadData: if the file is missing, or is not the published one.

    References:
        Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """
    _check_split("cifar100", split)
    folder = find_folder("cifar100", split, root)
    if (binary := folder / f"{split}.bin").is_file():
        return _dataset("cifar100", split, _fine_records(binary, split), 100)
    path = folder / split
    found = hashlib.md5(_content(path), usedforsecurity=False).hexdigest()
    if found != PICKLES_100[split]:
        raise BadData(
            f"{path} is not the {split} file of CIFAR-100",
            got=f"MD5 {found}",
            expected=PICKLES_100[split],
            remedy="unpack cifar-100-python.tar.gz again",
        )
    return _dataset("cifar100", split, _unpickled(path, b"fine_labels"), 100)


def records_digest(records: NDArray[np.uint8]) -> str:
    """Return the sum of the SHA-256 of all records modulo 2^256, 64 hexadecimal digits.

    The digest does not depend on the order of the records. A shuffled copy has the same digest, but its samples have other
    ids and another ``Dataset.digest``.

    Args:
        records: (n, 3073) bytes.
    """
    digests = (hashlib.sha256(record).digest() for record in records)
    return f"{sum(int.from_bytes(digest) for digest in digests) % (1 << 256):064x}"


def _check_split(name: str, split: str) -> None:
    if split not in SPLITS:
        expected = "one of " + ", ".join(SPLITS)
        raise BadParameter(f"unknown split of {name}", got=split, expected=expected)


def _dataset(name: str, split: str, records: NDArray[np.uint8], classes: int) -> ArrayDataset:
    images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32))
    full = name if split == "test" else f"{name}:split={split}"
    return ArrayDataset(images, records[:, 0].copy(), full, num_classes=classes)


def find_folder(name: str, split: str, root: Path | None) -> Path:
    """Return the first folder with all files of a split, in one of the layouts; raises BadData if there is none."""
    layouts: dict[str, tuple[str, ...]] = {BINARY_100: (f"{split}.bin",), PICKLED_100: (split,)}
    if name == "cifar10":
        layouts = {FOLDER: SPLITS[split][0], PICKLED: PICKLES[split]}
    places = tuple(place for each in layouts for place in (each, f"{name}/{each}"))
    searched = list(search_folders(Source(name, {}, places), root))
    searched += [searched[-1] / each for each in layouts]  # the cache
    for folder in searched:
        if any(all((folder / file).is_file() for file in files) for files in layouts.values()):
            return folder
    archives = {FOLDER: "binary", BINARY_100: "binary"}
    known = [
        f"{name.replace('cifar', 'cifar-')}-{archives.get(each, 'python')}.tar.gz"
        for each in layouts
    ]
    raise MissingData(
        f"cannot find the files of {name}",
        got=f"none in {', '.join(map(str, searched))}",
        remedy=f"run invbench data fetch {name}, or unpack {' or '.join(known)} so that DIR/"
        f"{' or DIR/'.join(layouts)} exists and give --data-root DIR",
    )


def _content(path: Path) -> bytes:
    if path.stat().st_size > LARGEST:
        raise BadData(f"{path} is too large", got=f"{path.stat().st_size} bytes")
    return path.read_bytes()


def _records(path: Path, size: int = RECORD) -> NDArray[np.uint8]:
    content = np.frombuffer(_content(path), np.uint8)
    if content.size % size:
        expected = f"a multiple of {size}"
        raise BadData(f"{path} is damaged", got=f"{content.size} bytes", expected=expected)
    return content.reshape(-1, size)


def _fine_records(path: Path, split: str) -> NDArray[np.uint8]:
    """Return the records (n, 3073) of a binary file of CIFAR-100, whose records begin with one of 20 groups of classes.

    No digest of this file is published. Each class has as many images as it must have, and one group.
    """
    records = _records(path, RECORD + 1)
    groups, classes = records[:, 0], records[:, 1]
    pairs = np.unique(records[:, :2], axis=0)
    each = np.bincount(classes, minlength=100)
    if len(pairs) != 100 or groups.max() != 19 or set(each.tolist()) != {PER_CLASS_100[split]}:
        raise BadData(
            f"{path} does not contain the {split} images of CIFAR-100",
            got=f"{len(records)} images, {len(pairs)} pairs of group and class",
            expected=f"{PER_CLASS_100[split]} images of each of 100 classes, in 20 groups",
            remedy="unpack cifar-100-binary.tar.gz again",
        )
    return np.ascontiguousarray(records[:, 1:])


def _unpickled(path: Path, key: bytes) -> NDArray[np.uint8]:
    """Return the records (n, 3073) of a pickled file, labels first; nothing but arrays and plain values is built."""
    try:
        stored: Any = _ArraysOnly(io.BytesIO(_content(path)), encoding="bytes").load()
        labels, pixels = np.asarray(stored[key]), stored[b"data"]
        if pixels.dtype != np.uint8 or pixels.shape != (len(labels), PIXELS):
            _refuse(path, f"{pixels.dtype} of shape {pixels.shape}")
        return np.concatenate([labels.astype(np.uint8)[:, None], pixels], axis=1)
    except BadData:
        raise
    except Exception as error:  # a damaged pickle raises any kind
        _refuse(path, f"{type(error).__name__}: {error}"[:80])


def _refuse(path: Path, got: str) -> NoReturn:
    raise BadData(
        f"{path} is no file of CIFAR",
        got=got,
        expected="a pickle of arrays and numbers, as published",
        remedy="unpack the archive again",
    )


class _ArraysOnly(pickle.Unpickler):
    """Reads pickles of arrays and plain values, and refuses any other class or function."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401 - of pickle
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.ndarray.__reduce__(np.zeros(0))[0]
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
