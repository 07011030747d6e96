"""The three verdicts on a model, from the checks and records of a run."""

from dataclasses import replace

import pytest

from robustbench_inv.checks.audit_verdict import conclude
from robustbench_inv.checks.check_list import CHECKS
from robustbench_inv.checks.verdict import IMPOSSIBLE, mark_of, mark_of_cells
from robustbench_inv.reporting.headlines import build_headlines
from robustbench_inv.reporting.statistics import wilson
from robustbench_inv.results.oracle_error import OracleError
from robustbench_inv.results.rate import ChangeDetection
from robustbench_inv.results.record import Distances
from robustbench_inv.results.record_columns import Records
from robustbench_inv.testing.toy_cells import toy_cell as cell
from robustbench_inv.testing.toy_cells import toy_record

STRONG = [0.1] * 150 + [0.2] * 40 + [None] * 10
WEAK = [0.1] * 100 + [0.2] * 40 + [None] * 60
MEMBERS = {"members": [{"attack": "apgd"}, {"attack": "square"}]}


def standard(broken=STRONG, **options):
    return cell("standard", broken, parameters=MEMBERS, **options)


def said(id_, grade, value=0.88, subject="toy"):
    return CHECKS[id_].make_verdict(subject, grade, value, "Figures.")


PASSED = said("C14", "PASS", 0.0, standard().subject)


def test_a_strong_attack_without_findings_is_publishable():
    (found,) = conclude([standard()], [PASSED])
    assert (found.verdict, found.reasons, found.command) == ("publishable", (), "")
    assert "25.0 % [19.5, 31.4] at linf 0.1, 5.0 % [2.7, 9.0] at linf 0.2" in found.text
    assert "200 samples, attacks: standard" in found.text


def test_next_is_an_attack_that_the_reason_names():
    weak = cell("pgd", WEAK)
    (found,) = conclude([weak], [said("C7", "WARN")])
    assert "--attack standard" in found.command
    threat = {
        "goal": "keep-decision",
        "norm": "l2",
        "epsilons": [],
        "text": "none:oracle=mnist-panel",
    }
    given = cell(
        "collision", [None] * 200, epsilons=(), threat=threat, attack={"kind": "invariance"}
    )
    (found,) = conclude([given], [said("C45", "WARN")])
    assert "--attack invariance-standard --threat none:oracle=mnist-panel" in found.command
    ensemble = cell(
        "invariance-standard",
        [None] * 200,
        epsilons=(),
        threat=threat,
        attack={"kind": "invariance"},
        parameters=MEMBERS,
    )
    (found,) = conclude([ensemble], [said("C45", "WARN")])
    assert "--keep-images" in found.command, "not the command that was run"
    assert "&& invbench label " in found.command
    ideal = Records.of([replace(each, oracle_source="exact") for each in ensemble.records])
    (found,) = conclude([replace(ensemble, records=ideal)], [said("C45", "WARN")])
    assert "label" not in found.command, "nobody corrects an exact oracle"


def test_the_number_is_the_worst_case_of_the_report():
    cells = [standard(WEAK), replace(cell("pgd", WEAK[::-1]), digest="1" * 32)]
    (found,) = conclude(cells, [PASSED])
    (headline,) = build_headlines(cells, wilson)
    assert f"{headline.rows[0].result.text} % [" in found.numbers[0]


def test_a_failure_is_not_to_be_published_and_names_the_next_command():
    ensemble = standard(threat={"text": "linf=0.1,0.2"})
    (found,) = conclude([ensemble], [said("C2", "FAIL"), said("C6", "FAIL"), said("C31", "WARN")])
    assert found.verdict == "do not publish"
    assert found.text.startswith(
        "do not publish. Gradients are zero or missing on 88% of the samples (C6). Attack the logits"
    )
    assert [reason.check for reason in found.reasons] == ["C6", "C2", "C31"]
    # the ensemble searched without gradients already
    assert found.command == (
        "invbench evaluate --model FILE.py:FUNCTION --attack pgd-tuned --dataset FILE.py:FUNCTION "
        "--threat linf=0.1,0.2:guide=FILE.py:FUNCTION"
    )


@pytest.mark.parametrize("check", ["C4", "C8", "C13"])
def test_the_audit_that_found_the_fault_is_not_the_next_command(check):
    ensemble = standard(threat={"text": "linf=0.1,0.2"})
    (found,) = conclude([ensemble], [said(check, "FAIL")])
    assert "--attack pgd-tuned" in found.command
    assert ":guide=" in found.command


def test_weak_attacks_are_of_no_concern_where_every_sample_is_broken():
    gradients = [said(each, "FAIL") for each in ("C4", "C6", "C7", "C8", "C13", "C31")]
    (found,) = conclude([standard([0.1] * 200)], gradients)
    assert (found.verdict, found.reasons) == ("publishable", ())
    (found,) = conclude([standard([0.1] * 199 + [0.2])], gradients)
    assert found.verdict == "do not publish", "robust at the smaller eps"
    (found,) = conclude([standard([0.1] * 200)], [said("C11", "FAIL")])
    assert found.verdict == "do not publish", "not a fault of weak attacks"
    threat = {"goal": "keep-decision", "norm": "l2", "epsilons": [], "text": "none:oracle=all"}
    options = {"epsilons": (), "threat": threat, "attack": {"kind": "invariance"}}
    failed = cell("collision", [0.3] * 200, **options)
    (found,) = conclude([failed], gradients)
    assert (found.verdict, found.reasons) == ("publishable", ())
    (found,) = conclude([cell("collision", [0.3] * 199 + [None], **options)], gradients)
    assert found.verdict == "do not publish"
    nearest = cell("ddn", [0.3] * 200, epsilons=(), attack={"kind": "minimum-norm"})
    (found,) = conclude([nearest], gradients)
    assert found.verdict == "do not publish", "its distance may be too large"


def test_vanishing_gradients_lead_to_a_search_without_them_on_the_same_number_of_samples():
    few = cell("pgd", STRONG, threat={"text": "linf=0.1,0.2"})
    few = replace(
        few, info=replace(few.info, dataset=replace(few.dataset, name="mnist5k", size=5000))
    )
    (found,) = conclude([few], [said("C6", "FAIL")])
    assert found.command == (
        "invbench evaluate --model FILE.py:FUNCTION --attack square --dataset mnist5k "
        "--threat linf=0.1,0.2 --samples 200"
    )


def test_the_next_command_names_a_labelled_model_as_it_is_typed():
    model = {"name": "mine", "card": {"name": "net.py:build:weights=a.pt"}}
    (found,) = conclude([cell("pgd", STRONG, model=model)], [said("C6", "FAIL", subject="mine")])
    assert "--model net.py:build:weights=a.pt --attack square" in found.command


def test_an_unreliable_oracle_leads_to_the_labelling_page():
    threat = {"goal": "keep-decision", "epsilons": [], "text": "none:oracle=panel:a.py:b,c.py:d"}
    judged = cell("collision", STRONG, threat=threat, attack={"kind": "invariance"})
    (found,) = conclude([standard(), judged], [said("C34", "WARN", subject=judged.subject)])
    evaluate, label = found.command.split(" && ")
    assert (
        "--attack collision --dataset FILE.py:FUNCTION --threat none:oracle=panel:a.py:b,c.py:d"
        in evaluate
    )
    assert "--keep-images --out runs/to-label" in evaluate
    assert label == "invbench label runs/to-label --out label.html"
    larger = replace(judged.info, dataset=replace(judged.dataset, size=10_000))
    (found,) = conclude(
        [replace(judged, info=larger)], [said("C34", "WARN", subject=judged.subject)]
    )
    assert "--samples 200" in found.command, "people label the samples of the run"


def test_the_next_command_names_data_as_it_is_typed():
    labelled = standard()
    data = replace(labelled.dataset, name="folder:digits,size=28 #e59e")
    labelled = replace(labelled, info=replace(labelled.info, dataset=data))
    (found,) = conclude([labelled], [said("C6", "FAIL")])
    assert "--dataset folder:digits,size=28 " in found.command + " "


def test_a_cause_precedes_what_follows_from_it():
    every = [said(id_, "FAIL") for id_ in ("C2", "C5", "C6", "C14", "C25", "C11", "C39", "C17")]
    (found,) = conclude([standard()], every)
    assert [r.check for r in found.reasons][:5] == ["C17", "C39", "C11", "C25", "C6"]


@pytest.mark.parametrize(
    ("cells", "verdicts", "reason"),
    [
        ([standard()], [], "checks were not run"),
        ([cell("pgd", STRONG)], [said("C11", "PASS")], "only pgd"),
        ([replace(standard(), requested=tuple(range(300)))], [PASSED], "Samples are missing"),
        ([standard()], [said("C11", "WARN")], "stochastic"),
    ],
    ids=["no checks", "weak attack", "unfinished", "warning"],
)
def test_reservations(cells, verdicts, reason):
    (found,) = conclude(cells, verdicts)
    assert found.verdict == "publishable with reservations"
    assert reason in found.reasons[0].text


def test_a_note_is_told_and_changes_nothing():
    (found,) = conclude([standard()], [PASSED, said("C7", "NOTE", 29.0)])
    assert found.verdict == "publishable"
    assert "only cross-entropy saturates" in found.notes[0]


def test_each_model_has_its_own_verdict():
    other = replace(standard(model={"name": "other"}), digest="1" * 32)
    found = conclude([standard(), other], [PASSED, said("C6", "FAIL", subject="other")])
    assert [(c.model, c.verdict) for c in found] == [
        ("toy", "publishable"),
        ("other", "do not publish"),
    ]


def test_a_minimum_norm_attack_needs_no_ensemble_of_its_own_beside_one():
    ddn = cell("ddn", STRONG, epsilons=(), attack={"kind": "minimum-norm"}, threat={"norm": "l2"})
    (found,) = conclude([standard(), replace(ddn, digest="1" * 32)], [said("C11", "PASS")])
    assert found.verdict == "publishable"
    assert "Median l2 distance 0.2" in found.numbers[1]


def test_a_median_counts_no_examples_of_another_target():
    """An image that became class 1 is no example of an image that became class 2."""
    about = {"norm": "l2", "goal": "target"}
    found = [
        replace(
            cell(
                name,
                broken,
                epsilons=epsilons,
                attack={"kind": kind},
                threat={**about, "goal_parameters": {"offset": offset}},
            ),
            digest=str(offset) * 32,
        )
        for name, broken, epsilons, kind, offset in (
            ("ddn", [0.5] * 200, (), "minimum-norm", 1),
            ("pgd", [0.1] * 200, (0.1,), "fixed-budget", 2),
        )
    ]
    (conclusion,) = conclude(found, [PASSED])
    assert [text for text in conclusion.numbers if text.startswith("Median l2 distance 1, ")]


def test_marks():
    assert [mark_of(g) for g in (["PASS", "NOTE"], ["WARN"], ["WARN", "FAIL"])] == ["", " !", " ✗"]


def idle(**options):
    return replace(cell("fgsm", [None] * 200, **options), digest="1" * 32)


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ([standard()], "publishable with reservations"),
        ([replace(cell("pgd", STRONG), digest="2" * 32)], "do not publish"),
        ([], "do not publish"),
    ],
)
def test_an_attack_without_effect_is_a_reservation_beside_one_that_works(others, expected):
    first = idle()
    failed = [
        replace(said("C16", "FAIL", subject=each.subject), about=(each.digest,))
        for each in (first, *others)
        if not each.attack.members
    ]
    (found,) = conclude([first, *others], [PASSED, *failed])
    assert found.verdict == expected
    assert found.reasons[0].check == "C16"


def test_an_unchanged_input_that_counts_as_broken_is_no_matter_of_strength():
    made = idle()
    same = toy_record(0, 0.1, distance=Distances(0, 0.0, 0.0, 0.0))
    first = replace(made, records=(same, *made.records[1:]))
    failed = replace(said("C16", "FAIL", subject=first.subject), about=(first.digest,))
    (found,) = conclude([first, standard()], [PASSED, failed])
    assert found.verdict == "do not publish"


def test_samples_of_one_class_are_a_reservation():
    def labelled(count):
        made = standard(dataset={"num_classes": 10})
        records = [replace(r, label=3 if r.sample < count else 4) for r in made.records]
        return replace(made, records=tuple(records))

    (found,) = conclude([labelled(200)], [PASSED])
    assert found.verdict == "publishable with reservations"
    assert "All 200 samples belong to class 3" in found.text
    (found,) = conclude([labelled(199)], [PASSED])
    assert found.verdict == "publishable"


def test_an_invariance_number_names_its_budget_and_what_the_oracle_misses():
    threat = {"goal": "keep-decision", "epsilons": [0.1, 0.2], "text": "linf=0.1,0.2:oracle=p"}
    judged = cell("collision", [None] * 20, threat=threat, attack={"kind": "invariance"})
    (found,) = conclude([judged], [PASSED])
    assert "0.0 % [0.0, 16.1] within linf 0.2 of 20 samples" in found.numbers[0]
    seen = ChangeDetection("altered digits", 157, 60, 193, 10)
    known = replace(judged, oracle_error=OracleError("panel p", "clean inputs", 50, 1, 2, seen))
    (found,) = conclude([known], [PASSED])
    assert "reports 38% of the changes that people see: corrected 0.0 % [0.0, " in found.numbers[0]


def test_a_sign_stands_beside_numbers_that_a_check_can_make_wrong():
    weak, own = [said("C7", "FAIL")], said("C40", "FAIL")
    left, broken = cell("pgd", STRONG), cell("pgd", [0.1] * 200)
    assert [mark_of_cells([each], weak) for each in (left, broken)] == [" ✗", ""]
    assert mark_of_cells([left], weak, clean=True) == "", "attacks do not change clean accuracy"
    assert mark_of_cells([broken], [own], clean=True) == " ✗"


CHECKED = [said("C11", "PASS")]


def other_digest(found, number):
    return replace(found, digest=str(number) * 32)


def test_an_ensemble_that_attacks_another_network_is_no_evidence_of_robustness():
    threat = {"access": "transfer", "substitute": {"name": "other", "digest": "2" * 64}}
    (found,) = conclude([standard(threat=threat)], CHECKED)
    assert found.verdict == "publishable with reservations"
    assert "no ensemble of attacks such as standard was run, only standard" in found.text


def test_an_ensemble_is_needed_at_each_eps_that_leaves_samples():
    noise = cell("random-perturbation", [None] * 200, epsilons=(0.1,))
    larger = other_digest(standard([0.2] * 200, epsilons=(0.2,)), 1)
    (found,) = conclude([noise, larger], CHECKED)
    assert found.reasons[0].text == (
        "In linf at eps 0.1 no ensemble of attacks such as standard was run, only random-perturbation."
    )
    assert "100.0 % [98.1, 100.0] at linf 0.1 (random-perturbation), 0.0 %" in found.numbers[0]
    (found,) = conclude([cell("fgsm", [0.1] * 200)], CHECKED)
    assert found.verdict == "publishable", "nothing is left to break"


@pytest.mark.parametrize("goal", ["misclassify-accepted", "target"])
def test_an_ensemble_of_another_goal_is_none(goal):
    other = other_digest(cell("fgsm", STRONG, threat={"goal": goal}), 1)
    (found,) = conclude([standard(), other], CHECKED)
    assert [r.text for r in found.reasons if "only fgsm" in r.text]
    (found,) = conclude([standard(threat={"goal": goal}), other], CHECKED)
    assert not found.reasons


def test_a_check_that_raised_is_a_reservation():
    failed = replace(said("C6", "NA"), evidence=f"{IMPOSSIBLE}: ValueError: odd input")
    (found,) = conclude([standard()], [*CHECKED, failed])
    assert found.verdict == "publishable with reservations"
    assert found.reasons[0].text == "Checks could not be made (C6): ValueError: odd input"


def test_cells_and_models_without_verdicts_are_not_those_that_were_checked():
    first, second = standard(), other_digest(standard(threat={"norm": "l2"}), 1)
    (found,) = conclude([first, second], verdicts_on(first))
    assert found.reasons[0].text == "The validity checks were not run on standard."
    (found,) = conclude([first], verdicts_on(first)[:1])
    assert found.reasons[0].text == "The validity checks were not run.", "not those of the model"
    other = other_digest(standard(model={"name": "other", "parameters": {"a": 1}}), 2)
    (_, found) = conclude([first, other], verdicts_on(first))
    assert found.reasons[0].text == "The validity checks were not run."


def verdicts_on(checked, **changes):
    """Return the verdicts that every evaluation with checks has on a cell and on its model."""
    about = {"about": (checked.digest,), "records": checked.records_digest}
    seen = {"samples": len(checked.records), **changes}
    model = replace(said("C11", "PASS"), samples=seen["samples"])
    return [replace(said("C22", "PASS"), scope="cell", **{**about, **seen}), model]


def first_samples(whole, count):
    return replace(whole, records=whole.records[:count], requested=tuple(range(count)))


def test_checks_of_other_records_do_not_certify_a_cell():
    whole = standard()
    (found,) = conclude([whole], verdicts_on(whole))
    assert found.verdict == "publishable"
    (found,) = conclude([whole], verdicts_on(first_samples(whole, 1)))
    assert found.verdict == "publishable with reservations"
    assert found.reasons[0].text.startswith(
        "The validity checks of standard were made on 1 of 200 samples: evaluate again with checks"
    )
    assert found.command.startswith("invbench audit ")
    (found,) = conclude([whole], verdicts_on(standard(WEAK)))
    assert "The records of standard changed after the validity checks" in found.reasons[0].text
    of_model = replace(verdicts_on(whole)[1], samples=1)
    (found,) = conclude([whole], [verdicts_on(whole)[0], of_model])
    assert "made on 1 of 200 samples" in found.reasons[0].text, "the model was probed on one"
    (found,) = conclude([first_samples(whole, 1)], verdicts_on(whole))
    assert "changed after" in found.reasons[0].text


def test_some_samples_of_a_checked_cell_are_checked():
    whole = standard()
    part = replace(first_samples(whole, 20), whole=whole.records)
    (found,) = conclude([part], verdicts_on(whole))
    assert (found.verdict, found.reasons) == ("publishable", ())


def test_a_failure_on_fewer_samples_still_counts_and_a_pass_does_not():
    whole = standard()
    checked = verdicts_on(first_samples(whole, 1))
    failed = replace(checked[0], id="C15", verdict="FAIL")
    (found,) = conclude([whole], [*checked, failed])
    assert found.verdict == "do not publish"
    assert failed.concerns(whole)
    assert not checked[0].concerns(whole)


@pytest.mark.parametrize(("stated", "expected"), [(200, 0), (60, 1), (None, 1)])
def test_older_verdicts_state_their_samples_in_the_evidence_of_c22_alone(stated, expected):
    whole = standard()
    evidence = "Figures." if stated is None else f"{stated} samples, 150 attacked, 8 broken"
    old = [replace(each, samples=None, records="") for each in verdicts_on(whole)]
    (found,) = conclude([whole], [replace(old[0], evidence=evidence), old[1]])
    assert len(found.reasons) == expected
    assert not stated or stated == 200 or "on 60 of 200 samples" in found.reasons[0].text


def test_a_planned_cell_without_records_is_missing():
    empty = other_digest(cell("square", []), 1)
    (found,) = conclude([standard(), replace(empty, requested=tuple(range(200)))], CHECKED)
    assert found.reasons[0].text == "Samples are missing in 1 of 2 cells."


def test_a_rejection_that_counts_as_an_error_is_the_worst_case_as_well():
    """One attack breaks the first half, another the second: no sample is classified correctly under both."""
    halves = [[0.1] * 5 + [None] * 5, [None] * 5 + [0.1] * 5]
    model = {"name": "toy", "rejects": True}
    cells = [other_digest(standard(each, model=model), i) for i, each in enumerate(halves)]
    (found,) = conclude([with_acceptance(each) for each in cells], CHECKED)
    assert "Robust accuracy 0.0 %" in found.numbers[0]
    assert (
        "as an error it is 0.0 % [0.0, 27.8], and 0.0 % [0.0, 27.8] of the clean"
        in found.numbers[0]
    )


def with_acceptance(found):
    """Return the cell of a model with a reject option that accepts every input."""
    taken = [
        replace(
            r,
            clean=replace(r.clean, accepted=True),
            adversarial=replace(r.adversarial, accepted=True),
        )
        for r in found.records
    ]
    return replace(found, records=Records.of(taken))


def test_the_next_command_of_a_reject_option_leads_out():
    about = {"text": "linf=0.1,0.2:goal=misclassify-accepted", "goal": "misclassify-accepted"}
    (found,) = conclude([standard(threat=about)], [said("C26", "WARN")])
    assert found.command.endswith("--threat linf=0.1,0.2"), "the audit attacks with both goals"
    (found,) = conclude([standard(threat=about)], [said("C24", "WARN")])
    assert found.command == "invbench calibrate FILE.py:FUNCTION --dataset FILE.py:FUNCTION"
    for name, typed in (
        ("net.py:build:reject=own,percentile=1", "net.py:build --dataset FILE.py:FUNCTION"),
        ("mnist-cnn:reject=likelihood,percentile=1", "mnist-cnn"),
    ):
        judged = standard(model={"name": name, "card": {"name": name}})
        (found,) = conclude([judged], [said("C24", "WARN", subject=name)])
        assert found.command == f"invbench calibrate {typed}"


def test_cells_of_other_samples_need_an_ensemble_as_well():
    """They have no sample in common, on which a worst case could be taken."""
    apart = other_digest(cell("fgsm", [None] * 10), 1)
    moved = Records.of([replace(r, sample=r.sample + 500) for r in apart.records])
    apart = replace(apart, records=moved, requested=tuple(range(500, 510)))
    (found,) = conclude([cell("pgd", [None] * 10), apart], CHECKED)
    assert "no ensemble of attacks such as standard was run, only pgd, fgsm" in found.text


def test_an_ensemble_that_is_aware_of_the_detector_supports_attacks_that_are_not():
    model = {"name": "toy", "rejects": True}
    goal = {"goal": "misclassify-accepted"}
    aware = with_acceptance(standard(threat=goal, model=model))
    oblivious = other_digest(with_acceptance(cell("pgd", STRONG, model=model)), 1)
    (found,) = conclude([aware, oblivious], CHECKED)
    assert found.verdict == "publishable"
    weak = other_digest(with_acceptance(cell("pgd", STRONG, threat=goal, model=model)), 1)
    ensemble = with_acceptance(standard(model=model))
    (found,) = conclude([weak, ensemble], CHECKED)
    assert "In linf, goal misclassify-accepted, no ensemble" in found.text, "not the other way"
