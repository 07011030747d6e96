"""Transfer attacks on two linear classifiers: the substitute is queried, the attacked model judges."""

import signal
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from robustbench_inv.attacks.pgd import FGSM, PGD
from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.attacks.random_inputs import RandomPerturbation
from robustbench_inv.catalogue.attacks import load_attack
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.evaluation import block_runner
from robustbench_inv.evaluation.engine import RunOptions
from robustbench_inv.evaluation.jobs import Job
from robustbench_inv.evaluation.plan import plan_jobs
from robustbench_inv.evaluation.schedule import run_cell, run_jobs
from robustbench_inv.evaluation.search import scale_to_budget
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.results.run_files import CellFolder
from robustbench_inv.tensors import NORMS, norm
from robustbench_inv.testing.analytic_problems import LinearClassifier
from robustbench_inv.testing.toys import StochasticToy, Toy, detached
from robustbench_inv.threat.budgets import LpBall, Unbounded
from robustbench_inv.threat.goals import Target
from robustbench_inv.threat.threat_model import ThreatModel

N, D = 60, 12
SWEEP = (0.02, 0.05, 0.1)


def linear(seed, shift=0.0):
    """Return two classes divided by a plane through the middle of the box, moved by a shift."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(D, generator=generator, dtype=torch.float64) + 0.7
    b = shift - w.sum() / 2
    return LinearClassifier(torch.stack([-w, w]) / 2, torch.stack([-b, b]) / 2)


TARGET, SUBSTITUTE = linear(1), linear(2)


def slope(model):
    return model.weights[1] - model.weights[0]


def points(model=TARGET):
    """Return points near the middle of the box, with the model's decisions as labels."""
    generator = torch.Generator().manual_seed(3)
    images = 0.4 + 0.2 * torch.rand((N, D), generator=generator, dtype=torch.float64)
    return ArrayDataset(images, model(images).decision, "middle", num_classes=2)


def transfer(name="linf", *epsilons, access="transfer"):
    budget = LpBall(name, epsilons[-1]) if epsilons else Unbounded(name)
    return ThreatModel(budget, access=access, sweep=epsilons[:-1] and epsilons, substitute="other")


def make_job(attack, threat, target=TARGET, substitute=SUBSTITUTE, data=None):
    loaded = load_model(target), load_attack(attack)
    other, ids = substitute and load_model(substitute), tuple(range(N))
    return Job(*loaded, threat, data or points(), 0, ids, substitute=other)


def records(job, tmp_path, **settings):
    plan_jobs([job])
    run_cell(job, tmp_path, RunOptions(**settings))
    return list(CellFolder(tmp_path).records())


def falls(direction, epsilons, data, model=TARGET):
    """Return the smallest eps at which each point falls, moved along a direction (for class 1, against it)."""
    images, _ = data.batch(list(range(N)))
    gap = (images @ slope(model) + (model.biases[1] - model.biases[0])).abs()
    gain = float(slope(model) @ direction)
    assert gain > 0, "the example must transfer"
    return [next((e for e in epsilons if e * gain > g), None) for g in gap.tolist()]


@dataclass(frozen=True)
class OntoThePlane:
    """The nearest point of a linear model's other class in l2: a minimum-norm attack that has converged."""

    kind: ClassVar = "minimum-norm"
    norms: ClassVar = frozenset(NORMS)

    def run(self, model, batch, threat, noise):
        w = slope(model.model)
        beyond = batch.images @ w + (model.model.biases[1] - model.model.biases[0])
        wrong = model(batch.images).decision != batch.labels
        return batch.images - torch.where(wrong, 0, beyond / w.square().sum() * 1.001)[:, None] * w


@pytest.mark.parametrize(
    "attack", [FGSM(), PGD(steps=10), "foolbox:LinfPGD:steps=10,rel_stepsize=0.5"]
)
def test_a_gradient_attack_follows_the_substitute(tmp_path, attack):
    data = points()
    found = records(make_job(attack, transfer("linf", *SWEEP)), tmp_path)
    expected = falls(slope(SUBSTITUTE).sign(), SWEEP, data)
    assert None in expected  # the last eps must not break all, or the eps in vain could not be seen
    assert [r.broken_at for r in found] == expected
    assert all(r.distance.linf == pytest.approx(r.broken_at or SWEEP[-1]) for r in found)


@pytest.mark.parametrize(
    "attack", [FGSM(), PGD(steps=10), OntoThePlane(), "torchattacks:APGD:steps=10"]
)
def test_samples_that_the_substitute_gets_wrong_are_attacked_as_well(tmp_path, attack):
    blind = replace(SUBSTITUTE, biases=torch.tensor([50.0, -50.0], dtype=torch.float64))
    data, threat = points(), transfer("l2" if isinstance(attack, OntoThePlane) else "linf", *SWEEP)
    w = slope(SUBSTITUTE)
    direction = w / norm(w[None], "l2") if threat.norm == "l2" else w.sign()
    expected = falls(direction, SWEEP, data)
    found = records(make_job(attack, threat, substitute=blind, data=data), tmp_path)
    wrong = [r for r in found if r.label == 1]
    assert sum(r.broken_at is not None for r in wrong) > 5
    assert all(r.broken_at == expected[r.sample] for r in wrong)


@pytest.mark.parametrize("attack", [OntoThePlane(), "foolbox:L2DeepFoolAttack"])
def test_a_minimum_norm_attack_takes_its_direction_from_the_substitute(tmp_path, attack):
    epsilons = (0.05, 0.15, 0.4)
    w = slope(SUBSTITUTE)
    expected = falls(w / norm(w[None], "l2"), epsilons, points())
    assert {*expected} == {0.05, 0.15, 0.4, None}
    found = records(make_job(attack, transfer("l2", *epsilons)), tmp_path)
    assert [r.broken_at for r in found] == expected
    assert all(r.distance.l2 == pytest.approx(r.broken_at or 0.4) for r in found)


def test_without_a_budget_the_proposal_is_unchanged(tmp_path):
    data = points()
    images, labels = data.batch(list(range(N)))
    found = records(make_job(OntoThePlane(), transfer("l2")), tmp_path)
    margin = SUBSTITUTE(images).logits.diff(dim=1)[:, 0].abs()
    wrong = SUBSTITUTE(images).decision != labels
    length = (1.001 * margin / norm(slope(SUBSTITUTE)[None], "l2")).masked_fill(wrong, 0)
    assert [r.distance.l2 for r in found] == pytest.approx(length.tolist(), abs=1e-12)
    assert 0 < sum(r.goal_reached for r in found) < N
    assert all(r.forward_passes == 1 for r in found)


def test_a_search_on_a_copy_is_at_most_as_strong_as_one_on_the_model(tmp_path):
    copy = Toy(nn.Linear(D, 2).double(), 2, dtype=torch.float64)
    with torch.no_grad():
        copy.module.weight.copy_(TARGET.weights)
        copy.module.bias.copy_(TARGET.biases)
    alone = ThreatModel(LpBall("linf", SWEEP[-1]), sweep=SWEEP)
    white = records(make_job(FGSM(), alone, substitute=None), tmp_path / "w")
    found = records(make_job(FGSM(), transfer("linf", *SWEEP), substitute=copy), tmp_path / "t")
    assert [r.broken_at for r in found] == [r.broken_at for r in white]


def test_a_success_on_the_substitute_ends_nothing(tmp_path):
    """Ten steps in a ball of which the first leads past the substitute's plane: all ten are made."""
    found = records(make_job(PGD(steps=10), transfer("linf", 0.3)), tmp_path)
    assert {(r.forward_passes, r.backward_passes) for r in found} == {(11, 10)}


@dataclass(frozen=True)
class Forgetful(FGSM):
    """Asks about the right input, and returns one that hardly differs from the clean one."""

    def run(self, model, batch, threat, noise):
        model(super().run(model, batch, threat, noise))
        return batch.images + 1e-9


@pytest.mark.parametrize(("access", "kept"), [("transfer", False), ("score", True)])
def test_unreturned_successes_are_kept_with_access_to_the_model_only(tmp_path, access, kept):
    found = records(make_job(Forgetful(), transfer("linf", 0.1, access=access)), tmp_path)
    assert any(r.goal_reached for r in found) == kept
    assert any(e["event"] == "silent_success" for e in CellFolder(tmp_path).events()) == kept


def test_a_search_that_serves_all_eps_is_counted_once(tmp_path):
    found = records(make_job(OntoThePlane(), transfer("l2", 0.05, 0.15, 0.4)), tmp_path)
    right = [r for r in found if SUBSTITUTE(points().batch([r.sample])[0]).decision == r.label]
    assert len(right) > 10
    assert {r.forward_passes for r in right} == {1}


@pytest.fixture
def meter():
    images, labels = points().batch(list(range(5)))
    batch = Batch(images, labels, torch.arange(5))
    return lambda model, threat, guide=None: CountingModel(
        model, batch, threat, SampleRNG(0, batch.ids), guide=guide
    )


def test_success_on_a_substitute_is_not_final(meter):
    assert meter(TARGET, ThreatModel(LpBall("linf", 0.1))).success_is_final
    assert not meter(TARGET, transfer("linf", 0.1)).success_is_final
    assert meter(TARGET, transfer("linf", 0.1, access="score"), guide=SUBSTITUTE).success_is_final


def test_a_guide_gives_gradients_and_the_model_the_outputs(meter):
    silent = detached(Toy(_Module(TARGET), 2, dtype=torch.float64))
    large = replace(SUBSTITUTE, weights=1e9 * SUBSTITUTE.weights)  # it must not round the answers
    m = meter(silent, transfer("linf", 0.1, access="score"), large)
    images = m.batch.images
    output, gradient = m.gradient(images, lambda out, _: out.logits[:, 1])
    assert torch.equal(output.logits, TARGET(images).logits)
    torch.testing.assert_close(gradient, large.weights[1].expand(5, -1))
    assert torch.equal(m(images).logits, TARGET(images).logits)
    assert m.forward_passes.tolist() == [2] * 5
    assert m.backward_passes.tolist() == [1] * 5
    images = images.clone().requires_grad_(True)
    m.differentiable(images).logits[:, 0].sum().backward()
    torch.testing.assert_close(images.grad, large.weights[0].expand(5, -1))


class _Module(nn.Module):
    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, images):
        return self.classifier(images).logits


@pytest.mark.parametrize("attack", [PGD(steps=10), "foolbox:LinfPGD:steps=10,rel_stepsize=0.5"])
def test_a_guide_helps_if_the_model_has_no_gradient(tmp_path, attack):
    silent = detached(Toy(_Module(TARGET), 2, dtype=torch.float64))
    led, alone = transfer("linf", 0.2, access="score"), ThreatModel(LpBall("linf", 0.2))
    guided = records(make_job(attack, led, silent), tmp_path / "g")
    left = records(make_job(attack, alone, silent, None), tmp_path / "w")
    expected = falls(slope(SUBSTITUTE).sign(), (0.2,), points())
    assert [r.broken_at for r in guided] == expected
    assert sum(r.goal_reached for r in left) < sum(r.goal_reached for r in guided) / 2
    assert all(r.zero_gradient or r.status == "crash" for r in left if not r.goal_reached)
    assert not any(r.zero_gradient for r in guided)


def test_a_guided_search_stops_when_the_model_misclassifies(tmp_path):
    attack = PGD(40, 1, 1.0, decay=True, loss="scaled-ce")
    found = records(make_job(attack, transfer("linf", 0.2, access="score")), tmp_path)
    assert max(r.forward_passes for r in found if r.goal_reached) < 20


STOCHASTIC = StochasticToy(Toy(_Module(SUBSTITUTE), 2, dtype=torch.float64), scale=0.05)


@pytest.mark.parametrize("access", ["transfer", "score"])
@pytest.mark.parametrize(
    ("attack", "name"), [(PGD(steps=10), "linf"), ("foolbox:L2DeepFoolAttack", "l2")]
)
@pytest.mark.parametrize("stochastic", ["target", "substitute"])
def test_either_may_be_stochastic(tmp_path, access, attack, name, stochastic):
    models = (STOCHASTIC, TARGET) if stochastic == "target" else (TARGET, STOCHASTIC)
    data = points(SUBSTITUTE if stochastic == "target" else TARGET)
    job = make_job(attack, transfer(name, 0.05, 0.3, access=access), *models, data=data)
    found = records(job, tmp_path)
    assert all(r.replayed and r.status in ("ok", "already_wrong") for r in found)
    assert sum(r.goal_reached and r.broken_at > 0 for r in found) > 5


@pytest.mark.parametrize("attack", [PGD(steps=5), OntoThePlane(), RandomPerturbation()])
def test_neither_batch_nor_interruption_changes_a_record(tmp_path, attack, monkeypatch):
    job = make_job(attack, transfer("l2", 0.1, 0.3))
    whole = records(job, tmp_path / "whole", batch_size=60)
    parts = records(job, tmp_path / "parts", batch_size=7)
    assert [(r.broken_at, r.forward_passes) for r in parts] == [
        (r.broken_at, r.forward_passes) for r in whole
    ]
    evaluate, blocks = block_runner.evaluate_block, []

    def killed(setting, batch):
        blocks.append(batch)
        if len(blocks) == 4:
            signal.raise_signal(signal.SIGINT)
        return evaluate(setting, batch)

    monkeypatch.setattr(block_runner, "evaluate_block", killed)
    with pytest.raises(KeyboardInterrupt):
        records(job, tmp_path / "killed", batch_size=7)
    records(job, tmp_path / "killed")
    assert _lines(tmp_path / "killed") == _lines(tmp_path / "parts")


def _lines(folder):
    return (folder / "records.jsonl").read_bytes()


@dataclass(frozen=True)
class Counting(FGSM):
    """Counts how often it is run, uses global random numbers, and leaves its own batch in a mess."""

    runs: ClassVar[list[int]] = []

    def run(self, model, batch, threat, noise):
        self.runs.append(len(batch))
        found = super().run(model, batch, threat, noise) + 0.001 * (torch.rand(1) - 1)
        batch.images.zero_()
        if batch.start is not None:
            batch.start.zero_()
        return found


@pytest.mark.parametrize("attack", [Counting(), PGD(steps=3), OntoThePlane()])
def test_shared_searches_do_not_change_records(tmp_path, attack):
    Counting.runs.clear()
    data = points()
    noisy = Toy(nn.Sequential(nn.Dropout(0.1), _Module(TARGET)), 2, dtype=torch.float64)
    targets = [TARGET, linear(4), noisy]
    jobs = [make_job(attack, transfer("linf", *SWEEP), each, data=data) for each in targets]
    outcomes = run_jobs(jobs, tmp_path / "shared", RunOptions(batch_size=20))
    assert [outcome.failure for outcome in outcomes] == [None] * 3
    assert len(Counting.runs) == (9 if isinstance(attack, Counting) else 0)
    for job in jobs:
        run_jobs([job], tmp_path / "alone", RunOptions(batch_size=20))
        name = job.spec.digest
        assert _lines(tmp_path / "shared" / name) == _lines(tmp_path / "alone" / name)


@dataclass(frozen=True)
class Onward(FGSM):
    """Goes on by 0.001 from where it was at the eps before; the first time, if it strays, far too far."""

    strays: bool = False

    def run(self, model, batch, threat, noise):
        if batch.start is None:
            return batch.images + (5 if self.strays else 0.001)
        return batch.start + 0.001


@pytest.mark.parametrize(("strays", "length"), [(False, 0.003), (True, 0.002)])
def test_a_search_starts_from_its_last_allowed_proposal(tmp_path, strays, length):
    found = records(make_job(Onward(strays=strays), transfer("linf", *SWEEP)), tmp_path)
    held = [r for r in found if not r.goal_reached]
    assert len(held) > 10
    assert all(r.distance.linf == pytest.approx(length) for r in held)


@pytest.mark.parametrize("shown", [False, True])
def test_a_crash_on_a_substitute_is_recorded(tmp_path, monkeypatch, capsys, shown):
    @dataclass(frozen=True)
    class Raises(FGSM):
        def run(self, model, batch, threat, noise):
            raise ZeroDivisionError("no luck")

    monkeypatch.setenv("INVBENCH_TRACEBACK", "1" if shown else "")
    found = records(make_job(Raises(), transfer("linf", *SWEEP)), tmp_path)
    assert capsys.readouterr().err.count("ZeroDivisionError: no luck") == shown
    assert {r.status for r in found} == {"crash"}
    (event,) = [e for e in CellFolder(tmp_path).events() if e["event"] == "crash"]
    assert event["samples"] == list(range(N))


@pytest.mark.parametrize("name", sorted(NORMS))
def test_scaled_directions_have_the_length_of_the_budget(name):
    clean, way = torch.full((4, 6), 0.5), torch.linspace(-1e-25, 2e-25, 24).reshape(4, 6)
    way[3] = 0
    ball = LpBall(name, 3 if name == "l0" else 0.2)
    images = scale_to_budget(clean, way if name != "l0" else way * 1e24, ball, (0.0, 1.0))
    lengths = norm(images - clean, name)
    assert lengths[:3].tolist() == pytest.approx([ball.eps] * 3, rel=1e-5)
    assert lengths[3] == 0
    assert ball.contains(clean, images).all()
    far = scale_to_budget(clean, way * 1e24, LpBall(name, 100), (0.0, 1.0))
    assert ((far >= 0) & (far <= 1)).all()


def test_a_target_class_is_reached_through_a_substitute(tmp_path):
    ids = [i for i, label in enumerate(points().labels.tolist()) if label == 0]
    job = replace(make_job(PGD(steps=5), transfer("linf", 0.2).with_goal(Target(1))), samples=ids)
    found = records(job, tmp_path)
    assert sum(r.goal_reached for r in found) > 5
    assert all(r.adversarial.prediction == 1 for r in found if r.goal_reached)
