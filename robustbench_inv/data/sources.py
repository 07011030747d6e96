"""Sources of data, named ``SOURCE:PLACE``: folders, files of arrays, other libraries, and what a function returns."""

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.data.image_folder import DEEP, GREY, Resizing, open_image_folder
from robustbench_inv.data.library_datasets import load_hf, load_torchvision
from robustbench_inv.data.own_data import arrays_to_dataset
from robustbench_inv.data.protocol import Dataset, check_dataset
from robustbench_inv.errors import BadData, BadParameter

__all__ = ["SOURCES", "dataset_of", "open_source"]

Parameters = Mapping[str, Any]

CHECKED_SAMPLES = 16
"""Samples of a torch data set that are read twice, because random augmentation would change every number."""

LARGEST = 8 << 30
"""Bytes of the largest file of arrays that is read into memory."""

INPUT_KEYS = ("x", "images", "x_test", "inputs", "data", "arr_0")
LABEL_KEYS = ("y", "labels", "y_test", "targets", "label", "arr_1")
"""Names of arrays in an .npz file, in the order in which they are searched."""

UNCHANGED = Resizing()

ARRAY_PARAMETERS = {"low": 0.0, "high": 1.0, "layout": "auto", "classes": ""}


def open_source(kind: str, place: str, parameters: Parameters, name: str) -> Dataset:
    """Return the data set of ``SOURCE:PLACE``.

    Args:
        kind: one of ``SOURCES``.
        place: path of a folder or file.
        parameters: parameters that differ from the defaults.
        name: name of the data set in reports.

    Raises:
        BadParameter: for an unknown parameter, or a value of the wrong type or range.
        BadData: for data that cannot be read.
    """
    opener, defaults = SOURCES[kind]
    for key, value in parameters.items():
        if key not in defaults:
            known = ", ".join(defaults)
            raise BadParameter(f"unknown parameter of {kind}:", got=key, expected=f"one of {known}")
        _check_type(kind, key, value, defaults[key])
    return opener(Path(place).expanduser(), name, {**defaults, **parameters})


def _check_type(kind: str, key: str, value: object, default: object) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    whole = isinstance(value, int) and not isinstance(value, bool)
    fits = {int: whole, float: number, str: not isinstance(value, bool)}
    if not fits[type(default)]:
        expected = {int: "a whole number", float: "a number", str: "a word"}[type(default)]
        raise BadParameter(f"invalid {key} of {kind}:", got=value, expected=expected)


def _open_folder(path: Path, name: str, parameters: Parameters) -> Dataset:
    given = dict(parameters)
    resizing = Resizing(given.pop("size"), given.pop("resize"))
    classes = _class_names(given.pop("classes"))
    return open_image_folder(path, name, resizing, classes=classes, **given)


def _open_npz(path: Path, name: str, parameters: Parameters) -> Dataset:
    content = _read_npz(path)
    x = _entry(path, content, str(parameters["x"]), INPUT_KEYS, "x")
    y = _entry(path, content, str(parameters["y"]), LABEL_KEYS, "y")
    return _from_arrays(x, y, name, parameters)


def _open_npy(path: Path, name: str, parameters: Parameters) -> Dataset:
    labels = str(parameters["labels"])
    if not labels:
        raise BadData(
            f"{path} has no labels",
            expected="a second file",
            remedy=f"append labels=FILE.npy, or a text with one label a line: npy:{path},labels=y.npy",
        )
    file = Path(labels).expanduser()
    y = _read_npy(file) if file.suffix == ".npy" else _text_labels(file)
    return _from_arrays(_read_npy(path), y, name, parameters)


def _from_arrays(x: object, y: object, name: str, parameters: Parameters) -> ArrayDataset:
    return arrays_to_dataset(
        x,  # type: ignore[arg-type]
        y,  # type: ignore[arg-type]
        name,
        bounds=(float(parameters["low"]), float(parameters["high"])),
        layout=str(parameters["layout"]),
        classes=_class_names(parameters["classes"]),
    )


def _open_torchvision(path: Path, name: str, parameters: Parameters) -> Dataset:
    samples = load_torchvision(str(path), str(parameters["root"]), str(parameters["split"]))
    return _from_samples(samples, name, Resizing(parameters["size"], parameters["resize"]))


def _open_hf(path: Path, name: str, parameters: Parameters) -> Dataset:
    split, image, label = (str(parameters[key]) for key in ("split", "image", "label"))
    samples = load_hf(path.as_posix(), split, image, label)
    return _from_samples(samples, name, Resizing(parameters["size"], parameters["resize"]))


SOURCES: Mapping[str, tuple[Callable[[Path, str, Parameters], Dataset], Parameters]] = {
    "folder": (
        _open_folder,
        {"size": 0, "resize": 0, "channels": 0, "per_class": 0, "classes": ""},
    ),
    "npz": (_open_npz, {"x": "", "y": "", **ARRAY_PARAMETERS}),
    "npy": (_open_npy, {"labels": "", **ARRAY_PARAMETERS}),
    "torchvision": (_open_torchvision, {"root": "", "split": "test", "size": 0, "resize": 0}),
    "hf": (
        _open_hf,
        {"split": "test", "image": "", "label": "", "size": 0, "resize": 0},
    ),
}
"""Opener and default parameters of each source; the defaults determine the types."""


def _class_names(file: object) -> tuple[str, ...]:
    """Return the names in a file, one a line; none for an empty path."""
    if not file:
        return ()
    names = _read_lines(Path(str(file)).expanduser())
    if len(set(names)) != len(names) or len(names) < 2:
        problem = f"{file} has no names of classes"
        raise BadData(problem, got=f"{len(names)} lines", expected="2 or more different names")
    return tuple(names)


def _text_labels(path: Path) -> NDArray[Any]:
    """Return the labels in a text, one a line: integers, or names of classes."""
    lines = _read_lines(path)
    numbers = all(line.isascii() and line.isdecimal() for line in lines)
    return np.array(lines, dtype=np.int64 if numbers else str)


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a text that are not blank."""
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text in UTF-8"
        raise BadData(f"cannot read {path}", got=reason) from error
    return [line.strip() for line in lines if line.strip()]


def _read_npy(path: Path) -> NDArray[Any]:
    """Return the array of an .npy file."""
    with _numpy_file(path, "np.save"):
        array: NDArray[Any] = np.load(path, allow_pickle=False)
        array.shape  # noqa: B018 - an archive has none
        return array


def _read_npz(path: Path) -> Mapping[str, NDArray[Any]]:
    """Return the arrays of an .npz file."""
    with _numpy_file(path, "np.savez"):
        with zipfile.ZipFile(path) as archive:
            total = sum(each.file_size for each in archive.infolist())
        if total > LARGEST:
            got, expected = f"{total} bytes", f"{LARGEST} bytes at most"
            raise BadData(f"{path} is too large", got=got, expected=expected)
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}


@contextmanager
def _numpy_file(path: Path, writer: str) -> Iterator[None]:
    """Raise BadData for anything that numpy raises, for example for pickled Python objects."""
    if not path.is_file():
        raise BadData("no such file", got=str(path))
    try:
        yield
    except BadData:
        raise
    except Exception as error:
        raise BadData(
            f"{path} has no arrays of numbers or words",
            got=(str(error).splitlines() or [type(error).__name__])[0][:80],
            expected=f"a file that {writer} writes, without Python objects",
        ) from error


def _entry(
    path: Path, content: Mapping[str, Any], chosen: str, usual: tuple[str, ...], key: str
) -> object:
    """Return the array of an .npz file that the user names, or that has a usual name."""
    found = [name for name in ((chosen,) if chosen else usual) if name in content]
    if not found:
        raise BadData(
            f"{path} has no array {chosen or ' or '.join(usual)}",
            got=", ".join(content) or "no arrays",
            remedy=f"name it: {key}=NAME",
        )
    return content[found[0]]


def dataset_of(built: object, name: str) -> Dataset:
    """Return what a user's function returned as a data set.

    Args:
        built: a ``Dataset``, arrays ``(x, y)``, a mapping with ``x`` and ``y``, or a torch data set whose samples are
            pairs of an image and a label. Images may be tensors, arrays or images of Pillow.
        name: name of the data set in reports, if it has none.

    Raises:
        BadData: for anything else, samples that change between reads, or images of different shapes.
    """
    if isinstance(built, Mapping):
        built = (built.get("x"), built.get("y"))
    if isinstance(built, tuple | list) and len(built) == 2:
        x, y = built
        return arrays_to_dataset(x, y, name)
    if all(hasattr(type(built), each) for each in ("batch", "__len__")) or hasattr(built, "digest"):
        check_dataset(built)  # type: ignore[arg-type]
        return built  # type: ignore[return-value]
    if not (hasattr(built, "__getitem__") and hasattr(built, "__len__")) or isinstance(built, str):
        raise BadData(
            f"{name} is no data set",
            got=type(built).__name__,
            expected="arrays (x, y), a torch Dataset with a length, or a Dataset of this package",
        )
    return _from_samples(built, name)


def _from_samples(
    samples: Any,  # noqa: ANN401 - a torch data set
    name: str,
    resizing: Resizing = UNCHANGED,
) -> ArrayDataset:
    """Return the samples of a torch data set, read once; images of Pillow get the size."""
    count = len(samples)
    pairs = [_pair(samples[i], name, resizing) for i in range(count)]
    for i in range(0, count, max(1, count // CHECKED_SAMPLES)):
        again = _pair(samples[i], name, resizing)
        if not np.array_equal(pairs[i][0], again[0]) or pairs[i][1] != again[1]:
            raise BadData(
                f"{name}: sample {i} differs if it is read again",
                remedy="return the data set without random augmentation",
            )
    pictures = _of_one_kind([image for image, _ in pairs])
    shapes = dict.fromkeys(image.shape for image in pictures)
    if len(shapes) != 1:
        shown = ", ".join(map(str, list(shapes)[:3])) or "no samples"
        remedy = "resize the images in its transform, or give size=224"
        raise BadData(f"{name}: images differ in shape", got=shown, remedy=remedy)
    words = getattr(samples, "classes", ())
    named = isinstance(words, list | tuple) and all(isinstance(word, str) for word in words)
    labels = [label for _, label in pairs]
    return arrays_to_dataset(
        np.stack(pictures), labels, name, classes=tuple(words) if named else ()
    )


def _of_one_kind(images: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
    """Return images of rows and columns with three equal channels, if others have three channels."""
    if {image.shape[2:] for image in images} != {(), (3,)}:
        return images
    return [image if image.ndim == 3 else np.stack([image] * 3, axis=2) for image in images]


def _pair(sample: object, name: str, resizing: Resizing) -> tuple[NDArray[Any], Any]:
    """Return image and label of a sample as an array and a plain value."""
    if isinstance(sample, Mapping):
        keys = (("x", "image", "img", "pixel_values"), ("y", "label", "labels"))
        sample = [next((sample[key] for key in own if key in sample), None) for own in keys]
    if not isinstance(sample, tuple | list) or len(sample) != 2 or sample[0] is None:
        got = type(sample).__name__
        raise BadData(f"{name}: a sample is no pair", got=got, expected="(image, label)")
    image, label = sample
    if hasattr(image, "getbands") and hasattr(image, "convert"):  # of Pillow
        if image.mode.startswith(DEEP):
            raise BadData(
                f"{name}: an image has more than 8 bits a channel",
                got=f"mode {image.mode} of Pillow",
                expected="8 bits a channel",
                remedy="convert it to 8 bits, or return an array inside the bounds, such as np.asarray(image) / 65535",
            )
        image = resizing.apply(image.convert("L" if image.mode in GREY else "RGB"))
    label = label.tolist() if hasattr(label, "tolist") else label
    if not isinstance(label, int | float | str | bytes | list | tuple):
        expected = "a whole number, or the name of a class"
        raise BadData(f"{name}: a label is no class", got=type(label).__name__, expected=expected)
    return np.asarray(image), label
