"""Checks of invariance cells: oracle (C34, C35), inverse (C32), ReLU preimage (C33)."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import robustbench_inv as rbi
from robustbench_inv.attacks.invariance.invariance_standard import InvarianceStandard
from robustbench_inv.attacks.invariance.metamer import Metamer
from robustbench_inv.checks.invariance_checks import (
    check_inverse,
    check_oracle,
    check_oracle_agreement,
    check_preimage,
    uses_inverse,
    uses_preimage_solver,
)
from robustbench_inv.checks.suite import check_records
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.models.plain_networks import MLP
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.results.oracle_error import OracleError
from robustbench_inv.results.rate import ChangeDetection
from robustbench_inv.results.record import ModelOutput
from robustbench_inv.results.run_files import RunFolder
from robustbench_inv.testing.analytic_problems import rotation_classifier
from robustbench_inv.testing.toy_cells import toy_cell
from robustbench_inv.testing.toys import UnmatchedMetamer, half_blind

PANEL = {
    "name": "p",
    "digest": "1" * 64,
    "source": "panel p",
    "members": [{"name": "a", "digest": "2" * 64}],
}
ERROR = OracleError("panel p", "clean inputs", 100, 2, 3)


def cell(oracles=(5, 5, 3, None), *, oracle=PANEL, error=ERROR, source="panel p"):
    """Samples 0 and 1 are successes, 2 is none, 3 has no class; every decision stays at 3."""
    threat = {"norm": "l2", "epsilons": [], "goal": "keep-decision", "oracle": oracle}
    toy = toy_cell(
        "metamer", [0.1, 0.1, None, None], epsilons=(), threat=threat, attack={"kind": "invariance"},
        model={"name": "toy", "digest": "3" * 64},
    )  # fmt: skip
    same = ModelOutput(3, None, None)
    lines = tuple(
        replace(
            r, oracle_label=oracles[r.sample], oracle_source=source, clean=same, adversarial=same
        )
        for r in toy.records
    )
    return replace(toy, records=lines, oracle_error=error)


def grades(*cells):
    return {v.id: v.verdict for v in check_records(cells) if v.id in ("C34", "C35")}


def test_both_are_silent_on_an_honest_cell():
    verdict = check_oracle(cell())
    assert verdict.verdict == "PASS"
    assert "wrong on 2 of 100 clean inputs [0.6, 7.0] %, undecided on 3" in verdict.evidence
    assert grades(cell()) == {"C34": "PASS", "C35": "PASS"}


def test_they_are_asked_of_invariance_cells_alone():
    assert grades(toy_cell("pgd", [0.1, None])) == {}


def test_c34_needs_an_oracle_for_each_success():
    verdict = check_oracle(cell((None, 5, 3, None)))
    assert (verdict.verdict, verdict.value) == ("FAIL", 1)
    assert "samples 0" in verdict.evidence
    assert grades(cell(source=None))["C34"] == "FAIL"


@pytest.mark.parametrize(
    "oracle",
    [{**PANEL, "digest": "3" * 64}, {**PANEL, "members": [{"name": "a", "digest": "3" * 64}]}],
)
def test_c34_never_lets_the_model_judge_itself(oracle):
    verdict = check_oracle(cell(oracle=oracle))
    assert verdict.verdict == "FAIL"
    assert "toy is part of its own oracle" in verdict.evidence


@pytest.mark.parametrize(
    ("error", "oracle", "expected"),
    [
        (replace(ERROR, errors=11), PANEL, "WARN"),
        (replace(ERROR, errors=10), PANEL, "PASS"),
        (None, PANEL, "WARN"),
        (None, None, "PASS"),  # the data set's own
        (replace(ERROR, trials=0, errors=0), PANEL, "WARN"),
    ],
)
def test_c34_asks_how_often_a_proxy_errs(error, oracle, expected):
    assert grades(cell(error=error, oracle=oracle))["C34"] == expected


@pytest.mark.parametrize(
    ("false", "perturbed_false", "attack", "expected"),
    [
        (1, 0, "a:Metamer", "PASS"),
        (100, 0, "a:Metamer", "WARN"),  # the oracle reports half of the unchanged inputs
        (1, 100, "a:Metamer", "WARN"),  # or half of those with noise
        (1, 0, "a:InvarianceStandard", "WARN"),
    ],
)
def test_c34_warns_if_all_failures_may_be_errors_of_the_oracle(
    false, perturbed_false, attack, expected
):
    seen = ChangeDetection("altered digits", 200, 180, 200, false, 200, perturbed_false)
    found = cell(error=replace(ERROR, detection=seen))
    searched = replace(found.attack, implementation=attack)
    verdict = check_oracle(replace(found, info=replace(found.info, attack=searched)))
    assert verdict.verdict == expected
    assert ("all failures (2) may be its errors" in verdict.evidence) == (expected == "WARN")


def test_c35_tells_both_agreements():
    verdict = check_oracle_agreement(cell((5, 5, None, 3)))
    assert "Of 2 changed inputs" in verdict.evidence  # the samples that held were not changed
    assert "0 are predicted as the oracle's class and 2 as the label" in verdict.evidence


@pytest.mark.parametrize(
    ("oracles", "expected"),
    [
        ((5, 5, None, None), "PASS"),
        ((5, None, None, None), "WARN"),
        ((None, None, None, None), "FAIL"),
    ],
)
def test_c35_wants_to_know(oracles, expected):
    assert grades(cell(oracles))["C35"] == expected


HONEST = toy_cell("metamer", (0.1,) * 2000)


def view(**columns):
    """Return a cell in which numbers were measured of its first samples."""
    note = {"event": "sample_values", "block": 0, "samples": list(range(2000))}
    values = {
        name: [*given, *[1e-6] * (2000 - len(given))]
        for name, given in ({"reencoding_error": [], "reconstruction_error": []} | columns).items()
    }
    return replace(HONEST, events=({**note, "values": values},))


@pytest.mark.parametrize("name", ["reencoding_error", "reconstruction_error"])
def test_the_grades(name):
    grades = {
        "PASS": [1e-3],
        "WARN": [2e-3, 5e-4],
        "FAIL": [2e-3, 2e-3, float("nan")],
    }
    for wanted, errors in grades.items():
        verdict = check_inverse(view(**{name: [None if e != e else e for e in errors]}))
        assert verdict.id == "C32"
        assert verdict.verdict == wanted, verdict.evidence
    assert "samples 0, 1, 2; try float64" in verdict.evidence
    assert "inf" in verdict.evidence


def test_a_cell_without_an_inverse_is_not_asked():
    assert not uses_inverse(HONEST)
    assert uses_inverse(view())


class Swapped(ArrayDataset):
    """Data whose oracle always sees another class."""

    oracle_source = "exact"

    def classify(self, images):
        return (rotation_classifier(dtype=images.dtype)(images).decision + 1) % 3


@pytest.mark.parametrize(("inverse_error", "wanted"), [(0.0, "PASS"), (0.01, "FAIL")])
def test_through_the_engine(tmp_path, inverse_error, wanted):
    model = rotation_classifier(inverse_error=inverse_error)
    images = SampleRNG(0, torch.arange(30), "test").uniform((1, 6, 6), dtype=torch.float64)
    data = Swapped(images, model(images).decision, "swapped")
    run = rbi.evaluate(model=model, attack="metamer", threat="none", dataset=data, out=tmp_path)
    grades = {v["id"]: v["verdict"] for v in RunFolder(run.path).checks()}
    assert grades["C32"] == wanted
    assert grades["C22"] == "PASS"


N = 2000
HONEST_PREIMAGE = toy_cell("relu-preimage", (0.1,) * N)


def view_preimage(**columns):
    """Return a cell in which numbers were measured of its first samples."""
    usual = {"activation_error": 1e-6, "changed_units": 0, "solver_status": 0}
    values = {
        name: [*columns.get(name, ()), *[rest] * (N - len(columns.get(name, ())))]
        for name, rest in usual.items()
    }
    note = {"event": "sample_values", "block": 0, "samples": list(range(N)), "values": values}
    return replace(HONEST_PREIMAGE, events=(note,))


@pytest.mark.parametrize(
    ("columns", "wanted"),
    [
        ({"activation_error": [1e-3]}, "PASS"),
        ({"activation_error": [2e-3, 5e-4]}, "WARN"),
        ({"activation_error": [2e-3, None, 1.0]}, "FAIL"),
        ({"changed_units": [1, 1]}, "WARN"),
        ({"changed_units": [1, 7, 0, 2]}, "FAIL"),
        ({"solver_status": [1, 1, 1, 1, 1]}, "WARN"),
    ],
)
def test_preimage_the_grades(columns, wanted):
    verdict = check_preimage(view_preimage(**columns))
    assert (verdict.id, verdict.verdict) == ("C33", wanted), verdict.evidence


def test_a_cell_of_another_attack_is_not_asked():
    assert not uses_preimage_solver(HONEST_PREIMAGE)
    assert uses_preimage_solver(view_preimage())


class Kinked(MLP):
    """Something that is not affine comes before the first ReLU."""

    def forward(self, images):
        return super().forward(images**3)


class Judged(ArrayDataset):
    """Data with an oracle for every input."""

    oracle_source = "exact"

    def classify(self, images):
        return torch.zeros(len(images), dtype=torch.int64)


@pytest.mark.parametrize(("kind", "wanted"), [(MLP, "PASS"), (Kinked, "FAIL")])
def test_preimage_through_the_engine(tmp_path, kind, wanted):
    torch.manual_seed(0)
    model = kind((8,), (1, 5, 5), 3).eval()
    assert isinstance(model, nn.Module)
    images = torch.rand((30, 1, 5, 5))
    labels = model(images).argmax(1)
    labels[:3] = torch.arange(3)
    data = Judged(images, labels, "judged")
    run = rbi.evaluate(
        model=model, attack="relu-preimage", threat="none", dataset=data, out=tmp_path
    )
    grades = {v["id"]: v["verdict"] for v in RunFolder(run.path).checks()}
    assert grades["C33"] == wanted
    assert grades["C22"] == "PASS"


def invariance_cell(name, broken, *, members=(), epsilons=()):
    """A cell that searches for invariance failures: the distances at which it found them."""
    threat = {"norm": "linf", "goal": "keep-decision", "oracle": PANEL}
    return toy_cell(
        name, broken, epsilons=epsilons, threat=threat, attack={"kind": "invariance"},
        parameters={"members": list(members)},
    )  # fmt: skip


def suite(broken, **parts):
    return invariance_cell("invariance-standard", broken, members=[{"type": "x:Y"}], **parts)


def verdicts_of(id_, *cells):
    return [(v.verdict, v.value) for v in check_records(cells) if v.id == id_]


@pytest.mark.parametrize(("missed", "wanted"), [(0, "PASS"), (1, "WARN"), (10, "FAIL")])
def test_c43_a_single_attack_finds_what_the_suite_missed(missed, wanted):
    strong = suite([0.1] * (200 - missed) + [None] * missed)
    weak = invariance_cell("collision", [None] * 150 + [0.2] * 50)
    assert verdicts_of("C43", strong, weak) == [(wanted, missed / 200)]


def test_c43_compares_inside_budgets_and_on_common_samples():
    strong = suite([0.1, None, None, 0.1] * 10, epsilons=(0.15,))
    free = invariance_cell("collision", [None, 0.12, 0.2] + [None] * 30)  # 0.2 is outside
    assert verdicts_of("C43", strong, free)[0][1] == pytest.approx(1 / 33)
    assert verdicts_of("C43", strong) == []
    assert verdicts_of("C43", free) == []
    assert verdicts_of("C43", toy_cell("pgd", [0.1]), free) == []


@pytest.mark.parametrize(
    ("failures", "samples", "wanted"),
    [
        (0, 19, "WARN"),
        (15, 19, "PASS"),
        (0, 20, "FAIL"),
        (9, 100, "FAIL"),
        (10, 100, "WARN"),
        (50, 100, "PASS"),
    ],
)
def test_c45_a_low_rate_of_one_weak_attack_is_no_result(failures, samples, wanted):
    weak = invariance_cell("collision", [0.1] * failures + [None] * (samples - failures))
    assert [grade for grade, _ in verdicts_of("C45", weak)] == [wanted]


def test_c45_is_silent_beside_the_worst_case_and_on_exact_attacks():
    weak = invariance_cell("collision", [None] * 50)
    assert verdicts_of("C45", weak, suite([None] * 50)) == []
    assert verdicts_of("C45", suite([None] * 50)) == []
    exact = replace(weak.info.attack, implementation="x:SpheresInvariance")
    assert verdicts_of("C45", replace(weak, info=replace(weak.info, attack=exact))) == []


def matched(broken, match, null):
    cell = invariance_cell("layer-metamer", broken)
    values = {"match_error": match, "null_error": null}
    event = {"event": "sample_values", "samples": list(range(len(broken))), "values": values}
    return replace(cell, events=(event,))


@pytest.mark.parametrize(
    ("broken", "match", "wanted"),
    [
        ([0.1, 0.1], [0.1, 0.1], "PASS"),
        ([0.1, 0.1], [0.1, 0.5], "FAIL"),
        ([0.1, 0.1], [0.1, None], "FAIL"),
        ([0.1, None, None], [0.1, 0.7, 0.9], "WARN"),
    ],
)
def test_c44_a_failure_must_match_better_than_random_inputs(broken, match, wanted):
    found = verdicts_of("C44", matched(broken, match, [0.5] * len(broken)))
    assert [grade for grade, _ in found] == [wanted]
    assert verdicts_of("C44", invariance_cell("x", [0.1])) == []


class RightHalf(ArrayDataset):
    """Grey images, whose true class is the brightness of the right half."""

    oracle_source = "exact"

    def classify(self, images):
        return (images[..., 4:].flatten(1).mean(1) > 0.5).long()


def halves():
    images = 0.25 + 0.1 * SampleRNG(0, torch.arange(24), "test").uniform((1, 8, 8))
    labels = torch.arange(24) % 2
    return RightHalf(images + 0.4 * labels[:, None, None, None], labels, "halves")


@pytest.mark.parametrize(
    ("attacks", "expected"),
    [
        (["collision"], {"C45": "FAIL"}),
        (["collision", "level-set-traversal:steps=40"], {"C45": "PASS"}),
        (
            [InvarianceStandard(members=(Metamer(),)), "level-set-traversal:steps=40"],
            {"C43": "FAIL"},
        ),
        ([InvarianceStandard(), "collision"], {"C43": "PASS"}),
        ([UnmatchedMetamer()], {"C44": "FAIL"}),
        (["layer-metamer:steps=100"], {"C44": "PASS"}),
    ],
    ids=["weak", "two", "one member", "suite", "unmatched", "matched"],
)
def test_strength_through_the_engine(tmp_path, attacks, expected):
    run = rbi.evaluate(
        model=half_blind() if "layer" not in str(attacks) else half_network(),
        attack=attacks, threat="none", dataset=halves(), out=tmp_path,
    )  # fmt: skip
    found = {v["id"]: v["verdict"] for v in RunFolder(run.path).checks()}
    assert {id_: found.get(id_) for id_ in expected} == expected


def half_network():
    """The same function as a layer of one unit."""
    linear = nn.Linear(64, 2)
    left = torch.zeros(8, 8)
    left[:, :4] = 20 / 32
    linear.weight.data = torch.stack([-left.flatten(), left.flatten()])
    linear.bias.data = torch.tensor([10.0, -10.0])
    layers = [nn.Flatten(), linear, nn.Identity(), nn.Linear(2, 2, bias=False)]
    layers[3].weight.data = torch.eye(2)
    network = nn.Sequential(*layers)
    network.bounds = (0.0, 1.0)
    return network
