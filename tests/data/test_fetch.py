"""Fetching: only complete, verified files enter the cache."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from robustbench_inv.data import fetch as sources
from robustbench_inv.data.fetch import MIRROR, fetch_dataset, fetch_file, verify_dataset
from robustbench_inv.data.registry import open_dataset
from robustbench_inv.errors import BadData

IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def serve_all(mirror, tiny_mnist, prefix="/mnist"):
    for name in tiny_mnist.files:
        mirror.serve(f"{prefix}/{name}.gz", tiny_mnist.packed(name))


def test_fetched_once_then_read_from_the_cache(mirror, tiny_mnist, tmp_path, monkeypatch):
    monkeypatch.setenv(MIRROR, mirror.url + "/")
    serve_all(mirror, tiny_mnist)
    data = open_dataset("mnist")
    images, labels = data.batch(range(20))
    assert torch.equal((images[:, 0] * 255).round().int(), torch.tensor(tiny_mnist.images).int())
    assert labels.tolist() == tiny_mnist.labels.tolist()
    assert sorted(path.name for path in files_below(tmp_path / "cache")) == [
        f"{IMAGES}.gz",
        f"{LABELS}.gz",
    ]
    mirror.answers.clear()
    assert open_dataset("mnist").digest == data.digest
    assert len(mirror.requests) == 2


def wrong_answers(tiny_mnist, idx):
    packed = tiny_mnist.packed(IMAGES)
    other = idx(np.zeros((20, 28, 28)))
    return {
        "404": {"body": b"gone", "status": 404},
        "500": {"body": b"", "status": 500},
        "web page": {"body": b"<html><title>Sign in to this network</title></html>"},
        "gzipped web page": {"body": gzip.compress(b"<html>" * 99)},
        "other content": {"body": gzip.compress(other)},
        "truncated gzip": {"body": packed[: len(packed) // 2]},
        "half-finished": {"body": packed[: len(packed) // 2], "promised": len(packed)},
        "empty": {"body": b""},
    }


SAID = {
    "404": "404 Client Error",
    "500": "500 Server Error",
    "web page": "it is a web page",
    "gzipped web page": "it is a web page",
    "other content": "it has the wrong checksum",
    "truncated gzip": "it is truncated",
    "half-finished": "",  # by version of the client: a truncated file, or an error of the connection
    "empty": "it has the wrong start, got 'an empty file'",
}


@pytest.mark.parametrize("case", sorted(SAID))
def test_a_wrong_download_raises_a_one_line_error_and_leaves_no_file(
    mirror, tiny_mnist, idx, tmp_path, monkeypatch, case
):
    monkeypatch.setenv(MIRROR, mirror.url)
    serve_all(mirror, tiny_mnist)
    mirror.serve(f"/mnist/{IMAGES}.gz", **wrong_answers(tiny_mnist, idx)[case])
    with pytest.raises(BadData) as caught:
        open_dataset("mnist")
    message = str(caught.value)
    assert f"cannot fetch {IMAGES}.gz of mnist" in message
    assert f"{mirror.url}/mnist/{IMAGES}.gz: {SAID[case]}" in message
    assert "--data-root" in message
    assert "\n" not in message
    assert ".fetch-" not in message
    assert not any((tmp_path / "cache" / "mnist").iterdir())
    serve_all(mirror, tiny_mnist)
    assert len(open_dataset("mnist")) == 20


def test_failures_of_all_mirrors_are_listed(mirror, tiny_mnist, tmp_path):
    origin = sources.find_source("mnist")
    mirrors = [f"{mirror.url}/gone", f"{mirror.url}/page/", f"{mirror.url}/good"]
    mirror.serve(f"/page/{LABELS}.gz", b"<html></html>")
    with pytest.raises(BadData) as caught:
        fetch_file(origin, LABELS, tmp_path / "a", mirrors)
    assert f"{mirror.url}/gone/{LABELS}.gz: 404" in str(caught.value)
    assert f"{mirror.url}/page/{LABELS}.gz: it is a web page" in str(caught.value)
    mirror.serve(f"/good/{LABELS}.gz", tiny_mnist.packed(LABELS))
    path = fetch_file(origin, LABELS, tmp_path / "a", mirrors)
    assert path == tmp_path / "a" / f"{LABELS}.gz"
    assert gzip.decompress(path.read_bytes()) == tiny_mnist.files[LABELS]
    assert files_below(tmp_path / "a") == [path]


@pytest.mark.usefixtures("tiny_mnist")
def test_an_unreachable_server_raises(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(BadData, match=r"gz: ConnectionError\)"):
        fetch_file(sources.find_source("mnist"), LABELS, tmp_path, ["http://127.0.0.1:9"])


def test_an_earlier_interrupted_download_is_ignored(mirror, tiny_mnist, tmp_path, monkeypatch):
    monkeypatch.setenv(MIRROR, mirror.url)
    serve_all(mirror, tiny_mnist)
    left = tmp_path / "cache" / "mnist" / ".fetch-killed"
    left.mkdir(parents=True)
    (left / f"{IMAGES}.gz").write_bytes(tiny_mnist.packed(IMAGES)[:50])
    assert len(open_dataset("mnist")) == 20


@pytest.mark.usefixtures("tiny_mnist")
def test_an_interrupted_download_leaves_no_file(mirror, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pooch.HTTPDownloader.__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch_file(sources.find_source("mnist"), IMAGES, tmp_path / "a", [mirror.url])
    assert not any((tmp_path / "a").iterdir())


def test_search_order_of_files(tiny_mnist, tmp_path, monkeypatch):
    for folder, name in (("one/mnist", IMAGES), ("one/MNIST/raw", LABELS)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / name).write_bytes(tiny_mnist.files[name])
    assert len(open_dataset("mnist", root=tmp_path / "one")) == 20
    monkeypatch.setenv("INVBENCH_DATA", str(tmp_path / "one"))
    assert len(open_dataset("mnist")) == 20
    with pytest.raises(BadData, match="no such data root"):
        open_dataset("mnist", root=tmp_path / "two")


def test_a_damaged_file_of_the_user_is_reported_and_not_replaced(tiny_mnist, tmp_path):
    folder = tmp_path / "root" / "mnist"
    folder.mkdir(parents=True)
    (folder / LABELS).write_bytes(tiny_mnist.files[LABELS])
    (folder / f"{IMAGES}.gz").write_bytes(tiny_mnist.packed(IMAGES)[:-20])
    with pytest.raises(BadData, match=r"mnist/t10k-images-idx3-ubyte\.gz is truncated"):
        open_dataset("mnist", root=tmp_path / "root")


def test_fetch_dataset_completes_and_repairs(mirror, tiny_mnist, tmp_path, monkeypatch):
    monkeypatch.setenv(MIRROR, mirror.url)
    serve_all(mirror, tiny_mnist)
    folder = tmp_path / "root" / "mnist"
    folder.mkdir(parents=True)
    (folder / LABELS).write_bytes(tiny_mnist.files[LABELS])
    (folder / f"{IMAGES}.gz").write_bytes(b"half of a file")
    assert fetch_dataset("mnist", tmp_path / "root") == [folder / f"{IMAGES}.gz", folder / LABELS]
    assert mirror.requests == [f"/mnist/{IMAGES}.gz"]
    assert [check.ok for check in verify_dataset("mnist", tmp_path / "root")] == [True, True]
    assert fetch_dataset("mnist", tmp_path / "root")
    assert len(mirror.requests) == 1


def test_fetch_dataset_does_not_replace_files_outside_its_folder(
    mirror, tiny_mnist, tmp_path, monkeypatch
):
    monkeypatch.setenv(MIRROR, mirror.url)
    serve_all(mirror, tiny_mnist)
    theirs = tmp_path / "root" / "MNIST" / "raw" / IMAGES
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"something else")
    with pytest.raises(BadData, match="wrong start"):
        fetch_dataset("mnist", tmp_path / "root")
    assert theirs.read_bytes() == b"something else"


def test_verify_names_each_file(tiny_mnist, tmp_path):
    folder = tmp_path / "root" / "mnist"
    folder.mkdir(parents=True)
    altered = bytearray(tiny_mnist.files[IMAGES])
    altered[100] ^= 1
    (folder / IMAGES).write_bytes(altered)
    images, labels = verify_dataset("mnist", tmp_path / "root")
    assert (images.file, images.ok) == (folder / IMAGES, False)
    assert "wrong checksum" in images.message
    assert (labels.file.name, labels.ok) == (f"{LABELS}.gz", False)
    assert "invbench data fetch mnist" in labels.message


@pytest.mark.usefixtures("tiny_mnist")
def test_a_file_where_the_folder_should_be(mirror, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(BadData, match="cannot write"):
        fetch_file(sources.find_source("mnist"), IMAGES, tmp_path / "taken", [mirror.url])


def test_data_sets_without_downloads():
    assert [check.ok for check in verify_dataset("mnist5k")] == [True, True]
    assert [path.suffix for path in fetch_dataset("mnist5k")] == [".gz", ".gz"]
    assert fetch_dataset("spheres") == []
    assert verify_dataset("spheres") == []
