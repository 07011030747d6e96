"""Both analytic attacks on the spheres against the closed form of each sample, through the engine."""

import math

import pytest
import torch

import robustbench_inv as rbi

SPHERES = [
    "spheres:d=500,n=10,r1=1,r2=1.3,size=200",
    "spheres:d=20,n=1,r1=1,r2=3,size=60",
    "spheres:d=60,n=20,r1=0.5,r2=2.5,size=60",
]
SWEEP = [0.05 * k for k in range(1, 60)]


def run(tmp_path, attack, spheres, model="spheres-misaligned", threat="none"):
    run = rbi.evaluate(
        model=model, attack=attack, threat=threat, dataset=spheres, out=tmp_path, checks=False
    )
    return {record.sample: record for record in run.records()}


def norms(spheres, model="spheres-misaligned"):
    data = rbi.load_dataset(spheres)
    classifier = rbi.load_model(model, dataset=data).classifier
    images, labels = data.batch(range(len(data)))
    cut = data.d - classifier.unused_dimensions
    used, unused = images[:, :cut].norm(dim=1), images[:, cut:].norm(dim=1)
    return labels.tolist(), used.tolist(), unused.tolist(), classifier.bias, data.r2


def closed_form(kind, u, v, bias, outer):
    if kind == "perturbation":
        return math.hypot(u - bias, math.sqrt(outer**2 - bias**2) - v)
    return math.sqrt(outer**2 - u**2) - v


@pytest.mark.parametrize("spheres", SPHERES)
@pytest.mark.parametrize(("kind", "target"), [("perturbation", 1), ("invariance", 0)])
def test_distances_equal_the_closed_form(tmp_path, spheres, kind, target):
    records = run(tmp_path, f"spheres-{kind}", spheres)
    labels, used, unused, bias, outer = norms(spheres)
    for i, (label, u, v) in enumerate(zip(labels, used, unused, strict=True)):
        record = records[i]
        assert record.clean.prediction == label
        assert record.goal_reached == (label == target)
        if label != target:
            assert (record.status, record.distance.l2) == (
                "ok",
                0.0,
            )  # proved: there is no such point
            continue
        assert record.distance.l2 == pytest.approx(closed_form(kind, u, v, bias, outer), abs=1e-9)
        assert record.oracle_label == 1  # on the outer sphere, where the attack leads
        assert record.adversarial.prediction == 0


@pytest.mark.parametrize(("kind", "target"), [("perturbation", 1), ("invariance", 0)])
def test_success_curve_equals_the_closed_form(tmp_path, kind, target):
    spheres = SPHERES[0]
    threat = "l2=" + ",".join(f"{eps:.2f}" for eps in SWEEP)
    records = run(tmp_path, f"spheres-{kind}", spheres, threat=threat)
    labels, used, unused, bias, outer = norms(spheres)
    reached = [closed_form(kind, u, v, bias, outer) for u, v in zip(used, unused, strict=True)]
    for eps in (round(eps, 2) for eps in SWEEP):
        expected = {i for i, label in enumerate(labels) if label == target and reached[i] <= eps}
        found = {i for i, r in records.items() if r.broken_at is not None and r.broken_at <= eps}
        assert found == expected, eps


@pytest.mark.parametrize("attack", ["spheres-perturbation", "spheres-invariance"])
def test_the_max_margin_classifier_survives_both(tmp_path, attack):
    records = run(tmp_path, attack, "spheres:d=30,n=3,size=40", model="spheres-max-margin")
    assert not any(record.goal_reached for record in records.values())


def test_no_point_on_the_outer_sphere_is_misclassified_nearer(tmp_path):
    """The closed form is the minimum: points drawn from the whole misclassified part are further away."""
    spheres, model = "spheres:d=4,n=1,r1=1,r2=3,size=20", "spheres-misaligned:points=40"
    records = run(tmp_path, "spheres-perturbation", spheres, model=model)
    data = rbi.load_dataset(spheres)
    bias = rbi.load_model(model, dataset=data).classifier.bias
    generator = torch.Generator().manual_seed(0)
    used = torch.randn(200_000, 3, dtype=torch.float64, generator=generator)
    lengths = bias * torch.rand(200_000, 1, dtype=torch.float64, generator=generator) ** (1 / 3)
    used = used / used.norm(dim=1, keepdim=True) * lengths
    unused = (data.r2**2 - lengths**2).sqrt()
    points = torch.cat([torch.cat([used, unused], 1), torch.cat([used, -unused], 1)])
    images, labels = data.batch(range(20))
    for i in (labels == 1).nonzero()[:, 0].tolist():
        if not records[i].goal_reached or records[i].status == "already_wrong":
            continue
        nearest = (points - images[i]).norm(dim=1).min().item()
        assert records[i].distance.l2 <= nearest
        assert nearest < records[i].distance.l2 * 1.2  # a dense enough grid


def test_example_6_is_right_on_all_points_and_at_chance_once_the_inner_ones_have_moved_outwards(
    tmp_path,
):
    records = run(tmp_path, "spheres-invariance", "spheres:d=100,n=1,size=60").values()
    assert all(record.clean.prediction == record.label for record in records)
    assert all(record.oracle_label == 1 for record in records)
    right = [record.adversarial.prediction == record.oracle_label for record in records]
    assert sum(right) == len(right) / 2


def test_on_uneven_samples_one_attack_alone_misleads(tmp_path):
    """A model that survives perturbation attacks is broken by invariance attacks on all samples."""
    spheres = "spheres:d=100,n=10,size=40,inner=0.9"
    held = {
        attack: [not r.goal_reached for r in run(tmp_path / attack, attack, spheres).values()]
        for attack in ("spheres-perturbation", "spheres-invariance")
    }
    assert {attack: sum(each) for attack, each in held.items()} == {
        "spheres-perturbation": 36,
        "spheres-invariance": 4,
    }


def test_another_model_is_refused_before_anything_runs(tmp_path):
    from robustbench_inv.errors import UsageError

    with pytest.raises(UsageError):
        run(tmp_path, "spheres-perturbation", "mnist5k", model="mnist-cnn")
