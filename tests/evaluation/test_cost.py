"""Estimates: the attack is tried on a few samples, and the trial changes nothing."""

import threading
import time

import torch
from torch import nn

from robustbench_inv.attacks.pgd import PGD
from robustbench_inv.cli.run_tables import format_duration
from robustbench_inv.evaluation import cost
from robustbench_inv.evaluation.cost import estimate_jobs


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


def test_a_trial_is_extrapolated_block_by_block():
    one, two = cost._extrapolated({4: 0.4}, 250), cost._extrapolated({4: 0.4, 16: 0.4}, 250)
    assert one == 12.7
    assert 0.3 < two < 2.0  # a batch takes the same time whatever its size
    assert cost._extrapolated({4: 0.4, 16: 1.6}, 1000) == 100.0


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
    assert estimate.timed == 4
    assert estimate.seconds >= 2 * 0.05
    assert estimate.high == cost.STOPPED_SPREAD * estimate.seconds


def test_further_attacks_are_not_tried_beyond_the_time_limit(toys, monkeypatch):
    monkeypatch.setattr(cost, "TRIALS_SECONDS", 0.0)
    (estimate,) = estimate_jobs([toys.make_job(PGD(2), toys.linf(0.001))])
    assert estimate.timed == 0


def test_times_are_written_in_the_unit_that_suits_them():
    assert format_duration(3000, 1800, 5400) == "about 50 min (30 to 90)"
    assert format_duration(0.4, 0.2, 0.8) == "about 0.4 s (0.2 to 0.8)"
    assert format_duration(90_000, 45_000, 180_000) == "about 25 h (12 to 50)"
