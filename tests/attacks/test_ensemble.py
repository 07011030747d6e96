"""Ensembles: they break all samples that a member breaks, and members run on the survivors of earlier members."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

import robustbench_inv as rbi
from robustbench_inv.attacks.apgd import APGD
from robustbench_inv.attacks.ensemble import (
    BROKEN_BY,
    Ensemble,
    SquareThenAPGD,
    SubsetRunner,
    _Progress,
    standard,
)
from robustbench_inv.attacks.invariance.collision import Collision
from robustbench_inv.attacks.minimum_norm import MinimumNorm
from robustbench_inv.attacks.protocol import Batch, Kind
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.attacks.random_inputs import RandomPerturbation
from robustbench_inv.attacks.square import SquareAttack
from robustbench_inv.catalogue.attacks import load_attack
from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.data.sampling import select_samples
from robustbench_inv.errors import BadParameter
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import Output, flatten
from robustbench_inv.testing.analytic_problems import linear_problem
from robustbench_inv.testing.harness import check_attack
from robustbench_inv.testing.toys import StochasticToy
from robustbench_inv.threat.budgets import LpBall
from robustbench_inv.threat.threat_model import ThreatModel

MEMBERS = (RandomPerturbation(draws=12), SquareAttack(30), APGD(steps=15))


@dataclass(frozen=True)
class Model:
    """Two classes of a function with many local maxima; class 1 is rare."""

    num_classes: int = 2
    bounds: tuple[float, float] = (0.0, 1.0)
    dtype: torch.dtype = torch.float64

    def __call__(self, images):
        points = flatten(images)
        height = torch.cos(40 * points).sum(1) + 0.5 * torch.cos(3 * points).sum(1) - 3
        return Output(torch.stack([torch.zeros_like(height), height], 1))


@dataclass(frozen=True)
class Stepped(Model):
    """The same function in steps: no gradient anywhere."""

    def __call__(self, images):
        logits = super().__call__(images).logits.detach()
        return Output((logits * 8).round() / 8)


class Masked:
    """Another model without its gradients."""

    def __init__(self, model):
        self.model = model

    def __getattr__(self, name):
        return getattr(self.model, name)

    def __call__(self, images):
        return self.model(images.detach())


@dataclass(frozen=True)
class Undefined(Model):
    """The margin is not a number at grey images, and increases with the brightness of all others."""

    def __call__(self, images):
        points = flatten(images)
        height = (points.mean(1) - 0.55).where((points != 0.5).any(1), torch.nan)
        return Output(torch.stack([torch.zeros_like(height), height], 1))


@dataclass(frozen=True)
class Basins(Model):
    """Gradients lead to the same height in each of 16 basins, told apart by the first four elements; in a few it is enough."""

    def __call__(self, images):
        points = flatten(images)
        bits = (points[:, :4] > 0.5).to(points) @ points.new_tensor([1.0, 2, 4, 8])
        height = 0.96 + 0.06 * torch.sin(7 * bits + 1)  # above 1 in three of the basins
        lead = height * (10 * (points[:, 4:] - 0.5)).clamp(-1, 1).mean(1) - 1
        return Output(torch.stack([torch.zeros_like(lead), lead], 1))


@dataclass(frozen=True)
class Watched:
    """An attack that finds nothing and records its samples."""

    given: list[list[int]]
    starts: list[bool]

    kind: ClassVar[Kind] = "fixed-budget"
    norms: ClassVar[frozenset[str]] = frozenset({"l2", "linf"})

    def run(self, model, batch, threat, rng):
        self.given.append(batch.ids.tolist())
        self.starts.append(batch.start is not None)
        return batch.images


def problem(n=40, dtype=torch.float64):
    images = 0.5 + 0.3 * SampleRNG(5, torch.arange(n)).uniform((1, 2, 2), dtype=dtype)
    return images, torch.zeros(n, dtype=torch.int64)


def session(model, images, labels, eps=0.1, ids=None):
    ids = torch.arange(len(labels)) if ids is None else ids
    batch, rng = Batch(images, labels, ids), SampleRNG(0, ids)
    threat = ThreatModel(LpBall("linf", eps))
    return CountingModel(model, batch, threat, rng), batch, threat, rng


def wrong(model, images, labels):
    return model(images).decision != labels


def test_it_breaks_all_samples_that_its_members_break():
    model, (images, labels) = Model(), problem()
    given = session(model, images, labels)
    adversarial = Ensemble(MEMBERS).run(*given)
    every, fell = torch.arange(len(labels)), []
    for number, member in enumerate(MEMBERS, 1):
        alone = SubsetRunner(*session(model, images, labels)).run(member, every, str(number))
        fell.append(wrong(model, alone, labels))
    apart = torch.stack(fell)
    assert apart.any(1).all()
    assert not apart.any(0).all()
    assert torch.equal(wrong(model, adversarial, labels), apart.any(0))
    first = torch.where(apart.any(0), apart.int().argmax(0) + 1, 0)
    assert torch.equal(given[0].logged[BROKEN_BY], first)
    assert first.unique().tolist() == [0, 1, 2, 3]


def test_members_attack_the_survivors_of_earlier_members():
    model, (images, labels) = Model(), problem()
    watched, after = Watched([], []), Watched([], [])
    meter, batch, threat, rng = session(model, images, labels)
    start = replace(batch, start=images)
    adversarial = Ensemble((watched, APGD(steps=5), after)).run(meter, start, threat, rng)
    left = (~wrong(model, adversarial, labels)).nonzero()[:, 0].tolist()
    assert watched.given == [list(range(40))]
    assert after.given == [left]
    assert 0 < len(left) < 40
    assert (watched.starts, after.starts) == ([True], [False])


def test_survivors_get_the_candidate_of_the_largest_margin():
    model, (images, labels) = Model(), problem(8)
    given = session(model, images, labels, eps=0.01)
    adversarial = Ensemble((SquareAttack(5), APGD(steps=10), RandomPerturbation(draws=1))).run(
        *given
    )
    goal = given[2].goal
    for member, name in (
        (SquareAttack(5), "1"),
        (APGD(steps=10), "2"),
        (RandomPerturbation(draws=1), "3"),
    ):
        alone = SubsetRunner(*session(model, images, labels, 0.01)).run(
            member, torch.arange(8), name
        )
        assert (goal.margin(model(adversarial), labels) >= goal.margin(model(alone), labels)).all()


def test_a_minimum_norm_success_outside_the_budget_does_not_count():
    model, images, labels = linear_problem(8)
    eps = float(model.distance(images, labels, "linf").median())
    meter, batch, threat, rng = session(model, images, labels, eps)
    adversarial = Ensemble((MinimumNorm(),)).run(meter, batch, threat, rng)
    assert threat.budget.contains(images, adversarial).all()
    fell = wrong(model, adversarial, labels)
    assert 0 < fell.sum() < 8
    assert torch.equal(adversarial[~fell], images[~fell])


def test_outcome_does_not_depend_on_the_batch():
    model, (images, labels) = Model(), problem(12)
    together = Ensemble(MEMBERS).run(*session(model, images, labels))
    for rows in torch.arange(12).split(5):
        apart = Ensemble(MEMBERS).run(*session(model, images[rows], labels[rows], ids=rows))
        torch.testing.assert_close(apart, together[rows], rtol=0, atol=1e-12)


def test_a_stochastic_model_must_confirm_a_success():
    linear, images, labels = linear_problem(6, 3)
    model = StochasticToy(linear, scale=0.05)
    after = Watched([], [])
    adversarial = Ensemble((APGD(steps=10), after)).run(*session(model, images, labels, 0.05))
    assert wrong(linear, adversarial, labels).all()
    assert after.given == []


def test_on_a_substitute_all_members_run_to_the_end():
    model, images, labels = linear_problem(6, 3)
    meter, batch, threat, rng = session(model, images, labels, 0.05)
    transfer = replace(threat, access="transfer", substitute="other")
    meter = CountingModel(model, batch, transfer, rng, keep_best=False)
    after = Watched([], [])
    adversarial = Ensemble((APGD(steps=10), after)).run(meter, batch, transfer, rng)
    assert wrong(model, adversarial, labels).all()
    assert after.given == [list(range(6))]


def test_many_queries_are_spent_only_where_gradients_mislead():
    attack = SquareThenAPGD(queries=10, steps=10, long_queries=300, retry_queries=40)
    linear, images, labels = linear_problem(8)
    eps = 0.8 * float(linear.distance(images, labels, "linf").min())
    honest = session(linear, images, labels, eps)
    attack.run(*honest)
    assert (honest[0].forward_passes == 10 + 11 + 3).all()  # and the ensemble's own queries
    images, labels = problem(20)
    masked = session(Stepped(), images, labels)
    adversarial = attack.run(*masked)
    left = ~wrong(Stepped(), adversarial, labels)
    spent = masked[0].forward_passes[left]
    trial, long = 10 + 11 + 3 + 40 + 1, 300 + 1
    assert set(spent.tolist()) <= {trial, trial + long}
    assert (spent == trial + long).sum() > len(spent) / 2
    blind = APGD(steps=10).run(*session(Stepped(), images, labels))
    assert wrong(Stepped(), adversarial, labels).sum() > wrong(Stepped(), blind, labels).sum()


def test_no_long_search_follows_where_little_of_the_margin_can_be_gained():
    linear, images, labels = linear_problem(8)
    masked = Masked(linear)
    eps = float(linear.distance(images, labels, "linf").min())
    attack = SquareThenAPGD(queries=10, steps=10, long_queries=300, retry_queries=40)
    spent = {}
    for share in (0.05, 0.8):
        meter, *given = session(masked, images, labels, share * eps)
        attack.run(meter, *given)
        spent[share] = meter.forward_passes
    trial = 10 + 11 + 3 + 40 + 1
    assert spent[0.05].max() <= trial < spent[0.8].max()


def test_nearly_broken_samples_are_retried():
    images, labels = torch.full((30, 16), 0.5, dtype=torch.float64), torch.zeros(30).long()
    ways = (
        SquareThenAPGD(2, 30, long_queries=1, retry_threshold=1e-9),
        SquareThenAPGD(2, 30, long_queries=1, retry_threshold=0.2, retry_queries=2),
    )
    sessions = session(Basins(), images, labels), session(Basins(), images, labels)
    adversarial = [way.run(*given) for way, given in zip(ways, sessions, strict=True)]
    once, again = (wrong(Basins(), each, labels) for each in adversarial)
    assert again[once].all()
    assert again.sum() > once.sum() + 5
    spent = [given[0].forward_passes for given in sessions]
    assert torch.equal(spent[0][once], spent[1][once])  # a success needs no other attempt
    assert (spent[1] > spent[0])[~once].any()


def test_a_sample_named_twice_is_searched_for_with_other_draws():
    images, labels = torch.full((3, 16), 0.5, dtype=torch.float64), torch.zeros(3).long()
    relay = SubsetRunner(*session(Model(), images, labels, 0.01))
    both = relay.run(SquareAttack(1), torch.tensor([2, 0, 2]), "name")
    alone = relay.run(SquareAttack(1), torch.tensor([0, 2]), "name")
    assert torch.equal(both[1], alone[0])
    assert torch.equal(both[0], alone[1])
    assert not torch.equal(both[2], both[0])


def test_standard_passes_the_harness():
    attack = standard()
    assert attack == load_attack("standard").attack
    assert attack.norms == {"l1", "l2", "linf"}
    small = Ensemble(
        (
            APGD(steps=10),
            MinimumNorm(),
            APGD(5, target_classes=9),
            SquareThenAPGD(20, 5, long_queries=40),
        )
    )
    check_attack(small, min_success_rate=1.0)


def test_the_undefended_network_is_broken_with_few_queries():
    model, data = load_model("mnist-cnn").classifier, load_dataset("mnist5k")
    ids = torch.tensor(select_samples(data.labels, 20))
    images, labels = data.batch(ids)
    adversarial = standard().run(*session(model, images, labels, 0.2, ids))
    assert wrong(model, adversarial, labels).all()


def test_a_resumed_cell_is_byte_identical_and_logs_the_member(tmp_path):
    attack = Ensemble((APGD(steps=5), SquareThenAPGD(queries=20, steps=5, long_queries=30)))

    def evaluate(existing="resume"):
        return rbi.evaluate(
            model="mnist-cnn",
            attack=attack,
            threat="linf=0.05,0.1",
            samples=12,
            batch_size=4,
            out=tmp_path,
            checks=False,
            existing=existing,
        )

    (cell,) = evaluate().cells
    records = tmp_path / cell.digest / "records.jsonl"
    whole = records.read_bytes()
    by = cell.sample_values[BROKEN_BY]
    fell = {r.sample for r in cell.records if r.goal_reached}
    assert 0 < len(fell) < 12
    assert {sample for sample, member in by.items() if member} == fell
    records.write_bytes(b"".join(whole.splitlines(keepends=True)[:6]))
    evaluate("repair")
    assert records.read_bytes() == whole


@pytest.mark.parametrize("members", [(), (Collision(),)], ids=["none", "an invariance attack"])
def test_unusable_members(members):
    with pytest.raises(BadParameter, match="members"):
        Ensemble(members)


@pytest.mark.parametrize(
    "bad",
    [
        {"queries": 0},
        {"long_queries": 0},
        {"long_threshold": 1.0},
        {"retry_threshold": 1.0},
        {"retries": 0},
        {"loss": "ce+dlr"},
    ],
)
def test_unusable_parameters_of_a_scouted_search(bad):
    with pytest.raises(BadParameter, match=next(iter(bad))):
        SquareThenAPGD(**bad)


def test_a_margin_that_is_not_a_number_is_worse_than_any_later_result():
    images = torch.full((3, 1, 2, 3), 0.5, dtype=torch.float64)
    ids, threat = torch.arange(3), ThreatModel(LpBall("linf", 0.1))
    batch, rng = Batch(images, torch.zeros_like(ids), ids), SampleRNG(0, ids)
    meter = CountingModel(Undefined(), batch, threat, rng)
    runner = SubsetRunner(meter, batch, threat, rng)
    assert runner.margins(images, ids).tolist() == [-torch.inf] * 3
    found = SquareThenAPGD(queries=3, steps=20).run(meter, batch, threat, rng)
    assert (Undefined()(found).decision == 1).all()


def test_progress_keeps_a_result_after_one_that_is_not_a_number():
    progress, rows = _Progress(torch.zeros(2, 1), torch.tensor([-1.0, -1.0])), torch.arange(2)
    progress.update(torch.ones(2, 1), torch.tensor([torch.nan, -0.5]), rows)
    progress.update(torch.full((2, 1), 2.0), torch.tensor([-0.7, torch.nan]), rows)
    assert progress.images.tolist() == [[2.0], [1.0]]
    assert progress.best.tolist() == pytest.approx([-0.7, -0.5])
