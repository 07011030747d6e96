"""BibTeX of the attacks and models of a report: the papers that their cards name."""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from robustbench_inv.arguments import printable
from robustbench_inv.reporting.table_formats import slug
from robustbench_inv.results.cell import FinishedCell

__all__ = ["BibEntry", "Citation", "collect_citations", "references_of"]

FILE = Path(__file__).with_name("references.bib")

SHORT_TITLE = 3
"""Words below which the part of a title before its colon needs the first author beside it."""

LIBRARIES = ("foolbox", "torchattacks", "adv-lib")
"""Libraries of attacks that are cited with their attacks."""


@dataclass(frozen=True)
class BibEntry:
    r"""One entry of the bibliography.

    Args:
        key: its name in ``\\cite``.
        text: the entry in BibTeX.
    """

    key: str
    text: str

    @cached_property
    def fields(self) -> dict[str, str]:
        """The fields as plain words, and of the authors the first one's family name."""
        found = dict(re.findall(r"^  (\w+) = {(.*)},$", self.text, re.M))
        plain = {name: re.sub(r'[{}\\"`\'^]', "", value) for name, value in found.items()}
        lead = plain.get("title", "").partition(":")[0]
        author = plain.get("author", "").partition(",")[0]
        return {
            name: _words(value) for name, value in {**plain, "lead": lead, "author": author}.items()
        }

    def is_named_by(self, source: str) -> bool:
        """Return whether a source, in plain words, has the title, its short form or the number of the preprint."""
        known = self.fields
        if any(f" {known[name]} " in source for name in ("shorttitle", "eprint") if name in known):
            return True
        long = len(known["lead"].split()) >= SHORT_TITLE
        return f" {known['lead']} " in source and (long or f" {known['author']} " in source)

    def may_be_meant_by(self, source: str) -> bool:
        """Return whether a source, in plain words, has the first author and the year; of a thesis, that word."""
        dated = "thesis" if self.text.startswith("@phdthesis") else self.fields["year"]
        return f" {self.fields['author']} " in source and f" {dated} " in source


@dataclass(frozen=True)
class Citation:
    """A reference, and the attacks and models of a report that it is the source of."""

    reference: BibEntry
    cited_by: tuple[str, ...]


def references_of(paper: str, name: str) -> list[BibEntry]:
    """Return the references that a card's ``paper`` names.

    Sources that the bibliography lacks become one entry that quotes the card.

    Args:
        paper: of a card, several sources with semicolons between them; empty for none.
        name: of the card, for the key of an entry of its own.

    Example:
        >>> [each.key for each in references_of("Madry et al., ICLR 2018", "pgd")]
        ['madry2018towards']
    """
    if not paper.strip():
        return []
    found = [each for part in paper.split(";") for each in _named_by(f" {_words(part)} ")]
    return list(dict.fromkeys(found)) or [_quoted(paper, name)]


def _named_by(source: str) -> list[BibEntry]:
    known = _bibliography()
    if named := [each for each in known if each.is_named_by(source)]:
        return named
    meant = [each for each in known if each.may_be_meant_by(source)]
    return meant if len(meant) == 1 else []


def _quoted(paper: str, name: str) -> BibEntry:
    key = slug(name).lower()
    quoted = re.sub(r"[{}\\]", "", printable(" ".join(paper.split())))
    return BibEntry(key, f"@misc{{{key},\n  note = {{{quoted}}},\n}}")


@cache
def _bibliography() -> tuple[BibEntry, ...]:
    entries = re.split(r"\n(?=@)", FILE.read_text(encoding="utf-8").strip())
    keyed = [(re.match(r"@\w+{([^,]+),", entry), entry.strip()) for entry in entries]
    return tuple(BibEntry(match[1], entry) for match, entry in keyed if match)


def _words(text: str) -> str:
    """Return a text in lower case, without accents and signs, its words separated by single blanks."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return " ".join(re.findall(r"[a-z0-9.]+", plain.replace(". ", " ")))


def collect_citations(cells: Sequence[FinishedCell]) -> tuple[Citation, ...]:
    """Return the references of all attacks and models of some cells, in the order of their keys."""
    users: dict[BibEntry, list[str]] = {}
    for name, card, implementation in dict.fromkeys(_sources(cells)):
        references = references_of(card, name)
        library = implementation.partition(":")[0].partition(".")[0]
        if library in LIBRARIES:
            references += references_of(library, library)
        for each in references:
            users.setdefault(each, []).append(name)
    ordered = sorted(users, key=lambda each: each.key)
    return tuple(Citation(each, tuple(users[each])) for each in ordered)


def _sources(cells: Sequence[FinishedCell]) -> Iterator[tuple[str, str, str]]:
    """Yield label, paper and implementation of each attack, then of each model."""
    for cell in cells:
        yield cell.attack_label, _paper(cell.attack.card), cell.attack.implementation
    for cell in cells:
        yield cell.model_label, _paper(cell.model.card), ""


def _paper(card: Mapping[str, object]) -> str:
    return str(card.get("paper") or "")
