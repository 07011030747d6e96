"""The human-labelled invariance examples: what they are, whose word the oracle gives, and how they are fetched."""

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from robustbench_inv.data import fetch as sources
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.data.fetch import MIRROR, fetch_file, verify_dataset
from robustbench_inv.data.formats import parse_array
from robustbench_inv.data.mnist import SETS, HumanLabelled
from robustbench_inv.data.protocol import Dataset, HasCounterparts, LabelOracle
from robustbench_inv.data.registry import open_dataset
from robustbench_inv.errors import BadData

PUBLISHED = {
    "l0": (100, 55, 1.0),
    "linf-0.3": (100, 21, 0.3),
    "linf-0.4": (100, 37, 103 / 255),
    "linf-0.4-manual": (50, 44, 102 / 255),
}
"""Set → size, how many people see another class, largest change of a pixel: 0.4 of 255 is rounded up to 103."""


@pytest.fixture(scope="module")
def root():
    found = Path(os.environ.get("INVBENCH_DATA", "nowhere"))
    if not (found / "invariance-mnist").is_dir() or not (found / "mnist").is_dir():
        pytest.skip("INVBENCH_DATA has no folders invariance-mnist and mnist")
    return found


@pytest.mark.parametrize("name", SETS)
def test_people_see_other_classes_as_often_as_published(root, name):
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
def test_originals_are_the_test_images_that_the_files_name(root, name):
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


def test_every_set_is_a_cell_of_its_own(root):
    opened = [open_dataset("invariance-mnist", {"set": name}, root) for name in SETS]
    assert len({data.digest for data in opened}) == len(SETS)
    assert [data.name for data in opened] == [f"invariance-mnist:set={name}" for name in SETS]


@pytest.fixture
def three():
    """Three images of two pixels, and an altered version of each that people call 1, 1, 0."""
    originals = ArrayDataset(torch.tensor([[0.0, 1], [0.5, 1], [1, 1]]), [0, 0, 1], "three")
    altered = originals.batch([0, 1, 2])[0] * torch.tensor([1.0, 0.5])
    return HumanLabelled(originals, altered, torch.tensor([1, 1, 0]), "three")


def test_the_oracle_knows_both_versions_and_nothing_else(three):
    assert isinstance(three, Dataset)
    assert isinstance(three, HasCounterparts)
    assert isinstance(three, LabelOracle)
    assert three.oracle_source == "human"
    asked = torch.tensor([[0.0, 0.5], [0.5, 1.0], [0.5, 0.5], [0.5, 0.501], [0.2, 0.2]])
    assert three.classify(asked).tolist() == [1, 0, 1, -1, -1]


def test_the_digest_covers_altered_images_and_human_labels(three):
    originals = ArrayDataset(torch.tensor([[0.0, 1], [0.5, 1], [1, 1]]), [0, 0, 1], "three")
    altered = three.counterparts([0, 1, 2])
    same = HumanLabelled(originals, altered, three.human, "three")
    other_image = HumanLabelled(originals, altered * 0.9, three.human, "three")
    other_label = HumanLabelled(originals, altered, 1 - three.human, "three")
    assert same.digest == three.digest
    assert len({three.digest, other_image.digest, other_label.digest}) == 3


def test_altered_versions_must_fit():
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


def test_an_array_is_fetched_as_it_is_from_its_place(offered, mirror, tmp_path, monkeypatch):
    origin = sources.find_source("things")
    mirror.serve("/deep/a/b.npy", offered)
    path = fetch_file(origin, "a_b.npy", tmp_path / "kept")
    assert path == tmp_path / "kept" / "a_b.npy"
    assert path.read_bytes() == offered
    monkeypatch.setenv(MIRROR, mirror.url)
    mirror.serve("/things/a_b.npy", offered)
    assert fetch_file(origin, "a_b.npy", tmp_path / "again").read_bytes() == offered
    assert mirror.asked == ["/deep/a/b.npy", "/things/a_b.npy"]


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize(
    ("body", "says"),
    [(b"<html>", "no .npy file"), (npy(np.arange(6)), "wrong checksum")],
)
def test_a_wrong_array_is_named_and_leaves_nothing(mirror, tmp_path, body, says):
    mirror.serve("/deep/a/b.npy", body)
    with pytest.raises(BadData, match=says):
        fetch_file(sources.find_source("things"), "a_b.npy", tmp_path / "kept")
    assert not any((tmp_path / "kept").iterdir())


def test_the_files_at_hand_are_verified(root):
    checks = verify_dataset("invariance-mnist", root)
    assert len(checks) == 10
    assert all(check.ok for check in checks)
