"""Data sets by name. Importing this module does not import torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from robustbench_inv.errors import BadParameter, UnknownName, suggest

if TYPE_CHECKING:
    from pathlib import Path

    from robustbench_inv.data.protocol import Dataset

__all__ = ["DATASETS", "DatasetEntry", "dataset_entry", "open_dataset", "opened_entry"]

Scalar = int | float | str | bool
Parameters = dict[str, Scalar]


@dataclass(frozen=True)
class DatasetEntry:
    """Properties of a data set that are available without opening it.

    Args:
        name: name of the data set.
        summary: one line.
        num_classes: number of classes.
        shape: shape of one input with default parameters.
        opener: opens the data set with parameters and data root.
        parameters: default values by name, which also determine the types.
        has_files: whether its files are fetched and verified one by one. False for a generated data set, and for one
            that is one archive (cifar10), which is verified when it is opened.
        oracle: default proxy oracle; empty if there is none.
        ood: default out-of-distribution data set of the same shape; empty if there is none.
        classes: names of the classes; empty for digits.
    """

    name: str
    summary: str
    num_classes: int
    shape: tuple[int, ...]
    opener: Callable[[Parameters, Path | None], Dataset] = field(repr=False)
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    has_files: bool = True
    oracle: str = ""
    ood: str = ""
    classes: tuple[str, ...] = ()


def dataset_entry(name: str) -> DatasetEntry:
    """Return the entry of a data set.

    Raises:
        UnknownName: if the name is unknown; the remedy contains similar names.
    """
    if name in DATASETS:
        return DATASETS[name]
    raise UnknownName("no such data set", got=name, remedy=suggest(name, DATASETS))


def open_dataset(
    name: str, parameters: Mapping[str, object] | None = None, root: Path | None = None
) -> Dataset:
    """Open a data set by name.

    Args:
        name: one of ``DATASETS``.
        parameters: parameters that differ from the defaults.
        root: data root, with one subfolder per data set; None for ``INVBENCH_DATA`` and the cache.

    Raises:
        UnknownName: for an unknown data set.
        BadParameter: for an unknown parameter, or a value of the wrong type or range.
        BadData: if files are damaged or cannot be fetched.
    """
    found = dataset_entry(name)
    opened = found.opener(_filled(found, parameters or {}), root)
    _OPENED[opened.digest] = found
    return opened


_OPENED: dict[str, DatasetEntry] = {}
"""Entries of the data sets that were opened, by their digests."""


def opened_entry(dataset: Dataset) -> DatasetEntry | None:
    """Return the entry that a data set was opened by; None for another one, even of the same name."""
    return _OPENED.get(dataset.digest)


def _filled(found: DatasetEntry, given: Mapping[str, object]) -> Parameters:
    for key in given:
        if key not in found.parameters:
            known = ", ".join(found.parameters) or "none"
            raise BadParameter(
                f"unknown parameter of {found.name}", got=key, expected=f"one of: {known}"
            )
    return {
        key: _typed(found, key, given.get(key, value)) for key, value in found.parameters.items()
    }


def _typed(found: DatasetEntry, key: str, value: object) -> Scalar:
    kind = type(found.parameters[key])
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
    elif type(value) is kind:
        return value
    raise BadParameter(
        f"invalid {key} of {found.name}",
        got=value,
        expected=_EXPECTED[kind],
    )


_EXPECTED = {
    int: "a whole number",
    float: "a finite number",
    str: "a word",
    bool: "true or false",
}


def _open_mnist5k(_parameters: Parameters, _root: Path | None) -> Dataset:
    from robustbench_inv.data.mnist import open_mnist5k

    return open_mnist5k()


def _open_mnist(parameters: Parameters, root: Path | None) -> Dataset:
    from robustbench_inv.data.mnist import open_images

    return open_images("mnist", str(parameters["split"]), root, pad=int(parameters["pad"]))


def _open_fashion_mnist(parameters: Parameters, root: Path | None) -> Dataset:
    from robustbench_inv.data.mnist import open_images

    return open_images("fashion-mnist", str(parameters["split"]), root)


def _open_cifar10(parameters: Parameters, root: Path | None) -> Dataset:
    from robustbench_inv.data.cifar import open_cifar10

    return open_cifar10(str(parameters["split"]), root)


def _open_cifar100(parameters: Parameters, root: Path | None) -> Dataset:
    from robustbench_inv.data.cifar import open_cifar100

    return open_cifar100(str(parameters["split"]), root)


def _open_spheres(parameters: Parameters, _root: Path | None) -> Dataset:
    from robustbench_inv.data.spheres import Spheres

    return Spheres(**parameters)  # type: ignore[arg-type]


def _open_isotopes(parameters: Parameters, _root: Path | None) -> Dataset:
    from robustbench_inv.data.isotopes import IsotopePatterns

    return IsotopePatterns(**parameters)  # type: ignore[arg-type]


def _open_invariance_mnist(parameters: Parameters, root: Path | None) -> Dataset:
    from robustbench_inv.data.mnist import open_invariance_mnist

    return open_invariance_mnist(str(parameters["set"]), root)


def _open_planted(parameters: Parameters, root: Path | None) -> Dataset:
    from robustbench_inv.data.planted import PlantedFeatures

    rest = dict(parameters)
    base, split = str(rest.pop("base")), rest.pop("split")
    if base not in ("mnist5k", "mnist"):
        raise BadParameter("unknown base of mnist-planted", got=base, expected="mnist5k or mnist")
    own = {"split": split} if base == "mnist" or split != "test" else {}
    return PlantedFeatures(open_dataset(base, own, root), **rest)  # type: ignore[arg-type]


FASHION_CLASSES = (
    *("T-shirt or top", "Trousers", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
"""The classes of Fashion-MNIST (Xiao, Rasul and Vollgraf, arXiv 1708.07747, table 2)."""

CIFAR10_CLASSES = (
    *("Aeroplane", "Car", "Bird", "Cat", "Deer"),
    *("Dog", "Frog", "Horse", "Ship", "Lorry"),
)
"""The classes of CIFAR-10 (Krizhevsky, Learning multiple layers of features from tiny images, 2009)."""

_CIFAR100_NAMES = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train "
    "trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
CIFAR100_CLASSES = tuple(_CIFAR100_NAMES.split())
"""The classes of CIFAR-100, as its file ``meta`` lists them."""

DATASETS: Mapping[str, DatasetEntry] = {
    known.name: known
    for known in (
        DatasetEntry(
            "mnist5k",
            "5,000 digits of MNIST's training set, 500 per class; only mnist-lenet5-200 was trained on them",
            10,
            (1, 28, 28),
            _open_mnist5k,
            oracle="mnist-panel",
            ood="fashion-mnist",
        ),
        DatasetEntry(
            "mnist",
            "handwritten digits: 10,000 test or 60,000 training images",
            10,
            (1, 28, 28),
            _open_mnist,
            {"split": "test", "pad": 0},
            oracle="mnist-panel",
            ood="fashion-mnist",
        ),
        DatasetEntry(
            "fashion-mnist",
            "articles of clothing: 10,000 test or 60,000 training images",
            10,
            (1, 28, 28),
            _open_fashion_mnist,
            {"split": "test"},
            oracle="fashion-mnist-panel",
            ood="mnist",
            classes=FASHION_CLASSES,
        ),
        DatasetEntry(
            "cifar10",
            "colour images of animals and vehicles: 10,000 test or 50,000 training images",
            10,
            (3, 32, 32),
            _open_cifar10,
            {"split": "test"},
            has_files=False,
            classes=CIFAR10_CLASSES,
        ),
        DatasetEntry(
            "cifar100",
            "colour images of 100 classes: 10,000 test or 50,000 training images",
            100,
            (3, 32, 32),
            _open_cifar100,
            {"split": "test"},
            has_files=False,
            classes=CIFAR100_CLASSES,
        ),
        DatasetEntry(
            "invariance-mnist",
            "MNIST test digits, altered until people assign another class (Tramèr et al.)",
            10,
            (1, 28, 28),
            _open_invariance_mnist,
            {"set": "linf-0.3"},
        ),
        DatasetEntry(
            "mnist-planted",
            "digits with a planted pixel or texture of their class, or of a random class",
            10,
            (1, 28, 28),
            _open_planted,
            {
                "base": "mnist5k",
                "feature": "pixel",
                "strength": 0.0,
                "split": "test",
                "shifted": False,
                "seed": 0,
            },
            has_files=False,
            oracle="mnist-panel",
        ),
        DatasetEntry(
            "spheres",
            "two concentric spheres in d dimensions: generated, with an exact oracle",
            2,
            (500,),
            _open_spheres,
            {"d": 500, "n": 10, "r1": 1.0, "r2": 1.3, "seed": 0, "size": 1000, "inner": 0.5},
            has_files=False,
        ),
        DatasetEntry(
            "isotopes",
            "synthetic mass spectra of two classes, made of isotope patterns: generated",
            2,
            (2048,),
            _open_isotopes,
            {
                "bins": 2048,
                "peptides": 40,
                "informative": 0.2,
                "noise": 0.02,
                "shift": 1.0,
                "seed": 0,
                "size": 1000,
                "split": "test",
            },
            has_files=False,
            classes=("synthetic tissue A", "synthetic tissue B"),
        ),
    )
}
"""Entries by name, in the order of listings."""
