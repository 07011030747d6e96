"""Targeted goals: excluded samples, samples broken without an attack, and names of cells."""

import pytest
import torch
from torch import nn

from robustbench_inv.checks.records import check_consistency
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.errors import CapabilityMismatch
from robustbench_inv.evaluation.engine import RunOptions
from robustbench_inv.evaluation.jobs import EvaluationRequest, build_jobs
from robustbench_inv.evaluation.plan import plan_jobs
from robustbench_inv.evaluation.schedule import run_cell
from robustbench_inv.results.run_files import CellFolder

FIRST = [0.62, 0.5, 0.4]
POINTS = torch.tensor([FIRST, FIRST, FIRST, [0.4, 0.62, 0.5]], dtype=torch.float64)
LABELS = torch.tensor([0, 2, 1, 1])
"""Decided for 0, 0, 0 and 1: the first and the last are right."""


class Plain(nn.Module):
    """The elements of an input are its logits."""

    bounds, num_classes = (0.0, 1.0), 3

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, images):
        return images * self.scale


def jobs(threat, attack="fgsm:loss=margin"):
    data = ArrayDataset(POINTS, LABELS, "corners")
    return list(build_jobs(EvaluationRequest([Plain()], [attack], threat=threat, dataset=data)))


def run(job, folder):
    run_cell(job, folder / "cell", RunOptions())
    return CellFolder(folder / "cell")


def test_another_wrong_class_is_not_the_target(tmp_path):
    """Towards the next class: 1, 0, 2, 2. The second is there; the third is wrong, and yet to be led to 2."""
    (job,) = jobs("linf=0.05,0.1,0.2:goal=target:offset=1")
    records = run(job, tmp_path).records()
    assert [r.status for r in records] == ["ok", "already_wrong", "ok", "ok"]
    # a step of eps moves the class aimed at up and the best other one down: 2 eps have to exceed the gap
    assert [r.broken_at for r in records] == [0.1, 0.0, 0.2, 0.1]
    assert [r.adversarial.prediction for r in records] == [1, 0, 2, 2]


def test_confidence_is_a_logit_margin(tmp_path):
    """The first has to close 0.12, and to gain 0.25; the second leads by 0.12 and lacks 0.13."""
    (job,) = jobs("linf=0.1,0.2:goal=target:offset=1,confidence=0.25")
    records = run(job, tmp_path).records()
    assert [r.broken_at for r in records] == [0.2, 0.1, None, 0.2]
    assert [r.status for r in records] == ["ok"] * 4


def test_samples_of_the_target_class_are_excluded_with_a_warning():
    plan = plan_jobs(jobs("linf=0.1:goal=target:label=1"))
    assert plan.jobs[0].samples == (0, 1)
    (warning,) = plan.warnings
    assert "2 of 4 samples belong to the target class and are excluded" in warning
    assert not plan_jobs(jobs("linf=0.1:goal=target:offset=1")).warnings


def test_without_samples_of_other_classes_there_is_nothing_to_do():
    data = ArrayDataset(POINTS[2:], LABELS[2:], "ones")
    asked = EvaluationRequest(
        [Plain()], ["fgsm"], threat="linf=0.1:goal=target:label=1", dataset=data
    )
    with pytest.raises(CapabilityMismatch, match="the target 1 is the true class of 2"):
        plan_jobs(build_jobs(asked))


@pytest.mark.parametrize("confidence", ["", ",confidence=0.3"])
def test_records_of_a_target_are_consistent(confidence, tmp_path):
    (job,) = jobs(f"linf=0.1:goal=target:offset=1{confidence}")
    verdict = check_consistency(run(job, tmp_path).read())
    assert verdict.verdict == "PASS", verdict.evidence


@pytest.mark.parametrize(
    ("goal", "name"),
    [
        ("target:label=2", "fgsm:loss=margin → 2"),
        ("target:offset=2", "fgsm:loss=margin → y+2"),
        ("target-accepted:offset=1,confidence=0.3", "fgsm:loss=margin → y+1 by 0.3"),
    ],
)
def test_every_target_is_an_attack_of_its_own(goal, name, tmp_path):
    (job,) = jobs(f"linf=0.1:goal={goal}")
    assert run(job, tmp_path).info.attack_label == name
    assert job.to_json()["threat"] == f"linf=0.1:goal={goal}"
