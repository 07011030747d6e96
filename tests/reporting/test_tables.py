"""The tables of a report, by hand and in every format."""

import csv
import io
import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import robustbench_inv as rbi
from robustbench_inv.attacks.ensemble import Ensemble
from robustbench_inv.attacks.pgd import FGSM, PGD
from robustbench_inv.attacks.random_inputs import RandomPerturbation
from robustbench_inv.cli.run_tables import print_run
from robustbench_inv.data.arrays import ArrayDataset
from robustbench_inv.reporting.facts import quantile, summary_frame
from robustbench_inv.reporting.html import write_report
from robustbench_inv.reporting.run_results import read_runs
from robustbench_inv.reporting.statistics import clopper_pearson
from robustbench_inv.reporting.table_formats import (
    Table,
    TableCell,
    format_number,
    to_csv,
    to_latex,
    to_markdown,
)
from robustbench_inv.reporting.tables import TABLES, build_tables
from robustbench_inv.results.record import FAILURES, NOT_ATTACKED, STATUSES, ModelOutput
from robustbench_inv.testing.analytic_problems import linear_problem


def cells_of(run):
    return [cell for result in read_runs([run]) for cell in result.cells]


def shown(table, row, column):
    return table.rows[row][table.columns.index(column)].plain


def test_statuses_are_those_of_the_records():
    from typing import get_args

    from robustbench_inv.results.record import Status

    assert set(STATUSES) == set(get_args(Status))
    assert set(FAILURES) == set(STATUSES) - {"ok", *NOT_ATTACKED}


def test_summary_has_a_row_for_each_cell_and_eps(full_run):
    frame = summary_frame(cells_of(full_run))
    sweeps, unbounded = 7 * 3, 4
    assert len(frame) == sweeps + unbounded
    assert frame["eps"].isna().sum() == unbounded
    pgd = frame[(frame.model == "mnist-cnn") & (frame.attack == "pgd")].set_index("eps")
    assert pgd.robust_accuracy.to_dict() == {0.1: 32 / 40, 0.2: 16 / 40, 0.3: 0.0}
    # Wilson for 0 of 40: upper end z² / (n + z²), z = 1.959964
    assert pgd.robust_accuracy_low[0.3] == 0
    assert pgd.robust_accuracy_high[0.3] == pytest.approx(3.841459 / 43.841459, abs=1e-6)


def test_summary_counts_what_went_wrong(writer, record):
    records = [
        record(0, status="crash"), record(1, status="crash"), record(2, status="no_start"),
        record(3, status="numerics"), record(4, status="already_wrong"), record(5, broken_at=0.1),
        record(6, broken_at=0.0, status="model_failure", clean=ModelOutput(-1, None, None)),
    ]  # fmt: skip
    (row,) = summary_frame(cells_of(writer.cell(records).finish())).to_dict("records")
    counts = {status: row[status] for status in STATUSES}
    assert counts == {
        "ok": 1, "already_wrong": 1, "model_failure": 1, "no_start": 1, "numerics": 1, "crash": 2, "budget": 0,
    }  # fmt: skip
    assert row["clean_accuracy"] == pytest.approx(5 / 7)
    assert row["robust_accuracy"] == pytest.approx(4 / 7)
    assert row["oracle"] is None


def test_cells_table_marks_failures(writer, record):
    run = writer.cell([record(0, status="crash"), record(1)], planned=[0, 1, 2]).finish()
    (table,) = build_tables("cells", cells_of(run))
    crash = table.rows[0][table.columns.index("crash")]
    assert (crash.text, crash.tone) == ("1", "fail")
    assert table.rows[0][table.columns.index("numerics")].tone == ""
    assert shown(table, 0, "Samples") == "2 [of 3]"


def test_worst_table_by_hand(full_run):
    (table,) = build_tables("worst", cells_of(full_run))
    assert table.columns == ("Model", "Attacks", "Samples", "Clean", "≤ 0.1", "≤ 0.2", "≤ 0.3")
    assert shown(table, 0, "Model") == "mnist-cnn"
    assert shown(table, 0, "Attacks") == "noise, fgsm, pgd"
    assert [shown(table, 0, c).split()[0] for c in table.columns[3:]] == [
        "100.0",
        "80.0",
        "40.0",
        "0.0",
    ]
    assert set(table.frame.strongest_attack) == {"pgd"}


def test_the_interval_asked_for_is_shown(full_run):
    cells = cells_of(full_run)
    (wilson,), (exact,) = (
        build_tables("worst", cells),
        build_tables("worst", cells, clopper_pearson),
    )
    assert shown(wilson, 0, "≤ 0.3") == "0.0 [0.0–8.8]"
    assert shown(exact, 0, "≤ 0.3") == "0.0 [0.0–8.8]"  # 1 − 0.025^(1/40) = 8.81 %, Wilson 8.76 %
    assert exact.frame.worst_case_accuracy_high[2] == pytest.approx(1 - 0.025 ** (1 / 40))


def test_an_eps_that_was_not_run_stays_empty(writer, record):
    run = (
        writer.cell([record(0)], attack="fgsm", epsilons=[0.1])
        .cell([record(0)], attack="pgd", epsilons=[0.2])
        .finish()
    )
    (table,) = build_tables("accuracy", cells_of(run))
    assert [shown(table, i, "≤ 0.1")[0] for i in (0, 1)] == ["1", "—"]
    assert [shown(table, i, "≤ 0.2")[0] for i in (0, 1)] == ["—", "1"]


def test_distances_count_what_never_fell_as_infinite(writer, record):
    fell = [record(i, broken_at=float(i), distance=float(i)) for i in range(1, 5)]
    held = [record(i, distance=0.5) for i in range(5, 9)]
    wrong = [record(9, status="already_wrong")]
    about = {"attack": "deepfool", "kind": "minimum-norm", "norm": "l2", "epsilons": []}
    run = writer.cell([*fell, *held, *wrong], **about).finish()
    (cell,) = cells_of(run)
    assert cell.attacked_distances.tolist() == [1, 2, 3, 4, *[math.inf] * 4]
    (table,) = build_tables("distances", [cell])
    figures = [shown(table, 0, c) for c in ("Attacked", "1st quartile", "Median", "3rd quartile")]
    assert figures == ["8", "2", "∞ [1–∞]", "∞"]
    assert shown(table, 0, "Broken %").startswith("50.0")


@given(st.lists(st.floats(0, 9), min_size=1), st.floats(0.01, 1))
def test_quantile_is_numpys_inverted_distribution(values, q):
    assert quantile(values, q) == np.quantile(values, q, method="inverted_cdf")


def test_rejection_is_scored_from_both_sides(writer, record):
    def answered(value, accepted):
        return replace(
            value,
            clean=replace(value.clean, accepted=True),
            adversarial=replace(value.adversarial, accepted=accepted),
        )

    records = [
        answered(record(0), True), answered(record(1), False),  # right: one answered, one refused
        answered(record(2, broken_at=0.1), True), answered(record(3, broken_at=0.1), True),  # fooled
        answered(record(4, broken_at=0.1), False),  # wrong, and refused
    ]  # fmt: skip
    records[0] = replace(records[0], clean=replace(records[0].clean, accepted=False))
    table, score = build_tables("rejection", cells_of(writer.cell(records).finish()))
    assert score.name.startswith("detection")
    rates = table.frame.iloc[0]
    assert rates.false_rejection == pytest.approx(1 / 5)
    assert rates.accuracy_with_rejection == pytest.approx(1 / 5)
    assert rates.accuracy_on_accepted == pytest.approx(1 / 3)
    assert rates.undetected_errors == pytest.approx(2 / 5)
    assert rates.rejected_errors == pytest.approx(1 / 3)


def test_a_model_that_refuses_everything_looks_bad(writer, record):
    records = [
        replace(
            r,
            clean=replace(r.clean, accepted=False),
            adversarial=replace(r.adversarial, accepted=False),
        )
        for r in (record(i, broken_at=0.1) for i in range(10))
    ]
    table, score = build_tables("rejection", cells_of(writer.cell(records).finish()))
    assert score.name.startswith("detection")
    assert shown(table, 0, "Rejected errors").startswith("100.0")
    assert shown(table, 0, "Accuracy").startswith("0.0")
    assert shown(table, 0, "False rejection").startswith("100.0")
    assert shown(table, 0, "Clean accuracy").startswith("0.0")
    assert shown(table, 0, "Accuracy on accepted") == "—"


def test_models_that_never_refuse_have_no_rejection_table(writer, record):
    assert build_tables("rejection", cells_of(writer.cell([record(0)]).finish())) == []


def test_models_are_compared_on_the_same_samples(writer, sweep_records):
    run = (
        writer.cell(sweep_records(40, [10], [0.1]))
        .cell(sweep_records(40, [4], [0.1]), model="mnist-vib")
        .finish()
    )
    (table,) = build_tables("comparison", cells_of(run))
    fact = table.frame.iloc[0]
    assert (fact.share, fact.second_share) == (0.75, 0.9)
    assert fact.difference == pytest.approx(0.15)
    assert fact.p_mcnemar == pytest.approx(2 * 0.5**6)  # six discordant samples, all the same way
    assert 0 < fact.difference_low < 0.15 < fact.difference_high
    assert shown(table, 0, "p") == "0.031"


def test_models_on_other_samples_are_not_compared(writer, record):
    run = writer.cell([record(0)]).cell([record(1)], model="mnist-vib").finish()
    assert build_tables("comparison", cells_of(run)) == []


@pytest.mark.parametrize("kind", TABLES)
def test_csv_reads_back_as_the_frame_to_the_last_digit(full_run, kind):
    for table in build_tables(kind, cells_of(full_run)):
        back = list(csv.DictReader(io.StringIO(to_csv(table))))
        assert len(back) == len(table.frame)
        for found, meant in zip(back, table.frame.to_dict("records"), strict=True):
            assert list(found) == list(meant)
            assert all(_same(found[key], value) for key, value in meant.items())


@pytest.mark.parametrize("kind", TABLES)
def test_markdown_reads_back_as_the_rows(full_run, kind):
    for table in build_tables(kind, cells_of(full_run)):
        head, rule, *lines = [x for x in to_markdown(table).splitlines() if x.startswith("|")]
        assert _markdown_cells(head) == list(table.columns)
        assert all(re.fullmatch("-{3}:?", cell) for cell in _markdown_cells(rule))
        assert [_markdown_cells(line) for line in lines] == [
            [c.plain for c in row] for row in table.rows
        ]


@pytest.mark.parametrize("kind", TABLES)
def test_latex_has_every_row_and_is_balanced(full_run, kind):
    for table in build_tables(kind, cells_of(full_run)):
        text = to_latex(table)
        body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip().splitlines()
        assert len(body) == len(table.rows)
        assert all(len(re.split(r"(?<!\\)&", line)) == len(table.columns) for line in body)
        assert text.count(r"\begin{") == text.count(r"\end{") == 2
        assert text.isascii() or not re.search(r"[ℓ∞≤—–−·]", text)


def test_special_characters_survive():
    row = (TableCell(r"a|b_c 5 % & {x} \y #1 ~ ^ $", tone="name"), TableCell("∞"))
    table = Table("t", "Title_1", "100 % & more", pd.DataFrame(), ("Name", "Figure"), (row,))
    line = to_markdown(table).splitlines()[-1]
    assert _markdown_cells(line) == [cell.plain for cell in row]
    latex = to_latex(table)
    assert (
        r"a|b\_c 5 \% \& \{x\} \textbackslash{}y \#1 \textasciitilde{} \textasciicircum{} \$"
        in latex
    )
    assert r"$\infty$" in latex
    assert r"\caption{Title\_1. 100 \% \& more}" in latex


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.30000000000000004, "0.3"),
        (1234.5, "1,234"),
        (0.0, "0"),
        (-math.inf, "−∞"),
        (math.nan, "—"),
    ],
)
def test_numbers_are_short(value, text):
    assert format_number(value) == text


def _markdown_cells(line):
    line = line.replace("&lt;", "<")
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def _same(text, value):
    if isinstance(value, str):
        return text == value
    return text == "" if value is None or math.isnan(value) else float(text) == value


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A cascade, and an attack that is none, on a linear model of 40 samples; some fall to each member."""
    model, images, labels = linear_problem(40, 4, (1, 3, 3))
    labels = labels.clone()
    labels[0] = (labels[0] + 1) % 4  # wrong to begin with
    return rbi.evaluate(
        model=model,
        attack=[Ensemble((RandomPerturbation(draws=20), FGSM(), PGD(steps=5))), FGSM()],
        threat="linf=0.035",
        dataset=ArrayDataset(images, labels, "linear", num_classes=4),
        out=tmp_path_factory.mktemp("run"),
        checks=False,
    )


def cells_of_breakers(run):
    return [cell for result in read_runs([run.path]) for cell in result.cells]


def test_the_counts_are_those_of_the_records(run):
    cascade, other = run.to_json()
    told, kept = cascade["ensemble"], cascade["robust_accuracy"][-1]
    assert other["ensemble"] is None
    assert list(told["broken_by"]) == ["RandomPerturbation", "FGSM", "PGD"]
    assert (told["robust"], told["misclassified_clean"]) == (kept["successes"], 1)
    assert told["broken_during_search"] == 0
    assert sum(told["broken_by"].values()) + told["robust"] + 1 == 40
    assert min(*map(told["broken_by"].get, ("RandomPerturbation", "FGSM")), told["robust"]) > 0


def test_the_table_has_a_column_for_each_member(run):
    (table,) = build_tables("breakers", cells_of_breakers(run))
    told = run.to_json()[0]["ensemble"]
    numbers = (told["misclassified_clean"], *told["broken_by"].values(), told["robust"])
    counts = list(map(str, numbers))
    assert table.columns[4:] == (
        *("Misclassified clean", "RandomPerturbation", "FGSM", "PGD", "Robust"),
    )
    assert [[cell.text for cell in row[4:]] for row in table.rows] == [counts]
    assert table.frame["count"].sum() == 40
    assert build_tables("breakers", cells_of_breakers(run)[1:]) == []


def test_report_and_terminal_show_it(run, tmp_path, capsys):
    page = write_report([run.path], tmp_path).read_text()
    assert "Broken by: linear" in page
    print_run(run)
    left = run.to_json()[0]["ensemble"]["robust"]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "broken by" in line]
    assert line.startswith("ensemble on ")
    assert line.endswith(f"; misclassified before 1, robust {left}")


FORMULAS = ("=HYPERLINK(1)", "+1+1", "-2+3", "@SUM(1)", " =1", "\t=1")


@pytest.mark.parametrize("name", FORMULAS)
def test_no_cell_of_an_export_is_a_formula(name):
    row = (TableCell(name, tone="name"), TableCell("-0.5"))
    table = Table("t", name, name, pd.DataFrame({name: [name], "x": [-0.5]}), (name, "x"), (row,))
    head, body = csv.reader(io.StringIO(to_csv(table)))
    assert head[0].startswith("'")
    assert body[0].startswith("'")
    assert body[1] == "-0.5"
    lines = [x for x in to_markdown(table).splitlines() if x.startswith("|")]
    assert _markdown_cells(lines[0])[0].startswith("'")
    assert [cell[0] for cell in _markdown_cells(lines[2])] == ["'", "-"]


def test_no_cell_of_an_export_is_html_a_link_or_an_escape_sequence():
    name = "a<script>alert(1)</script>[x](javascript:1)\n| b |\x1b[31m\x9b"
    row = (TableCell(name, tone="name"), TableCell("1"))
    table = Table("t", name, name, pd.DataFrame({"n": [name]}), ("n", "x"), (row,))
    text = to_markdown(table)
    assert "<script" not in text
    assert "](" not in text
    assert len(text.splitlines()) == 5
    for written in (text, to_csv(table), to_latex(table)):
        assert "\x1b" not in written
        assert "[31m" not in written
        assert "\x9b" not in written
