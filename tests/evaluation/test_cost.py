"""Estimates: the attack is tried on a few samples, and the trial changes nothing."""

import threading
import time

import torch
from torch import nn

from robustbench_inv.attacks.fast_minimum_norm import DDN
from robustbench_inv.attacks.pgd import PGD
from robustbench_inv.cli.run_tables import format_duration
from robustbench_inv.evaluation import cost
from robustbench_inv.evaluation.cost import estimate_jobs
from robustbench_inv.evaluation.jobs import EvaluationRequest, build_jobs


class Sleeps(nn.Module):
    """A network whose forward pass takes a time."""

    bounds, num_classes = (0.0, 1.0), 2

    def __init__(self, inner, seconds=0.0):
        super().__init__()
        self.inner, self.seconds = inner, seconds
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images):
        time.sleep(self.seconds)
        self.calls += 1
        return self.inner(images)


def test_times_are_extrapolated_by_passes_of_batches_and_of_samples():
    small, large = cost._Trial(4, 0.4, 10, 40), cost._Trial(16, 0.4, 10, 160)
    slow = cost._Trial(16, 1.6, 10, 160)
    assert 0.3 < cost._extrapolated([small, large], large, 250) < 2.0  # whatever the batch's size
    assert abs(cost._extrapolated([small, slow], slow, 1000) - 100.0) < 1  # in proportion to it


def test_passes_that_most_samples_do_not_need_count_once_for_a_block():
    """Of four samples one survived long; an ensemble's time for 500 samples is not 125 times as long."""
    small, large = cost._Trial(4, 3.0, 1000, 1100), cost._Trial(16, 3.3, 1000, 1700)
    assert 6.0 < cost._extrapolated([small, large], large, 500) < 35.0


def test_a_whole_block_needs_no_model_of_its_time():
    block = cost._Trial(250, 5.0, 100, 9000)
    assert cost._extrapolated([cost._Trial(4, 4.0, 90, 300), block], block, 1000) == 20.0


def test_a_stopped_trial_is_completed_by_the_passes_of_survivors(toys):
    job = toys.make_job(PGD(400), toys.linf(0.001), module=Sleeps(toys.TwoSides(torch.float32)))
    begun = cost._Trial(4, 2.0, 20, 80, finished=False, surviving=0.5)
    whole = cost._completed(job, begun)
    assert whole.calls == 2 * 401
    assert whole.passes == 0.5 * 4 * 2 * 401


def test_the_attack_is_tried_and_the_model_gets_no_hook(toys):
    model = Sleeps(toys.TwoSides(torch.float32)).train()
    (estimate,) = estimate_jobs([toys.make_job(PGD(2), toys.linf(0.001), module=model)])
    assert estimate.timed == 60
    assert 0 < estimate.low < estimate.seconds < estimate.high
    assert not any(model._forward_pre_hooks.values())


def test_a_model_that_cannot_be_copied_gets_no_hook_either(toys, monkeypatch):
    monkeypatch.setattr(cost, "TRIAL_SECONDS", 0.05)
    model = Sleeps(toys.TwoSides(torch.float32), 0.01)
    model.lock = threading.Lock()
    job = toys.make_job(PGD(400), toys.linf(0.001), module=model)
    found = [estimate_jobs([job])[0].timed for _ in range(2)]
    assert found == [4, 4]
    assert not any(each._forward_pre_hooks for each in model.modules())


def test_a_trial_that_takes_too_long_is_stopped(toys, monkeypatch):
    monkeypatch.setattr(cost, "TRIAL_SECONDS", 0.05)
    job = toys.make_job(
        PGD(400), toys.linf(0.001), module=Sleeps(toys.TwoSides(torch.float32), 0.01)
    )
    (estimate,) = estimate_jobs([job])
    assert estimate.timed == 4  # perhaps stopped by the time limit
    assert estimate.seconds >= 401 * 0.01
    assert estimate.high == cost.STOPPED_SPREAD * estimate.seconds


def test_further_attacks_are_not_tried_beyond_the_time_limit(toys, monkeypatch):
    monkeypatch.setattr(cost, "TRIALS_SECONDS", 0.0)
    (estimate,) = estimate_jobs([toys.make_job(PGD(2), toys.linf(0.001))])
    assert estimate.timed == 0


def test_an_attack_that_seeks_smaller_distances_is_not_expected_to_end_early(toys, monkeypatch):
    """Without a trial ``minimum-norm`` was estimated at 5 s and took 200 s: it continues on broken samples."""
    monkeypatch.setattr(cost, "TRIALS_SECONDS", 0.0)
    jobs = [toys.make_job(attack, toys.linf(0.1)) for attack in (DDN(steps=100), PGD(100))]
    nearest, fixed = estimate_jobs(jobs)
    assert nearest.seconds >= nearest.high / 2.1
    assert fixed.seconds < fixed.high / 5, "broken samples end"


def test_times_are_written_in_the_unit_that_suits_them():
    assert format_duration(3000, 1800, 5400) == "about 50 min (30 to 90)"
    assert format_duration(0.4, 0.2, 0.8) == "about 0.4 s (0.2 to 0.8)"
    assert format_duration(90_000, 45_000, 180_000) == "about 25 h (12 to 50)"


def test_an_attack_that_asks_the_oracle_is_tried(monkeypatch):
    monkeypatch.setattr(cost, "TRIAL_SECONDS", 0.3)
    asked = {"dataset": "mnist5k", "samples": 4}
    request = EvaluationRequest(["mnist-mlp"], ["invariance-standard"], **asked)
    (estimate,) = estimate_jobs(build_jobs(request))
    assert estimate.timed == 4  # perhaps stopped by the time limit
