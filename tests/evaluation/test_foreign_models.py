"""Evaluations of a user's models: models, process and standard output are unchanged, blocks independent of each other."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from robustbench_inv.api import evaluate
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.foreign import foreign


class Net(nn.Module):
    """A network with dropout, in train mode."""

    bounds, num_classes = (0.0, 1.0), 3

    def __init__(self):
        super().__init__()
        self.drop, self.layer = nn.Dropout(), nn.Linear(8, 3)

    def forward(self, images):
        return self.layer(self.drop(images))


class Adapting(Net):
    """Learns from each batch that it classifies."""

    def forward(self, images):
        with torch.no_grad():
            self.layer.bias += images.mean() * torch.tensor([3.0, -3.0, 0.0])
        return self.layer(images)


def make(kind=Net):
    torch.manual_seed(0)
    return kind()


def data():
    images = torch.rand((20, 8), generator=torch.Generator().manual_seed(1))
    labels = make().eval()(images).argmax(1)
    return ArrayDataset(images, labels, "twenty")


def records(model, out, **options):
    run = evaluate(
        model=model,
        attack="pgd:steps=2",
        threat="linf=0.05,0.2",
        checks=False,
        out=out,
        **{"dataset": data(), **options},
    )
    assert run.failures == ()
    return [record.to_json_line() for record in run.records()]


def describe(net):
    return [
        [(name, part.training, len(part._forward_hooks)) for name, part in net.named_modules()],
        [(t.dtype, t.requires_grad, t.tolist(), t.grad) for t in net.parameters()],
    ]


@pytest.mark.parametrize("kind", [Net, Adapting])
def test_the_users_model_is_unchanged(kind, tmp_path):
    net = make(kind)
    net.layer.bias.requires_grad_(False)
    net.drop.register_forward_hook(lambda *_: None)
    before = describe(net)
    evaluate(model=net, attack="fgsm", threat="linf=0.1", dataset=data(), samples=6, out=tmp_path)
    assert describe(net) == before
    assert net.training


def test_loading_leaves_mode_and_dtype_of_the_users_model():
    net = make()
    before = describe(net)
    loaded = load_model(net, dtype="float64")
    images = torch.rand(2, 8, dtype=torch.float64)
    assert torch.equal(loaded(images).logits, loaded(images).logits)
    assert loaded(images).logits.dtype == torch.float64
    assert describe(net) == before


def settings(name):
    match name:
        case "no gradients":
            torch.set_grad_enabled(False)
        case "float64":
            torch.set_default_dtype(torch.float64)
        case "inference":
            return torch.inference_mode()
        case "autocast":
            return torch.autocast("cpu", torch.bfloat16)
    return foreign("nothing")


@pytest.mark.parametrize("name", ["no gradients", "float64", "inference", "autocast"])
def test_records_do_not_depend_on_the_callers_settings(name, tmp_path):
    net, given = make(), data()
    plain = records(make(), tmp_path / "plain", dataset=given)
    with foreign("the caller"), settings(name):
        assert records(net, tmp_path / "other", dataset=given) == plain


def test_a_model_that_adapts_has_the_same_records_in_a_resumed_run(tmp_path):
    whole = records(make(Adapting), tmp_path / "whole", batch_size=5)
    records(make(Adapting), tmp_path / "parts", batch_size=5, samples="first:5")
    assert records(make(Adapting), tmp_path / "parts", batch_size=5) == whole


PRINTING = """
import ctypes, os, sys
import torch
print("imported")

class Net(torch.nn.Module):
    bounds, num_classes = (0.0, 1.0), 10
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(784, 10)
    def forward(self, images):
        print("forward")
        sys.__stdout__.write("forward")
        os.write(1, b"forward")
        ctypes.CDLL(None).puts(b"forward")
        return self.layer(images.flatten(1))
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_standard_output_holds_nothing_but_json(workers, tmp_path):
    (tmp_path / "mine.py").write_text(PRINTING)
    options = "--attack fgsm --threat linf=0.1 --dataset mnist5k --samples 10 --json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "robustbench_inv", "evaluate", "--model", "mine.py:Net"),
            *(*options.split(), "--no-checks", "--workers", workers, "--out", "run"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 1
    assert "forward" in done.stderr
