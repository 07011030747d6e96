"""FGSM after parts of a training: a linear network with known distances, and snapshots of a shipped one."""

from functools import partial

import pytest
import torch
from torch import nn

import robustbench_inv as rbi
from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.experiments.protocol import ExperimentRequest, run_experiment
from robustbench_inv.experiments.training_length import (
    _Attacks,
    fgsm_survivors,
    find_snapshots,
    pgd_survivors,
)
from robustbench_inv.training.loop import TrainingData, stored_weights

make_request = partial(ExperimentRequest, "mnist5k", {}, samples=40)

SEARCH = [0.05, 0.1, 0.3]


def test_a_sample_survives_up_to_its_distance():
    """Logits (x₁ + x₂, 1): class 0 above the line x₁ + x₂ = 1, whose linf distance is (x₁ + x₂ − 1) / 2."""
    network = nn.Linear(2, 2)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        network.bias.copy_(torch.tensor([0.0, 1.0]))
    images = torch.tensor([[0.52, 0.52], [0.56, 0.56], [0.7, 0.7], [0.9, 0.9], [0.1, 0.1]])
    data = TrainingData(torch.arange(5), images, torch.zeros(5, dtype=torch.long))
    found = fgsm_survivors(network, data, torch.full((5, 2), -1.0), SEARCH)
    assert found.sum(1).tolist() == [4, 3, 2, 1]
    assert found[-1].tolist() == [False, False, False, True, False]
    back = fgsm_survivors(network, data, torch.zeros(5, 2), SEARCH)
    assert back.sum(1).tolist() == [4, 4, 4, 4]


def test_pgd_finds_what_is_within_reach_and_a_sample_stays_broken():
    """Logits (x₁ + x₂, 1); the steps leave a sample's image alone at the second eps, where it is broken already."""
    network = nn.Linear(2, 2)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        network.bias.copy_(torch.tensor([0.0, 1.0]))
    images = torch.tensor([[0.52, 0.52], [0.58, 0.58], [0.9, 0.9], [0.1, 0.1]])
    data = TrainingData(torch.arange(4), images, torch.zeros(4, dtype=torch.long))
    asked = []

    def pgd(eps, rows):
        asked.append((eps, rows.tolist()))
        return images[rows] - eps

    found = pgd_survivors(network, data, pgd, [0.05, 0.1])
    assert found.tolist() == [[False, True, True, False], [False, False, True, False]]
    assert asked == [(0.05, [0, 1, 2]), (0.1, [1, 2])]


def test_a_step_that_changes_the_prediction_counts_as_in_foolbox_1():
    """Logits (10 |x − 0.5| − 0.05, 0): wrong within 0.005 of 0.5, and steps of 0.01 jump in and out of that dip."""

    class Dip(nn.Module):
        def forward(self, x):
            return torch.cat([10 * (x - 0.5).abs() - 0.05, torch.zeros_like(x)], 1)

    data = TrainingData(torch.arange(60), torch.full((60, 1), 0.55), torch.zeros(60).long())
    attacks = _Attacks(data, [0.3], [0.3], seed=0)
    network = Dip()
    last = attacks.once_by(network).pgd(0.3, data.ids)
    assert 10 < int((network(last).argmax(1) == 0).sum()) < 50
    first = attacks.by(network).pgd(0.3, data.ids)
    assert (network(first).argmax(1) == 1).all()
    assert ((first - 0.55).abs() <= 0.3 + 1e-6).all()


def test_snapshots_are_found_in_the_order_of_their_epochs(tmp_path):
    for epoch in (100, 20, 5):
        (tmp_path / f"epoch-{epoch}.safetensors").touch()
    assert list(find_snapshots(tmp_path)) == [5, 20, 100]
    assert find_snapshots(tmp_path / "none") == {}


def test_numbers_of_a_shipped_network(tmp_path):
    from safetensors.torch import save_file

    model = rbi.load_model("mnist-c-js-200:sigmoid=true")
    folder = tmp_path / "mnist-c-js-200-seed1" / "snapshots"
    folder.mkdir(parents=True)
    save_file(stored_weights(model.classifier.module, "float16"), folder / "epoch-200.safetensors")
    request = make_request()
    parameters = {
        "networks": {
            "C-JS": "mnist-c-js-200-seed1:sigmoid=true",
            "clipped": "mnist-c-js-200-seed1:clip=1e-7",
            "CNN": "mnist-cnn-200",
        },
        "substitute": "mnist-lenet5",
        "search": SEARCH,
        "shown": [0.1, 0.3],
        "folder": str(tmp_path),
    }
    result = run_experiment("training-length", request, parameters)
    found = {number.row: number.value for number in result.numbers if number.column == "C-JS"}
    clipped = {number.row: number.value for number in result.numbers if number.column == "clipped"}
    assert set(result.left_out) == {"CNN"}
    assert "mnist-lenet5" in result.models
    assert "invbench queue" in result.left_out["CNN"]
    data = load_dataset("mnist5k")
    images, labels = data.batch(request.draw(data))
    expected = (model(images).logits.argmax(1) == labels).double().mean().item()
    assert found["Clean, 200 epochs"] == expected
    assert found["Zero gradients, 200 epochs"] == 0
    with torch.no_grad():
        certain = (
            rbi.load_model("mnist-c-js-200").classifier(images).logits.softmax(1).amax(1) > 1 - 1e-7
        )
    assert clipped["Zero gradients, 200 epochs"] == certain.double().mean().item() > 0.4
    assert clipped["FGSM w 0.3, 200 epochs"] >= clipped["Zero gradients, 200 epochs"]
    for name in ("FGSM b", "FGSM w", "PGD b", "PGD w"):
        assert expected >= found[f"{name} 0.1, 200 epochs"] > found[f"{name} 0.3, 200 epochs"]
    attacked = rbi.evaluate(
        model, attack="fgsm", threat="linf=0.1", dataset="mnist5k", samples=40, out=tmp_path / "run",
        progress=False, checks=False,
    )  # fmt: skip
    (rate,) = attacked.summary()[0].robust_accuracy
    assert found["FGSM w 0.1, 200 epochs"] <= rate.value
    assert found["FGSM w 0.1, 200 epochs"] == pytest.approx(rate.value, abs=0.05)
    iterated = rbi.evaluate(
        model, attack="pgd:steps=40,rel_step=0.0333333", threat="linf=0.1", dataset="mnist5k", samples=40,
        out=tmp_path / "pgd", progress=False, checks=False,
    )  # fmt: skip
    (rate,) = iterated.summary()[0].robust_accuracy
    assert found["PGD w 0.1, 200 epochs"] == pytest.approx(rate.value, abs=0.05)
    (panels,) = result.lines
    assert panels.panels[0].title == "Clean"


def test_one_number_of_epochs_of_a_recipe_below_the_models(tmp_path):
    from safetensors.torch import save_file

    from robustbench_inv.training.recipe import find_recipe, read_recipe
    from robustbench_inv.training.training_run import build_network

    path = find_recipe("ablation/mnist-c-dv-ie-0")
    network = build_network(read_recipe(path), path.parent)
    folder = tmp_path / "mnist-c-dv-ie-0" / "snapshots"
    folder.mkdir(parents=True)
    for epoch in (20, 60):
        save_file(stored_weights(network, "float32"), folder / f"epoch-{epoch}.safetensors")
    parameters = {
        "networks": {"DV": "ablation/mnist-c-dv-ie-0"},
        "substitute": "mnist-lenet5",
        "search": SEARCH,
        "shown": [0.3],
        "folder": str(tmp_path),
        "epochs": [60],
    }
    result = run_experiment("training-length", make_request(), parameters)
    attacks = ["FGSM b 0.3", "PGD b 0.3", "FGSM w 0.3", "PGD w 0.3"]
    rows = ["Clean", *attacks, "Zero gradients"]
    assert [number.row for number in result.numbers] == [f"{row}, 60 epochs" for row in rows]
    assert not result.lines


def test_seeds_of_a_network(tmp_path):
    """The shipped network and a snapshot with its weights are two trainings alike; one of another epoch is none."""
    from safetensors.torch import save_file

    module = rbi.load_model("mnist-c-dv-200").classifier.module
    for seed, epoch in ((1, 200), (2, 160)):
        folder = tmp_path / f"mnist-c-dv-200-seed{seed}" / "snapshots"
        folder.mkdir(parents=True)
        weights = stored_weights(module, "float16")
        save_file(weights, folder / f"epoch-{epoch}.safetensors")
    zero = {name: value * 0 for name, value in stored_weights(module, "float16").items()}
    folder = tmp_path / "mnist-c-dv-200-seed3" / "snapshots"
    folder.mkdir(parents=True)
    save_file(zero, folder / "epoch-200.safetensors")
    trainings = ["mnist-c-dv-200", *(f"mnist-c-dv-200-seed{seed}" for seed in (1, 2, 3))]
    parameters = {
        "networks": {"C-DV": trainings},
        "substitutes": {"b": "mnist-lenet5", "b, shallow": "mnist-cnn-shallow"},
        "search": SEARCH,
        "shown": [0.1, 0.3],
        "epochs": 200,
        "folder": str(tmp_path),
    }
    result = run_experiment("seeds", make_request(), parameters)
    missing = "mnist-c-dv-200-seed2 has no snapshot of epoch 200; train it with invbench queue"
    assert result.left_out == {"C-DV, seed 2": missing}
    found = {number.row: number for number in result.numbers}
    attacks = [f"{name} {eps}" for name in ("FGSM b", "PGD b", "FGSM b, shallow", "PGD b, shallow", "FGSM w", "PGD w") for eps in (0.1, 0.3)]  # fmt: skip
    rows = ["Clean", *attacks, "Zero gradients"]
    assert list(found)[: len(rows)] == rows
    for row in rows:
        shares = tuple(found[f"{row}, seed {seed}"].value for seed in (0, 1, 3))
        assert found[row].trainings == shares
        assert found[row].value == pytest.approx(sum(shares) / 3)
        assert shares[0] == shares[1]
    assert found["Clean, seed 3"].value == 0.1  # one class for all digits
    assert found["Zero gradients, seed 3"].value == 1
    assert {"C-DV, seed 0", "C-DV, seed 1", "C-DV, seed 3"} < set(result.models)
