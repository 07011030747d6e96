"""The report of a reproduction: its page, and the files beside it."""

import json
import re

import pytest

from robustbench_inv.reporting.reproduction.outcomes import read_outcomes
from robustbench_inv.reporting.reproduction.reproduction_report import report_from_runs
from robustbench_inv.results.summary import Rate


@pytest.fixture
def page(item, run, tmp_path):
    """The report's file."""
    path = tmp_path / "report" / "table-1.html"
    report_from_runs(item, [run]).write(path)
    return path


def words(path):
    return " ".join(re.sub(r"<[^>]+>", " ", path.read_text()).split())


def test_the_page_shows_published_ours_and_adaptive(page):
    text = words(page)
    for part in (
        "A paper, Table 1",
        "Somebody, 2020",
        "paper 40.0 80.0",
        "ours 50.0 35.2–64.8 90.0",
        "difference +10.0 +10.0",
        "adaptive 25.0",
        "JS beats CNN.",
        "F, white box",
    ):
        assert part in text, part
    assert "no remark yet" not in text


def test_the_page_lists_numbers_with_and_without_remark(item, write_run, tmp_path):
    run = write_run({("mnist-cnn", "fgsm"): (30, 40), ("mnist-js:sigmoid=true", "fgsm"): (0, 0)})
    report_from_runs(item, [run.finish()]).write(tmp_path / "r.html")
    text = words(tmp_path / "r.html")
    assert "1 number Fewer epochs. F 0.2, JS" in text
    assert "no remark yet F 0.1, CNN; F 0.1, JS" in text
    assert "Not run: 2 of the cells have no records" in text


def test_failed_checks_come_before_the_numbers(page):
    text = words(page)
    evidence = "FAIL C7 mnist-js:sigmoid=true Five of 40 gradients are zero."
    assert text.index(evidence) < text.index("Claims")


def test_tables_figures_and_outcomes_are_stored_beside_the_page(page):
    files = {str(p.relative_to(page.parent)) for p in page.parent.rglob("*.*")}
    folder = "table-1_files"
    assert {f"{folder}/tables/numbers.{end}" for end in ("csv", "md", "tex")} <= files
    assert {f"{folder}/tables/claims.csv", f"{folder}/figures/panels-mnist.svg"} <= files
    assert len(read_outcomes(page.parent / folder / "outcomes.csv.gz")) == 40
    markdown = (page.parent / folder / "tables" / "numbers.md").read_text()
    assert "| F 0.1 | paper | 40.0 | 80.0 |" in markdown


def test_the_page_needs_nothing_else(page):
    html = page.read_text()
    for link in re.findall(r'(?:href|src)="([^"]+)"', html):
        assert link.startswith(("#", "data:", "table-1_files/")), link
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_the_same_records_give_the_same_bytes(item, run, tmp_path, page):
    again = tmp_path / "again" / "table-1.html"
    report_from_runs(item, [run]).write(again)
    assert again.read_bytes() == page.read_bytes()
    name = "table-1_files/outcomes.csv.gz"
    assert (again.parent / name).read_bytes() == (page.parent / name).read_bytes()


def test_the_figure_shows_both_curves_of_every_model(item, run):
    (picture,) = report_from_runs(item, [run]).parts[0].figures
    assert picture.name == "panels-mnist"
    for text in (
        "F, white box, CNN, as published: 10.0 % at 0.2.",
        "F, white box, JS, adaptive: 0.0 % at 0.2.",
    ):
        assert text in picture.alt
    assert "F, white box" in picture.svg


def test_a_table_lists_where_curves_fall_below_one_half(item, run):
    (curves,) = report_from_runs(item, [run]).parts[0].details
    (cnn, js) = [[cell.text for cell in row] for row in curves.rows]
    assert cnn == ["mnist", "F, white box", "CNN", "0.2", "0.1", "0.0", "0.0"]
    assert js == ["mnist", "F, white box", "JS", "> 0.2", "0.1", "0.0", "0.0"]
    frame = curves.frame
    assert list(frame.accuracy[:3]) == [1.0, 0.5, 0.1]
    assert len(frame) == 12


def test_json_has_the_numbers_claims_and_checks(item, run):
    found = json.loads(json.dumps(report_from_runs(item, [run]).to_json()))
    assert found["item"] == "paper/table-1"
    (part,) = found["parts"]
    assert [number["row"] for number in part["numbers"][:3]] == ["Clean", "Clean", "F 0.1"]
    first = part["numbers"][2]
    assert first["published"] == 0.4
    assert first["ours"]["successes"] == 20
    assert first["ours"]["low"] < first["ours"]["value"] < first["ours"]["high"]
    assert first["adaptive"]["successes"] == 10
    assert part["without_remark"] == []
    assert [check["id"] for check in found["failed_checks"]] == ["C7"]


def test_only_requested_samples_are_counted(item, run):
    digests = [entry["digest"] for entry in json.loads((run / "plan.json").read_text())["cells"]]
    found = report_from_runs(item, [run], requested=dict.fromkeys(digests[:1], range(5)))
    cnn = found.parts[0].numbers[2]
    assert cnn.ours.rate == Rate(0, 5)  # the attack breaks the first twenty
    assert len(found.missing) == 3


def test_the_plan_gives_the_address_of_a_cell(item, write_run):
    run = write_run({("mnist-cnn", "fgsm"): (20, 36)}).finish()
    (cell,) = run.glob("*/cell.json")
    cell.write_text(cell.read_text().replace('"name": "fgsm"', '"name": "an older name"'))
    assert report_from_runs(item, [run]).parts[0].numbers[2].ours.rate.successes == 20


def test_a_claim_without_our_numbers_is_not_measured(item, write_run, tmp_path):
    run = write_run({("mnist-cnn", "pgd"): (30, 40)}).finish()
    report = report_from_runs(item, [run])
    report.write(tmp_path / "r.html")
    assert [f.status("published") for f in report.parts[0].findings] == ["not measured"] * 2
    assert "Every comparison" not in words(tmp_path / "r.html")
