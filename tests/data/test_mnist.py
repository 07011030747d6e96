"""The digits in the package, MNIST and Fashion-MNIST if their files are present, and the human-labelled invariance examples."""

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from robustbench_inv.data import fetch as sources
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.data.fetch import (
    MIRROR,
    fetch_file,
    find_source,
    locate,
    search_folders,
    verify_dataset,
)
from robustbench_inv.data.formats import parse_array
from robustbench_inv.data.mnist import SETS, HumanLabelled, open_images
from robustbench_inv.data.protocol import Dataset, HasCounterparts, LabelOracle
from robustbench_inv.data.registry import open_dataset
from robustbench_inv.errors import BadData, BadParameter


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


def test_digits_have_the_documented_shape(digits):
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
    """Images are decoded together: loading 5,000 digits takes two reads."""
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


def test_search_order_of_folders(monkeypatch):
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


def test_padded_digits_have_a_black_border(real_mnist):
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


PUBLISHED = {
    "l0": (100, 55, 1.0),
    "linf-0.3": (100, 21, 0.3),
    "linf-0.4": (100, 37, 103 / 255),
    "linf-0.4-manual": (50, 44, 102 / 255),
}
"""Size, number of changed human labels and largest change of a pixel of each set; 0.4 of 255 is rounded up to 103."""


@pytest.fixture(scope="module")
def root():
    found = Path(os.environ.get("INVBENCH_DATA", "nowhere"))
    if not (found / "invariance-mnist").is_dir() or not (found / "mnist").is_dir():
        pytest.skip("INVBENCH_DATA has no folders invariance-mnist and mnist")
    return found


@pytest.mark.parametrize("name", SETS)
def test_human_labels_change_as_often_as_published(root, name):
    data = open_dataset("invariance-mnist", {"set": name}, root)
    size, changed, furthest = PUBLISHED[name]
    everyone = torch.arange(size)
    images, labels = data.batch(everyone)
    altered = data.counterparts(everyone)
    assert len(data) == size
    assert int((data.human != labels).sum()) == changed
    assert float((altered - images).abs().max()) == pytest.approx(furthest, abs=1e-6)
    assert torch.equal(data.classify(altered), data.human)
    assert torch.equal(data.classify(altered.double()), data.human)
    assert torch.equal(data.classify(images), labels)


@pytest.mark.parametrize("name", SETS)
def test_originals_are_the_test_images_with_the_listed_ids(root, name):
    data = open_dataset("invariance-mnist", {"set": name}, root)
    indices = np.load(root / "invariance-mnist" / f"{SETS[name][0]}.npy")
    images, labels = open_dataset("mnist", {}, root).batch(torch.from_numpy(indices))
    ours = data.batch(torch.arange(len(data)))
    assert torch.equal(ours[0], images)
    assert torch.equal(ours[1], labels)


def test_few_pixels_are_changed_in_l0(root):
    data = open_dataset("invariance-mnist", {"set": "l0"}, root)
    moved = data.counterparts(range(100)) != data.batch(range(100))[0]
    assert moved.flatten(1).sum(1).median() == 28


def test_sets_have_different_names_and_digests(root):
    opened = [open_dataset("invariance-mnist", {"set": name}, root) for name in SETS]
    assert len({data.digest for data in opened}) == len(SETS)
    assert [data.name for data in opened] == [f"invariance-mnist:set={name}" for name in SETS]


@pytest.fixture
def three():
    """Three images of two pixels, and an altered version of each with human labels 1, 1, 0."""
    originals = ArrayDataset(torch.tensor([[0.0, 1], [0.5, 1], [1, 1]]), [0, 0, 1], "three")
    altered = originals.batch([0, 1, 2])[0] * torch.tensor([1.0, 0.5])
    return HumanLabelled(originals, altered, torch.tensor([1, 1, 0]), "three")


def test_the_oracle_labels_both_versions_and_nothing_else(three):
    assert isinstance(three, Dataset)
    assert isinstance(three, HasCounterparts)
    assert isinstance(three, LabelOracle)
    assert three.oracle_source == "human"
    requests = torch.tensor([[0.0, 0.5], [0.5, 1.0], [0.5, 0.5], [0.5, 0.501], [0.2, 0.2]])
    assert three.classify(requests).tolist() == [1, 0, 1, -1, -1]


def test_the_digest_covers_altered_images_and_human_labels(three):
    originals = ArrayDataset(torch.tensor([[0.0, 1], [0.5, 1], [1, 1]]), [0, 0, 1], "three")
    altered = three.counterparts([0, 1, 2])
    same = HumanLabelled(originals, altered, three.human, "three")
    other_image = HumanLabelled(originals, altered * 0.9, three.human, "three")
    other_label = HumanLabelled(originals, altered, 1 - three.human, "three")
    assert same.digest == three.digest
    assert len({three.digest, other_image.digest, other_label.digest}) == 3


def test_altered_versions_of_another_shape_raise():
    originals = ArrayDataset(torch.zeros(3, 2), [0, 0, 1], "three")
    with pytest.raises(BadData, match="another shape than the originals"):
        HumanLabelled(originals, torch.zeros(2, 2), torch.tensor([0, 1]), "three")


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def test_objects_are_not_unpickled():
    pickled = npy(np.array([{}], dtype=object), allow_pickle=True)
    for data in (pickled, b"", b"<html>", npy(np.arange(9))[:-8]):
        with pytest.raises(BadData, match=r"x\.npy is no \.npy file of numbers"):
            parse_array(data, "x.npy")


@pytest.fixture
def offered(monkeypatch, tmp_path, mirror):
    """A data set of one array, kept in a folder of the mirror; an empty cache."""
    content = npy(np.arange(5))
    entry = {
        "folders": ["things"],
        "mirrors": [f"{mirror.url}/deep"],
        "sha256": {"a_b.npy": hashlib.sha256(content).hexdigest()},
        "remote": {"a_b.npy": "a/b.npy"},
    }
    monkeypatch.setattr(sources, "_sources", lambda: {"things": entry})
    monkeypatch.setattr(sources, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.delenv(MIRROR, raising=False)
    return content


def test_an_array_is_fetched_unchanged_from_its_remote_path(offered, mirror, tmp_path, monkeypatch):
    origin = sources.find_source("things")
    mirror.serve("/deep/a/b.npy", offered)
    path = fetch_file(origin, "a_b.npy", tmp_path / "kept")
    assert path == tmp_path / "kept" / "a_b.npy"
    assert path.read_bytes() == offered
    monkeypatch.setenv(MIRROR, mirror.url)
    mirror.serve("/things/a_b.npy", offered)
    assert fetch_file(origin, "a_b.npy", tmp_path / "again").read_bytes() == offered
    assert mirror.requests == ["/deep/a/b.npy", "/things/a_b.npy"]


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize(
    ("body", "says"),
    [(b"<html>", "no .npy file"), (npy(np.arange(6)), "wrong checksum")],
)
def test_an_invalid_array_raises_and_leaves_no_file(mirror, tmp_path, body, says):
    mirror.serve("/deep/a/b.npy", body)
    with pytest.raises(BadData, match=says):
        fetch_file(sources.find_source("things"), "a_b.npy", tmp_path / "kept")
    assert not any((tmp_path / "kept").iterdir())


def test_present_files_are_verified(root):
    checks = verify_dataset("invariance-mnist", root)
    assert len(checks) == 10
    assert all(check.ok for check in checks)


def test_what_one_reader_changes_reaches_no_other():
    first, other = open_dataset("mnist5k"), open_dataset("mnist5k")
    images, _ = first.batch([7])
    first._images.zero_()
    first.labels.zero_()
    again = open_dataset("mnist5k")
    for data in (other, again):
        assert torch.equal(data.batch([7])[0], images)
        assert data.labels.max() == 9
