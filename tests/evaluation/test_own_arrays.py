"""``evaluate(x=…, y=…)``: arrays are evaluated as the data set that they hold."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import robustbench_inv as rbi
from robustbench_inv.catalogue.models import declared_bounds
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.errors import BadParameter, CapabilityMismatch, UnknownName


def network(inputs, classes, bounds=(0.0, 1.0)):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))
    net.bounds = bounds
    return net


def evaluate(net, x, y, path, **rest):
    rest = {"threat": "linf=8/255", "attack": "pgd:steps=3", **rest}
    return rbi.evaluate(model=net, x=x, y=y, out=path, checks=False, **rest)


def outcomes(run):
    return [(r.label, r.clean.prediction, r.status) for r in run.records()]


def test_bytes_with_channels_last_are_the_images_of_torch(tmp_path):
    net, rng = network(3 * 8 * 8, 3), np.random.default_rng(0)
    x, y = rng.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8), np.arange(20) % 3
    run = evaluate(net, x, y, tmp_path / "a")
    images = torch.tensor(x).permute(0, 3, 1, 2) / 255
    same = evaluate(net, None, None, tmp_path / "b", dataset=ArrayDataset(images, y, "floats"))
    assert outcomes(run) == outcomes(same)
    assert any("grey levels" in note for note in run.notes)
    assert any("(N, 3, 8, 8)" in note for note in run.notes)
    clean = net(images).argmax(1).eq(torch.tensor(y)).sum().item()
    assert run.summary()[0].clean_accuracy.successes == clean


def test_labels_of_some_classes_fit_a_model_of_more(tmp_path):
    run = evaluate(network(5, 10), torch.rand(12, 5), torch.arange(12) % 4, tmp_path)
    assert not run.failures
    assert run.cells[0].dataset.num_classes == 10
    assert any("0 to 3 of the model's 10 classes" in note for note in run.notes)


def test_labels_beyond_the_model_are_refused(tmp_path):
    with pytest.raises(CapabilityMismatch, match="number of classes"):
        evaluate(network(5, 3), torch.rand(12, 5), torch.arange(12) % 4, tmp_path)


def test_a_table_takes_the_bounds_of_its_model(tmp_path):
    x = torch.linspace(-2, 3, 60).reshape(12, 5)
    run = evaluate(network(5, 2, (-4.0, 4.0)), x, torch.arange(12) % 2, tmp_path, threat="l2=0.5")
    assert run.cells[0].dataset.bounds == (-4, 4)
    labelled = {"A": network(5, 2, (-4.0, 4.0))}
    again = evaluate(labelled, x, torch.arange(12) % 2, tmp_path / "b", threat="l2=0.5")
    assert outcomes(again) == outcomes(run)


FACTORY = """
import torch
from torch import nn

def build(low=-4.0, high=4.0):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(5, 2))
    net.bounds = (low, high)
    return net

def without():
    net = build()
    del net.bounds
    return net
"""


@pytest.mark.parametrize("bounds", [np.array([-4, 4]), torch.tensor([-4.0, 4.0]), "-4..4", [-4, 4]])
def test_bounds_of_any_form_are_those_of_the_data(bounds, tmp_path):
    """Bounds that are no pair were passed over, and the data had the bounds 0 and 1."""
    x = torch.linspace(0, 1, 60).reshape(12, 5)
    run = evaluate(network(5, 2, bounds), x, torch.arange(12) % 2, tmp_path, threat="l2=0.5")
    assert run.cells[0].dataset.bounds == (-4, 4)


@pytest.mark.parametrize("name", ["m.py:build", "m.py:without:bounds=-4..4", "m.py:build:high=4.0"])
def test_data_follow_the_bounds_of_a_model_with_a_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.py").write_text(FACTORY)
    x, y = torch.linspace(-2, 3, 60).reshape(12, 5), torch.arange(12) % 2
    for number, model in enumerate((name, rbi.load_model(name), [name], {"A": name})):
        run = evaluate(model, x, y, tmp_path / str(number), threat="l2=0.5")
        assert (run.failures, run.cells[0].dataset.bounds) == ((), (-4, 4))
    alone = evaluate(network(5, 2, (-4.0, 4.0)), x, y, tmp_path / "alone", threat="l2=0.5")
    assert outcomes(run) == outcomes(alone)


def test_data_of_several_models_need_one_range(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.py").write_text(FACTORY)
    x, y = torch.rand(12, 5), torch.arange(12) % 2
    wide, narrow = "m.py:build:low=0,high=255", network(5, 2)
    problem = r"different bounds, got '\[0, 255\] of m.py:build.*, \[0, 1\] of Sequential'.*one command each"
    for models in ([wide, narrow], {"A": wide, "B": narrow}):
        with pytest.raises(BadParameter, match=problem):
            evaluate(models, x, y, tmp_path / "r")
    assert not (tmp_path / "r").exists()
    run = evaluate([narrow, rbi.load_model(network(5, 2))], x, y, tmp_path / "r")
    assert not run.failures


def test_a_card_has_the_bounds_of_its_model():
    for name in ("mnist-cnn", "mnist-cnn:dtype=float64", rbi.load_model("mnist-cnn")):
        assert declared_bounds(name) == (0, 1)
    assert declared_bounds(nn.Linear(2, 2)) is None
    with pytest.raises(UnknownName, match="mnist-cnn"):
        declared_bounds("mnist-cn")


def test_names_of_classes_are_in_the_plan_and_hint_at_missing_ones(tmp_path):
    x, y = torch.rand(12, 5), ["up", "down"] * 6
    run = evaluate(network(5, 2), x, y, tmp_path)
    (cell,) = json.loads((tmp_path / "plan.json").read_text())["cells"]
    assert cell["classes"] == ["down", "up"]
    assert "classes" not in run.to_frame()
    with pytest.raises(CapabilityMismatch, match=r"names of the 4 classes .*classes=FILE"):
        evaluate(network(5, 4), x, y, tmp_path)


def test_x_and_y_belong_together(tmp_path):
    net, x, y = network(5, 2), torch.rand(4, 5), [0, 1, 0, 1]
    with pytest.raises(BadParameter, match="no labels y"):
        evaluate(net, x, None, tmp_path)
    with pytest.raises(BadParameter, match="no inputs x"):
        evaluate(net, None, y, tmp_path)
    with pytest.raises(BadParameter, match="both a data set and x, y"):
        evaluate(net, x, y, tmp_path, dataset="mnist5k")


@pytest.mark.parametrize(
    ("bounds", "eps", "hint"),
    [
        ((0.0, 255.0), "8/255", "less than a thousandth of the range [0, 255]"),
        ((0.0, 255.0), "300", "8 of 255 grey levels are linf=8"),
        ((0.0, 1.0), "8", "8 of 255 grey levels are linf=8/255"),
        ((-1.0, 1.0), "16", "8 of 255 grey levels are linf=16/255"),
    ],
)
def test_an_eps_of_another_unit_is_told_with_that_of_grey_levels(bounds, eps, hint, tmp_path):
    net, x = network(5, 2, bounds), torch.rand(4, 5)
    run = evaluate(net, x, [0, 1, 0, 1], tmp_path, threat=f"linf={eps}")
    assert any(hint in note for note in run.notes)
