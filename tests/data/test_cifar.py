"""CIFAR-10: its format, records in any order, and files with other content."""

import hashlib

import numpy as np
import pytest
import torch

from robustbench_inv.data import cifar
from robustbench_inv.data.cifar import SPLITS, open_cifar10, open_cifar100, records_digest
from robustbench_inv.data.registry import dataset_entry, open_dataset
from robustbench_inv.errors import BadData, BadParameter

RECORDS = np.random.default_rng(0).integers(0, 256, (10, 3073), np.uint8)
RECORDS[:, 0] = np.arange(10)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data root with ten made-up images in each split."""
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    RECORDS.tofile(folder / "test_batch.bin")
    for i, part in enumerate(np.split(RECORDS, 5), 1):
        part.tofile(folder / f"data_batch_{i}.bin")
    known = {split: (files, records_digest(RECORDS)) for split, (files, _) in SPLITS.items()}
    monkeypatch.setattr(cifar, "SPLITS", known)
    return tmp_path


@pytest.mark.parametrize("split", ["test", "train"])
def test_a_record_is_a_label_and_three_planes(root, split):
    data = open_dataset("cifar10", {"split": split}, root)
    assert (data.num_classes, data.shape) == (
        dataset_entry("cifar10").num_classes,
        dataset_entry("cifar10").shape,
    )
    assert data.name == ("cifar10" if split == "test" else "cifar10:split=train")
    images, labels = data.batch([3])
    assert labels.tolist() == [3]
    green_second_row_first = RECORDS[3, 1 + 1024 + 32]
    assert images[0, 1, 1, 0] == green_second_row_first / np.float32(255)
    assert images.dtype == torch.float32


def test_the_digest_is_that_of_the_records_in_any_order():
    whole = sum(int.from_bytes(hashlib.sha256(r.tobytes()).digest()) for r in RECORDS) % 2**256
    assert records_digest(RECORDS) == f"{whole:064x}" == records_digest(RECORDS[::-1])
    changed = RECORDS.copy()
    changed[0, 5] ^= 1
    assert records_digest(changed) != records_digest(RECORDS) != records_digest(RECORDS[1:])


def test_shuffled_images_are_the_same_data_set_with_other_ids(root):
    before = open_cifar10("test", root)
    RECORDS[::-1].tofile(root / "cifar-10-batches-bin" / "test_batch.bin")
    after = open_cifar10("test", root)
    assert after.labels.tolist() == before.labels.tolist()[::-1]
    assert after.digest != before.digest


@pytest.mark.parametrize("spoil", ["bit", "end", "absent"])
def test_wrong_content_raises_a_one_line_error(root, spoil, monkeypatch):
    monkeypatch.setenv("INVBENCH_DATA", str(root / "nowhere"))
    path = root / "cifar-10-batches-bin" / "test_batch.bin"
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes({"bit": bytes(content), "end": bytes(content[:-1]), "absent": b""}[spoil])
    if spoil == "absent":
        path.unlink()
    message = {"bit": "does not contain", "end": "damaged", "absent": "cannot find"}[spoil]
    with pytest.raises(BadData, match=message) as caught:
        open_cifar10("test", root)
    assert "\n" not in str(caught.value)


def test_an_unknown_split_raises():
    with pytest.raises(BadParameter, match="unknown split"):
        open_cifar10("validation")


@pytest.mark.parametrize(("split", "count"), [("test", 1_000), ("train", 5_000)])
def test_classes_have_equal_numbers_of_images(split, count):
    try:
        data = open_cifar10(split)
    except BadData as error:
        pytest.skip(f"the files of cifar10 are not on this machine: {error.problem}")
    assert torch.bincount(data.labels).tolist() == [count] * 10


def binary_100(root, count, shift=0):
    """Write a test file of CIFAR-100 with so many images of each class; return the labels."""
    classes = np.tile(np.arange(100, dtype=np.uint8), count)
    records = np.zeros((len(classes), 3074), np.uint8)
    records[:, 0], records[:, 1], records[:, 2] = (classes + shift) // 5 % 20, classes, classes
    (root / "cifar-100-binary").mkdir()
    records.tofile(root / "cifar-100-binary" / "test.bin")
    return classes


def test_the_binary_files_of_cifar100_have_the_fine_label_second(tmp_path):
    classes = binary_100(tmp_path, 100)
    data = open_cifar100("test", tmp_path)
    assert data.labels.tolist() == classes.tolist()
    assert data.num_classes == 100
    images, _ = data.batch([7])
    assert images.shape == (1, 3, 32, 32)
    assert float(images[0, 0, 0, 0]) == pytest.approx(7 / 255)


def test_a_binary_file_of_cifar100_without_all_images_is_refused(tmp_path):
    binary_100(tmp_path, 99)
    with pytest.raises(BadData, match="100 images of each of 100 classes"):
        open_cifar100("test", tmp_path)
