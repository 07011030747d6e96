"""Models with a reject option: default goals, successes and records."""

import json

import pytest
import torch
from torch import nn

import robustbench_inv as rbi
from robustbench_inv.catalogue.threats import load_threat
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.errors import BadParameter, UnknownName
from robustbench_inv.evaluation.jobs import EvaluationRequest, build_jobs
from robustbench_inv.results.summary import rejection_rates
from robustbench_inv.tensors import Output
from robustbench_inv.testing.toys import least_squares, rejecting_all
from robustbench_inv.threat.goals import Accept, Misclassify, MisclassifyAccepted, Target


class Careful(nn.Module):
    """Class 1 above a mean of a half; accepts what is a tenth away from it, or never anything."""

    bounds, num_classes = (0.0, 1.0), 2

    def __init__(self, band=0.1):
        super().__init__()
        self.band = nn.Parameter(torch.tensor(band))

    def forward(self, images):
        beyond = images.flatten(1).mean(1) - 0.5
        clearance = torch.stack([-beyond, beyond], 1) - self.band
        accepted = beyond.abs() >= self.band
        return Output(torch.stack([-beyond, beyond], 1), beyond.abs(), accepted, clearance)


@pytest.fixture
def greys():
    """Images of one level each, 0.2 to 0.35 and 0.65 to 0.8."""
    levels = torch.cat([torch.linspace(0.2, 0.35, 5), torch.linspace(0.65, 0.8, 5)])
    images = levels.reshape(10, 1, 1, 1).expand(10, 1, 4, 4).contiguous()
    return ArrayDataset(images, (levels > 0.5).long(), "greys")


def evaluate(tmp_path, greys, attack, threat, band=0.1):
    run = rbi.evaluate(
        model=Careful(band), attack=attack, threat=threat, dataset=greys, out=tmp_path, seed=0
    )
    return run.records()


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("linf=0.1:goal=misclassify", Misclassify()),
        ("linf=0.1:goal=target:label=3", Target(3)),
        ("none:goal=accept", Accept()),
        ("none:norm=linf:goal=misclassify-accepted", MisclassifyAccepted()),
        ("mnist-linf:goal=misclassify-accepted:oracle=mnist-panel", MisclassifyAccepted()),
    ],
)
def test_a_threat_names_its_goal(text, goal):
    threat = load_threat(text, Misclassify())
    assert threat.goal == goal
    if not text.startswith("mnist") and goal not in (Misclassify(), Accept()):
        assert threat.text == text


def test_an_unknown_goal_is_one_line():
    with pytest.raises(UnknownName, match="unknown goal"):
        load_threat("linf=0.1:goal=confuse")
    with pytest.raises(BadParameter, match="names no goal"):
        load_threat("linf=0.1:goal=")


def goals(model, threat, greys, attack="pgd"):
    question = EvaluationRequest([model], [attack], threat=threat, dataset=greys)
    return [job.threat.goal for job in build_jobs(question)]


def test_an_attack_on_a_rejecting_model_must_be_accepted(greys):
    assert goals(Careful(), "linf=0.1", greys) == [MisclassifyAccepted()]
    assert goals(Careful(), "linf=0.1:goal=misclassify", greys) == [Misclassify()]
    assert goals(Careful(), "none", greys, "noise-image") == [Accept()]
    plain = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    plain.bounds = (0.0, 1.0)
    assert goals(plain, "linf=0.1", greys) == [Misclassify()]


def test_success_is_a_misclassified_and_accepted_input(tmp_path, greys):
    """At eps the adaptive attack crosses both thresholds; the oblivious one is rejected between them."""
    knowing = evaluate(tmp_path / "a", greys, "pgd:steps=40", "linf=0.45")
    blind = "pgd:steps=60,rel_step=0.02,decay=false,random_start=false"
    oblivious = evaluate(tmp_path / "o", greys, blind, "linf=0.45:goal=misclassify")
    assert all(r.is_undetected_error and r.goal_reached for r in knowing)
    assert all(r.goal_reached and not r.is_undetected_error for r in oblivious)
    assert rejection_rates(oblivious).rejected_errors.value == 1


def test_distal_inputs_start_from_accepted_clean_inputs(tmp_path, greys):
    records = evaluate(tmp_path, greys, "distal", "none")
    assert {r.status for r in records} == {"ok"}
    assert all(r.goal_reached and r.adversarial.accepted for r in records)


def test_rejecting_everything_does_not_help(tmp_path, greys):
    records = evaluate(tmp_path, greys, "pgd", "linf=0.4", band=0.6)
    rates = rejection_rates(records)
    assert not any(r.goal_reached for r in records)
    assert rates.accuracy_with_rejection.value == rates.clean_accuracy_with_rejection.value == 0
    assert rates.false_rejection.value == 1


def test_the_toy_that_rejects_everything_fails_its_check(tmp_path, greys):
    images, labels = greys.batch(list(range(10)))
    toy = rejecting_all(least_squares(images, labels, hidden=16))
    run = rbi.evaluate(model=toy, attack="pgd", threat="linf=0.1", dataset=greys, out=tmp_path)
    grades = {
        check["id"]: check["verdict"] for check in json.loads(find_checks(tmp_path))["verdicts"]
    }
    assert not any(r.goal_reached for r in run.records())
    assert grades["C25"] == "FAIL"
    assert grades["C24"] == "WARN"  # nobody knows what its thresholds were fitted on


def find_checks(folder):
    return next(folder.rglob("checks.json")).read_text(encoding="utf-8")
