"""Hooks of mkdocs (`make docs`): pages and links that lie outside docs/, and folders in the navigation."""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
DOCS = PurePosixPath("docs")
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
"""Files of the repository that are pages of the site."""

PUBLISHED = "reports/published"
SECTION = re.compile(
    r'(<nav class="md-nav" data-md-level="\d" )aria-labelledby="(\w+)_label"'
    r'([^>]*>\s*<label class="md-nav__title" for="\2">\s*<span[^>]*></span>\s*)([^<]*?)(?=\s*</label>)'
)
"""A section of the navigation: the theme names it by a label that has an icon and no text."""

LINK = re.compile(r"(!?)\[((?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:  # noqa: ANN401 - a configuration of mkdocs
    """Replace each folder of the navigation by its pages."""
    config.nav = [_expanded(entry) for entry in config.nav]
    return config


def _expanded(entry: Any) -> Any:  # noqa: ANN401 - a string or a dictionary of YAML
    if isinstance(entry, dict):
        return {title: [_expanded(each) for each in entries] for title, entries in entry.items()}
    if entry.endswith("/"):
        pages = sorted((ROOT / DOCS / entry).glob("*.md"))
        return {entry.strip("/").capitalize(): [f"{entry}{page.name}" for page in pages]}
    return entry


def on_files(files: Files, config: Any) -> Files:  # noqa: ANN401
    """Add the pages of the repository and the published reports."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    for report in sorted((ROOT / PUBLISHED).rglob("*.html")):
        place = report.relative_to(ROOT).as_posix()
        files.append(File.generated(config, place, abs_src_path=str(report)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:  # noqa: ANN401, ARG001
    """Let links lead to places of the site; of a link to a file that is no page, keep the text."""
    place = page.file.src_uri
    source = next((name for name, found in PAGES.items() if found == place), f"{DOCS}/{place}")

    def led(match: re.Match[str]) -> str:
        image, text, target, anchor = match.groups()
        text = LINK.sub(led, text)
        repository = normpath(f"{PurePosixPath(source).parent}/{target}")
        found = _place(repository)
        if found is None:
            return text if (ROOT / repository).exists() else match[0]
        return f"{image}[{text}]({relpath(found, PurePosixPath(place).parent)}{anchor or ''})"

    return LINK.sub(led, markdown)


def on_post_template(output: str, template_name: str, config: Any) -> str:  # noqa: ANN401
    """Name dialog and sections on the page for unknown addresses."""
    return on_post_page(output, None, config) if template_name == "404.html" else output


def on_post_page(output: str, page: Any, config: Any) -> str:  # noqa: ANN401, ARG001
    """Name the dialog of the search and the sections of the navigation for screen readers."""
    dialog = '<div class="md-search" data-md-component="search" role="dialog"'
    output = output.replace(dialog, f'{dialog} aria-label="Search dialog"')
    return SECTION.sub(r'\1aria-label="Pages of \4"\3\4', output)


def _place(repository: str) -> str | None:
    """Return where a file of the repository is in the site; None if it is not there."""
    if repository in PAGES:
        return PAGES[repository]
    if repository.startswith(f"{DOCS}/") and Path(ROOT, repository).is_file():
        return repository.removeprefix(f"{DOCS}/")
    if repository.startswith(PUBLISHED) and repository.endswith(".html"):
        return repository
    return None
