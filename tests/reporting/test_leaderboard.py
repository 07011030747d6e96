"""The leaderboard: protocols apart, ranks as intervals, doubtful numbers unranked, and one result a cell."""

import re
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_inv.errors import BadResults
from robustbench_inv.reporting.leaderboard import read_leaderboard
from robustbench_inv.reporting.statistics import rank_interval


@pytest.fixture
def run(writer, sweep_records):
    """Return a folder with an ensemble of attacks on three models: 30, 30 and 4 of 40 robust."""
    about = {"attack": "standard", "epsilons": [0.1]}
    for model, fall in (("a", 10), ("b", 10), ("c", 36)):
        writer.cell(sweep_records(40, [fall], [0.1]), model=model, **about)
        writer.verdict("PASS", model)
    return writer.cell(sweep_records(20, [1], [0.1]), model="d", **about).finish()


def test_models_on_other_samples_have_a_board_of_their_own(run):
    boards = read_leaderboard([run]).boards
    assert [[each.model for each in board.placings] for board in boards] == [["a", "b", "c"], ["d"]]
    assert [board.title.endswith(end) for board, end in zip(boards, ("40 samples", "20 samples"), strict=True)] == [True, True]  # fmt: skip


def test_a_rank_is_an_interval_and_doubtful_numbers_have_none(run, monkeypatch):
    monkeypatch.setattr("robustbench_inv.reporting.leaderboard._conclusion", lambda w, _: "do not publish" if w.model == "b" else "publishable")  # fmt: skip
    board = read_leaderboard([run]).boards[0]
    assert [(each.model, each.ranks) for each in board.placings] == [("a", (1, 1)), ("c", (2, 2)), ("b", None)]  # fmt: skip


@given(st.lists(st.lists(st.booleans(), min_size=30, max_size=30), min_size=1, max_size=5))
def test_intervals_of_ranks_contain_every_order_that_the_tests_allow(outcomes):
    robust = [np.array(each) for each in outcomes]
    ranks = rank_interval(robust)
    n = len(robust)
    assert all(1 <= low <= high <= n for low, high in ranks)
    assert min(low for low, _ in ranks) == 1
    for i, (low, _) in enumerate(ranks):
        surely_better = sum(high < low for _, high in ranks)
        assert surely_better <= low - 1, i


def test_the_same_cell_from_two_machines_counts_once_and_other_results_are_refused(run, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(run, again)
    assert len(read_leaderboard([run, again]).boards[0].placings) == 3
    records = next(again.glob("*/records.jsonl"))
    text = records.read_text()
    assert '"within_budget":true' in text or '"within_budget": true' in text
    records.write_text(re.sub(r'"within_budget": ?true', '"within_budget":false', text, count=1))
    with pytest.raises(BadResults, match="two results"):
        read_leaderboard([run, again])


def test_every_model_has_a_page_that_the_table_links_to(run, tmp_path):
    index = read_leaderboard([run]).write(tmp_path / "site")
    links = re.findall(r'href="(models/[^"]+)"', index.read_text())
    assert set(links) == {f"models/{name}.html" for name in "abcd"}
    for link in links:
        assert "Robustness to small changes" in (index.parent / link).read_text()


def test_nothing_to_rank_is_refused(writer, record):
    about = {"attack": "deepfool", "kind": "minimum-norm", "epsilons": []}
    with pytest.raises(BadResults, match="nothing to rank"):
        read_leaderboard([writer.cell([record(0)], **about).finish()])
