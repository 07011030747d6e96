"""A benchmark of one section leaves the other sections of the page as they were measured."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
merge = runpy.run_path(str(ROOT / "benchmarks" / "page.py"))["merge"]

PAGE = "# Page\n\nold opening\n\n## A\n\n### part\n\nold\n\n## B\n\nkept\n"


def test_a_section_is_replaced_where_it_is_and_a_new_one_is_appended():
    merged = merge(PAGE, ["# Page\n\nnew opening\n", "\n## A\n\nnew", "## C\n\nadded\n\n"])
    assert merged == "# Page\n\nnew opening\n\n## A\n\nnew\n\n## B\n\nkept\n\n## C\n\nadded\n"


def test_the_page_itself_keeps_each_section():
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    again = merge(page, [])
    assert [line for line in again.splitlines() if line] == [x for x in page.splitlines() if x]
