"""The digits in the package, and MNIST and Fashion-MNIST where their files are at hand."""

import os
from pathlib import Path

import pytest
import torch

from robustbench_inv.data.fetch import find_source, locate, search_folders
from robustbench_inv.data.mnist import open_images
from robustbench_inv.data.protocol import Dataset, LabelOracle
from robustbench_inv.data.registry import open_dataset
from robustbench_inv.errors import BadParameter


@pytest.fixture(scope="module")
def digits():
    return open_dataset("mnist5k")


@pytest.fixture(scope="module")
def real_mnist():
    if not os.environ.get("INVBENCH_DATA"):
        pytest.skip("INVBENCH_DATA is not set: no original MNIST files to compare with")
    root = Path(os.environ["INVBENCH_DATA"])
    if not (root / "mnist").is_dir():
        pytest.skip(f"no folder mnist in {root}")
    return root


def test_digits_are_as_announced(digits):
    assert isinstance(digits, Dataset)
    assert not isinstance(digits, LabelOracle)
    assert (len(digits), digits.shape, digits.bounds) == (5000, (1, 28, 28), (0.0, 1.0))
    assert digits.labels.tolist() == [label for label in range(10) for _ in range(500)]
    images, labels = digits.batch(torch.arange(0, 5000, 10))
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert (images.min(), images.max()) == (0, 1)
    assert 0.12 < images.mean() < 0.14


def test_digest_is_frozen(digits):
    expected = "1d86c343cb175bb4e098ab87b99804ea90f601a05f42d16a767595f19d8a086c"
    assert digits.digest == expected


def test_digits_are_read_from_two_files_each_once(monkeypatch):
    """No image is decoded by itself: loading 5,000 digits costs two reads."""
    read = []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or original(path))
    open_dataset("mnist5k")
    assert len(read) == len(set(read)) <= 2


def test_digits_are_the_first_500_of_each_class_of_mnist_training(digits, real_mnist):
    train = open_images("mnist", "train", real_mnist)
    ids = torch.cat([(train.labels == label).nonzero()[:500, 0] for label in range(10)])
    assert ids.max() == 5847
    for block in torch.arange(5000).split(1000):
        ours, theirs = digits.batch(block), train.batch(ids[block])
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


def test_real_mnist(real_mnist):
    data = open_dataset("mnist", root=real_mnist)
    assert (len(data), data.name, data.num_classes) == (10_000, "mnist", 10)
    assert data.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    train = open_dataset("mnist", {"split": "train"}, real_mnist)
    assert (len(train), train.name) == (60_000, "mnist:split=train")
    assert train.digest != data.digest


def test_fashion_mnist_from_the_systems_folder():
    origin = find_source("fashion-mnist")
    if not any(locate(origin, file, None) for file in origin.sha256):
        pytest.skip("Fashion-MNIST is not on this machine")
    data = open_dataset("fashion-mnist")
    assert len(data) == 10_000
    assert data.labels.bincount().tolist() == [1000] * 10


def test_order_of_places(monkeypatch):
    monkeypatch.setenv("INVBENCH_DATA", "named")
    found = [str(place) for place in search_folders(find_source("fashion-mnist"), Path("given"))]
    assert found[:5] == [
        "given/fashion-mnist",
        "given/FashionMNIST/raw",
        "named/fashion-mnist",
        "named/FashionMNIST/raw",
        "/usr/share/datasets/fashion-mnist",
    ]
    assert "robustbench-inv" in found[5]


def test_unknown_split():
    with pytest.raises(BadParameter, match=r"got 'valid', expected one of test, train"):
        open_images("mnist", "valid")


def test_padded_digits_are_the_same_in_a_black_frame(real_mnist):
    plain, framed = (
        open_images("mnist", root=real_mnist),
        open_images("mnist", root=real_mnist, pad=2),
    )
    assert (framed.name, framed.shape) == ("mnist:pad=2", (1, 32, 32))
    ids = torch.arange(5)
    assert torch.equal(framed.batch(ids)[0][:, :, 2:-2, 2:-2], plain.batch(ids)[0])
    assert framed.batch(ids)[0].sum() == plain.batch(ids)[0].sum()
    assert framed.digest != plain.digest


def test_a_pad_out_of_range_raises():
    with pytest.raises(BadParameter, match="out of range"):
        open_images("mnist", pad=-1)
