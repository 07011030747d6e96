"""Contrast, labels, roles and structure of the pages, by axe-core, in light and dark."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
AXE = ROOT / ".axe" / "node_modules" / "axe-core" / "axe.min.js"
FETCH = "npm install --prefix .axe axe-core, as .ci/run does"

RUN = """async () => {
  const found = await axe.run(document, { resultTypes: ["violations"] });
  return found.violations.map(v => `${v.id}: ${v.nodes.length} × ${v.nodes[0].html.slice(0, 160)} | ${v.nodes[0].failureSummary}`);
}"""


@pytest.fixture(scope="module")
def axe():
    """The source of axe-core."""
    if not AXE.exists():
        pytest.skip(f"axe-core is not there: {FETCH}")
    return AXE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reproduction(tmp_path_factory):
    """A figure of a paper, drawn from its published results."""
    from robustbench_inv.cli.main import app

    page, stored = tmp_path_factory.mktemp("paper") / "a.html", ROOT / "reports" / "published"
    results = stored / "thesis" / "figure-3.3_files"
    arguments = ["reproduce", "thesis/figure-3.3", "--from", str(results), "--report", str(page)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    return page


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1400, "light"),
        pytest.param(390, "dark", marks=pytest.mark.slow),
        pytest.param(1400, "dark", marks=pytest.mark.slow),
        pytest.param(390, "light", marks=pytest.mark.slow),
        pytest.param(768, "light", marks=pytest.mark.slow),
        pytest.param(768, "dark", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", ["report", "comparison", "leaderboard", "model", "reproduction"])
def test_pages_are_accessible(browser, request, axe, name, width, scheme):
    path = request.getfixturevalue("leaderboard" if name == "model" else name)
    if name == "model":
        path = next((path.parent / "models").glob("*.html"))
    context = browser.new_context(
        offline=True, viewport={"width": width, "height": 900}, color_scheme=scheme
    )
    page = context.new_page()
    page.goto(path.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
    page.evaluate(axe)
    assert page.evaluate(RUN) == []
    context.close()
