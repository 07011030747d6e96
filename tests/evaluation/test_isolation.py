"""The fault of one sample stays that sample's: of the model, of the attack, of the oracle, and of memory."""

import json
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import jsonschema
import pytest
import torch
from torch import nn

from robustbench_inv.api import evaluate
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.errors import BadData, BadModel, DeadlinePassed, TimeLimitExceeded
from robustbench_inv.evaluation.engine import RunOptions
from robustbench_inv.evaluation.judge import Judge
from robustbench_inv.evaluation.loading import inspect_model
from robustbench_inv.evaluation.schedule import run_cell
from robustbench_inv.evaluation.search import make_searches
from robustbench_inv.isolation import attempts_for, isolate
from robustbench_inv.results.run_files import CellFolder
from robustbench_inv.tensors import Output, is_out_of_memory

FAULTY = (0, 17, 18, 41)


def run(job, folder, **settings):
    run_cell(job, folder, RunOptions(**settings))
    cell = CellFolder(folder)
    return cell.records(), cell.events()


def faulty_model(toys, fault, samples=FAULTY, rejects=False):
    """Return a TwoSides with a fault on the clean inputs of some samples, which it recognises by their values."""
    images, _ = toys.points().batch(list(samples))

    class Faulty(toys.TwoSides):
        def forward(self, batch):
            hit = (batch[:, None] == images).flatten(2).all(2).any(1)
            logits = super().forward(batch)
            if hit.any() and fault == "raise":
                raise ValueError("no such image")
            if hit.any() and fault == "shape":
                return logits[~hit]
            if fault == "nan":
                logits = torch.where(hit[:, None], torch.nan, logits)
            if not rejects:
                return logits
            score = (
                torch.where(hit, torch.nan, logits.amax(1)) if fault == "score" else logits[:, 0]
            )
            return Output(logits, score, torch.ones_like(hit))

    return Faulty()


@pytest.fixture(scope="module")
def usual(toys, tmp_path_factory):
    """The records of a model without a fault, in batches of a size."""
    job, folder = toys.make_job(toys.Straight()), tmp_path_factory.mktemp("usual")
    return cache(lambda size: run(job, folder / str(size), batch_size=size)[0])


@pytest.mark.parametrize("fault", ["raise", "nan", "shape"])
@pytest.mark.parametrize("size", [1, 16, 60])
def test_a_clean_fault_is_one_sample_misclassified(toys, tmp_path, usual, fault, size):
    job = toys.make_job(toys.Straight(), module=faulty_model(toys, fault))
    records, events = run(job, tmp_path / "c", batch_size=size)
    for record, known in zip(records, usual(size), strict=True):
        if record.sample not in FAULTY:
            assert record == known
            continue
        assert record.status == "model_failure"
        assert (record.clean.prediction, record.adversarial.prediction) == (-1, -1)
        assert (record.broken_at, record.goal_reached, record.forward_passes) == (0.0, True, 0)
        assert not record.was_attacked
    failures = [e for e in events if e["event"] == "model_failure"]
    assert sorted(s for e in failures for s in e["samples"]) == list(FAULTY)
    expected = {
        "raise": "ValueError: no such image",
        "nan": "the model's output is not a number",
        "shape": "the model's output is not a batch of logits",
    }[fault]
    assert all(expected in e["reason"] for e in failures)


@pytest.mark.parametrize("fault", ["nan", "score", "raise"])
def test_a_failed_input_counts_as_accepted(toys, tmp_path, fault):
    job = toys.make_job(toys.Straight(), module=faulty_model(toys, fault, rejects=True))
    records, _ = run(job, tmp_path / "c", batch_size=16)
    failed = [r for r in records if r.status == "model_failure"]
    assert [r.sample for r in failed] == list(FAULTY)
    assert {(r.clean.score, r.clean.accepted) for r in failed} == {(None, True)}


def test_failed_samples_are_named_and_counted_everywhere(toys, tmp_path):
    found = evaluate(
        model=faulty_model(toys, "raise", (8, 30)),
        attack=toys.Straight(),
        threat="linf=0.02,0.05",
        dataset=toys.points(),
        out=tmp_path / "r",
        batch_size=20,
    )
    (failure,) = found.failures
    assert "failed on 2 samples (8, 30), which count as misclassified: ValueError" in str(failure)
    (cell,) = found.to_json()
    assert cell["statuses"]["model_failure"] == 2
    assert cell["clean_accuracy"]["successes"] == 60 - 5 - 2
    verdicts = {v["id"]: v for v in cell["checks"]}
    assert verdicts["C22"]["verdict"] == "PASS"
    assert "2 model_failure" in verdicts["C30"]["evidence"]
    from robustbench_inv.reporting.provenance import list_failures

    (listed,) = list_failures(found.cells)
    assert (listed.status, listed.count, listed.reason) == (
        "model failure",
        2,
        "ValueError: no such image",
    )


def test_the_schema_knows_failed_samples(toys, tmp_path):
    from pathlib import Path

    import robustbench_inv.results

    run(toys.make_job(toys.Straight(), module=faulty_model(toys, "nan")), tmp_path / "c")
    folder = Path(robustbench_inv.results.__file__).parent / "schema"
    schema = json.loads((folder / "record-v2.json").read_text())
    for line in (tmp_path / "c" / "records.jsonl").read_text().splitlines():
        jsonschema.validate(json.loads(line), schema)


def test_a_model_that_fails_on_all_samples_is_refused(toys, tmp_path):
    everything = tuple(range(60))
    for fault, error, size in (
        ("nan", BadModel, 60),
        ("nan", BadModel, 1),
        ("raise", ValueError, 1),
    ):
        job = toys.make_job(toys.Straight(), module=faulty_model(toys, fault, everything))
        with pytest.raises(error):
            run(job, tmp_path / f"{fault}{size}", batch_size=size)
        assert CellFolder(tmp_path / f"{fault}{size}").records() == []


def test_a_model_that_takes_single_inputs_alone_is_judged(toys):
    class Single(toys.TwoSides):
        def forward(self, images):
            if len(images) > 1:
                raise RuntimeError("one at a time")
            return super().forward(images)

    data = toys.points()
    images, labels = data.batch(list(range(5, 60)))
    judge = Judge(toys.make_job(toys.Straight(), module=Single()).model.classifier, data, 0)
    assert (judge.predict(images, torch.arange(5, 60)).decision == labels).all()
    assert judge.take_raised() == {}


def test_planning_looks_at_more_than_one_sample(toys):
    job = toys.make_job(toys.Straight(), module=faulty_model(toys, "raise", (0,)))
    assert inspect_model(job.model, job.dataset).problem is None
    job = toys.make_job(toys.Straight(), module=faulty_model(toys, "raise", tuple(range(60))))
    assert "cannot take an input" in str(inspect_model(job.model, job.dataset).problem)


def test_a_fault_among_the_probed_samples_keeps_the_short_run(toys):
    from robustbench_inv.attacks.pgd import PGD

    for fault in ("nan", "raise"):
        job = toys.make_job(PGD(steps=3), module=faulty_model(toys, fault))
        search, short_run = make_searches(job, torch.device("cpu"))
        assert search.deterministic
        assert short_run is not None


@dataclass(frozen=True)
class Chokes:
    """The attack ``Straight`` that raises if a batch holds one of some samples."""

    inner: object
    samples: tuple = (23,)
    calls: list = ()
    kind: ClassVar = "fixed-budget"
    norms: ClassVar = frozenset({"linf"})

    def run(self, model, batch, threat, rng):
        if isinstance(self.calls, list):
            self.calls.append(len(batch))
        images = self.inner.run(model, batch, threat, rng)
        model.log("steps", torch.ones(len(batch)))
        for sample in self.samples:
            if sample in batch.ids.tolist():
                raise ZeroDivisionError(f"sample {sample}")
        return images


@pytest.mark.parametrize("size", [1, 20, 60])
def test_an_attack_that_raises_for_single_samples_runs_on_the_others(toys, tmp_path, size):
    faulty = (9, 23, 24)
    sweep = toys.linf(0.02, 0.05, 0.1)
    records, events = run(
        toys.make_job(Chokes(toys.Straight(), faulty), sweep), tmp_path / "c", batch_size=size
    )
    usual, _ = run(toys.make_job(toys.Straight(), sweep), tmp_path / "usual", batch_size=size)
    for record, known in zip(records, usual, strict=True):
        if record.sample in faulty:
            assert (record.status, record.goal_reached) == ("crash", False)
        else:
            assert record == known
    crashes = {s: e["reason"] for e in events if e["event"] == "crash" for s in e["samples"]}
    assert crashes == {s: f"ZeroDivisionError: sample {s}" for s in faulty}
    steps = [e for e in events if e["event"] == "sample_values"]
    assert {s for e in steps for s in e["samples"]} >= {5, 6, 59}


def test_an_attack_that_always_raises_ends_after_few_further_searches(toys, tmp_path):
    calls = []
    everything = tuple(range(60))
    job = toys.make_job(Chokes(toys.Straight(), everything, calls), toys.linf(0.02, 0.05, 0.1))
    records, _ = run(job, tmp_path / "c", batch_size=60)
    assert {r.status for r in records[5:]} == {"crash"}
    assert 1 < len(calls) <= 2 + 1.1 * attempts_for(55)
    assert sum(calls) < 6 * 55


def test_a_proposal_on_which_the_model_raises_is_no_example(toys, tmp_path):
    class Afar(toys.TwoSides):
        def forward(self, images):
            if (images > 0.66).any():
                raise ValueError("too bright")
            return super().forward(images)

    records, events = run(
        toys.make_job(toys.Returns("far"), toys.linf(0.5), module=Afar()), tmp_path / "c"
    )
    assert {r.status for r in records[5:]} <= {"numerics", "crash"}
    assert not any(r.goal_reached for r in records[5:])
    reasons = {e["reason"] for e in events if e["event"] in ("numerics", "crash")}
    assert reasons == {"ValueError: too bright"}


def test_an_oracle_that_raises_for_one_image_leaves_it_unknown(toys):
    class Oracle:
        source = "shy"

        def classify(self, images, ids):
            if 3 in ids.tolist():
                raise ValueError("not this one")
            return torch.ones(len(images), dtype=torch.int64)

    data = toys.points()
    images, _ = data.batch(list(range(8)))
    judge = Judge(toys.make_job(toys.Straight()).model.classifier, data, 0, Oracle())
    assert judge.true_classes(images, torch.arange(8)).tolist() == [1, 1, 1, -1, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="not this one"):
        judge.true_classes(images[3:4], torch.tensor([3]))


def test_a_damaged_image_of_the_data_is_named(toys, tmp_path):
    class Damaged(ArrayDataset):
        def batch(self, ids):
            images, labels = super().batch(ids)
            return images.where((torch.as_tensor(ids) != 37)[:, None], torch.nan), labels

    data = Damaged(*toys.points().batch(list(range(60))), "points")
    with pytest.raises(BadData, match="sample 37 of points"):
        run(toys.make_job(toys.Straight(), data=data), tmp_path / "c")


class Hungry(nn.Module):
    """Has no memory for more than two images at once."""

    bounds, num_classes = (0.0, 1.0), 2

    def __init__(self, inner, most=2):
        super().__init__()
        self.inner, self.most = inner, most

    def forward(self, images):
        if len(images) > self.most:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return self.inner(images)


def test_too_little_memory_in_probes_stops_nothing(toys, tmp_path):
    found = evaluate(
        model=Hungry(toys.TwoSides()),
        attack=toys.Straight(),
        threat="linf=0.02,0.05",
        dataset=toys.points(),
        out=tmp_path / "r",
    )
    assert found.failures == ()
    assert [r.sample for r in found.records()] == list(range(60))
    verdicts = {v["id"]: v["verdict"] for v in found.to_json()[0]["checks"]}
    assert [verdicts[id_] for id_ in ("C10", "C11", "C17")] == ["PASS"] * 3


def test_too_little_memory_in_a_calibration_halves_its_batches(toys):
    from robustbench_inv.experiments.calibration import collect_outputs

    data = toys.points()
    model = toys.make_job(toys.Straight(), module=Hungry(toys.TwoSides())).model.classifier
    output, _ = collect_outputs(model, data, range(60))
    expected = toys.TwoSides()(data.batch(list(range(60)))[0]).detach()
    torch.testing.assert_close(output.logits, expected)


def test_a_calibration_leaves_invalid_outputs_out_and_counts_them(toys):
    from robustbench_inv.experiments.calibration import CalibrationData, calibrate

    images = torch.rand((400, 8), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    data = ArrayDataset(images, toys.TwoSides()(images).argmax(1).detach(), "many")
    kept = ArrayDataset(images[7:], data.labels[7:], "most")

    class Shy(toys.TwoSides):
        def __init__(self, fault):
            super().__init__()
            self.fault = fault

        def forward(self, batch):
            hit = (batch[:, None] == images[:7]).flatten(2).all(2).any(1)
            if hit.any() and self.fault == "raise":
                raise ValueError("not this one")
            return torch.where(hit[:, None], torch.nan, super().forward(batch))

    for fault in ("nan", "raise"):
        model = toys.make_job(toys.Straight(), module=Shy(fault)).model
        found = calibrate(model, CalibrationData(data, 0, 400))
        usual = calibrate(model, CalibrationData(kept, 0, 393))
        assert found.facts["invalid"] == "7"
        assert "invalid" not in usual.facts
        for name, values in usual.values.items():
            torch.testing.assert_close(found.values[name], values)


@pytest.mark.parametrize("stop", [DeadlinePassed, TimeLimitExceeded])
def test_the_end_of_the_time_is_no_fault_of_a_sample(stop):
    with pytest.raises(stop, match="over"):
        list(isolate(len, torch.arange(4), stop("over")))

    def late(rows):
        raise stop("over") if len(rows) == 1 else ValueError("bad")

    with pytest.raises(stop, match="over"):
        list(isolate(late, torch.arange(4), ValueError("bad")))


def test_isolation_finds_the_rows_with_few_calls():
    calls = []

    def check(rows):
        calls.append(len(rows))
        if {3, 200} & set(rows.tolist()):
            raise ValueError("bad")
        return rows

    parts = list(isolate(check, torch.arange(256), ValueError("bad")))
    assert torch.equal(torch.cat([rows for rows, _ in parts]), torch.arange(256))
    assert [rows.tolist() for rows, found in parts if isinstance(found, Exception)] == [[3], [200]]
    assert len(calls) == 2 + 4 * 7


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("any"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
    ],
)
def test_errors_about_memory_are_known(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(ValueError("out of memory"))
