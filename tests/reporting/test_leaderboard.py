"""The leaderboard: protocols apart, ranks as intervals, doubtful numbers unranked, and one result a cell."""

import re
import shutil
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_inv.cli.main import main
from robustbench_inv.errors import BadResults
from robustbench_inv.reporting.leaderboard import read_leaderboard
from robustbench_inv.reporting.statistics import rank_interval

ABOUT = {"attack": "standard", "epsilons": [0.1], "members": 2}


@pytest.fixture
def run(writer, sweep_records):
    """Return a folder with an ensemble of attacks on three models: 30, 30 and 4 of 40 robust."""
    for model, fall in (("a", 10), ("b", 10), ("c", 36)):
        writer.cell(sweep_records(40, [fall], [0.1]), model=model, **ABOUT)
        writer.verdict("PASS", model)
    return writer.cell(sweep_records(20, [1], [0.1]), model="d", **ABOUT).finish()


def models(placings):
    return [(each.model, each.ranks) for each in placings]


def test_models_on_other_samples_have_a_board_of_their_own(run):
    first, second = read_leaderboard([run]).boards
    assert [each.model for each in first.ranked] == ["a", "b", "c"]
    assert [each.model for each in (*second.ranked, *second.apart)] == ["d"]
    assert first.protocol == "standard on 40 samples"


def test_other_attacks_and_other_budgets_are_other_protocols(writer, sweep_records):
    for model, attack, epsilons in (("a", "x", [0.1]), ("b", "y", [0.1]), ("c", "x", [0.1, 0.2])):
        fall = [10] * len(epsilons)
        records = sweep_records(40, fall, epsilons)
        writer.cell(records, model=model, **{**ABOUT, "attack": attack, "epsilons": epsilons})
    boards = read_leaderboard([writer.finish()]).boards
    assert len(boards) == len({board.name for board in boards}) == 3


def test_models_with_other_attacks_at_one_eps_are_not_compared(writer, sweep_records):
    """Both models were attacked by x and y, one of them by y at the larger eps alone."""
    for model, narrow in (("a", [0.2]), ("b", [0.1, 0.2])):
        for attack, epsilons in (("x", [0.1, 0.2]), ("y", narrow)):
            records = sweep_records(40, [10] * len(epsilons), epsilons)
            writer.cell(records, model=model, **{**ABOUT, "attack": attack, "epsilons": epsilons})
    boards = read_leaderboard([writer.finish()]).boards
    words = {board.protocol for board in boards}
    assert words == {"x at 0.1; x, y at 0.2 on 40 samples", "x, y on 40 samples"}


def test_a_rank_is_an_interval_and_doubtful_numbers_are_ranked_apart(writer, sweep_records):
    for model, fall in (("a", 10), ("b", 10), ("c", 36), ("d", 1), ("e", 38)):
        writer.cell(sweep_records(40, [fall], [0.1]), model=model, **ABOUT)
        writer.verdict("FAIL" if model in "de" else "PASS", model)
    (board,) = read_leaderboard([writer.finish()]).boards
    assert models(board.ranked) == [("a", (1, 2)), ("b", (1, 2)), ("c", (3, 3))]
    assert models(board.apart) == [("d", (1, 1)), ("e", (2, 2))]
    assert all("C6" in each.reason for each in board.apart)


def test_a_sweep_has_a_column_for_each_eps_and_ranks_where_a_model_falls_below_one_half(
    writer, sweep_records
):
    for model, fall in (("a", [2, 8, 39]), ("b", [4, 30, 39])):
        about = {**ABOUT, "epsilons": [0.1, 0.2, 0.3]}
        writer.cell(sweep_records(40, fall, [0.1, 0.2, 0.3]), model=model, **about)
    (board,) = read_leaderboard([writer.finish()]).boards
    assert board.levels[board.decisive] == "≤ 0.2"
    assert [cell.text for cell in board.apart[0].results] == ["95.0", "80.0", "2.5"]


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
    assert len(read_leaderboard([run, again]).boards[0].ranked) == 3
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


def test_pages_of_an_earlier_leaderboard_are_deleted_and_nothing_else(run, tmp_path):
    site, board = tmp_path / "site", read_leaderboard([run])
    models = board.write(site).parent / "models"
    (models / "mine.html").write_text("not ours")
    (models / "b.html").write_text("replaced by hand")
    shutil.copy(
        models / "a.html", models / "kept-report.html"
    )  # ours, but no page of the leaderboard
    replace(board, pages={"a": "models/a.html"}).write(site)
    left = {path.name for path in models.iterdir()}
    assert left == {"a.html", "a_files", "mine.html", "b.html", "b_files", "kept-report.html"}
    assert "d.html" in board.pages["d"]


def test_the_first_page_names_data_what_is_missing_and_models_on_no_board(
    writer, record, sweep_records, tmp_path
):
    writer.cell(sweep_records(40, [10], [0.1]), **ABOUT)
    about = {"kind": "minimum-norm", "norm": "l2", "epsilons": []}
    writer.cell([record(0)], attack="deepfool", model="far", **about)
    writer.cell([record(0)], model="later", started=False)
    board = read_leaderboard([writer.finish()], note="mnist-gbz takes an hour.")
    page = board.write(tmp_path / "site").read_text()
    for text in (
        "only mnist-lenet5-200 was trained on them",
        "mnist-gbz takes an hour.",
        "pgd on later: 0 of 1 samples",
    ):
        assert text in page
    assert board.unranked == {"far": "models/far.html"}
    assert '<a href="models/far.html">far</a>' in page


def test_nothing_to_rank_is_refused(writer, record):
    about = {"attack": "deepfool", "kind": "minimum-norm", "epsilons": []}
    with pytest.raises(BadResults, match="nothing to rank"):
        read_leaderboard([writer.cell([record(0)], **about).finish()])


def test_a_doubtful_oracle_leaves_the_board_of_small_changes_as_it_is(writer, sweep_records):
    for model in "ab":
        writer.cell(sweep_records(40, [10], [0.1]), model=model, **ABOUT)
        writer.verdict("PASS", model)
        about = {"kind": "invariance", "attack": "collision", "goal": "keep-decision"}
        writer.cell(sweep_records(40, [10], [0.1]), model=model, **about)
        subject = f"collision on {model}, linf=0.1, mnist5k, seed 0"
        writer.verdict("WARN", subject, id="C34", scope="cell")
    small, missed = read_leaderboard([writer.finish()]).boards
    assert (len(small.ranked), len(small.apart)) == (2, 0)
    assert (len(missed.ranked), len(missed.apart)) == (0, 2)
    assert all("C34" in each.reason for each in missed.apart)


def test_a_planned_cell_is_a_reservation_on_its_own_board_alone(writer, sweep_records):
    keeps = {"kind": "invariance", "attack": "collision", "goal": "keep-decision"}
    writer.cell(sweep_records(40, [10], [0.1]), model="a", **ABOUT)
    writer.cell(sweep_records(40, [10], [0.1]), model="a", **keeps)
    writer.cell([], model="a", planned=list(range(40)), **{**ABOUT, "attack": "square"})
    writer.verdict("PASS", "a")
    small, missed = read_leaderboard([writer.finish()]).boards
    assert "missing" in small.apart[0].reason
    assert [each.model for each in missed.ranked] == ["a"]


PUBLISHED = Path(__file__).parents[2] / "reports" / "published" / "leaderboard"


def test_the_published_board_has_the_models_of_its_file_and_a_page_for_each():
    models = tomllib.loads((PUBLISHED / "mnist5k.toml").read_text())["models"]
    index = (PUBLISHED / "index.html").read_text()
    links = re.findall(r'href="(models/[^"]+)"', index)
    assert {f"models/{model}.html" for model in models} == set(links)
    assert all((PUBLISHED / link).exists() for link in links)
    assert 'href="#' in index
    assert "http" not in index.replace("http://www.w3.org", "").replace("http-equiv", "")


def test_a_benchmark_file_is_run_and_the_page_names_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("bench.toml").write_text(
        'models = ["mnist-prototypes"]\ndatasets = ["mnist5k"]\nsamples = 10\n'
        '[[runs]]\nattack = "random-perturbation"\nthreat = "linf=0.1"\n'
    )
    monkeypatch.setattr(sys, "argv", ["invbench", "leaderboard", "bench.toml", "--out", "site"])
    with pytest.raises(SystemExit) as leaving:
        main()
    assert not leaving.value.code, capsys.readouterr().err
    assert (
        "<code>invbench leaderboard bench.toml --out site</code>"
        in Path("site/index.html").read_text()
    )
