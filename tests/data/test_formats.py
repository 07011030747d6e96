"""The IDX reader: valid files, and errors for invalid files."""

import gzip
import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from robustbench_inv.data.fetch import find_source
from robustbench_inv.data.formats import (
    parse_array,
    parse_images,
    parse_labels,
    read_images,
    read_labels,
    unpacked,
)
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


def bomb(start=b""):
    """Return a gzip file of some kilobytes that unpacks to more than 100 MB."""
    return gzip.compress(start + bytes(100 << 20), 9)


def peak_of(action):
    tracemalloc.start()
    with pytest.raises(BadData) as caught:
        action()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "\n" not in str(caught.value)
    return peak, str(caught.value)


def test_a_file_that_unpacks_beyond_its_header_does_not_fill_the_memory(idx, tmp_path):
    (tmp_path / "images.gz").write_bytes(bomb(idx(np.arange(24).reshape(2, 3, 4))))
    peak, message = peak_of(lambda: read_images(tmp_path / "images.gz"))
    assert peak < 4 << 20
    assert "not as long as its header" in message


@pytest.mark.parametrize("file", ["t10k-labels-idx1-ubyte", "t10k-images-idx3-ubyte"])
def test_a_file_of_a_data_set_is_refused_at_its_known_size(tmp_path, file):
    (tmp_path / "file.gz").write_bytes(bomb())
    source = find_source("mnist")
    peak, message = peak_of(lambda: source.content(tmp_path / "file.gz", file))
    assert peak < 3 * source.sizes[file] + (4 << 20)
    assert f"expected {source.sizes[file]} bytes" in message


def test_every_file_has_a_known_size():
    for name in ("mnist", "fashion-mnist", "invariance-mnist", "mnist5k"):
        source = find_source(name)
        assert set(source.sizes) == set(source.sha256)


def test_an_archive_of_another_kind_is_refused_at_the_known_size(tmp_path):
    (tmp_path / "indexs.npy").write_bytes(bomb(b"\x93NUMPY"))
    peak, _ = peak_of(lambda: unpacked(tmp_path / "indexs.npy", 928))
    assert peak < 4 << 20


def npy(header):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(64)


@pytest.mark.parametrize(
    "data",
    [
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999999,), }"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': ('a',), }"),
        npy("{'descr': '<f8', 'fortran_order': False, 'shape': 3, }"),
        npy("{'descr': 7, 'fortran_order': False, 'shape': (1,), }"),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"),
        npy("{'descr': '<U4', 'fortran_order': False, 'shape': (1,), }"),
        npy("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1,), }"),
        npy("{'descr': '<M8[s]', 'fortran_order': False, 'shape': (1,), }"),
        npy("[" * 110),
        npy("__import__('os')"),
        b"\x93NUMPY\x09\x09",
        b"PK\x03\x04" + bytes(40),
    ],
)
def test_an_odd_array_file_is_one_line(data):
    with pytest.raises(BadData) as caught:
        parse_array(data, "odd.npy")
    assert "odd.npy" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_array_file_is_read():
    buffer = io.BytesIO()
    np.save(buffer, np.arange(3))
    assert parse_array(buffer.getvalue(), "a.npy").tolist() == [0, 1, 2]
