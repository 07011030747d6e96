"""Plain words: no phrase of tests/data/phrases.txt, no name of the first version, no sentence above 35 words.

``python tests/test_prose.py`` prints the number of hits of each part of the repository and then every hit.
"""

import ast
import io
import re
import sys
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "robustbench_inv"
PHRASES = ROOT / "tests" / "data" / "phrases.txt"

SHORTEST_MESSAGE = 3
"""Words of a string that is prose; shorter ones are keys and names of random streams."""

LONGEST_SENTENCE = 35
LONGEST_LINE = 120
DECISION_LINES = 45
README_LINES = (60, 130)

ABBREVIATIONS = re.compile(
    r"\b(?:e\.g|i\.e|et al|cf|vs|Fig|Eq|Sec|No|approx|resp|etc|App|Def|pp?)\.(?=\s)"
)
SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]*_]*\s+(?=[\"'(\[*_]*[A-Z0-9])")
WORD = re.compile(r"\S*\w\S*")
FENCE = re.compile(r"^```.*?^```[^\S\n]*$", re.M | re.S)
INLINE_CODE = re.compile(r"``[^`]+``|`[^`\n]+(?:\n[^`\n]+)?`")
LINK = re.compile(r"!?\[([^\]]*)\]\((?:[^()]|\([^()]*\))*\)")
URL = re.compile(r"https?://\S+")


@dataclass(frozen=True)
class Phrase:
    """A pattern that must not occur, and the words to use instead."""

    pattern: re.Pattern[str]
    instead: str


@dataclass(frozen=True)
class Passage:
    """Text that begins on a line of a file (or of the help of a command), which belongs to a part of the repository."""

    part: str
    place: str
    line: int
    text: str


def read_phrases(section: str) -> list[Phrase]:
    """Return the phrases of a section of phrases.txt."""
    found, current = [], ""
    for line in PHRASES.read_text().splitlines():
        if line.startswith("["):
            current = line.strip("[]")
        elif line and not line.startswith("#") and current == section:
            pattern, instead = line.split(" => ")
            spaces = pattern.replace(" ", r"\s+")  # a phrase may break across two lines
            found.append(Phrase(re.compile(spaces, re.IGNORECASE), instead))
    return found


@cache
def glossary_terms() -> tuple[str, ...]:
    """Return the terms that docs/glossary.md defines: the bold first cell of each row."""
    rows = re.findall(r"^\| \*\*(.+?)\*\*", (ROOT / "docs" / "glossary.md").read_text(), re.M)
    return tuple(term.strip() for row in rows for term in re.split(r"\*\*, \*\*|, ", row))


def plain(text: str) -> str:
    """Return prose with code replaced by CODE, links by their text, doctests and URLs left out; lines are kept."""

    def blank(match: re.Match[str]) -> str:
        return "\n" * match[0].count("\n")

    def code(match: re.Match[str]) -> str:
        return "CODE" + blank(match)

    text = FENCE.sub(blank, text)
    text = re.sub(r"^\s*(?:>>>|\.\.\.) .*$", "", text, flags=re.M)
    return URL.sub("URL", LINK.sub(r"\1", INLINE_CODE.sub(code, text)))


def markdown_files() -> list[Path]:
    """Return the documentation, README first."""
    names = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "attacks/example_plugin/README.md")
    return [*(ROOT / name for name in names), *sorted((ROOT / "docs").rglob("*.md"))]


def part_of(path: Path) -> str:
    """Return the part of the repository that owns a file: a package's name, a top folder's, or ``docs``."""
    parts = path.relative_to(ROOT).parts
    if parts[0] == "robustbench_inv":
        return parts[1] if len(parts) > 2 else "package"
    return "docs" if path.suffix == ".md" else parts[0]


def passage(path: Path, line: int, text: str) -> Passage:
    """Return the text of a place in a file."""
    return Passage(part_of(path), str(path.relative_to(ROOT)), line, plain(text))


def source_passages(path: Path) -> Iterator[Passage]:
    """Yield docstrings, comments, and the strings of a module that have at least three words."""
    source = path.read_text()
    formatted, parts, texts = [], set(), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            formatted.append((node.lineno, "".join(map(_literal, node.values))))
            parts |= {id(part) for part in ast.walk(node)}
        elif _is_text(node):
            texts.append(node)
    texts = [(node.lineno, node.value) for node in texts if id(node) not in parts]
    for line, text in (*formatted, *texts):
        if len(text.split()) >= SHORTEST_MESSAGE:
            yield passage(path, line, text)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield passage(path, token.start[0], token.string)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _literal(node: ast.expr) -> str:
    return node.value if _is_text(node) else "CODE"


def help_passages() -> Iterator[Passage]:
    """Yield the help of every command, argument and option, without running one."""
    import typer

    from robustbench_inv.cli.main import app

    commands = [("invbench", typer.main.get_command(app))]
    while commands:
        name, command = commands.pop()
        commands += [
            (f"{name} {key}", each) for key, each in getattr(command, "commands", {}).items()
        ]
        texts = [command.help, *(getattr(each, "help", None) for each in command.params)]
        yield from (Passage("cli", f"{name} --help", 1, plain(text)) for text in texts if text)


def template_passages(path: Path) -> Iterator[Passage]:
    """Yield the text between the tags of a template."""
    text = re.sub(
        r"<(script|style)\b.*?</\1>",
        lambda m: "\n" * m[0].count("\n"),
        path.read_text(),
        flags=re.S,
    )
    text = re.sub(r"\{[{%#].*?[%#}]\}", " CODE ", text, flags=re.S)
    for number, line in enumerate(re.sub(r"<[^>]*>", " ", text).splitlines(), 1):
        yield passage(path, number, line)


def toml_passages(path: Path) -> Iterator[Passage]:
    """Yield the comments of a TOML file and its strings of at least three words, titles of papers aside."""
    text = path.read_text()
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#"):
            yield passage(path, number, line)
    for value in _strings(tomllib.loads(text)):
        if len(value.split()) >= 3:
            yield passage(path, text[: max(text.find(value[:20]), 0)].count("\n") + 1, value)


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            if key not in ("paper", "citation", "bibtex"):
                yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)


def toml_files() -> list[Path]:
    """Return the cards, recipes, suites and definitions of the catalogue."""
    folders = ("attacks", "models", "reports/definitions")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.toml"))


def source_files() -> list[Path]:
    """Return the modules of the package, the benchmarks, the tools and the example plugin."""
    folders = (PACKAGE, ROOT / "benchmarks", ROOT / "tools", ROOT / "attacks")
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def passages() -> Iterator[Passage]:
    """Yield all prose of the repository that users and authors read, tests aside."""
    for path in markdown_files():
        yield passage(path, 1, path.read_text())
    for path in source_files():
        yield from source_passages(path)
    for path in sorted(PACKAGE.rglob("*.html")):
        yield from template_passages(path)
    for path in toml_files():
        yield from toml_passages(path)
    yield from help_passages()


WORD_START = (r"\b", "(?<!", r"(?-i:\b")
"""How a pattern begins that matches only where a word begins."""


@cache
def filters(phrases: tuple[Phrase, ...]) -> tuple[re.Pattern[str], ...]:
    """Return two patterns, one of which matches wherever a phrase does: tried at the beginning of words, and anywhere."""
    sources = [phrase.pattern.pattern for phrase in phrases]
    words = [each for each in sources if each.startswith(WORD_START)]
    others = [each for each in sources if not each.startswith(WORD_START)]
    joined = rf"\b(?=\w)(?:{'|'.join(words)})", "|".join(others) or "(?!)"
    return tuple(re.compile(each, re.IGNORECASE) for each in joined)


def hits_in(text: str, phrases: list[Phrase]) -> Iterator[tuple[int, str, str]]:
    """Yield line number from 0, text and replacement of each match that is no defined term."""
    if not any(each.search(text) for each in filters(tuple(phrases))):
        return  # most texts; a fifth of the time of trying each phrase
    for phrase in phrases:
        for match in phrase.pattern.finditer(text):
            hit = " ".join(match[0].split())
            if hit.lower() not in glossary_terms():
                yield text.count("\n", 0, match.start()), hit, phrase.instead


@cache
def prose_hits() -> tuple[tuple[str, str], ...]:
    """Return (part, message) of every phrase found."""
    phrases = read_phrases("prose")
    found = {
        (each.part, f'{each.place}:{each.line + line}: "{hit}": write {instead}'): None
        for each in passages()
        for line, hit, instead in hits_in(each.text, phrases)
    }
    return tuple(found)


def old_names() -> list[tuple[str, str]]:
    """Return (part, message) of every name of the first version, CHANGELOG.md aside."""
    phrases = read_phrases("names")
    files = [*markdown_files(), *source_files(), *PACKAGE.rglob("*.html"), *toml_files()]
    return [
        (part_of(path), f'{path.relative_to(ROOT)}:{line + 1}: "{name}" is now {now}')
        for path in files
        if path.name != "CHANGELOG.md"
        for line, name, now in hits_in(path.read_text(), phrases)
    ]


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a page; headings, list items and table rows end one, code and tables are left out."""
    lines = ["" if re.match(r"\s*(\||#|---)", line) else line for line in plain(text).splitlines()]
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*+]|\d+\.)\s)", "\n".join(lines))
    for block in blocks:
        joined = " ".join(re.sub(r"^\s*(?:[-*+]|\d+\.)\s", "", block).split())
        yield from SENTENCE_END.split(ABBREVIATIONS.sub(lambda m: m[0][:-1], joined))


def words(sentence: str) -> int:
    """Return the number of words; punctuation by itself is none."""
    return len(WORD.findall(sentence))


def test_no_phrase_of_the_list():
    hits = [message for _, message in prose_hits()]
    assert not hits, "\n" + "\n".join(hits)


def test_no_name_of_the_first_version():
    hits = [message for _, message in old_names()]
    assert not hits, "\n" + "\n".join(hits)


@pytest.mark.parametrize("path", markdown_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_sentences_have_at_most_35_words(path):
    long = [
        f"{words(each)} words: {each}"
        for each in sentences(path.read_text())
        if words(each) > LONGEST_SENTENCE
    ]
    assert not long, "\n" + "\n".join(long)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs" / "decisions").glob("*.md")), ids=lambda path: path.stem
)
def test_a_decision_is_one_screen(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= DECISION_LINES
    assert max(map(len, lines)) <= LONGEST_LINE


def test_the_readme_is_short():
    low, high = README_LINES
    assert low <= len((ROOT / "README.md").read_text().splitlines()) <= high


def test_phrases_name_plain_uses_apart():
    phrases = read_phrases("prose")
    plain_uses = "JS stands for Jensen-Shannon. The weights are left unchanged. The interval lies above 0. Two classes are hard to tell apart."
    assert not list(hits_in(plain_uses, phrases))
    dialect = (
        "samples that still stand, slopes, the model is asked anew, what is left, it falls to PGD"
    )
    assert len({hit for _, hit, _ in hits_in(dialect, phrases)}) >= 6


def test_sentences_are_split_at_their_ends():
    text = "# A heading\n\nOne, e.g. two. Three of `a. b. C`!\n- an item\n- Another\n  one.\n\n| a. B | c |\n\n```\nX. Y\n```\n"
    found = [each for each in sentences(text) if each]
    assert found == ["One, e.g two.", "Three of CODE!", "an item", "Another one."]


if __name__ == "__main__":
    hits = [*prose_hits(), *old_names()]
    counts = Counter(part for part, _ in hits)
    lines = [f"{part}: {count}" for part, count in counts.most_common()]
    sys.stdout.write("\n".join([*lines, "", *(f"[{part}] {each}" for part, each in hits)]) + "\n")
