"""The page that the benchmarks write, section by section: what was not measured again stays."""

import re
from collections.abc import Iterable

__all__ = ["merge"]


def merge(page: str, parts: Iterable[str]) -> str:
    """Return a page with its opening and some sections replaced; new sections are appended.

    Args:
        page: the present page.
        parts: the new opening, which begins with ``# ``, and new sections, which begin with ``## ``.
    """
    found = dict(map(_titled, [*re.split(r"\n(?=## )", page), *parts]))
    return "\n".join(f"{part.strip()}\n" for part in found.values())


def _titled(part: str) -> tuple[str, str]:
    """Return the title of a part, empty for the opening, and the part."""
    first = part.strip().partition("\n")[0]
    return (first if first.startswith("## ") else ""), part
