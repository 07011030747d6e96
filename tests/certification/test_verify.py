"""Certificates of an evaluation: a hidden counterexample is not certified, and models without sound bounds are named."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import ClassVar

import torch

import robustbench_inv as rbi
from robustbench_inv.certification.bounds import Region, bound, margins
from robustbench_inv.certification.milp import Program, SolverAnswer
from robustbench_inv.certification.tracing import trace
from robustbench_inv.certification.verify import _Block
from robustbench_inv.models.iresnet import classifier
from robustbench_inv.results.certificates import (
    CertificateOptions,
    SampleCertificate,
    sandwiches,
    write_certificates,
)
from robustbench_inv.testing.analytic_problems import hidden_counterexample

PLACE = torch.tensor([0.31, 0.62, 0.47, 0.55])
X = torch.full((1, 1, 1, 2), 0.5)


def evaluate(tmp_path, eps, **options):
    x = torch.full((2, 1, 2, 2), 0.5)
    x[1] = 0.1
    y = torch.zeros(2, dtype=torch.int64)
    options = {"attack": "pgd:steps=5", **options}
    given = {"progress": False, "out": tmp_path / "run", "seed": 1}
    network = hidden_counterexample(PLACE, 0.05)
    return rbi.evaluate(network, x=x, y=y, threat=f"linf={eps}", **given, **options)


def test_a_hidden_counterexample_is_found_by_milp_and_never_certified(tmp_path):
    run = evaluate(tmp_path, 0.25, certify=CertificateOptions(milp_seconds=10), checks=False)
    (found,) = sandwiches(run.cells[0])
    assert run.summary()[0].robust_accuracy[0].successes == 2  # no gradient leads there
    assert (found.certified.successes, found.attacked.successes, found.by_verifier) == (1, 1, 1)
    near, far = run.cells[0].certificates.samples
    assert (near.radius, near.broken_at, near.verifier) == (0.0, 0.25, "milp")
    assert (far.radius, far.method) == (0.25, "ibp")


def test_each_target_class_gets_the_seconds_of_the_milp_and_one_that_stays_open_ends_the_sample(
    monkeypatch,
):
    weights = torch.tensor([[1.0, 1], [0, 1], [1, 0], [0, 0]])
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 4, bias=False))
    network[1].weight.data = weights
    bounds = bound(trace(network, (1, 1, 2), 4), Region.of(X, 0.1, "linf", (0.0, 1.0)))
    lowest, given = margins(bounds, torch.tensor([0]))[0] - 10, []
    answers = iter([SolverAnswer("robust", None), SolverAnswer("open", None)])

    def search(_program, _weights, seconds):
        given.append(seconds)
        return next(answers)

    monkeypatch.setattr(Program, "search", search)
    block = SimpleNamespace(labels=torch.tensor([0]), ids=torch.tensor([7]))
    assert not _Block._solve(block, Program(bounds, 0), 0, lowest, 0.1, 5.0)
    assert given == [5.0, 5.0]


@dataclass(frozen=True)
class Revealing:
    """Proposes the hidden input."""

    kind: ClassVar[str] = "fixed-budget"
    norms: ClassVar[frozenset[str]] = frozenset({"linf"})

    def run(self, model, batch, threat, rng):
        return PLACE.reshape(1, 1, 2, 2).expand_as(batch.images).clone()


def test_a_false_certificate_fails_its_check(tmp_path):
    run = evaluate(tmp_path, 0.25, certify=True, attack=["pgd:steps=5", Revealing()])
    (verdict,) = [check for check in run.checks if check.id == "C46"]
    assert verdict.verdict == "PASS"
    cell = run.cells[0]
    false = replace(cell.certificates, samples=(SampleCertificate(0, 0.25, "crown"),))
    write_certificates(run.path / cell.digest, false)
    again = evaluate(tmp_path, 0.25, attack=["pgd:steps=5", Revealing()])
    (verdict,) = [check for check in again.checks if check.id == "C46"]
    assert (verdict.verdict, again.verdict) == ("FAIL", "do not publish")


def test_models_without_sound_bounds_get_a_note(tmp_path):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.GELU(), torch.nn.Linear(4, 2))
    network.bounds = (0.0, 1.0)
    x, y = torch.rand(4, 4), torch.tensor([0, 1, 0, 1])
    run = rbi.evaluate(
        network,
        x=x,
        y=y,
        attack="pgd:steps=2",
        threat="linf=0.1",
        certify=True,
        checks=False,
        out=tmp_path / "run",
        progress=False,
    )
    assert any("gelu" in note for note in run.notes)
    assert run.cells[0].certificates is None


def test_an_iresnet_is_certified_by_its_lipschitz_constant(tmp_path):
    torch.manual_seed(0)
    network = classifier((1, 4, 4), 2, blocks=(1,), coefficient=0.5).eval()
    x = torch.rand(3, 1, 4, 4)
    with torch.no_grad():
        y = network(x).argmax(1)
    radii = network.certified_radii(x, y)
    run = rbi.evaluate(
        network,
        x=x,
        y=y,
        attack="pgd:steps=2",
        threat="l2=0.02",
        certify=True,
        checks=False,
        out=tmp_path / "run",
        progress=False,
    )
    found = run.cells[0].certificates
    assert found.methods == ("lipschitz",)
    for each, radius in zip(found.samples, radii.tolist(), strict=True):
        assert 0.99 * radius - 1e-4 <= each.radius < radius
