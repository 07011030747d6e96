"""Times two real cases: a network of another package on photographs, and an adversarially trained one on CIFAR-10.

Files of docs/guides/real-cases.md are written into a temporary folder and used as they are. Cases whose packages or data are
not installed are left out.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

from timing import one_thread

import robustbench_inv as rbi
from robustbench_inv.errors import InvbenchError

__all__ = ["real_cases_section"]

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "real-cases.md"

ATTACKS = ("pgd", "foolbox:LinfPGD:steps=40", "standard")


@dataclass(frozen=True)
class Case:
    """A model on a data set under one budget.

    Args:
        title: of the table's rows.
        model: reference of the model.
        dataset: reference of the data.
        threat: the budget.
        samples: number of samples.
    """

    title: str
    model: str
    dataset: str
    threat: str
    samples: int


PHOTOGRAPHS = Case(
    "EfficientNet-Lite0, 8 photographs of ImageNet",
    "lite0.py:Lite0",
    "folder:photos,size=224,classes=classes.txt",
    "linf=0.5/255",
    8,
)
CIFAR = Case(
    "`cifar10-resnet10-at`, 50 images of CIFAR-10",
    "cifar10-resnet10-at",
    "cifar10",
    "linf=8/255",
    50,
)


def real_cases_section() -> str:
    """Return the benchmark's text for the page."""
    with one_thread(), TemporaryDirectory() as folder, chdir(folder):
        rows = [row for case in (PHOTOGRAPHS, CIFAR) for row in _rows(case)]
    return "\n".join([_OPENING, *rows, ""])


def _rows(case: Case) -> Iterator[str]:
    """Yield a row for each attack; none for a case that cannot be loaded here."""
    try:
        if case is PHOTOGRAPHS:
            _write_guide()
        rbi.load_dataset(case.dataset)
        rbi.load_model(case.model)
    except (InvbenchError, ImportError, subprocess.CalledProcessError):
        return
    options: dict[str, Any] = {
        "model": case.model,
        "attack": ATTACKS,
        "dataset": case.dataset,
        "threat": case.threat,
        "samples": case.samples,
        "out": case.model.replace(":", "-"),
    }
    for attack in ATTACKS:
        yield _row(case, options | {"attack": attack})
    start = process_time()
    rbi.evaluate(**options, checks=True)  # the records are there: this makes the checks
    yield f"| {case.title} | checks of the three | | | | {process_time() - start:.1f} s |"


def _write_guide() -> None:
    """Write the files of the guide into the current folder, and sort the photographs."""
    for name, text in re.findall(
        r"^`([\w.]+)`:\n\n```python\n(.*?)^```", PAGE.read_text(), re.M | re.S
    ):
        Path(name).write_text(text)
    subprocess.run([sys.executable, "photos.py"], check=True)


def _row(case: Case, options: dict[str, Any]) -> str:
    start = process_time()
    run = rbi.evaluate(**options, checks=False)
    seconds = process_time() - start
    (summary,) = run.summary()
    clean, robust = summary.clean_accuracy, summary.robust_accuracy[0]
    return (
        f"| {case.title} | `{options['attack']}` | {case.threat} | {100 * clean.value:.1f} | "
        f"{100 * robust.value:.1f} | {seconds:.1f} s |"
    )


_OPENING = """
## Two real cases

The models and data of [the guide](guides/real-cases.md) on few samples, loading included; one process, one thread, processor
time. PGD has 40 steps in each library. Cases whose packages or data are not installed are left out.

| case | attack | budget | clean accuracy, % | robust accuracy, % | time |
|---|---|---|---|---|---|"""
