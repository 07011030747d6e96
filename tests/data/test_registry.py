"""Opening data sets by name: names, parameters, and an import without torch."""

import subprocess
import sys

import pytest

from robustbench_inv.data.protocol import Dataset
from robustbench_inv.data.registry import DATASETS, dataset_entry, open_dataset
from robustbench_inv.errors import BadParameter, UnknownName


def test_listing_and_verifying_import_no_torch():
    code = (
        "import sys, robustbench_inv.data.registry\n"
        "assert 'numpy' not in sys.modules\n"
        "from robustbench_inv.data.fetch import verify_dataset\n"
        "assert all(check.ok for check in verify_dataset('mnist5k'))\n"
        "print([name for name in ('torch', 'scipy', 'pandas', 'pooch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["mnist5k", "mnist-planted", "spheres"])
def test_entries_agree_with_the_data_sets(name):
    data = open_dataset(name)
    assert isinstance(data, Dataset)
    assert (data.num_classes, data.shape) == (
        dataset_entry(name).num_classes,
        dataset_entry(name).shape,
    )


def test_entries_are_listed_under_their_names():
    assert list(DATASETS) == [
        "mnist5k",
        "mnist",
        "fashion-mnist",
        "cifar10",
        "cifar100",
        "invariance-mnist",
        "mnist-planted",
        "spheres",
        "isotopes",
    ]
    assert all(found.name == name for name, found in DATASETS.items())
    assert all("\n" not in found.summary for found in DATASETS.values())


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("mnist5", "mnist5k"),
        ("fashion", "fashion-mnist"),
        ("sphere", "spheres"),
        ("qqq", "known: cifar10"),
    ],
)
def test_unknown_names_raise_with_similar_names(name, remedy):
    with pytest.raises(UnknownName, match=remedy):
        open_dataset(name)


def test_parameters_reach_the_data_set():
    data = open_dataset("spheres", {"d": 20, "r1": 2, "r2": 2.5, "size": 6})
    assert (data.shape, data.bounds, len(data)) == ((20,), (-2.5, 2.5), 6)
    assert data.name == "spheres:d=20,n=10,r1=2,r2=2.5,size=6"


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        (
            "mnist5k",
            {"split": "test"},
            "unknown parameter of mnist5k, got 'split', expected one of: none",
        ),
        ("spheres", {"dim": 3}, "got 'dim', expected one of: d, n, r1"),
        ("spheres", {"d": 2.5}, "invalid d of spheres, got 2.5, expected a whole number"),
        ("spheres", {"d": "many"}, "got 'many', expected a whole number"),
        ("spheres", {"size": True}, "got True, expected a whole number"),
        ("spheres", {"r1": "wide"}, "got 'wide', expected a finite number"),
        ("spheres", {"r1": float("nan")}, "got nan, expected a finite number"),
        ("spheres", {"r1": True}, "expected a finite number"),
        ("mnist", {"split": 3}, "expected a word"),
        ("mnist", {"split": "valid"}, "one of test, train"),
        ("mnist-planted", {"shifted": 1}, "expected true or false"),
        ("mnist-planted", {"base": "spheres"}, "expected mnist5k or mnist"),
        ("mnist-planted", {"split": "train"}, "unknown parameter of mnist5k, got 'split'"),
        ("invariance-mnist", {"set": "l1"}, "expected one of l0, linf-0.3"),
    ],
)
def test_invalid_parameters_raise(name, parameters, message):
    with pytest.raises(BadParameter, match=message):
        open_dataset(name, parameters)
