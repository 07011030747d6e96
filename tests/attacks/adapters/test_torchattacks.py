"""Every attack of torchattacks runs through its adapter, keeps its budget and treats each sample by itself."""

import sys
from dataclasses import replace

import pytest
import torch

from robustbench_inv.attacks.adapters import torchattacks as torchattacks_adapter
from robustbench_inv.attacks.adapters.torchattacks import UNUSABLE, TorchattacksAttack
from robustbench_inv.errors import (
    BadParameter,
    CapabilityMismatch,
    MissingExtra,
    UnknownName,
)
from robustbench_inv.threat.goals import KeepDecision, Target

torchattacks = pytest.importorskip("torchattacks")

SHORT = {
    "CW": {"steps": 20, "lr": 0.05},
    "EADEN": {"max_iterations": 30, "binary_search_steps": 2, "initial_const": 10.0},
    "EADL1": {"max_iterations": 30, "binary_search_steps": 2, "initial_const": 10.0},
    "MultiAttack": {"attacks": "FGSM+PGD"},
    "OnePixel": {"steps": 5},
    "Pixle": {"restarts": 3, "x_dimensions": "1x3", "y_dimensions": "1x3"},
    "SPSA": {"nb_sample": 16, "lr": 0.05, "nb_iter": 3},
    "Square": {"n_queries": 100},
}
"""Parameters that make an attack quick, or strong enough, where its defaults are not."""

UNSEEING = {"VANILA", "GN"}
"""Attacks that look at nothing."""


def short(name):
    return TorchattacksAttack(name, tuple(SHORT.get(name, {}).items()))


def test_every_attack_of_the_library_is_supported_or_its_absence_explained():
    assert set(TorchattacksAttack.names()) | set(UNUSABLE) == set(torchattacks.__all__)


@pytest.mark.parametrize("name", TorchattacksAttack.names())
def test_it_runs_inside_its_budget_and_finds_adversarials(name, lab):
    ran = lab.whole(short(name))
    assert ran.allowed
    assert not ran.meter.failures
    assert ran.broken.any() or name in UNSEEING


BATCHWISE = [
    "APGD",
    "APGDT",
    "AutoAttack",
    "CW",
    "EADEN",
    "EADL1",
    "FAB",
    "MultiAttack",
    "PGDRS",
    "PGDRSL2",
    "Square",
]
"""Attacks in which samples influence each other: they share draws, or stop together."""


@pytest.mark.parametrize("name", sorted({*TorchattacksAttack.names()} - {*BATCHWISE}))
def test_a_sample_fares_the_same_in_every_batch(name, lab):
    whole = lab.whole(short(name)).images
    for size, count in ((1, 3), (3, 6)):
        parts = lab.in_parts(short(name), size, count=count)
        assert (parts - whole[:count]).abs().max() <= 1e-6


@pytest.mark.parametrize("name", ["AutoAttack", "CW", "Square"])
def test_the_library_is_called_once_for_a_batch_with_the_same_result_each_time(
    name, lab, monkeypatch
):
    sizes, call = [], TorchattacksAttack._call

    def counted(self, task, rows):
        sizes.append(len(rows))
        return call(self, task, rows)

    monkeypatch.setattr(TorchattacksAttack, "_call", counted)
    attack = short(name)
    first, second = (lab.run(attack, threat=lab.threat_for(attack)).images for _ in range(2))
    assert torch.equal(first, second)
    assert sizes == [len(first)] * 2


@pytest.mark.parametrize("name", ["APGD", "APGDT", "AutoAttack", "FAB", "Square"])
def test_attacks_of_several_norms_keep_to_the_one_of_the_threat(name, lab):
    attack = short(name)
    assert attack.norms == {"l2", "linf"}
    ran = lab.run(attack, threat=lab.threat_for(attack, "l2"))
    assert ran.allowed
    assert ran.broken.any()


@pytest.mark.parametrize(
    ("name", "kind", "norms"),
    [
        ("PGD", "fixed-budget", {"linf"}),
        ("PGDL2", "fixed-budget", {"l2"}),
        ("AutoAttack", "fixed-budget", {"l2", "linf"}),
        ("FAB", "fixed-budget", {"l2", "linf"}),
        ("CW", "minimum-norm", {"l2"}),
        ("EADL1", "minimum-norm", {"l1"}),
        ("Pixle", "minimum-norm", {"l0"}),
        ("GN", "minimum-norm", {"l0", "l1", "l2", "linf"}),
    ],
)
def test_kind_and_norms(name, kind, norms):
    attack = TorchattacksAttack(name)
    assert (attack.kind, attack.norms) == (kind, norms)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("PGD", {"eps": 0.3}, "use --threat"),
        ("APGD", {"norm": "L2"}, "use --threat"),
        ("APGD", {"seed": 3}, "use --seed"),
        ("PGD", {"stpes": 3}, "expected one of alpha, steps, random_start; did you mean steps?"),
        ("PGD", {"steps": 2.5}, "expected a whole number"),
        ("PGD", {"alpha": "big"}, "expected a number"),
        ("AutoAttack", {"version": "best"}, "Not valid version"),
        ("Pixle", {"x_dimensions": "wide"}, "such as 2x10"),
        ("MultiAttack", {"attacks": "PGD"}, "such as FGSM+PGD"),
        ("MultiAttack", {}, "such as FGSM+PGD"),
    ],
)
def test_a_parameter_that_does_not_fit_is_explained_at_once(name, parameters, message):
    with pytest.raises(BadParameter) as caught:
        TorchattacksAttack(name, tuple(parameters.items()))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_and_real_numbers_are_converted():
    assert TorchattacksAttack("CW", (("c", 0.5), ("lr", 1)))


def test_an_unknown_name_suggests_the_closest():
    with pytest.raises(UnknownName, match="did you mean DeepFool"):
        TorchattacksAttack("deepfol")


def test_an_attack_that_needs_training_data_says_so():
    with pytest.raises(CapabilityMismatch, match="LGV needs more than a model and a batch"):
        TorchattacksAttack("LGV")


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    torchattacks_adapter._classes.cache_clear()
    with pytest.raises(MissingExtra, match=r'pip install "robustbench-inv\[torchattacks\]"'):
        TorchattacksAttack("PGD")


def test_a_step_size_that_is_not_given_follows_eps(lab):
    """The library's 10 steps of 2/255 would end at a distance of 0.08."""
    attack = TorchattacksAttack("PGD", (("random_start", False),))
    ran = lab.run(attack, threat=lab.threat_for(attack, eps={"linf": 0.25}))
    assert (ran.images - ran.meter.batch.images).abs().max() == pytest.approx(0.25)
    given = TorchattacksAttack("PGD", (("alpha", 0.01), ("random_start", False), ("steps", 3)))
    ran = lab.run(given, threat=lab.threat_for(given, eps={"linf": 0.25}))
    assert (ran.images - ran.meter.batch.images).abs().max() == pytest.approx(0.03)


def test_a_targeted_goal_is_aimed_at(lab):
    attack = TorchattacksAttack("PGD")
    model, images, labels = lab.problem(16)
    rows = (labels != 2).nonzero()[:, 0]
    threat = lab.threat_for(attack, goal=Target(2), eps={"linf": 0.2})
    ran = lab.run(attack, (model, images, labels), threat, rows)
    assert (model(ran.images).decision == 2).all()


@pytest.mark.parametrize("name", ["DeepFool", "APGD"])
def test_an_attack_that_cannot_aim_says_so(name, lab):
    attack = TorchattacksAttack(name)
    with pytest.raises(CapabilityMismatch, match="no targeted mode"):
        lab.run(attack, threat=lab.threat_for(attack, goal=Target(2)))


def test_an_invariance_goal_is_refused(lab):
    attack = TorchattacksAttack("PGD")
    with pytest.raises(CapabilityMismatch, match="keep-decision"):
        lab.run(attack, threat=lab.threat_for(attack, goal=KeepDecision()))


@pytest.mark.parametrize("name", ["PGD", "PGDL2", "DeepFool"])
def test_the_range_of_the_inputs_changes_nothing_but_the_scale(name, lab):
    attack = short(name)
    unit = lab.run(attack)
    model, images, labels = lab.problem(bounds=(-1.0, 1.0))
    model = replace(model, weights=unit.meter.classifier.weights / 2)
    threat = lab.threat_for(attack, eps={"l2": 1.2, "linf": 0.2})
    ran = lab.run(attack, (model, images, labels), threat)
    assert ran.allowed
    assert (ran.images - (2 * unit.images - 1)).abs().max() <= 1e-6


def test_attacks_that_smooth_over_three_channels_take_grey_and_coloured_images_alone(lab):
    attack = TorchattacksAttack("TIFGSM")
    assert lab.run(attack, lab.problem(shape=(3, 6, 6))).broken.any()
    with pytest.raises(CapabilityMismatch, match="one or three channels"):
        lab.run(attack, lab.problem(shape=(2, 6, 6)))


def test_jsma_works_for_any_number_of_classes(lab):
    assert lab.run(TorchattacksAttack("JSMA"), lab.problem(classes=2)).broken.any()


def test_the_library_seed_does_not_reach_the_draws(lab):
    """APGD seeds the global generator with 0 in every call."""
    state = torch.get_rng_state()
    images = lab.run(TorchattacksAttack("APGD", (("steps", 1),))).images
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(images[0] - images[1], torch.zeros_like(images[0]))


def test_nothing_is_printed(lab, capsys):
    lab.run(short("AutoAttack"))
    assert capsys.readouterr() == ("", "")
