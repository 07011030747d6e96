"""Metameric sampling on a rotation, whose metamers are known in closed form, and on a small fiRevNet."""

from dataclasses import replace

import pytest
import torch

from robustbench_inv.attacks.invariance.donors import choose_donors
from robustbench_inv.attacks.invariance.metamer import Metamer
from robustbench_inv.attacks.protocol import Batch, InputPool
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.errors import BadParameter, CapabilityMismatch
from robustbench_inv.models.firevnet import convolutional
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.testing.analytic_problems import linear_problem, rotation_classifier
from robustbench_inv.testing.harness import check_model
from robustbench_inv.threat.budgets import Unbounded
from robustbench_inv.threat.goals import KeepDecision
from robustbench_inv.threat.threat_model import ThreatModel

WIDE = (-20.0, 20.0)
"""Bounds that contain all metamers of the rotation, so that clipping changes nothing."""

N = 24


def rotation(bounds=(0.0, 1.0), **options):
    return replace(rotation_classifier(**options), bounds=bounds)


def batch_for(model, n=N):
    shape = (1, 6, 6)
    images = SampleRNG(0, torch.arange(n), "test").uniform(shape, dtype=model.dtype)
    labels, ids = model(images).decision, torch.arange(n)
    return Batch(
        images, labels, ids, pool=InputPool(ids, lambda rows: (images[rows], labels[rows]))
    )


def run(attack, model, batch=None):
    """Return the results and the logged values."""
    batch = batch or batch_for(model)
    threat, rng = ThreatModel(Unbounded(), KeepDecision()), SampleRNG(0, batch.ids)
    meter = CountingModel(model, batch, threat, rng, keep_best=False)
    return attack.run(meter, batch, threat, rng), meter


def test_the_rotation_is_a_classifier_with_an_inverse():
    model = rotation()
    images = batch_for(model).images
    check_model(model, images)
    assert torch.allclose(model.decode(model.encode(images)), images, atol=1e-12)
    assert torch.equal(model.join(*model.split(model.encode(images))), model.encode(images))


@pytest.mark.parametrize("donor", ["other-class", "random", "nearest"])
@pytest.mark.parametrize("mix", [1.0, 0.25])
def test_a_metamer_has_the_logits_of_its_source_and_the_nuisances_of_its_donor(donor, mix):
    model = rotation(WIDE)
    batch = batch_for(model)
    adversarial, meter = run(Metamer(donor, mix, finish="clip"), model, batch)
    semantic, nuisance = model.split(model.encode(batch.images))
    code = model.split(model.encode(adversarial))
    foreign = nuisance[meter.logged["donor"]]
    assert torch.allclose(code[0], semantic, atol=1e-12)
    assert torch.allclose(code[1], (1 - mix) * nuisance + mix * foreign, atol=1e-12)


def test_logged_values():
    model = rotation()
    batch = batch_for(model)
    adversarial, meter = run(Metamer(), model, batch)
    measured = meter.logged
    stages = ("raw", "clipped", "rounded")
    wanted = {f"{s}_{what}" for s in stages for what in ("same_prediction", "logit_distance")}
    assert measured.keys() == wanted | {
        "donor",
        "donor_label",
        "reconstruction_error",
        "reencoding_error",
    }
    assert torch.equal(measured["donor_label"], batch.labels[measured["donor"]])
    assert measured["reconstruction_error"].max() < 1e-12
    assert measured["reencoding_error"].max() < 1e-12
    assert measured["raw_logit_distance"].max() < 1e-12
    assert measured["raw_same_prediction"].all()
    moved = (model(adversarial).logits - model(batch.images).logits).abs().amax(1)
    assert torch.allclose(measured["rounded_logit_distance"], moved)
    kept = model(adversarial).decision == model(batch.images).decision
    assert torch.equal(measured["rounded_same_prediction"].bool(), kept)
    assert not kept.all()  # clipping moves these metamers' logits
    assert set(meter.forward_passes.tolist()) == {4}


def test_metamers_are_clipped_and_rounded_to_grey_levels():
    model = rotation()
    clipped, rounded = (run(Metamer(finish=finish), model)[0] for finish in ("clip", "round"))
    wide = run(Metamer(finish="clip"), replace(rotation(), bounds=(-0.5, 1.5)))[0]
    assert (wide < 0).any()
    assert clipped.min() == 0
    assert clipped.max() == 1
    levels = rounded * 255
    assert torch.allclose(levels, levels.round(), atol=1e-9)
    assert (rounded - clipped).abs().max() <= 0.5 / 255 + 1e-12
    assert not torch.equal(rounded, clipped)


def test_a_sample_has_the_same_metamer_in_every_batch():
    model = rotation()
    batch = batch_for(model)
    whole = run(Metamer(), model, batch)[0]
    for rows in (torch.tensor([5]), torch.tensor([20, 3, 11])):
        assert torch.allclose(run(Metamer(), model, batch[rows])[0], whole[rows], atol=1e-12)


def donors(rule, n=N, classes=3):
    _, images, labels = linear_problem(n, classes)
    ids = torch.arange(100, 100 + n)
    pool = InputPool(ids, lambda rows: (images[rows - 100], labels[rows - 100]))
    batch = Batch(images, labels, ids, pool=pool)
    return batch, [choose_donors(batch, rule, SampleRNG(seed, ids)) for seed in range(200)]


@pytest.mark.parametrize("rule", ["other-class", "random"])
def test_drawn_donors_are_uniform_over_those_allowed(rule):
    batch, drawn = donors(rule)
    chosen = torch.stack([which for which, _ in drawn])
    assert all(found.all() for _, found in drawn)
    counts = torch.zeros(N, N).scatter_add_(1, chosen.T, torch.ones(N, 200))
    allowed = ~torch.eye(N, dtype=torch.bool)
    if rule == "other-class":
        allowed &= batch.labels != batch.labels[:, None]
    assert not counts[~allowed].any()
    expected = 200 / allowed.sum(1, keepdim=True) * allowed
    chi_square = ((counts - expected) ** 2 / expected.clamp_min(1e-9) * allowed).sum()
    freedom = float(allowed.sum() - N)
    assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5


def test_the_nearest_donor_is_the_nearest_of_another_class():
    batch, drawn = donors("nearest")
    chosen = drawn[0][0]
    far = (batch.images[:, None] - batch.images).flatten(2).norm(dim=2)
    far[batch.labels == batch.labels[:, None]] = float("inf")
    assert torch.equal(chosen, far.argmin(1))


def test_without_a_donor_there_is_no_metamer():
    model = rotation()
    batch = batch_for(model)
    same = batch.labels == batch.labels[0]
    images, labels, ids = batch.images[same], batch.labels[same], batch.ids[same]
    lone = replace(batch, pool=InputPool(ids, lambda _: (images, labels)))
    adversarial, meter = run(Metamer(), model, lone)
    assert set(meter.failures.values()) == {"no_start"}
    assert sorted(meter.failures) == same.nonzero()[:, 0].tolist()
    assert torch.equal(adversarial[same], batch.images[same])
    assert not torch.equal(adversarial[~same], batch.images[~same])
    assert set(meter.logged["donor"][same].tolist()) == {-1}
    with pytest.raises(CapabilityMismatch, match="a batch with a pool"):
        run(Metamer(), model, replace(batch, pool=None))


def test_an_inexact_inverse_is_measured():
    model = rotation(WIDE, inverse_error=0.01)
    measured = run(Metamer(), model)[1].logged
    error = (0.01 * model.rotation.sum(1)[: model.num_classes]).abs().max()
    assert torch.allclose(measured["reencoding_error"], error.expand(N))
    assert torch.allclose(
        measured["reconstruction_error"], torch.full((N,), 0.01, dtype=torch.float64)
    )


def test_a_small_firevnet_in_float32():
    torch.manual_seed(0)
    network = convolutional((1, 8, 8), 3, stages=2, blocks=2, width=8).eval()
    model = load_model(network).classifier
    images = SampleRNG(0, torch.arange(12), "test").uniform((1, 8, 8))
    labels, ids = torch.arange(12) % 3, torch.arange(12)
    pool = InputPool(ids, lambda rows: (images[rows], labels[rows]))
    adversarial, meter = run(Metamer(), model, Batch(images, labels, ids, pool=pool))
    assert meter.logged["reencoding_error"].max() < 1e-3
    assert meter.logged["reconstruction_error"].max() < 1e-3
    assert meter.logged["raw_same_prediction"].all()
    assert adversarial.dtype == torch.float32
    assert not adversarial.requires_grad


def test_a_model_without_an_inverse_is_refused():
    model = linear_problem()[0]
    with pytest.raises(CapabilityMismatch, match=r"invertible model .* got 'LinearClassifier'"):
        Metamer().check_requirements(model, ThreatModel(Unbounded()), None)


@pytest.mark.parametrize(
    "wrong", [{"donor": "friend"}, {"mix": 0.0}, {"mix": 1.5}, {"finish": "raw"}]
)
def test_wrong_parameters_are_refused(wrong):
    with pytest.raises(BadParameter, match=f"{next(iter(wrong.values()))}"):
        Metamer(**wrong)


def test_projections_find_metamers_inside_the_bounds():
    model = rotation()
    clipped = {}
    for count in (0, 200):
        adversarial, meter = run(Metamer(projections=count, finish="clip"), model)
        clipped[count] = meter.logged["clipped_logit_distance"]
        assert meter.logged["reencoding_error"].max() < 1e-12  # each is a metamer still
        assert torch.equal(adversarial, adversarial.clamp(0, 1))
    assert clipped[0].median() > 0.01
    assert clipped[200].median() < 1e-3
    with pytest.raises(BadParameter, match="unusable projections"):
        Metamer(projections=-1)
