"""Mutual-information bounds against Gaussians, and the SDIM objective: closed forms, critic, resumed training."""

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
    donsker_varadhan,
    info_nce,
    jensen_shannon,
    likelihood_margin,
)
from robustbench_inv.training.loop import TrainingOptions, train
from robustbench_inv.training.objectives import (
    StatefulObjective,
    TrainableObjective,
    TrainingBatch,
    TrainingData,
)
from robustbench_inv.training.recipe import Recipe

COUNT = 20_000


CORRELATIONS = (0.1, 0.3, 0.5, 0.7)


def information(correlation):
    return -math.log(1 - correlation**2) / 2


def log_ratio(x, y, correlation):
    """log p(x, y) / p(x) p(y): the critic for which DV and infoNCE are tight."""
    rest = 1 - correlation**2
    quadratic = correlation**2 * (x**2 + y**2) - 2 * correlation * x * y
    return -quadratic / (2 * rest) - math.log(rest) / 2


def values(correlation, negatives, critic=None, seed=0):
    """Critic on joint pairs (n,) and on shuffled pairs (k, n); the best one by default."""
    generator = torch.Generator().manual_seed(seed)
    x, e = torch.randn(2, COUNT, generator=generator, dtype=torch.float64)
    y = correlation * x + math.sqrt(1 - correlation**2) * e
    judge = critic or (lambda a, b: log_ratio(a, b, correlation))
    return judge(x, y), torch.stack([judge(x.roll(-i), y) for i in range(1, negatives + 1)])


@pytest.mark.parametrize("correlation", CORRELATIONS)
def test_donsker_varadhan_is_tight_for_the_log_ratio(correlation):
    bound = donsker_varadhan(*values(correlation, 3))
    assert bound == pytest.approx(information(correlation), abs=0.02)


@pytest.mark.parametrize("name", ["donsker-varadhan", "infonce"])
@pytest.mark.parametrize("critic", [torch.mul, lambda x, y: -((x - y) ** 2), lambda x, y: x + y])
def test_no_critic_exceeds_the_information(name, critic):
    for correlation in CORRELATIONS:
        bound = MI_BOUNDS[name](*values(correlation, 3, critic))
        assert bound <= information(correlation) + 0.02


@pytest.mark.parametrize("negatives", [1, 7])
def test_infonce_is_at_most_the_logarithm_of_the_number_of_pairs(
    negatives,
):
    joint, product = (
        torch.full((50,), 1e3, dtype=torch.float64),
        torch.zeros(negatives, 50, dtype=torch.float64),
    )
    assert info_nce(joint, product) == pytest.approx(math.log(negatives + 1))
    assert info_nce(*values(0.9999, negatives)) <= math.log(negatives + 1)


def test_infonce_tightens_with_the_number_of_pairs():
    few, many = (info_nce(*values(0.9, k)) for k in (1, 63))
    assert few < many <= information(0.9) + 0.02


def test_jensen_shannon_grows_with_the_information_between_0_and_2_log_2():
    bounds = [jensen_shannon(*values(c, 3)).item() for c in (0.0, *CORRELATIONS, 0.99)]
    assert bounds == sorted(bounds)
    assert bounds[0] == pytest.approx(0, abs=1e-12)
    assert bounds[-1] < 2 * math.log(2)
    sure = jensen_shannon(torch.full((5,), 1e3), torch.full((1, 5), -1e3))
    assert sure == pytest.approx(2 * math.log(2))


def test_jensen_shannon_is_twice_the_divergence_for_the_log_ratio():
    joint, product = values(0.7, 3)
    # JSD = ½ E_J log 2/(1 + 1/r) + ½ E_M log 2/(1 + r), r the ratio of densities
    half = (math.log(2) - torch.log1p(torch.exp(-joint))).mean()
    other = (math.log(2) - torch.log1p(torch.exp(product))).mean()
    assert jensen_shannon(joint, product) == pytest.approx((half + other).item())


@pytest.mark.parametrize("name", sorted(MI_BOUNDS))
def test_positions_are_bounded_separately(name):
    generator = torch.Generator().manual_seed(2)
    joint, product = (
        torch.randn(6, 4, generator=generator),
        torch.randn(2, 6, 4, generator=generator),
    )
    both = MI_BOUNDS[name](joint, product)
    assert both.shape == (4,)
    for i in range(4):
        torch.testing.assert_close(both[i], MI_BOUNDS[name](joint[:, i], product[:, :, i]))


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
    objective.begin(network(), DATA)
    return objective


def test_the_margin_loss_is_0_exactly_when_every_margin_is_large_enough():
    kept = torch.tensor([[10.0, 0.0, -3.0], [0.0, 0.0, 10.5]])
    labels = torch.tensor([0, 2])
    assert likelihood_margin(kept, labels, 10.0) == 0
    assert likelihood_margin(kept, labels, 10.0 + 1e-3) > 0


def test_the_margin_loss_is_the_mean_squared_deficit():
    likelihoods = torch.tensor([[0.0, -4.0, -9.0], [5.0, 1.0, 2.0]])
    missing = (6.0**2 + 1.0**2) + (14.0**2 + 11.0**2)  # K − (ℓ_y − ℓ_c), of true classes 0 and 1
    assert likelihood_margin(likelihoods, torch.tensor([0, 1]), 10.0) == pytest.approx(missing / 4)


def test_the_likelihood_term_is_the_closed_form_in_nats_for_each_dimension():
    model = network().eval()
    with torch.no_grad():
        model.conditionals.paced.fill_(math.log(2.0) / LOG_SIGMA_RATE)
    loss, scores = begun(alpha=0.0, gamma=0.0)(model, TrainingBatch(IMAGES, LABELS, NOISE))
    code = model.encoder(IMAGES)[1]
    squares = ((code - model.conditionals.mean[LABELS]) ** 2).mean() / 8
    torch.testing.assert_close(loss, squares + math.log(2.0) + math.log(2 * math.pi) / 2)
    torch.testing.assert_close(scores * 4, model(IMAGES))


@pytest.mark.parametrize("bound", sorted(MI_BOUNDS))
def test_the_loss_is_the_weighted_sum_of_its_terms(bound):
    model, weights = network().eval(), (("alpha", 2.0), ("beta", 3.0), ("gamma", 0.5))
    off = {"alpha": 0.0, "beta": 0.0, "gamma": 0.0}
    alone = [
        w * begun(bound=bound, **{**off, k: 1.0})(model, TrainingBatch(IMAGES, LABELS, NOISE))[0]
        for k, w in weights
    ]
    whole = begun(bound=bound, **dict(weights))(model, TrainingBatch(IMAGES, LABELS, NOISE))[0]
    torch.testing.assert_close(whole, sum(alone))


def test_the_critic_is_1x1_convolutions_on_concatenated_features():
    critic, local, code = LocalCritic(5, 3, hidden=8), torch.randn(4, 5, 2, 2), torch.randn(4, 3)
    first = nn.Conv2d(8, 8, 1)
    with torch.no_grad():
        first.weight.copy_(torch.cat([critic.local.weight, critic.code.weight], 1)[..., None, None])
        first.bias.copy_(critic.local.bias)
    codes = code[:, :, None, None].expand(-1, -1, 2, 2)

    def naive(features):
        hidden = first(torch.cat([features, codes], 1)).permute(0, 2, 3, 1).flatten(1, 2)
        return critic.head(hidden)[..., 0]

    joint, product = critic(local, code, 2)
    torch.testing.assert_close(joint, naive(local))
    for step in (1, 2):
        torch.testing.assert_close(product[step - 1], naive(local.roll(-step, 0)))


def test_the_critic_learns_to_match_features_and_codes():
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


def test_the_critic_is_not_part_of_the_model():
    objective = begun()
    assert isinstance(objective, StatefulObjective)
    assert isinstance(objective, TrainableObjective)
    shapes = {tuple(p.shape) for p in objective.parameters()}
    assert (256, 256) in shapes
    assert all(name.startswith(("encoder", "conditionals")) for name in network().state_dict())


def test_invalid_objectives_and_models_raise():
    with pytest.raises(BadParameter, match="unknown bound"):
        SupervisedInfoMax(bound="kl-ish")
    with pytest.raises(BadParameter, match="unusable negatives"):
        SupervisedInfoMax(negatives=0)
    with pytest.raises(BadModel, match="class conditionals"):
        SupervisedInfoMax().begin(nn.Linear(2, 2), DATA)
