"""``invbench reproduce`` from end to end, on a paper with two small networks."""

import json

import pytest

NETWORK = """
import torch
from torch import nn

def build(width: int = 8, sigmoid: bool = False):
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10)]
    model = nn.Sequential(*layers, *[nn.Sigmoid()] * sigmoid)
    model.bounds = (0.0, 1.0)
    return model
"""

ITEM = """
version = 1
title = "A paper, Table 1"
summary = "two models"
paper = "Somebody, 2020"
datasets = ["mnist5k"]
samples = 20
columns = [
  { name = "CNN", published = "net.py:build:width=6" },
  { name = "JS", published = "net.py:build:sigmoid=true", adaptive = "net.py:build" },
]
trials = [
  { name = "F", group = "linf", attack = "foolbox:LinfFastGradientAttack", threat = "linf={linf}" },
  { name = "P", group = "linf", side = "adaptive", attack = "pgd:steps=2", threat = "linf={linf}", samples = 10 },
]
rows = [
  { name = "Clean", eps = 0, trial = "F" },
  { name = "F", eps = 0.1, trial = "F", worst_of = ["linf"] },
]
panels = [{ title = "FGSM", trial = "F", worst_of = ["linf"] }]
published = { "Clean" = [50, 50], "F 0.1" = [40, 80] }
sweeps = { linf = [0.1, 0.2] }
claims = [{ text = "JS beats CNN.", rows = ["F *"], left = ["JS"], right = ["CNN"] }]
"""


@pytest.fixture
def arguments(tmp_path):
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "net.py").write_text(NETWORK)
    (tmp_path / "paper" / "table-1.toml").write_text(ITEM)
    return "reproduce", "paper/table-1.toml", "--no-checks"


def test_runs_compares_and_resumes(invbench, arguments, tmp_path):
    done = invbench(*arguments, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    (part,) = found["parts"]
    assert done.err.count("done after") == 4
    assert [(row["row"], row["column"]) for row in part["numbers"]] == [
        ("Clean", "CNN"), ("Clean", "JS"), ("F 0.1", "CNN"), ("F 0.1", "JS"),
    ]  # fmt: skip
    assert [row["ours"]["trials"] for row in part["numbers"]] == [20] * 4
    assert [row["adaptive"]["trials"] for row in part["numbers"][2:]] == [10] * 2
    assert (found["missing_cells"], part["claims"][0]["claim"]) == ([], "JS beats CNN.")
    assert found["report"] == "runs/paper-table-1/table-1.html"
    assert (tmp_path / found["report"]).exists()
    files = {path: path.read_bytes() for path in tmp_path.rglob("records.jsonl")}
    again = invbench(*arguments)
    assert {path: path.read_bytes() for path in files} == files
    assert len(files) == 4
    assert "adaptive" in again.out
    assert "JS beats CNN. (paper: holds" in again.out
    drawn = invbench(*arguments, "--from", "runs/paper-table-1", "--report", "mine.html", "--json")
    assert {**json.loads(drawn.out), "report": 0} == {**found, "report": 0}
    assert (tmp_path / "mine_files" / "outcomes.csv.gz").exists()


def test_checks_are_run_by_default(invbench, arguments, tmp_path):
    done = invbench(*arguments[:2], "--rows", "Clean", "--samples", 10, "--json")
    found = json.loads(done.out)
    numbers = found["parts"][0]["numbers"]
    assert {(row["row"], row["ours"]["trials"]) for row in numbers} == {("Clean", 10)}
    verdicts = json.loads((tmp_path / "runs" / "paper-table-1" / "checks.json").read_text())[
        "verdicts"
    ]
    assert {"C6", "C7", "C14"} <= {verdict["id"] for verdict in verdicts}
    failed = [verdict for verdict in verdicts if verdict["verdict"] in ("WARN", "FAIL")]
    assert len(found["failed_checks"]) == len(failed)


def test_a_dry_run_writes_nothing(invbench, arguments, tmp_path):
    cells = json.loads(invbench(*arguments, "--dry-run", "--json", "--rows", "Clean").out)
    assert [cell["model"] for cell in cells] == [
        f"{tmp_path}/paper/net.py:build:width=6",
        f"{tmp_path}/paper/net.py:build:sigmoid=true",
    ]
    assert "nothing was run" in invbench(*arguments, "--dry-run").out
    assert not (tmp_path / "runs").exists()


def test_two_trials_that_are_one_cell_are_a_mistake(invbench, arguments, tmp_path):
    path = tmp_path / "paper" / "table-1.toml"
    text = path.read_text().replace("foolbox:LinfFastGradientAttack", "fgsm")
    path.write_text(text.replace("pgd:steps=2", "fgsm:loss=ce"))
    done = invbench(*arguments)
    assert done.code == 2
    assert "two trials are the same" in done.err


def test_without_a_name_lists_all_reproductions(invbench):
    names = [entry["name"] for entry in json.loads(invbench("reproduce", "--json").out)]
    assert {"guess-first/table-1", "guess-first/table-2", "guess-first/figure-3"} <= set(names)
    assert invbench("reproduce").out == invbench("list", "reproductions").out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("guess-first/tabel-1",), "did you mean guess-first/table-1"),
        (("guess-first/table-1", "--rows", "PGD x*"), "no row matches"),
        (("guess-first/table-2", "--dataset", "mnist5k"), "needs another data set"),
        (("guess-first/table-1", "--from", "nowhere"), "nowhere"),
        (("absent.toml",), "cannot be read"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(invbench, command, message):
    done = invbench("reproduce", *command)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert done.err.count("\n") == 1
