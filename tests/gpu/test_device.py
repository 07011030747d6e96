"""What a GPU must give: the records of the CPU, and a batch size that fits its memory. Skipped without one."""

import numpy as np
import pytest
import torch

from robustbench_inv.api import evaluate
from robustbench_inv.models.plain_networks import LeNet5
from robustbench_inv.torch_state import full_precision
from robustbench_inv.training.loop import TrainingData, train
from robustbench_inv.training.objectives import CrossEntropy
from robustbench_inv.training.recipe import Recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU"),
]


def records(device, out, attack):
    """Return the columns of an attack on a network with random weights."""
    torch.manual_seed(0)
    x, net = torch.rand(64, 1, 28, 28), LeNet5()
    run = evaluate(
        net,
        x=x,
        y=net(x).argmax(1),
        attack=attack,
        threat="linf=0.05",
        device=device,
        out=out,
        checks=False,
    )
    return run.cells[0].records.columns


@pytest.mark.parametrize("attack", ["fgsm", "pgd", "apgd"])
def test_records_agree_with_those_of_the_cpu(tmp_path, attack):
    cpu, gpu = (records(device, tmp_path / device, attack) for device in ("cpu", "cuda"))
    assert np.mean(cpu.is_broken == gpu.is_broken) >= 0.995
    assert np.mean(cpu.clean.prediction == gpu.clean.prediction) >= 0.995
    both = cpu.is_broken & gpu.is_broken
    np.testing.assert_allclose(gpu.distance["linf"][both], cpu.distance["linf"][both], atol=1e-4)


def test_products_are_those_of_float32():
    a = torch.rand(512, 512, generator=torch.Generator().manual_seed(0))
    with full_precision():
        found = (a.cuda() @ a.cuda()).cpu()
    assert ((found.double() - a.double() @ a.double()).abs() / found).max() < 1e-5


def test_a_training_agrees_with_that_of_the_cpu(tmp_path):
    images = torch.rand(60, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    data = TrainingData(torch.arange(60), images, torch.arange(60) % 10)
    span = {"first": 0, "last": 60, "epochs": 2, "batch_size": 20, "flip": True, "shift": 2}
    recipe = Recipe("toy", "", "", "", **span, learning_rate=1e-3, seed=0)
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        network = train(recipe, LeNet5().to(device), CrossEntropy(), data, tmp_path / device)
        found.append(network(images.to(device)).detach().cpu())
    torch.testing.assert_close(*found, rtol=0, atol=1e-2)  # TF32 in the training's convolutions
