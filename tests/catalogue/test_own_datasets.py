"""References to data of the user: folders, files of arrays, functions; files of a catalogue may not name code."""

import numpy as np
import pytest

from robustbench_inv.catalogue.datasets import load_dataset, refuse_code
from robustbench_inv.catalogue.references import Reference, parse_source
from robustbench_inv.errors import BadCatalogue, BadData, BadParameter, UnknownName

OWN = """
import numpy as np
import torch

def build(count=6, bright=255):
    x = np.arange(count * 192).reshape(count, 3, 8, 8) % (bright + 1)
    return x.astype(np.uint8), np.arange(count) % 2

def noisy():
    return torch.rand(6, 5), torch.arange(6) % 2

def broken():
    raise ValueError("no file")

def leaves():
    raise SystemExit(0)

arrays = build()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    np.savez("d.npz", x=np.random.default_rng(0).random((6, 5)), y=np.arange(6) % 2)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("npz:d.npz", ("npz", "d.npz", {})),
        ("npz:d.npz,low=-1,high=2.5", ("npz", "d.npz", {"low": -1, "high": 2.5})),
        ("npz:d.npz:low=-1", ("npz", "d.npz", {"low": -1})),
        ("folder:a,b/c,size=8", ("folder", "a,b/c", {"size": 8})),
        (r"folder:C:\photos,size=8", ("folder", r"C:\photos", {"size": 8})),
        ("own.py:build", ("code", "own.py:build", {})),
        ("a/own.py:build:count=3,bright=9", ("code", "a/own.py:build", {"count": 3, "bright": 9})),
        ("own.py:build,count=3", ("code", "own.py:build", {"count": 3})),
    ],
)
def test_references(text, expected):
    kind, place, parameters = expected
    assert parse_source(text) == (kind, Reference(place, parameters))


@pytest.mark.parametrize("text", ["mnist", "mnist:pad=2", "spheres:d=5,n=1", "folder", "npz:"])
def test_other_names_are_no_sources(text):
    assert parse_source(text) is None


def test_a_path_with_an_equals_sign_that_exists_has_no_parameters(folder):
    (folder / "a,size=3").mkdir()
    assert parse_source("folder:a,size=3") == ("folder", Reference("a,size=3"))


def test_data_are_loaded_by_their_references(folder):
    assert load_dataset("npz:d.npz").name == "npz:d.npz"
    assert len(load_dataset("own.py:build,count=4")) == 4
    assert load_dataset("own.py:build").digest == load_dataset("own.py:arrays").digest
    assert load_dataset("own.py:noisy").digest == load_dataset("own.py:noisy").digest
    assert load_dataset(f"{folder}/own.py:build").digest == load_dataset("own.py:build").digest


@pytest.mark.parametrize(
    ("text", "error", "problem"),
    [
        ("own.py:broken", BadParameter, "ValueError: no file"),
        ("own.py:leaves", Exception, "SystemExit"),
        ("own.py:nothing", UnknownName, "has no 'nothing'"),
        ("own.py:build,colour=3", BadParameter, "colour"),
        ("own.py:arrays,count=3", BadParameter, "is data and not a function"),
        ("no.py:build", BadCatalogue, "no such file"),
        ("npz:d.npz,low", BadData, "no such file"),
        ("npz:d.npz,low=", BadParameter, "expected key=value"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_faults_are_one_line(text, error, problem):
    with pytest.raises(error, match=problem):
        load_dataset(text)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("d.npz", "write npz:d.npz"), ("pkg", "write folder:pkg"), ("own.py", "own.py:FUNCTION")],
)
def test_a_path_without_its_source_gets_a_hint(folder, name, remedy):
    (folder / "pkg").mkdir()
    with pytest.raises(UnknownName, match=remedy):
        load_dataset(name)


def test_names_in_files_do_not_run_code(folder):
    (folder / "own.py").write_text("raise AssertionError('this code was run')\n")
    with pytest.raises(BadCatalogue, match="by Python code"):
        load_dataset("own.py:build", code=False)
    with pytest.raises(BadCatalogue, match="by Python code"):
        refuse_code("own.py:build,count=3")
    refuse_code("mnist:pad=2")
    assert load_dataset("npz:d.npz", code=False).name == "npz:d.npz"
