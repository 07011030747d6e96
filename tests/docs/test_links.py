"""Links of the documentation lead to files and headings that exist, and the navigation lists every page."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NAMES = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "attacks/example_plugin/README.md",
)
PAGES = [*(ROOT / name for name in NAMES), *sorted(DOCS.rglob("*.md"))]
SITE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
SITE |= {"SECURITY.md": "security.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the site that lie outside docs/, as in tools/site.py."""

FENCE = re.compile(r"^ *```.*?^ *```$", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")
EXTERNAL = re.compile(r"https://[a-z0-9.-]+\.[a-z]{2,}(/[\w./~%+:?=&#,()-]*)?")


def prose(page):
    """Return a page without its code."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text()))


def anchors(page):
    """Return the anchors of a page's headings, as forges and the site make them."""
    if page.suffix != ".md":
        return set(re.findall(r'id="([^"]+)"', page.read_text()))
    text = FENCE.sub("", page.read_text())
    found = re.findall(r'<a id="([^"]+)">', text)
    for heading in re.findall(r"^#+ (.*)$", text, re.M):
        own = re.search(r"\{ ?#([\w-]+) ?\}$", heading)
        found.append(own[1] if own else slug(heading))
    return set(found)


def slug(heading):
    """Return a heading's anchor: lower case, letters, digits and hyphens, one hyphen for each space."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", link):
            assert EXTERNAL.fullmatch(link), (
                f"{link} is not the address of a page (https://HOST/PATH)"
            )
            continue
        target, _, anchor = link.partition("#")
        place = (page.parent / target).resolve() if target else page
        assert place.exists(), f"{link}: no such file"
        assert place.is_relative_to(ROOT), f"{link} leaves the repository"
        if anchor:
            assert anchor in anchors(place), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_addresses_in_sentences_have_their_form(page):
    for address in re.findall(r"(?<![\w`(])https?://[^\s)>\]|`]+", prose(page)):
        assert EXTERNAL.fullmatch(address.rstrip(".,;")), address


def navigation():
    """Return the pages that mkdocs.yml lists, folders expanded."""
    text = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    pages = re.findall(r"- ([\w./-]+)$", text, re.M)
    for entry in pages:
        if entry.endswith("/"):
            yield from (DOCS / entry).glob("*.md")
        else:
            outside = next((name for name, page in SITE.items() if page == entry), None)
            yield ROOT / outside if outside else DOCS / entry


def test_the_navigation_lists_every_page_once():
    listed = list(navigation())
    assert sorted(listed) == sorted({*(ROOT / name for name in SITE), *DOCS.rglob("*.md")})


def test_anchors_are_those_of_forges():
    assert slug("The verdict on a model") == "the-verdict-on-a-model"
    assert (
        slug("C6: `gradients` do not vanish, for each loss")
        == "c6-gradients-do-not-vanish-for-each-loss"
    )
    assert slug("Validity checks, C1–C47") == "validity-checks-c1c47"
