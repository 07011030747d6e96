"""Your own arrays as a data set: type, range and layout are recognised, and every change is noted."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustbench_inv.data.arrays import Array, ArrayDataset, checked_bounds
from robustbench_inv.errors import BadData, BadParameter

__all__ = ["LAYOUTS", "arrays_to_dataset"]

Labels = Array | list[int] | list[str]

LAYOUTS = ("auto", "nchw", "nhwc", "nhw", "keep")
"""Layouts of images: that of torch, channels last, without channels; ``auto`` recognises them, ``keep`` does nothing."""

CHANNELS = (1, 3)
"""Numbers of channels by which ``auto`` recognises the dimension of the channels."""

SMALLEST_IMAGE = 8
"""Least rows and columns of a grey image without channels; smaller arrays may be anything."""

LARGEST_OVERSHOOT = 16
"""Largest value that may be a rounding beyond [0, 1], or of 4 bits; images above it have grey levels of 0 to 255."""


def arrays_to_dataset(
    images: Array,
    labels: Labels,
    name: str = "arrays",
    *,
    bounds: tuple[float, float] | None = None,
    layout: str = "auto",
    classes: tuple[str, ...] = (),
) -> ArrayDataset:
    """Return your arrays as a data set, with a note for each thing that was changed.

    Args:
        images: (N, …) numbers of any type: images, signals or tables. Values inside the bounds are unchanged. Images
            of grey levels 0 to 255 that leave the bounds are scaled to them. Images (N, height, width, channels), and
            8-bit images without channels, become (N, channels, height, width).
        labels: (N,) integers, or names of classes.
        name: name of the data set in reports.
        bounds: smallest and largest value of an input element; None for (0, 1).
        layout: one of ``LAYOUTS``.
        classes: names of the classes; empty for those of the labels.

    Raises:
        BadData: for arrays that are no data set, or whose range is not recognised.
        BadParameter: for an unknown layout.

    Example:
        >>> data = arrays_to_dataset(np.full((2, 8, 8, 3), 255, np.uint8), ["cat", "dog"])
        >>> data.shape, data.bounds, data.classes
        ((3, 8, 8), (0.0, 1.0), ('cat', 'dog'))
        >>> data.notes
        ('arrays: images (N, 8, 8, 3) were changed to (N, 3, 8, 8)', 'arrays: grey levels 0 to 255 were scaled to [0, 1]')
    """
    if layout not in LAYOUTS:
        raise BadParameter("unknown layout", got=layout, expected="one of " + ", ".join(LAYOUTS))
    notes: list[str] = []
    tensor = _arranged(_numbers(images, name), layout, notes)
    tensor, limits = _in_range(tensor, bounds, name, notes)
    numbers, named = _label_numbers(labels, classes, name, notes)
    data = ArrayDataset(
        tensor, numbers, name, limits, num_classes=len(named) if named else None, classes=named
    )
    data.notes = tuple(f"{name}: {note}" for note in notes)
    return data


def _numbers(images: object, name: str) -> Tensor:
    """Return images as float32, float64, or whole numbers of 8 or 64 bits."""
    try:
        tensor = torch.as_tensor(images if isinstance(images, Tensor) else np.array(images))
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadData(
            f"{name}: images cannot be read",
            got=type(images).__name__,
            expected="an array or tensor of numbers, all images of one shape",
        ) from error
    tensor = tensor.detach().cpu()
    if tensor.is_complex():
        raise BadData(f"{name}: images are complex numbers", got=str(tensor.dtype))
    if tensor.ndim < 2 or not tensor.numel():
        expected = "(N, …) with at least one image"
        raise BadData(f"{name}: no images", got=tuple(tensor.shape), expected=expected)
    if tensor.dtype in (torch.uint8, torch.float32, torch.float64):
        return tensor
    if tensor.is_floating_point() or tensor.dtype == torch.bool:
        return tensor.float()
    return tensor.double() if tensor.dtype == torch.uint64 else tensor.long()


def _arranged(images: Tensor, layout: str, notes: list[str]) -> Tensor:
    """Return images with the channels before rows and columns."""
    found = _layout_of(images) if layout == "auto" else layout
    if found not in ("nhwc", "nhw"):
        return images
    dimensions = len(found)
    if images.ndim != dimensions:
        raise BadParameter(
            f"the layout {found} does not fit images of {images.ndim - 1} dimensions",
            got=tuple(images.shape[1:]),
            expected=f"{dimensions - 1} dimensions",
        )
    changed = images.permute(0, 3, 1, 2) if found == "nhwc" else images.unsqueeze(1)
    if layout == "auto":
        before, after = (", ".join(map(str, each.shape[1:])) for each in (images, changed))
        notes.append(f"images (N, {before}) were changed to (N, {after})")
    return changed.contiguous()


def _layout_of(images: Tensor) -> str:
    shape = images.shape[1:]
    if len(shape) == 3 and shape[2] in CHANNELS and shape[0] not in CHANNELS:
        return "nhwc"
    grey = len(shape) == 2 and images.dtype == torch.uint8
    return "nhw" if grey and min(shape) >= SMALLEST_IMAGE else "keep"


def _in_range(
    images: Tensor, bounds: tuple[float, float] | None, name: str, notes: list[str]
) -> tuple[Tensor, tuple[float, float]]:
    """Return images inside their bounds, and the bounds."""
    limits = checked_bounds(bounds or (0.0, 1.0), name)
    shown = f"[{limits[0]:g}, {limits[1]:g}]"
    low, high = images.amin().item(), images.amax().item()
    if (limits[0] <= low and high <= limits[1]) or not np.isfinite([low, high]).all():
        # an element that is not finite is refused by ArrayDataset
        return _unscaled(images, limits, notes), limits
    if _are_grey_levels(images, low, high):
        notes.append(f"grey levels 0 to 255 were scaled to {shown}")
        if images.equal(images.round()):
            return images.to(torch.uint8), limits
        return (images / 255 * (limits[1] - limits[0]) + limits[0]).clamp(*limits), limits
    least, largest = np.floor(min(low, limits[0])), np.ceil(max(high, limits[1]))
    raise BadData(
        f"{name}: the range of the inputs is not that of their bounds",
        got=f"[{low:g}, {high:g}]",
        expected=f"{shown}, or images of grey levels 0 to 255",
        remedy="undo a normalisation and normalise inside the model, divide grey levels by their largest possible value, "
        f"or give the model's range: model.bounds = ({least:g}, {largest:g}) in Python, low={least:g},high={largest:g} "
        "after the name of a file",
    )


def _unscaled(images: Tensor, limits: tuple[float, float], notes: list[str]) -> Tensor:
    """Return images inside their bounds with the same values; 8 bits if the bounds are those of grey levels."""
    if images.is_floating_point():
        return images
    if limits == (0, 255):
        return images.to(torch.uint8)
    if images.dtype == torch.uint8:
        read = "0 and 1 were read as 0 and 1" if limits == (0, 1) else "inside the bounds were kept"
        notes.append(f"8-bit numbers {read}, and not scaled as grey levels")
    return images.float()


def _are_grey_levels(images: Tensor, low: float, high: float) -> bool:
    """Return whether images have values of 0 to 255; tables and signals have any values.

    Images have rows, columns and channels; those of 8 bits may lack the channels.
    """
    without_channels = images.dtype == torch.uint8 and images.ndim == 3
    is_image = images.ndim > 3 or (without_channels and min(images.shape[1:]) >= SMALLEST_IMAGE)
    return is_image and low >= 0 and LARGEST_OVERSHOOT < high <= 255


def _label_numbers(
    labels: object, classes: tuple[str, ...], name: str, notes: list[str]
) -> tuple[NDArray[np.generic], tuple[str, ...]]:
    """Return labels as integers, and the names of the classes: those given, or those of labels that are words.

    Words that are numbers, such as ``"10"``, are read as these numbers, unless names of classes are given.
    """
    array = _label_array(labels, name)
    if (
        array.dtype.kind in "US"
        and not classes
        and (numbers := _written_numbers(array)) is not None
    ):
        notes.append("labels that are numbers in words were read as these numbers")
        array = numbers
    if array.dtype.kind not in "US" or array.ndim != 1:
        whole = array.dtype.kind == "f" and np.array_equal(array, array.astype(np.float64).round())
        return (array.astype(np.int64) if whole and array.ndim == 1 else array), classes
    words = array.astype(str)
    known = classes or tuple(sorted(set(words.tolist())))
    if missing := sorted(set(words.tolist()) - set(known)):
        expected = "one of " + ", ".join(known[:10])
        raise BadData(f"{name}: unknown class", got=missing[0], expected=expected)
    positions = {word: number for number, word in enumerate(known)}
    return np.array([positions[word] for word in words.tolist()], dtype=np.int64), known


def _label_array(labels: object, name: str) -> NDArray[np.generic]:
    """Return labels as an array, (N,) if they are (N, 1)."""
    try:
        array = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels)
    except ValueError as error:
        expected = "(N,) whole numbers, or names of classes"
        raise BadData(
            f"{name}: labels cannot be read", got=type(labels).__name__, expected=expected
        ) from error
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array


def _written_numbers(words: NDArray[np.generic]) -> NDArray[np.float64] | None:
    """Return the numbers that all of the words are; None if one of them is no number."""
    try:
        return words.astype(str).astype(np.float64)
    except ValueError:
        return None
