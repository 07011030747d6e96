"""Schedules against their closed forms, SGD and clipping against a calculation by hand, resumed against uninterrupted."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from robustbench_inv.errors import BadCatalogue
from robustbench_inv.training.loop import TrainingData, TrainingOptions, train
from robustbench_inv.training.objectives import CrossEntropy
from robustbench_inv.training.optimisation import clip_gradient, learning_rate, make_optimiser
from robustbench_inv.training.recipe import Recipe, read_recipe

RECIPE = Recipe("toy", "m:f", "m:O", "toy", 0, 60, 4, 16, 0.5, 3)
STEPS = 5
TIMES = torch.arange(4 * STEPS)


def rates(recipe):
    return torch.tensor([learning_rate(recipe, t, STEPS) for t in TIMES.tolist()]).double()


def test_the_cosine_falls_from_the_rate_to_zero():
    expected = 0.25 * (1 + torch.cos(math.pi * TIMES.double() / (4 * STEPS)))
    torch.testing.assert_close(rates(RECIPE), expected, rtol=1e-7, atol=0)


def test_the_constant_rate_is_constant():
    assert rates(replace(RECIPE, schedule="constant")).tolist() == [0.5] * len(TIMES)


def test_steps_multiply_the_rate_after_each_milestone():
    found = rates(replace(RECIPE, schedule="step", milestones=(1, 3), rate_factor=0.2))
    expected = 0.5 * 0.2 ** ((TIMES >= STEPS).double() + (TIMES >= 3 * STEPS).double())
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_a_warm_up_rises_linearly_to_the_schedule(schedule):
    plain = replace(RECIPE, schedule=schedule)
    found = rates(replace(plain, warm_up=2)) / rates(plain)
    expected = ((TIMES.double() + 1) / (2 * STEPS)).clamp(max=1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def network():
    torch.manual_seed(RECIPE.seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.Linear(12, 3))


def data():
    labels = torch.arange(60) % 3
    images = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return TrainingData(torch.arange(60), images + labels[:, None, None, None] / 3, labels)


@pytest.mark.parametrize("nesterov", [False, True])
def test_two_steps_of_sgd_match_a_manual_calculation(nesterov):
    recipe = replace(RECIPE, optimiser="sgd", momentum=0.75, nesterov=nesterov, weight_decay=0.25)
    line = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        line.weight.fill_(2.0)
    optimiser = make_optimiser(recipe, line)
    weight, speed = 2.0, 0.0
    for gradient in (1.0, -0.5):
        line.weight.grad = torch.full((1, 1), gradient)
        optimiser.step()
        full = gradient + 0.25 * weight
        speed = 0.75 * speed + full
        weight -= 0.5 * (full + 0.75 * speed if nesterov else speed)
        assert line.weight.item() == pytest.approx(weight)


def test_weight_decay_by_name_takes_the_first_pattern_that_matches():
    recipe = replace(RECIPE, weight_decay=0.5, weight_decays={"2.*": 0.0, "*.bias": 0.125})
    model, besides = network(), nn.Parameter(torch.zeros(1))
    groups = make_optimiser(recipe, model, [besides]).param_groups
    found = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    named = {name: found[id(p)] for name, p in model.named_parameters()}
    assert named == {
        "1.weight": 0.5,
        "1.bias": 0.125,
        "2.weight": 0.0,
        "2.bias": 0.0,
        "3.weight": 0.5,
        "3.bias": 0.125,
    }
    assert found[id(besides)] == 0.5


def test_a_pattern_without_a_parameter_is_an_error():
    with pytest.raises(BadCatalogue, match=r"matches no parameter, got '\*\.scale'"):
        make_optimiser(replace(RECIPE, weight_decays={"*.scale": 0.0}), network())


def test_clipping_scales_the_whole_gradient_of_all_parameters():
    model = nn.Linear(2, 1)
    optimiser = make_optimiser(RECIPE, model)
    for largest, expected in ((0.0, 5.0), (10.0, 5.0), (1.0, 1.0)):
        model.weight.grad, model.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
        clip_gradient(optimiser, largest)
        norm = torch.cat([model.weight.grad.flatten(), model.bias.grad]).norm()
        assert norm.item() == pytest.approx(expected, abs=1e-5)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "constant"},
        {"schedule": "step", "milestones": (2, 3), "optimiser": "sgd"},
        {"optimiser": "sgd", "momentum": 0.9, "nesterov": True, "warm_up": 2},
        {"weight_decays": {"*.bias": 0.0}, "weight_decay": 0.1, "clip_norm": 0.2},
    ],
    ids=["constant", "sgd", "nesterov", "decays"],
)
def test_resumed_weights_equal_uninterrupted_ones(tmp_path, changes):
    recipe = replace(RECIPE, learning_rate=0.05, **changes)
    whole = train(recipe, network(), CrossEntropy(), data(), tmp_path / "whole").state_dict()

    def stop(epoch):
        if epoch.epoch in (1, 3):
            raise Interrupted

    for _ in range(2):
        with pytest.raises(Interrupted):
            train(
                recipe,
                network(),
                CrossEntropy(),
                data(),
                tmp_path / "parts",
                options=TrainingOptions(report=stop),
            )
    parts = train(recipe, network(), CrossEntropy(), data(), tmp_path / "parts").state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    plain = train(
        replace(RECIPE, learning_rate=0.05), network(), CrossEntropy(), data(), tmp_path / "plain"
    )
    assert not torch.equal(whole["1.weight"], plain.state_dict()["1.weight"])


CHANGES = [
    {"schedule": "constant"},
    {"schedule": "step", "milestones": (2,)},
    {"rate_factor": 0.5},
    {"warm_up": 1},
    {"optimiser": "sgd"},
    {"momentum": 0.9},
    {"nesterov": True},
    {"weight_decays": {"*.bias": 0.0}},
    {"clip_norm": 1.0},
]


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: next(iter(changes)))
def test_each_key_changes_the_digest(changes):
    assert replace(RECIPE, **changes).digest != RECIPE.digest


def test_defaults_of_later_keys_do_not_change_the_digest():
    frozen = "9cb1e2484f4e"
    assert RECIPE.digest.startswith(frozen)


def test_another_seed_is_another_model():
    assert RECIPE.with_seed(3) is RECIPE
    other = RECIPE.with_seed(5)
    assert (other.name, other.seed) == ("toy-seed5", 5)
    assert other.digest != RECIPE.digest


GOOD = """model = "m:f"
objective = "m:O"
dataset = "d"
first = 0
last = 10
epochs = 9
batch_size = 5
learning_rate = 1e-3
seed = 0
"""


def test_a_recipe_with_all_schedule_keys_is_read(tmp_path):
    path = tmp_path / "toy" / "recipe.toml"
    path.parent.mkdir()
    path.write_text(
        GOOD
        + """schedule = "step"
milestones = [3, 6]
rate_factor = 0.2
warm_up = 1
optimiser = "sgd"
momentum = 0.9
nesterov = true
clip_norm = 5.0
[weight_decays]
"*.bias" = 0.0
"""
    )
    recipe = read_recipe(path)
    assert (recipe.schedule, recipe.milestones, recipe.rate_factor) == ("step", (3, 6), 0.2)
    assert (recipe.optimiser, recipe.momentum, recipe.nesterov) == ("sgd", 0.9, True)
    assert (recipe.warm_up, recipe.clip_norm) == (1, 5.0)
    assert recipe.weight_decays == {"*.bias": 0.0}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('schedule = "linear"', "cosine, constant, step"),
        ('schedule = "step"', "milestones with step alone"),
        ("milestones = [3]", "milestones with step alone"),
        ('schedule = "step"\nmilestones = [3, 3]', "increasing"),
        ('schedule = "step"\nmilestones = [9]', "inside the training"),
        ('schedule = "step"\nmilestones = [3.5]', "milestones does not fit"),
        ("rate_factor = 1.0", "rate_factor in"),
        ("warm_up = 10", "warm_up in"),
        ("momentum = 0.9", 'optimiser = "sgd"'),
        ('optimiser = "sgd"\nmomentum = 1.0', "0 <= momentum < 1"),
        ('optimiser = "sgd"\nnesterov = true', "> 0 with nesterov"),
        ("clip_norm = -1.0", "clip_norm >= 0"),
        ('weight_decays = { "*.bias" = -0.1 }', "numbers >= 0"),
        ('weight_decays = { "*.bias" = "none" }', "numbers >= 0"),
    ],
)
def test_an_invalid_value_raises_a_one_line_error(tmp_path, line, message):
    path = tmp_path / "recipe.toml"
    path.write_text(GOOD + line + "\n")
    with pytest.raises(BadCatalogue, match=message) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)
