"""Attacks on inputs that are no images: numbers, sequences, matrices, and volumes or videos with four dimensions."""

import math

import pytest
import torch
from torch import nn

from robustbench_inv.api import evaluate
from robustbench_inv.catalogue.attacks import load_attack
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.errors import CapabilityMismatch
from robustbench_inv.tensors import image_shape

SHAPES = ((16,), (4, 4), (1, 4, 4), (2, 3, 4, 4), (2, 1, 2, 2, 4))


class Flat(nn.Module):
    """A small network on the flattened input."""

    bounds, num_classes = (0.0, 1.0), 2

    def __init__(self, size):
        super().__init__()
        weight = torch.linspace(-1, 1.5, size)
        self.weight = nn.Parameter(weight / weight.abs().sum() * 16)

    def forward(self, images):
        beyond = (images.flatten(1) - 0.5) @ self.weight
        return torch.stack([-beyond, beyond], 1)


@pytest.mark.parametrize(
    ("attack", "threat"),
    [
        ("pgd:steps=5", "linf=0.1"),
        ("square:queries=100", "linf=0.1"),
        ("square:queries=100", "l2=0.5"),
        ("local-search-log-odds:rounds=5", "l0=8"),
        ("fmn:steps=20", "l2=1"),
        ("boundary:steps=50", "l2=1"),
    ],
)
def test_inputs_of_any_shape_are_attacked(tmp_path, attack, threat):
    for shape in SHAPES:
        size = math.prod(shape)
        images = torch.rand((12, *shape), generator=torch.Generator().manual_seed(1))
        images = 0.4 + 0.2 * images
        model = Flat(size)
        data = ArrayDataset(images, model(images).argmax(1), f"shape-{'-'.join(map(str, shape))}")
        run = evaluate(
            model=model, attack=attack, threat=threat, dataset=data, out=tmp_path, checks=False
        )
        assert run.failures == (), shape
        assert {r.status for r in run.records()} == {"ok"}, shape
        assert sum(r.goal_reached for r in run.records()) > 3, shape


def test_leading_dimensions_are_channels():
    assert image_shape((3, 16, 8, 8)) == (48, 8, 8)
    assert [image_shape(shape) for shape in SHAPES[:3]] == [(1, 1, 16), (1, 4, 4), (1, 4, 4)]


@pytest.mark.parametrize(
    "attack",
    [
        "foolbox:GaussianBlurAttack",
        "torchattacks:Square",
        "torchattacks:DIFGSM",
        "torchattacks:Pixle",
    ],
)
def test_attacks_on_images_refuse_other_inputs_at_planning(tmp_path, attack):
    pytest.importorskip("torchattacks", reason="the extra [torchattacks] is not installed")
    images = torch.rand((4, 2, 3, 4, 4), generator=torch.Generator().manual_seed(1))
    model = Flat(96)
    data = ArrayDataset(images, torch.tensor([0, 1, 0, 1]), "volumes")
    norm = sorted(load_attack(attack).attack.norms)[0]
    with pytest.raises(
        CapabilityMismatch, match=r"needs images, got 'inputs of shape \(2, 3, 4, 4\)"
    ):
        evaluate(model=model, attack=attack, threat=f"{norm}=1", dataset=data, out=tmp_path / "r")
    assert not (tmp_path / "r").exists()
