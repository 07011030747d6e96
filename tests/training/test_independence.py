"""Independence cross-entropy removes class information from the nuisance variables."""

from functools import partial

import pytest
import torch
from torch import nn

from robustbench_inv.errors import BadModel, BadParameter
from robustbench_inv.models.firevnet import FiRevNet
from robustbench_inv.models.layers.bijection import Chain
from robustbench_inv.models.layers.coupling import Additive, Coupling
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.training.independence import IndependenceCrossEntropy
from robustbench_inv.training.loop import TrainingOptions, train
from robustbench_inv.training.nuisance_probe import (
    ProbeConfig,
    probe_nuisance,
)
from robustbench_inv.training.objectives import TrainingBatch, TrainingData
from robustbench_inv.training.recipe import Recipe

PROBING = ProbeConfig(
    hidden=(16,), epochs=6, batch_size=50, learning_rate=1e-2, precision=torch.float32
)


def told_twice(count=320):
    """Three elements: the class as ±1, noise, and the class again in noise."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(count) % 2
    points = torch.randn(count, 3, generator=generator) * 0.3
    points[:, 0] = 2.0 * labels - 1
    points[:, 2] += points[:, 0]
    return TrainingData(torch.arange(count), points, labels)


def objective(**parameters):
    chosen = {"hidden": 16, "inner_steps": 2, "adversaries": 1, "learning_rate": 1e-2}
    return IndependenceCrossEntropy(**{**chosen, **parameters})


def recipe(epochs):
    return Recipe("toy", "m:f", "m:O", "toy", 0, 320, epochs, 32, 3e-2, 0)


def network():
    """The first element, times a weight each, is added to the second, which is a logit, and to the third."""
    weights = nn.Linear(1, 2, bias=False)
    nn.init.zeros_(weights.weight)
    return FiRevNet(Chain(Coupling(weights, Additive())), (3,), 2)


def train_on(folder, **parameters):
    data = told_twice()
    model = train(recipe(15), network(), objective(likelihood=0.0, **parameters), data, folder)
    assert (model(data.images).argmax(1) == data.labels).all()
    return model, probe_nuisance(model, data, data, PROBING).errors / 320


def test_cross_entropy_alone_keeps_class_information_in_the_nuisances(tmp_path):
    _, error = train_on(tmp_path, nuisance=0.0)
    assert error <= 0.02


@pytest.mark.parametrize("form", ["uniform", "published"])
def test_training_removes_class_information_from_the_nuisances(tmp_path, form):
    model, error = train_on(tmp_path, nuisance=1.0, form=form)
    assert error >= 0.3
    weight = model.flow.steps[0].network.weight[1].item()
    assert weight == pytest.approx(
        -1, abs=0.2
    )  # this weight removes the class from the third element


def test_the_settings_of_the_published_code_remove_class_information_too(tmp_path):
    published = {"form": "published", "prior": "learned", "optimiser": "adamax"}
    _, error = train_on(tmp_path, nuisance=1.0, dropout=0.1, per_input=True, **published)
    assert error >= 0.1  # cross-entropy: at most 0.02


def test_a_learned_prior_approaches_mean_and_deviation_of_the_nuisances(tmp_path):
    goal, data = objective(nuisance=0.0, likelihood=1.0, prior="learned"), told_twice()
    model = train(recipe(40), network(), goal, data, tmp_path)
    nuisance = model.split(model.encode(data.images))[1]
    mean, log_deviation = (p.detach() for p in goal.parameters())
    torch.testing.assert_close(mean, nuisance.mean(0), rtol=0, atol=0.1)
    torch.testing.assert_close(log_deviation.exp(), nuisance.std(0), rtol=0.1, atol=0)


@pytest.mark.parametrize("prior", ["running", "learned"])
def test_the_likelihood_is_that_of_the_gaussian_prior(prior):
    model, data = network().eval(), told_twice(32)
    goal = objective(nuisance=0.0, likelihood=1.0, prior=prior)
    goal.begin(model, data)
    learners = goal._learners
    mean, deviation = (learners.standardise.mean, learners.standardise.deviation)
    if prior == "learned":
        with torch.no_grad():
            goal._learners.prior.mean.fill_(0.3)
            goal._learners.prior.log_deviation.fill_(-0.7)
        mean, deviation = torch.tensor(0.3), torch.tensor(-0.7).exp()
    nuisance, log_det = torch.randn(5, 1), torch.randn(5)
    truth = torch.distributions.Normal(mean, deviation).log_prob(nuisance)[:, 0] + log_det
    found = learners.negative_log_likelihood(nuisance, log_det)
    torch.testing.assert_close(found, -truth.mean())


def test_dividing_by_the_inputs_scales_the_step_of_the_nuisance_classifier_alone():
    gradients = []
    for per_input in (False, True):
        goal = objective(per_input=per_input, nuisance=1.0)
        goal.begin(network(), told_twice())
        goal._learners.divisor *= 1 if not per_input else 774
        goal._learners.step(
            torch.randn(8, 1, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
        )
        gradients.append(
            torch.cat([p.grad.flatten() for p in goal._learners.networks.parameters()])
        )
    torch.testing.assert_close(gradients[0], 774 * gradients[1])


def test_a_resumed_training_restores_the_nuisance_classifiers(tmp_path):
    data = told_twice()
    make = partial(objective, prior="learned", dropout=0.5, optimiser="adamax")
    whole = train(recipe(3), network(), make(), data, tmp_path / "whole").state_dict()

    def stop(epoch):
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            recipe(3),
            network(),
            make(),
            data,
            tmp_path / "parts",
            options=TrainingOptions(report=stop),
        )
    parts = train(recipe(3), network(), make(), data, tmp_path / "parts").state_dict()
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name


def test_the_loss_without_weights_is_cross_entropy():
    model = network().eval()
    data = told_twice(32)
    goal = objective(nuisance=2.0, likelihood=0.5, adversaries=2)
    goal.begin(model, data)
    rng = SampleRNG(0, data.ids, "train/0")
    loss, logits = goal(model, TrainingBatch(data.images, data.labels, rng))
    assert torch.equal(logits, model(data.images))
    goal_without = objective(nuisance=0.0, likelihood=0.0)
    goal_without.begin(model, data)
    plain, _ = goal_without(model, TrainingBatch(data.images, data.labels, rng))
    assert plain.item() == pytest.approx(nn.functional.cross_entropy(logits, data.labels).item())
    assert loss.item() != plain.item()


def test_invalid_parameters_and_models_raise():
    with pytest.raises(BadParameter, match="unknown form"):
        objective(form="saturating")
    with pytest.raises(BadParameter, match="inner_steps"):
        objective(inner_steps=0)
    with pytest.raises(BadModel, match="needs nuisances"):
        objective().begin(nn.Linear(2, 2), told_twice())
