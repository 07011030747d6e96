"""Data sets of torchvision and HuggingFace: with stub modules, and with the libraries where they can be imported."""

import sys
import types

import numpy as np
import pytest
from PIL import Image

from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.data.own_data import arrays_to_dataset
from robustbench_inv.errors import BadData, BadParameter, MissingExtra, UnknownName

X = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
Y = np.arange(12) % 3
MADE = []
"""The arguments of each class that was made."""

SAME = arrays_to_dataset(X, Y).digest


class Made:
    """Twelve images as torchvision's classes return them."""

    classes = ("ant", "bee", "cow")

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return Image.fromarray(X[i]), int(Y[i])


class CIFAR10(Made):
    def __init__(self, root, train=True, transform=None, download=False):
        if "nowhere" in str(root):
            raise RuntimeError("Dataset not found or corrupted. You can use download=True")
        MADE.append((str(root), train, transform, download))


class SVHN(Made):
    def __init__(self, root, split="train"):
        MADE.append((str(root), split))


class Rows:
    """The part of ``datasets.Dataset`` that is used."""

    column_names = ("img", "label")

    def __init__(self):
        self.features = {"label": types.SimpleNamespace(names=["ant", "bee", "cow"])}

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        return {"img": Image.fromarray(X[i]), "label": int(Y[i])}


@pytest.fixture
def torchvision(monkeypatch):
    package, module = types.ModuleType("torchvision"), types.ModuleType("torchvision.datasets")
    module.CIFAR10, module.SVHN, module.os = CIFAR10, SVHN, sys
    module.__all__ = ("CIFAR10", "SVHN")
    package.datasets = module
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)
    monkeypatch.delenv("INVBENCH_DATA", raising=False)


@pytest.fixture
def hf(monkeypatch):
    """A stub of datasets, and the calls that it received."""
    module, calls = types.ModuleType("datasets"), []
    module.load_from_disk = lambda path: calls.append(path) or {"test": Rows(), "train": Rows()}

    def load(name, split):
        import os

        calls.append((name, split, os.environ.get("HF_DATASETS_OFFLINE")))
        if name == "org/absent":
            raise ConnectionError("couldn't reach the hub")
        return Rows()

    module.load_dataset = load
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


@pytest.mark.usefixtures("torchvision")
def test_a_class_of_torchvision(tmp_path):
    data = load_dataset(f"torchvision:CIFAR10,root={tmp_path}")
    assert (data.digest, data.num_classes, data.classes) == (SAME, 3, ("ant", "bee", "cow"))
    assert MADE[-1] == (str(tmp_path), False, None, False)
    load_dataset("torchvision:CIFAR10,split=train", data_root=tmp_path)
    assert MADE[-1] == (str(tmp_path), True, None, False)
    load_dataset("torchvision:SVHN,split=extra")
    assert MADE[-1] == (".", "extra")
    assert load_dataset("torchvision:SVHN,size=4").shape == (3, 4, 4)


@pytest.mark.usefixtures("torchvision")
@pytest.mark.parametrize(
    ("text", "error", "problem"),
    [
        ("torchvision:CIFAR1", UnknownName, "CIFAR10"),
        ("torchvision:os", UnknownName, "no such data set"),
        ("torchvision:CIFAR10,split=val", BadParameter, "train or test"),
        ("torchvision:CIFAR10,root=nowhere", BadData, "give root=FOLDER"),
        ("torchvision:CIFAR10,colour=1", BadParameter, "unknown parameter"),
    ],
)
def test_faults_of_torchvision_are_one_line(text, error, problem):
    with pytest.raises(error, match=problem):
        load_dataset(text)


def test_a_data_set_of_huggingface_from_the_cache_and_from_a_folder(hf, tmp_path):
    data = load_dataset("hf:org/name,split=train")
    assert (data.digest, data.classes) == (SAME, ("ant", "bee", "cow"))
    assert hf == [("org/name", "train", "1")]
    assert load_dataset(f"hf:{tmp_path}").digest == SAME
    assert hf[-1] == str(tmp_path)
    with pytest.raises(BadData, match="one of test, train"):
        load_dataset(f"hf:{tmp_path},split=val")
    with pytest.raises(BadData, match="load it once"):
        load_dataset("hf:org/absent")
    with pytest.raises(BadData, match="image=NAME"):
        load_dataset("hf:org/name,image=photo")


@pytest.mark.parametrize(
    ("name", "extra"), [("torchvision:CIFAR10", "torchvision"), ("hf:a/b", "hf")]
)
def test_a_missing_library_is_an_extra(monkeypatch, name, extra):
    module = {"torchvision": "torchvision.datasets", "hf": "datasets"}[extra]
    monkeypatch.setitem(sys.modules, module.partition(".")[0], None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"robustbench-inv\[{extra}\]"):
        load_dataset(name)


def test_the_real_library_of_huggingface(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cow"])}
    )
    images = [Image.fromarray(image) for image in X]
    made = datasets.Dataset.from_dict({"image": images, "label": Y.tolist()}, features=features)
    datasets.DatasetDict({"test": made}).save_to_disk(tmp_path / "saved")
    data = load_dataset(f"hf:{tmp_path / 'saved'}")
    assert (data.digest, data.classes) == (SAME, ("ant", "bee", "cow"))


def test_the_real_torchvision(tmp_path):
    try:
        import torchvision.datasets
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision cannot be imported beside this torch: {error}")
    assert "CIFAR10" in torchvision.datasets.__all__
    with pytest.raises(BadData, match="give root=FOLDER"):
        load_dataset(f"torchvision:CIFAR10,root={tmp_path}")
