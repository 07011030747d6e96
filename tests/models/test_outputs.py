"""What networks return in practice: tuples, dictionaries, objects, one logit; and bounds that nobody declared."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from robustbench_inv.api import evaluate
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.errors import BadModel
from robustbench_inv.models.outputs import (
    SampleInputs,
    find_logits,
    probe_classes,
    two_logits,
)

IMAGES = torch.rand((40, 1, 4, 4), generator=torch.Generator().manual_seed(1))
WEIGHTS = torch.randn((16, 3), generator=torch.Generator().manual_seed(2))
LOGITS = (IMAGES.flatten(1) - 0.5) @ WEIGHTS
DATA = ArrayDataset(IMAGES, LOGITS.argmax(1), "three")
BINARY = ArrayDataset(IMAGES, (LOGITS[:, 0] > 0).long(), "two")


@dataclass
class Answer:
    logits: Tensor
    features: Tensor


Pair = namedtuple("Pair", ["logits", "auxiliary"])  # as torchvision's

SHAPES = {
    "tensor": lambda logits, _: logits,
    "tuple of one": lambda logits, _: (logits,),
    "object": Answer,
    "dictionary": lambda logits, features: {"features": features, "logits": logits},
    "named tuple": lambda logits, _: Pair(logits, logits + 1),
    "tuple": lambda logits, features: (features[:, None], logits, None),
    "unnamed dictionary": lambda logits, features: {"z": features[:, None], "y": logits},
}


class Network(nn.Module):
    """Linear logits, in whatever form; its last linear layer is none of the logits'."""

    bounds = (0.0, 1.0)

    def __init__(self, form=lambda logits, _: logits, scale=lambda images: images):
        super().__init__()
        self.form, self.scale = form, scale
        self.register_buffer("weights", WEIGHTS)
        self.projection = nn.Linear(16, 7)

    def forward(self, images):
        codes = self.scale(images).flatten(1) - 0.5
        return self.form(codes @ self.weights, codes)


@pytest.mark.parametrize("form", SHAPES)
def test_the_logits_are_found_and_attacked_as_the_bare_tensor_is(form):
    run = evaluate(
        model=Network(SHAPES[form]), attack="fgsm", threat="linf=0.1", dataset=DATA, checks=False
    )
    plain = evaluate(model=Network(), attack="fgsm", threat="linf=0.1", dataset=DATA, checks=False)
    assert run.summary()[0].clean_accuracy.value == 1
    assert run.summary()[0].robust_accuracy == plain.summary()[0].robust_accuracy


@pytest.mark.parametrize("answer", [(LOGITS, LOGITS), {"a": LOGITS, "b": LOGITS}, [None, 3]])
def test_outputs_that_could_all_be_the_logits_are_refused(answer):
    with pytest.raises(BadModel, match="not clear which of the model's outputs are the logits"):
        find_logits(answer)


def test_the_number_of_classes_is_that_of_the_output_and_not_of_the_last_linear_layer():
    assert load_model(Network(), dataset=DATA).classifier.num_classes == 3


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_one_logit_is_a_binary_classifier(shape):
    network = Network(lambda logits, _: 5 * logits[:, 0].reshape(shape))
    loaded = load_model(network, dataset=BINARY)
    assert loaded.classifier.num_classes == 2
    output = loaded(IMAGES)
    assert torch.equal(output.decision, BINARY.labels)
    assert torch.allclose(output.logits.softmax(1)[:, 1], (5 * LOGITS[:, 0]).sigmoid())
    run = evaluate(model=network, attack="standard", threat="linf=0.5", dataset=BINARY)
    assert run.summary()[0].clean_accuracy.value == 1
    assert run.summary()[0].robust_accuracy[0].value == 0


def test_one_probability_is_no_logit():
    network = Network(lambda logits, _: logits[:, 0].sigmoid())
    with pytest.raises(BadModel, match="probability"):
        load_model(network, dataset=BINARY)
    network.output = "logit"
    assert load_model(network, dataset=BINARY).classifier.num_classes == 2


def test_only_binary_classifiers_have_their_logit_extended():
    assert two_logits(LOGITS[:, :1], 3).shape == (40, 1)


RANGES = {
    "as they are": lambda images: images,
    "mapped to [-1, 1]": lambda images: (images + 1) / 2,
    "mapped to [0, 255]": lambda images: images / 255,
}


@pytest.mark.parametrize("how", RANGES)
def test_unknown_bounds_are_asked_for_with_the_likely_answer(how):
    network = Network(scale=RANGES[how])
    network.bounds = None
    with pytest.raises(BadModel, match=r"has no valid bounds") as raised:
        load_model(network, dataset=DATA)
    assert how in str(raised.value)
    assert "100%" in str(raised.value)
    assert "bounds = (0, 1)" in str(raised.value)


def test_bounds_are_a_parameter_of_every_model_without_them(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def build(width=3):\n    return nn.Sequential(nn.Flatten(), nn.Linear(16, width))\n"
        "def own(bounds):\n    model = build()\n    model.bounds = (0, bounds)\n    return model\n"
    )
    monkeypatch.chdir(tmp_path)
    loaded = load_model("mine.py:build:bounds=-1..1,width=4")
    assert (loaded.classifier.bounds, loaded.classifier.num_classes) == ((-1.0, 1.0), 4)
    assert load_model("mine.py:own:bounds=3").classifier.bounds == (0.0, 3.0)
    with pytest.raises(BadModel, match=r"no valid bounds.*1\.\.0"):
        load_model("mine.py:build:bounds=1..0")
    with pytest.raises(BadModel, match="declares other bounds"):
        load_model(Network(), bounds=(-1, 1))


def test_a_network_that_fails_on_the_data_is_reported_with_its_error():
    def fail(*_):
        raise RuntimeError("expects 3 channels")

    network = Network(fail)
    del network.projection  # no linear layer tells the number of classes
    with pytest.raises(BadModel, match=rf"fails on images of {DATA.name}: .*expects 3 channels"):
        load_model(network, dataset=DATA)


def test_a_network_that_returns_classes_is_refused():
    class Classes(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1).argmax(1)

    probe = SampleInputs(torch.rand(4, 1, 3, 3), torch.zeros(4, dtype=torch.long), "d", (0.0, 1.0))
    with pytest.raises(BadModel, match=r"one integer for each input.*without argmax"):
        probe_classes(Classes(), probe, "mine")
