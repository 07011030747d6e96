"""Descending sweeps with short runs: the verdicts equal those of each eps alone."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from robustbench_inv.attacks.apgd import APGD
from robustbench_inv.attacks.ensemble import Ensemble
from robustbench_inv.attacks.pgd import FGSM, PGD
from robustbench_inv.attacks.protocol import SupportsWarmStart
from robustbench_inv.evaluation.engine import RunOptions
from robustbench_inv.evaluation.schedule import run_cell
from robustbench_inv.results.cell_events import sample_values
from robustbench_inv.results.run_files import CellFolder

SWEEP = (0.01, 0.02, 0.04, 0.08)


def run(job, folder, **settings):
    run_cell(job, folder, RunOptions(**settings))
    cell = CellFolder(folder)
    return cell.records(), cell.events()


@pytest.fixture
def scripted(toys):
    """Return an attack on TwoSides that does what is said of it at each eps, and in brief."""

    @dataclass(frozen=True)
    class Scripted(toys.Straight):
        """Goes straight to the boundary, if at all.

        Args:
            blind: eps at which it does nothing.
            blind_in_brief: eps at which its brief form does nothing.
            raises: eps at which it raises.
            short: is this the brief form?
        """

        blind: tuple[float, ...] = ()
        blind_in_brief: tuple[float, ...] = ()
        raises: float = 0.0
        short: bool = False

        @property
        def short_run(self):
            return type(self)(blind=self.blind_in_brief, short=True)

        def run(self, model, batch, threat, rng):
            eps = threat.budget.eps
            if eps == self.raises:
                raise ZeroDivisionError("no luck")
            model.log("short", torch.full((len(batch),), float(self.short)))
            return batch.images if eps in self.blind else self.step(model, batch, eps)

    return Scripted


def distances(toys, job):
    return toys.TwoSides().distances(job.dataset.batch(list(job.samples))[0])[5:].tolist()


def nearest_eps(distance, sweep=SWEEP):
    return next((eps for eps in sweep if eps > distance), None)


@pytest.mark.parametrize("attack", [PGD(40), APGD(30), Ensemble((APGD(20), PGD(20)))])
@pytest.mark.parametrize("batch_size", [16, 60])
def test_a_sample_breaks_at_the_smallest_eps_above_its_distance(toys, tmp_path, attack, batch_size):
    job = toys.make_job(attack, toys.linf(*SWEEP))
    records, _ = run(job, tmp_path / "c", batch_size=batch_size)
    truth = [nearest_eps(d) for d in distances(toys, job)]
    assert {None, *SWEEP} == set(truth)  # the sample covers every outcome
    assert [r.broken_at for r in records[5:]] == truth
    assert all(r.within_budget and r.status == "ok" for r in records[5:])
    assert all(r.distance.linf <= r.broken_at * (1 + 1e-9) for r in records[5:] if r.broken_at)


def test_robust_samples_get_a_full_search_at_the_largest_eps_and_short_runs_below(toys, tmp_path):
    job = toys.make_job(PGD(40), toys.linf(*SWEEP))
    swept, _ = run(job, tmp_path / "sweep")
    alone, _ = run(toys.make_job(PGD(40), toys.linf(SWEEP[-1])), tmp_path / "alone")
    stood = [(a, b) for a, b in zip(swept, alone, strict=True) if b.broken_at is None]
    assert len(stood) > 3
    for record, other in stood:
        assert record.backward_passes == 40 + 3 * 4
        assert (record.adversarial, record.distance) == (other.adversarial, other.distance)
    fell = [(a, b) for a, b in zip(swept[5:], alone[5:], strict=True) if b.broken_at]
    assert all(record.broken_at for record, _ in fell)
    assert all(record.backward_passes >= 40 for record, _ in fell if record.broken_at > SWEEP[0])


def test_a_short_run_can_break_a_sample_that_survived(toys, scripted, tmp_path):
    attack = scripted(blind=(0.08,), blind_in_brief=(0.02, 0.01))
    records, events = run(toys.make_job(attack, toys.linf(*SWEEP)), tmp_path / "c")
    truth = [nearest_eps(d) for d in distances(toys, toys.make_job(attack))]
    below = [eps if eps != 0.08 else None for eps in truth]
    assert [r.broken_at for r in records[5:]] == below
    assert below.count(0.02) > 2
    # found briefly at 0.04, and wholly from there down
    short = sample_values(events)["short"]
    said = {r.broken_at: set() for r in records[5:]}
    for record in records[5:]:
        said[record.broken_at].add(short[record.sample])
    assert (said[0.04], said[0.02], said[0.01]) == ({1.0}, {0.0}, {0.0})


def test_samples_that_survive_all_searches_are_robust_at_every_eps(toys, scripted, tmp_path):
    attack = scripted(blind=(0.04,), blind_in_brief=SWEEP)
    job = toys.make_job(attack, toys.linf(*SWEEP))
    records, events = run(job, tmp_path / "c")
    fell = [d < 0.08 for d in distances(toys, job)]
    assert [r.broken_at == 0.08 for r in records[5:]] == fell
    assert all(r.status == "ok" and r.replayed for r in records[5:])
    # what is shown, and told of it, is the success at 0.08, not the clean input given at 0.04
    assert all(r.distance.linf == pytest.approx(0.08) for r in records[5:] if r.broken_at)
    assert {sample_values(events)["short"][r.sample] for r in records[5:]} == {0.0}


def test_a_closer_success_breaks_at_the_smallest_eps_that_contains_it(toys, tmp_path):
    @dataclass(frozen=True)
    class Careful(toys.Straight):
        short_run = None

        def run(self, model, batch, threat, rng):
            distance = model.model.module.distances(batch.images)
            length = (distance * 1.001).clamp_max(threat.budget.eps)[:, None]
            return self.step(model, batch, length)

    @dataclass(frozen=True)
    class CarefulInBrief(Careful):
        @property
        def short_run(self):
            return Careful()

    sweep = toys.linf(*SWEEP)
    down, _ = run(toys.make_job(CarefulInBrief(), sweep), tmp_path / "down")
    up, _ = run(toys.make_job(Careful(), sweep), tmp_path / "up")
    assert [r.broken_at for r in down] == [r.broken_at for r in up]
    fell = [r for r in down[5:] if r.broken_at]
    # whatever its place in the sweep: what is found lies as near as it can
    assert {r.backward_passes for r in fell if r.broken_at == SWEEP[0]} == {1}


def test_a_success_without_replay_keeps_that_of_the_larger_eps(toys, tmp_path):
    @dataclass(frozen=True)
    class InBrief(toys.Straight):
        @property
        def short_run(self):
            return toys.Straight()

    threat = toys.linf(0.01, 0.02, 0.04, 0.2)
    job = toys.make_job(InBrief(), threat, module=toys.Borderline(), samples=range(5, 60))
    records, events = run(job, tmp_path / "c")
    taken_back = {s for e in events if e["event"] == "not_replayed" for s in e["samples"]}
    assert len(taken_back) > 5
    assert all(r.goal_reached and r.replayed and r.broken_at for r in records)


def test_a_crash_at_a_smaller_eps_keeps_what_was_broken_before(toys, scripted, tmp_path):
    job = toys.make_job(scripted(raises=0.02, blind_in_brief=(0.02,)), toys.linf(*SWEEP))
    records, events = run(job, tmp_path / "c")
    near = [nearest_eps(d, (0.04, 0.08)) for d in distances(toys, job)]
    assert [r.broken_at for r in records[5:]] == near
    (event,) = [e for e in events if e["event"] == "crash"]
    assert event["samples"] == [r.sample for r in records[5:] if r.broken_at == 0.04]


def test_attacks_without_a_short_run_ascend(toys, tmp_path):
    assert not isinstance(FGSM(), SupportsWarmStart)
    assert Ensemble((FGSM(), PGD(20))).short_run is None
    records, _ = run(toys.make_job(FGSM(), toys.linf(*SWEEP)), tmp_path / "c")
    for record in records[5:]:
        stages = SWEEP.index(record.broken_at) + 1 if record.broken_at else len(SWEEP)
        assert record.backward_passes == stages


def test_a_random_model_gets_full_searches_at_every_eps(toys, tmp_path):
    class Restless(nn.Module):
        bounds, num_classes = (0.0, 1.0), 2

        def __init__(self):
            super().__init__()
            self.inner = toys.TwoSides()

        def forward(self, images):
            return self.inner(images + 0.01 * torch.randn_like(images))

    job = toys.make_job(PGD(10), toys.linf(0.01, 0.02), module=Restless(), samples=range(5, 60))
    records, _ = run(job, tmp_path / "c")
    stood = [r for r in records if r.broken_at is None and r.status == "ok"]
    assert len(stood) > 10
    assert {r.backward_passes for r in stood} == {20}


@pytest.mark.parametrize(
    ("attack", "steps"), [(PGD(40, restarts=3), 4), (PGD(5), 1), (APGD(100, target_classes=5), 10)]
)
def test_a_short_run_takes_a_tenth_of_the_steps_from_one_start(attack, steps):
    short_run = attack.short_run
    assert (short_run.steps, short_run.restarts) == (steps, 1)
    assert getattr(short_run, "target_classes", 0) == 0
