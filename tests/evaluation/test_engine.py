"""The engine: at which eps samples break, and how failures are recorded."""

from dataclasses import dataclass
from itertools import count
from typing import ClassVar

import pytest
import torch
from torch import nn

from robustbench_inv.attacks.invariance.ball import InvarianceBall
from robustbench_inv.attacks.invariance.collision import Collision
from robustbench_inv.attacks.invariance.invariance_standard import InvarianceStandard
from robustbench_inv.attacks.invariance.layer_metamer import LayerMetamer
from robustbench_inv.attacks.invariance.level_set_traversal import LevelSetTraversal
from robustbench_inv.attacks.invariance.metamer import Metamer
from robustbench_inv.attacks.invariance.relu_preimage import ReluPreimage
from robustbench_inv.attacks.pgd import PGD
from robustbench_inv.attacks.protocol import runs_at_each_eps
from robustbench_inv.attacks.spheres import SpheresInvariance
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.errors import BadData, BadModel, DeadlinePassed
from robustbench_inv.evaluation import engine, sharing
from robustbench_inv.evaluation.engine import RunOptions
from robustbench_inv.evaluation.schedule import run_cell
from robustbench_inv.results.run_files import CellFolder
from robustbench_inv.results.summary import summarise


def run(job, folder, **settings):
    run_cell(job, folder, RunOptions(**settings))
    cell = CellFolder(folder)
    return cell.records(), cell.events()


def expected_eps(distance, sweep):
    return next((eps for eps in sweep if eps > distance), None)


@pytest.mark.parametrize("attack", ["Straight", "Nearest"])
def test_a_sample_breaks_at_the_smallest_eps_above_its_distance(toys, tmp_path, attack):
    sweep = (0.01, 0.02, 0.04, 0.08)
    job = toys.make_job(getattr(toys, attack)(), toys.linf(*sweep))
    records, _ = run(job, tmp_path / "c", batch_size=16)
    distances = toys.TwoSides().distances(job.dataset.batch(list(job.samples))[0])
    truth = [expected_eps(d, sweep) for d in distances.tolist()]
    assert {None, *sweep} == set(truth[5:])  # the sample covers every outcome
    assert [r.broken_at for r in records[5:]] == truth[5:]
    assert all(r.goal_reached == (r.broken_at is not None) for r in records)


def test_a_sweep_gives_the_verdicts_of_its_eps_alone(toys, tmp_path):
    sweep = (0.01, 0.02, 0.04, 0.08)
    swept, _ = run(toys.make_job(toys.Straight(), toys.linf(*sweep)), tmp_path / "sweep")
    for eps in sweep:
        alone, _ = run(toys.make_job(toys.Straight(), toys.linf(eps)), tmp_path / str(eps))
        together = [r.broken_at is not None and r.broken_at <= eps for r in swept]
        assert together == [r.broken_at is not None for r in alone]


def test_invariance_attacks_search_at_each_eps(toys, tmp_path):
    """A search inside a large ball is none inside the smaller ones."""

    @dataclass(frozen=True)
    class ToTheEnd(toys.Straight):
        kind: ClassVar[str] = "invariance"

    @dataclass(frozen=True)
    class Closest(toys.Nearest):
        kind: ClassVar[str] = "invariance"
        runs_once: ClassVar[bool] = True

    sweep = (0.01, 0.02, 0.04, 0.08)
    swept, _ = run(toys.make_job(ToTheEnd(), toys.linf(*sweep)), tmp_path / "sweep")
    once, _ = run(toys.make_job(Closest(), toys.linf(*sweep)), tmp_path / "closest")
    assert {record.broken_at for record in swept[5:]} == {None, *sweep}
    assert [r.broken_at for r in once] == [r.broken_at for r in swept]
    assert {record.forward_passes for record in once[5:]} == {1}


def test_attacks_that_ignore_the_budget_or_search_the_closest_input_run_once():
    once = (Metamer(), Collision(), InvarianceStandard(), SpheresInvariance())
    each = (InvarianceBall(), LevelSetTraversal(), LayerMetamer(), ReluPreimage())
    assert not any(map(runs_at_each_eps, once))
    assert all(map(runs_at_each_eps, each))


def test_broken_samples_are_not_queried_again(toys, tmp_path):
    sweep = (0.01, 0.02, 0.04, 0.08)
    records, _ = run(toys.make_job(toys.Straight(), toys.linf(*sweep)), tmp_path / "c")
    for record in records[5:]:
        stages = sweep.index(record.broken_at) + 1 if record.broken_at else len(sweep)
        assert (record.forward_passes, record.backward_passes) == (stages, stages)


def test_misclassified_samples_need_no_attack(toys, tmp_path):
    records, _ = run(toys.make_job(toys.Straight()), tmp_path / "c")
    for record in records[:5]:
        assert (record.status, record.broken_at, record.goal_reached) == (
            "already_wrong",
            0.0,
            True,
        )
        assert record.adversarial == record.clean
        assert (record.distance.linf, record.forward_passes, record.backward_passes) == (0, 0, 0)
    assert all(r.status != "already_wrong" for r in records[5:])


def test_denominators(toys, tmp_path):
    job = toys.make_job(toys.Straight(), toys.linf(0.01, 0.04))
    records, _ = run(job, tmp_path / "c", batch_size=7)
    summary = summarise(records, job.epsilons, None)
    assert [r.sample for r in records] == list(range(60))
    assert (summary.clean_accuracy.successes, summary.clean_accuracy.trials) == (55, 60)
    distances = toys.TwoSides().distances(job.dataset.batch(list(range(5, 60)))[0])
    assert [r.successes for r in summary.robust_accuracy] == [
        int((distances >= eps).sum()) for eps in (0.01, 0.04)
    ]


def test_without_a_budget_a_sample_breaks_at_its_distance(toys, tmp_path):
    job = toys.make_job(toys.Nearest(), toys.none)
    records, _ = run(job, tmp_path / "c")
    distances = toys.TwoSides().distances(job.dataset.batch(list(job.samples))[0])
    for record, distance in zip(records[5:], distances[5:].tolist(), strict=True):
        assert record.broken_at == pytest.approx(distance, rel=1e-6)
        assert record.broken_at == pytest.approx(record.distance.linf, rel=1e-12)


def test_a_minimum_norm_attack_may_exceed_the_largest_eps(toys, tmp_path):
    records, _ = run(toys.make_job(toys.Nearest(), toys.linf(0.01, 0.02)), tmp_path / "c")
    held = [r for r in records if r.broken_at is None]
    assert held
    assert {(r.status, r.within_budget) for r in held} == {("ok", False)}


def test_a_success_that_the_attack_did_not_return_counts(toys, tmp_path):
    records, events = run(toys.make_job(toys.Forgets()), tmp_path / "forgets")
    returned, _ = run(toys.make_job(toys.Straight()), tmp_path / "returns")
    assert [r.broken_at for r in records] == [r.broken_at for r in returned]
    lost = [s for e in events if e["event"] == "silent_success" for s in e["samples"]]
    assert sorted(lost) == [r.sample for r in records[5:] if r.goal_reached]


def test_a_crash_is_recorded_and_the_other_samples_run(toys, tmp_path):
    records, events = run(toys.make_job(toys.Breaks(sample=25)), tmp_path / "c", batch_size=20)
    crashed = [r for r in records if r.status == "crash"]
    assert [r.sample for r in crashed] == [25]
    assert not any(r.goal_reached for r in crashed)
    assert all(r.adversarial == r.clean for r in crashed)
    assert any(r.goal_reached for r in records[20:40])
    (event,) = [e for e in events if e["event"] == "crash"]
    assert event["reason"] == "ZeroDivisionError: no luck"
    assert event["samples"] == [25]
    assert event["block"] == 1


def test_successes_before_a_crash_count(toys, tmp_path):
    job = toys.make_job(toys.Breaks(sample=25, after_query=True), toys.linf(0.1))
    records, _ = run(job, tmp_path / "c", batch_size=20)
    distances = toys.TwoSides().distances(job.dataset.batch(list(job.samples))[0])
    fell = distances < 0.1
    assert fell[25]
    assert [r.goal_reached for r in records[20:40]] == fell[20:40].tolist()
    assert {r.status for r in records[20:40]} == {"ok"}


@pytest.mark.parametrize(
    ("what", "status"),
    [("nan", "numerics"), ("outside", "budget"), ("far", "budget"), ("none", "no_start")],
)
def test_forbidden_proposals(toys, tmp_path, what, status):
    records, _ = run(toys.make_job(toys.Returns(what), toys.linf(0.02)), tmp_path / "c")
    assert {r.status for r in records[5:]} == {status}
    assert not any(r.goal_reached for r in records[5:])
    assert {r.within_budget for r in records[5:]} == {what == "none"}


def test_a_proposal_of_the_wrong_shape_is_a_crash(toys, tmp_path):
    records, events = run(toys.make_job(toys.Returns("shape"), toys.linf(0.02)), tmp_path / "c")
    assert {r.status for r in records[5:]} == {"crash"}
    assert "AttackFailed" in next(e["reason"] for e in events if e["event"] == "crash")


def test_rounding_outside_the_box_is_clamped(toys, tmp_path):
    run(toys.make_job(toys.Returns("hair"), toys.linf(0.7)), tmp_path / "c", keep_images=True)
    kept = CellFolder(tmp_path / "c").images()
    assert kept["adversarial"][5:].max() == 1.0
    assert {r.status for r in CellFolder(tmp_path / "c").records()[5:]} == {"ok"}


def test_batch_size_changes_neither_draws_nor_outcomes(toys, tmp_path):
    job = toys.make_job(toys.Draws(), toys.linf(0.05, 0.1))
    found = [run(job, tmp_path / str(n), batch_size=n, keep_images=True)[0] for n in (1, 7, 256)]
    images = [CellFolder(tmp_path / str(n)).images()["adversarial"] for n in (1, 7, 256)]
    assert sum(r.broken_at == 0.05 for r in found[0]) > 5
    assert found[0] == found[1] == found[2]
    assert (images[0] == images[1]).all()
    assert (images[0] == images[2]).all()


def test_a_batch_dependent_model_is_never_broken(toys, tmp_path):
    class Moody(nn.Module):
        bounds, num_classes = (0.0, 1.0), 2

        def __init__(self):
            super().__init__()
            self.inner = toys.TwoSides()

        def forward(self, images):
            right = self.inner(images)
            return right if len(images) % 2 else -right  # the replay has one image more

    job = toys.make_job(toys.Straight(), toys.linf(0.3), module=Moody(), samples=range(5, 60))
    records, events = run(job, tmp_path / "c", batch_size=55)
    assert {r.replayed for r in records} == {False}
    assert not any(r.goal_reached for r in records)
    assert sum(e["count"] for e in events if e["event"] == "not_replayed") > 0


def test_a_success_without_replay_is_attacked_again_at_the_next_eps(toys, tmp_path):
    sweep = toys.linf(0.01, 0.02, 0.04, 0.2)
    job = toys.make_job(toys.Straight(), sweep, module=toys.Borderline(), samples=range(5, 60))
    records, events = run(job, tmp_path / "c")
    taken_back = {s for e in events if e["event"] == "not_replayed" for s in e["samples"]}
    assert len(taken_back) > 5
    assert all(r.goal_reached and r.replayed and r.broken_at for r in records)


def test_a_model_that_writes_into_its_input_gives_the_same_records(toys, tmp_path):
    class Shifted(nn.Module):
        bounds, num_classes = (-1.0, 1.0), 2

        def __init__(self, *, in_place):
            super().__init__()
            self.inner, self.in_place = toys.TwoSides(), in_place

        def forward(self, images):
            shifted = images.add_(1).div_(2) if self.in_place else (images + 1) / 2
            return self.inner(shifted)

    images, labels = toys.points().batch(list(range(60)))
    data = ArrayDataset(2 * images - 1, labels, "shifted", bounds=(-1.0, 1.0))
    found = []
    for in_place in (False, True):
        job = toys.make_job(toys.Straight(), data=data, module=Shifted(in_place=in_place))
        found.append(run(job, tmp_path / str(in_place), batch_size=16)[0])
    assert sum(r.broken_at == 0.1 for r in found[0]) > 5
    assert found[0] == found[1]


def test_an_attack_that_writes_into_the_clean_inputs_is_judged_by_the_true_ones(toys, tmp_path):
    @dataclass(frozen=True)
    class Overwrites(toys.Straight):
        kind: ClassVar = "fixed-budget"

        def run(self, model, batch, threat, rng):
            batch.images.copy_(self.step(model, batch, 0.3))
            return batch.images

    records, _ = run(toys.make_job(Overwrites(), toys.linf(0.02, 0.05)), tmp_path / "c")
    assert {r.status for r in records[5:]} == {"budget"}
    assert not any(r.goal_reached or r.within_budget for r in records[5:])


def test_grey_levels_break_like_the_same_inputs_in_0_to_1(toys, tmp_path):
    class Grey(nn.Module):
        bounds, num_classes = (0.0, 255.0), 2

        def __init__(self):
            super().__init__()
            self.inner = toys.TwoSides(torch.float32)

        def forward(self, images):
            return self.inner(images / 255)

    images, labels = toys.points().batch(list(range(60)))
    data = ArrayDataset((255 * images).float(), labels, "grey", bounds=(0.0, 255.0))
    sweep = (2.55, 5.1, 10.2)
    job = toys.make_job(toys.Straight(), toys.linf(*sweep), data=data, module=Grey())
    records, _ = run(job, tmp_path / "c")
    distances = 255 * toys.TwoSides().distances(images)
    truth = [expected_eps(distance, sweep) for distance in distances.tolist()]
    assert {None, *sweep} == set(truth[5:])
    assert [r.broken_at for r in records[5:]] == truth[5:]
    assert {r.status for r in records[5:]} == {"ok"}


def test_models_with_random_numbers_of_their_own_are_repeatable(toys, tmp_path):
    class Noisy(nn.Module):
        bounds, num_classes = (0.0, 1.0), 2

        def __init__(self):
            super().__init__()
            self.inner = toys.TwoSides()

        def forward(self, images):
            return self.inner(images) + 0.1 * torch.randn(len(images), 2, dtype=images.dtype)

    job = toys.make_job(toys.Straight(), toys.linf(0.02), module=Noisy())
    state = torch.get_rng_state()
    first, _ = run(job, tmp_path / "a", batch_size=20)
    torch.rand(5)
    second, _ = run(job, tmp_path / "b", batch_size=20)
    assert first == second
    torch.set_rng_state(state)


@pytest.mark.parametrize("noisy", [False, True])
def test_no_search_stops_at_a_lucky_output_of_a_random_model(toys, tmp_path, noisy):
    class Noisy(toys.TwoSides):
        def forward(self, images):
            logits = super().forward(images)
            return logits + noisy * 0.1 * torch.randn_like(logits)

    @dataclass(frozen=True)
    class Asks(toys.Straight):
        told: ClassVar = []

        def run(self, model, batch, threat, rng):
            self.told.append(model.success_is_final)
            return batch.images

    attack = Asks()
    run(toys.make_job(attack, toys.linf(0.02), module=Noisy()), tmp_path)
    assert attack.told == [not noisy]


def test_a_model_with_nan_outputs_is_refused(toys, tmp_path):
    class Broken(nn.Module):
        bounds, num_classes = (0.0, 1.0), 2

        def forward(self, images):
            return torch.full((len(images), 2), torch.nan, dtype=images.dtype)

    with pytest.raises(BadModel, match="not a number"):
        run(toys.make_job(toys.Straight(), module=Broken()), tmp_path / "c")


def test_data_outside_the_bounds_are_refused(toys, tmp_path):
    module = toys.TwoSides()
    module.bounds = (0.45, 0.55)
    with pytest.raises(BadData, match="C17"):
        run(toys.make_job(toys.Straight(), module=module), tmp_path / "c")


def test_too_little_memory_halves_the_batch(toys, tmp_path, monkeypatch):
    from robustbench_inv.evaluation import block_runner as engine

    whole = engine.evaluate_block

    def limited(setting, batch):
        if len(batch) > 8:
            raise torch.OutOfMemoryError("out of memory")
        return whole(setting, batch)

    monkeypatch.setattr(engine, "evaluate_block", limited)
    records, events = run(toys.make_job(toys.Straight()), tmp_path / "c", batch_size=32)
    assert [r.sample for r in records] == list(range(60))
    assert [e["batch_size"] for e in events if e["event"] == "batch_size_lowered"] == [16, 8]
    assert CellFolder(tmp_path / "c").info.batch_size == 32  # one search, and the blocks stay whole
    assert [e["block"] for e in events if e["event"] == "batch_size_lowered"] == [0, 0]
    assert [e["n_samples"] for e in events if e["event"] == "block_time"] == [8] * 7 + [4]


def test_failures_of_single_samples_are_logged(toys, tmp_path):
    records, events = run(toys.make_job(toys.Returns("mark"), toys.linf(0.02)), tmp_path / "c")
    assert {r.status for r in records[5:]} == {"crash"}
    assert [e["samples"] for e in events if e["event"] == "crash"] == [list(range(5, 60))]


def test_a_deadline_stops_an_attack_and_keeps_the_finished_blocks(toys, tmp_path, monkeypatch):
    job, ticks = toys.make_job(PGD(40), toys.linf(0.001)), count()
    whole, _ = run(job, tmp_path / "whole", batch_size=20)
    monkeypatch.setattr(sharing.time, "time", lambda: next(ticks))  # a second for each query
    with engine.until(60), pytest.raises(DeadlinePassed):
        run(job, tmp_path / "cut", batch_size=20)
    kept = CellFolder(tmp_path / "cut").records()
    assert [r.to_json_line() for r in kept] == [r.to_json_line() for r in whole[:20]]


def test_no_cell_is_begun_after_the_deadline(toys, tmp_path):
    with engine.until(0.0), pytest.raises(DeadlinePassed):
        run(toys.make_job(PGD(2), toys.linf(0.001)), tmp_path / "late")
    assert not (tmp_path / "late").exists()
