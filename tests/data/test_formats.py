"""The IDX reader: valid files, and errors for invalid files."""

import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from robustbench_inv.data.formats import parse_images, parse_labels, read_images, read_labels
from robustbench_inv.errors import BadData

PAGE = b"<!DOCTYPE html><html><body>404 Not Found</body></html>" * 10


@settings(deadline=None)
@given(arrays(np.uint8, array_shapes(min_dims=3, max_dims=3, max_side=6)))
def test_images_survive_a_round_trip(idx, images):
    np.testing.assert_array_equal(parse_images(idx(images), "file"), images)


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=50))
def test_labels_survive_a_round_trip(idx, labels):
    assert parse_labels(idx(np.array(labels)), "file").tolist() == labels


@pytest.mark.parametrize("name", ["images.gz", "images"])
@pytest.mark.parametrize("pack", [gzip.compress, bytes])
def test_gzip_is_detected_by_content(idx, tmp_path, name, pack):
    images = np.arange(24).reshape(2, 3, 4)
    (tmp_path / name).write_bytes(pack(idx(images)))
    np.testing.assert_array_equal(read_images(tmp_path / name), images)


def test_arrays_are_writable(idx):
    parse_labels(idx(np.array([1, 2])), "file")[0] = 3


def damaged(idx):
    images = idx(np.arange(24).reshape(2, 3, 4))
    packed = gzip.compress(images)
    flipped = bytearray(packed)
    flipped[-6] ^= 0xFF  # in the gzip file's own checksum
    return {
        "web page": (PAGE, "web page", "<!DOCTYPE"),
        "gzipped web page": (gzip.compress(PAGE), "web page", "<!DOCTYPE"),
        "cut gzip": (packed[:-9], "truncated", "gzip"),
        "flipped gzip": (bytes(flipped), "damaged", "CRC"),
        "cut inside the data": (images[:-1], "truncated", "23 bytes"),
        "cut inside the header": (images[:10], "truncated", "16 bytes"),
        "too long": (images + b"\0", "not as long", "25 bytes"),
        "labels instead": (idx(np.array([1, 2, 3])), "wrong start", "0x00000801"),
        "empty": (b"", "wrong start", "empty"),
        "no images": (idx(np.zeros((0, 28, 28))), "header specifies", "at least one"),
        "pickle": (b"\x80\x04\x95", "wrong start", "0x800495"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "web page",
        "gzipped web page",
        "cut gzip",
        "flipped gzip",
        "cut inside the data",
        "cut inside the header",
        "too long",
        "labels instead",
        "empty",
        "no images",
        "pickle",
    ],
)
def test_an_invalid_file_raises_a_one_line_error(idx, tmp_path, case):
    content, problem, detail = damaged(idx)[case]
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(BadData) as caught:
        read_images(path)
    message = str(caught.value)
    assert path.name in message
    assert problem in message
    assert detail in message
    assert "fetch it again" in message
    assert "\n" not in message
    assert len(message) < 300


def test_label_out_of_range_reports_value_and_position(idx, tmp_path):
    path = tmp_path / "labels"
    path.write_bytes(idx(np.array([3, 9, 10, 200])))
    with pytest.raises(BadData, match=r"position 2, got 10, expected 0 to 9"):
        read_labels(path)
    assert read_labels(path, num_classes=201).tolist() == [3, 9, 10, 200]


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(BadData, match="No such file"):
        read_images(tmp_path / "absent.gz")
    with pytest.raises(BadData, match="cannot read"):
        read_images(tmp_path)
