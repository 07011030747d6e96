"""Run as a program: kill evaluations of a toy at chosen operations on files, and resume each to its end."""

import os
import signal
import sys
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

import robustbench_inv.checks.probe  # noqa: F401 - imported before the children are forked
from robustbench_inv.api import evaluate
from robustbench_inv.data.arrays import ArrayDataset


class Halves(nn.Module):
    """Class 1 where the mean is above one half."""

    bounds, num_classes = (0.0, 1.0), 2

    def forward(self, images):
        beyond = images.mean(1) - 0.5
        return torch.stack([-beyond, beyond], 1)


@dataclass(frozen=True)
class RandomPoints:
    """Random points of the ball, drawn per sample and from the global generator."""

    kind: ClassVar = "fixed-budget"
    norms: ClassVar = frozenset({"linf"})

    def run(self, model, batch, threat, rng):
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
        attack=RandomPoints(),
        threat="linf=0.05,0.2",
        dataset=data,
        out=folder,
        batch_size=3,
        keep_images=True,
        checks=False,
    )


FILE_OPERATIONS = ("open", "write", "fsync", "ftruncate", "replace", "unlink")
"""Functions of ``os`` through which results are written; between any two of them a process may die."""


class KilledAt:
    """Count operations on files and kill the process at one of them, half of a write being done.

    Args:
        number: of the operation, from 1; 0 never kills.
    """

    def __init__(self, number):
        self.number, self.count = number, 0
        for name in FILE_OPERATIONS:
            setattr(os, name, self._counted(name, getattr(os, name)))

    def _counted(self, name, operation):
        def counted(*arguments, **named):
            self.count += 1
            if self.count == self.number:
                if name == "write":
                    descriptor, data = arguments
                    operation(descriptor, bytes(data)[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **named)

        return counted


def in_child(folder, number=0):
    """Evaluate in a child that dies at an operation; return how many it did, None if it was killed."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            write, killed = os.write, KilledAt(number)
            run(folder)
            write(send, str(killed.count).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(send)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), f"the child ended with status {status}"
    with open(receive, "rb") as pipe:  # noqa: PTH123 - a descriptor, not a path
        return None if status else int(pipe.read())


def main(whole, killed, kills):
    """Evaluate once without a kill, then once for each kill, in folders of their own, each resumed to its end."""
    operations = in_child(whole)
    for kill in range(int(kills)):
        folder, number = f"{killed}/{kill}", 1 + kill * (operations - 1) // (int(kills) - 1)
        assert in_child(folder, number) is None
        assert in_child(folder) is not None
    print(operations)


if __name__ == "__main__":
    main(*sys.argv[1:])
