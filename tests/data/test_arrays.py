"""Data sets of arrays: conversion, digest, and errors for invalid arrays."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_inv.data.arrays import ArrayDataset, checked_ids, digest_samples
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import BadData, BadParameter


def floats(count=4, **kwargs):
    return torch.linspace(0, 1, count * 6, **kwargs).reshape(count, 2, 3)


def test_bytes_become_exact_255ths():
    data = ArrayDataset(torch.arange(256, dtype=torch.uint8).reshape(256, 1), [0] * 256, "bytes")
    expected = (torch.arange(256, dtype=torch.float64) / 255).float()
    assert torch.equal(data.batch(range(256))[0][:, 0], expected)


@settings(deadline=None)
@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_bytes_stay_inside_any_bounds(low, width):
    bounds = tuple(float(np.float32(value)) for value in (low, low + width))
    data = ArrayDataset(torch.arange(256, dtype=torch.uint8)[:, None], [0] * 256, "bytes", bounds)
    images = data.batch(range(256))[0].double()
    assert images.min().item() == bounds[0]
    assert images.max().item() == pytest.approx(bounds[1], rel=1e-6, abs=1e-6 * width)
    assert images.max().item() <= bounds[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floats_are_kept(dtype):
    data = ArrayDataset(floats(dtype=dtype), np.array([0, 1, 2, 1]), "floats")
    images, labels = data.batch([2, 0, 2])
    assert torch.equal(images, floats(dtype=dtype)[[2, 0, 2]])
    assert images.dtype == dtype
    assert labels.tolist() == [2, 0, 2]
    assert isinstance(data, Dataset)
    assert (data.num_classes, data.shape, len(data)) == (3, (2, 3), 4)


def test_changing_a_batch_does_not_change_the_data():
    data = ArrayDataset(floats(), [0, 1, 0, 1], "floats")
    data.batch(range(4))[0].zero_()
    data.batch(torch.arange(4))[0].zero_()
    assert torch.equal(data.batch(range(4))[0], floats())


def test_read_only_arrays_are_accepted():
    images = floats().numpy()
    images.flags.writeable = False
    assert len(ArrayDataset(images, (0, 1, 0, 1), "read-only")) == 4


def test_digest_depends_on_every_property():
    images, labels = floats(), [0, 1, 0, 1]
    altered = images.clone()
    altered[3, 1, 1] += 2**-20
    variants = [
        ArrayDataset(images, labels, "x"),
        ArrayDataset(altered, labels, "x"),
        ArrayDataset(images, [0, 1, 1, 1], "x"),
        ArrayDataset(images.double(), labels, "x"),
        ArrayDataset(images.reshape(4, 3, 2), labels, "x"),
        ArrayDataset(images, labels, "x", (-1, 1)),
    ]
    assert len({data.digest for data in variants}) == len(variants)
    same = ArrayDataset(images.numpy(), torch.tensor(labels, dtype=torch.int32), "another name")
    assert same.digest == variants[0].digest


def test_data_do_not_change_with_the_array_that_they_were_made_of():
    for images in (np.zeros((2, 1, 2), np.float32), torch.zeros(2, 1, 2)):
        data = ArrayDataset(images, [0, 1], "two")
        images += 0.5
        assert data.batch([0])[0].max() == 0


def test_digest_follows_labels_that_are_changed_later():
    data = ArrayDataset(torch.zeros(2, 1, 2), [0, 1], "two")
    before = data.digest
    data.labels[0] = 1
    assert data.digest == ArrayDataset(torch.zeros(2, 1, 2), [1, 1], "two").digest != before


def test_digest_is_frozen():
    images = torch.arange(6, dtype=torch.float32).reshape(3, 2)
    expected = "e53f3457cc3c40e71915327fc6ae189afd2ebee8a2287b00b2ad4a3e39d165b5"
    assert digest_samples([images], torch.tensor([0, 1, 0]), (0.0, 5.0)) == expected


def test_digest_does_not_depend_on_blocks_or_strides():
    images, labels = floats(), torch.tensor([0, 1, 0, 1])
    whole = digest_samples([images], labels, (0.0, 1.0))
    assert digest_samples([images[:1], images[1:]], labels, (0.0, 1.0)) == whole
    strided = images.transpose(1, 2).contiguous().transpose(1, 2)
    assert digest_samples([strided], labels, (0.0, 1.0)) == whole


def with_value(value):
    images = floats()
    images[2, 0, 0] = value
    return images


@pytest.mark.parametrize(
    ("images", "labels", "extra", "message"),
    [
        (with_value(1.5), [0] * 4, {}, r"outside the declared bounds, got '\[0, 1.5\]'"),
        (with_value(-0.1), [0] * 4, {}, "outside the declared bounds"),
        (floats() * 255, [0] * 4, {}, "rescale the images or declare other bounds"),
        (with_value(float("nan")), [0] * 4, {}, "image 2 has an element that is not finite"),
        (with_value(float("inf")), [0] * 4, {}, "image 2 has an element that is not finite"),
        (floats().long(), [0] * 4, {}, "images of the wrong type, got 'torch.int64'"),
        (floats().half(), [0] * 4, {}, "images of the wrong type"),
        (torch.zeros(4), [0] * 4, {}, "images of the wrong shape"),
        (torch.zeros(0, 2), [], {}, "images of the wrong shape"),
        (np.array(["a", "b"]), [0, 0], {}, "images cannot be read"),
        (floats(), [0] * 3, {}, r"labels of the wrong shape, got \(3,\), expected \(4,\)"),
        (floats(), [[0] * 4], {}, "labels of the wrong shape"),
        (floats(), [0.5] * 4, {}, "labels of the wrong type"),
        (floats(), [True] * 4, {}, "labels of the wrong type"),
        (floats(), [0, 1, -1, 0], {}, "label out of range, got -1"),
        (floats(), [0, 1, 5, 0], {"num_classes": 5}, "label out of range, got 5, expected 0 to 4"),
        (floats(), [0] * 4, {"bounds": (1, 0)}, "invalid bounds"),
        (floats(), [0] * 4, {"bounds": (0, float("inf"))}, "invalid bounds"),
        (floats(), [0] * 4, {"bounds": 1}, "invalid bounds"),
    ],
)
def test_invalid_arrays_raise(images, labels, extra, message):
    with pytest.raises(BadData, match=message) as caught:
        ArrayDataset(images, labels, "mine", **extra)
    assert str(caught.value).startswith("mine: ")


@pytest.mark.parametrize(
    "ids",
    [range(1, 4), [1, 2, 3], (1, 2, 3), torch.tensor([1, 2, 3]), torch.tensor([1, 2, 3]).int()],
)
def test_ids_in_any_form(ids):
    assert torch.equal(checked_ids(ids, 4), torch.tensor([1, 2, 3]))


@pytest.mark.parametrize("ids", [[], range(0), torch.empty(0), ()])
def test_no_ids(ids):
    assert checked_ids(ids, 4).shape == (0,)
    assert checked_ids(ids, 4).dtype == torch.int64


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([4], "got 4, expected 0 to 3"),
        ([0, -1], "got -1, expected 0 to 3"),
        ([0.5], "integers"),
        ([[0, 1]], "integers"),
        (torch.tensor([True, False, True, True]), "integers"),
        (["a"], "integers"),
        ([2**70], "integers"),
        (2, "integers"),
    ],
)
def test_invalid_ids_raise(ids, message):
    with pytest.raises(BadParameter, match=message):
        checked_ids(ids, 4)
