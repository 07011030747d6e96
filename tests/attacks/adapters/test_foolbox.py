"""Every attack of Foolbox runs through its adapter, keeps its budget and treats each sample by itself."""

import logging
from dataclasses import replace

import pytest
import torch

from robustbench_inv.attacks.adapters.foolbox import OWN_START, FoolboxAttack
from robustbench_inv.errors import (
    AttackFailed,
    BadParameter,
    CapabilityMismatch,
    MissingExtra,
    UnknownName,
)
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import Output
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.threat.goals import KeepDecision, Target
from robustbench_inv.threat.threat_model import ThreatModel

SHORT = {
    "BoundaryAttack": {"steps": 20},
    "EADAttack": {"steps": 20, "binary_search_steps": 3, "initial_const": 1.0},
    "GaussianBlurAttack": {"steps": 20},
    "GenAttack": {"steps": 5},
    "HopSkipJumpAttack": {"steps": 1, "initial_gradient_eval_steps": 20},
    "L2CarliniWagnerAttack": {"steps": 20, "binary_search_steps": 3, "initial_const": 1.0},
    "L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack": {"repeats": 20},
    "L2ClippingAwareRepeatedAdditiveUniformNoiseAttack": {"repeats": 20},
    "L2RepeatedAdditiveGaussianNoiseAttack": {"repeats": 20},
    "L2RepeatedAdditiveUniformNoiseAttack": {"repeats": 20},
    "LinearSearchBlendedUniformNoiseAttack": {"steps": 20, "directions": 20},
    "LinearSearchContrastReductionAttack": {"steps": 20},
    "LinfRepeatedAdditiveUniformNoiseAttack": {"repeats": 20},
    "NewtonFoolAttack": {"steps": 20},
    "PointwiseAttack": {"l2_binary_search": False},
    "SaltAndPepperNoiseAttack": {"steps": 20},
}
"""Parameters that make an attack quick where its defaults are not."""

COMPILED = {name for name in FoolboxAttack.names() if "BrendelBethge" in name}
"""Attacks that run with numba only."""

BINARY = "BinarizationRefinementAttack"
"""It works on models that round their input to two levels."""

UNSEEING = {"L2ContrastReductionAttack", "LinfAdditiveUniformNoiseAttack"}
"""Attacks that a linear classifier which is undecided at the middle of the box withstands."""


def classes():
    """Return a name for each attack, without aliases."""
    names = {FoolboxAttack(name)._class: name for name in reversed(able())}
    return sorted(names.values())


def able():
    return [name for name in FoolboxAttack.names() if name not in COMPILED]


def short(name):
    takes = "steps" in FoolboxAttack(name)._accepts
    return FoolboxAttack(name, tuple(SHORT.get(name, {"steps": 10} if takes else {}).items()))


def test_all_names_are_listed():
    names = FoolboxAttack.names()
    assert len(names) >= 69  # of Foolbox 3.3.4, aliases included
    assert {"LinfPGD", "PGD", "L2CarliniWagnerAttack", "BoundaryAttack", "SpatialAttack"} <= set(
        names
    )
    assert not {"Attack", "FixedEpsilonAttack"} & set(names)


@pytest.mark.parametrize("name", [name for name in classes() if name != BINARY])
def test_it_runs_inside_its_budget_and_finds_adversarials(name, lab):
    ran = lab.whole(short(name))
    assert ran.allowed
    assert not ran.meter.failures
    assert ran.broken.any() or name in UNSEEING


STOP_TOGETHER = ("L2CarliniWagnerAttack", "EADAttack")
"""Attacks that stop the whole batch when its summed loss stagnates."""


@pytest.mark.parametrize(
    "name", [name for name in classes() if name not in (BINARY, "DatasetAttack", *STOP_TOGETHER)]
)
def test_a_sample_fares_the_same_in_every_batch(name, lab):
    whole = lab.whole(short(name)).images
    for size, count in ((1, 3), (3, 6)):
        parts = lab.in_parts(short(name), size, count=count)
        assert (parts - whole[:count]).abs().max() <= 1e-6


def test_the_dataset_attack_returns_other_images_of_the_batch(lab):
    attack = FoolboxAttack("DatasetAttack")
    ran = lab.run(attack)
    assert ran.broken.any()
    others = {tuple(image.flatten().tolist()) for image in ran.meter.batch.images}
    assert {tuple(image.flatten().tolist()) for image in ran.images} <= others


class Rounding:
    """A linear classifier of the input rounded to 0 and 1."""

    num_classes, bounds, dtype = 4, (0.0, 1.0), torch.float64

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, images):
        return self.inner((images >= 0.5).to(images.dtype))


def test_the_binarization_refinement_needs_a_model_that_rounds(lab):
    model, images, _ = lab.problem()
    rounding = Rounding(model)
    ran = lab.run(FoolboxAttack(BINARY), (rounding, images, rounding(images).decision))
    assert ran.broken.all()
    changed = (ran.images != images).flatten(1)
    assert (~changed).any(1).all()
    with pytest.raises(AttackFailed, match="threshold does not match"):
        lab.run(FoolboxAttack(BINARY))


@pytest.mark.parametrize("name", sorted(COMPILED))
def test_the_brendel_bethge_attacks_run_where_numba_is_installed(name, lab):
    try:
        attack = FoolboxAttack(name, (("steps", 20),))
    except MissingExtra as error:
        assert "pip install numba" in str(error)  # noqa: PT017 - it may or may not be there
        pytest.skip(str(error))
    assert lab.run(attack).broken.all()


@pytest.mark.parametrize(
    ("name", "kind", "norms"),
    [
        ("LinfPGD", "fixed-budget", {"linf"}),
        ("L1PGD", "fixed-budget", {"l1"}),
        ("L2RepeatedAdditiveGaussianNoiseAttack", "fixed-budget", {"l2"}),
        ("L2CarliniWagnerAttack", "minimum-norm", {"l2"}),
        ("EADAttack", "minimum-norm", {"l1"}),
        ("L0FMNAttack", "minimum-norm", {"l0"}),
        ("HopSkipJumpAttack", "minimum-norm", {"l2", "linf"}),
        ("PointwiseAttack", "minimum-norm", {"l0", "l1", "l2", "linf"}),
        ("SpatialAttack", "minimum-norm", {"l0", "l1", "l2", "linf"}),
    ],
)
def test_kind_and_norms_are_foolbox_own(name, kind, norms):
    attack = FoolboxAttack(name)
    assert (attack.kind, attack.norms) == (kind, norms)


def test_hopskipjump_takes_its_norm_from_the_threat_or_a_parameter(lab):
    assert FoolboxAttack("HopSkipJumpAttack", (("constraint", "linf"),)).norms == {"linf"}
    attack = FoolboxAttack("HopSkipJumpAttack", (("initial_gradient_eval_steps", 30), ("steps", 3)))
    runs = {norm: lab.run(attack, threat=lab.threat_for(attack, norm)) for norm in ("l2", "linf")}
    linf = {norm: (ran.images - ran.meter.batch.images).abs().amax() for norm, ran in runs.items()}
    assert linf["linf"] < linf["l2"]


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("LinfPGD", {"stps": 3}, "expected one of rel_stepsize, abs_stepsize, steps, random_start"),
        ("LinfPGD", {"stps": 3}, "did you mean steps?"),
        ("LinfPGD", {"steps": 2.5}, "expected a whole number"),
        ("LinfPGD", {"steps": "many"}, "expected a number"),
        ("LinfPGD", {"random_start": 1}, "expected true or false"),
        ("HopSkipJumpAttack", {"constraint": "l1"}, "expected one of linf, l2"),
        ("BoundaryAttack", {"tensorboard": "runs"}, "see the records"),
        ("DDNAttack", {"epsilon": 0.1}, "did you mean init_epsilon?"),
        ("InversionAttack", {"steps": 3}, "expected none at all"),
        ("PGD", {"steps": -1}, "expected a whole number"),
    ],
)
def test_a_parameter_that_does_not_fit_is_explained_at_once(name, parameters, message):
    with pytest.raises(BadParameter) as caught:
        FoolboxAttack(name, tuple(parameters.items()))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "near"), [("linfpgd", "LinfPGD"), ("L2DeepFool", "L2DeepFoolAttack")]
)
def test_an_unknown_name_suggests_the_closest(name, near):
    with pytest.raises(UnknownName, match=near):
        FoolboxAttack(name)


def test_equal_parameters_make_equal_attacks():
    one = FoolboxAttack("LinfPGD", (("steps", 3), ("rel_stepsize", 0.1)))
    assert one == FoolboxAttack("LinfPGD", (("rel_stepsize", 0.1), ("steps", 3)))
    assert hash(FoolboxAttack("GenAttack", (("reduced_dims", [3, 3]),)))


@pytest.mark.parametrize("name", ["LinfPGD", "L2CarliniWagnerAttack", "GenAttack", "DDNAttack"])
def test_a_targeted_goal_is_aimed_at(name, lab):
    attack = short(name) if name != "GenAttack" else FoolboxAttack(name, (("steps", 20),))
    model, images, labels = lab.problem(16)
    rows = (labels != 2).nonzero()[:, 0]
    threat = lab.threat_for(attack, goal=Target(2), eps={"l2": 2.0, "linf": 0.2})
    ran = lab.run(attack, (model, images, labels), threat, rows)
    assert (model(ran.images).decision == 2).double().mean() >= 0.5


def test_an_attack_that_cannot_aim_says_so(lab):
    attack = FoolboxAttack("VirtualAdversarialAttack")
    with pytest.raises(
        CapabilityMismatch, match="foolbox:VirtualAdversarialAttack has no targeted mode"
    ):
        lab.run(attack, threat=lab.threat_for(attack, goal=Target(2)))


def test_an_invariance_goal_is_refused(lab):
    attack = FoolboxAttack("LinfPGD")
    with pytest.raises(CapabilityMismatch, match="keep-decision"):
        lab.run(attack, threat=lab.threat_for(attack, goal=KeepDecision()))


CONSTANTS = ["DDNAttack", "EADAttack", "L1FMNAttack", "L2CarliniWagnerAttack", "LInfFMNAttack"]
"""Attacks with constants that are meant for inputs between 0 and 1."""


@pytest.mark.parametrize(
    "name", ["LinfPGD", "L2FastGradientAttack", "HopSkipJumpAttack", *CONSTANTS]
)
def test_the_range_of_the_inputs_changes_nothing_but_the_scale(name, lab):
    attack = short(name)
    unit = lab.run(attack)
    wide = lab.problem(bounds=(-1.0, 1.0))
    model = replace(wide[0], weights=unit.meter.classifier.weights / 2)
    model = replace(model, biases=-model.weights.sum(1) * 0)
    threat = lab.threat_for(attack, eps={"l2": 1.2, "linf": 0.2})
    ran = lab.run(attack, (model, *wide[1:]), threat)
    assert ran.allowed
    apart = (ran.images - (2 * unit.images - 1)).abs().amax((1, 2, 3))
    # FMN steps onto the decision boundary, on whose side rounding decides
    assert (apart <= 1e-6).double().mean() >= (0.5 if "FMN" in name else 1)


class Island:
    """Class 1 within 0.05 of one image in every element, class 0 in the whole rest of the box."""

    num_classes, bounds, dtype = 2, (0.0, 1.0), torch.float64
    middle = torch.linspace(0.2, 0.8, 16, dtype=torch.float64).reshape(1, 4, 4)

    def __call__(self, images):
        inside = 0.05 - (images - self.middle).abs().flatten(1).amax(1)
        return Output(torch.stack([-inside, inside], 1))


@pytest.mark.parametrize("name", ["BoundaryAttack", "HopSkipJumpAttack", "PointwiseAttack"])
def test_a_sample_without_a_starting_point_does_not_affect_others(name, lab):
    shifts = torch.tensor([-0.2, 0.0, 0.1, 0.01], dtype=torch.float64).reshape(4, 1, 1, 1)
    images = Island.middle + shifts
    ran = lab.run(short(name), (Island(), images, torch.tensor([0, 1, 0, 1])))
    assert ran.broken.tolist() == [False, True, False, True]
    assert ran.meter.failures == {0: "no_start", 2: "no_start"}
    assert torch.equal(ran.images[[0, 2]], images[[0, 2]])


def test_attacks_that_do_without_a_starting_point_draw_none(lab):
    for name in OWN_START:
        assert int(lab.run(FoolboxAttack(name, (("steps", 3),))).meter.forward_passes[0]) == 4


class Fragile:
    """A linear classifier that raises an error for images close to a given one."""

    num_classes, bounds, dtype = 4, (0.0, 1.0), torch.float64

    def __init__(self, inner, forbidden):
        self.inner, self.forbidden = inner, forbidden

    def __call__(self, images):
        if ((images.detach() - self.forbidden).abs().flatten(1).amax(1) < 0.11).any():
            raise ZeroDivisionError("no luck\nwith this one")
        return self.inner(images)


def test_an_exception_for_one_sample_is_marked_and_the_others_go_on(lab):
    model, images, labels = lab.problem()
    ran = lab.run(FoolboxAttack("LinfPGD"), (Fragile(model, images[2]), images, labels))
    assert ran.meter.failures == {2: "crash"}
    assert model(ran.images).decision.ne(labels).tolist() == [i != 2 for i in range(8)]


def test_an_exception_for_every_sample_is_one_line(lab):
    model, images, labels = lab.problem(1)
    with pytest.raises(AttackFailed) as caught:
        lab.run(FoolboxAttack("LinfPGD"), (Fragile(model, images[0]), images, labels))
    assert str(caught.value) == "foolbox:LinfPGD raised ZeroDivisionError: no luck"


def test_nothing_is_printed_and_no_handler_remains(lab, capsys):
    handlers, state = list(logging.getLogger().handlers), torch.get_rng_state()
    lab.run(short("LinearSearchBlendedUniformNoiseAttack"))
    lab.run(short("L2DeepFoolAttack"))
    assert logging.getLogger().handlers == handlers
    assert torch.equal(state, torch.get_rng_state())
    assert capsys.readouterr() == ("", "")


def test_ddn_draws_noise_for_zero_gradients_alone(lab, monkeypatch):
    attack = FoolboxAttack("DDNAttack", (("steps", 5),))
    usual = lab.run(attack).images
    steps, normal = [], SampleRNG.normal
    monkeypatch.setattr(
        SampleRNG, "normal", lambda *a, **k: steps.append(k.get("step")) or normal(*a, **k)
    )
    assert torch.equal(lab.run(attack).images, usual)
    assert steps == [None], "drawn for the weights of the problem"
    model, images, labels = lab.problem()
    lab.run(attack, (replace(model, weights=0 * model.weights), images, labels))
    assert steps[2:] == [0, 1, 2, 3, 4]


def test_passes_are_counted_on_each_sample(lab):
    ran = lab.run(FoolboxAttack("LinfPGD", (("steps", 10),)))
    assert ran.meter.forward_passes.tolist() == [11] * 8
    assert ran.meter.backward_passes.tolist() == [10] * 8


def test_it_runs_in_single_precision(lab):
    model, images, labels = lab.problem()
    single = replace(model, weights=model.weights.float(), biases=model.biases.float())
    ran = lab.run(
        FoolboxAttack("LinfPGD"), (single, images.float(), labels), ThreatModel(LpBall("linf", 0.1))
    )
    assert ran.images.dtype == torch.float32
    assert ran.allowed
    assert ran.broken.all()
