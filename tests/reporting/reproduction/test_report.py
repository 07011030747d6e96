"""The report of a reproduction: what stands on the page and beside it."""

import json
import re

import pytest

from robustbench_inv.reporting.reproduction.outcomes import read_outcomes
from robustbench_inv.reporting.reproduction.paper_report import build_paper_report


@pytest.fixture
def page(item, run, tmp_path):
    """The report's file."""
    path = tmp_path / "report" / "table-1.html"
    build_paper_report(item, [run]).write(path)
    return path


def words(path):
    return " ".join(re.sub(r"<[^>]+>", " ", path.read_text()).split())


def test_the_page_tells_published_ours_and_adaptive(page):
    text = words(page)
    for part in (
        "A paper, Table 1",
        "Somebody, 2020",
        "paper 40.0 80.0",
        "ours, as published 50.0 35.2–64.8 90.0",
        "difference +10.0 +10.0",
        "ours, adaptive 25.0",
        "JS beats CNN.",
        "F, white box",
    ):
        assert part in text, part
    assert "More than 10 points" not in text


def test_the_page_tells_what_is_explained_and_what_is_not(item, write_run, tmp_path):
    run = write_run({("mnist-cnn", "fgsm"): (30, 40), ("mnist-js:sigmoid=true", "fgsm"): (0, 0)})
    build_paper_report(item, [run.finish()]).write(tmp_path / "r.html")
    text = words(tmp_path / "r.html")
    assert "1 number Fewer epochs. F 0.2, JS" in text
    assert "not explained yet F 0.1, CNN; F 0.1, JS" in text
    assert "Not run: 2 of the cells have no records" in text


def test_doubtful_checks_stand_above_the_numbers(page):
    text = words(page)
    evidence = "FAIL C7 mnist-js:sigmoid=true Five of 40 gradients are zero."
    assert text.index(evidence) < text.index("What the paper claims")


def test_tables_figures_and_outcomes_lie_beside_it(page):
    files = {str(p.relative_to(page.parent)) for p in page.parent.rglob("*.*")}
    folder = "table-1_files"
    assert {f"{folder}/tables/comparison.{end}" for end in ("csv", "md", "tex")} <= files
    assert {f"{folder}/tables/claims.csv", f"{folder}/figures/panels-mnist.svg"} <= files
    assert len(read_outcomes(page.parent / folder / "outcomes.csv.gz")) == 40
    markdown = (page.parent / folder / "tables" / "comparison.md").read_text()
    assert "| F 0.1 | paper | 40.0 | 80.0 |" in markdown


def test_the_page_needs_nothing_else(page):
    html = page.read_text()
    for link in re.findall(r'(?:href|src)="([^"]+)"', html):
        assert link.startswith(("#", "data:", "table-1_files/")), link
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_the_same_records_give_the_same_bytes(item, run, tmp_path, page):
    again = tmp_path / "again" / "table-1.html"
    build_paper_report(item, [run]).write(again)
    assert again.read_bytes() == page.read_bytes()
    name = "table-1_files/outcomes.csv.gz"
    assert (again.parent / name).read_bytes() == (page.parent / name).read_bytes()


def test_the_figure_shows_both_lines_of_every_model(item, run):
    (picture,) = build_paper_report(item, [run]).pictures
    assert picture.name == "panels-mnist"
    for said in (
        "F, white box, CNN, as published: 10.0 % left at 0.2.",
        "F, white box, JS, adaptive: 0.0 % left at 0.2.",
    ):
        assert said in picture.alt
    assert "F, white box" in picture.svg


def test_the_figure_as_a_table_tells_where_half_has_fallen(item, run):
    found = build_paper_report(item, [run])
    (cnn, js) = [[cell.text for cell in row] for row in found.curves.rows]
    assert cnn == ["mnist", "F, white box", "CNN", "0.2", "0.1", "0.0", "0.0"]
    assert js == ["mnist", "F, white box", "JS", "> 0.2", "0.1", "0.0", "0.0"]
    frame = found.curves.frame
    assert list(frame.accuracy[:3]) == [1.0, 0.5, 0.1]
    assert len(frame) == 12


def test_json_has_what_a_program_needs(item, run):
    told = json.loads(json.dumps(build_paper_report(item, [run]).to_json()))
    assert told["item"] == "paper/table-1"
    assert [row["row"] for row in told["rows"][:3]] == ["Clean", "Clean", "F 0.1"]
    first = told["rows"][2]
    assert first["published"] == 0.4
    assert first["ours"]["successes"] == 20
    assert first["interval"] == [first["ours"]["low"], first["ours"]["high"]]
    assert first["adaptive"]["successes"] == 10
    assert told["unexplained"] == []
    assert [check["id"] for check in told["checks"]] == ["C7"]


def test_only_what_was_asked_for_is_counted(item, run):
    digests = [entry["digest"] for entry in json.loads((run / "plan.json").read_text())["cells"]]
    found = build_paper_report(item, [run], asked=dict.fromkeys(digests[:1], range(5)))
    cnn = found.entries[2]
    assert (cnn.ours.trials, cnn.ours.successes) == (5, 0)  # the first twenty fall
    assert len(found.evidence.missing) == 3


def test_a_cell_goes_by_the_name_that_its_plan_has(item, write_run):
    run = write_run({("mnist-cnn", "fgsm"): (20, 36)}).finish()
    (cell,) = run.glob("*/cell.json")
    cell.write_text(cell.read_text().replace('"name": "fgsm"', '"name": "an older name"'))
    assert build_paper_report(item, [run]).entries[2].ours.successes == 20
