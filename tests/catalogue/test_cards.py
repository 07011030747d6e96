"""Cards: every shipped card is valid, and each kind of mistake is reported with file and key."""

import re

import pytest

from robustbench_inv.catalogue.attacks import load_attack
from robustbench_inv.catalogue.cards import (
    read_attack,
    read_model,
    read_suite,
    read_threat,
    to_json,
)
from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.catalogue.locate import entries
from robustbench_inv.catalogue.references import import_object
from robustbench_inv.catalogue.threats import load_threat, resolve_customary
from robustbench_inv.errors import BadCatalogue
from robustbench_inv.identity import digest_file

ATTACK = """
summary = "small steps"
implementation = "robustbench_inv.attacks.pgd:PGD"
kind = "fixed-budget"
norms = ["linf"]
"""
MODEL = """
summary = "a network"
dataset = "mnist"
implementation = "robustbench_inv.models.plain_networks:GuessFirstCNN"
num_classes = 10
bounds = [0, 1]
"""


@pytest.mark.parametrize("name", entries("attacks"))
def test_every_shipped_attack_can_be_made_and_is_as_its_card_says(name):
    card, loaded = read_attack(entries("attacks")[name]), load_attack(name)
    assert loaded.attack.kind == card.kind
    assert set(card.norms) <= loaded.attack.norms
    assert card.summary
    assert card.goal in ("", loaded.goal.name)


@pytest.mark.parametrize("name", entries("models"))
def test_every_shipped_model_names_code_and_its_weights(name):
    path = entries("models")[name]
    card = read_model(path)
    assert callable(import_object(card.implementation))
    weights = path.parent / "weights.safetensors"
    assert weights.exists() == (card.weights_sha256 is not None)
    if card.weights_sha256:
        assert digest_file(weights) == card.weights_sha256


@pytest.mark.parametrize("name", entries("suites"))
def test_every_shipped_suite_names_attacks_and_threats_that_fit(name):
    for run in read_suite(entries("suites")[name]).runs:
        loaded = load_attack(run.attack)
        text = resolve_customary(run.threat, run.attack, loaded.attack, load_dataset("mnist5k"))
        threat = load_threat(text, loaded.goal)
        assert threat.norm in loaded.attack.norms
        assert threat.bounded or loaded.attack.kind != "fixed-budget"


@pytest.mark.parametrize("name", entries("suites"))
def test_no_shipped_suite_names_the_budget_of_one_data_set(name):
    budgets = {run.threat.partition(":")[0] for run in read_suite(entries("suites")[name]).runs}
    assert budgets <= {"customary", "none"}


@pytest.mark.parametrize("name", entries("threats"))
def test_every_shipped_threat_is_what_its_card_says(name):
    card = read_threat(entries("threats")[name])
    threat = load_threat(name)
    assert threat.norm == card.norm
    assert threat.bounded == bool(card.epsilons)
    assert not card.epsilons or threat.budget.eps == card.epsilons[-1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("kind", "knid"), "unknown key knid.*did you mean kind"),
        (('summary = "small steps"', ""), "key summary is missing"),
        (
            ('"fixed-budget"', '"fixed-bugdet"'),
            "kind does not fit, got 'fixed-bugdet'.*did you mean fixed-budget",
        ),
        (('["linf"]', '"linf"'), "norms does not fit, got 'linf', expected a list"),
        (('["linf"]', '["l3"]'), "norms does not fit, got 'l3'"),
        (('"small steps"', "7"), "summary does not fit, got 7, expected a string"),
        (("robustbench_inv.attacks.pgd:PGD", "pgd"), "implementation does not fit"),
        (
            ('kind = "fixed-budget"', 'kind = "fixed-budget"\ngoal = "misclasify"'),
            "did you mean misclassify",
        ),
        (('kind = "fixed-budget"', 'kind = "fixed-budget"\nparameters = 3'), "expected a table"),
        (('kind = "fixed-budget"', 'kind = "fixed-budget"\nname = "x"'), "unknown key name"),
        (('= "fixed-budget"', "= fixed-budget"), "cannot be read"),
    ],
)
def test_a_mistake_in_a_preset_is_named_with_its_file(tmp_path, change, says):
    path = tmp_path / "mine.toml"
    path.write_text(ATTACK.replace(*change))
    with pytest.raises(BadCatalogue, match=re.compile(rf"mine\.toml.*{says}", re.DOTALL)):
        read_attack(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("[0, 1]", "[1, 0]"), "bounds do not fit"),
        (("[0, 1]", "[0, 1, 2]"), "expected a list of 2"),
        (("= 10", "= 10.5"), "num_classes does not fit, got 10.5, expected a whole number"),
        (("= 10", "= true"), "num_classes does not fit, got True"),
    ],
)
def test_a_mistake_in_a_model_card_is_named(tmp_path, change, says):
    path = tmp_path / "my-model" / "card.toml"
    path.parent.mkdir()
    path.write_text(MODEL.replace(*change))
    with pytest.raises(BadCatalogue, match=says):
        read_model(path)


def test_a_card_is_read_with_its_types(tmp_path):
    path = tmp_path / "my-model" / "card.toml"
    path.parent.mkdir()
    path.write_text(MODEL + "shape = [1, 28, 28]\n")
    card = read_model(path)
    assert (card.name, card.bounds, card.shape) == ("my-model", (0.0, 1.0), (1, 28, 28))
    assert card.weights_sha256 is None
    assert "folder" not in to_json(card)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('summary = "s"', "needs runs"),
        ('summary = "s"\nruns = [{attack = "pgd"}]', "key threat is missing"),
        ('summary = "s"\nruns = [{attack = "pgd", threat = "none", eps = 1}]', "unknown key eps"),
        ('summary = "s"\nruns = [3]', "not a table"),
    ],
)
def test_a_mistake_in_a_suite_is_named(tmp_path, text, says):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(BadCatalogue, match=says):
        read_suite(path)


def test_a_card_that_nests_too_deeply_is_one_line(tmp_path):
    path = tmp_path / "deep.toml"
    path.write_text("a = " + "[" * 100_000)
    with pytest.raises(BadCatalogue, match="nests too deeply") as caught:
        read_attack(path)
    assert "\n" not in str(caught.value)
