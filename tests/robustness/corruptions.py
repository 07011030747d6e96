"""Damage results in many ways: a reader must refuse them or show the same numbers, a repair must bring them back.

Run as a program, it tries 500 corruptions: ``python tests/robustness/corruptions.py 500``.
"""

import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from robustbench_inv.api import evaluate
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.errors import InvbenchError
from robustbench_inv.reporting.html import write_report
from robustbench_inv.reporting.run_results import read_runs
from robustbench_inv.results.rates import cell_to_json

OLD_RUNS = Path(__file__).parent.parent / "data"


class Halves(nn.Module):
    """Class 1 where the mean is above one half."""

    bounds, num_classes = (0.0, 1.0), 2

    def forward(self, images):
        beyond = images.flatten(1).mean(1) - 0.5
        return torch.stack([-beyond, beyond], 1)


@dataclass(frozen=True)
class Steps:
    """One step towards the other class, of a random length."""

    kind: ClassVar = "fixed-budget"
    norms: ClassVar = frozenset({"linf"})
    shrink: float = 1.0

    def run(self, model, batch, threat, rng):
        draw = self.shrink * rng.uniform((1, 4, 4))
        towards = 1.0 - 2.0 * batch.labels[:, None, None, None]
        images = (batch.images + threat.budget.eps * draw * towards).clamp(0, 1)
        model(images)
        return images


def run(folder, existing="resume"):
    """Evaluate 30 samples with two attacks in blocks of 5, images kept."""
    images = torch.rand((30, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    data = ArrayDataset(images, (images.flatten(1).mean(1) > 0.5).long(), "halves")
    return evaluate(
        model=Halves(),
        attack=[Steps(), Steps(0.5)],
        threat="linf=0.05,0.2",
        dataset=data,
        out=folder,
        batch_size=5,
        keep_images=True,
        existing=existing,
        checks=False,
    )


def numbers(folder):
    """Return all that a report shows of a run, as text."""
    (result,) = read_runs([folder])
    cells = {
        cell.digest: [
            cell_to_json(cell),
            [record.to_json_line() for record in cell.records],
            {name: array.tolist() for name, array in (cell.read_images() or {}).items()},
        ]
        for cell in result.cells
    }
    return json.dumps(
        [cells, result.checks, list(result.pending.values())], sort_keys=True, default=str
    )


def flip_byte(data, draw):
    """Replace a byte by another."""
    at = draw.randrange(len(data))
    return data[:at] + bytes([data[at] ^ draw.randrange(1, 256)]) + data[at + 1 :]


def change_digit(data, draw):
    """Replace a digit by another."""
    at = draw.choice([i for i, byte in enumerate(data) if chr(byte).isdecimal()] or [0])
    return (
        data[:at]
        + draw.choice(b"0123456789".replace(data[at : at + 1], b"")).to_bytes()
        + data[at + 1 :]
    )


def drop_line(data, draw):
    """Drop a line."""
    lines = data.splitlines(keepends=True)
    del lines[draw.randrange(len(lines))]
    return b"".join(lines)


def double_line(data, draw):
    """Double a line."""
    lines = data.splitlines(keepends=True)
    at = draw.randrange(len(lines))
    return b"".join([*lines[:at], lines[at], *lines[at:]])


def swap_lines(data, draw):
    """Swap two lines."""
    lines = data.splitlines(keepends=True)
    one, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return b"".join(lines)


def cut(data, draw):
    """Cut the end off."""
    return data[: draw.randrange(len(data))]


def append_garbage(data, draw):
    """Append bytes."""
    return data + draw.choice([b"\x00\x00", b"{}\n", b"x", b'{"sample": 3', b"\n\n"])


STRANGE = (None, True, -1, 3, 1e308, 0.5, "", "x", "5", [], [1], {}, {"a": 1}, [[[]]], 10**30)


def places(value, path=()):
    """Yield the paths of all values inside a JSON value."""
    entries = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, entry in entries:
        yield (*path, key)
        yield from places(entry, (*path, key))


def change_type(data, draw):
    """Replace one value of a JSON file, or of one line of it, by one of another type, or remove it."""
    lines = data.splitlines(keepends=True)
    try:
        value, before, after = json.loads(data), b"", b""
    except ValueError:
        at = draw.randrange(len(lines))
        try:
            value, before, after = (
                json.loads(lines[at]),
                b"".join(lines[:at]),
                b"".join(lines[at + 1 :]),
            )
        except ValueError:
            return flip_byte(data, draw)
    *path, last = draw.choice(list(places(value)) or [("none",)])
    parent = value
    for key in path:
        parent = parent[key]
    if draw.random() < 0.2:
        del parent[last]
    else:
        parent[last] = draw.choice(STRANGE)
    return before + json.dumps(value).encode() + b"\n" + after


KINDS = (
    flip_byte,
    change_digit,
    drop_line,
    double_line,
    swap_lines,
    cut,
    append_garbage,
    change_type,
)


def corrupt(folder, draw):
    """Damage one file of a run, and return what was done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    path, kind = draw.choice(files), draw.choice(KINDS)
    what = draw.random()
    if what < 0.04:
        path.unlink()
        return f"{path.name} removed"
    if what < 0.08:
        twin = draw.choice([each for each in files if each.suffix == path.suffix])
        shutil.copyfile(twin, folder / "copy")
        (folder / "copy").replace(path)
        return f"{path.name} replaced by {twin.relative_to(folder)}"
    data = path.read_bytes()
    path.write_bytes(kind(data, draw) if data else b"x")
    return f"{path.name}: {kind.__name__}"


def outcome(action):
    """Return the numbers after an action, or the one line of its error."""
    try:
        return action(), ""
    except InvbenchError as error:
        if len(str(error).splitlines()) > 1:
            raise RuntimeError("an error of several lines") from error
        return None, str(error)


def try_corruption(whole, expected, folder, seed):
    """Damage a copy of a run, read, resume and repair it; return what was done and what went wrong."""
    draw = random.Random(seed)
    shutil.copytree(whole, folder)
    done = corrupt(folder, draw)
    faults = []
    found, refused = outcome(lambda: numbers(folder))
    unfinished = found and json.loads(found)[2]  # a cut at the end is like a kill: reports say so
    if not refused and not unfinished and without_images(found) != without_images(expected):
        faults.append("accepted with other numbers")
    found, error = outcome(lambda: run(folder) and numbers(folder))
    if not error and without_images(found) != without_images(expected):
        faults.append("resumed with other numbers")
    found, error = outcome(lambda: run(folder, "repair") and numbers(folder))
    if error or found != expected:
        faults.append(f"not repaired: {error or 'other numbers'}")
    shutil.rmtree(folder)
    return done, bool(refused), faults


def without_images(text):
    """Return numbers without images, which may be removed."""
    cells, *rest = json.loads(text)
    return [{digest: cell[:2] for digest, cell in cells.items()}, *rest]


def try_old_run(version, folder, seed):
    """Damage a run without digests, and write its report: it must work, or be refused with one line."""
    draw = random.Random(seed)
    shutil.copytree(OLD_RUNS / version, folder)
    files = sorted(path for path in folder.rglob("*.json*"))
    path = draw.choice(files)
    path.write_bytes(change_type(path.read_bytes(), draw))
    _, refused = outcome(lambda: write_report([folder], folder / "report.html", None))
    shutil.rmtree(folder)
    return f"{version}/{path.name}", bool(refused), []


def main(count, first=0):
    """Try corruptions; return the faults, by corruption."""
    torch.set_num_threads(1)
    counts, faults = Counter(), {}
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        run(whole)
        expected = numbers(whole)
        for seed in range(first, first + count):
            copy = Path(folder) / "copy"
            try:
                if seed % 5 == 4:
                    done, refused, wrong = try_old_run(f"run-v{1 + seed // 5 % 2}", copy, seed)
                else:
                    done, refused, wrong = try_corruption(whole, expected, copy, seed)
            except Exception as error:  # any other error is a fault
                done, refused, wrong = "?", False, [f"unexpected {type(error).__name__}: {error}"]
                shutil.rmtree(copy, ignore_errors=True)
            counts["refused" if refused else "same numbers"] += 1
            if wrong:
                faults[f"{seed} {done}"] = wrong
    return counts, faults


if __name__ == "__main__":
    total, found = main(*map(int, sys.argv[1:]))
    print(dict(total))
    for name, wrong in found.items():
        print(name, wrong)
    sys.exit(bool(found))
