"""Evaluation of names and objects: valid files, and the same records in one process and in two."""

import json
import shutil
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

import robustbench_inv as rbi
from robustbench_inv.api import evaluate, run_plan
from robustbench_inv.attacks.random_inputs import RandomPerturbation
from robustbench_inv.checks.suite import check_records, verdicts_about
from robustbench_inv.errors import (
    BadParameter,
    BadResults,
    CapabilityMismatch,
    MissingExtra,
    UsageError,
)
from robustbench_inv.evaluation.engine import RunOptions
from robustbench_inv.evaluation.jobs import EvaluationRequest
from robustbench_inv.evaluation.plan import make_plan
from robustbench_inv.evaluation.schedule import run_jobs
from robustbench_inv.reporting.exports import conclusions_of
from robustbench_inv.reporting.facts import summary_frame
from robustbench_inv.reporting.run_results import read_runs
from robustbench_inv.results.cell import CellInfo
from robustbench_inv.results.cell_parts import CellRequest
from robustbench_inv.results.cell_writing import CellWriter
from robustbench_inv.results.run_files import RunFolder

SPHERES = "spheres:d=100,n=1,r1=1,r2=1.3,size=40"
PGD = "robustbench_inv.attacks.pgd:PGD:steps=5"
NAMED = {
    "model": ["spheres-max-margin", "spheres-misaligned"],
    "dataset": SPHERES,
    "attack": PGD,
    "threat": "l2=0.1,0.2",
}


def validate(kind, value, version=2):
    name = f"schema/{kind}-v{version}.json"
    schema = json.loads((files("robustbench_inv.results") / name).read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(value, schema)


def records(run):
    return {c.digest: (c.path / "records.jsonl").read_bytes() for c in RunFolder(run.path).cells()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return evaluate(**NAMED, out=tmp_path_factory.mktemp("run") / "r", checks=False, batch_size=16)


def test_files_are_what_their_schemas_say(run):
    folder = RunFolder(run.path)
    validate("plan", folder.plan)
    assert len(folder.cells()) == 2
    for cell in folder.cells():
        validate("cell", json.loads((cell.path / "cell.json").read_text()))
        for line in (cell.path / "records.jsonl").read_text().splitlines():
            validate("record", json.loads(line))


def test_a_schema_refuses_invalid_records(run):
    line = (RunFolder(run.path).cells()[0].path / "records.jsonl").read_text().splitlines()[0]
    good = json.loads(line)
    for wrong in ({"status": "fine"}, {"sample": -1}, {"distance": {}}, {"extra": 1}):
        with pytest.raises(jsonschema.ValidationError):
            validate("record", good | wrong)


def test_the_results_from_python(run):
    first, second = run.to_json()
    assert (first["model"], first["attack"]) == ("spheres-max-margin", PGD)
    assert [r["trials"] for r in first["robust_accuracy"]] == [40, 40]
    assert set(first["clean_accuracy"]) == {"successes", "trials", "low", "high"}
    assert first["rejection"] is None
    assert Path(second["path"]).is_dir()
    assert len(run.records()) == 80
    frame = run.to_frame()
    assert list(frame["adversarial.prediction"]) == [
        r.adversarial.prediction for r in run.records()
    ]
    assert set(frame["model"]) == {"spheres-max-margin", "spheres-misaligned"}
    # the centre of the gap is 0.15 from either sphere: within 0.2, not within 0.1
    assert [r.value for r in run.summary()[0].robust_accuracy] == [1.0, 0.0]


@pytest.mark.slow
def test_two_processes_give_the_same_records(run, tmp_path):
    both = evaluate(**NAMED, out=tmp_path / "r", checks=False, batch_size=16, workers=2)
    assert both.failures == ()
    assert records(both) == records(run)


def test_ray_gives_the_same_records(run, tmp_path):
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    far = evaluate(**NAMED, out=tmp_path / "r", checks=False, batch_size=16, workers="ray")
    assert records(far) == records(run)


def test_missing_ray_is_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"robustbench-inv\[ray\]"):
        evaluate(**NAMED, out=tmp_path / "r", checks=False, workers="ray")


@pytest.mark.parametrize("workers", [-2, -1, "far", "ray:,gpus=1"])
def test_unusable_workers_leave_no_folder(tmp_path, workers):
    with pytest.raises(BadParameter, match="number of workers"):
        evaluate(**NAMED, out=tmp_path / "r", checks=False, workers=workers)
    assert not (tmp_path / "r").exists()


def test_names_and_objects_give_the_same_cell(run, tmp_path):
    again = evaluate(
        model=rbi.load_model("spheres-max-margin", dataset=rbi.load_dataset(SPHERES)),
        attack=rbi.load_attack("robustbench_inv.attacks.pgd:PGD", steps=5),
        threat=rbi.load_threat("l2=0.1,0.2"),
        dataset=rbi.load_dataset(SPHERES),
        out=tmp_path / "r",
        checks=False,
    )
    assert records(again).keys() < records(run).keys()


def test_fewer_samples_of_a_larger_run(run):
    few = evaluate(**NAMED, samples=10, out=run.path, checks=False)
    assert len(few.records()) == 20
    assert [c["clean_accuracy"]["trials"] for c in few.to_json()] == [10, 10]
    assert len(evaluate(**NAMED, out=run.path, checks=False).records()) == 80


def test_a_crash_is_a_failure_and_the_others_run(toys, tmp_path):
    run = evaluate(
        model=toys.TwoSides(),
        attack=[toys.Breaks(sample=7), toys.Straight()],
        threat="linf=0.05",
        dataset=toys.points(),
        out=tmp_path / "r",
        batch_size=20,
    )
    (failure,) = run.failures
    assert "crashed on 1 sample (7): ZeroDivisionError" in str(failure)
    assert [c["statuses"].get("crash", 0) for c in run.to_json()] == [1, 0]
    verdicts = {v["id"]: v["verdict"] for v in run.to_json()[0]["checks"]}
    assert verdicts["C30"] == "FAIL"
    assert {v["id"]: v["verdict"] for v in run.to_json()[1]["checks"]}["C30"] == "PASS"
    # it stays visible when nothing is left to do
    assert run_plan(run.plan, run.path).failures == run.failures


def test_a_cell_that_fails_does_not_stop_the_others(toys, tmp_path, monkeypatch):
    from robustbench_inv.evaluation import sharing

    jobs = [toys.make_job(toys.Straight()), toys.make_job(toys.Draws())]
    real = sharing.open_cell

    def failing(job, *rest, **named):
        if job is jobs[0]:
            raise RuntimeError("no\nluck")
        return real(job, *rest, **named)

    monkeypatch.setattr(sharing, "open_cell", failing)
    seen = []
    first, second = run_jobs(jobs, tmp_path, RunOptions(), seen.append)
    assert first.failure == "RuntimeError: no luck"
    assert second.failure is None
    assert [p.state for p in seen if p.cell == 1] == ["failed"]
    assert {(p.cell, p.cells) for p in seen} == {(1, 2), (2, 2)}


@pytest.mark.parametrize("workers", [-1, "many", "ray,gpus=x"])
def test_unusable_workers(workers, tmp_path):
    with pytest.raises(BadParameter, match="workers"):
        evaluate(**NAMED, out=tmp_path / "r", workers=workers)


def test_defaults():
    plan = make_plan(
        EvaluationRequest(models=["spheres-max-margin"], attacks=[PGD], threat="l2=0.1")
    )
    assert plan.jobs[0].dataset.name.startswith("spheres")
    unnamed = make_plan(EvaluationRequest(models=["spheres-max-margin"], threat="l2=0.1"))
    assert [job.attack.name for job in unnamed.jobs] == ["standard"]
    suite = make_plan(
        EvaluationRequest(models=["spheres-max-margin"], suite="quick", threat="l2=0.1")
    )
    assert "standard" not in {job.attack.name for job in suite.jobs}


def test_the_default_budget_of_digits():
    plan = make_plan(EvaluationRequest(models=["mnist-cnn"], attacks=[PGD], samples=10))
    (job,) = plan.jobs
    assert job.dataset.name == "mnist5k"
    assert (job.threat.norm, job.epsilons[-1]) == ("linf", 0.3)
    assert len(job.samples) == 10


def test_an_object_needs_a_data_set_and_other_data_a_budget(toys):
    question = EvaluationRequest(
        models=[toys.TwoSides()], attacks=[toys.Straight()], dataset=toys.points()
    )
    with pytest.raises(CapabilityMismatch, match="no customary"):
        make_plan(question)
    with pytest.raises(UsageError, match="names no data set"):
        make_plan(EvaluationRequest(models=[toys.TwoSides()], attacks=[toys.Straight()]))


@pytest.mark.parametrize("version", [1, 2])
def test_an_old_run_loads(version):
    folder = RunFolder(Path(__file__).parent.parent / "data" / f"run-v{version}")
    validate("plan", folder.plan, version)
    cells = folder.cells()
    assert [len(cell.records()) for cell in cells] == [12, 12]
    assert all(cell.finished for cell in cells)
    assert [r.broken_at for r in cells[0].records()][:6] == [0.0, 0.02, 0.05, 0.02, None, 0.02]
    assert cells[0].images()["adversarial"].shape == (12, 8)
    assert {v["id"] for v in folder.checks()} >= {"C14", "C30"}
    assert {v["rule"] for v in folder.checks()}
    assert {event["event"] for cell in cells for event in cell.events()} == {"block_time", "crash"}
    for cell in cells:
        validate("cell", json.loads((cell.path / "cell.json").read_text()), version)
        assert cell.info.version == version
        validate("cell", cell.info.to_json())
        assert CellInfo.from_json(cell.info.to_json()) == replace(cell.info, version=2)


def test_records_are_never_added_to_a_run_of_version_1(tmp_path):
    old = Path(__file__).parent.parent / "data" / "run-v1"
    run = shutil.copytree(old, tmp_path / "run")
    (folder, _) = RunFolder(run).cells()
    before = (folder.path / "records.jsonl").read_bytes()
    request = CellRequest(folder.info.to_json(), (0, 1), 4)
    with pytest.raises(BadResults, match=r"earlier version.*--out"):
        CellWriter(folder.path, request)
    assert (folder.path / "records.jsonl").read_bytes() == before


def test_a_run_of_version_1_is_reported_and_checked_like_one_of_version_2():
    folders = [Path(__file__).parent.parent / "data" / f"run-v{version}" for version in (1, 2)]
    old, new = ([c for r in read_runs([folder]) for c in r.cells] for folder in folders)
    assert check_records(old) == check_records(new)
    assert summary_frame(old).equals(summary_frame(new))
    assert [cell.kind for cell in old] == ["fixed-budget", "fixed-budget"]


def test_verdicts_of_the_same_cells_are_kept_and_others_made_again(tmp_path, monkeypatch):
    from robustbench_inv import api
    from robustbench_inv.evaluation import provenance

    probed = []
    real = api.probe_model
    monkeypatch.setattr(
        api,
        "probe_model",
        lambda model, *rest, **k: probed.append(model.name) or real(model, *rest, **k),
    )
    asked = {**NAMED, "out": tmp_path / "r", "samples": 8}
    first = evaluate(**asked)
    assert len(probed) == 2
    text = (first.path / "checks.json").read_bytes()
    assert evaluate(**asked).checks == first.checks
    assert (first.path / "checks.json").read_bytes() == text
    assert len(probed) == 2
    evaluate(**{**asked, "samples": 12})
    assert len(probed) == 4
    monkeypatch.setattr(provenance, "digest_package", lambda: "other code")
    evaluate(**{**asked, "samples": 12})
    assert len(probed) == 6


def test_a_check_that_could_not_be_made_is_made_again(tmp_path, monkeypatch):
    from robustbench_inv.checks import gradients

    def fail(_):
        raise MemoryError("no memory")

    asked = {**NAMED, "out": tmp_path / "r", "samples": 8}
    with monkeypatch.context() as patched:
        patched.setattr(gradients, "check_saturation", fail)
        first = {v.verdict for v in evaluate(**asked).checks if v.id == "C7"}
    assert first == {"NA"}
    assert {v.verdict for v in evaluate(**asked).checks if v.id == "C7"} == {"PASS"}


def test_checks_are_made_again_of_records_that_were_added(tmp_path, monkeypatch):
    """The second attack runs out of memory: its cell has no records, which a later run completes."""

    def fail(*_, **__):
        raise MemoryError("no memory")

    asked = {**NAMED, "model": "spheres-max-margin", "attack": ["fgsm", "random-perturbation"]}
    asked |= {"out": tmp_path / "r", "samples": 8}
    with monkeypatch.context() as patched:
        patched.setattr(RandomPerturbation, "run", fail)
        with pytest.warns(rbi.EvaluationWarning):
            first = evaluate(**asked)
    assert len(first.failures) == 1
    (shown,) = conclusions_of(read_runs([first.path])[0])
    for conclusion in (*first.conclusions, shown):
        assert any("Samples are missing in 1 of 2" in each.text for each in conclusion.reasons)
    found = evaluate(**asked)
    (noise,) = (cell for cell in found.cells if cell.attack.name == "random-perturbation")
    about = {v.id: v for v in verdicts_about(found.checks, noise)}
    assert about["C22"].verdict == "PASS"
    assert "8 recorded: 0 missing" in about["C23"].evidence
