"""Kill evaluations of a toy at operations on files, several times each, and resume them: nothing is lost or doubled.

Run as a program, it tries 100 kills: ``python tests/robustness/kills.py 100``. With ``INVBENCH_COMPACT=6`` finished cells
are compacted to Parquet files, and restored when they grow.
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

import robustbench_inv.checks.probe  # noqa: F401 - imported before the children are forked
from robustbench_inv.api import evaluate
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.results.run_files import RunFolder

SAMPLES = 30
"""Samples of the run, in blocks of 3."""

COMPARED = ("records.jsonl", "records.parquet", "adversarial.safetensors", "cell.json")


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


def run(folder, samples=SAMPLES, existing="resume", checks=False):
    """Evaluate samples in blocks of 3, images kept."""
    torch.set_num_threads(1)
    images = torch.rand((SAMPLES, 16), generator=torch.Generator().manual_seed(1))
    data = ArrayDataset(images, (images.mean(1) > 0.5).long(), "halves")
    evaluate(
        model=Halves(),
        attack=RandomPoints(),
        threat="linf=0.05,0.2",
        dataset=data,
        samples=f"first:{samples}",
        out=folder,
        batch_size=3,
        keep_images=True,
        existing=existing,
        checks=checks,
    )


def damage(folder):
    """Double a line in the middle of the records, or change a byte in the middle of a compacted file."""
    (path,) = folder.glob("*/records.*")
    if path.suffix == ".parquet":
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 1
        return path.write_bytes(data)
    lines = path.read_bytes().splitlines(keepends=True)
    return path.write_bytes(b"".join([*lines[:20], lines[19], *lines[20:]]))


@dataclass(frozen=True)
class Scenario:
    """Something that is killed.

    Args:
        before: samples evaluated before it; 0 for a fresh run.
        existing: what the killed command does with them.
        again: what the command after the kill does.
        damaged: are the results damaged before?
        checks: are the validity checks run?
    """

    before: int = 0
    existing: str = "resume"
    again: str = "resume"
    damaged: bool = False
    checks: bool = False

    def prepare(self, folder):
        """Bring a folder into the state before the killed command."""
        if self.before:
            run(folder, self.before)
        if self.damaged:
            damage(folder)


SCENARIOS = (
    Scenario(),
    Scenario(before=SAMPLES // 2),
    Scenario(before=SAMPLES, existing="redo"),
    Scenario(before=SAMPLES, existing="redo", again="redo"),
    Scenario(before=SAMPLES, existing="repair", again="repair", damaged=True),
    Scenario(before=SAMPLES - 3, checks=True),
)

FILE_OPERATIONS = ("open", "write", "fsync", "ftruncate", "replace", "unlink", "mkdir", "rmdir")
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


def in_child(action, number=0):
    """Run in a child that dies at an operation; return how many it did, None if it was killed."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            write, killed = os.write, KilledAt(number)
            action()
            write(send, str(killed.count).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(send)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), f"the child ended with status {status}"
    with open(receive, "rb") as pipe:  # noqa: PTH123 - a descriptor, not a path
        return None if status else int(pipe.read())


def contents(folder):
    """Return the files of the only cell that must not depend on kills."""
    (cell,) = folder.glob("*/cell.json")
    paths = (cell.parent / name for name in COMPARED)
    return {path.name: path.read_bytes() for path in paths if path.exists()}


def leftovers(folder):
    """Return files that a finished run does not have."""
    found = (path.name for path in folder.rglob("*") if path.is_file())
    known = {*COMPARED, "events.jsonl", "plan.json", "checks.json", ".lock"}
    return sorted(set(found) - known)


def check_readable(folder):
    """Read all that a killed process left: it must not look damaged."""
    if RunFolder(folder).exists:
        for cell in RunFolder(folder).cells():
            cell.read()


class Prepared:
    """A scenario with the state before it, the number of operations on files, and the expected result."""

    def __init__(self, scenario, folder):
        self.scenario, self.before, whole = scenario, folder / "before", folder / "whole"
        self.before.mkdir(parents=True)
        assert in_child(lambda: scenario.prepare(self.before)) is not None
        shutil.copytree(self.before, whole)
        self.operations = in_child(lambda: self.run(whole))
        self.expected = contents(whole)

    def run(self, folder, *, again=False):
        """Run the command of the scenario, or the one after a kill."""
        existing = self.scenario.again if again else self.scenario.existing
        run(folder, SAMPLES, existing, self.scenario.checks)

    def kill(self, folder, number, draw):
        """Kill the command at an operation, then perhaps its successors at random ones, and run it to its end."""
        shutil.copytree(self.before, folder)
        assert in_child(lambda: self.run(folder), number) is None
        kills = 1
        if not self.scenario.damaged:
            check_readable(folder)
        while draw.random() < 0.4:
            kills += in_child(lambda: self.run(folder, again=True), draw.randrange(1, 40)) is None
        assert in_child(lambda: self.run(folder, again=True)) is not None
        assert contents(folder) == self.expected, "lost, doubled or different"
        check_readable(folder)
        assert not leftovers(folder), leftovers(folder)
        shutil.rmtree(folder)
        return kills


def main(kills):
    """Kill the scenarios in turn, at operations spread evenly over each; return the number of kills."""
    draw, done = random.Random(0), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared = [Prepared(each, folder / str(i)) for i, each in enumerate(SCENARIOS)]
        rounds = -(-kills // len(SCENARIOS))
        for turn in range(rounds):
            for each in prepared:
                number = 1 + turn * (each.operations - 1) // max(1, rounds - 1)
                try:
                    done += each.kill(folder / "killed", number, draw)
                except BaseException:
                    print(f"killed at operation {number} of {each.operations}: {each.scenario}")
                    raise
    return done


if __name__ == "__main__":
    print(main(*map(int, sys.argv[1:])))
