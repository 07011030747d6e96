"""Run as a program: evaluates a slow toy again and again, killed each time after a while, then to its end."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

import robustbench_inv.checks.probe  # noqa: F401 - what the children need is imported before they are born
from robustbench_inv.api import evaluate
from robustbench_inv.data.arrays import ArrayDataset


class Halves(nn.Module):
    """Class 1 where the mean is above one half."""

    bounds, num_classes = (0.0, 1.0), 2

    def forward(self, images):
        beyond = images.mean(1) - 0.5
        return torch.stack([-beyond, beyond], 1)


@dataclass(frozen=True)
class Slow:
    """Random points of the ball, found slowly."""

    kind: ClassVar = "fixed-budget"
    norms: ClassVar = frozenset({"linf"})

    def run(self, model, batch, threat, rng):
        time.sleep(0.01)
        draw = rng.uniform((16,)) * torch.rand(len(batch), 1)  # a global draw as well
        images = (batch.images + threat.budget.eps * draw).clamp(0, 1)
        model(images)
        return images


def run(folder):
    """Evaluate 60 samples in blocks of 3, images kept."""
    torch.set_num_threads(1)
    images = torch.rand((60, 16), generator=torch.Generator().manual_seed(1))
    data = ArrayDataset(images, (images.mean(1) > 0.5).long(), "halves")
    evaluate(
        model=Halves(),
        attack=Slow(),
        threat="linf=0.05,0.2",
        dataset=data,
        out=folder,
        batch_size=3,
        keep_images=True,
        checks=False,
    )


def in_child(folder, seconds=None):
    """Evaluate in a child that is killed after some seconds; say whether it came to its end."""
    child = os.fork()
    if not child:
        code = 1
        try:
            run(folder)
            code = 0
        finally:
            os._exit(code)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def main(whole, killed, *delays):
    """Evaluate once without a kill, once with one after each delay, and print how often a kill struck."""
    assert in_child(whole) == 0
    struck = sum(in_child(killed, float(delay)) != 0 for delay in delays)
    assert in_child(killed) == 0
    print(struck)


if __name__ == "__main__":
    main(*sys.argv[1:])
