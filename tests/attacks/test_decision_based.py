"""Starting points are found for each sample by itself, wherever inputs of another class are not rare."""

import pytest
import torch

from robustbench_inv.attacks.decision_based import find_starting_points
from robustbench_inv.attacks.protocol import Batch, InputPool
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import Output
from robustbench_inv.threat.budgets import Unbounded
from robustbench_inv.threat.goals import Misclassify, Target
from robustbench_inv.threat.threat_model import ThreatModel


class Feature:
    """Class 1 where a function of the image is above a threshold."""

    num_classes, bounds, dtype = 2, (0.0, 1.0), torch.float64

    def __init__(self, feature, threshold):
        self.feature, self.threshold = feature, threshold

    def __call__(self, images):
        beyond = self.feature(images.flatten(1)) - self.threshold
        return Output(torch.stack([-beyond, beyond], 1))


def starts(model, images, goal, ids=None, pool=None):
    ids = torch.arange(len(images)) if ids is None else ids
    labels = model(images).decision
    batch, rng = Batch(images, labels, ids, pool=pool), SampleRNG(0, ids)
    meter = CountingModel(model, batch, ThreatModel(Unbounded()), rng)
    return find_starting_points(meter, batch, goal, rng)


BRIGHT = Feature(lambda flat: flat.mean(1), 0.8)
"""What noise never is; a single level is."""

ROUGH = Feature(lambda flat: flat.std(1), 0.4)
"""What neither noise nor a single level is; salt and pepper is."""


@pytest.mark.parametrize("model", [BRIGHT, ROUGH])
def test_classes_that_noise_never_has_are_found(model):
    images = torch.full((3, 1, 6, 6), 0.4, dtype=torch.float64)
    found_images, found = starts(model, images, Misclassify())
    assert found.all()
    assert (model(found_images).decision == 1).all()
    assert found_images.min() >= 0
    assert found_images.max() <= 1


def test_they_are_moved_next_to_the_boundary():
    images = torch.full((1, 1, 6, 6), 0.4, dtype=torch.float64)
    found_images, _ = starts(BRIGHT, images, Misclassify())
    assert 0.8 < found_images.mean() < 0.801


def test_a_sample_starts_at_the_same_point_in_every_batch():
    images = torch.linspace(0.2, 0.5, 5, dtype=torch.float64).reshape(5, 1, 1, 1).expand(5, 1, 6, 6)
    whole, _ = starts(ROUGH, images, Misclassify())
    for i in range(5):
        alone, _ = starts(ROUGH, images[i : i + 1], Misclassify(), torch.tensor([i]))
        assert torch.equal(alone[0], whole[i])


def test_without_one_the_clean_image_stays():
    images = torch.full((2, 1, 6, 6), 0.4, dtype=torch.float64)
    never = Feature(lambda flat: flat.mean(1), 2.0)
    found_images, found = starts(never, images, Target(1))
    assert not found.any()
    assert torch.equal(found_images, images)


def test_another_input_of_the_data_set_is_tried():
    """A checkerboard is what no draw ever is."""
    board = (torch.arange(36).reshape(1, 1, 6, 6) // 6 + torch.arange(36).reshape(1, 1, 6, 6)) % 2
    board = board.double()
    likeness = Feature(lambda flat: 1 - (flat - board.flatten()).abs().mean(1), 0.9)
    images = torch.full((2, 1, 6, 6), 0.4, dtype=torch.float64)
    assert not starts(likeness, images, Misclassify())[1].any()
    inputs = torch.cat([images, board])
    pool = InputPool(torch.arange(3), lambda ids: (inputs[ids], torch.zeros(3)))
    found_images, found = starts(likeness, images, Misclassify(), pool=pool)
    assert found.all()
    assert (likeness(found_images).decision == 1).all()
