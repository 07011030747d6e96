"""Panels that pool probabilities: weights, temperatures, operating point and identity."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from robustbench_inv.catalogue.cards import read_oracle
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.errors import BadCatalogue
from robustbench_inv.evaluation.panel import AttackedModel, PanelOracle, Pooling, load_panel
from robustbench_inv.tensors import Output
from robustbench_inv.testing.analytic_problems import (
    BodyMeanClassifier,
    LinearClassifier,
    column_images,
)

HERE = "robustbench_inv.testing.analytic_problems"
CARD = f"""summary = "three readers"
members = ["{HERE}:BodyMeanClassifier", "{HERE}:BodyMaxClassifier", "{HERE}:AllRowsClassifier"]
rule = "pool"
weights = [1.0, 2.0, 3.0]
temperatures = [0.1, 0.2, 0.3]
threshold = 0.4
[detection]
measured_on = "altered images"
changed = 10
found = 6
unchanged = 20
false = 1
[detection.without]
"{HERE}:BodyMeanClassifier" = {{ found = 5, false = 2 }}
"""


def fixed(*probabilities):
    """Return a classifier that gives every image the same probabilities."""
    bias = torch.tensor(probabilities).log()
    return LinearClassifier(torch.zeros(len(probabilities), 4), bias, (0.0, 1.0))


class Refusing(nn.Module):
    """Is sure of class 1 and rejects."""

    bounds, num_classes = (0.0, 1.0), 2

    def forward(self, images):
        logits = torch.tensor([[0.0, 99.0]]).expand(len(images), 2)
        return Output(logits, None, torch.zeros(len(images), dtype=torch.bool))


def pooled(members, pooling, values=0.3):
    data = ArrayDataset(torch.full((2, 4), values), [1, 1], "grey", num_classes=2)
    return PanelOracle("p", "pool", tuple(map(load_model, members)), data, pooling=pooling)


def vote(oracle):
    ids = torch.arange(2)
    return oracle.vote(oracle.dataset.batch(ids)[0], ids).tolist()


def probabilities(oracle):
    ids = torch.arange(2)
    return oracle.pool(oracle.dataset.batch(ids)[0], ids, oracle.pooling)[0].tolist()


def test_the_pool_is_the_weighted_mean_of_probabilities():
    oracle = pooled([fixed(0.2, 0.8), fixed(0.9, 0.1)], Pooling((3.0, 1.0), (1.0, 1.0), 0))
    assert probabilities(oracle) == pytest.approx([0.375, 0.625])


def test_a_temperature_divides_the_logits():
    pooling = Pooling((1.0,) * 2, (2.0, 1.0), 0)
    found = probabilities(pooled([fixed(0.1, 0.9), fixed(0.3, 0.7)], pooling))
    assert found[1] == pytest.approx((0.75 + 0.7) / 2)


@pytest.mark.parametrize(("threshold", "expected"), [(0.6, 1), (0.65, -1)])
def test_below_the_threshold_the_class_is_unknown(threshold, expected):
    members, weights = [fixed(0.2, 0.8), fixed(0.9, 0.1)], (3.0, 1.0)
    oracle = pooled(members, Pooling(weights, (1.0, 1.0), threshold))
    assert vote(oracle) == [expected] * 2


def test_a_member_that_rejects_adds_no_probability():
    members, ones = [Refusing(), fixed(0.4, 0.6)], (1.0, 1.0)
    assert vote(pooled(members, Pooling(ones, ones, 0.31))) == [-1, -1]
    assert vote(pooled(members, Pooling(ones, ones, 0.29))) == [1, 1]


def test_everything_that_changes_the_class_is_in_the_digest():
    members, base = [fixed(0.2, 0.8), fixed(0.9, 0.1)], Pooling((3.0, 1.0), (1.0, 1.0), 0.5)
    changes = [
        {},
        {"weights": (1.0, 3.0)},
        {"temperatures": (1.0, 2.0)},
        {"threshold": 0.4},
    ]
    digests = {pooled(members, replace(base, **change)).digest for change in changes}
    assert len(digests) == len(changes)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """Put the card of a pool into a catalogue."""
    folder = tmp_path / "attacks" / "oracles"
    folder.mkdir(parents=True)
    (folder / "readers.toml").write_text(CARD)
    monkeypatch.setenv("INVBENCH_CATALOGUE", str(tmp_path))
    return folder / "readers.toml"


@pytest.mark.usefixtures("shipped")
def test_the_others_keep_their_weights_where_a_member_is_excluded():
    attacked = [AttackedModel.of(load_model(BodyMeanClassifier()))]
    found = load_panel("readers", column_images(), attacked, load_model)
    assert found.pooling == Pooling((2.0, 3.0), (0.2, 0.3), 0.4)
    ids = torch.arange(12)
    images, labels = found.dataset.batch(ids)
    assert torch.equal(found.classify(images, ids), labels)


@pytest.mark.usefixtures("shipped")
def test_measured_changes_belong_to_the_operating_point_of_the_card():
    def error(name):
        return load_panel(name, column_images(), [], load_model).error(range(12))

    assert error("readers").detection.text == (
        "of 10 changes that people see on altered images it reports 6, of 20 others 1"
    )
    assert error("readers:threshold=0.6").detection is None


def test_counts_without_a_member_of_a_file_are_found(tmp_path):
    """The catalogue makes names of files in a card absolute."""
    card = CARD.replace(f"{HERE}:BodyMeanClassifier", "own.py:Reader")
    (tmp_path / "readers.toml").write_text(card)
    found = read_oracle(tmp_path / "readers.toml")
    assert found.detection[found.members[0]].found == 5
    assert Path(found.members[0].rpartition(":")[0]).is_absolute()


@pytest.mark.usefixtures("shipped")
@pytest.mark.parametrize(
    ("attacked", "counts"),
    [("BodyMeanClassifier", (5, 2)), ("BodyMaxClassifier", None)],
    ids=["measured without it", "not measured without it"],
)
def test_measured_changes_belong_to_the_members_that_vote(attacked, counts):
    models = [AttackedModel.of(load_model(f"{HERE}:{attacked}"))]
    found = load_panel("readers", column_images(), models, load_model).detection
    assert (found and (found.found, found.false)) == counts


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[1.0, 2.0, 3.0]", "[1.0, 2.0]", "unusable weights"),
        ("[1.0, 2.0, 3.0]", "[1.0, 2.0, 0.0]", "unusable weights"),
        ("[0.1, 0.2, 0.3]", "[0.1, 0.2, -1.0]", "unusable temperatures"),
        ("threshold = 0.4", "threshold = 1.4", "unusable threshold"),
        ('rule = "pool"', 'rule = "majority"', "weights without a pool"),
        ("false = 1", "", "key false is missing"),
    ],
)
def test_the_error_of_an_unusable_pool(shipped, old, new, message):
    shipped.write_text(CARD.replace(old, new))
    with pytest.raises(BadCatalogue, match=message):
        read_oracle(shipped)
