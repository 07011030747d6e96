"""A cell refuses to be resumed with a model, substitute, oracle or data set that returns something else than before."""

import json
import os
import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from robustbench_inv.api import evaluate
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.errors import BadModel, BadResults
from robustbench_inv.evaluation.stored_answers import ModelAnswers
from robustbench_inv.results.files import DIGEST
from robustbench_inv.results.run_files import CELL, RECORDS, RunFolder
from robustbench_inv.tensors import Output

SETTING = "INVBENCH_TEST_SETTING"
"""What no digest of code and tensors covers: an environment variable."""


def setting():
    return float(os.environ.get(SETTING, "1"))


@pytest.fixture(autouse=True)
def usual_setting(monkeypatch):
    monkeypatch.setenv(SETTING, "1")


class Net(nn.Module):
    """A linear network whose outputs a subclass changes."""

    bounds, num_classes = (0.0, 1.0), 3

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        with torch.no_grad():
            self.layer.weight.copy_(torch.arange(12.0).reshape(3, 4).cos())
            self.layer.bias.zero_()

    def forward(self, images):
        return self.changed(self.layer(images.flatten(1)))

    def changed(self, logits):
        return logits


class Scaled(Net):
    def changed(self, logits):
        return logits * setting()


class Rolled(Net):
    """Another order of the classes."""

    def changed(self, logits):
        return logits.roll(int(setting()), 1)


class Slightly(Net):
    """A difference that changes no prediction."""

    def changed(self, logits):
        return logits + torch.tensor([0.0, 0.0, 1e-3 * setting()])


class Masked(Net):
    """A class that is ruled out, which logit differs."""

    def changed(self, logits):
        logits[:, int(setting())] = -torch.inf
        return logits


class Raising(Net):
    def changed(self, logits):
        if setting() == 2 and (logits[:, 0] > 0.1).any():
            raise SystemExit(0)
        return logits


class Rejecting(nn.Module):
    """A model with a reject option, whose threshold the setting moves."""

    bounds, num_classes, dtype = (0.0, 1.0), 3, torch.float32

    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, images):
        logits = self.net(images)
        return Output(logits, None, logits.amax(1) > 0.5 * setting())


class Noisy(Net):
    """Undeclared noise of torch's generator and of its own."""

    def __init__(self):
        super().__init__()
        self.counter = [0]

    def changed(self, logits):
        own = np.random.default_rng().normal(size=tuple(logits.shape))
        return logits + torch.randn_like(logits) + torch.as_tensor(own, dtype=logits.dtype)


class Rarely(Net):
    """An undeclared fault of every tenth query."""

    def changed(self, logits):
        return logits * (100 if random.SystemRandom().random() < 0.1 else 1)


class NotANumber(Net):
    def changed(self, logits):
        logits[0, 0] = random.SystemRandom().choice([1.0, torch.inf])
        return logits


class Unlike(ArrayDataset):
    """A data set whose images the setting changes, with an oracle that it changes as well, if ``what`` says so."""

    oracle_source = "exact"

    def __init__(self, what=""):
        images = torch.rand(40, 1, 2, 2, generator=torch.Generator().manual_seed(1))
        super().__init__(images, Net()(images).argmax(1), "unlike", num_classes=3)
        self.what = what

    def batch(self, ids):
        images, labels = super().batch(ids)
        return (images / setting(), labels) if self.what == "images" else (images, labels)

    def classify(self, images):
        shift = int(setting()) if self.what == "oracle" else 1
        return (Net()(images.float()).argmax(1) + shift - 1) % 3


@dataclass(frozen=True)
class Still:
    """An attack that proposes the clean inputs."""

    kind: ClassVar[str] = "fixed-budget"
    norms: ClassVar[frozenset[str]] = frozenset({"linf"})

    def run(self, model, batch, threat, rng):
        return batch.images


def run(path, model=None, data=None, **options):
    threat = options.pop("threat", "linf=0.1")
    request = {"model": model or Net(), "attack": Still(), "dataset": data or Unlike()}
    return evaluate(**{**request, "threat": threat, "out": path, "checks": False, **options})


CHANGED = {
    "scaled logits": lambda: {"model": Scaled()},
    "classes in another order": lambda: {"model": Rolled()},
    "a difference that changes no prediction": lambda: {"model": Slightly()},
    "another class ruled out": lambda: {"model": Masked()},
    "an exit for some inputs": lambda: {"model": Raising()},
    "a threshold": lambda: {"model": Rejecting()},
    "images": lambda: {"data": Unlike("images")},
    "an oracle": lambda: {"data": Unlike("oracle")},
}


@pytest.mark.parametrize("made", CHANGED.values(), ids=CHANGED)
@pytest.mark.parametrize("existing", ["resume", "skip"])
def test_a_changed_part_is_refused_and_redone(made, existing, tmp_path, monkeypatch):
    done = run(tmp_path / "r", samples="first:10", **made())
    before = [(cell.path / RECORDS).read_bytes() for cell in RunFolder(done.path).cells()]
    run(tmp_path / "r", samples="first:10", **made())
    monkeypatch.setenv(SETTING, "2")
    with pytest.raises(
        BadResults, match=r"another than the one that this cell was evaluated with.*--out.*redo"
    ):
        run(tmp_path / "r", samples="first:20", existing=existing, **made())
    assert [(cell.path / RECORDS).read_bytes() for cell in RunFolder(done.path).cells()] == before
    if not isinstance(made().get("model"), Raising):
        again = run(tmp_path / "r", samples="first:20", existing="redo", **made())
        assert len(again.records()) == 20
        run(tmp_path / "r", samples="first:20", **made())


def test_a_changed_substitute_is_refused(tmp_path, monkeypatch):
    (tmp_path / "helping.py").write_text(f"from {__name__} import Scaled as build\n")
    options = {"attack": "fgsm", "threat": f"linf=0.1:substitute={tmp_path}/helping.py:build"}
    monkeypatch.syspath_prepend(str(tmp_path))
    run(tmp_path / "r", **options)
    run(tmp_path / "r", **options)
    monkeypatch.setenv(SETTING, "2")
    with pytest.raises(BadResults, match="the substitute is another"):
        run(tmp_path / "r", **options)


@pytest.mark.parametrize("model", [Noisy, Rarely, NotANumber])
def test_a_model_whose_outputs_vary_is_not_refused(model, tmp_path):
    for _ in range(5):
        run(tmp_path / "r", model=model(), samples="first:4")
    assert len(RunFolder(tmp_path / "r").cells()) == 1


def test_a_loaded_model_that_was_changed_since_is_refused(tmp_path):
    """Else a new folder would hold its records under the digest of the model that was loaded."""
    for network in (Net(), f"{__name__}:Net"):
        loaded = load_model(network)
        run(tmp_path / "r", model=loaded)
        with torch.no_grad():
            loaded.classifier.module.layer.bias += 1
        with pytest.raises(BadModel, match=r"was changed after it was loaded"):
            run(tmp_path / "fresh", model=loaded)
        run(tmp_path / "fresh", model=loaded.classifier)


def test_rounding_is_no_change(tmp_path, monkeypatch):
    class Rounded(Net):
        def changed(self, logits):
            return logits * (1 + 1e-6 * setting())

    run(tmp_path / "r", model=Rounded())
    monkeypatch.setenv(SETTING, "2")
    run(tmp_path / "r", model=Rounded())


def test_a_cell_without_stored_answers_is_resumed(tmp_path):
    done = run(tmp_path / "r", samples="first:10")
    (cell,) = RunFolder(done.path).cells()
    value = json.loads((cell.path / CELL).read_text())
    assert set(value["answers"]) == {"data set", "model", "oracle"}
    del value["answers"], value[DIGEST]
    (cell.path / CELL).write_text(json.dumps(value))
    assert len(run(tmp_path / "r", samples="first:20").records()) == 20


@pytest.mark.parametrize(
    "damage", [{"logits": 3}, {"logits": [["x"]]}, {"spread": []}, {"score": {}}, {}]
)
def test_damaged_answers_are_reported(damage, tmp_path):
    done = run(tmp_path / "r", samples="first:10")
    (cell,) = RunFolder(done.path).cells()
    value = json.loads((cell.path / CELL).read_text())
    del value[DIGEST]
    value["answers"]["model"] = {**value["answers"]["model"], **damage} if damage else []
    (cell.path / CELL).write_text(json.dumps(value))
    with pytest.raises(BadResults, match="redo"):
        run(tmp_path / "r", samples="first:10")


def test_answers_survive_json():
    logits = torch.tensor([[torch.inf, -torch.inf, torch.nan], [1.0, 2.0, 3.0]])
    found = ModelAnswers.of(Output(logits, logits[:, 1], torch.tensor([True, False])))
    again = ModelAnswers.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False)))
    assert again.differences(found).tolist() == [0.0, 0.0]


def test_of_many_classes_a_few_logits_and_the_largest_are_kept():
    logits = torch.zeros(2, 1000)
    logits[0, 501] = 7.0
    found = ModelAnswers.of(Output(logits))
    assert found.logits.shape == (2, 16)
    assert found.logits[0].max() == 7.0
