"""The checks see, through the engine and the results on disk, what toy attacks and a toy model do."""

import pytest
import torch

from robustbench_inv.api import evaluate
from robustbench_inv.attacks.pgd import FGSM, PGD
from robustbench_inv.attacks.random_inputs import RandomPerturbation
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.results.run_files import RunFolder
from robustbench_inv.testing.analytic_problems import rotation_classifier
from robustbench_inv.testing.toys import (
    CrashingAttack,
    ForgetfulAttack,
    IdleAttack,
    OverBudgetAttack,
)
from robustbench_inv.threat.goals import UNKNOWN


@pytest.fixture
def grades(digits, tmp_path):
    """Evaluate attacks on a model and return {(check, subject's first word): grade}."""

    def run(model, attacks):
        found = evaluate(
            model=model,
            attack=attacks,
            threat="linf=0.02,0.3",
            dataset=digits,
            samples=60,
            out=tmp_path,
            keep_images=True,
        )
        checks = RunFolder(found.path).checks()
        return {(v["id"], v["subject"].split()[0]): v["verdict"] for v in checks}

    return run


def test_honest_attacks_on_an_honest_model_leave_every_check_silent(honest, grades):
    found = grades(honest, [PGD(), FGSM(), RandomPerturbation()])
    assert {grade for grade in found.values() if grade != "PASS"} == set(), found
    assert {("C3", "toy"), ("C5", "toy"), ("C14", "pgd"), ("C2", "toy")} <= found.keys()


def test_toy_attacks_are_found_out(honest, grades):
    short = PGD(steps=5, rel_step=0.2, decay=False)
    found = grades(
        honest, [CrashingAttack(), ForgetfulAttack(), OverBudgetAttack(), IdleAttack(), short]
    )
    assert (found["C30", "crashingattack"], found["C30", "forgetfulattack"]) == ("FAIL", "PASS")
    assert (found["C15", "forgetfulattack"], found["C15", "overbudgetattack"]) == ("WARN", "PASS")
    assert (found["C14", "overbudgetattack"], found["C14", "forgetfulattack"]) == ("FAIL", "PASS")
    assert (found["C16", "idleattack"], found["C16", "pgd"]) == ("FAIL", "PASS")
    assert (found["C19", "pgd"], found["C19", "idleattack"]) == ("WARN", "NA")
    assert {
        found["C22", attack] for attack in ("crashingattack", "forgetfulattack", "overbudgetattack")
    } == {"PASS"}


def test_an_iterative_attack_that_is_too_weak_is_found_out_by_one_step(honest, grades):
    hardly = PGD(steps=2, rel_step=0.01, decay=False, random_start=False)
    assert grades(honest, [FGSM(), hardly])["C3", "toy"] == "FAIL"


class Unsure(ArrayDataset):
    """Data whose oracle knows the classes of some inputs only."""

    oracle_source = "exact"
    share = 0.0

    def classify(self, images):
        known = torch.arange(len(images)) < self.share * len(images)
        return torch.where(known, 1, UNKNOWN)


@pytest.mark.parametrize(("share", "wanted"), [(0.0, "FAIL"), (0.4, "WARN"), (1.0, "PASS")])
def test_an_oracle_that_says_little_is_found_out(tmp_path, share, wanted):
    model = rotation_classifier()
    images = SampleRNG(0, torch.arange(30), "test").uniform((1, 6, 6), dtype=torch.float64)
    data = Unsure(images, model(images).decision, "unsure")
    data.share = share
    run = evaluate(model=model, attack="metamer", threat="none", dataset=data, out=tmp_path)
    grades = {v["id"]: v["verdict"] for v in RunFolder(run.path).checks()}
    assert grades["C35"] == wanted
