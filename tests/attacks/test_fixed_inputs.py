"""Inputs of another data set: each shown once, in a fixed order, and refused where they cannot be shown."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from robustbench_inv.attacks.fixed_inputs import OODInputs, OutOfDistribution, shuffled_ids
from robustbench_inv.attacks.protocol import Batch, NeedsOODData
from robustbench_inv.catalogue import attacks as catalogue
from robustbench_inv.catalogue.attacks import load_attack, with_ood_data
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.errors import BadData, CapabilityMismatch
from robustbench_inv.evaluation import loading
from robustbench_inv.evaluation.engine import RunOptions
from robustbench_inv.evaluation.jobs import EvaluationRequest, build_jobs
from robustbench_inv.evaluation.packing import pack_jobs, unpack_jobs
from robustbench_inv.evaluation.plan import plan_jobs
from robustbench_inv.evaluation.schedule import run_cell
from robustbench_inv.models.reject_option import reject
from robustbench_inv.models.wrapping import wrap_module
from robustbench_inv.results.run_files import CellFolder
from robustbench_inv.results.summary import rejection_rates
from robustbench_inv.threat.goals import Accept


def greys(name, levels):
    """Images of one grey level each; their class is whether that is above a half."""
    values = torch.tensor(levels, dtype=torch.float32)
    images = values.reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return ArrayDataset(images, (values > 0.5).long(), name, num_classes=2)


class Extremes(nn.Module):
    """The class is whether an image is bright; both logits are how far its grey is from the middle."""

    bounds, num_classes = (0.0, 1.0), 2

    def forward(self, x):
        lead = x.flatten(1).mean(1) - 0.5
        return torch.stack([-lead, lead], 1)


OWN = [0.0, 0.1, 0.9, 1.0, 0.05, 0.95]
OTHER = [0.42, 0.44, 0.46, 0.54, 0.02, 0.58]
"""Of these, one scores above a threshold of 0.3: it looks like the model's own data."""


def opens(monkeypatch, other):
    """Open one data set under every name."""
    monkeypatch.setattr(
        loading, "load_dataset", lambda source, **_: other if isinstance(source, str) else source
    )


@pytest.fixture
def data(monkeypatch):
    """The model's own data, and others that open under the name ``middle``."""
    own, other = greys("own", OWN), greys("middle", OTHER)
    opens(monkeypatch, other)
    return own, other


@pytest.fixture
def careful():
    return reject(wrap_module(Extremes(), "extremes"), "likelihood", torch.tensor([0.3, 0.3]))


def jobs(model, own, attack):
    return list(build_jobs(EvaluationRequest([model], [attack], dataset=own)))


def test_the_order_is_a_fixed_permutation():
    assert sorted(shuffled_ids(50).tolist()) == list(range(50))
    assert torch.equal(shuffled_ids(50), shuffled_ids(50))
    assert shuffled_ids(50).tolist() != list(range(50))


def test_the_input_of_a_sample_depends_on_its_id_alone(data):
    own, other = data
    attack = OODInputs(other)
    ids = torch.arange(6)
    batch = Batch(*own.batch(ids), ids)
    whole = attack.run(None, batch, None, None)
    rows = torch.tensor([4, 1])
    assert torch.equal(attack.run(None, batch[rows], None, None), whole[rows])
    assert sorted(whole[:, 0, 0, 0].tolist()) == sorted(other.batch(ids)[0][:, 0, 0, 0].tolist())


def test_success_is_an_input_of_other_data_that_is_accepted(data, careful, tmp_path):
    own, _ = data
    (job,) = jobs(careful, own, "out-of-distribution:dataset=middle")
    assert job.threat.goal == Accept()
    plan_jobs([job])
    run_cell(job, tmp_path / "c", RunOptions(batch_size=4))
    records = CellFolder(tmp_path / "c").records()
    assert {r.status for r in records} == {"ok"}
    assert sum(r.goal_reached for r in records) == 1
    rates = rejection_rates(records)
    assert (rates.rejected_adversarial.successes, rates.rejected_adversarial.trials) == (5, 6)
    assert rates.false_rejection.successes == 0
    assert [r.forward_passes for r in records] == [0] * 6


def test_the_default_data_set_equals_the_named_one(data, careful, monkeypatch):
    own, _ = data
    monkeypatch.setattr(catalogue, "default_ood_dataset", lambda _: "middle")
    (usual,), (named,) = (
        jobs(careful, own, text)
        for text in ("out-of-distribution", "out-of-distribution:dataset=middle")
    )
    assert usual.attack.name == named.attack.name == "out-of-distribution:dataset=middle"
    assert usual.spec.digest == named.spec.digest
    assert named.attack.card["ood_dataset"]["name"] == "middle"


def test_another_process_opens_the_same_data(data, careful):
    (job,) = jobs(careful, data[0], "out-of-distribution:dataset=middle")
    (again,) = unpack_jobs(pack_jobs([job]))
    assert again.spec.digest == job.spec.digest
    assert isinstance(again.attack.attack, OODInputs)


def test_the_bytes_of_the_other_data_are_part_of_the_cell(data, careful, monkeypatch):
    own, _ = data
    (before,) = jobs(careful, own, "out-of-distribution:dataset=middle")
    changed = greys("middle", [*OTHER[:5], 0.57])
    opens(monkeypatch, changed)
    (after,) = jobs(careful, own, "out-of-distribution:dataset=middle")
    assert before.spec.digest != after.spec.digest


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (greys("middle", OTHER[:5]), "each is used once, got 5, expected >= 6"),
        (greys("copy", OWN), "not out of its own distribution"),
        (ArrayDataset(torch.zeros(6, 1, 3, 3), [0] * 6, "large"), "differ in the shape or range"),
    ],
)
def test_unusable_data_sets_are_rejected_before_anything_runs(
    data, careful, monkeypatch, other, says
):
    own, _ = data
    opens(monkeypatch, other)
    with pytest.raises(CapabilityMismatch, match=says):
        plan_jobs(jobs(careful, own, "out-of-distribution:dataset=middle"))


def test_without_a_default_data_set_it_is_rejected(data, careful):
    own, _ = data
    with pytest.raises(CapabilityMismatch, match="no default one for own"):
        plan_jobs(jobs(careful, own, "out-of-distribution"))


def test_missing_files_stop_a_plan_unless_the_run_is_optional(data, careful):
    own, _ = data

    def missing(name):
        raise BadData("no such file", got=name)

    source = "out-of-distribution:dataset=middle"
    loaded = load_attack(source)
    assert isinstance(loaded.attack, NeedsOODData)
    with pytest.raises(BadData):
        with_ood_data(loaded, source, own, missing)
    left = with_ood_data(loaded, source, own, missing, optional=True)
    assert left.attack == OutOfDistribution("middle")
    (job,) = jobs(careful, own, "noise-image")
    plan = plan_jobs([job, replace(job, attack=left, optional=True)])
    assert plan.jobs == (job,)
    assert "skipped: out-of-distribution:dataset=middle" in plan.warnings[0]
