"""CountingModel counts every pass of each sample, averages draws, and keeps the closest success."""

import weakref

import pytest
import torch

from robustbench_inv.attacks.protocol import Batch, Queries
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.models.protocol import classify, query_model
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import Output, margin
from robustbench_inv.threat.budgets import LpBall, Unbounded, inside_box
from robustbench_inv.threat.threat_model import ThreatModel


class Threshold:
    """Class 1 when the first element exceeds 0.5."""

    num_classes, bounds, dtype = 2, (0.0, 1.0), torch.float64

    def __call__(self, images):
        beyond = images.flatten(1)[:, 0] - 0.5
        return Output(torch.stack([-beyond, beyond], 1))


class Shaken(Threshold):
    """The same under a latent shift."""

    latent_shape, draws, fixed_noise = (1,), 3, False

    def respond(self, images, latent):
        beyond = (images.flatten(1)[:, 0] - 0.5 + latent[..., 0]).mean(0)
        return Output(torch.stack([-beyond, beyond], 1))


def batch(n=4):
    images = torch.full((n, 1, 2, 2), 0.3, dtype=torch.float64)
    return Batch(images, torch.zeros(n, dtype=torch.int64), torch.arange(10, 10 + n))


def meter(model=None, budget=None, n=4, seed=0):
    samples = batch(n)
    threat = ThreatModel(budget or Unbounded("linf"))
    return CountingModel(model or Threshold(), samples, threat, SampleRNG(seed, samples.ids))


def loss(output, labels):
    return margin(output.logits, labels)


def test_it_implements_queries():
    assert isinstance(meter(), Queries)


def test_several_images_of_one_sample_are_counted_and_the_closest_success_is_kept():
    m = meter()
    images = m.batch.images[[2, 2, 2]].clone()
    images[:, 0, 0, 0] = torch.tensor([0.9, 0.6, 0.7])
    rows = torch.tensor([2, 2, 2])
    m(images, rows)
    m.gradient(images, loss, rows)
    assert m.forward_passes.tolist() == [0, 0, 6, 0]
    assert m.backward_passes.tolist() == [0, 0, 3, 0]
    assert m.found.tolist() == [False, False, True, False]
    assert m.best[2, 0, 0, 0] == pytest.approx(0.6)


def test_passes_are_counted_on_the_rows_they_are_made_for():
    m = meter()
    m(m.batch.images)
    m(m.batch.images[[1, 3]], torch.tensor([1, 3]))
    m.gradient(m.batch.images[[3]], loss, torch.tensor([3]))
    assert m.forward_passes.tolist() == [1, 2, 1, 3]
    assert m.backward_passes.tolist() == [0, 0, 0, 1]


def test_passes_of_unknown_rows_are_spread_and_rounded_up():
    m = meter()
    m(m.batch.images[:1])
    assert m.forward_passes.tolist() == [1, 1, 1, 1]
    for _ in range(5):
        m(m.batch.images[:2])
    assert m.forward_passes.tolist() == [3, 3, 3, 3]  # 0.25 + 5 × 0.5 = 2.75


def test_gradient_is_the_gradient_of_each_samples_own_loss():
    m = meter()
    output, slope = m.gradient(m.batch.images, loss)
    assert slope.flatten(1)[:, 0].tolist() == [2.0] * 4  # margin = 2 (x₀ − 0.5)
    assert slope.flatten(1)[:, 1:].abs().max() == 0
    assert not output.logits.requires_grad


@pytest.mark.parametrize("repeats", [1, 3])
def test_backward_passes_through_a_graph_are_counted(repeats):
    m = meter()
    images = m.batch.images.clone().requires_grad_(True)
    total = m.differentiable(images).logits[:, 1].sum()
    for _ in range(repeats):
        total.backward(retain_graph=True)
    assert m.backward_passes.tolist() == [repeats] * 4
    assert m.forward_passes.tolist() == [1] * 4


def test_images_of_a_graph_are_freed_with_it():
    m = meter()
    images = m.batch.images.clone().requires_grad_(True)
    moved = images * 1
    m.differentiable(moved).logits[:, 1].sum().backward()
    alive = weakref.ref(moved)
    del moved
    assert alive() is None
    assert m.backward_passes.tolist() == [1] * 4


def test_zero_gradient_needs_every_gradient_to_be_zero():
    m = meter()
    assert m.zero_gradient.tolist() == [False] * 4
    m.gradient(m.batch.images, lambda output, _: output.logits[:, 0] * 0)
    assert m.zero_gradient.tolist() == [True] * 4
    m.gradient(m.batch.images[:2], loss, torch.tensor([0, 1]))
    assert m.zero_gradient.tolist() == [False, False, True, True]


@pytest.mark.parametrize("leaf", [False, True])
def test_a_loss_without_graph_gives_zeros_not_an_exception(leaf):
    m = meter()
    cut = lambda output, _: output.logits.detach().sum(1).requires_grad_(leaf)  # noqa: E731
    _, slope = m.gradient(m.batch.images, cut)
    assert slope.abs().max() == 0
    assert m.zero_gradient.all()


def test_the_closest_allowed_success_is_kept():
    m = meter(budget=LpBall("linf", 0.4))
    shown = [0.9, 0.65, 0.6, 0.45]  # too far; success; nearer success; no success
    for value in shown:
        m(torch.full_like(m.batch.images, value))
    assert m.found.all()
    assert m.best.unique().tolist() == [0.6]


def test_a_success_outside_the_box_is_not_kept():
    m = meter()
    m(torch.full_like(m.batch.images, 1.5))
    assert not m.found.any()
    assert torch.equal(m.best, m.batch.images)


def test_inside_box_refuses_what_is_not_finite():
    images = torch.tensor([[0.0, 1.0], [0.0, float("nan")], [0.0, float("inf")], [-1e-9, 0.5]])
    assert inside_box(images, (0.0, 1.0)).tolist() == [True, False, False, False]


def test_a_samples_draws_do_not_depend_on_the_batch_or_on_the_others_queries():
    alone, together = meter(Shaken(), n=1), meter(Shaken(), n=4)
    together(together.batch.images[1:], torch.tensor([1, 2, 3]))
    first = alone(alone.batch.images).logits[0]
    assert torch.equal(together(together.batch.images).logits[0], first)
    assert not torch.equal(alone(alone.batch.images).logits[0], first)


def test_fixed_noise_is_the_same_in_search_and_verdict_and_fresh_noise_is_not():
    model = Shaken()
    samples = batch()
    rng = SampleRNG(0, samples.ids)
    assert not torch.equal(
        query_model(model, samples.images, rng, 0).logits,
        classify(model, samples.images, rng).logits,
    )
    model.fixed_noise = True
    assert torch.equal(
        query_model(model, samples.images, rng, 5).logits,
        classify(model, samples.images, rng).logits,
    )


def test_failures_are_reported():
    m = meter()
    m.report_failure(torch.tensor([2]), "no_start")
    assert m.failures == {2: "no_start"}


class Undefined(Threshold):
    """No number when the first element exceeds 0.5."""

    def __call__(self, images):
        first = images.flatten(1)[:, 0]
        return Output(torch.stack([first, first.where(first <= 0.5, torch.nan)], 1))


def test_a_query_without_an_output_is_noticed_until_the_end():
    images = torch.full((3, 4), 0.25, dtype=torch.float64)
    batch = Batch(images, torch.zeros(3, dtype=torch.long), torch.arange(3))
    threat = ThreatModel(LpBall("linf", 0.5))
    meter = CountingModel(Undefined(), batch, threat, SampleRNG(0, batch.ids))
    meter(images)
    assert not meter.undefined.any()
    meter(images[:1] + 0.4, torch.tensor([1]))
    meter(images)
    assert meter.undefined.tolist() == [False, True, False]
