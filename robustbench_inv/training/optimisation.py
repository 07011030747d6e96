"""Learning-rate schedules and optimisers of a recipe, with weight decay by parameter name and gradient clipping."""

import math
from bisect import bisect_right
from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from robustbench_inv.errors import BadCatalogue
from robustbench_inv.training.recipe import Recipe

__all__ = ["clip_gradient", "cosine", "epoch_order", "learning_rate", "make_optimiser"]


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate η of one update.

    Let η₀ be the recipe's rate, t the number of previous updates and e = t / steps the number of epochs. Then η is
    η₀ (1 + cos(π e / epochs)) / 2 for ``cosine``, η₀ for ``constant``, and η₀ · rate_factorᵐ for ``step`` with m
    milestones ≤ e. A warm-up multiplies η by min(1, (t + 1) / (warm_up · steps)).

    Args:
        recipe: contains the schedule.
        step: t, number of previous updates, >= 0.
        steps: updates per epoch, >= 1.

    Example:
        >>> plain = dict(model="", objective="", dataset="", first=0, last=1, epochs=10, batch_size=1, seed=0)
        >>> recipe = Recipe("toy", learning_rate=0.5, schedule="step", milestones=(5,), **plain)
        >>> [learning_rate(recipe, step, 100) for step in (0, 499, 500)]
        [0.5, 0.5, 0.05]
    """
    rate = _scheduled(recipe, step, steps)
    warm_up = recipe.warm_up * steps
    return rate * (step + 1) / warm_up if step + 1 < warm_up else rate


def make_optimiser(
    recipe: Recipe, model: nn.Module, additional: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Return the recipe's optimiser of a network's parameters.

    Args:
        recipe: contains the optimiser and the weight decay of each parameter.
        model: the network.
        additional: parameters of the objective, with the weight decay ``weight_decay``.

    Raises:
        BadCatalogue: for a pattern of ``weight_decays`` that matches no parameter of the network.
    """
    groups = [
        {"params": parameters, "weight_decay": decay}
        for decay, parameters in _by_decay(recipe, model, additional).items()
    ]
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(
            groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=recipe.nesterov
        )
    if recipe.optimiser == "adamax":
        return torch.optim.Adamax(groups, lr=recipe.learning_rate)
    return torch.optim.Adam(groups, lr=recipe.learning_rate, fused=True)


def clip_gradient(optimiser: torch.optim.Optimizer, largest: float) -> None:
    """Scale the whole gradient down to an l2 norm of at most ``largest``; 0 disables clipping."""
    if largest:
        learned = [p for group in optimiser.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(learned, largest)


def cosine(progress: float) -> float:
    """Return (1 + cos π t) / 2, which falls from 1 at t = 0 to 0 at t = 1."""
    return (1 + math.cos(math.pi * progress)) / 2


def epoch_order(seed: int, epoch: int, size: int) -> Tensor:
    """Return the order (size,) in which the samples are used in one epoch."""
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    return torch.randperm(size, generator=generator)


def _scheduled(recipe: Recipe, step: int, steps: int) -> float:
    match recipe.schedule:
        case "cosine":
            return recipe.learning_rate * cosine(step / (recipe.epochs * steps))
        case "step":
            passed = bisect_right(recipe.milestones, step // steps)
            return float(recipe.learning_rate * recipe.rate_factor**passed)
        case _:
            return recipe.learning_rate


def _by_decay(
    recipe: Recipe, model: nn.Module, additional: Iterable[nn.Parameter]
) -> dict[float, list[nn.Parameter]]:
    """Return the parameters by weight decay, starting with ``Recipe.weight_decay``."""
    groups: dict[float, list[nn.Parameter]] = {recipe.weight_decay: []}
    unused = set(recipe.weight_decays)
    for name, parameter in model.named_parameters():
        matching = [pattern for pattern in recipe.weight_decays if fnmatchcase(name, pattern)]
        unused -= set(matching)
        decay = recipe.weight_decays[matching[0]] if matching else recipe.weight_decay
        groups.setdefault(decay, []).append(parameter)
    if unused:
        names = ", ".join(name for name, _ in model.named_parameters())
        raise BadCatalogue(
            "a pattern of weight_decays matches no parameter",
            got=min(unused),
            expected=f"a pattern of {names}",
        )
    groups[recipe.weight_decay] += additional
    return {decay: parameters for decay, parameters in groups.items() if parameters}
