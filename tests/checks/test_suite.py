"""The suite returns a verdict for every check, whatever happens inside."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace

import pytest

import robustbench_inv as rbi
from robustbench_inv.checks.check_list import CHECKS
from robustbench_inv.checks.model_checks import probe_model
from robustbench_inv.checks.suite import check_records, verdicts_about
from robustbench_inv.checks.verdict import Verdict, grade
from robustbench_inv.models.protocol import Classifier
from robustbench_inv.results.run_files import RunFolder
from robustbench_inv.testing.toy_cells import toy_cell
from robustbench_inv.testing.toys import Toy, detached

REJECTING = {"C24", "C25", "C26", "C27", "C28", "C29"}
PROBED = {"C1", "C2", "C6", "C7", "C10", "C11", "C12", "C17", "C39", "C41", "C42"}
DEEP = {"C4", "C8", "C13", "C31"}


@dataclass(frozen=True)
class Loaded:
    name: str
    classifier: Classifier


def test_probe_model_gives_one_verdict_for_each_probe(honest, digits, held_out):
    verdicts = probe_model(Loaded("toy", honest), digits, held_out, 0)
    assert {v.id: v.verdict for v in verdicts} == dict.fromkeys(sorted(PROBED), "PASS")
    assert len(verdicts) == len(PROBED)


def test_a_deep_probing_adds_to_the_usual_one(honest, digits, held_out):
    verdicts = probe_model(Loaded("toy", honest), digits, held_out[::10], deep=True)
    assert [v.id for v in verdicts if v.id in DEEP] == ["C4", "C8", "C13", "C31"]
    assert {v.id for v in verdicts} == PROBED | DEEP


def test_probe_model_is_deterministic(honest, digits, held_out):
    first, second = (probe_model(Loaded("toy", honest), digits, held_out[:20], 3) for _ in range(2))
    assert first == second


def test_a_model_without_gradients_fails_c2_and_c6(honest, digits, held_out):
    verdicts = {v.id: v for v in probe_model(Loaded("toy", detached(honest)), digits, held_out, 0)}
    assert (verdicts["C2"].verdict, verdicts["C6"].verdict) == ("FAIL", "FAIL")


def test_a_probe_that_raises_is_a_verdict(honest, digits, held_out):
    def refuse(images):
        if images.requires_grad:
            raise RuntimeError("no gradients here")
        return honest(images).logits

    model = Toy(refuse, num_classes=10)
    verdicts = {v.id: v for v in probe_model(Loaded("toy", model), digits, held_out, 0)}
    assert verdicts["C2"].verdict == "NA"
    assert "no gradients here" in verdicts["C2"].evidence


def test_check_records_covers_every_other_check():
    cells = [toy_cell(name, [0.1, None]) for name in ("fgsm", "pgd")]
    cells += [
        toy_cell("noise", [None, None], gradients=False),
        toy_cell("pgd", [0.3, None], epsilons=(0.3,)),
        toy_cell("given", [None, None], threat={"goal": "keep-decision"}),
    ]
    cells[-1] = replace(
        cells[-1], records=tuple(replace(r, oracle_label=3) for r in cells[-1].records)
    )
    found = check_records(cells)
    # but for invariance attacks that compute something exactly or are compared, models that reject, cards, distances
    # and certificates
    other = {"C32", "C33", "C40", "C43", "C44", "C45", "C46", "C47"}
    assert {v.id for v in found} | PROBED | DEEP == set(CHECKS) - other - set(REJECTING)
    fired = [v for v in found if v.verdict != "PASS" and v.id not in ("C16", "C19")]
    assert not fired


def test_check_records_takes_the_request_in_three_forms():
    cell = toy_cell("pgd", [0.1, None])
    for samples, expected in ((None, "PASS"), ([0, 1, 2], "FAIL"), ({cell.digest: [0, 5]}, "FAIL")):
        (verdict,) = [v for v in check_records([cell], samples) if v.id == "C23"]
        assert verdict.verdict == expected


def test_check_records_decides_c7():
    probe = CHECKS["C7"].make_verdict("toy", "WARN", 40.0, "Margins are large.")
    found = check_records([toy_cell("fgsm", [0.1])], None, [probe])
    assert [v.verdict for v in found if v.id == "C7"] == ["FAIL"]


def test_probes_of_a_search_are_not_applicable_to_given_inputs(honest, digits, held_out):
    verdicts = probe_model(Loaded("toy", honest), digits, held_out[:5], deep=True, searches=False)
    skipped = {v.id for v in verdicts if v.verdict == "NA" and "all are given" in v.evidence}
    assert skipped == {"C1", "C2", "C4", "C6", "C7", "C8", "C12", "C13", "C31"}
    assert {v.id for v in verdicts} == PROBED | DEEP


def test_an_evaluation_probes_gradients_only_if_an_attack_searches(honest, digits, tmp_path):
    for attack, threat, given in (("noise-image", "none", True), ("fgsm", "linf=0.1", False)):
        run = rbi.evaluate(
            model=honest, attack=attack, threat=threat, dataset=digits, samples=10, out=tmp_path
        )
        found = {v["id"]: v for v in RunFolder(run.path).checks()}
        assert ("all are given" in found["C2"]["evidence"]) == given
        assert found["C39"]["verdict"] == "PASS"


def test_a_cell_that_cannot_be_judged_is_a_verdict():
    cell = toy_cell("pgd", [0.1])
    dataset = replace(cell.dataset, bounds=None)
    broken = replace(cell, info=replace(cell.info, dataset=dataset), read_images=dict)
    verdicts = {v.id: v.verdict for v in check_records([broken])}
    assert (verdicts["C14"], verdicts["C17"], verdicts["C23"]) == ("NA", "NA", "PASS")


def test_concerning_picks_the_verdicts_of_a_cell_and_its_model():
    mine = toy_cell("pgd", [0.1])
    other = replace(toy_cell("fgsm", [0.1], model={"name": "another"}), digest="1" * 32)
    found = verdicts_about(check_records([mine, other]), mine)
    assert {v.subject for v in found} == {"toy", "pgd on toy, linf=0.1,0.2, four, seed 0"}
    assert {"C3", "C14"} <= {v.id for v in found}


def test_verdicts_are_json_with_the_documented_keys():
    verdict = CHECKS["C2"].make_verdict("toy", "FAIL", float("nan"), "No number.")
    value = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
    assert list(value) == [
        "id",
        "title",
        "scope",
        "subject",
        "verdict",
        "value",
        "rule",
        "evidence",
        "about",
        "samples",
        "records",
    ]
    assert value["value"] is None
    assert isinstance(verdict, Verdict)
    assert Verdict.from_json({**value, "later": 1}).to_json() == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, "PASS"), (0.1, "PASS"), (0.2, "WARN"), (2.0, "FAIL"), (float("nan"), "FAIL")],
)
def test_grade(value, expected):
    assert grade(value, warn=0.1, fail=1.0) == expected


def test_record_checks_import_no_torch():
    code = (
        "import sys; from robustbench_inv.checks.suite import check_records;"
        "from robustbench_inv.testing.toy_cells import toy_cell;"
        "assert check_records([toy_cell('pgd', [0.1, None])]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_comparison_that_raised_concerns_every_model(monkeypatch):
    from robustbench_inv.checks import suite

    def refuse(_):
        raise ValueError("odd cells")

    monkeypatch.setattr(suite, "check_gradient_free", refuse)
    cells = [
        replace(
            toy_cell("pgd", [0.1] * 4, model={"name": name, "parameters": {"a": name}}),
            digest=name * 32,
        )
        for name in "ab"
    ]
    found = [
        v for v in check_records(cells, {c.digest: range(4) for c in cells}, []) if v.id == "C5"
    ]
    assert [[v.concerns(cell) for cell in cells] for v in found] == [[True, False], [False, True]]
    assert all("odd cells" in v.evidence for v in found)
