"""Augmented Lagrangian descent: closer examples, never further ones, and samples without an example left alone."""

import torch

from robustbench_inv.attacks.augmented_lagrangian import descend_lagrangian
from robustbench_inv.attacks.best_so_far import ClosestAdversarial
from robustbench_inv.attacks.minimum_norm import MinimumNorm
from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import norm
from robustbench_inv.testing.analytic_problems import linear_problem
from robustbench_inv.threat.budgets import Unbounded
from robustbench_inv.threat.threat_model import ThreatModel


def test_it_ends_closer_and_leaves_unbroken_samples_alone():
    model, images, labels = linear_problem(6, 4, shape=(1, 4, 4))
    batch, threat = Batch(images, labels, torch.arange(6)), ThreatModel(Unbounded("l2"))
    meter = CountingModel(model, batch, threat, SampleRNG(0, batch.ids))
    closest = ClosestAdversarial(batch, threat, meter)
    far = (model(1 - images).decision != labels).nonzero()[:3, 0]
    assert len(far) == 3
    closest.update((1 - images)[far], model((1 - images)[far]), far)
    descend_lagrangian(meter, closest, 300)
    assert torch.equal(closest.found.nonzero()[:, 0], far)
    assert (meter.backward_passes == 600 * closest.found).all()
    ratio = closest.distances[far] / model.distance(images, labels, "l2")[far]
    assert 1 - 1e-9 <= ratio.min() <= ratio.max() <= 1.6


def test_it_never_lengthens_the_result_of_the_search(lab):
    model, images, labels = lab.problem(6)
    threat = ThreatModel(Unbounded("l2"))
    short, long = (
        lab.run(MinimumNorm(8, refinements=0, lagrangian_steps=n), (model, images, labels), threat)
        for n in (0, 60)
    )
    assert (
        norm(long.images - images, "l2") <= norm(short.images - images, "l2") * (1 + 1e-9)
    ).all()
