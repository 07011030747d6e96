"""Stochastic models: a search neither stops at a lucky draw nor ends on the boundary."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import robustbench_inv as rbi
from robustbench_inv.attacks.pgd import PGD
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.evaluation.search import DISTANCE_FACTORS
from robustbench_inv.tensors import Output

N, EDGE = 200, 0.6


@dataclass(frozen=True)
class Shaken:
    """Class 1 when the first element exceeds 0.6, up to a latent shift of deviation 0.02 for each answer."""

    fixed_noise: bool = False
    draws: int = 1
    num_classes: ClassVar[int] = 2
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    dtype: ClassVar[torch.dtype] = torch.float32
    latent_shape: ClassVar[tuple[int, ...]] = (1,)

    def __call__(self, images):
        return self.respond(images, torch.zeros(1, len(images), 1))

    def respond(self, images, latent):
        beyond = (images.flatten(1)[:, 0] - EDGE + 0.02 * latent[..., 0]).mean(0)
        return Output(torch.stack([-beyond, beyond], 1))


@dataclass(frozen=True)
class OntoTheEdge:
    """Ends exactly on the decision boundary, as a minimum-norm attack that has converged does."""

    kind: ClassVar[str] = "minimum-norm"
    norms: ClassVar[frozenset[str]] = frozenset({"l2", "linf"})

    def run(self, model, batch, threat, rng):
        shown = batch.images.clone()
        shown.flatten(1)[:, 0] = EDGE
        return shown


def data():
    images = torch.full((N, 1, 2, 2), 0.4)
    return ArrayDataset(images, torch.zeros(N, dtype=torch.int64), "edge", num_classes=2)


def broken(tmp_path, model, attack, threat):
    run = rbi.evaluate(
        model=model, attack=attack, threat=threat, dataset=data(), out=tmp_path, checks=False
    )
    return [record for record in run.records() if record.goal_reached]


def test_a_minimum_norm_attack_is_judged_past_the_boundary(tmp_path):
    fallen = broken(tmp_path, Shaken(), OntoTheEdge(), "none")
    assert len(fallen) > 0.85 * N  # half of them if it were judged where it ended
    longest = max(DISTANCE_FACTORS) * (EDGE - 0.4)
    assert all(EDGE - 0.4 <= record.distance.l2 + 1e-6 <= longest + 1e-5 for record in fallen)
    assert all(record.forward_passes >= 10 for record in fallen)


def test_a_repeatable_model_is_judged_where_the_attack_ended(tmp_path):
    fallen = broken(tmp_path, Shaken(fixed_noise=True), OntoTheEdge(), "none")
    assert 0.3 * N < len(fallen) < 0.7 * N  # those whose known draw is on the right side
    assert {round(record.distance.l2, 5) for record in fallen} == {round(EDGE - 0.4, 5)}


@pytest.mark.parametrize("threat", ["linf=0.3", "linf=0.2,0.25,0.3"])
def test_pgd_does_not_stop_at_a_lucky_draw(tmp_path, threat):
    """Within 0.3 the first element reaches 0.7, five deviations past the boundary."""
    assert len(broken(tmp_path, Shaken(), PGD(steps=10), threat)) == N
