"""One image under several attacks: adversarial examples, logits, and failed attacks."""

from math import isnan
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from robustbench_inv.catalogue.models import load_model
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.errors import UnknownName
from robustbench_inv.experiments.logits import measure_logits, measure_targeted_logits
from robustbench_inv.results.experiment_result import read_result, result_to_gzip

PAPER = {"threshold": [1, 2, 3], "original": [4, 5, 6]}


class Plain(nn.Module):
    """The first three elements of an image are its logits, times ten."""

    bounds, num_classes = (0.0, 1.0), 3

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0, dtype=torch.float64))

    def forward(self, images):
        return self.scale * images.flatten(1)[:, :3]


@pytest.fixture
def experiment_request():
    """Three grey images, of the classes 1, 0 and 2."""
    images = torch.tensor([[0.2, 0.8, 0.5, 0.0], [0.7, 0.5, 0.4, 0.0], [0.0, 0.0, 1.0, 0.0]])
    data = ArrayDataset(images.double().reshape(3, 1, 2, 2), torch.tensor([1, 0, 2]), "greys")
    model = load_model(Plain())
    messages = []
    return SimpleNamespace(
        open_models=lambda: {"plain": model},
        open_dataset=lambda: data,
        seed=0,
        dataset="greys",
        report=messages.append,
        messages=messages,
    )


def test_logits_of_the_image_and_its_adversarial_examples(experiment_request, tmp_path):
    found = measure_logits(
        experiment_request,
        {"DeepFool": ("deepfool", "none"), "nothing": ("fgsm", "linf=0.01")},
        {"DeepFool": ("deepfool:overshoot=0.5", "none")},
        published=PAPER,
    )
    sheet, printed = found.logit_sheets
    threshold, original, deepfool, nothing, aware = sheet.lines
    assert all(map(isnan, threshold.values)), "it never rejects"
    assert original.values == pytest.approx((7.0, 5.0, 4.0))
    assert (original.accepted, original.wrong) == (True, False)
    # the boundary to class 1 is at 6, where both meet
    assert deepfool.values[:2] == pytest.approx((6.0, 6.0), abs=0.1)
    assert deepfool.values[1] > deepfool.values[0]
    assert (deepfool.accepted, deepfool.wrong) == (True, True)
    assert (nothing.name, nothing.accepted) == ("nothing: not reached", None)
    assert aware.name == "DeepFool, detector-aware"
    assert [(line.name, line.values) for line in printed.lines] == [
        ("threshold", (1.0, 2.0, 3.0)),
        ("original", (4.0, 5.0, 6.0)),
    ]
    (grid,) = found.image_grids
    assert grid.images.shape == (1, 4, 1, 2, 2)
    assert grid.images[0, 0].flatten().tolist() == [178, 128, 102, 0]
    assert grid.heads == ("original", "DeepFool", "nothing", "DeepFool")
    assert [count for _, count in grid.groups] == [3, 1]
    assert grid.words[0][0] == "0"
    assert grid.words[0][1].startswith("1, 0.14"), "0.1 each way"
    assert grid.words[0][2] == "–"
    path = tmp_path / "measured-greys.json.gz"
    path.write_bytes(result_to_gzip(found))
    assert result_to_gzip(read_result(path)) == path.read_bytes()


def test_targeted_attacks_have_one_column_per_class(experiment_request):
    runs = {
        "near": ("ddn:steps=100", "none:goal=target:label={target}"),
        "sure": (
            "minimum-norm:steps=10,lagrangian_steps=20",
            "none:goal=target:label={target},confidence=4",
        ),
    }
    found = measure_targeted_logits(experiment_request, runs)
    (grid,), (sheet,) = found.image_grids, found.logit_sheets
    assert grid.rows == ("near", "sure")
    assert [head[0] for head in grid.heads] == ["1", "2"]
    assert [line.name for line in sheet.lines[2:]] == ["near → 1", "near → 2", "sure → 1", "sure → 2"]  # fmt: skip
    for line, target, lead in zip(sheet.lines[2:], (1, 2, 1, 2), (0, 0, 4, 4), strict=True):
        others = [value for k, value in enumerate(line.values) if k != target]
        assert line.values[target] - max(others) >= lead
    assert float(grid.words[1][0].replace("−", "-")) == pytest.approx(
        sheet.lines[4].values[1], abs=0.05
    )


def test_without_the_model_only_published_logits_are_returned(experiment_request):
    def missing():
        raise UnknownName("unknown model", got="cifar10-sdim")

    experiment_request.open_models = missing
    found = measure_logits(
        experiment_request, {"DeepFool": ("deepfool", "none")}, {}, published=PAPER
    )
    assert (found.samples, found.models, found.image_grids) == (0, {}, ())
    assert [sheet.name for sheet in found.logit_sheets] == ["logits-paper"]
    assert "not reproduced" in experiment_request.messages[0]
    with pytest.raises(UnknownName):
        measure_logits(experiment_request, {"DeepFool": ("deepfool", "none")}, {})
