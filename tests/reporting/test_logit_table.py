"""Sheets of logits as tables: the answer of each row is marked, and gaps stay blank."""

from math import nan

from robustbench_inv.reporting.experiment_figures import logit_table
from robustbench_inv.results.experiment_result import LogitRow, LogitSheet


def rows_of(*lines):
    return logit_table(LogitSheet("s", "Logits", "c", ("0", "1"), lines), "mnist").rows


def test_the_largest_logit_is_marked_by_its_outcome():
    rows = rows_of(
        LogitRow("threshold", (1.0, 2.0)),
        LogitRow("right", (5.0, -2.25), accepted=True),
        LogitRow("detected", (-7.0, -3.0), accepted=False, wrong=True),
        LogitRow("undetected", (-7.0, 3.0), accepted=True, wrong=True),
    )
    assert [[cell.tone for cell in row[1:]] for row in rows] == [
        ["", ""],
        ["pass", ""],
        ["", "warn"],
        ["", "fail"],
    ]
    assert [cell.text for cell in rows[1]] == ["right", "5.0", "−2.2"]


def test_missing_logits_are_blank():
    ((_, *cells),) = rows_of(LogitRow("x: not reached", (nan, nan)))
    assert [cell.text for cell in cells] == ["—", "—"]


def test_the_table_holds_every_number_for_programs():
    table = logit_table(LogitSheet("s", "Logits", "c", ("0", "1"), (LogitRow("a", (1.0, 2.0)),)))
    assert (table.name, table.columns) == ("s", ("", "0", "1"))
    assert table.frame[["row", "column", "value"]].to_numpy().tolist() == [["a", "0", 1.0], ["a", "1", 2.0]]  # fmt: skip
