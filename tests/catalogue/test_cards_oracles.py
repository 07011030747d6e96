"""The shipped panels: valid cards, and members of different architectures."""

from dataclasses import replace

import pytest

from robustbench_inv.catalogue.cards import read_model, read_oracle
from robustbench_inv.catalogue.datasets import default_ood_dataset, default_oracle, load_dataset
from robustbench_inv.catalogue.listing import list_entries, show_entry
from robustbench_inv.catalogue.locate import entries, find
from robustbench_inv.catalogue.references import parse_reference
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.data.registry import DATASETS
from robustbench_inv.errors import BadCatalogue


@pytest.mark.parametrize("name", entries("oracles"))
def test_members_are_shipped_models_of_different_architectures(name):
    cards = [read_model(find("models", parse_reference(m).name)) for m in read_oracle(find("oracles", name)).members]  # fmt: skip
    assert len(cards) >= 3  # one may be left out
    assert len({card.implementation for card in cards}) == len(cards)
    assert len({card.weights_sha256 for card in cards}) == len(cards)
    (dataset,) = {card.dataset for card in cards}
    assert name in {
        DATASETS[dataset].oracle,
        "mnist-panel-v1",
        "mnist-panel-v2",
        "fashion-mnist-panel-v2",
    }


def test_the_first_panel_keeps_its_members_under_both_names():
    first, named = (
        read_oracle(find("oracles", name)) for name in ("mnist-panel", "mnist-panel-v1")
    )
    assert replace(first, name=named.name) == named


def test_the_usual_oracles_exist():
    named = {known.oracle for known in DATASETS.values() if known.oracle}
    assert named <= entries("oracles").keys()
    assert default_oracle(load_dataset("mnist5k")) == "mnist-panel"
    assert default_oracle(load_dataset("spheres:d=5,n=2")) == ""


def test_own_data_of_a_known_name_has_no_default_oracle():
    digits = load_dataset("mnist5k")
    images, labels = digits.batch(list(range(8)))
    own = ArrayDataset(1 - images, labels, digits.name, num_classes=10)
    assert own.name == digits.name
    assert default_oracle(own) == default_ood_dataset(own) == ""
    assert default_ood_dataset(digits) == "fashion-mnist"


def test_class_names_are_as_many_as_classes():
    assert all(d.classes for d in DATASETS.values() if d.name.startswith(("cifar", "fashion")))
    assert all(len(d.classes) in (0, d.num_classes) for d in DATASETS.values())


def test_panels_are_listed_and_shown():
    assert {"mnist-panel", "fashion-mnist-panel"} <= {e["name"] for e in list_entries("oracles").entries}  # fmt: skip
    kind, card = show_entry("mnist-panel")
    assert (kind, card["rule"]) == ("oracles", "majority")
    assert "mnist-cnn" in card["members"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('members = ["a"]', "key summary is missing"),
        ('summary = "s"', "key members is missing"),
        ('summary = "s"\nmembers = "a"', "members does not fit, got 'a', expected a list"),
        ('summary = "s"\nmembers = ["a"]\nrule = "most"', "rule does not fit"),
        ('summary = "s"\nmembers = ["a"]\nrules = "x"', "did you mean rule"),
    ],
)
def test_the_error_of_an_invalid_card(tmp_path, text, says):
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(BadCatalogue, match=says):
        read_oracle(tmp_path / "p.toml")


def test_parameters_replace_values_of_the_file():
    path = find("oracles", "mnist-panel")
    assert read_oracle(path, {"rule": "unanimous"}).rule == "unanimous"
    with pytest.raises(BadCatalogue, match="unknown key rul"):
        read_oracle(path, {"rul": "unanimous"})
