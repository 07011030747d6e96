"""``invbench envelope merge``: runs with and without kept images, growing files, and what cannot be identified."""

import json

import pytest

import robustbench_inv as rbi
from robustbench_inv.attacks.fast_minimum_norm import FMN
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.results.envelope import read_envelope
from robustbench_inv.testing.analytic_problems import linear_problem


@pytest.fixture
def run(tmp_path):
    """Return a function that runs FMN on a linear model with some steps, and returns its folder and the data."""
    model, x, y = linear_problem(6)
    data = ArrayDataset(x, y, "toy", model.bounds)

    def evaluate(steps, *, keep_images=True):
        out = tmp_path / f"run-{steps}-{keep_images}"
        rbi.evaluate(
            model,
            attack=FMN(steps=steps),
            threat="none:norm=l2",
            dataset=data,
            out=out,
            checks=False,
            keep_images=keep_images,
        )
        return out

    return evaluate


def test_runs_are_merged_and_the_file_grows(invbench, run, tmp_path):
    short, long, out = run(3), run(30), tmp_path / "envelope.json"
    first = json.loads(invbench("envelope", "merge", short, "--out", out, "--json").out)
    assert first["models"] == 1
    before = read_envelope(out)
    printed = invbench("envelope", "merge", long, "--out", out)
    assert printed.code == 0, printed.err
    (place,) = [place for place in before.best if place[1] == "l2"]
    after = read_envelope(out).best[place]
    assert len(after) == 6
    assert all(after[key] <= before.best[place][key] for key in before.best[place])
    again = json.loads(invbench("envelope", "merge", short, "--out", out, "--json").out)
    assert again["new"] == 0
    copy = json.loads(
        invbench("envelope", "merge", out, "--out", tmp_path / "b.json", "--json").out
    )
    assert copy["distances"] == again["distances"]


def test_images_that_cannot_be_identified_are_named(invbench, run, tmp_path):
    printed = invbench("envelope", "merge", run(3, keep_images=False), "--out", tmp_path / "e.json")
    assert printed.code in (1, 2)
    assert "evaluate with --keep-images" in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not (tmp_path / "e.json").exists()
