"""The report as a file: everything is in it, it needs nothing else, and it is written whole or not at all."""

import re
import shutil
from base64 import b64decode
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from robustbench_inv.errors import BadResults, UnknownName
from robustbench_inv.reporting.html import write_report

VOID = {"meta", "link", "br", "path", "use", "image", "rect"}


class Reader(HTMLParser):
    """Collects attributes that load something, visible text, and how tags are nested."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.words, self.open, self.ids = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.ids += [named["id"]] if "id" in named else []
        self.loads += [
            v for k, v in attributes if k in {"src", "href", "xlink:href", "srcset", "action"}
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def test_everything_is_on_the_page(report):
    page = Reader(report.read_text())
    for word in (
        "mnist-cnn", "mnist-vib", "mnist-sdim", "spheres-misaligned", "deepfool", "spheres-invariance",
        "Worst case over attacks", "Each attack", "Distance to failure", "With reject option", "Models compared",
        "invbench evaluate --model mnist-cnn", "2.13.0", "d" * 64, "f" * 40 + " with uncommitted changes",
        "C7", "Five of 40 gradients are zero.", "WARN above 1 %", "1 FAIL", "1 WARN", "1 PASS",
    ):  # fmt: skip
        assert word in page.text, word
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))


def test_failures_are_visible(report):
    text = Reader(report.read_text()).text
    assert "1 sample without a valid adversarial input" in text
    assert "ValueError: no <b>luck</b>" in text


def test_nothing_is_loaded_from_anywhere(report):
    html = report.read_text()
    for link in Reader(html).loads:
        assert link.startswith(("#", "data:", "report_files/")), link
    assert not re.search(r"""url\((?!["']?(#|data:))""", html)
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_what_others_wrote_cannot_become_markup(report):
    html = report.read_text()
    assert "<script>margin" not in html
    assert "&lt;script&gt;margin&lt;/script&gt;" in html
    assert "<b>luck" not in html


def test_topics_with_a_failure_come_first_and_in_each_topic_what_fails_or_warns(report):
    html = report.read_text()
    checks = html[html.index('id="checks"') : html.index('id="failures"')]
    topics = checks.split("<h3>")[1:]
    grades = [re.findall(r'badge (fail|warn|pass)">[A-Z]', topic) for topic in topics]
    assert grades == [["fail", "pass"], ["warn"]]


def test_tables_and_figures_lie_beside_it(report):
    files = report.with_name("report_files")
    names = {path.name for path in files.rglob("*") if path.is_file()}
    assert {path.parent.name for path in files.rglob("*.svg")} == {"figures"}
    for kind in ("csv", "md", "tex"):
        assert f"worst-mnist5k-linf-misclassify.{kind}" in names
    contents = {path.name: path.read_bytes() for path in files.rglob("*.*")}
    assert contents == downloads_of(report)  # links survive if the page is sent alone


def downloads_of(page):
    """Return the files that a page contains as downloads."""
    found = re.findall(r'<a download="([^"]+)" href="data:[^;]+;base64,([^"]+)">', page.read_text())
    return {unescape(name): b64decode(content) for name, content in found}


def test_the_same_results_give_the_same_bytes(report, full_run, tmp_path):
    first, second = report, write_report([full_run], tmp_path)
    assert first.name == second.name == "report.html"
    files = sorted(
        path.relative_to(first.parent) for path in first.parent.rglob("*") if path.is_file()
    )
    assert files == sorted(
        p.relative_to(second.parent) for p in second.parent.rglob("*") if p.is_file()
    )
    for name in files:
        assert (first.parent / name).read_bytes() == (second.parent / name).read_bytes(), name


def test_a_second_report_replaces_the_first_and_its_files(report, writer, record, tmp_path):
    path = Path(shutil.copy(report, tmp_path / "report.html"))
    shutil.copytree(report.with_name("report_files"), tmp_path / "report_files")
    write_report([writer.cell([record(0)]).finish()], path)
    assert "mnist-vib" not in path.read_text()
    left = {p.name for p in path.with_name("report_files").rglob("*.csv")}
    assert left == {
        "worst-mnist5k-linf-misclassify.csv",
        "accuracy-mnist5k-linf-misclassify.csv",
        "cells.csv",
    }
    assert {p.name for p in path.parent.iterdir() if p.name.startswith(".")} == set()


def test_an_unfinished_run_says_so_at_the_top(writer, record, tmp_path):
    run = writer.cell([record(i) for i in range(3)], planned=list(range(1000))).finish()
    page = Reader(write_report([run], tmp_path / "r.html").read_text())
    banner = "Not finished: the numbers below are over the finished samples only."
    assert banner in page.text
    assert "pgd on mnist-cnn: 3 of 1,000 samples" in page.text
    assert page.text.index(banner) < page.text.index("At a glance")


def test_a_run_that_only_has_a_plan_is_reported_as_pending(writer, tmp_path):
    run = writer.cell([], started=False, planned=[0, 1]).finish()
    page = Reader(write_report([run], tmp_path / "r.html").read_text())
    assert "pgd on mnist-cnn: 0 of 2 samples" in page.text


def test_without_checks_the_page_says_so(writer, record, tmp_path):
    run = writer.cell([record(0)]).finish()
    (run / "checks.json").unlink()
    text = Reader(write_report([run], tmp_path / "r.html").read_text()).text
    assert "No checks were run" in text
    assert "None: no failure of the model, no crash" in text


def test_nothing_to_report_leaves_nothing_behind(writer, tmp_path):
    with pytest.raises(BadResults, match="no records to report"):
        write_report([writer.finish()], tmp_path / "new" / "r.html")
    assert not (tmp_path / "new").exists()


def test_a_wrong_definition_is_found_before_anything_is_read(tmp_path):
    with pytest.raises(UnknownName, match="nonsense"):
        write_report([tmp_path / "nowhere"], tmp_path / "r.html", "nonsense")


def test_a_place_that_cannot_be_written_is_one_line(writer, record, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadResults, match="cannot write") as caught:
        write_report([writer.cell([record(0)]).finish()], tmp_path / "file" / "r.html")
    assert "\n" not in str(caught.value)


def test_the_same_table_in_two_sections_is_written_twice(writer, record, tmp_path):
    section = '[[sections]]\ntitle = "S"\ntables = ["worst"]\nfigures = ["curves"]\nselect = {{ models = ["{}"] }}\n'
    mine = tmp_path / "mine.toml"
    mine.write_text(
        'version = 1\ntitle = "T"\n' + section.format("*-cnn") + section.format("*-vib")
    )
    run = writer.cell([record(0)]).cell([record(0)], model="mnist-vib").finish()
    page = Reader(write_report([run], tmp_path / "r.html", str(mine)).read_text())
    assert len(page.ids) == len(set(page.ids))
    tables = tmp_path / "r_files" / "tables"
    assert "mnist-cnn" in (tables / "worst-mnist5k-linf-misclassify.csv").read_text()
    assert "mnist-vib" in (tables / "worst-mnist5k-linf-misclassify-2.csv").read_text()


def test_demo_definition_shows_digits_and_spheres(full_run, tmp_path):
    text = Reader(write_report([full_run], tmp_path / "d.html", "demo").read_text()).text
    assert "Spheres: two ways to fail" in text
    assert "Digits: worst-case robust accuracy" in text
