"""Reports of experiments: published and measured numbers, expectations, image grids, and the page."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from robustbench_inv.catalogue.reproduction_file import read_reproduction
from robustbench_inv.errors import BadCatalogue, BadResults
from robustbench_inv.reporting.image_figures import draw_image_grid
from robustbench_inv.reporting.reproduction.reproduction_report import (
    find_results,
    report_from_results,
)
from robustbench_inv.reporting.table_formats import to_markdown
from robustbench_inv.results.experiment_result import (
    ExperimentResult,
    ImageGrid,
    MeasuredNumber,
    result_to_gzip,
)

N = 1000

DEFINITION = """
version = 1
title = "T"
summary = "s"
paper = "p"
datasets = ["mnist"]
columns = [{ name = "CE", published = "{data}-ce" }, { name = "iCE", published = "{data}-ice" }, { name = "other" }]
published = { "error" = [0.4, 30, 1.7], "never measured" = [1, 2, nan] }
[measurement]
by = "logits"
[[expectations]]
text = "par"
rows = ["error"]
columns = ["iCE"]
minus = "CE"
at_least = -1
at_most = 1
[[expectations]]
text = "small"
rows = ["error"]
columns = ["CE"]
at_most = 1
[[expectations]]
text = "between"
rows = ["error"]
columns = ["iCE"]
at_least = 20.2
[[expectations]]
text = "exact"
rows = ["distance"]
columns = ["CE"]
at_most = 0.001
[[expectations]]
text = "of nothing"
rows = ["absent"]
columns = ["CE"]
at_most = 1
[[remarks]]
rows = "err*"
columns = "iCE"
text = "because"
"""


def share(row, column, count, *, known=True):
    counted = np.zeros(N, dtype=bool)
    counted[:count] = True
    number = MeasuredNumber.of(row, column, counted)
    return number if known else MeasuredNumber(row, column, number.value, N)


def grid(**others):
    images = np.zeros((2, 3, 1, 4, 4), dtype=np.uint8)
    about = {"rows": ("up", "down"), "groups": (("left", 1), ("right", 2)), "images": images}
    return ImageGrid(**{"name": "g", "title": "grid", "caption": "c", **about, **others})


@pytest.fixture
def item(tmp_path):
    path = tmp_path / "table-9.toml"
    path.write_text(DEFINITION)
    return read_reproduction(path)


def report(item, folder, numbers, image_grids=()):
    folder.joinpath("measured-mnist.json.gz").write_bytes(
        result_to_gzip(
            ExperimentResult("mnist", N, {"mnist-ce": "d" * 64}, tuple(numbers), tuple(image_grids))
        )
    )
    return report_from_results(item, find_results([folder]))


def usual(known=True):
    return [
        share("error", "CE", 5, known=known),
        share("error", "iCE", 220, known=known),
        MeasuredNumber("distance", "CE", 1e-5),
    ]


def test_each_band_has_published_ours_and_difference(item, tmp_path):
    (part,) = report(item, tmp_path, usual()).parts
    text = to_markdown(part.numbers_table)
    assert "| error | paper | 0.40 | 30.00 | 1.70 |" in text
    assert "|  | ours | 0.50 [0.21–1.17] | 22.00 [19.54–24.67] | — |" in text
    assert "|  | difference | +0.10 | −8.00 | — |" in text
    assert "| never measured | paper | 1.00 | 2.00 | — |\n|  | ours | — | — | — |\n|" in text
    assert "| distance | ours | 1e-05 | — | — |" in text
    assert list(part.by_remark) == ["because"]
    assert (
        "| small [limit: at most 1] | holds [0.4 for CE, error] | undecided [0.5 (0.214 to 1.17) for CE, error] |"
        in to_markdown(part.claims_table)
    )


def test_an_expectation_about_a_column_that_is_left_out_is_not_measured(item, tmp_path):
    (part,) = report(item, tmp_path, [share("error", "iCE", 220)]).parts
    found = {finding.text: finding.status("published") for finding in part.findings}
    assert found == {
        "par": "not measured", "small": "not measured", "between": "undecided",
    }  # fmt: skip


def test_a_remarked_number_that_was_not_measured_is_not_reproduced(item, tmp_path):
    (part,) = report(item, tmp_path, [share("error", "CE", 5)]).parts
    text = to_markdown(part.numbers_table)
    assert "|  | ours | 0.50 [0.21–1.17] | not reproduced | — |" in text
    assert [entry.column for entry in part.by_remark["because"]] == ["iCE"]


def test_large_differences_without_remark_are_listed_last(item, tmp_path):
    numbers = [share("error", "CE", 300), share("error", "iCE", 850)]
    (part,) = report(item, tmp_path, numbers).parts
    assert [[entry.column for entry in entries] for entries in part.by_remark.values()] == [
        ["iCE"],
        ["CE"],
    ]
    assert list(part.by_remark) == ["because", ""]


def test_expectations_are_evaluated_on_the_papers_numbers_and_on_ours(item, tmp_path):
    (part,) = report(item, tmp_path, usual()).parts
    verdicts = {f.text: (f.status("paper"), f.status("published")) for f in part.findings}
    assert verdicts == {
        "par": ("does not hold", "does not hold"),
        "small": ("holds", "undecided"),  # the interval reaches to 1.16
        "between": ("holds", "undecided"),  # 19.5 to 24.7
        "exact": ("not measured", "holds"),
    }


def test_differences_on_known_trials_are_paired(item, tmp_path):
    same = [share("error", "CE", 300), share("error", "iCE", 301)]
    apart = [share("error", "CE", 300, known=False), share("error", "iCE", 301, known=False)]
    for numbers, expected in ((same, "holds"), (apart, "undecided")):
        (part,) = report(item, tmp_path, numbers).parts
        assert part.findings[0].status("published") == expected
    low, high = part.findings[0].to_json()["comparisons"][-1]["interval"]
    half = 1.96 * (2 * 0.3 * 0.7 / N) ** 0.5
    assert (low, high) == pytest.approx((0.001 - half, 0.001 + half), abs=5e-4)


def test_the_page_is_self_contained_and_rebuilt_from_the_stored_results(item, tmp_path):
    found = report(item, tmp_path, usual(), [grid()])
    page = tmp_path / "out" / "table-9.html"
    found.write(page)
    html = page.read_text()
    assert html.count("<svg") == 1
    assert "d" * 64 in html
    assert not re.findall(r'(?:src|href)="http', html)
    again = report_from_results(item, find_results([tmp_path / "out"]))
    assert again.to_json() == found.to_json()
    assert found.to_json()["parts"][0]["numbers"][0]["difference"] == pytest.approx(0.001)


def test_a_grid_names_rows_groups_and_columns():
    picture = draw_image_grid(grid(heads=("7", "8", "9"), words=((), ("a", "b", "c"))), "mnist")
    tree = ElementTree.fromstring(picture.svg)
    texts = {"".join(t.itertext()) for t in tree.iter("{http://www.w3.org/2000/svg}text")}
    assert texts == {"up", "down", "left", "right", "7", "8", "9", "a", "b", "c"}
    assert picture.name == "mnist-g"
    assert picture.svg.count("<image") == 6


def test_columns_of_a_grid_are_aligned_and_groups_are_apart():
    picture = draw_image_grid(grid())
    root = ElementTree.fromstring(picture.svg)
    images = root.iter("{http://www.w3.org/2000/svg}image")
    lefts = [float(re.findall(r"[-\d.]+", image.get("transform"))[-2]) for image in images]
    first, second, third = lefts[:3]
    assert lefts[3:] == lefts[:3]
    assert second - first > third - second > 0


def test_a_folder_without_results_is_an_error(tmp_path):
    with pytest.raises(BadResults, match="no results of an experiment"):
        find_results([tmp_path])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('columns = ["CE"]\nat_most = 1\n', 'columns = ["CEE"]\nat_most = 1\n', "unknown column"),
        ("at_most = 0.001", "", "needs a limit"),
        ("[0.4, 30, 1.7]", "[0.4, 30]", "number for each column"),
        ('by = "logits"', 'from = "logits"', "unknown key from"),
    ],
)
def test_mistakes_in_a_definition_are_explained(tmp_path, old, new, message):
    assert old in DEFINITION
    path = tmp_path / "table-9.toml"
    path.write_text(DEFINITION.replace(old, new, 1))
    with pytest.raises(BadCatalogue, match=message):
        read_reproduction(path)


def test_amounts_are_compared_as_amounts(tmp_path):
    path = tmp_path / "table-8.toml"
    path.write_text(
        DEFINITION.replace('"never measured" = [1, 2, nan]', '"millions" = [1.5, 2, 4]')
    )
    numbers = [
        *usual(),
        MeasuredNumber("millions", "CE", 1.25),
        MeasuredNumber("millions", "iCE", 2.0),
    ]
    part = report(read_reproduction(path), tmp_path, numbers).parts[0]
    entry = next(e for e in part.numbers if e.label == "millions, CE")
    assert (entry.published, entry.difference) == (1.5, -0.25)
    assert entry.needs_remark  # by a sixth
    assert not next(e for e in part.numbers if e.label == "millions, iCE").needs_remark
    band = next(band for band in part.bands if band.name == "millions")
    assert [[cell.text for cell in cells] for _, cells in band.lines] == [
        ["1.50", "2.00", "4.00"], ["1.25", "2", "—"], ["−0.25", "+0.00", "—"],
    ]  # fmt: skip


def test_means_over_trainings_have_their_spread_and_decide_by_it(item, tmp_path):
    """By Welch's t the difference of 21.2 points has an interval of ± 25.9, so that it may be 0."""
    numbers = [
        MeasuredNumber.mean_of("error", "CE", [0.004, 0.006]),
        MeasuredNumber.mean_of("error", "iCE", [0.30, 0.25, 0.10]),
        share("error, seed 0", "CE", 4),
    ]
    (part,) = report(item, tmp_path, numbers).parts
    text = to_markdown(part.numbers_table)
    assert "|  | ours | 0.50 [SD 0.14, n = 2] | 21.67 [SD 10.41, n = 3] | — |" in text
    assert "|  | difference | +0.10 | −8.33 | — |" in text
    assert "| error, seed 0 | ours | 0.40 [0.16–1.02] | — | — |" in text
    assert "SD" in part.numbers_table.caption
    entry = next(e for e in part.numbers if e.label == "error, iCE")
    assert entry.to_json()["ours"] == {"value": 0.65 / 3, "trainings": [0.3, 0.25, 0.1]}
    assert "sd" in part.numbers_table.frame
    claims = to_markdown(part.claims_table)
    assert "| between [limit: at least 20.2] | holds [30 for iCE, error] | undecided" in claims
    (par,) = (line for line in claims.splitlines() if line.startswith("| par "))
    assert par.endswith("undecided [21.2 (−4.68 to 47) for iCE − CE, error] |")
