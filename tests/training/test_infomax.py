"""The objective of SDIM: its three terms against closed forms, its critic, and a training that is resumed."""

import math

import pytest
import torch
from torch import nn

from robustbench_inv.errors import BadModel, BadParameter
from robustbench_inv.models.sdim import LOG_SIGMA_RATE, SDIM
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.training.infomax import (
    MI_BOUNDS,
    LocalCritic,
    SupervisedInfoMax,
    likelihood_margin,
)
from robustbench_inv.training.loop import TrainingOptions, train
from robustbench_inv.training.objectives import StatefulObjective, TrainableObjective, TrainingData
from robustbench_inv.training.recipe import Recipe

IDS = torch.arange(6)
NOISE = SampleRNG(0, IDS, "train/0")
LABELS = torch.arange(6) % 3
IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
DATA = TrainingData(IDS, IMAGES, LABELS)
RECIPE = Recipe("toy", "m:f", "m:O", "toy", 0, 6, 2, 3, 1e-2, 0)


def network():
    torch.manual_seed(0)
    return SDIM(num_classes=3, dimensions=4)


def begun(**fields):
    objective = SupervisedInfoMax(**fields)
    objective.begin(network(), DATA, fresh=True)
    return objective


def test_the_margin_loss_is_0_exactly_when_every_margin_is_kept():
    kept = torch.tensor([[10.0, 0.0, -3.0], [0.0, 0.0, 10.5]])
    labels = torch.tensor([0, 2])
    assert likelihood_margin(kept, labels, 10.0) == 0
    assert likelihood_margin(kept, labels, 10.0 + 1e-3) > 0


def test_the_margin_loss_is_the_mean_square_of_what_is_missing():
    likelihoods = torch.tensor([[0.0, -4.0, -9.0], [5.0, 1.0, 2.0]])
    missing = (6.0**2 + 1.0**2) + (14.0**2 + 11.0**2)  # K − (ℓ_y − ℓ_c), of true classes 0 and 1
    assert likelihood_margin(likelihoods, torch.tensor([0, 1]), 10.0) == pytest.approx(missing / 4)


def test_the_likelihood_term_is_the_closed_form_in_nats_for_each_dimension():
    model = network().eval()
    with torch.no_grad():
        model.conditionals.paced.fill_(math.log(2.0) / LOG_SIGMA_RATE)
    loss, scores = begun(alpha=0.0, gamma=0.0)(model, IMAGES, LABELS, NOISE)
    code = model.encoder(IMAGES)[1]
    squares = ((code - model.conditionals.mean[LABELS]) ** 2).mean() / 8
    torch.testing.assert_close(loss, squares + math.log(2.0) + math.log(2 * math.pi) / 2)
    torch.testing.assert_close(scores * 4, model(IMAGES))


@pytest.mark.parametrize("bound", sorted(MI_BOUNDS))
def test_the_loss_is_the_weighted_sum_of_its_terms(bound):
    model, weights = network().eval(), (("alpha", 2.0), ("beta", 3.0), ("gamma", 0.5))
    off = {"alpha": 0.0, "beta": 0.0, "gamma": 0.0}
    alone = [
        w * begun(bound=bound, **{**off, k: 1.0})(model, IMAGES, LABELS, NOISE)[0]
        for k, w in weights
    ]
    whole = begun(bound=bound, **dict(weights))(model, IMAGES, LABELS, NOISE)[0]
    torch.testing.assert_close(whole, sum(alone))


def test_the_critic_is_1x1_convolutions_on_what_is_concatenated():
    critic, local, code = LocalCritic(5, 3, hidden=8), torch.randn(4, 5, 2, 2), torch.randn(4, 3)
    first = nn.Conv2d(8, 8, 1)
    with torch.no_grad():
        first.weight.copy_(torch.cat([critic.local.weight, critic.code.weight], 1)[..., None, None])
        first.bias.copy_(critic.local.bias)
    told = code[:, :, None, None].expand(-1, -1, 2, 2)

    def naive(features):
        hidden = first(torch.cat([features, told], 1)).permute(0, 2, 3, 1).flatten(1, 2)
        return critic.head(hidden)[..., 0]

    joint, product = critic(local, code, 2)
    torch.testing.assert_close(joint, naive(local))
    for step in (1, 2):
        torch.testing.assert_close(product[step - 1], naive(local.roll(-step, 0)))


def test_the_critic_learns_which_features_belong_to_which_code():
    torch.manual_seed(0)
    critic, code = LocalCritic(3, 3, hidden=32), torch.randn(64, 3)
    local = code[:, :, None, None].expand(-1, -1, 2, 2)
    optimiser = torch.optim.Adam(critic.parameters(), 1e-2)
    bounds = []
    for _ in range(60):
        bounds.append(MI_BOUNDS["js"](*critic(local, code, 1)).mean())
        optimiser.zero_grad()
        (-bounds[-1]).backward()
        optimiser.step()
    assert bounds[0] < 0.1
    assert 0.7 < bounds[-1] < 2 * math.log(2)


def test_a_resumed_training_has_the_same_critic_and_network(tmp_path):
    def run(folder, epochs_before_a_stop):
        objective, model = SupervisedInfoMax(), network()

        def stop(epoch):
            if epoch.epoch == epochs_before_a_stop:
                raise KeyboardInterrupt

        train(RECIPE, model, objective, DATA, folder, options=TrainingOptions(report=stop))
        return model.state_dict() | {f"critic/{k}": v for k, v in objective.state().items()}

    whole = run(tmp_path / "whole", None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", 1)
    parts = run(tmp_path / "parts", None)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    before = begun().state()
    assert all(not torch.equal(v, whole[f"critic/{k}"]) for k, v in before.items())


def test_the_critic_is_no_part_of_the_model():
    objective = begun()
    assert isinstance(objective, StatefulObjective)
    assert isinstance(objective, TrainableObjective)
    shapes = {tuple(p.shape) for p in objective.parameters()}
    assert (256, 256) in shapes
    assert all(name.startswith(("encoder", "conditionals")) for name in network().state_dict())


def test_what_cannot_be_minimised_is_refused():
    with pytest.raises(BadParameter, match="unknown bound"):
        SupervisedInfoMax(bound="kl-ish")
    with pytest.raises(BadParameter, match="unusable negatives"):
        SupervisedInfoMax(negatives=0)
    with pytest.raises(BadModel, match="class conditionals"):
        SupervisedInfoMax().begin(nn.Linear(2, 2), DATA, fresh=True)
