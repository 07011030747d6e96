"""Writes the report: one HTML file that needs nothing else, and its tables and figures beside it."""

import gzip
import os
import shutil
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import CodeType
from typing import cast

from jinja2 import BytecodeCache, Environment, FileSystemLoader, StrictUndefined
from jinja2.bccache import Bucket
from markupsafe import Markup

from robustbench_inv.arguments import check_file, check_path, printable
from robustbench_inv.checks.audit_verdict import Conclusion
from robustbench_inv.errors import BadParameter
from robustbench_inv.reporting.canvas import ReportFigure, inline_svg
from robustbench_inv.reporting.definitions import load_definition
from robustbench_inv.reporting.exports import conclusions_of
from robustbench_inv.reporting.page import build_page
from robustbench_inv.reporting.run_results import read_runs
from robustbench_inv.reporting.table_formats import Table, to_csv, to_latex, to_markdown
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.files import explain_write_errors, write_atomically

__all__ = [
    "GENERATOR",
    "export_files",
    "files_of",
    "page_environment",
    "read_conclusions",
    "render_page",
    "write_page",
    "write_report",
]

TEMPLATES = Path(__file__).parent / "templates"
GENERATOR = '<meta name="generator" content="robustbench-inv">'
"""A line of each page that this program makes."""


def write_report(
    runs: Sequence[str | Path] | str | Path, out: str | Path, definition: str | None = None
) -> Path:
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
    folders = [check_path(run, "run") for run in _as_paths(runs)]
    out = check_path(out, "report")
    chosen = load_definition(definition)
    path = out if out.suffix in {".html", ".htm"} else out / "report.html"
    check_file(path, "report")
    page = build_page(chosen, read_runs(folders, chosen.select))
    files = export_files(page.tables, page.pictures)
    html = render_page("report.html", files, page=page, folder=files_of(path).name)
    write_page(path, html, files)
    return path


def read_conclusions(
    runs: Sequence[str | Path], definition: str | None = None
) -> tuple[list[FinishedCell], list[Conclusion]]:
    """Return the cells of a report, and whether the numbers of each model can be published."""
    found = read_runs([check_path(run, "run") for run in runs], load_definition(definition).select)
    cells = [cell for run in found for cell in run.cells]
    return cells, conclusions_of(*found)


def _as_paths(runs: object) -> list[object]:
    """Return one run or several as a list."""
    if isinstance(runs, str | os.PathLike):
        return [runs]
    if not isinstance(runs, Iterable) or not (paths := list(runs)):
        raise BadParameter("no results to report on", got=runs, expected="one or more folders")
    return paths


def files_of(path: Path) -> Path:
    """Return the folder of the tables and figures of an HTML file."""
    return path.with_name(f"{path.stem}_files")


def render_page(template: str, files: Mapping[str, bytes], **content: object) -> str:
    """Return a template filled with what it shows.

    Args:
        template: its name.
        files: tables and figures by name, which the page contains as downloads.
        content: by name; ``page`` and ``folder``, the name of the folder that holds the files as well.
    """
    return printable(page_environment(files).get_template(template).render(**content))


def page_environment(files: Mapping[str, bytes]) -> Environment:
    """Return what fills the templates of pages with these downloads."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        bytecode_cache=_COMPILED,
    )
    environment.filters["svg"] = _inline_picture
    environment.globals["generator"] = Markup(GENERATOR)
    environment.globals["download"] = partial(_download, files)
    return environment


class _CompiledTemplates(BytecodeCache):
    """Code of the templates that this process has compiled."""

    def __init__(self) -> None:
        self._code: dict[tuple[str, str], CodeType] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        bucket.code = self._code.get((bucket.key, bucket.checksum))

    def dump_bytecode(self, bucket: Bucket) -> None:
        self._code[bucket.key, bucket.checksum] = cast(CodeType, bucket.code)


_COMPILED = _CompiledTemplates()

LARGEST_PLAIN = 1 << 20
"""Bytes beyond which a file is compressed inside the page."""

MEDIA_TYPES = {
    ".csv": "text/csv",
    ".md": "text/markdown",
    ".tex": "application/x-tex",
    ".svg": "image/svg+xml",
}


def _download(files: Mapping[str, bytes], name: str, label: str) -> Markup:
    """Return a link that holds a file's content, so that it survives if the page is sent alone.

    A large file is compressed. ``links.js`` unpacks it as it is saved; without JavaScript the reader gets the .gz file.
    There is no link to a file that was not made.
    """
    if name not in files:
        return Markup()
    content, saved = files[name], Path(name).name
    if len(content) <= LARGEST_PLAIN:
        kind = MEDIA_TYPES.get(Path(name).suffix, "application/octet-stream")
        attributes = Markup('download="{}"').format(saved)
    else:
        content, kind = gzip.compress(content, mtime=0), "application/gzip"
        attributes = Markup('download="{}.gz" data-unpacked="{}"').format(saved, saved)
    data = b64encode(content).decode()
    return Markup('<a {} href="data:{};base64,{}">{}</a>').format(attributes, kind, data, label)


def export_files(tables: Iterable[Table], pictures: Iterable[ReportFigure]) -> dict[str, bytes]:
    """Return tables and figures as files, by their names below the folder."""
    files = {}
    for table in tables:
        files[f"tables/{table.name}.csv"] = to_csv(table)
        files[f"tables/{table.name}.md"] = to_markdown(table)
        files[f"tables/{table.name}.tex"] = to_latex(table)
    for picture in pictures:
        files[f"figures/{picture.name}.svg"] = picture.svg
    return {name: text.encode() for name, text in files.items()}


def write_page(path: Path, html: str, files: Mapping[str, bytes]) -> None:
    """Write an HTML file and its folder of files; those of an earlier report are deleted.

    Raises:
        BadResults: if they cannot be written.
    """
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if files or files_of(path).exists():
            _replace_folder(files_of(path), files)
    write_atomically(path, html.encode())


def _inline_picture(picture: ReportFigure) -> Markup:
    """The SVG comes from matplotlib, which escapes what it writes."""
    return Markup(inline_svg(picture.svg, f"{picture.name}-"))


def _replace_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put a folder in place of the old one, so that no file of an older report stays behind."""
    fresh, old = (
        folder.with_name(f".{folder.name}.{os.getpid()}.{kind}") for kind in ("new", "old")
    )
    try:
        fresh.mkdir()
        for name, data in files.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            (fresh / name).write_bytes(data)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
