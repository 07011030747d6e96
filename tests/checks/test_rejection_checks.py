"""C24 to C29 fire on the cells that they are for and are silent on honest ones; so do the probes of a reject option."""

import math
from dataclasses import replace

import pytest
import torch

import robustbench_inv as rbi
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.checks.attack_strength import (
    check_convergence,
    check_fixed_noise,
    check_logit_scale,
    check_monotone_attack,
    check_unbounded,
)
from robustbench_inv.checks.audit_verdict import conclude
from robustbench_inv.checks.gradients import check_gradient_accuracy, check_gradients
from robustbench_inv.checks.suite import check_records
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.experiments.calibration import CalibrationData, calibrate
from robustbench_inv.models.reject_option import SCORES, class_scores, reject
from robustbench_inv.results.cell_parts import ModelInfo, ThresholdInfo
from robustbench_inv.results.record import ModelOutput
from robustbench_inv.results.run_files import RunFolder
from robustbench_inv.results.summary import Rate, rejection_rates
from robustbench_inv.tensors import Output, flatten
from robustbench_inv.testing.toy_cells import toy_cell
from robustbench_inv.testing.toys import RandomGradientToy, confident

FITTED = {"dataset": "four:split=train", "dataset_digest": "7" * 64, "first": "0", "last": "9"}
IDS = ("C24", "C25", "C26", "C27", "C28", "C29")


def answer(decision, score, *, accepted=True):
    return ModelOutput(decision, score, accepted)


def cell(goal="misclassify-accepted", *, adversarial=None, clean=None, digest="a" * 64, **parts):
    """Ten samples of class 3, broken at 0.1: by default half are fooled and half are detected."""
    rejection = {"score": "margin", "percentile": 1, "thresholds": [1.0] * 10, "digest": digest}
    model = {"name": "toy", "digest": "1" * 64, "rejection": {**rejection, "fitted": FITTED}}
    told = {"model": model, "dataset": {"digest": "8" * 64}, "attack": {}} | parts
    threat = {"norm": "linf", "epsilons": [0.1, 0.2], "goal": goal}
    toy = toy_cell("pgd", [0.1] * 10, threat=threat, **told)
    usual = [answer(5, 9.0)] * 5 + [answer(5, 0.5, accepted=False)] * 5
    clean = clean or [answer(3, 2.0 + k) for k in range(10)]
    lines = []
    for record, was, now in zip(toy.records, clean, adversarial or usual, strict=True):
        reached = now.prediction != 3 and (now.accepted or goal == "misclassify")
        broken = 0.1 if reached else None
        lines.append(
            replace(record, clean=was, adversarial=now, broken_at=broken, goal_reached=reached)
        )
    return replace(toy, records=tuple(lines))


def oblivious(**changes):
    return cell(
        "misclassify",
        adversarial=[answer(5, 9.0)] * 3 + [answer(5, 0.5, accepted=False)] * 7,
        **changes,
    )


def verdicts(*cells):
    return {v.id: v for v in check_records(cells) if v.id in IDS}


def test_all_are_silent_on_honest_cells():
    found = verdicts(cell(), oblivious())
    assert {v.verdict for v in found.values()} <= {"PASS", "NA"}
    assert set(found) == set(IDS) - {"C29"}
    assert "the detector-aware attack fails on 5 of 10 (50.0%)" in found["C26"].evidence
    assert "7 of 10 (70.0%)" in found["C26"].evidence


def test_a_model_that_never_rejects_has_no_such_verdicts():
    assert not verdicts(toy_cell("pgd", [0.1, None]))


def test_c24_other_thresholds_for_another_attack():
    found = verdicts(cell(), oblivious(digest="b" * 64))["C24"]
    assert (found.verdict, found.value) == ("FAIL", 2)


def test_c24_thresholds_of_the_attacked_samples():
    found = verdicts(cell(dataset={"digest": "7" * 64}))["C24"]
    assert found.verdict == "FAIL"
    assert "9 of the attacked samples among them: 0, 1," in found.evidence


def test_c24_thresholds_that_are_part_of_the_model():
    """They may be quantiles of the scores of exactly the attacked samples."""
    own = {"name": "toy", "digest": "1" * 64}
    found = verdicts(cell(model=own))["C24"]
    assert (found.verdict, found.value) == ("WARN", 1)
    assert (
        "what they were fitted on is unknown, so attacked samples cannot be excluded"
        in found.evidence
    )
    assert "invbench calibrate" in found.evidence


def test_c24_two_models_of_one_name_have_their_own_thresholds():
    models = [{"name": "toy", "digest": digit * 64} for digit in "12"]
    cells = [make(model=model) for model in models for make in (cell, oblivious)]
    found = [v for v in check_records(cells) if v.id in ("C24", "C25", "C26")]
    assert [v.about[0] for v in found if v.id == "C24"] == ["1" * 64, "2" * 64]
    assert {v.verdict for v in found if v.id == "C24"} == {"WARN"}
    assert len(found) == 6


def test_c25_tells_what_is_left_at_each_share():
    adversarial = [answer(3, 2.0 + k) for k in range(10)]
    found = verdicts(cell(adversarial=adversarial))["C25"]
    assert found.value == 0
    assert "100.0% at 1%; 100.0% at 2%; 100.0% at 5%" in found.evidence


def test_c25_rejecting_everything_fails():
    """Nothing fools it and every attack is detected, and yet it is of no use."""
    clean = [answer(3, 0.1 * k, accepted=False) for k in range(10)]
    adversarial = [answer(5, 0.1 * k, accepted=False) for k in range(10)]
    always = cell(clean=clean, adversarial=adversarial)
    found = verdicts(always)["C25"]
    assert (found.verdict, found.value) == ("FAIL", 1.0)
    rates = rejection_rates(always.records)
    assert rates.clean_accuracy_with_rejection == rates.accuracy_with_rejection == Rate(0, 10)
    assert rates.false_rejection == rates.rejected_errors == Rate(10, 10)
    assert rates.accuracy_on_accepted == Rate(0, 0)


def test_c25_without_scores_fails():
    clean = [answer(3, None)] * 10
    assert verdicts(cell(clean=clean))["C25"].verdict == "FAIL"


def test_c25_one_input_without_an_output_is_no_lack_of_scores():
    whole = cell()
    silent = replace(whole.records[0], clean=ModelOutput(-1, None, True), broken_at=0.0, status="model_failure")  # fmt: skip
    mixed = replace(whole, records=(silent, *whole.records[1:]))
    assert "there are no scores" not in verdicts(mixed)["C25"].evidence
    assert "there are no scores" in verdicts(replace(whole, records=(silent,)))["C25"].evidence


def test_c26_an_adaptive_attack_that_is_weaker():
    weak = [answer(5, 9.0)] * 2 + [answer(5, 0.5, accepted=False)] * 8
    found = verdicts(cell(adversarial=weak), oblivious())["C26"]
    assert found.verdict == "FAIL"
    assert found.value == pytest.approx(0.1)


def test_c26_wants_an_attack_with_both_goals():
    blind, alone = verdicts(oblivious())["C26"], verdicts(cell())["C26"]
    assert (blind.verdict, alone.verdict) == ("WARN", "WARN")
    assert "No detector-aware attack was run." in blind.evidence
    assert "No attack was run with both goals." in alone.evidence
    given = {"name": "altered", "implementation": "x:AlteredInputs", "kind": "fixed-input"}
    assert verdicts(cell(attack=given))["C26"].verdict == "NA"
    assert verdicts(cell("keep-decision"))["C26"].verdict == "NA"


def test_c26_compares_like_with_like():
    other = oblivious(attack={"name": "fgsm", "implementation": "toys:FGSM"})
    found = verdicts(cell(), other)["C26"]
    assert (found.verdict, found.value) == ("WARN", None)
    assert "No attack was run with both goals." in found.evidence


def aimed(goal, fooled, label=5):
    """Ten samples of which some are decided as the attacker wants, and the others wrongly in another way."""
    adversarial = [answer(5, 9.0)] * fooled + [answer(4, 9.0)] * (10 - fooled)
    made = cell("misclassify", adversarial=adversarial)
    threat = replace(made.threat, goal=goal, goal_parameters={"label": label})
    return replace(made, info=replace(made.info, threat=threat), attack_label="")


def test_c26_compares_attacks_that_aim_at_the_same_class():
    found = verdicts(aimed("target-accepted", 4), aimed("target", 6))["C26"]
    assert (found.verdict, found.value) == ("FAIL", pytest.approx(0.2))
    assert verdicts(aimed("target-accepted", 6), aimed("target", 6))["C26"].verdict == "PASS"
    other = verdicts(aimed("target-accepted", 4), aimed("target", 6, label=4))["C26"]
    assert (other.verdict, other.value) == ("WARN", None)
    assert verdicts(aimed("target-accepted", 4), oblivious())["C26"].value is None
    assert verdicts(aimed("target", 6))["C26"].verdict == "WARN"


def test_c27_of_a_weak_attack():
    adversarial = [answer(3, 5.0)] * 10
    found = verdicts(cell(adversarial=adversarial))["C27"]
    assert (found.verdict, found.value) == ("WARN", 0)
    assert verdicts(cell())["C27"].value == 0.5


def test_c27_only_notes_that_an_attack_without_gradients_is_weak():
    weak = cell(adversarial=[answer(3, 5.0)] * 10)
    random = replace(weak, records=tuple(replace(r, backward_passes=0) for r in weak.records))
    assert verdicts(random)["C27"].verdict == "NOTE"


def test_c28_rejections_nearby():
    found = verdicts(cell())["C28"]
    assert (found.verdict, found.value) == ("PASS", 0.5)
    far = cell()
    lines = tuple(replace(r, distance=replace(r.distance, linf=0.2)) for r in far.records)
    assert verdicts(replace(far, records=lines))["C28"].verdict == "NA"


@pytest.mark.parametrize("shown", ["NoiseInput", "Distal", "OutOfDistribution"])
@pytest.mark.parametrize(("accepted", "verdict"), [(0, "PASS"), (1, "WARN")])
def test_c29_what_is_of_no_class_and_accepted(accepted, verdict, shown):
    adversarial = [answer(5, 9.0)] * accepted + [answer(5, 0.1, accepted=False)] * (10 - accepted)
    attack = {"name": "noise-image", "implementation": f"x:{shown}", "kind": "fixed-input"}
    found = verdicts(cell("accept", adversarial=adversarial, attack=attack))
    assert found["C29"].verdict == verdict
    assert "C27" not in found


def test_scores_are_counted_from_the_threshold_of_the_decision():
    model = ModelInfo("m", rejection=ThresholdInfo.from_json({"thresholds": [1.0, 2.5]}))
    assert model.score_above_threshold(answer(1, 4.0)) == 1.5
    assert ModelInfo("m").score_above_threshold(answer(1, 4.0)) == 4.0
    assert model.score_above_threshold(answer(1, None)) is None


def test_the_verdict_states_what_counts_as_robust():
    """Of ten samples five are fooled, two stay right and three are detected; two clean inputs are rejected."""
    fooled, right, detected = answer(5, 9.0), answer(3, 9.0), answer(5, 0.5, accepted=False)
    clean = [answer(3, 2.0)] * 8 + [answer(3, 0.5, accepted=False)] * 2
    rejecting = cell(adversarial=[fooled] * 5 + [right] * 2 + [detected] * 3, clean=clean)
    (found,) = conclude([rejecting], [])
    assert "Robust accuracy 50.0 %" in found.numbers[0]
    assert "as an error it is 20.0 %" in found.numbers[0]
    assert "and 20.0 % [5.7, 51.0] of the clean inputs are rejected." in found.numbers[0]
    (plain,) = conclude([toy_cell("pgd", [None] * 10)], [])
    assert "reject" not in plain.numbers[0]


class OnGrid(torch.nn.Module):
    """Rejects images of other grey levels than 16, by a score of the distances to them that no search can raise."""

    bounds, num_classes, dtype = (0.0, 1.0), 10, torch.float32

    def __init__(self, toy, score):
        super().__init__()
        self.toy, self.score = toy, score

    def forward(self, images):
        score = self.score(flatten(images - (15 * images).round() / 15).abs())
        return Output(self.toy(images).logits, score, score >= -1e-3)


def largest(off):
    """The gradient of the largest distance is that of one pixel."""
    return -off.amax(1)


def counted(off):
    """The number of pixels off the grid has no gradient."""
    return -(off > 1e-3).double().mean(1).float()


@pytest.fixture
def on_grid(honest, few):
    """Return the probe of a model that rejects images off a grid, on images that lie on it."""

    def make(score):
        made = few(OnGrid(honest, score).eval())
        images = (15 * made.batch.images).round() / 15
        return replace(made, batch=replace(made.batch, images=images))

    return make


@pytest.mark.parametrize("score", [largest, counted])
def test_c2_fails_where_no_search_gets_past_the_rejection(on_grid, score):
    """Any accepted image of another class would fool it, and the unaware attack misclassifies all."""
    subject = on_grid(score)
    right = subject.query().decision == subject.batch.labels
    verdict = check_unbounded(subject)
    assert (verdict.verdict, verdict.value) == ("FAIL", pytest.approx(float(right.double().mean())))


def test_c6_fails_where_the_rejection_has_no_gradient(on_grid):
    verdict = check_gradients(on_grid(counted))
    assert (verdict.verdict, verdict.value) == ("FAIL", 1.0)
    assert "margin 0.0%" in verdict.evidence
    assert "past the rejection 100.0%" in verdict.evidence


@pytest.mark.parametrize("score", [largest, counted])
def test_c31_warns_where_the_gradient_of_the_score_misleads(on_grid, score):
    verdict = check_gradient_accuracy(on_grid(score))
    assert (verdict.verdict, verdict.value < 0.5) == ("WARN", True), verdict.evidence
    assert "of the score of rejected inputs" in verdict.evidence


def cautious(toy, name, batch):
    """Return a toy that rejects the twentieth of a batch with the lowest scores."""
    output = toy(batch.images)
    scores = class_scores(name, output).gather(1, output.decision[:, None])
    return reject(toy, name, scores.quantile(0.05).expand(10).clone())


@pytest.mark.parametrize("name", [name for name in SCORES if name != "own"])
def test_an_honest_reject_option_passes_every_probe_of_a_search(honest, probe, few, name):
    model = cautious(honest, name, probe(honest).batch)
    assert not model(probe(honest).batch.images).accepted.all()
    for check, maker in (
        (check_monotone_attack, probe),
        (check_unbounded, probe),
        (check_gradients, probe),
        (check_convergence, few),
        (check_logit_scale, few),
        (check_gradient_accuracy, few),
    ):
        verdict = check(maker(model))
        assert verdict.verdict == "PASS", verdict.evidence
    assert check_unbounded(probe(model)).value == 0


def test_a_reject_option_that_accepts_everything_changes_no_probe(honest, few):
    idle = reject(honest, "margin", torch.full((10,), -1e6))
    for check in (check_monotone_attack, check_unbounded, check_logit_scale, check_convergence):
        assert check(few(idle)).value == check(few(honest)).value


def test_c8_tests_the_logits_of_a_model_that_rejects(honest, few):
    shy = reject(confident(honest), "margin", torch.full((10,), 1e4))
    assert check_logit_scale(few(shy)).verdict == "FAIL"
    assert check_logit_scale(few(shy)).value == check_logit_scale(few(confident(honest))).value


def test_probes_of_a_stochastic_model_keep_its_reject_option(honest, few):
    shy = reject(RandomGradientToy(honest), "margin", torch.full((10,), math.inf))
    assert "leaves 100.0%" in check_fixed_noise(few(shy)).evidence


def test_calibrated_thresholds_of_a_model_s_own_score_pass_c24(honest, digits, held_out, tmp_path):
    own, file = OnGrid(honest, largest).eval(), tmp_path / "thresholds"
    fitted = calibrate(load_model(own), CalibrationData(digits, 0, len(digits)))
    file.write_bytes(fitted.to_bytes())
    known = load_model(own, reject="own", thresholds=str(file))
    others = ArrayDataset(*digits.batch(held_out), "other digits")
    plan = {"attack": "fgsm", "threat": "linf=0.2", "samples": 10, "out": tmp_path / "run"}

    def grade(model, data):
        run = rbi.evaluate(model, dataset=data, existing="redo", **plan)
        return {v["id"]: v["verdict"] for v in RunFolder(run.path).checks()}["C24"]

    found = grade(own, others), grade(known, others), grade(known, digits)
    assert found == ("WARN", "PASS", "FAIL")


def test_a_masked_reject_option_is_not_to_be_published(honest, digits, held_out, tmp_path):
    images, labels = digits.batch(held_out[::4])
    grid = ArrayDataset((15 * images).round() / 15, labels, "digits on a grid")
    model = OnGrid(honest, largest).eval()
    run = rbi.evaluate(model, attack="pgd-tuned", threat="linf=0.2", dataset=grid, out=tmp_path)
    (found,) = run.conclusions
    clean = float((honest(grid.batch(range(25))[0]).decision == labels).double().mean())
    assert f"Robust accuracy {100 * clean:.1f} %" in found.numbers[0]
    assert (found.verdict, found.reasons[0].check) == ("do not publish", "C2"), found
