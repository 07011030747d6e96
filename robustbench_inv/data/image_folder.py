"""A folder of photographs with one subfolder for each class, as ``torchvision.datasets.ImageFolder`` reads it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.errors import BadData, BadParameter, describe_error

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["DEEP", "GREY", "Resizing", "open_image_folder"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".webp", ".tif", ".tiff")
GREY, DEEP = ("1", "L", "LA"), ("I", "F")
"""Modes of Pillow for grey images, and the starts of those with more than 8 bits."""

LARGEST = 8 << 30
"""Bytes of the largest folder that is read into memory."""


@dataclass(frozen=True)
class Resizing:
    """How images get one size: the shorter side is resized (bilinear, antialiased), then the centre is cropped.

    Args:
        size: rows and columns of the result; 0 leaves images unchanged.
        resize: pixels of the shorter side before the crop; 0 for ``size``.

    Raises:
        BadParameter: for a size that is negative, or larger than ``resize``.
    """

    size: int = 0
    resize: int = 0

    def __post_init__(self) -> None:
        if self.size < 0 or self.resize < 0 or (self.resize and not 0 < self.size <= self.resize):
            got = f"size={self.size}, resize={self.resize}"
            raise BadParameter("invalid size of images", got=got, expected="0 < size <= resize")

    def apply(self, image: "Image") -> "Image":
        """Return the image in the new size."""
        if not self.size:
            return image
        from PIL.Image import Resampling

        factor = (self.resize or self.size) / min(image.size)
        wide, high = (max(self.size, int(side * factor)) for side in image.size)
        left, top = round((wide - self.size) / 2), round((high - self.size) / 2)
        resized = image.resize((wide, high), Resampling.BILINEAR)
        return resized.crop((left, top, left + self.size, top + self.size))


def open_image_folder(
    path: Path,
    name: str,
    resizing: Resizing,
    *,
    channels: int = 0,
    per_class: int = 0,
    classes: Sequence[str] = (),
) -> ArrayDataset:
    """Return the images of ``PATH/CLASS/FILE``; the order is that of the names of classes and files.

    Args:
        path: the folder.
        name: name of the data set in reports.
        resizing: size of the images.
        channels: 1 for grey, 3 for colour; 0 for 1 if all images are grey, else 3.
        per_class: largest number of images of each class, the first ones; 0 for all.
        classes: names of the model's classes in their order; empty for the folders in the order of their names.

    Returns:
        A data set of 8-bit images with bounds (0, 1).

    Raises:
        BadData: if the folder has another structure, or images that cannot be read or differ in size.
        BadParameter: for another number of channels, or a negative number of images.
    """
    if channels not in (0, 1, 3):
        raise BadParameter("invalid number of channels", got=channels, expected="1 or 3")
    if per_class < 0:
        raise BadParameter("invalid per_class", got=per_class, expected="1 or more")
    found = _files_by_class(path, per_class)
    known = tuple(classes) or _class_order(path, list(found))
    if unknown := sorted(found.keys() - set(known)):
        problem = f"{path} has a class that the model does not have"
        raise BadData(problem, got=unknown[0], expected="one of " + ", ".join(known[:10]))
    files = [file for each in found.values() for file in each]
    labels = [k for each, own in found.items() for k in [known.index(each)] * len(own)]
    shape, notes = _common_shape(files, resizing, channels, path)
    images = np.empty((len(files), *shape), np.uint8)
    with ThreadPoolExecutor() as pool:
        read = partial(_pixels, resizing=resizing, channels=shape[0])
        for row, pixels in enumerate(pool.map(read, files)):
            images[row] = pixels
    data = ArrayDataset(images, labels, name, num_classes=max(2, len(known)), classes=known)
    data.notes = tuple(f"{name}: {note}" for note in notes)
    return data


def _files_by_class(path: Path, per_class: int) -> dict[str, list[Path]]:
    """Return the images of each class, both in the order of their names."""
    if not path.is_dir():
        raise BadData("no such folder", got=str(path), expected="a folder with one for each class")
    folders = sorted(each for each in path.iterdir() if each.is_dir() and each.name[0] != ".")
    found = {each.name: _images_in(each) for each in folders}
    if not any(found.values()):
        raise BadData(
            f"{path} has no images in folders of classes",
            got=", ".join(each.name for each in folders[:5]) or "no folders",
            expected="PATH/CLASS/IMAGE.png or .jpg",
        )
    if found.keys() <= {"train", "test", "val", "valid", "validation"}:
        remedy = f"name one of them: folder:{folders[0]}"
        raise BadData(f"{path} has folders of splits", got=", ".join(found), remedy=remedy)
    if empty := [name for name, files in found.items() if not files]:
        raise BadData(f"{path / empty[0]} has no image", remedy="remove the folder, or fill it")
    return {name: files[: per_class or None] for name, files in found.items()}


def _images_in(folder: Path) -> list[Path]:
    files = (each for each in folder.rglob("*") if each.suffix.lower() in SUFFIXES)
    return sorted(each for each in files if each.is_file() and each.name[0] != ".")


def _class_order(path: Path, names: list[str]) -> tuple[str, ...]:
    """Return the names of the classes; numbers must be in both orders the same, since labels depend on it.

    Raises:
        BadData: for one class, or numbers that are not 0, 1, … in the order of their names.
    """
    if len(names) < 2:
        raise BadData(
            f"{path} has one class",
            got=names[0],
            expected="2 or more",
            remedy="name the model's classes, one a line: classes=classes.txt",
        )
    numbers = all(name.isdecimal() for name in names)
    if numbers and [int(name) for name in names] != list(range(len(names))):
        raise BadData(
            f"{path} has folders of numbers that are not the positions of their names",
            got=", ".join(names[:5]),
            expected="0, 1, 2, … in this order",
            remedy="list the folders in the order of the model's classes, one a line: classes=classes.txt",
        )
    return tuple(names)


def _common_shape(
    files: list[Path], resizing: Resizing, channels: int, path: Path
) -> tuple[tuple[int, int, int], list[str]]:
    """Return the shape of all images, and notes; the files are opened but not decoded."""
    heads = [_head(file) for file in files]
    modes, sizes = Counter(head[0] for head in heads), Counter(head[1] for head in heads)
    for file, (mode, _) in zip(files, heads, strict=True):
        if mode.startswith(DEEP):
            raise BadData(
                f"{file} has more than 8 bits a channel",
                got=f"mode {mode} of Pillow",
                expected="8 bits a channel",
                remedy="convert it to 8 bits, or read the folder in a function: FILE.py:FUNCTION",
            )
    if len(sizes) > 1 and not resizing.size:
        shown = ", ".join(f"{wide} x {high}" for wide, high in list(sizes)[:3])
        remedy = "give size=224, and resize=256 for a crop as of ImageNet"
        raise BadData(f"{path} has images of different sizes", got=shown, remedy=remedy)
    wide, high = (resizing.size, resizing.size) if resizing.size else next(iter(sizes))
    grey = modes.keys() <= set(GREY)
    shape = (channels or (1 if grey else 3), high, wide)
    if len(files) * int(np.prod(shape)) > LARGEST:
        raise BadData(
            f"{path} does not fit into {LARGEST >> 30} GiB",
            got=f"{len(files)} images of shape {shape}",
            remedy="read the first images of each class: per_class=100",
        )
    notes = (
        ["all images are grey: 1 channel (channels=3 repeats it)"] if grey and not channels else []
    )
    transparent = modes["RGBA"] + modes["LA"] + modes["PA"]
    return shape, notes + (
        [f"transparency of {transparent} images was dropped"] if transparent else []
    )


def _head(file: Path) -> tuple[str, tuple[int, int]]:
    """Return mode and size of an image."""
    from PIL import Image

    with _readable(file), Image.open(file) as image:
        return image.mode, image.size


def _pixels(file: Path, resizing: Resizing, channels: int) -> NDArray[np.uint8]:
    """Return an image, (channels, rows, columns)."""
    from PIL import Image

    with _readable(file), Image.open(file) as image:
        array = np.asarray(resizing.apply(image.convert("L" if channels == 1 else "RGB")))
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Raise BadData with the file's name for anything that Pillow raises."""
    try:
        yield
    except Exception as error:
        raise BadData(f"{file} is no readable image", got=describe_error(error)[:80]) from error
