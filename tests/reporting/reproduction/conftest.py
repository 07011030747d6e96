"""A small item of a paper, and records of its cells with known numbers."""

import pandas as pd
import pytest

from robustbench_inv.catalogue.reproduction_file import read_reproduction
from robustbench_inv.reporting.reproduction.comparison import find_datasets
from robustbench_inv.reporting.reproduction.outcomes import ReproductionOutcomes, read_outcomes
from robustbench_inv.reporting.reproduction.reproduction_report import report_from_runs

ITEM = """
version = 1
title = "A paper, Table 1"
summary = "two models"
paper = "Somebody, 2020"
datasets = ["mnist"]
columns = [
  { name = "CNN", published = "{data}-cnn" },
  { name = "JS", published = "{data}-js:sigmoid=true", adaptive = "{data}-js" },
]
trials = [
  { name = "F", group = "linf", attack = "fgsm", threat = "linf={sweep}" },
  { name = "P", group = "linf", side = "adaptive", attack = "pgd", threat = "linf={sweep}" },
]
rows = [
  { name = "Clean", eps = 0, trial = "F" },
  { name = "F", eps = 0.1, trial = "F", worst_of = ["linf"] },
  { name = "F", eps = 0.2, trial = "F", worst_of = ["linf"] },
]
panels = [{ title = "F, white box", trial = "F", worst_of = ["linf"] }]
published = { "Clean" = [99, 98], "F 0.1" = [40, 80], "F 0.2" = [5, 70] }
sweeps = { sweep = [0.1, 0.2] }
claims = [
  { text = "JS beats CNN.", rows = ["F *"], left = ["JS"], right = ["CNN"] },
  { text = "Clean is as published.", rows = ["Clean"], left = ["CNN", "JS"], min_difference = -5 },
]
remarks = [{ rows = "F 0.2", columns = "J*", text = "Fewer epochs." }]
"""

EPS = [0.1, 0.2]


@pytest.fixture(scope="session")
def item(tmp_path_factory):
    """The item."""
    folder = tmp_path_factory.mktemp("items") / "paper"
    folder.mkdir()
    (folder / "table-1.toml").write_text(ITEM)
    return read_reproduction(folder / "table-1.toml")


@pytest.fixture
def write_run(run_writer, sweep_records, tmp_path):
    """Return a function that writes a run of 40 samples, with the number of broken samples at each eps by model and attack."""

    def write(broken, name="run-0123abcd", dataset="mnist", **about):
        run = run_writer(tmp_path / name)
        for (model, attack), counts in broken.items():
            records = sweep_records(40, counts, EPS)
            run.cell(records, model=model, attack=attack, epsilons=EPS, dataset=dataset, **about)
        return run

    return write


@pytest.fixture
def run(write_run):
    """All cells of the item: JS looks robust on its sigmoid scores, and is not."""
    broken = {
        ("mnist-cnn", "fgsm"): (20, 36),
        ("mnist-cnn", "pgd"): (30, 40),
        ("mnist-js:sigmoid=true", "fgsm"): (4, 8),
        ("mnist-js", "pgd"): (32, 40),
    }
    run = write_run(broken)
    return (
        run.verdict("FAIL", "mnist-js:sigmoid=true", id="C7").verdict("PASS", "mnist-cnn").finish()
    )


@pytest.fixture
def outcomes_of(tmp_path):
    """Return a function that returns the outcomes that the report of some runs stores."""

    def read(item, *runs):
        (part,) = report_from_runs(item, runs).parts
        path = tmp_path / "outcomes.csv.gz"
        path.write_bytes(part.files["outcomes.csv.gz"])
        frame = read_outcomes(path)
        return ReproductionOutcomes(item, frame, find_datasets(item, frame))

    return read


@pytest.fixture(scope="session")
def addresses():
    """The addresses of the item's cells."""
    return (
        "mnist-cnn | fgsm | linf=0.1,0.2",
        "mnist-cnn | pgd | linf=0.1,0.2",
        "mnist-js:sigmoid=true | fgsm | linf=0.1,0.2",
        "mnist-js | pgd | linf=0.1,0.2",
    )


@pytest.fixture(scope="session")
def outcome_frame(addresses):
    """Return a function that returns outcomes: for each cell, a list of the eps at which samples break."""

    def make(columns):
        rows = [("mnist", i, i % 10) for i in range(len(columns[0]))]
        index = pd.MultiIndex.from_tuples(rows, names=["dataset", "sample", "label"])
        return pd.DataFrame(dict(zip(addresses, columns, strict=False)), index=index)

    return make
