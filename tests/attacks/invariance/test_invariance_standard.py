"""The worst case over invariance attacks, with an oracle that is known exactly."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from robustbench_inv.attacks.fixed_inputs import Counterpart
from robustbench_inv.attacks.invariance.invariance_standard import MEMBERS, InvarianceStandard
from robustbench_inv.attacks.invariance.layer_metamer import LayerMetamer
from robustbench_inv.attacks.invariance.level_set_traversal import LevelSetTraversal
from robustbench_inv.attacks.invariance.relu_preimage import ReluPreimage
from robustbench_inv.attacks.protocol import Batch, InputPool
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.attacks.spheres import SpheresInvariance
from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.data.protocol import HasCounterparts
from robustbench_inv.data.spheres import Spheres
from robustbench_inv.errors import BadParameter, CapabilityMismatch
from robustbench_inv.models.reject_option import reject
from robustbench_inv.models.spheres import max_margin, misaligned
from robustbench_inv.models.wrapping import ModuleClassifier
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import norm
from robustbench_inv.threat.budgets import LpBall, OnSphere, Unbounded
from robustbench_inv.threat.goals import KeepDecision
from robustbench_inv.threat.threat_model import ThreatModel

N, WIDTH = 20, 8
"""Inputs are rows of eight pixels. The model looks at the first half, the oracle at the mean of the second half."""


def classifier(first=0):
    """Class 1 if the mean of four pixels, from ``first`` on, is above a half."""
    linear = nn.Linear(WIDTH, 2)
    seen = torch.zeros(WIDTH)
    seen[first : first + 4] = 1
    linear.weight.data = 10 * torch.stack([-seen, seen])
    linear.bias.data = torch.tensor([20.0, -20.0])
    return ModuleClassifier(nn.Sequential(nn.Flatten(), linear), (0.0, 1.0), 2)


def true_classes(images, _ids):
    return (images.flatten(1)[:, WIDTH // 2 :].mean(1) > 0.5).long()


def batch(oracle=true_classes):
    generator = torch.Generator().manual_seed(0)
    labels, ids = torch.arange(N) % 2, torch.arange(N)
    images = 0.3 + 0.1 * torch.rand(N, 1, 1, WIDTH, generator=generator)
    images += 0.3 * labels[:, None, None, None]
    pool = InputPool(ids, lambda rows: (images[rows], labels[rows]))
    return Batch(images, labels, ids, pool=pool, oracle=oracle)


def run(given, model=None, budget=None, attack=None):
    model = model or classifier()
    threat = ThreatModel(budget or Unbounded("l2"), KeepDecision())
    rng = SampleRNG(0, given.ids)
    meter = CountingModel(model, given, threat, rng, keep_best=False)
    return (attack or InvarianceStandard()).run(meter, given, threat, rng), meter, model


def test_the_class_changes_and_the_prediction_stays_at_a_distance_close_to_the_smallest_possible():
    given = batch()
    found, meter, model = run(given)
    assert torch.equal(model(found).decision, model(given.images).decision)
    assert (true_classes(found, given.ids) != given.labels).all()
    gap = (given.images.flatten(1)[:, WIDTH // 2 :].mean(1) - 0.5).abs()
    least = 2 * gap  # l2 distance of four pixels that change by the gap each
    distance = norm(found - given.images, "l2")
    assert (distance >= least - 1e-5).all()
    assert (distance <= 1.5 * least).all()
    assert (meter.logged["ensemble_member"] > 0).all()


def hidden_layer(units, seed):
    """A random network with one ReLU layer."""
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, units), nn.ReLU(), nn.Linear(units, 2))
    return ModuleClassifier(layers, (0.0, 1.0), 2)


SHORT = tuple(replace(m, steps=15) if hasattr(m, "steps") else m for m in MEMBERS)
LINEAR, NARROW, WIDE = classifier(), hidden_layer(3, 0), hidden_layer(20, 1)


@pytest.mark.parametrize(
    ("model", "budget"),
    [
        (LINEAR, Unbounded("l2")),
        (LINEAR, LpBall("l2", 0.4)),
        (NARROW, Unbounded("linf")),
        (NARROW, LpBall("linf", 0.2)),
        (WIDE, Unbounded("l0")),
        (WIDE, Unbounded("l1")),
        (WIDE, LpBall("l0", 5)),
    ],
    ids=lambda each: str(each) if hasattr(each, "norm") else "",
)
def test_no_member_alone_reaches_the_goal_for_a_sample_more_or_at_a_smaller_distance(model, budget):
    given = batch()
    before = model(given.images).decision

    def distances(found):
        reached = model(found).decision == before
        reached &= true_classes(found, given.ids) != given.labels
        reached &= budget.contains(given.images, found)
        return norm(found - given.images, budget.norm).where(reached, torch.inf)

    ours, some = distances(run(given, model, budget, InvarianceStandard(members=SHORT))[0]), 0
    for attack in (*SHORT, LevelSetTraversal(steps=15), LevelSetTraversal("aligned", steps=15)):
        if attack.kind == "invariance" and budget.norm in attack.norms:
            if isinstance(attack, ReluPreimage) and not attack.is_narrow(model, given.images):
                continue
            try:
                other = distances(run(given, model, budget, attack)[0])
            except CapabilityMismatch:
                continue
            some += int(other.isfinite().sum())
            assert (ours <= other * (1 + 1e-6)).all(), attack
    assert some > 0


def test_the_oracle_itself_as_model_has_no_failure():
    given = batch()
    found, meter, model = run(given, classifier(first=WIDTH // 2))
    kept = model(found).decision == model(given.images).decision
    assert not (kept & (true_classes(found, given.ids) != given.labels)).any()
    assert meter.logged["ensemble_member"].tolist() == [0] * N
    assert meter.logged["smallest_distance_l2"].isinf().all()


@pytest.mark.parametrize("norm_name", ["l0", "l1", "l2", "linf"])
def test_the_logged_distance_is_that_of_the_returned_input(norm_name):
    given = batch()
    found, meter, _ = run(given, budget=Unbounded(norm_name))
    logged = meter.logged[f"smallest_distance_{norm_name}"]
    torch.testing.assert_close(logged, norm(found - given.images, norm_name).to(logged))


@pytest.mark.parametrize(("norm_name", "eps"), [("linf", 0.15), ("l2", 0.35), ("l0", 6)])
def test_a_budget_contains_every_result_and_only_far_classes_are_out_of_reach(norm_name, eps):
    given, ball = batch(), LpBall(norm_name, eps)
    found, meter, _ = run(given, budget=ball)
    assert ball.contains(given.images, found).all()
    free = run(given, budget=Unbounded(norm_name))[1].logged[f"smallest_distance_{norm_name}"]
    inside = meter.logged["ensemble_member"] > 0
    assert inside.any()
    assert (free[~inside] > eps * 0.8).all()


def test_an_oracle_that_never_knows_yields_no_failure_and_the_end_of_a_traversal():
    given = batch(lambda _images, ids: torch.full_like(ids, -1))
    found, meter, model = run(given)
    assert meter.logged["ensemble_member"].tolist() == [0] * N
    assert torch.equal(model(found).decision, model(given.images).decision)
    assert (found != given.images).flatten(1).any(1).all()


def test_a_narrow_layer_shares_its_activations_with_inputs_of_another_class():
    model = hidden_layer(3, 0)
    alone = InvarianceStandard(members=(ReluPreimage(),))
    assert (run(batch(), model, attack=alone)[1].logged["ensemble_member"] == 1).any()
    assert not ReluPreimage().is_narrow(hidden_layer(20, 1), batch().images)
    assert not ReluPreimage().is_narrow(classifier(), batch().images)


def test_the_altered_inputs_of_a_data_set_are_tried():
    given = batch()
    altered = given.images.clone()
    altered[..., WIDTH // 2 :] += 0.4 * (1 - 2 * given.labels)[:, None, None, None]
    known = Batch(**{**vars(given), "counterparts": altered})
    _, meter, _ = run(known)
    assert MEMBERS.index(Counterpart()) + 1 in meter.logged["ensemble_member"].tolist()


@pytest.mark.parametrize("build", [misaligned, max_margin])
def test_on_spheres_the_closed_form_is_reached(build):
    data = Spheres(d=100, n=4, r1=1.0, r2=1.3, size=40)
    images, labels = data.batch(range(40))
    ids = torch.arange(40)
    pool = InputPool(ids, data.batch)
    given = Batch(images, labels, ids, pool=pool, oracle=lambda x, _ids: data.classify(x))
    model = build(data)
    exact, _, _ = run(given, model, OnSphere(1.3), SpheresInvariance())
    found, meter, _ = run(given, model, Unbounded("l2"))
    reached = data.classify(exact) != labels
    reached &= model(exact).decision == model(images).decision
    assert bool(reached.any()) == (build is misaligned)
    assert torch.equal(meter.logged["ensemble_member"] > 0, reached)
    torch.testing.assert_close(found[reached], exact[reached])


def test_altered_inputs_of_another_type_and_not_finite_ones_do_no_harm():
    given, short = batch(), InvarianceStandard(members=SHORT[:1])
    altered = given.images.double()
    altered[..., WIDTH // 2 :] += 0.4 * (1 - 2 * given.labels)[:, None, None, None]
    altered[0], altered[1] = torch.nan, torch.inf
    found, meter, _ = run(Batch(**{**vars(given), "counterparts": altered}), attack=short)
    assert found.dtype == given.images.dtype
    assert found.isfinite().all()
    assert (meter.logged["ensemble_member"][2:] == 1).all()


def test_without_a_donor_of_another_class_nothing_is_found():
    given = batch()
    alike = InputPool(given.ids, lambda rows: (given.images[rows], torch.zeros_like(rows)))
    same = Batch(**{**vars(given), "labels": torch.zeros_like(given.labels), "pool": alike})
    found, meter, _ = run(same, attack=InvarianceStandard(members=SHORT))
    assert torch.equal(found, given.images)
    assert meter.logged["ensemble_member"].tolist() == [0] * N


def test_batches_do_not_matter():
    given, short = batch(), InvarianceStandard(members=SHORT)
    whole = run(given, attack=short)[0]
    parts = [run(given[torch.arange(k, k + 5)], attack=short)[0] for k in range(0, N, 5)]
    torch.testing.assert_close(torch.cat(parts), whole)


@dataclass(frozen=True)
class Raising:
    """Proposes an input of another class, but raises if the batch has one of some samples."""

    ids: tuple
    kind: ClassVar[str] = "invariance"
    norms: ClassVar[frozenset] = frozenset({"l0", "l1", "l2", "linf"})

    def run(self, model, batch, threat, rng):
        if bad := set(self.ids) & set(batch.ids.tolist()):
            raise ValueError(f"no use for {sorted(bad)[0]}")
        images = batch.images.clone()
        images[..., WIDTH // 2 :] = (1 - batch.labels)[:, None, None, None].float()
        return images


def test_what_a_member_raises_for_a_sample_takes_no_other_result():
    given = batch()
    attack = InvarianceStandard(members=(Raising((3, 7)), *SHORT))
    found, meter, _ = run(given, attack=attack)
    by = meter.logged["ensemble_member"]
    assert (by > 0).all()
    assert meter.logged["smallest_distance_linf"].isfinite().all()
    assert meter.crashes == {k: f"Raising: ValueError: no use for {k}" for k in (3, 7)}
    assert meter.failures == dict.fromkeys((3, 7), "crash")
    reference, _, _ = run(given, attack=InvarianceStandard(members=(Raising(()), *SHORT)))
    others = torch.tensor([k for k in range(N) if k not in (3, 7)])
    torch.testing.assert_close(found[others], reference[others])


def test_a_member_that_always_raises_is_reported_for_each_sample():
    given = batch()
    _, meter, _ = run(given, attack=InvarianceStandard(members=(Raising(tuple(range(N))), *SHORT)))
    assert (meter.logged["ensemble_member"] > 0).all()
    assert sorted(meter.crashes) == list(range(N))


def test_only_what_its_own_requirements_refuse_leaves_a_member_out_silently():
    class Refusing(Raising):
        def check_requirements(self, model, threat, data):
            images, labels = data.batch([0])
            assert isinstance(model, ModuleClassifier)
            assert (images.shape[1:], len(labels), len(data)) == (data.shape, 1, N)
            assert not isinstance(data, HasCounterparts)
            raise CapabilityMismatch("no use for this model")

    class Mismatched(Raising):
        def run(self, model, batch, threat, rng):
            raise CapabilityMismatch("no use for these samples")

    given = batch()
    _, meter, _ = run(given, attack=InvarianceStandard(members=(Refusing(()), *SHORT)))
    assert not meter.crashes
    assert (meter.logged["ensemble_member"] > 1).all()
    _, meter, _ = run(given, attack=InvarianceStandard(members=(Mismatched(()), *SHORT)))
    assert sorted(meter.crashes) == list(range(N))
    assert "no use for these samples" in meter.crashes[0]
    assert (meter.logged["ensemble_member"] > 0).all()


def test_label_hypotheses_have_as_many_failures_in_a_batch_that_the_network_splits():
    model, data = load_model("mnist-c-dv").classifier, load_dataset("mnist5k")
    images, labels = data.batch(torch.arange(0, 5000, 38)[:126])
    pool = InputPool(torch.arange(126), lambda rows: (images[rows], labels[rows]))

    def another(_images, ids):
        return (labels[ids] + 1) % 10

    whole = Batch(images, labels, torch.arange(126), pool=pool, oracle=another)
    attack = InvarianceStandard(grid=1, halvings=0, members=(LayerMetamer(steps=8),))
    some = torch.arange(0, 126, 9)
    by = [run(each, model, attack=attack)[1] for each in (whole, whole[some])]
    assert not by[0].crashes
    found, few = (each.logged["ensemble_member"] for each in by)
    assert few.sum() > 0
    assert torch.equal(found[some], few)


def test_missing_memory_is_not_a_members_fault():
    class Hungry(Raising):
        def run(self, model, batch, threat, rng):
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        run(batch(), attack=InvarianceStandard(members=(Hungry(()),)))


def test_of_a_model_that_rejects_no_rejected_input_is_returned_as_a_failure():
    given, plain = batch(), classifier()
    model = reject(plain, "margin", plain(given.images).logits.amax(1).median().expand(2).clone())
    found, meter, _ = run(given, model)
    failing = meter.logged["ensemble_member"] > 0
    assert failing.any()
    assert model(found).accepted[failing].all()
    everything = reject(plain, "margin", torch.full((2,), torch.inf))
    assert not (run(given, everything)[1].logged["ensemble_member"] > 0).any()


def test_without_an_oracle_it_is_refused():
    with pytest.raises(CapabilityMismatch):
        run(batch(oracle=None))


@pytest.mark.parametrize("bad", [{"grid": 0}, {"halvings": -1}])
def test_bad_parameters_are_refused(bad):
    with pytest.raises(BadParameter):
        InvarianceStandard(**bad)
