"""The report in a real browser: no errors, no requests, tables and pictures that are really there."""

import re
from pathlib import Path

import pytest

from robustbench_inv.reporting.html import write_report


@pytest.fixture(scope="module")
def page(browser, report):
    """The report, opened once: tests that use it look at different parts of the page."""
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto(report.as_uri())
    yield page
    context.close()


SIZES = [(1400, "light"), (1400, "dark"), (390, "light"), (390, "dark")]
"""Width in pixels and colours of a screen; a page is opened on the last one, then the others are set."""


def opened_on_every_screen(browser, path):
    """Open a page with all its details, and yield it on every screen: no errors, no requests, none too wide."""
    (width, scheme), troubles, requests = SIZES[-1], [], []
    context = browser.new_context(
        offline=True, viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    page = context.new_page()
    page.on("console", lambda message: troubles.append(message.text))
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    for width, scheme in reversed(SIZES):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        dark = f"matchMedia('(prefers-color-scheme: dark)').matches === {str(scheme == 'dark').lower()}"
        assert page.evaluate(dark)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (width, scheme)
        yield page
    assert troubles == []
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]
    context.close()


def test_the_report_opens_cleanly(browser, report):
    for page in opened_on_every_screen(browser, report):
        _assert_all_visible(page, "table.data", at_least=10)
        _assert_all_visible(page, "figure svg", at_least=5)
        _assert_all_visible(page, "figure svg image", at_least=20)


def test_a_name_without_end_does_not_widen_the_page(browser, writer, record, tmp_path):
    run = writer.cell([record(0)], model="verylong_" * 30, attack="verylong_" * 30).finish()
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(write_report([run], tmp_path / "r.html").as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()


def test_pictures_are_described_and_tables_have_captions(page):
    labels = page.eval_on_selector_all("figure [role=img]", "all => all.map(e => e.ariaLabel)")
    assert labels
    assert all(len(label) > 20 for label in labels)
    captions = page.eval_on_selector_all(
        "table", "all => all.map(e => e.caption && e.caption.textContent)"
    )
    assert all(captions)


def test_a_heading_sorts_its_table(page):
    table = page.locator("table.sortable").first
    column = "all => all.map(row => parseFloat(row.cells[4].textContent))"
    heading = table.locator("thead th").nth(4)
    for direction in ("ascending", "descending"):
        heading.get_by_role("button").click()
        values = table.locator("tbody tr").evaluate_all(column)
        assert values == sorted(values, reverse=direction == "descending")
        assert heading.get_attribute("aria-sort") == direction


def test_samples_are_filtered_and_shown_side_by_side(page):
    everything = page.locator("#gallery-count").text_content()
    page.select_option("#gallery-filters select[name=model]", "mnist-vib")
    page.select_option("#gallery-filters select[name=outcome]", "attack succeeded")
    count = page.locator("#gallery-count").text_content()
    assert count != everything
    first = page.locator("article.sample").first
    captions = first.locator("figcaption").all_text_contents()
    assert captions[0] == "original"
    assert all("mnist-vib" in each for each in captions[1:])
    assert {each.split(" on ")[0] for each in captions[1:]} == {"fgsm", "pgd", "noise"}
    drawn = "canvas => new Uint8Array(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer).some(v => v > 0 && v < 255)"
    page.wait_for_function(f"({drawn})(document.querySelector('article.sample canvas'))")


SPLIT_WORDS = """() => [...document.querySelectorAll("figcaption")].flatMap(caption => {
  const walk = document.createTreeWalker(caption, NodeFilter.SHOW_TEXT), range = document.createRange();
  const broken = [];
  while (walk.nextNode())
    for (const word of walk.currentNode.data.matchAll(/[A-Za-z0-9]+/g)) {
      range.setStart(walk.currentNode, word.index);
      range.setEnd(walk.currentNode, word.index + word[0].length);
      if (range.getClientRects().length > 1) broken.push(word[0]);
    }
  return broken;
})"""


def test_captions_break_long_names_between_their_words(browser, report, tmp_path):
    long, copy = (
        '"attack": "foolbox:L2CarliniWagnerAttack:steps=1000,abort_early=False"',
        tmp_path / "r.html",
    )
    copy.write_text(report.read_text().replace('"attack": "fgsm"', long))
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(copy.as_uri())
    assert page.locator("figcaption", has_text="L2CarliniWagnerAttack").count()
    assert page.evaluate(SPLIT_WORDS) == []
    page.close()


def test_a_large_file_is_unpacked_as_it_is_saved(browser, writer, record, tmp_path, monkeypatch):
    monkeypatch.setattr("robustbench_inv.reporting.html.LARGEST_PLAIN", 100)
    path = write_report([writer.cell([record(0)]).finish()], tmp_path / "r.html")
    assert not re.search(r'href="(?!data:|#)', path.read_text())
    page = browser.new_page()
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    for _ in range(2):  # a second click saves it again
        with page.expect_download() as saved:
            page.locator("a[data-unpacked='cells.csv']").first.click()
        table = tmp_path / "r_files" / "tables" / "cells.csv"
        assert saved.value.suggested_filename == "cells.csv"
        assert Path(saved.value.path()).read_bytes() == table.read_bytes()
    page.close()


def test_commands_are_copied(page):
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    button = page.locator("button.copy[data-copy]").first
    text = button.get_attribute("data-copy")
    assert text.startswith("invbench ")
    button.click()
    copied = "text => navigator.clipboard.readText().then(found => found === text)"
    page.wait_for_function(copied, arg=text)


def _assert_all_visible(page, selector, at_least):
    sizes = page.eval_on_selector_all(
        selector,
        "all => all.map(e => { const r = e.getBoundingClientRect(); return [r.width, r.height] })",
    )
    assert len(sizes) >= at_least
    assert all(width > 5 and height > 5 for width, height in sizes)


@pytest.mark.parametrize("name", ["comparison", "leaderboard"])
def test_other_pages_open_cleanly(browser, request, name):
    screens = opened_on_every_screen(browser, request.getfixturevalue(name))
    assert len([*screens]) == len(SIZES)


def test_changed_samples_are_shown_under_both_models(browser, comparison):
    page = browser.new_page()
    page.goto(comparison.as_uri())
    assert page.locator("#gallery-count").text_content() == "15 samples, 30 results"
    first = page.locator("article.sample").first
    assert "gained in robust accuracy at ℓ∞ ≤ 0.2" in first.inner_text()
    captions = first.locator("figcaption").all_text_contents()
    assert captions[0] == "original"
    assert [each.partition(":")[0] for each in captions[1:]] == [
        "pgd on mnist-cnn (before)",
        "pgd on mnist-cnn (after)",
    ]
    page.close()


def test_a_leaderboard_is_sorted_and_filtered(browser, leaderboard):
    page = browser.new_page()
    page.goto(leaderboard.as_uri())
    ranked, apart = (page.locator("table.sortable").nth(i) for i in (0, 1))
    names = lambda: [each.strip() for each in ranked.locator("tbody tr:visible th").all_text_contents()]  # fmt: skip  # noqa: E731
    assert names() == ["a", "b", "d", "e", "f", "g"]
    assert apart.locator("tbody tr").count() == 1
    assert "do not publish" in apart.locator("tbody tr", has_text="c").inner_text()
    ranked.locator("thead th button").nth(2).click()
    assert names() == ["g", "f", "e", "d", "b", "a"]
    page.get_by_label("Filter rows").first.fill("87.5 standard")
    assert names() == ["b"]
    page.close()


def test_a_long_table_is_filtered_by_words(page):
    block = page.locator(".block", has=page.locator("table.sortable tbody tr:nth-child(6)")).first
    rows = block.locator("tbody tr")
    total = rows.count()
    block.get_by_label("Filter rows").fill("VIB pgd")
    shown = [row.inner_text() for row in rows.all() if row.is_visible()]
    assert 0 < len(shown) < total
    assert all("mnist-vib" in text and "pgd" in text for text in shown)
    assert block.get_by_role("status").text_content() == f"{len(shown)} of {total} rows"
    block.get_by_label("Filter rows").fill("")
    assert sum(row.is_visible() for row in rows.all()) == total


def test_references_are_on_the_page_and_can_be_copied(page):
    assert "mnist-cnn, mnist-vib" in page.locator("#references").inner_text()
    page.evaluate("document.querySelector('#references details').open = false")
    page.locator("#references summary").click()
    page.locator("#references button.copy").click()
    copied = "navigator.clipboard.readText().then(text => text.startsWith('@article{zhu2020guess'))"
    page.wait_for_function(copied)
