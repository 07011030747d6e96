"""The plan of a reproduction: models, samples and order of its trials."""

import pytest

from robustbench_inv.catalogue.reproduction_file import read_reproduction
from robustbench_inv.errors import MissingData
from robustbench_inv.evaluation.jobs import EvaluationRequest
from robustbench_inv.evaluation.loading import LoadCache
from robustbench_inv.evaluation.plan import plan_reproduction

ITEM = """
version = 1
title = "T"
summary = "s"
paper = "p"
datasets = ["mnist"]
columns = [
  { name = "A", published = "{data}-cnn" },
  { name = "B", published = "{data}-c-js:sigmoid=true", adaptive = "{data}-c-js" },
]
trials = [
  { name = "noise", group = "g", attack = "random-perturbation", threat = "l2={ball}", samples = 12 },
  { name = "step", group = "g", attack = "fgsm", threat = "l2={ball}" },
  { name = "descent", group = "g", side = "adaptive", attack = "pgd:steps=2", threat = "l2={ball}" },
]
panels = [{ title = "x", trial = "noise", worst_of = ["g"] }]
sweeps = { ball = [0.1, 0.2] }
samples = 20
"""


@pytest.fixture
def plan_of(tmp_path):
    def read(text):
        (tmp_path / "figure-1.toml").write_text(text)
        item = read_reproduction(tmp_path / "figure-1.toml")
        return lambda **asked: plan_reproduction(
            item, EvaluationRequest((), **{"dataset": "mnist5k", **asked})
        )

    return read


@pytest.fixture
def plan(plan_of):
    return plan_of(ITEM)


def test_each_side_of_a_column_is_attacked_by_its_own_trials(plan):
    found = [(job.attack.name, job.model.name) for job in plan().jobs]
    assert found == [
        ("random-perturbation", "mnist-cnn"),
        ("random-perturbation", "mnist-c-js:sigmoid=true"),
        ("fgsm", "mnist-cnn"),
        ("fgsm", "mnist-c-js:sigmoid=true"),
        ("pgd:steps=2", "mnist-cnn"),
        ("pgd:steps=2", "mnist-c-js"),
    ], "trial by trial"


def test_samples_are_limited_by_request_and_trial(plan):
    def sizes(**asked):
        return [len(job.samples) for job in plan(**asked).jobs[::2]]

    assert sizes() == [12, 20, 20]
    assert sizes(samples=16) == [12, 16, 16]
    assert sizes(samples=4) == [4, 4, 4]


def test_attacks_that_compete_have_common_samples(plan_of):
    """The first and the balanced samples had few in common."""
    plan = plan_of(ITEM.replace("samples = 12", 'samples = "first:12"'))
    assert [job.samples for job in plan().jobs[::2]] == [tuple(range(n)) for n in (12, 20, 20)]
    assert {job.samples for job in plan(samples=8).jobs} == {tuple(range(8))}
    firsts = plan_of(
        ITEM.replace("samples = 12", 'samples = "first:12"').replace("= 20", '= "first:20"')
    )
    for asked in (4, 16, "first:16", None):
        found = [set(job.samples) for job in firsts(samples=asked).jobs[::2]]
        assert found[0] <= found[1] == found[2]


def test_the_samples_of_an_item_limit_those_of_its_trials(plan_of):
    plan = plan_of(ITEM.replace("samples = 12", "samples = 30"))
    assert [len(job.samples) for job in plan().jobs[::2]] == [20, 20, 20]


def test_a_trial_with_several_cells_attacks_its_columns(tmp_path):
    aimed = (
        'threat = "l2={ball}:goal=target:offset={target}", targets = [1, 2], columns = ["A"] },\n]'
    )
    text = ITEM.replace('group = "g", side', 'group = "h", side')
    text = text.replace('threat = "l2={ball}" },\n]', aimed)
    (tmp_path / "figure-1.toml").write_text(text)
    item = read_reproduction(tmp_path / "figure-1.toml")
    jobs = plan_reproduction(item, EvaluationRequest((), dataset="mnist5k")).jobs
    told = [(job.model.name, job.threat.goal.offset) for job in jobs[4:]]
    assert told == [("mnist-cnn", 1), ("mnist-cnn", 2)]


def test_threats_contain_the_sweep(plan):
    assert {job.epsilons for job in plan().jobs} == {(0.1, 0.2)}


def test_every_model_is_loaded_once(plan):
    models = {id(job.model) for job in plan().jobs}
    assert len(models) == 3


def test_a_data_set_that_is_not_at_hand_is_left_out(tmp_path, monkeypatch):
    text = ITEM.replace('["mnist"]', '["mnist", "fashion-mnist"]').replace(
        "{data}-c-js:", "mnist-c-js:"
    )
    (tmp_path / "figure-1.toml").write_text(text.replace("{data}", "mnist"))
    item, opened, absent = (
        read_reproduction(tmp_path / "figure-1.toml"),
        LoadCache.dataset,
        {"fashion-mnist"},
    )

    def dataset(self, source):
        if source in absent:
            raise MissingData(f"cannot fetch {source}")
        return opened(self, "mnist5k" if source == "mnist" else source)

    monkeypatch.setattr(LoadCache, "dataset", dataset)
    found = plan_reproduction(item, EvaluationRequest((), samples=4))
    assert {job.dataset.name for job in found.jobs} == {"mnist5k"}
    assert found.warnings[0] == "fashion-mnist is left out: cannot fetch fashion-mnist"
    absent.add("mnist")
    with pytest.raises(MissingData):
        plan_reproduction(item, EvaluationRequest((), samples=4))
