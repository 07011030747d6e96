"""Patterns of models: which names of the catalogue fit."""

import pytest

from robustbench_inv.catalogue.listing import models_like
from robustbench_inv.errors import UnknownName


def test_a_pattern_names_every_model_of_the_data():
    found = models_like("mnist-*", "mnist5k")
    assert "mnist-lenet5" in found
    assert "mnist-lenet5-200" not in found  # trained on these digits
    assert "mnist-lenet5-200" in models_like("mnist-*", "mnist")
    assert {"mnist-cnn", "mnist-sdim", "mnist-prototypes"} <= set(found)
    assert found == sorted(found)
    assert not any(name.startswith(("mnist-planted", "fashion")) for name in found)
    assert "mnist-planted-firevnet-ce" in models_like("mnist-*")


@pytest.mark.parametrize(
    "text", ["mnist-cnn", "nothing", "net.py:build", "A=mnist-*", "mnist-*:dtype=float64", "a/*"]
)
def test_other_texts_stay(text):
    assert models_like(text) == [text]


def test_a_file_with_a_star_in_its_name_is_no_pattern(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net*").write_text("")
    assert models_like("net*") == ["net*"]


@pytest.mark.parametrize(("text", "dataset"), [("nothing-*", None), ("mnist-*", "cifar10")])
def test_a_pattern_that_fits_nothing_is_refused(text, dataset):
    with pytest.raises(UnknownName, match="fits the pattern"):
        models_like(text, dataset)
