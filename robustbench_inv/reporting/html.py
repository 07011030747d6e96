"""Writes the report: one HTML file that needs nothing else, and its tables and figures beside it."""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from robustbench_inv.reporting.canvas import Picture, inline_svg
from robustbench_inv.reporting.cells import read_runs
from robustbench_inv.reporting.definitions import load_definition
from robustbench_inv.reporting.exports import to_csv, to_latex, to_markdown
from robustbench_inv.reporting.page import Page, build_page
from robustbench_inv.results.files import explain_failures, write_atomically

__all__ = ["render_page", "write_report"]

TEMPLATES = Path(__file__).parent / "templates"


def write_report(runs: Sequence[Path], out: Path, definition: str | None = None) -> Path:
    """Write the report of some runs, all of it or nothing.

    Args:
        runs: folders that ``evaluate`` wrote, or folders of such.
        out: the HTML file, or a folder for ``report.html``; tables and figures go to ``<stem>_files`` beside it.
        definition: name or file of a report definition; None for everything there is.

    Returns:
        The HTML file.

    Raises:
        BadResults: if there is nothing to report, or something cannot be read or written.
        UnknownName, BadCatalogue: for a definition that does not exist or has no meaning.
    """
    chosen = load_definition(definition)
    page = build_page(chosen, read_runs(runs, chosen.select))
    path = out if out.suffix in {".html", ".htm"} else out / "report.html"
    files = path.with_name(f"{path.stem}_files")
    html = render_page(page, files.name)
    with explain_failures(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace_folder(files, dict(_exports(page)))
    write_atomically(path, html.encode())
    return path


def render_page(page: Page, files: str) -> str:
    """Return the report as HTML.

    Args:
        page: what it says.
        files: name of the folder that holds its tables and figures.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = _svg
    return environment.get_template("report.html").render(page=page, files=files)


def _svg(picture: Picture) -> Markup:
    """The SVG comes from matplotlib, which escapes what it writes."""
    return Markup(inline_svg(picture.svg, f"{picture.name}-"))


def _exports(page: Page) -> Iterator[tuple[str, str]]:
    for table in page.tables:
        yield f"tables/{table.name}.csv", to_csv(table)
        yield f"tables/{table.name}.md", to_markdown(table)
        yield f"tables/{table.name}.tex", to_latex(table)
    for picture in page.pictures:
        yield f"figures/{picture.name}.svg", picture.svg


def _replace_folder(folder: Path, files: dict[str, str]) -> None:
    """Put a folder in place of the old one, so that no file of an older report stays behind."""
    fresh, old = (
        folder.with_name(f".{folder.name}.{os.getpid()}.{kind}") for kind in ("new", "old")
    )
    try:
        fresh.mkdir()
        for name, text in files.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            (fresh / name).write_text(text, encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
