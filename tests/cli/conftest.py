"""Runs the command line in this process."""

import sys
from typing import NamedTuple

import pytest

from robustbench_inv.api import evaluate
from robustbench_inv.cli.main import main
from robustbench_inv.testing.analytic_problems import (
    FirstRowClassifier,
    ShiftBodyAttack,
    column_images,
)


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def invbench(monkeypatch, capsys, tmp_path):
    """Return a function that runs ``invbench`` with some arguments in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("INVBENCH_TRACEBACK", raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["invbench", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            main()
        printed = capsys.readouterr()
        return Done(leaving.value.code or 0, printed.out, printed.err)

    return run


@pytest.fixture
def labelled(tmp_path):
    """Return a function that evaluates one invariance cell with images, on images that one row decides."""

    def run(dataset):
        labels = tmp_path / "first.csv"
        labels.write_text("image,human_label\nff,1\n")
        return evaluate(
            model=FirstRowClassifier(),
            attack=ShiftBodyAttack(2),
            threat=f"none:oracle={labels}",
            dataset=dataset,
            keep_images=True,
            checks=False,
            out=tmp_path / "run",
        )

    return run


@pytest.fixture
def labelled_run(labelled):
    """The folder of such a run."""
    return labelled(column_images()).path
