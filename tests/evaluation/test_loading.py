"""Loaded batches: a constant pool of other inputs, and counterparts for fixed-input attacks."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from robustbench_inv.attacks.fixed_inputs import Counterpart
from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.checks.records import check_adversarial_inputs, check_consistency
from robustbench_inv.errors import CapabilityMismatch
from robustbench_inv.evaluation.engine import RunOptions
from robustbench_inv.evaluation.loading import Loader
from robustbench_inv.evaluation.plan import plan_jobs
from robustbench_inv.evaluation.schedule import run_cell
from robustbench_inv.results.cell_events import sample_values
from robustbench_inv.results.run_files import CellFolder
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.threat.goals import Misclassify
from robustbench_inv.threat.threat_model import ThreatModel


class Mirrored:
    """Points and their mirror images, which the classifier of both sides gives the other class."""

    def __init__(self, data):
        self.data = data
        self.loads = 0

    def __getattr__(self, name):
        return getattr(self.data, name)

    def __len__(self):
        return len(self.data)

    def batch(self, ids):
        self.loads += 1
        return self.data.batch(ids)

    def counterparts(self, ids):
        return 1 - self.data.batch(ids)[0]


@dataclass(frozen=True)
class Donates:
    """Shows the pool's first input to all, and notes how large the pool is."""

    kind: ClassVar = "fixed-budget"
    norms: ClassVar = frozenset({"linf"})

    def run(self, model, batch, threat, rng):
        pool = batch.pool
        model.log("size", torch.full((len(batch),), len(pool.ids)))
        model.log("mean", pool.images.mean().expand(len(batch)))
        return threat.budget.project(batch.images, pool.images[:1].expand_as(batch.images))


@pytest.fixture
def mirrored(toys):
    return Mirrored(toys.points())


def shift_job(toys, data, attack=None, **changes):
    threat = ThreatModel(toys.none.budget, Misclassify())
    return replace(toys.make_job(attack or Counterpart(), threat, data=data), **changes)


def evaluate(job, folder, **settings):
    run_cell(job, folder, RunOptions(**settings))
    return CellFolder(folder)


def test_a_loader_gives_counterparts_and_the_same_pool_to_every_batch(mirrored):
    loader = Loader(mirrored, torch.device("cpu"), torch.float32)
    first, second = loader.batch([0, 7]), loader.batch([9])
    assert first.pool is second.pool
    assert mirrored.loads == 2  # the pool is not loaded before it is asked for
    assert torch.equal(first.pool.images, second.pool.images)
    assert mirrored.loads == 3
    assert torch.allclose(first.counterparts, 1 - first.images)
    assert first.counterparts.dtype == torch.float32
    assert first.pool.ids.tolist() == list(range(60))


def test_a_data_set_without_counterparts_has_none(toys):
    assert Loader(toys.points(), torch.device("cpu"), torch.float64).batch([1]).counterparts is None


def test_rows_of_a_batch_keep_the_pool_whole(mirrored):
    batch = Loader(mirrored, torch.device("cpu"), torch.float64).batch([3, 4, 5])
    for rows in (torch.tensor([2, 0]), torch.tensor([True, False, True])):
        few = batch[rows]
        assert few.pool is batch.pool
        assert torch.equal(few.counterparts, batch.counterparts[rows])
        assert torch.equal(few.ids, batch.ids[rows])
        assert few.start is None
    plain = Batch(batch.images, batch.labels, batch.ids)
    assert plain[torch.tensor([1])].pool is None


def test_the_pool_is_the_same_for_every_batch_size_and_resume(toys, tmp_path):
    job = toys.make_job(Donates(), toys.linf(0.3))
    whole = evaluate(job, tmp_path / "whole")
    small = evaluate(job, tmp_path / "small", batch_size=7)
    evaluate(replace(job, samples=job.samples[:20]), tmp_path / "again", batch_size=7)
    again = evaluate(job, tmp_path / "again", batch_size=7)
    records = {r.sample: r.to_json_line() for r in whole.records()}
    for cell in (small, again):
        assert {r.sample: r.to_json_line() for r in cell.records()} == records
        assert sample_values(cell.events()) == sample_values(whole.events())
    attacked = [r.sample for r in whole.records() if r.status != "already_wrong"]
    assert sample_values(whole.events())["size"] == dict.fromkeys(attacked, 60)


def test_fixed_inputs_are_judged_for_every_sample(toys, mirrored, tmp_path):
    cell = evaluate(shift_job(toys, mirrored), tmp_path / "c", keep_images=True, batch_size=16)
    records = cell.records()
    wrong = {r.sample for r in records if r.status == "already_wrong"}
    assert wrong == set(range(5))
    module = toys.TwoSides()
    for r in records:
        image = mirrored.counterparts([r.sample])
        assert r.adversarial.prediction == module(image).argmax(1).item()
        assert r.adversarial.prediction != r.clean.prediction
        assert r.distance.linf > 0
        assert r.forward_passes == 0
        assert r.goal_reached == ((r.sample in wrong) or r.adversarial.prediction != r.label)
        assert (r.broken_at == 0) == (r.sample in wrong)
    view = cell.read()
    assert check_consistency(view).verdict == "PASS"
    assert check_adversarial_inputs(view).verdict == "PASS"


def test_a_fixed_input_outside_the_budget_is_no_success(toys, mirrored, tmp_path):
    near = ThreatModel(LpBall("linf", 1e-3), Misclassify())
    job = shift_job(toys, mirrored, threat=near)
    records = evaluate(job, tmp_path / "c").records()
    assert not any(r.goal_reached for r in records if r.status != "already_wrong")
    assert not any(r.within_budget for r in records)


def test_a_data_set_without_counterparts_is_refused(toys):
    with pytest.raises(CapabilityMismatch, match=r"counterpart on twosides: .* got 'points'"):
        plan_jobs([shift_job(toys, toys.points())])


def test_an_incompatible_optional_job_is_skipped_with_a_warning(toys):
    fits = toys.make_job(toys.Straight(), toys.linf(0.05))
    other = shift_job(toys, toys.points(), optional=True)
    plan = plan_jobs([other, fits])
    assert plan.jobs == (fits,)
    assert [line.split(":")[0] for line in plan.warnings] == ["skipped"]
    with pytest.raises(CapabilityMismatch, match="counterpart on twosides"):
        plan_jobs([other])


def test_infinite_numbers_are_logged_as_null(toys, tmp_path):
    @dataclass(frozen=True)
    class Measures(Donates):
        def run(self, model, batch, threat, rng):
            model.log("bad", torch.full((len(batch),), float("inf")))
            return batch.images

    cell = evaluate(toys.make_job(Measures(), toys.linf(0.1)), tmp_path / "c")
    assert set(sample_values(cell.events())["bad"].values()) == {None}


def test_the_last_logged_number_of_a_sample_counts():
    notes = [
        {"event": "sample_values", "samples": [1, 2], "values": {"a": [0.1, 0.2]}},
        {"event": "block_time"},
        {"event": "sample_values", "samples": [2], "values": {"a": [0.3]}},
    ]
    assert sample_values(notes) == {"a": {1: 0.1, 2: 0.3}}
