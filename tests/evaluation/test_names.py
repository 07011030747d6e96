"""Names are labels: models, attacks and data sets of one name are never mixed, and the user may choose labels."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from robustbench_inv.api import evaluate
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.errors import BadParameter
from robustbench_inv.evaluation.loading import NamedModel, as_models
from robustbench_inv.reporting.provenance import collect_provenance, collect_verdicts
from robustbench_inv.reporting.run_results import read_runs
from robustbench_inv.results.run_files import RunFolder


def made(scale):
    """Return a network whose class is that of the sign of the sum; a smaller scale does not change it."""
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(scale * torch.tensor([[-1.0] * 4, [1.0] * 4]))
        layer.bias.copy_(scale * torch.tensor([2.0, -2.0]))
    net = nn.Sequential(nn.Flatten(), layer)
    net.bounds, net.num_classes = (0.0, 1.0), 2
    return net


def data(brightness=0.0, count=16):
    images = torch.rand(count, 1, 2, 2, generator=torch.Generator().manual_seed(4))
    return ArrayDataset((images + brightness).clamp(0, 1), made(1.0)(images).argmax(1), "points")


@dataclass(frozen=True)
class Step:
    """One step of a given length against or along the gradient."""

    length: float = 1.0
    kind: ClassVar[str] = "fixed-budget"
    norms: ClassVar[frozenset[str]] = frozenset({"linf"})

    def run(self, model, batch, threat, rng):
        _, gradient = model.gradient(batch.images, threat.goal.margin)
        return (batch.images + self.length * threat.budget.eps * gradient.sign()).clamp(0, 1)


def run(path, model, attack=None, dataset=None, **options):
    attack = attack or [Step(), "fgsm"]
    options = {"threat": "linf=0.1,0.2", "out": path, **options}
    return evaluate(model=model, attack=attack, dataset=dataset or data(), **options)


def verdicts(path, *ids):
    return [v for v in RunFolder(path).checks() if v["id"] in ids]


def test_two_models_of_one_name_are_not_mixed(tmp_path):
    """The second model predicts the other class everywhere: mixed records would contradict each other."""
    found = run(tmp_path / "r", [made(1.0), made(-1.0)])
    models = {cell.model.name for cell in found.cells}
    assert len(models) == 2
    assert all(name.startswith("sequential #") for name in models)
    for id_ in ("C1", "C3", "C5", "C2"):
        about = [tuple(v["about"]) for v in verdicts(tmp_path / "r", id_)]
        assert len(about) in (0, 2), id_
        assert len(set(about)) == len(about), id_
    assert {v["verdict"] for v in verdicts(tmp_path / "r", "C1", "C3")} <= {"PASS", "NA"}
    for cell in found.to_json():
        own = {v["about"][0] for v in cell["checks"] if v["scope"] == "model"}
        assert own == {cell["model_digest"]}
    frame = found.to_frame()
    assert frame.model_digest.nunique() == frame.model.nunique() == 2
    assert frame.groupby("model_digest").size().tolist() == [32, 32]


def test_a_retrained_model_in_the_same_folder_keeps_both_verdicts(tmp_path):
    run(tmp_path / "r", made(1.0))
    first = {
        (v["id"], *v["about"]): v["verdict"] for v in verdicts(tmp_path / "r", "C2", "C10", "C11")
    }
    second = run(tmp_path / "r", made(-1.0))
    both = {
        (v["id"], *v["about"]): v["verdict"] for v in verdicts(tmp_path / "r", "C2", "C10", "C11")
    }
    assert len(both) == 2 * len(first)
    assert first.items() <= both.items()
    results = read_runs([tmp_path / "r"])
    shown = [v for found in collect_verdicts(results).values() for v in found if v["id"] == "C10"]
    assert {v["subject"] for v in shown} == {c.model_label for r in results for c in r.cells}
    assert {cell.model.name for cell in second.cells} < {
        cell.model_label for result in read_runs([tmp_path / "r"]) for cell in result.cells
    }


def test_two_attacks_and_two_data_sets_of_one_name_are_not_mixed(tmp_path):
    run(tmp_path / "r", made(1.0), [Step(), Step(0.5)])
    found = run(tmp_path / "r", made(1.0), [Step(), Step(0.5)], data(0.05))
    assert len({cell.attack.name for cell in found.cells}) == 2
    (name,) = {cell.dataset.name for cell in found.cells}
    assert name.startswith("points #")
    (result,) = read_runs([tmp_path / "r"])
    assert len({(cell.attack_label, cell.dataset.name) for cell in result.cells}) == 4
    assert len({v["about"][1] for v in verdicts(tmp_path / "r", "C3")}) == 2


def test_the_user_chooses_labels(tmp_path):
    found = run(tmp_path / "r", {"A": made(1.0), "B": made(-1.0)}, "fgsm")
    assert [cell.model.name for cell in found.cells] == ["A", "B"]
    assert [row["model"] for row in found.to_json()] == ["A", "B"]
    assert [job.title.split(",")[0] for job in found.plan.jobs] == ["fgsm on A", "fgsm on B"]
    (result,) = read_runs([tmp_path / "r"])
    assert [cell.model_label for cell in result.cells] == ["A", "B"]
    assert {v["subject"] for v in verdicts(tmp_path / "r", "C2")} == {"A", "B"}
    (models,) = [each.rows for each in collect_provenance([result]) if each.title == "Models"]
    assert [(label, text.split(",")[0]) for label, text in models] == [
        ("A", "sequential"),
        ("B", "sequential"),
    ]
    again = run(tmp_path / "r", [made(1.0)], "fgsm", samples="first:4")
    assert [cell.model.name for cell in again.cells] == ["A"]


def test_labels_of_one_text_are_made_distinct(tmp_path):
    (first,) = run(tmp_path / "r", {"A": made(1.0)}, "fgsm").cells
    (second,) = run(tmp_path / "r", {"A": made(-1.0)}, "fgsm").cells
    assert first.model.name == "A"
    assert second.model.name == f"A #{second.model.digest[:4]}"


def test_two_labels_of_one_model_are_told(tmp_path):
    found = run(tmp_path / "r", {"A": made(1.0), "B": made(1.0)}, "fgsm")
    assert "A and B are the same model, which is evaluated once" in found.notes


@pytest.mark.slow
def test_workers_take_labels(tmp_path):
    (tmp_path / "two.py").write_text(Path(__file__).read_text())
    names = {"A": f"{tmp_path}/two.py:made:scale=1.0", "B": f"{tmp_path}/two.py:made:scale=-1.0"}
    found = run(tmp_path / "r", names, "fgsm", workers=2, checks=False)
    assert [cell.model.name for cell in found.cells] == ["A", "B"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A=mnist-cnn", NamedModel("A", "mnist-cnn")),
        ("my net=file.py:build:a=1,b=2", NamedModel("my net", "file.py:build:a=1,b=2")),
        ("mnist-cnn", "mnist-cnn"),
        ("mnist-cnn:dtype=float64", "mnist-cnn:dtype=float64"),
        ("file.py:build:a=1,b=2", "file.py:build:a=1,b=2"),
        ("A=B=mnist-cnn", NamedModel("A", "B=mnist-cnn")),
    ],
)
def test_a_label_precedes_a_reference(text, expected):
    assert NamedModel.parse(text) == expected


def test_a_path_with_an_equals_sign_has_no_label(tmp_path):
    (tmp_path / "lr=0.1").mkdir()
    (tmp_path / "lr=0.1" / "net.py").touch()
    assert NamedModel.parse(f"{tmp_path}/lr=0.1/net.py:build") == f"{tmp_path}/lr=0.1/net.py:build"


@pytest.mark.parametrize("labels", [{"": 1}, {" ": 1}, {3: 1}])
def test_unusable_labels(labels):
    with pytest.raises(BadParameter, match="label"):
        as_models(labels)
