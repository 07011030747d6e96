"""Arrays of the user: type, range, layout and labels are recognised, told, or refused."""

import numpy as np
import pytest
import torch

from robustbench_inv.data.own_data import arrays_to_dataset
from robustbench_inv.errors import BadData, BadParameter

LABELS = [0, 1, 2, 1]


def grey_levels(*shape, dtype=np.uint8):
    values = np.arange(4 * int(np.prod(shape))) * 7 % 256
    values[0], values[-1] = 0, 255
    return values.reshape(4, *shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int64", "float16", "float32", "float64"])
def test_grey_levels_of_every_type_are_the_same_images(dtype):
    data = arrays_to_dataset(grey_levels(3, 8, 8, dtype=dtype), LABELS)
    images = data.batch(range(4))[0]
    assert images.allclose(torch.tensor(grey_levels(3, 8, 8)).float() / 255, atol=1e-7)
    assert data.bounds == (0, 1)
    assert "grey levels 0 to 255 were scaled to [0, 1]" in data.notes[0]
    assert data.digest == arrays_to_dataset(grey_levels(3, 8, 8), LABELS).digest


def test_grey_levels_that_are_not_whole_are_scaled():
    images = grey_levels(3, 8, 8, dtype=np.float32)
    images[1] += 0.25
    images = images.clip(0, 255)
    found = arrays_to_dataset(images, LABELS).batch(range(4))[0]
    assert found.allclose(torch.tensor(images) / 255)


def test_grey_levels_take_the_bounds_of_the_model():
    data = arrays_to_dataset(grey_levels(3, 8, 8, dtype=np.float32), LABELS, bounds=(-1, 1))
    images = data.batch(range(4))[0]
    assert (images.min(), images.max(), data.bounds) == (-1, 1, (-1, 1))
    kept = arrays_to_dataset(grey_levels(3, 8, 8, dtype=np.float32), LABELS, bounds=(0, 255))
    assert kept.batch([3])[0].max() == 255
    assert not kept.notes


def test_floats_inside_the_bounds_are_unchanged():
    images = torch.rand(4, 3, 8, 8)
    data = arrays_to_dataset(images, LABELS)
    assert data.batch(range(4))[0].equal(images)
    assert data.notes == ()


@pytest.mark.parametrize("images", [torch.rand(4, 3, 8, 8) * 1.02, torch.randn(4, 3, 8, 8)])
def test_values_that_are_neither_are_refused(images):
    images[0, 0, 0, 0] = 1.01
    with pytest.raises(BadData, match="undo a normalisation"):
        arrays_to_dataset(images, LABELS)


def test_binary_bytes_are_no_grey_levels():
    images = grey_levels(1, 8, 8) % 2
    data = arrays_to_dataset(images, LABELS)
    assert data.batch(range(4))[0].equal(torch.tensor(images).float())
    assert "0 and 1" in data.notes[0]


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ((8, 8, 3), (3, 8, 8)),
        ((8, 9, 1), (1, 8, 9)),
        ((3, 8, 8), (3, 8, 8)),
        ((3, 8, 3), (3, 8, 3)),
        ((28, 28), (1, 28, 28)),
        ((2, 8, 8, 8), (2, 8, 8, 8)),
    ],
)
def test_layouts_are_recognised(given, found):
    images = grey_levels(*given)
    data = arrays_to_dataset(images, LABELS)
    assert data.shape == found
    assert any("were changed to" in note for note in data.notes) == (given != found)
    channels_last = len(given) == 3 and given != found
    pixel = images[2, 4, 5] if channels_last else images[2]
    ours = data.batch([2])[0][0]
    assert (ours[:, 4, 5] if channels_last else ours.flatten()).allclose(
        torch.tensor(pixel).float().flatten() / 255
    )


WHOLE = ["uint8", "int16", "uint16", "uint32", "int64", "uint64"]


@pytest.mark.parametrize("dtype", WHOLE)
@pytest.mark.parametrize("shape", [(10,), (2, 10), (3, 8, 8)])
def test_whole_numbers_inside_the_bounds_are_unchanged(dtype, shape):
    """As of a table of counts: scaled as grey levels, they were other inputs with another robust accuracy."""
    values = grey_levels(*shape, dtype=dtype) % 101
    data = arrays_to_dataset(values, LABELS, bounds=(0, 100))
    assert data.batch(range(4))[0].equal(torch.tensor(values.astype(np.float32)))
    assert [note.rpartition(": ")[2] for note in data.notes] == (
        ["8-bit numbers inside the bounds were kept, and not scaled as grey levels"]
        if dtype == "uint8"
        else []
    )


@pytest.mark.parametrize("dtype", [*WHOLE, "float64"])
def test_digits_of_4_bits_are_no_grey_levels(dtype):
    digits = (grey_levels(1, 8, 8) % 17).astype(dtype)
    kept = arrays_to_dataset(digits, LABELS, bounds=(0, 16))
    assert kept.batch(range(4))[0].float().equal(torch.tensor(digits.astype(np.float32)))
    with pytest.raises(BadData, match=r"divide grey levels .*model\.bounds = \(0, 16\)"):
        arrays_to_dataset(digits, LABELS)


@pytest.mark.parametrize("dtype", ["int16", "int64", "uint16", "float32"])
@pytest.mark.parametrize("bounds", [(0, 255), (0, 65535)])
def test_grey_levels_inside_wide_bounds_are_the_same_data_in_every_type(dtype, bounds):
    images = grey_levels(3, 8, 8)
    data = arrays_to_dataset(images.astype(dtype), LABELS, bounds=bounds)
    assert data.batch(range(4))[0].equal(torch.tensor(images).float())
    whole = arrays_to_dataset(images.astype(np.int32), LABELS, bounds=bounds)
    assert dtype == "float32" or data.digest == whole.digest


@pytest.mark.parametrize("dtype", [*WHOLE, "float32"])
@pytest.mark.parametrize("shape", [(50,), (2, 100)])
def test_tables_and_signals_are_never_scaled(dtype, shape):
    with pytest.raises(BadData, match=r"got '\[0, 255\]'.*low=0,high=255"):
        arrays_to_dataset(grey_levels(*shape, dtype=dtype), LABELS)


def test_only_8_bits_make_rows_and_columns_an_image():
    images = grey_levels(28, 28)
    scaled = torch.tensor(images).float() / 255
    for given, layout in ((images, "keep"), (images, "auto"), (images.astype(int), "nhw")):
        found = arrays_to_dataset(given, LABELS, layout=layout).batch(range(4))[0]
        assert found.reshape(4, 28, 28).allclose(scaled)
    with pytest.raises(BadData, match="range of the inputs"):
        arrays_to_dataset(images.astype(int), LABELS)


def test_a_layout_can_be_chosen():
    assert arrays_to_dataset(grey_levels(8, 8, 3), LABELS, layout="keep").shape == (8, 8, 3)
    assert arrays_to_dataset(grey_levels(3, 8, 3), LABELS, layout="nhwc").shape == (3, 3, 8)
    assert arrays_to_dataset(np.zeros((4, 9, 9)), LABELS, layout="nhw").shape == (1, 9, 9)
    with pytest.raises(BadParameter, match="2 dimensions"):
        arrays_to_dataset(grey_levels(8, 8, 3), LABELS, layout="nhw")
    with pytest.raises(BadParameter, match="unknown layout"):
        arrays_to_dataset(grey_levels(8, 8, 3), LABELS, layout="hwc")


def test_tables_and_signals_need_bounds_unless_they_are_0_to_1():
    table = np.linspace(-3, 4, 20).reshape(4, 5)
    assert arrays_to_dataset(table, LABELS, bounds=(-5, 5)).bounds == (-5, 5)
    with pytest.raises(BadData, match=r"\[-3, 4\]"):
        arrays_to_dataset(table, LABELS)
    with pytest.raises(BadData, match=r"\[0, 200\]"):
        arrays_to_dataset(np.linspace(0, 200, 20).reshape(4, 5), LABELS)


@pytest.mark.parametrize(
    "labels",
    [[2, 0, 1, 0], np.array([[2], [0], [1], [0]]), np.array([2.0, 0, 1, 0]), ["c", "a", "b", "a"]],
)
def test_labels_of_every_form(labels):
    data = arrays_to_dataset(torch.rand(4, 5), labels)
    assert data.labels.tolist() == [2, 0, 1, 0]
    assert data.classes == (("a", "b", "c") if labels[0] == "c" else ())


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int8", "int64"])
def test_labels_may_be_whole_numbers_of_any_width(dtype):
    labels = np.array(LABELS, dtype=dtype)
    for given in (labels, torch.tensor(labels)):
        assert arrays_to_dataset(torch.rand(4, 5), given).labels.tolist() == LABELS


def test_labels_that_are_numbers_in_words_are_these_numbers():
    """In the order of the alphabet, "10" would be the class before "2"."""
    words = [str(number) for number in range(11, -1, -1)]
    data = arrays_to_dataset(torch.rand(12, 5), np.array(words))
    assert (data.labels.tolist(), data.num_classes) == (list(range(11, -1, -1)), 12)
    assert "numbers in words" in data.notes[0]
    assert arrays_to_dataset(torch.rand(2, 5), ["3", "07"]).labels.tolist() == [3, 7]
    assert arrays_to_dataset(torch.rand(2, 5), ["1.0", "0"]).labels.tolist() == [1, 0]
    named = arrays_to_dataset(torch.rand(2, 5), ["3", "7"], classes=("7", "3"))
    assert named.labels.tolist() == [1, 0]
    with pytest.raises(BadData, match="wrong type"):
        arrays_to_dataset(torch.rand(2, 5), ["0.5", "1"])


def test_labels_that_cannot_be_read_are_refused():
    with pytest.raises(BadData, match="argmax"):
        arrays_to_dataset(torch.rand(4, 5), np.eye(4))
    with pytest.raises(BadData, match=r"wrong type.*labels\.astype\(int\) in NumPy"):
        arrays_to_dataset(torch.rand(4, 5), [0.5, 1, 0, 1])
    with pytest.raises(BadData, match="labels cannot be read"):
        arrays_to_dataset(torch.rand(2, 5), [[1], [1, 2]])
    with pytest.raises(BadData, match="labels cannot be read"):
        arrays_to_dataset(torch.rand(2, 5), [["a", "b"], ["b", "a"]])
    with pytest.raises(BadData, match="unknown class"):
        arrays_to_dataset(torch.rand(4, 5), ["c", "a", "b", "a"], classes=("a", "b"))
    with pytest.raises(BadData, match="no images"):
        arrays_to_dataset(torch.rand(0, 5), [])
    with pytest.raises(BadData, match="cannot be read"):
        arrays_to_dataset([[1.0], [1.0, 2.0]], [0, 1])


def test_a_data_set_without_a_number_of_classes_takes_the_models():
    data = arrays_to_dataset(torch.rand(4, 5), LABELS)
    assert data.num_classes == 3
    wide = data.with_classes(10)
    assert (wide.num_classes, wide.digest) == (10, data.digest)
    assert "0 to 2 of the model's 10 classes" in wide.notes[0]
    assert data.with_classes(10) is wide
    assert data.with_classes(2) is data
    named = arrays_to_dataset(torch.rand(4, 5), ["a", "b", "c", "a"])
    assert named.with_classes(10) is named
