"""``invbench reproduce`` of a figure that runs an experiment."""

import json
import re

import pytest

DEFINITION = """
version = 1
title = "layers"
summary = "layers"
paper = "a paper"
datasets = ["mnist", "fashion-mnist"]
samples = 100
[measurement]
by = "elimination-effect"
parameters.pairs = { C = ["{data}-c-dv-200", "{data}-c-js-200"] }
"""


@pytest.fixture
def item(tmp_path):
    path = tmp_path / "figure-9.toml"
    path.write_text(DEFINITION)
    return path


def test_runs_the_experiment_and_rebuilds_the_report_from_its_results(invbench, item, tmp_path):
    arguments = ("reproduce", item, "--dataset", "mnist5k", "--samples", 30, "--out", "run")
    done = invbench(*arguments, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    (part,) = found["parts"]
    assert [network["model"] for network in part["layers"]] == ["mnist-c-dv-200", "mnist-c-js-200"]
    assert all(n["mmd2"] > n["chance"] > 0 and n["sigma"] > 0 for n in part["layers"])
    assert (tmp_path / "run" / "measured-mnist.json.gz").is_file()
    assert (tmp_path / found["report"]).read_text().count("<svg") == 3
    again = invbench("reproduce", item, "--from", "run", "--report", "again.html")
    assert again.code == 0, again.err
    assert again.out.endswith("again.html\n")
    assert re.search(r"mnist-c-js-200 +yes ", again.out)


def test_a_dry_run_writes_nothing(invbench, item, tmp_path):
    done = invbench("reproduce", item, "--dry-run", "--json")
    pairs = [plan["parameters"]["pairs"]["C"] for plan in json.loads(done.out)]
    assert [before for before, _ in pairs] == ["mnist-c-dv-200", "fashion-mnist-c-dv-200"]
    assert not (tmp_path / "runs").exists()


def test_a_mistake_is_one_line(invbench, item):
    done = invbench("reproduce", item, "--dataset", "spheres")
    assert done.code == 2
    assert len(done.err.strip().splitlines()) == 1
    assert invbench("reproduce", item, "--from", ".").code == 2
