"""The customary budgets of data sets, which suites and attacks without a named threat use."""

import pytest
import torch

from robustbench_inv.attacks.apgd import APGD
from robustbench_inv.attacks.invariance.ball import InvarianceBall
from robustbench_inv.attacks.pgd import PGD
from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.catalogue.threats import load_threat, replace_budget, resolve_customary
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.errors import BadData, BadParameter, CapabilityMismatch


def array(name="mine", bounds=(0.0, 1.0), budgets=()):
    return ArrayDataset(torch.zeros(2, 1, 4, 4), [0, 1], name, bounds, budgets=budgets)


@pytest.mark.parametrize(
    ("text", "data", "expected"),
    [
        ("customary", "mnist5k", "mnist-linf"),
        ("customary:norm=l2", "mnist5k", "mnist-l2"),
        ("customary:norm=l0,sweep=false", "mnist5k", "l0=25.0"),
        ("customary:norm=linf,sweep=false", "mnist-planted", "linf=0.3"),
        ("customary:goal=misclassify", "mnist5k", "mnist-linf:goal=misclassify"),
        ("customary:norm=l2:substitute=a:b=c", "mnist5k", "mnist-l2:substitute=a:b=c"),
        ("customary", "spheres", "spheres-l2"),
        ("customary", "spheres:d=7,n=2", "spheres-l2"),
        ("linf=0.1", "mnist5k", "linf=0.1"),
        ("none:goal=misclassify", "mnist5k", "none:goal=misclassify"),
    ],
)
def test_the_budget_is_that_of_the_data_set(text, data, expected):
    attack = InvarianceBall() if "l0" in text else PGD()
    assert resolve_customary(text, "pgd", attack, load_dataset(data)) == expected


def test_a_data_set_of_ones_own_may_declare_its_budgets():
    data = array(budgets=["l1=2,4", "l2=0.5", "linf=4/255"])
    assert resolve_customary("customary", "pgd", PGD(), data) == "linf=4/255"
    assert resolve_customary("customary:norm=l1,sweep=false", "apgd", APGD(), data) == "l1=4.0"
    assert array(budgets="l2=1").budgets == ("l2=1",)


@pytest.mark.parametrize(
    ("data", "text", "says"),
    [
        (
            array(),
            "customary",
            "mine has no customary linf or l2 budget for pgd.*--threat linf=EPS",
        ),
        (array("mnist"), "customary", "mnist has no customary"),
        (array("mnist-like"), "customary", "mnist-like has no customary"),
        (array(bounds=(0.0, 255.0)), "customary", r"input units of \[0, 255\]"),
        (array(budgets=["none"]), "customary", "got 'budgets none'"),
        (array(budgets=["linf=1"]), "customary:norm=l2", "no customary l2 budget.*--threat l2=EPS"),
        ("spheres:r1=1,r2=10", "customary", "no customary linf or l2 budget"),
        (
            "spheres",
            "customary:norm=linf",
            "no customary linf budget for pgd, got 'budgets spheres-l2'",
        ),
    ],
)
def test_an_unknown_budget_is_refused_with_what_to_type(data, text, says):
    with pytest.raises(CapabilityMismatch, match=says):
        resolve_customary(text, "pgd", PGD(), load_dataset(data))


@pytest.mark.parametrize("budgets", [None, 0.1, {"linf": 0.1}, [0.1], [None]])
def test_budgets_that_are_no_texts_are_refused(budgets):
    with pytest.raises(BadData, match=r"mine has invalid budgets.*expected texts"):
        resolve_customary("customary", "pgd", PGD(), array(budgets=budgets))


@pytest.mark.parametrize(
    "text", ["customary:eps=0.1", "customary:sweep=3", "customary:norm=l2,largest=true"]
)
def test_wrong_parameters_are_refused(text):
    with pytest.raises(BadParameter, match="expected customary:norm=NORM,sweep=false"):
        resolve_customary(text, "pgd", PGD(), load_dataset("mnist5k"))


def test_without_a_data_set_the_word_is_refused():
    with pytest.raises(BadParameter, match="customary is the budget of the evaluated data set"):
        load_threat("customary:goal=misclassify")


@pytest.mark.parametrize(
    ("usual", "asked", "expected"),
    [
        ("customary", "linf=0.1", "linf=0.1"),
        ("customary:goal=misclassify", "linf=0.1", "linf=0.1:goal=misclassify"),
        ("none:goal=misclassify", "l2=1:goal=accept", "l2=1:goal=accept"),
        (
            "l2=1:goal=misclassify:oracle=o",
            "l2=2:guide=a:b=c",
            "l2=2:goal=misclassify:oracle=o:guide=a:b=c",
        ),
        ("l2=1:substitute=a", "l2=2", "l2=2:substitute=a"),
        ("l2=1:substitute=a", "l2=2:guide=b", "l2=2:guide=b"),
        ("mnist-l2", load_threat("l2=1"), load_threat("l2=1")),
    ],
)
def test_a_requested_budget_keeps_the_rest_of_a_suites_threat(usual, asked, expected):
    assert replace_budget(usual, asked) == expected


def test_a_norm_alone_names_what_to_type():
    with pytest.raises(BadParameter, match="l2=EPS; type none:norm=l2"):
        load_threat("l2")


def test_a_misspelt_suffix_is_named():
    with pytest.raises(
        BadParameter, match=r"unknown parameter gaol of a threat.*did you mean goal"
    ):
        load_threat("linf=0.1:gaol=target")
