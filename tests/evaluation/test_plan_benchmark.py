"""Benchmark files: what they list is planned, and what does not fit is refused with the file's name."""

import numpy as np
import pytest
import torch
from PIL import Image

from robustbench_inv.errors import UnknownName, UsageError
from robustbench_inv.evaluation.jobs import EvaluationRequest
from robustbench_inv.evaluation.plan import plan_benchmark

NETWORK = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    model.bounds = (0.0, 1.0)
    return model
"""

ALL = """
summary = "Two models, two seeds"
models = ["mnist-lenet5", "net.py:build", "B=net.py:build"]
datasets = ["mnist5k"]
suites = ["standard"]
threats = ["linf=8/255", "l2=0.5"]
seeds = [0, 1]
samples = 20

[[runs]]
attack = "fgsm"
threat = "linf=0.1"
samples = 10
"""

RUN = """
datasets = ["mnist5k"]
samples = 4
[[runs]]
attack = "fgsm"
threat = "linf=0.1"
"""

NOTHING = EvaluationRequest(models=())


@pytest.fixture
def plan(tmp_path):
    """Return a function that plans the text of a file."""
    (tmp_path / "net.py").write_text(NETWORK)

    def planned(text, request=NOTHING):
        path = tmp_path / "bench.toml"
        path.write_text(text)
        return plan_benchmark(path, request, ["invbench", "run"])

    return planned


def test_all_combinations_are_planned_once(plan):
    found = plan(ALL)
    assert found.name.startswith("bench-mnist5k-")
    cells = {(job.shown[0], job.attack.name, job.threat.text, job.seed) for job in found.jobs}
    assert cells == {
        (model, attack, threat, seed)
        for model in ("mnist-lenet5", "B")
        for attack, threat in (
            ("fgsm", "linf=0.1"),
            ("standard", "linf=8/255"),
            ("standard", "l2=0.5"),
        )
        for seed in (0, 1)
    }
    assert {len(job.samples) for job in found.jobs if job.attack.name == "fgsm"} == {10}
    assert {len(job.samples) for job in found.jobs if job.attack.name == "standard"} == {20}
    assert any("are the same model, which is evaluated once" in line for line in found.warnings)


def test_options_replace_the_samples_of_the_file(plan):
    found = plan(ALL, EvaluationRequest(models=(), samples="first:4"))
    assert {job.samples for job in found.jobs} == {(0, 1, 2, 3)}


def test_without_threats_suites_keep_theirs_and_cards_name_the_data(plan):
    found = plan('models = ["mnist-lenet5"]\nsuites = ["quick"]\nsamples = 5')
    assert {job.dataset.name for job in found.jobs} == {"mnist5k"}
    assert [job.attack.name for job in found.jobs] == [
        *("random-perturbation", "fgsm", "pgd-tuned", "minimum-norm:lagrangian_steps=0"),
    ]


def test_a_network_beside_the_file_is_called_as_the_file_calls_it(plan):
    found = plan('models = ["net.py:build", "A=net.py:build:dtype=float64"]\n' + RUN)
    assert [job.shown[0] for job in found.jobs] == ["net.py:build", "A"]


def test_weights_and_oracles_beside_the_file_are_found(plan, tmp_path):
    from robustbench_inv.results.human_labels import COLUMNS

    members = []
    for name in "abc":
        torch.manual_seed(ord(name))
        weights = {"1.weight": torch.randn(10, 784), "1.bias": torch.zeros(10)}
        torch.save(weights, tmp_path / f"{name}.pt")
        members.append(f"net.py:build:weights={name}.pt")
    (tmp_path / "labels.csv").write_text(",".join(COLUMNS) + "\naa,,,3,,\n")
    runs = "".join(
        f'[[runs]]\nattack = "collision"\nthreat = "none:oracle={oracle}"\n'
        for oracle in (f"panel:{members[1]},{members[2]},rule=unanimous", "labels.csv")
    )
    panel, people = plan(
        f'models = ["A={members[0]}"]\ndatasets = ["mnist5k"]\nsamples = 2\n{runs}'
    ).jobs
    assert [len(panel.oracle.members), panel.oracle.rule] == [2, "unanimous"]
    assert panel.model.digest not in {each.digest for each in panel.oracle.members}
    assert people.oracle.source == "human"


DATA = """
import numpy as np

def build(count=5):
    return np.zeros((count, 1, 28, 28), np.float32), np.arange(count)
"""


@pytest.mark.parametrize(
    "dataset",
    [
        "npy:digits.npy,labels=labels.npy",
        "npy:digits.npy:labels=labels.npy",
        "npz:digits.npz",
        "npz:digits.npz,x=x,y=y",
        "data.py:build",
        "data.py:build,count=6",
        "data.py:build:count=6",
        "folder:folder",
        "folder:folder,size=28,channels=1",
    ],
)
def test_own_data_beside_the_file_are_found(plan, tmp_path, dataset):
    x, y = np.zeros((5, 1, 28, 28), np.float32), np.arange(5)
    np.save(tmp_path / "digits.npy", x)
    np.save(tmp_path / "labels.npy", y)
    np.savez(tmp_path / "digits.npz", x=x, y=y)
    (tmp_path / "data.py").write_text(DATA)
    for name in "abcdefghij":
        (tmp_path / "folder" / name).mkdir(parents=True)
        Image.new("L", (28, 28)).save(tmp_path / "folder" / name / "1.png")
    model = 'models = ["net.py:build"]\nsamples = 2'
    runs = '[[runs]]\nattack = "fgsm"\nthreat = "linf=0.1"'
    assert len(plan(f'{model}\ndatasets = ["{dataset}"]\n{runs}').jobs) == 1


def test_deep_probes_of_a_suite_count(plan):
    assert plan('models = ["mnist-lenet5"]\nsuites = ["diagnostics"]\nsamples = 5').deep


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "bench.toml: key models is missing"),
        ('models = []\nsuites = ["quick"]', "bench.toml: models is empty"),
        ('models = ["mnist-lenet5"]', "nothing to attack with"),
        ('models = ["mnist-lenet5"]\nsuites = ["quick"]\nseeds = []', "seeds is empty"),
        ('models = ["mnist-lenet5"]\nsuites = ["quick"]\nseeds = [-1]', "seed"),
        ('models = ["mnist-lenet5"]\nsuite = ["quick"]', "did you mean suites"),
        ('models = "mnist-lenet5"\nsuites = ["quick"]', "models does not fit"),
        ('models = ["mnist-lenet5"]\nsuites = ["quik"]', "did you mean quick"),
        ('models = ["mnist-lenet5"]\n[[runs]]\nattack = "pgd"', "key threat is missing"),
        ('models = ["os:getcwd"]\nsuites = ["quick"]', "--trust"),
        ('models = ["../net.py:build"]\nsuites = ["quick"]', "--trust"),
        ("models = [", "cannot be read"),
    ],
)
def test_what_does_not_fit_is_refused(plan, text, message):
    with pytest.raises(UsageError, match=message):
        plan(text)


def test_threats_need_suites(plan):
    runs = 'threats = ["linf=0.1"]\n[[runs]]\nattack = "pgd"\nthreat = "linf=0.2"'
    with pytest.raises(UsageError, match="threats are those of suites"):
        plan(f'models = ["mnist-lenet5"]\n{runs}')


def test_a_name_that_no_catalogue_has_is_refused(plan):
    with pytest.raises(UnknownName, match="no model is called nothing"):
        plan('models = ["nothing"]\nsuites = ["quick"]')
