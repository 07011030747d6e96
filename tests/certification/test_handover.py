"""Properties for external verifiers, and their answers: a scripted solver proves some samples and breaks others."""

import json
import re
import subprocess
import sys

import pytest
import torch

import robustbench_inv as rbi
from robustbench_inv.certification.bounds import Region
from robustbench_inv.certification.handover import property_text, read_answers, write_onnx
from robustbench_inv.certification.tracing import trace
from robustbench_inv.errors import BadModel, BadResults
from robustbench_inv.results.certificates import CertificateOptions, sandwiches
from robustbench_inv.testing.analytic_problems import hidden_counterexample
from tests.certification.test_bounds import NETWORKS, make

PLACE = torch.tensor([0.31, 0.62, 0.47, 0.55])

SOLVER = """
import pathlib, re, sys

folder = pathlib.Path(sys.argv[1])
for line in (folder / "instances.csv").read_text().split():
    network, name = line.split(",")
    assert (folder / network).stat().st_size
    text = (folder / name).read_text()
    low = [float(v) for v in re.findall(r"assert \\(>= X_\\d+ ([-\\d.]+)", text)]
    high = [float(v) for v in re.findall(r"assert \\(<= X_\\d+ ([-\\d.]+)", text)]
    place = [0.31, 0.62, 0.47, 0.55]
    inside = all(a <= p <= b for a, p, b in zip(low, place, high))
    answer = "unsat"
    if inside:
        pairs = " ".join(f"(X_{i} {p})" for i, p in enumerate(place))
        answer = f"sat\\n({pairs}\\n (Y_0 1.0) (Y_1 2.0))"
    (folder / name).with_suffix(".result").write_text(answer)
"""


def certify(tmp_path, **options):
    x = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.4, 0.4, 0.42, 0.4]])
    return rbi.evaluate(
        hidden_counterexample(PLACE, 0.05),
        x=x,
        y=torch.zeros(2, dtype=torch.int64),
        attack="pgd:steps=3",
        threat="linf=0.21",
        out=tmp_path / "run",
        progress=False,
        checks=False,
        certify=CertificateOptions(optimise=0, **options),
    )


def test_answers_of_a_separate_solver_enter_the_records(tmp_path):
    pytest.importorskip("onnx", reason="the package onnx is not installed")
    place = tmp_path / "properties"
    certify(tmp_path, export=place)
    (folder,) = place.iterdir()
    (tmp_path / "solver.py").write_text(SOLVER)
    subprocess.run([sys.executable, tmp_path / "solver.py", folder], check=True)
    run = certify(tmp_path, answers=place, solver="fake")
    first, second = run.cells[0].certificates.samples
    assert (first.broken_at, first.verifier, first.radius) == (0.21, "fake", 0.0)
    assert (second.radius, second.method) == (0.21, "fake")
    (found,) = sandwiches(run.cells[0])
    assert (found.certified.successes, found.attacked.successes, found.by_verifier) == (1, 1, 1)


def folder_with(tmp_path, result, model="m"):
    names = {
        "sample3-eps0.1": {"sample": 3, "eps": 0.1},
        "sample4-eps0.1": {"sample": 4, "eps": 0.1},
    }
    value = {"version": 2, "model": model, "properties": names}
    (tmp_path / "properties.json").write_text(json.dumps(value))
    (tmp_path / "sample3-eps0.1.result").write_text(result)
    return tmp_path


@pytest.mark.parametrize(
    ("result", "status"),
    [
        ("unsat\n", "robust"),
        ("holds", "robust"),
        ("unknown", "open"),
        ("timeout\n", "open"),
        ("error", "open"),
        ("", "open"),
        ("unsatisfiable?", "open"),
        ("sat\n((X_0 0.25)\n (X_1 1e-1) (Y_0 3))", "candidate"),
    ],
)
def test_results_of_solvers_are_read(tmp_path, result, status):
    ((sample, eps, found, image),) = read_answers(folder_with(tmp_path, result), "m")
    assert (sample, eps, found) == (3, 0.1, status)
    assert (None if image is None else image.tolist()) == (
        [0.25, 0.1] if status == "candidate" else None
    )


def test_incomplete_counterexamples_and_other_models_are_refused(tmp_path):
    with pytest.raises(BadResults, match="no counterexample"):
        read_answers(folder_with(tmp_path, "sat\n((X_1 0.5))"), "m")
    with pytest.raises(BadResults, match="another model"):
        read_answers(folder_with(tmp_path, "unsat", model="other"), "m")
    with pytest.raises(BadResults, match="no exported properties"):
        read_answers(tmp_path / "nowhere", "m")


def test_a_counterexample_that_the_judge_refutes_leaves_the_sample_open(tmp_path):
    run = certify(tmp_path)
    digest = run.plan.jobs[0].model.digest
    name = run.plan.jobs[0].model.name
    folder = tmp_path / "given" / f"{name}-linf"
    folder.mkdir(parents=True)
    value = {"version": 2, "model": digest, "properties": {"a": {"sample": 0, "eps": 0.21}}}
    (folder / "properties.json").write_text(json.dumps(value))
    (folder / "a.result").write_text("sat ((X_0 0.5) (X_1 0.5) (X_2 0.5) (X_3 0.6))")
    run = certify(tmp_path, answers=tmp_path / "given")
    assert run.cells[0].certificates.samples[0].broken_at is None
    (folder / "a.result").write_text("sat ((X_0 0.31) (X_1 0.62) (X_2 0.47) (X_3 0.55))")
    run = certify(tmp_path, answers=tmp_path / "given")
    assert run.cells[0].certificates.samples[0].broken_at == 0.21


def test_a_property_names_every_other_class():
    text = property_text(torch.zeros(2), torch.ones(2), 1, 3, "title")
    assert "(assert (or (and (>= Y_0 Y_1)) (and (>= Y_2 Y_1))))" in text
    assert text.count("declare-const") == 5
    assert len(re.findall(r"assert \(>= X_1 0.0+\)", text)) == 1


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_onnx_files_compute_the_logits_of_the_network(tmp_path, name):
    pytest.importorskip("onnx", reason="the package onnx is not installed")
    network, images = make(name)
    traced = trace(network, (1, 4, 4), 3)
    write_onnx(tmp_path / "network.onnx", traced, images[:1].double())  # it compares the logits
    wrong = torch.cat([images[:1], images[1:2]]).double()
    assert Region.of(wrong, 0.1, "linf", (0.0, 1.0)).box[0].shape == wrong.shape
    assert (tmp_path / "network.onnx").stat().st_size > 100


def test_l2_balls_have_no_property(tmp_path):
    from robustbench_inv.certification.handover import write_properties

    network, images = make("relu")
    region = Region.of(images, 0.1, "l2", (0.0, 1.0))
    with pytest.raises(BadModel, match="l2"):
        write_properties(tmp_path, trace(network, (1, 4, 4), 3), region, 0.1, {0: 0}, "m")
