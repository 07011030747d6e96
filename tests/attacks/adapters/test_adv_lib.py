"""Every Lp attack of adversarial-library runs through its adapter, keeps its budget and treats each sample by itself."""

import sys

import pytest

from robustbench_inv.attacks.adapters import adv_lib as adapter
from robustbench_inv.attacks.adapters.adv_lib import MINIMISED, UNUSABLE, AdvLibAttack
from robustbench_inv.errors import BadParameter, CapabilityMismatch, MissingExtra, UnknownName
from robustbench_inv.threat.goals import Target

NAMES = sorted(MINIMISED)
SHORT = {
    "alma": {"num_steps": 60},
    "apgd": {"n_iter": 20},
    "apgd_targeted": {"n_iter": 20},
    "carlini_wagner_l2": {"max_iterations": 30, "binary_search_steps": 3, "initial_const": 1.0},
    "carlini_wagner_linf": {"max_iterations": 20, "initial_const": 1.0, "const_factor": 4.0},
    "ddn": {"steps": 30},
    "fab": {"n_iter": 10},
    "fmn": {"steps": 30},
    "pdgd": {"num_steps": 60},
    "pdpgd": {"num_steps": 60},
    "pgd_linf": {"steps": 10},
    "sigma_zero": {"num_steps": 60},
    "str_attack": {"max_iterations": 10, "binary_search_steps": 2},
}
"""Parameters that make an attack quick."""


@pytest.fixture
def library():
    """Skip the test where the library cannot be imported."""
    try:
        return adapter._functions()
    except MissingExtra as error:
        pytest.skip(str(error))


def short(name):
    return AdvLibAttack(name, tuple(SHORT.get(name, {}).items()))


def test_every_attack_of_the_library_is_supported_or_its_absence_explained(library):
    import adv_lib.attacks as attacks

    here = {name for name, each in vars(attacks).items() if callable(each)}
    assert here == {*NAMES, *UNUSABLE}
    assert set(library) == set(NAMES) == set(AdvLibAttack.names())


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "str_attack")) for n in NAMES]
)
def test_it_runs_inside_its_budget_and_finds_adversarials(name, lab):
    ran = lab.whole(short(name))
    assert ran.allowed
    assert not ran.meter.failures
    assert ran.broken.any()


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("name", ["ddn", "fmn", "pgd_linf", "df"])
def test_a_sample_fares_the_same_in_every_batch(name, lab):
    whole = lab.whole(short(name)).images
    parts = lab.in_parts(short(name), 3, count=6)
    assert (parts - whole[:6]).abs().max() <= 1e-5


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
def test_the_result_is_that_of_the_library_in_the_norm_of_the_threat(norm, lab, library):
    model, images, labels = lab.problem()
    attack = short("fmn")
    mine = lab.run(attack, (model, images, labels), lab.threat_for(attack, norm)).images
    order = {"l1": 1, "l2": 2, "linf": float("inf")}[norm]
    theirs = library["fmn"](
        lambda x: model(x.double()).logits.float(), images.float(), labels, order, steps=30
    )
    assert (mine - theirs).abs().max() <= 1e-6


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("name", "kind", "norms"),
    [
        ("pgd_linf", "fixed-budget", {"linf"}),
        ("apgd", "fixed-budget", {"l1", "l2", "linf"}),
        ("fmn", "minimum-norm", {"l0", "l1", "l2", "linf"}),
        ("tr", "minimum-norm", {"l2", "linf"}),
        ("alma", "minimum-norm", {"l1", "l2"}),
    ],
)
def test_kind_and_norms(name, kind, norms):
    assert (AdvLibAttack(name).kind, AdvLibAttack(name).norms) == (kind, norms)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("apgd", {"eps": 0.3}, "use --threat"),
        ("pgd_linf", {"ε": 0.3}, "use --threat"),
        ("fmn", {"norm": 2.0}, "use --threat"),
        ("ddn", {"targeted": True}, "use --threat with a goal"),
        ("ddn", {"stpes": 3}, "did you mean steps?"),
        ("ddn", {"steps": 2.5}, "expected a whole number"),
    ],
)
def test_a_parameter_that_does_not_fit_is_explained_at_once(name, parameters, message):
    with pytest.raises(BadParameter) as caught:
        AdvLibAttack(name, tuple(parameters.items()))
    assert message in str(caught.value)


@pytest.mark.usefixtures("library")
def test_unknown_and_unusable_names_are_explained():
    with pytest.raises(UnknownName, match="did you mean ddn"):
        AdvLibAttack("ddnn")
    with pytest.raises(CapabilityMismatch, match="distance of colours"):
        AdvLibAttack("perc_al")


@pytest.mark.usefixtures("library")
def test_a_target_class_is_refused_by_attacks_that_would_return_the_input(lab):
    attack = short("df")
    threat = lab.threat_for(attack)
    with pytest.raises(CapabilityMismatch, match="no targeted mode"):
        attack.check_requirements(None, type(threat)(threat.budget, Target(1)), None)


def test_without_the_library_the_error_names_the_extra(monkeypatch):
    adapter._functions.cache_clear()
    monkeypatch.setitem(sys.modules, "adv_lib", None)
    monkeypatch.setitem(sys.modules, "adv_lib.attacks", None)
    with pytest.raises(MissingExtra, match=r"robustbench-inv\[adv-lib\]"):
        AdvLibAttack("ddn")
    adapter._functions.cache_clear()
