"""A leaderboard as a static site: models ranked by their worst case, each protocol by itself, a page for each model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from robustbench_inv.arguments import check_path, format_eps
from robustbench_inv.checks.audit_verdict import Conclusion, conclude
from robustbench_inv.checks.verdict import Verdict
from robustbench_inv.errors import BadResults
from robustbench_inv.identity import digest_value
from robustbench_inv.reporting.definitions import load_definition
from robustbench_inv.reporting.html import export_files, render_page, write_page
from robustbench_inv.reporting.page import build_page
from robustbench_inv.reporting.run_results import (
    CellGroup,
    RunResult,
    WorstCase,
    group_cells,
    main_cases,
    read_runs,
)
from robustbench_inv.reporting.statistics import rank_interval, wilson
from robustbench_inv.reporting.table_formats import TableCell, norm_symbol, rate_cell, slug
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.summary import Rate

__all__ = ["Board", "Leaderboard", "Placing", "read_leaderboard"]


@dataclass(frozen=True)
class Placing:
    """One model on one board.

    Args:
        model: its label.
        page: address of its page.
        clean: clean accuracy.
        result: robust accuracy, or the rate of invariance failures, with interval.
        attacks: that were run, as words.
        verdict: whether the number can be published; empty without checks.
        ranks: the best and the worst rank that the data allow; None for a model without a publishable number.
    """

    model: str
    page: str
    clean: TableCell
    result: TableCell
    attacks: str
    verdict: str
    ranks: tuple[int, int] | None


@dataclass(frozen=True)
class Board:
    """The models of one protocol: the same samples of the same data, norm, goal, budget and oracle.

    Args:
        name: for links.
        title: of the table.
        measure: what the result is, and which direction is better.
        placings: ranked models, the best first, then those without a publishable number.
    """

    name: str
    title: str
    measure: str
    placings: tuple[Placing, ...]


@dataclass(frozen=True)
class Leaderboard:
    """Boards, and the cells of each model's page.

    Args:
        boards: those with most models first.
        runs: merged results.
        pages: file of each model, by label.
    """

    boards: tuple[Board, ...]
    runs: tuple[RunResult, ...]
    pages: dict[str, str]

    def write(self, out: str | Path) -> Path:
        """Write the site into a folder, and return its first page.

        Raises:
            BadResults: if it cannot be written.
        """
        folder = check_path(out, "leaderboard")
        index = folder / "index.html"
        for model, name in self.pages.items():
            definition = replace(load_definition(None), title=model)
            page = build_page(definition, [_only(run, model) for run in self.runs])
            files = export_files(page.tables, page.pictures)
            html = render_page("report.html", files, page=page, folder=f"{Path(name).stem}_files")
            write_page(folder / name, html, files)
        write_page(index, render_page("leaderboard.html", {}, page=self), {})
        return index


def read_leaderboard(runs: Sequence[str | Path]) -> Leaderboard:
    """Return the leaderboard of some runs, of one machine or of several.

    Args:
        runs: folders of results, or folders of such.

    Raises:
        BadResults: if a cell is in two folders with different results, or there is nothing to rank.
    """
    folders = [check_path(run, "run") for run in runs]
    _check_equal(folders)
    results = read_runs(folders)
    cells = [cell for run in results for cell in run.cells]
    verdicts = [Verdict.from_json(value) for run in results for value in run.checks]
    pages = _pages(cells)
    boards = list(_boards(cells, conclude(cells, verdicts), pages))
    if not boards:
        raise BadResults("there is nothing to rank", expected="runs of invbench evaluate")
    boards.sort(key=lambda board: -len(board.placings))
    return Leaderboard(tuple(boards), results, pages)


def _check_equal(folders: Sequence[Path]) -> None:
    """Check that a cell that lies in several folders has the same records of the same samples."""
    seen: dict[str, tuple[Path, dict[int, object]]] = {}
    for folder in folders:
        for cell in (cell for run in read_runs([folder]) for cell in run.cells):
            records: dict[int, object] = {record.sample: record for record in cell.records}
            other, known = seen.get(cell.digest, (folder, {}))
            if wrong := [i for i in records.keys() & known.keys() if records[i] != known[i]]:
                raise BadResults(
                    f"{cell.attack_label} on {cell.model_label} has two results",
                    got=f"others in {folder} than in {other}, sample {min(wrong)}",
                    remedy="leave one of the folders out",
                )
            seen[cell.digest] = (folder, {**known, **records})


def _pages(cells: Sequence[FinishedCell]) -> dict[str, str]:
    """Return the file of each model; names that would be equal get the start of the model's digest."""
    keys = {cell.model_label: cell.model.key for cell in cells}
    names = {model: slug(model).lower() or "model" for model in keys}
    several = {name for name in names.values() if list(names.values()).count(name) > 1}
    return {
        model: f"models/{name}{f'-{keys[model][:8]}' if name in several else ''}.html"
        for model, name in names.items()
    }


def _only(run: RunResult, model: str) -> RunResult:
    """Return the results of one model."""
    cells = tuple(cell for cell in run.cells if cell.model_label == model)
    return replace(run, cells=cells, pending=())


def _boards(
    cells: Sequence[FinishedCell], conclusions: Sequence[Conclusion], pages: dict[str, str]
) -> Iterator[Board]:
    for group, mine in group_cells(cells).items():
        if group.no_class or group.fixed:
            continue
        found: dict[tuple[float, tuple[int, ...]], list[WorstCase]] = {}
        for worst in main_cases(mine):
            found.setdefault((worst.eps, worst.ids), []).append(worst)
        for (eps, ids), compared in found.items():
            if eps < inf or group.keeps:
                yield _board(group, eps, ids, compared, conclusions, pages)


def _board(
    group: CellGroup,
    eps: float,
    ids: tuple[int, ...],
    compared: Sequence[WorstCase],
    conclusions: Sequence[Conclusion],
    pages: dict[str, str],
) -> Board:
    about = {worst.model: _conclusion(worst, conclusions) for worst in compared}
    ranked = [worst for worst in compared if about[worst.model] == "publishable"]
    ranks = rank_interval([worst.robust for worst in ranked])
    places = {worst.model: rank for worst, rank in zip(ranked, ranks, strict=True)}
    order = sorted(
        compared,
        key=lambda w: (
            w.model not in places,
            places.get(w.model, (0,))[0],
            -w.rate.value,
            w.model,
        ),
    )
    within = (
        "at any distance" if eps == inf else f"at {norm_symbol(group.norm)} ≤ {format_eps(eps)}"
    )
    measure = "robust accuracy, higher is better"
    if group.keeps:
        measure = "predictions unchanged although the class changed, lower is better"
    placings = (
        Placing(
            worst.model,
            pages[worst.model],
            _cell(worst.clean),
            _cell(worst.success_rate if group.keeps else worst.rate),
            ", ".join(worst.attacks),
            about[worst.model],
            places.get(worst.model),
        )
        for worst in order
    )
    title = f"{group.title}, {within}, {len(ids):,} samples"
    name = f"board-{digest_value({'title': title, 'ids': list(ids)})[:8]}"
    return Board(name, title, measure, tuple(placings))


def _cell(rate: Rate) -> TableCell:
    return rate_cell(rate, wilson(rate))


def _conclusion(worst: WorstCase, conclusions: Sequence[Conclusion]) -> str:
    return next((each.verdict for each in conclusions if each.concerns(worst.cells[0])), "")
