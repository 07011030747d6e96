"""Measure the structure of the package: modules, import cycles, function lengths, repeated names and lines.

Run ``python tools/structure.py``: it prints one line for each measure and exits with 1 if a limit is exceeded.
"""

import ast
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "robustbench_inv"

MODULES = 273
FILE_LINES = 400
FUNCTION_MEDIAN, FUNCTION_P90, FUNCTION_MAX = 6, 20, 60
RUN_LENGTH = 6
"""Identical lines in a row that count as a repetition."""

SAME_NOUN = {"protocol", "__init__", "__main__"}
"""File names that may occur in several sub-packages."""


@dataclass(frozen=True)
class Measure:
    """One measure of the structure: its text, and whether it keeps its limit."""

    text: str
    kept: bool


def modules() -> list[Path]:
    """Return every module of the package but ``__init__`` files."""
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


@cache
def tree(path: Path) -> ast.Module:
    """Return a file's syntax tree."""
    return ast.parse(path.read_text())


@cache
def import_graph() -> dict[str, set[str]]:
    """Return, for each file, the package's files that it imports, lazily and for type checkers too."""
    files = {_dotted(path): path for path in PACKAGE.rglob("*.py")}
    return {name: _imports(path, files) - {name} for name, path in files.items()}


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components with more than one file (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            start = stack.index(name)
            component = stack[start:]
            del stack[start:]
            if len(component) > 1:
                found.append(sorted(component))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


def function_lengths() -> list[tuple[int, str]]:
    """Return the lines of each function's body without its docstring, with its place."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return sorted(
        (_body_lines(node), f"{_dotted(path)}.{node.name}")
        for path in modules()
        for node in ast.walk(tree(path))
        if isinstance(node, kinds)
    )


def repeated_classes() -> dict[str, list[str]]:
    """Return the public class names that are defined more than once, with their modules."""
    places = defaultdict(list)
    for path in modules():
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(_dotted(path))
    return {name: found for name, found in places.items() if len(found) > 1}


def repeated_file_names() -> dict[str, list[str]]:
    """Return the file names that occur more than once, those of the same noun aside."""
    places = defaultdict(list)
    for path in modules():
        places[path.stem].append(_dotted(path))
    return {n: p for n, p in places.items() if len(p) > 1 and n not in SAME_NOUN}


def repeated_lines() -> list[str]:
    """Return the places of runs of RUN_LENGTH identical code lines; imports and ``__all__`` are left out."""
    places = defaultdict(set)
    for path in modules():
        lines = list(_code_lines(path))
        for start in range(len(lines) - RUN_LENGTH + 1):
            run = tuple(text for _, text in lines[start : start + RUN_LENGTH])
            places[run].add(f"{_dotted(path)}:{lines[start][0]}")
    return [" = ".join(sorted(found)) for found in places.values() if len(found) > 1]


def measures() -> Iterator[Measure]:
    """Yield each measure of the structure."""
    files = modules()
    lengths = [len(path.read_text().splitlines()) for path in files]
    mean = statistics.mean(lengths)
    yield Measure(f"modules: {len(files)} (at most {MODULES})", len(files) <= MODULES)
    long = [path.name for path, n in zip(files, lengths, strict=True) if n > FILE_LINES]
    text = f"lines of a module: mean {mean:.0f}, max {max(lengths)} (at most {FILE_LINES})"
    yield Measure(_listing(text, long), not long)
    found = cycles(import_graph())
    yield Measure(_listing(f"import cycles: {len(found)}", map(" ".join, found)), not found)
    yield from _function_measures()
    classes, names, runs = repeated_classes(), repeated_file_names(), repeated_lines()
    places = [f"{name}: {', '.join(where)}" for name, where in classes.items()]
    yield Measure(_listing(f"repeated public classes: {len(classes)}", places), not classes)
    places = [f"{name}: {', '.join(where)}" for name, where in names.items()]
    yield Measure(_listing(f"repeated file names: {len(names)}", places), True)
    yield Measure(_listing(f"runs of {RUN_LENGTH} equal lines: {len(runs)}", runs), not runs)


def _function_measures() -> Iterator[Measure]:
    found = function_lengths()
    lengths = [length for length, _ in found]
    median, p90 = statistics.median(lengths), lengths[int(0.9 * len(lengths))]
    text = (
        f"lines of a function: median {median:.0f}, p90 {p90}, max {lengths[-1]} ({found[-1][1]})"
    )
    kept = median <= FUNCTION_MEDIAN and p90 <= FUNCTION_P90 and lengths[-1] <= FUNCTION_MAX
    yield Measure(text, kept)


def _listing(text: str, items: object) -> str:
    return "\n  ".join([text, *items])  # type: ignore[misc]


def _dotted(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "robustbench_inv"


def _imports(path: Path, files: Mapping[str, Path]) -> set[str]:
    named = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    prefix = f"{PACKAGE.name}."
    return {name.removeprefix(prefix) for name in named if name.startswith(prefix)} & files.keys()


def _body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = node.body
    first = body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        body = body[1:]
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def _code_lines(path: Path) -> Iterator[tuple[int, str]]:
    skipped: set[int] = set()
    for node in ast.walk(tree(path)):
        is_all = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.Import | ast.ImportFrom) or is_all or is_text:
            skipped |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        text = line.strip()
        if text and not text.startswith("#") and number not in skipped:
            yield number, text


if __name__ == "__main__":
    results = list(measures())
    for measure in results:
        sys.stdout.write(f"{'ok  ' if measure.kept else 'OVER'} {measure.text}\n")
    sys.exit(not all(measure.kept for measure in results))
