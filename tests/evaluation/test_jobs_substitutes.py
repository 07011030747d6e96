"""Substitutes: requirements, names, and the path from a threat's text to the results."""

from dataclasses import replace

import pytest
import torch

import robustbench_inv as rbi
from robustbench_inv.catalogue.attacks import load_attack
from robustbench_inv.catalogue.fingerprint import content
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.errors import CapabilityMismatch
from robustbench_inv.evaluation.cost import estimate_jobs
from robustbench_inv.evaluation.jobs import Job
from robustbench_inv.evaluation.packing import pack_jobs, unpack_jobs
from robustbench_inv.evaluation.plan import plan_jobs
from robustbench_inv.results.run_files import CellFolder
from robustbench_inv.testing.analytic_problems import LinearClassifier
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.threat.goals import KeepDecision
from robustbench_inv.threat.threat_model import ThreatModel, describe_threat, digest_threat


def sent(job):
    """Return a job as another process receives it."""
    (packed,) = unpack_jobs(pack_jobs([job]))
    return packed if isinstance(packed, Job) else packed.build({})


def described(threat, substitute=None):
    about = None if substitute is None else {"name": substitute.name, "digest": substitute.digest}
    return describe_threat(threat, content, about)


def threat_digest(threat, substitute=None):
    return digest_threat(described(threat, substitute))


THREAT = ThreatModel(LpBall("linf", 0.1), access="transfer", substitute="other")


def linear(classes=2, dimension=8, dtype=torch.float64, bounds=(0.0, 1.0)):
    weights = torch.linspace(-1, 1, classes * dimension, dtype=dtype).reshape(classes, dimension)
    return LinearClassifier(weights, torch.zeros(classes, dtype=dtype), bounds)


def refuse(job, words):
    with pytest.raises(CapabilityMismatch, match=words) as error:
        plan_jobs([job])
    assert "\n" not in str(error.value)


def test_a_model_cannot_be_its_own_substitute(toys):
    job = toys.make_job(toys.Straight(), THREAT, substitute=toys.TwoSides())
    refuse(job, "cannot be its own substitute; .* white-box")


@pytest.mark.parametrize("threat", [THREAT, ThreatModel(LpBall("linf", 0.1))])
def test_threat_and_job_agree(toys, threat):
    other = None if threat is THREAT else linear()
    refuse(toys.make_job(toys.Straight(), threat, substitute=other), "name different substitutes")


@pytest.mark.parametrize("access", ["transfer", "score"])
@pytest.mark.parametrize(
    ("other", "says"),
    [
        (linear(classes=3), "number of classes"),
        (linear(bounds=(0.0, 255.0)), "range of their inputs"),
        (linear(dimension=5), "cannot take an input"),
        (
            linear(dtype=torch.float32),
            "differ in their dtype.*; give it the parameter dtype=float64",
        ),
    ],
)
def test_a_substitute_fits_data_and_model(toys, access, other, says):
    refuse(toys.make_job(toys.Straight(), replace(THREAT, access=access), substitute=other), says)


def test_keep_decision_needs_the_attacked_model():
    spheres = rbi.load_dataset("spheres:d=500,n=10,size=8")
    names = ("spheres-misaligned", "spheres-max-margin")
    model, other = (load_model(name, dataset=spheres) for name in names)
    attack, threat = load_attack("spheres-invariance"), THREAT.with_goal(KeepDecision())
    threat = replace(threat, budget=LpBall("l2", 1.0))
    refuse(
        Job(model, attack, threat, spheres, 0, (0, 1), None, other),
        "needs the attacked model itself",
    )


def test_a_substitute_is_part_of_the_digest(toys):
    plain, led = ThreatModel(LpBall("linf", 0.1)), replace(THREAT, access="score")
    one, two = load_model(toys.TwoSides()), load_model(linear())
    digests = [threat_digest(threat, model) for threat in (THREAT, led) for model in (one, two)]
    assert len({*digests, threat_digest(plain)}) == 5
    renamed = replace(one, name="another name")
    assert threat_digest(replace(THREAT, substitute="x"), renamed) == digests[0]
    about = described(THREAT, two)
    assert about["substitute"] == {"name": two.name, "digest": two.digest}
    assert about["text"] == "linf=0.1:substitute=other"
    assert described(plain)["substitute"] is None


FILE = """
import torch
from torch import nn

def build(seed: int = 0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    model.bounds = (0.0, 1.0)
    return model
"""


def test_names_from_the_threat_to_the_results(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    threat = f"linf=0.1:substitute={file}:build:seed=2"
    asked = {"attack": "fgsm", "threat": threat, "dataset": "mnist5k", "samples": 10}
    models = [f"{file}:build", f"{file}:build:seed=1"]
    run = rbi.evaluate(model=models, **asked, out=tmp_path / "r", checks=False)
    first, second = run.plan.jobs
    assert first.substitute is second.substitute  # loaded once
    told = run.to_json()[0]
    assert (told["threat"], told["access"]) == (threat, "transfer")
    assert told["substitute"] == f"{file}:build:seed=2"
    again = sent(first)
    assert (again.spec, again.substitute.name) == (first.spec, told["substitute"])
    info = CellFolder(tmp_path / "r" / first.spec.digest).info
    assert info.threat.substitute.digest == first.substitute.digest
    low, high = ([e.low, e.high] for e in estimate_jobs(run.plan.jobs))
    assert low[0] > 0
    assert high[1] < low[1]  # the second model's search is there already


def test_a_job_of_objects_crosses_processes_with_its_substitute(toys):
    job = toys.make_job(toys.Straight(), THREAT, substitute=linear())
    again = sent(job)
    assert again.spec == job.spec
    assert again.substitute.digest == job.substitute.digest
