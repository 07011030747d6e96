"""CIFAR in the layout of torchvision, and its archives: fetched, unpacked, verified; no code in a pickle is run."""

import hashlib
import io
import os
import pickle
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from robustbench_inv.cli.main import main
from robustbench_inv.data import archives, cifar
from robustbench_inv.data.archives import ARCHIVES, fetch_or_unpack, verify_files
from robustbench_inv.data.fetch import MIRROR
from robustbench_inv.data.registry import DATASETS, open_dataset
from robustbench_inv.errors import BadData

sys.path.insert(0, str(Path(__file__).parent))
from py2_pickles import dump

RECORDS = np.random.default_rng(0).integers(0, 256, (10, 3073), np.uint8)
RECORDS[:, 0] = np.arange(10)


def write_pickles(folder, records, key=b"labels"):
    """Write the files of CIFAR-10 with the same records in both splits."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"test_batch": records, "test": records, "train": records}
    parts |= {f"data_batch_{i}": part for i, part in enumerate(np.split(records, 5), 1)}
    for name, part in parts.items():
        stored = {key: part[:, 0].tolist(), b"data": part[:, 1:], b"batch_label": b"made up"}
        (folder / name).write_bytes(dump(stored))


def packed(folder, extra=()):
    """Return a tar.gz of a folder, with further members."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as stored:
        stored.add(folder, folder.name)
        for name, content in extra:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            stored.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture(autouse=True)
def made_up(tmp_path, monkeypatch):
    """Ten made-up images in each split, and no other data."""
    monkeypatch.delenv("INVBENCH_DATA", raising=False)
    monkeypatch.setattr("robustbench_inv.data.fetch.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(archives, "cache_folder", lambda: tmp_path / "cache")
    digest = cifar.records_digest(RECORDS)
    known = {split: (files, digest) for split, (files, _) in cifar.SPLITS.items()}
    monkeypatch.setattr(cifar, "SPLITS", known)


def know(monkeypatch, name, content):
    found = replace(ARCHIVES[name], md5=hashlib.md5(content).hexdigest())
    monkeypatch.setitem(ARCHIVES, name, found)


@pytest.mark.parametrize("split", ["test", "train"])
@pytest.mark.parametrize("place", ["cifar-10-batches-py", "cifar10/cifar-10-batches-py"])
def test_pickles_are_the_same_data_set_as_binary_files(tmp_path, split, place):
    write_pickles(tmp_path / "py" / place, RECORDS)
    found = open_dataset("cifar10", {"split": split}, tmp_path / "py")
    folder = tmp_path / "bin" / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    RECORDS.tofile(folder / "test_batch.bin")
    for i, part in enumerate(np.split(RECORDS, 5), 1):
        part.tofile(folder / f"data_batch_{i}.bin")
    binary = open_dataset("cifar10", {"split": split}, tmp_path / "bin")
    assert (found.digest, found.name) == (binary.digest, binary.name)
    assert found.budgets == binary.budgets == cifar.BUDGETS


def test_cifar100_has_fine_labels(tmp_path, monkeypatch):
    write_pickles(tmp_path / "cifar-100-python", RECORDS, b"fine_labels")
    with pytest.raises(BadData, match="is not the test file of CIFAR-100"):
        open_dataset("cifar100", {}, tmp_path)
    content = (tmp_path / "cifar-100-python" / "test").read_bytes()
    known = dict.fromkeys(("test", "train"), hashlib.md5(content).hexdigest())
    monkeypatch.setattr(cifar, "PICKLES_100", known)
    data = open_dataset("cifar100", {}, tmp_path)
    assert (data.num_classes, data.shape) == (100, (3, 32, 32))
    assert data.batch([3])[0].flatten().equal(torch.tensor(RECORDS[3, 1:]) / 255)
    assert len(set(DATASETS["cifar100"].classes)) == 100


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Trap()),
        pickle.dumps({b"labels": Trap(), b"data": RECORDS[:, 1:]}),
        b"\x80\x02cbuiltins\neval\nU\x011\x85R.",
        b"\x80\x02cnumpy.lib.npyio\nload\nU\x011\x85R.",
        b"",
        b"\x80\x02",
        dump({b"labels": [1], b"data": RECORDS[:, 1:]}),
        dump({b"labels": list(range(10))}),
        dump([1, 2]),
    ],
    ids=["reduce", "inside", "eval", "numpy", "empty", "cut", "lengths", "no-data", "list"],
)
def test_no_code_of_a_pickle_is_run(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(content)
    with pytest.raises(BadData, match="is no file of CIFAR") as caught:
        open_dataset("cifar10", {}, tmp_path)
    assert not (tmp_path / "trapped").exists()
    assert "\n" not in str(caught.value)


def test_an_archive_is_fetched_verified_and_unpacked(tmp_path, monkeypatch, mirror):
    write_pickles(tmp_path / "cifar-10-batches-py", RECORDS)
    outside = ("../../escaped", b"x"), ("cifar-10-batches-py/../../escaped", b"x")
    content = packed(tmp_path / "cifar-10-batches-py", outside)
    mirror.serve("/cifar10/cifar-10-python.tar.gz", content)
    monkeypatch.setenv(MIRROR, mirror.url)
    with pytest.raises(BadData, match="wrong checksum"):
        fetch_or_unpack("cifar10")
    know(monkeypatch, "cifar10", content)
    folder = tmp_path / "cache" / "cifar10" / "cifar-10-batches-py"
    assert fetch_or_unpack("cifar10") == [folder]
    assert sorted(each.name for each in folder.iterdir()) == sorted(ARCHIVES["cifar10"].files)
    assert [each.name for each in folder.parent.iterdir()] == [folder.name]
    assert not list(tmp_path.rglob("escaped"))
    mirror.answers.clear()
    assert fetch_or_unpack("cifar10") == [folder]
    assert [check.ok for check in verify_files("cifar10")] == [True]
    (folder / "test_batch").write_bytes(b"")
    assert [check.ok for check in verify_files("cifar10")] == [False]


def test_an_archive_in_the_data_root_is_unpacked_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv(MIRROR, "http://127.0.0.1:1")
    write_pickles(tmp_path / "cifar-10-batches-py", RECORDS)
    content = packed(tmp_path / "cifar-10-batches-py")
    know(monkeypatch, "cifar10", content)
    root = tmp_path / "root"
    with pytest.raises(BadData, match="into a folder DIR"):
        fetch_or_unpack("cifar10", root)
    (root / "cifar-10-python.tar.gz").write_bytes(content)
    assert fetch_or_unpack("cifar10", root) == [root / "cifar-10-batches-py"]
    assert len(open_dataset("cifar10", {}, root)) == 10


@pytest.mark.parametrize("spoil", ["cut", "missing"])
def test_a_damaged_archive_leaves_nothing(tmp_path, monkeypatch, spoil):
    write_pickles(tmp_path / "cifar-10-batches-py", RECORDS)
    if spoil == "missing":
        (tmp_path / "cifar-10-batches-py" / "data_batch_3").unlink()
    content = packed(tmp_path / "cifar-10-batches-py")
    content = content[: len(content) // 2] if spoil == "cut" else content
    know(monkeypatch, "cifar10", content)
    root = tmp_path / "root"
    root.mkdir()
    (root / "cifar-10-python.tar.gz").write_bytes(content)
    with pytest.raises(BadData, match=r"damaged|incomplete"):
        fetch_or_unpack("cifar10", root)
    assert [each.name for each in root.iterdir()] == ["cifar-10-python.tar.gz"]


def test_the_command_names_the_file_to_put_into_place(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(MIRROR, "http://127.0.0.1:1")
    arguments = ["invbench", "data", "fetch", "cifar10", "--data-root", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as leaving:
        main()
    assert leaving.value.code == 2
    assert "put cifar-10-python.tar.gz into a folder" in capsys.readouterr().err


def test_generated_data_sets_have_nothing_to_fetch():
    assert fetch_or_unpack("spheres") == []
    assert verify_files("spheres") == []
