"""Plans: frozen digests, names, and incompatible parts that are refused before anything runs."""

import pytest
import torch
from torch import nn

from robustbench_inv.attacks.ensemble import Ensemble
from robustbench_inv.attacks.pgd import PGD
from robustbench_inv.catalogue.fingerprint import content
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.errors import CapabilityMismatch
from robustbench_inv.evaluation.cost import estimate_jobs, passes
from robustbench_inv.evaluation.engine import RunOptions
from robustbench_inv.evaluation.jobs import CellSpec, EvaluationRequest, build_jobs
from robustbench_inv.evaluation.plan import make_plan, plan_jobs
from robustbench_inv.evaluation.schedule import run_cell
from robustbench_inv.identity import IDENTITY_VERSION
from robustbench_inv.results.run_files import CellFolder
from robustbench_inv.threat.budgets import LpBall, OnSphere, Unbounded
from robustbench_inv.threat.goals import KeepDecision, Misclassify, MisclassifyAccepted, Target
from robustbench_inv.threat.threat_model import ThreatModel, describe_threat, digest_threat


def threat_digest(threat):
    return digest_threat(describe_threat(threat, content))


def refuse(job, words):
    with pytest.raises(CapabilityMismatch, match=words) as error:
        plan_jobs([job])
    assert "\n" not in str(error.value)


def test_frozen_digests():
    """Folders are named by these: whoever changes one raises IDENTITY_VERSION and adds a line here."""
    spec = CellSpec("0" * 64, "1" * 64, "2" * 64, "3" * 64, 7)
    sweep = ThreatModel(LpBall("linf", 0.3), sweep=(0.1, 0.3))
    frozen = {
        1: (
            "255d9ca5f46ae4eb552a7e1731709a13",
            "d827929e23f0d8e3af545509b21cefc156caa067eaf877977e937369d1dc7e86",
        ),
        2: (
            "2c8a11d195904935fd9c950d55e8f73f",
            "08483eb1b6b6ba7cb451727faa7c8869dbb721acd136b7e01f2a63113281299e",
        ),
    }
    assert (spec.digest, threat_digest(sweep)) == frozen[IDENTITY_VERSION]


def test_everything_in_a_threat_is_in_its_digest():
    ball = ThreatModel(LpBall("linf", 0.3))
    threats = [
        ball,
        ThreatModel(LpBall("l2", 0.3)),
        ThreatModel(LpBall("linf", 0.2)),
        ThreatModel(LpBall("linf", 0.3), sweep=(0.2, 0.3)),
        ThreatModel(LpBall("linf", 0.3), access="score"),
        ball.with_goal(MisclassifyAccepted()),
        ball.with_goal(Misclassify(same_class=True)),
        ball.with_goal(Target(3)),
        ball.with_goal(Target(4)),
        ball.with_goal(Target(offset=4)),
        ball.with_goal(Target(4, confidence=1.0)),
        ball.with_goal(Target(4, accepted=True)),
        ThreatModel(Unbounded("linf")),
        ThreatModel(Unbounded("l2")),
        ThreatModel(OnSphere(1.0)),
        ThreatModel(OnSphere(1.3)),
    ]
    assert len({threat_digest(threat) for threat in threats}) == len(threats)


@pytest.mark.parametrize(
    "text",
    [
        "linf=0.1,0.2",
        "l2=1.5",
        "none",
        "none:norm=linf",
        "l0=12",
        "linf=0.15,0.3:substitute=mnist-lenet5",
        "linf=0.15:guide=mnist-lenet5:dtype=float64",
        "none:substitute=mine.py:build:width=3,guide=1",
        "none:norm=linf:guide=a:substitute=b",
    ],
)
def test_the_text_of_a_threat_is_parsed_again(text):
    from robustbench_inv.catalogue.threats import load_threat

    threat = load_threat(text)
    assert threat.text == text
    assert load_threat(threat.text) == threat


def test_the_same_cells_have_the_same_name(toys):
    few = plan_jobs([toys.make_job(toys.Straight(), samples=[1, 2])])
    more = plan_jobs([toys.make_job(toys.Straight(), samples=range(9))], command=["x"])
    other = plan_jobs([toys.make_job(toys.Draws(), samples=[1, 2])])
    assert few.name == more.name != other.name
    assert few.name.startswith("twosides-points-")


def test_cells_are_distinct(toys):
    job = toys.make_job(toys.Straight())
    assert plan_jobs([job, job]).jobs == (job,)


def test_a_fixed_budget_attack_needs_a_budget(toys):
    refuse(toys.make_job(toys.Straight(), toys.none), "budget")


def test_an_unsupported_norm(toys):
    refuse(toys.make_job(toys.Straight(), ThreatModel(LpBall("l1", 2.0))), "norm, got 'l1'")


def test_a_goal_that_needs_an_oracle(toys):
    refuse(toys.make_job(toys.Straight(), toys.linf(0.1).with_goal(KeepDecision())), "true class")


def test_a_target_that_is_the_true_class(toys):
    refuse(toys.make_job(toys.Straight(), toys.linf(0.1).with_goal(Target(1))), "true class of")


def test_a_target_outside_the_classes(toys):
    for goal in (Target(2), Target(offset=2)):
        refuse(
            toys.make_job(toys.Straight(), toys.linf(0.1).with_goal(goal)), "no such target class"
        )


def test_another_number_of_classes(toys):
    images, labels = toys.points().batch(list(range(60)))
    data = ArrayDataset(images, labels, "three", num_classes=3)
    refuse(toys.make_job(toys.Straight(), data=data), "number of classes")


def test_another_range(toys):
    images, labels = toys.points().batch(list(range(60)))
    data = ArrayDataset(255 * images, labels, "grey levels", bounds=(0.0, 255.0))
    refuse(toys.make_job(toys.Straight(), data=data), "range of their inputs")


def test_another_shape(toys):
    images, labels = torch.rand(60, 9), toys.points().labels
    refuse(
        toys.make_job(toys.Straight(), data=ArrayDataset(images, labels, "wide")), r"shape \(9,\)"
    )


def test_eps_in_grey_levels_gives_a_warning(toys):
    job = toys.make_job(toys.Straight(), toys.linf(8.0))
    (warning,) = plan_jobs([job]).warnings
    assert "8/255" in warning
    assert plan_jobs([toys.make_job(toys.Straight(), toys.linf(1.0))]).warnings == ()


def test_passes():
    assert passes({"steps": 40, "restarts": 3}, "gradient") == (123, False)
    assert passes({"draws": 10}, "probe") == (10, False)
    assert passes({}, "query") == (5000, True)
    assert passes({"steps": 10, "searches": 9}, "search") == (99, False)
    assert passes({"steps": 10, "binary_search_steps": 5}, "search") == (55, False)
    assert passes({"steps": 10, "loss": "ce+margin"}, "search") == (22, False)
    assert passes({"steps": 10, "loss": "ce+margin", "restarts": 3}, "search") == (33, False)


@pytest.mark.parametrize(
    ("attack", "threat"),
    [
        ("cw:steps=20,searches=3", "none:norm=l2"),
        (
            "foolbox:L2CarliniWagnerAttack:steps=20,binary_search_steps=3,abort_early=false",
            "none:norm=l2",
        ),
        ("minimum-norm:steps=20,lagrangian_steps=30", "none:norm=l2"),
        ("hopskipjump:steps=6", "none:norm=l2"),
        ("boundary:steps=200", "none:norm=l2"),
        ("local-search:rounds=3,candidates=20", "none:norm=l0"),
        ("square:queries=40", "linf=0.001"),
        ("apgd:steps=10,restarts=2", "linf=0.001"),
    ],
)
def test_the_passes_of_a_plan_are_those_of_a_run(tmp_path, attack, threat):
    if attack.startswith("foolbox"):
        pytest.importorskip("foolbox")
    asked = {"models": ["mnist-cnn"], "dataset": "mnist5k", "samples": 4}
    (job,) = build_jobs(EvaluationRequest(attacks=[attack], threat=threat, **asked))
    card = job.attack.card
    parameters = card["parameters"]
    expected, _ = passes(parameters | dict(parameters.get("parameters") or {}), card["cost"])
    run_cell(job, tmp_path / "c", RunOptions())
    records = CellFolder(tmp_path / "c").records()
    taken = max(r.backward_passes or r.forward_passes for r in records)
    assert 0.6 * expected <= taken <= 1.3 * expected  # C&W ends descents that stagnate


@pytest.mark.parametrize(
    ("attack", "count"),
    [(PGD(steps=5), 6 + 2), (Ensemble((PGD(steps=5), PGD(steps=3))), 6 + 4 + 2)],
    ids=["alone", "cascade"],
)
def test_the_estimate_is_for_a_sample_that_survives(toys, tmp_path, attack, count):
    class Slow(nn.Module):
        bounds, num_classes = (0.0, 1.0), 2

        def __init__(self):
            super().__init__()
            self.inner = toys.TwoSides(torch.float32)
            self.many = nn.Linear(8, 20_000)

        def forward(self, images):
            return self.inner(images) + 1e-9 * self.many(images).sum(1, keepdim=True)

    job = toys.make_job(attack, toys.linf(0.001, 0.002), module=Slow())
    (estimate,) = estimate_jobs([job])
    assert (estimate.samples, estimate.passes, estimate.guessed) == (60, count, False)
    assert 0 < estimate.low < estimate.high
    run_cell(job, tmp_path / "c", RunOptions())
    # one question of each search is about its end; a cascade's about what its members show are not foreseen
    searches = 2 if isinstance(attack, PGD) else 3
    records = CellFolder(tmp_path / "c").records()
    assert {r.backward_passes for r in records if not r.goal_reached} == {count - searches}


def test_an_attack_may_have_requirements(toys):
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Picky(toys.Straight):
        def check_requirements(self, model, threat, data):
            raise CapabilityMismatch("picky attacks nothing", got=type(model).__name__)

    refuse(toys.make_job(Picky()), "picky attacks nothing, got 'ModuleClassifier'")


def planned(**asked):
    question = {"models": ["mnist-cnn"], "attacks": [], "dataset": "mnist5k", "samples": 10}
    return {
        job.attack.name: job.threat
        for job in build_jobs(EvaluationRequest(**{**question, **asked}))
    }


def test_distances_of_an_unbounded_threat_are_in_a_norm_of_the_attack():
    attacks = ["deepfool", "deepfool-linf", "foolbox:L0FMNAttack"]
    norms = {name: threat.norm for name, threat in planned(attacks=attacks, threat="none").items()}
    assert norms == {"deepfool": "l2", "deepfool-linf": "linf", "foolbox:L0FMNAttack": "l0"}
    (threat,) = planned(attacks=["deepfool-linf"], threat="none:substitute=mnist-lenet5").values()
    assert (threat.norm, threat.substitute) == ("linf", "mnist-lenet5")


def test_a_threat_applies_to_the_attacks_of_a_suite_that_support_its_norm():
    threats = planned(suite="quick", threat="linf=0.1")
    assert {name: threat.norm for name, threat in threats.items() if threat.bounded} == {
        "random-perturbation": "linf",
        "fgsm": "linf",
        "pgd-tuned": "linf",
        "minimum-norm:lagrangian_steps=0": "linf",
    }
    assert threats["pgd-tuned"].budget == LpBall("linf", 0.1)
    assert planned(suite="quick", threat="none")["pgd-tuned"].bounded


class AnyImage(nn.Module):
    """Takes inputs of any shape in [0, 1] or in the bounds of the data."""

    num_classes = 10

    def __init__(self, bounds=(0.0, 1.0), num_classes=10):
        super().__init__()
        self.bounds, self.num_classes = tuple(bounds), num_classes

    def forward(self, images):
        return images.flatten(1)[:, : self.num_classes].float()


@pytest.mark.parametrize("suite", ["quick", "standard", "diagnostics", "rejection"])
def test_a_suite_on_unknown_data_is_refused_with_what_to_type(suite):
    data = ArrayDataset(torch.rand(20, 1, 5, 5), [*range(10)] * 2, "mine")
    asked = {"models": [AnyImage()], "dataset": data, "suite": suite}
    with pytest.raises(CapabilityMismatch, match=r"mine has no customary.*--threat linf=EPS"):
        planned(**asked)
    bounded = [t for t in planned(**asked, threat="linf=0.01").values() if t.bounded]
    assert {threat.epsilons for threat in bounded} == {(0.01,)}


def test_suites_and_single_attacks_use_the_budgets_of_the_data():
    data = ArrayDataset(torch.rand(20, 1, 5, 5), [*range(10)] * 2, "a", budgets=("linf=0.02",))
    asked = {"models": [AnyImage()], "dataset": data}
    assert planned(**asked, suite="standard")["standard"].epsilons == (0.02,)
    assert planned(**asked, attacks=["pgd"])["pgd"].epsilons == (0.02,)
    spheres = {"models": ["spheres-max-margin"], "dataset": "spheres:d=20,n=2"}
    assert planned(**spheres, suite="quick")["pgd-tuned"].norm == "l2"


def test_a_requested_budget_keeps_the_oblivious_attack_of_a_suite():
    request = EvaluationRequest(
        ["mnist-sdim:reject=likelihood,percentile=1"],
        suite="rejection",
        threat="linf=0.1",
        samples=10,
    )
    threats = [job.threat for job in build_jobs(request) if job.attack.name == "pgd-tuned"]
    assert [threat.goal.name for threat in threats] == ["misclassify-accepted", "misclassify"]
    assert {threat.epsilons for threat in threats} == {(0.1,)}


def test_an_optional_attack_without_a_customary_budget_is_skipped_and_told():
    class Judged(ArrayDataset):
        oracle_source = "exact"

        def classify(self, images):
            return torch.zeros(len(images), dtype=torch.int64)

    data = Judged(torch.rand(20, 1, 5, 5), [*range(10)] * 2, "mine", budgets=("l2=1,2",))
    request = EvaluationRequest([AnyImage()], suite="invariance", dataset=data, samples=10)
    plan = make_plan(request)
    assert {job.threat.text for job in plan.jobs} == {"none", "l2=2"}
    told = [line for line in plan.warnings if "no customary" in line]
    assert len(told) == 2
    assert "skipped: mine has no customary l0 budget for invariance-standard" in told[1]
