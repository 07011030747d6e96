"""Evaluates misbehaving models and attacks in one process, with an honest one after each: ``misbehaviour.py OUT FILE NAME…``.

Writes one JSON line for each name to OUT: what the evaluation returned, and whether the process and the honest
evaluation are what they were before.
"""

import gc
import importlib
import json
import os
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import torch

from robustbench_inv.api import evaluate
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.errors import InvbenchError

SECONDS = 60.0
"""Time limit of an evaluation whose code does not hang: imports take long on a busy machine."""

HONEST = "misbehaving_models.py:Honest"


def sibling(name):
    """Import a file of this folder."""
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def dataset():
    """Return 12 images in three classes, two of them misclassified by ``Honest``."""
    weights = sibling("misbehaving_models").weights
    images = torch.rand((12, 1, 4, 4), generator=torch.Generator().manual_seed(1))
    labels = (images.flatten(1) @ weights().T).argmax(1)
    labels[:2] = (labels[:2] + 1) % 3
    return ArrayDataset(images, labels, "twelve")


def state():
    """Return what foreign code may change in this process."""
    return [
        str(Path.cwd()),
        dict(os.environ),
        list(sys.path),
        list(sys.argv),
        [each.closed for each in (sys.stdin, sys.stdout, sys.stderr)],
        [os.fstat(number).st_mode > 0 for number in (0, 1, 2)],
        [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)],
        [sys.getrecursionlimit(), gc.isenabled(), str(sys.gettrace()), str(sys.excepthook)],
        [(mask := os.umask(0), os.umask(mask))[0], len(warnings.filters), np.geterr()],
        [str(torch.get_default_dtype()), torch.is_grad_enabled(), torch.get_num_threads()],
        [torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")],
        [torch.are_deterministic_algorithms_enabled(), torch.is_anomaly_enabled()],
        str(torch.zeros(1).device),
        len(torch.nn.modules.module._global_forward_hooks),
    ]


def evaluated(out, model, attack, data, **options):
    """Return the outcome of one evaluation, its message, its records and the ids of its checks that fail."""
    try:
        run = evaluate(
            model=model,
            attack=attack,
            threat="linf=0.05,0.2",
            dataset=data,
            out=out,
            batch_size=5,
            **options,
        )
    except InvbenchError as error:
        return "refused", str(error), None, None
    records = [record.to_json_line() for record in run.records()]
    noted = (
        [v["id"] for v in run.to_json()[0]["checks"] if v["verdict"] == "FAIL"] if run.cells else []
    )
    statuses = {record.status for record in run.records()} - {"ok", "already_wrong"}
    if run.failures:
        return "failed", "; ".join(map(str, run.failures)), records, noted
    outcome = "noted" if noted or statuses else "done"
    return outcome, ", ".join([*noted, *statuses]), records, noted


def main(out, file, *names):
    """Evaluate each name of a file."""
    folder, data, module = Path(out).parent, dataset(), sibling(file.removesuffix(".py"))
    os.chdir(Path(__file__).parent)
    plain = (HONEST, "pgd:steps=3", data)
    _, _, honest, _ = evaluated(folder / "honest", *plain, checks=False)
    assert honest, "the honest model must be evaluated"
    before = state()
    with Path(out).open("a") as lines:
        for name in names:
            wanted = f"{file}:{name}"
            parts = (HONEST, wanted) if "attacks" in file else (wanted, "pgd:steps=3")
            kind = getattr(module, name)
            options = {
                "timeout": getattr(kind, "seconds", SECONDS),
                "checks": kind.outcome == "noted" and "models" in file,
            }
            outcome, message, records, _ = evaluated(folder / name, *parts, data, **options)
            if outcome == "done" and records == honest:
                outcome = "same"
            after = state()
            changed = [str(pair) for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
            again = evaluated(folder / f"{name}-honest", *plain, checks=False)[2]
            line = {"name": name, "outcome": outcome, "message": message, "changed": changed}
            lines.write(json.dumps({**line, "honest": again == honest}) + "\n")
            lines.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
