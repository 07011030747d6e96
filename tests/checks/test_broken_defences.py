"""``rbi.audit`` on ten broken or masked defences, and on honest networks."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import robustbench_inv as rbi
from robustbench_inv.catalogue.locate import shipped_root
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.errors import RangeMismatch
from robustbench_inv.experiments.calibration import CalibrationData, calibrate
from robustbench_inv.models.reject_option import reject
from robustbench_inv.testing.toys import (
    adding_noise,
    batch_dependent,
    confident,
    detached,
    probabilities,
    quantised,
    rejecting_all,
)

HONEST = ("mnist-cnn", pytest.param("mnist-cnn-at", marks=pytest.mark.slow))


class LeakingLabels(nn.Module):
    """Predicts the class of a sample from its position: the samples of an evaluation are often sorted by class."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        place = torch.arange(len(images)) * 10 // max(len(images), 1)
        return self.network(images) + 50.0 * nn.functional.one_hot(place, 10)


def saturated_softmax(toy):
    return probabilities(confident(toy, 100.0))


def stochastic(toy):
    return adding_noise(toy, 0.3)


def normalising_in_train_mode(toy):
    return replace(toy, module=nn.Sequential(nn.BatchNorm2d(1, affine=False), toy.module))


def leaking(toy):
    return replace(toy, module=LeakingLabels(toy.module).eval())


def distilled(toy):
    return confident(toy, 100.0)


BROKEN = {
    "zero gradient": (detached, "C6", "Gradients are zero"),
    "quantised": (quantised, "C6", "Gradients are zero"),
    "saturated softmax": (saturated_softmax, "C7", "Gradients vanish in float32"),
    "stochastic without saying so": (stochastic, "C11", "not a function of the input alone"),
    "train mode": (normalising_in_train_mode, "C11", "not a function of the input alone"),
    "batch-dependent": (batch_dependent, "C11", "not a function of the input alone"),
    "label leak": (leaking, "C11", "not a function of the input alone"),
    "always-reject": (rejecting_all, "C25", "rejects 100% of the clean inputs"),
    "distilled": (distilled, "C8", "the scale of the logits hides gradients"),
}
"""How each defence is made of an honest network, and the first reason of the audit; wrong bounds have their own test."""


@pytest.fixture
def audit(digits, tmp_path):
    """Return a function that audits a model on a few digits."""
    few = {"threat": "linf=0.3", "samples": 10, "minutes": 60, "out": tmp_path / "run"}
    return lambda model, dataset=digits, **settings: rbi.audit(
        model, dataset=dataset, **{**few, **settings}
    )


@pytest.fixture(scope="session")
def without_oracle(digits):
    """The same digits as arrays, on which the audit skips the costly invariance attacks."""
    return ArrayDataset(*digits.batch(range(0, 5000, 5)), "thousand digits")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_defence_is_not_to_be_published(name, honest, audit, without_oracle):
    spoil, check, words = BROKEN[name]
    (found,) = audit(spoil(honest), without_oracle).conclusions
    assert found.verdict == "do not publish"
    assert (found.reasons[0].check, words.lower() in found.text.lower()) == (check, True), found
    assert found.command.startswith("invbench ")


def test_wrong_bounds_are_refused(honest, audit):
    with pytest.raises(RangeMismatch, match="range of their inputs"):
        audit(replace(honest, bounds=(0.0, 255.0)))


def test_inputs_of_another_range_are_not_to_be_published(honest, audit, without_oracle):
    """The bounds are those of the data, but the network was trained on another range."""
    (found,) = audit(
        replace(honest, module=Rescaled(honest.module).eval()), without_oracle
    ).conclusions
    assert found.verdict == "do not publish"
    assert found.reasons[0].check in ("C39", "C41")


class Rescaled(nn.Module):
    """Divides its inputs by 255 although they lie in [0, 1]."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images / 255)


def test_the_honest_network_is_publishable_without_a_warning(honest, audit, without_oracle):
    run = audit(honest, without_oracle)
    (found,) = run.conclusions
    assert (found.verdict, found.reasons, found.command) == ("publishable", (), "")
    assert "standard" in found.numbers[0]
    assert any("audited" in note for note in run.notes) is False


def test_a_calibrated_reject_option_is_no_reservation(
    honest, digits, audit, without_oracle, tmp_path
):
    known = ArrayDataset(*digits.batch([i for i in range(5000) if i % 5 == 1]), "other digits")
    fitted = calibrate(load_model(honest), CalibrationData(known, 0, len(known)))
    (tmp_path / "thresholds").write_bytes(fitted.to_bytes())
    cautious = load_model(honest, reject="margin", thresholds=str(tmp_path / "thresholds"))
    (found,) = audit(cautious, without_oracle).conclusions
    assert not found.reasons, [(r.check, r.text, r.evidence) for r in found.reasons]
    assert found.verdict == "publishable"
    assert any("not aware of the detector" in number for number in found.numbers)


def test_thresholds_of_unknown_origin_are_a_reservation(honest, audit, without_oracle):
    (found,) = audit(reject(honest, "margin", torch.full((10,), 1.0)), without_oracle).conclusions
    assert found.verdict == "publishable with reservations"
    assert [reason.check for reason in found.reasons] == ["C24"]


@pytest.mark.parametrize("model", HONEST)
def test_trained_networks_have_no_reservation_but_the_errors_of_the_panel(model, audit):
    if not (shipped_root() / "models" / model / "weights.safetensors").exists():
        pytest.skip(f"{model} has no weights here")
    (found,) = audit(model, threat="linf=0.2", samples=16).conclusions
    checks = {reason.check for reason in found.reasons}
    assert checks == {"C34"}, [(r.check, r.text, r.evidence) for r in found.reasons]
    assert "all failures" in found.reasons[0].evidence  # the panel may take noise for a change
    assert "corrected 0.0 to" in " ".join(found.numbers)
