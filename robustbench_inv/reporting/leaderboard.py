"""A leaderboard as a static site: models ranked by their worst case, each protocol by itself, a page for each model."""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf
from pathlib import Path

from robustbench_inv.arguments import check_path, format_eps
from robustbench_inv.catalogue.datasets import describe_dataset
from robustbench_inv.checks.audit_verdict import CONCLUSIONS, Conclusion
from robustbench_inv.errors import BadResults
from robustbench_inv.identity import digest_value
from robustbench_inv.reporting.answers import Answer, answer_questions, strongest_attack
from robustbench_inv.reporting.canvas import COLOURS, ReportFigure
from robustbench_inv.reporting.definitions import load_definition
from robustbench_inv.reporting.exports import conclusions_of, planned_cells
from robustbench_inv.reporting.glance import draw_both_failures, take_glance
from robustbench_inv.reporting.headlines import (
    Headline,
    build_headlines,
    count_survived,
    decisive_eps,
)
from robustbench_inv.reporting.html import (
    GENERATOR,
    export_files,
    files_of,
    render_page,
    write_page,
)
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
from robustbench_inv.reporting.table_formats import (
    TableCell,
    norm_symbol,
    rate_cell,
    slug,
)
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.files import explain_write_errors
from robustbench_inv.results.summary import Rate

__all__ = ["Board", "Leaderboard", "Placing", "read_leaderboard"]


@dataclass(frozen=True)
class Placing:
    """One model on one board.

    Args:
        model: its label.
        page: address of its page.
        clean: clean accuracy.
        results: at each eps of the board: robust accuracy, or the rate of invariance failures, with interval.
        strongest: the attack that broke most samples at the decisive eps.
        verdict: whether the number can be published; empty without checks.
        reason: the first one against it, or a reservation; empty for none.
        ranks: the best and the worst rank that the data allow, among the models that are listed together.
    """

    model: str
    page: str
    clean: TableCell
    results: tuple[TableCell, ...]
    strongest: str
    verdict: str
    reason: str
    ranks: tuple[int, int]


@dataclass(frozen=True)
class Board:
    """The models of one protocol: the same attacks on the same samples of the same data, norm, goal, budgets, oracle.

    Args:
        name: for links.
        title: data set, norm and kind of failure.
        data: what the data are; empty for a data set that the catalogue does not know.
        protocol: attacks, samples and oracle, in words.
        measure: what the results are, and which direction is better.
        levels: the eps of the results, as words.
        decisive: the number of the level at which the strongest attack is named.
        ranked: models with a publishable number, the best first.
        apart: the other ones, ranked among themselves.
    """

    name: str
    title: str
    data: str
    protocol: str
    measure: str
    levels: tuple[str, ...]
    decisive: int
    ranked: tuple[Placing, ...]
    apart: tuple[Placing, ...]

    @property
    def models(self) -> int:
        """Their number."""
        return len(self.ranked) + len(self.apart)

    @property
    def parts(self) -> list[tuple[str, tuple[Placing, ...]]]:
        """The two tables of the board with their headings; without those that are empty."""
        apart = "Apart: numbers with reservations, or that must not be published"
        parts = [("Ranked: every check that applies is passed", self.ranked), (apart, self.apart)]
        return [(title, found) for title, found in parts if found]


@dataclass(frozen=True)
class Leaderboard:
    """Boards, and the cells of each model's page.

    Args:
        boards: those with most models first.
        runs: merged results.
        pages: file of each model, by label.
        conclusions: whether the numbers of each model can be published.
        note: a sentence for the first page, such as what is missing and why.
        command: what writes the site again; empty for none.
    """

    boards: tuple[Board, ...]
    runs: tuple[RunResult, ...]
    pages: dict[str, str]
    conclusions: tuple[Conclusion, ...]
    note: str = ""
    command: str = ""

    @property
    def pending(self) -> list[tuple[str, int, int]]:
        """Cells without a result for each sample: name, finished and planned samples."""
        return [each for run in self.runs for each in run.pending.values()]

    @property
    def repeated(self) -> set[str]:
        """Titles of several boards, which their protocols tell apart."""
        titles = [board.title for board in self.boards]
        return {title for title in titles if titles.count(title) > 1}

    @property
    def unranked(self) -> dict[str, str]:
        """Models that are on no board, with their pages."""
        listed = {each.model for b in self.boards for each in (*b.ranked, *b.apart)}
        return {model: page for model, page in self.pages.items() if model not in listed}

    @cached_property
    def headlines(self) -> list[Headline]:
        """The main result of each group of cells."""
        return build_headlines([cell for run in self.runs for cell in run.cells], wilson)

    @property
    def answers(self) -> tuple[Answer, ...]:
        """Which model is best, whether the numbers can be trusted, and what broke the models."""
        return answer_questions(self.headlines, self.conclusions)

    @cached_property
    def pictures(self) -> list[ReportFigure]:
        """Pictures of all models: both ways to fail, where models were attacked in both."""
        colours = {model: COLOURS[i % len(COLOURS)] for i, model in enumerate(self.pages)}
        both = draw_both_failures(take_glance(self.headlines, self.conclusions), colours)
        return [both] if both else []

    def write(self, out: str | Path) -> Path:
        """Write the site into a folder, and return its first page.

        Pages of models that an earlier leaderboard wrote there are deleted unless they are written again.

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
        _delete_old_pages(index, keep=set(self.pages.values()))
        files = export_files([], self.pictures)
        write_page(index, render_page("leaderboard.html", files, page=self), files)
        return index


def _delete_old_pages(index: Path, keep: set[str]) -> None:
    """Delete the pages of models that the present first page links to, and that this program made."""
    if not index.is_file():
        return
    with explain_write_errors(index):
        linked = re.findall(r'href="(models/[A-Za-z0-9.-]+\.html)"', _made_by_us(index))
        for page in {index.parent / name for name in set(linked) - keep}:
            if page.is_file() and _made_by_us(page):
                shutil.rmtree(files_of(page), ignore_errors=True)
                page.unlink()


def _made_by_us(page: Path) -> str:
    """Return a page's text if this program made it, else nothing."""
    text = page.read_text(encoding="utf-8", errors="replace")
    return text if GENERATOR in text else ""


def read_leaderboard(runs: Sequence[str | Path], note: str = "", command: str = "") -> Leaderboard:
    """Return the leaderboard of some runs, of one machine or of several.

    Args:
        runs: folders of results, or folders of such.
        note: a sentence for the first page, such as what is missing and why.
        command: what writes the site again, for the first page.

    Raises:
        BadResults: if a cell is in two folders with different results, or there is nothing to rank.
    """
    results = read_runs([check_path(run, "run") for run in runs])
    cells = [cell for run in results for cell in run.cells]
    pages, conclusions = _pages(cells), tuple(conclusions_of(*results))
    planned = [(CellGroup.of(cell).keeps, cell) for cell in planned_cells(*results)]
    concluded = {
        kind: conclusions_of(*results, cells=(cell for keeps, cell in planned if keeps == kind))
        for kind in (False, True)
    }
    boards = list(_boards(cells, concluded, pages))
    if not boards:
        raise BadResults("there is nothing to rank", expected="runs of invbench evaluate")
    boards.sort(key=lambda board: -board.models)
    return Leaderboard(tuple(boards), results, pages, conclusions, note, command)


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
    empty = tuple(cell for cell in run.empty if cell.model_label == model)
    return replace(run, cells=cells, empty=empty, pending={})


@dataclass(frozen=True)
class _Protocol:
    """What models must share to be on one board: among others the attacks at each level."""

    group: CellGroup
    ids: tuple[int, ...]
    attacks: tuple[tuple[str, ...], ...]
    levels: tuple[float, ...]

    @property
    def title(self) -> str:
        kind = "blindness to class changes" if self.group.keeps else "robustness to small changes"
        return f"{self.group.data}, {norm_symbol(self.group.norm)}: {kind}"

    @property
    def words(self) -> str:
        oracle = f", {self.group.oracle}" if self.group.oracle else ""
        by = [", ".join(names) for names in self.attacks]
        if len(set(by)) > 1:
            by = [f"{names} at {format_eps(e)}" for names, e in zip(by, self.levels, strict=True)]
        return f"{'; '.join(dict.fromkeys(by))} on {len(self.ids):,} samples{oracle}"

    @property
    def name(self) -> str:
        facts = [self.group.title, self.words, list(self.ids), [f"{e:g}" for e in self.levels]]
        return f"board-{digest_value({'protocol': facts})[:8]}"


def _boards(
    cells: Sequence[FinishedCell],
    conclusions: Mapping[bool, Sequence[Conclusion]],
    pages: dict[str, str],
) -> Iterator[Board]:
    """Yield the boards; those of small changes and of missed changes of class have their own conclusions."""
    found: dict[_Protocol, dict[str, list[WorstCase]]] = {}
    for group, mine in group_cells(cells).items():
        if group.no_class or group.fixed:
            continue
        models: dict[str, list[WorstCase]] = {}
        for worst in main_cases(mine):
            models.setdefault(worst.model, []).append(worst)
        for model, cases in models.items():
            levels = tuple(worst.eps for worst in cases)
            if levels != (inf,) or group.keeps:
                attacks = tuple(tuple(sorted(worst.attacks)) for worst in cases)
                key = _Protocol(group, cases[0].ids, attacks, levels)
                found.setdefault(key, {})[model] = cases
    for protocol, compared in found.items():
        yield _board(protocol, compared, conclusions[protocol.group.keeps], pages)


def _board(
    protocol: _Protocol,
    compared: dict[str, list[WorstCase]],
    conclusions: Sequence[Conclusion],
    pages: dict[str, str],
) -> Board:
    group, levels = protocol.group, protocol.levels
    eps = decisive_eps(group, [worst for cases in compared.values() for worst in cases])
    decisive = levels.index(eps)
    about = {model: _conclusion(cases[0], conclusions) for model, cases in compared.items()}

    def placed(*, publishable: bool) -> tuple[Placing, ...]:
        chosen = {
            model: cases
            for model, cases in compared.items()
            if _is_publishable(about[model]) == publishable
        }
        ranks = rank_interval([count_survived(cases) for cases in chosen.values()])
        found = [
            _placing(cases, decisive, pages[model], about[model], rank)
            for (model, cases), rank in zip(chosen.items(), ranks, strict=True)
        ]
        best = {model: -sum(w.rate.value for w in cases) for model, cases in chosen.items()}
        return tuple(sorted(found, key=lambda each: (each.ranks, best[each.model], each.model)))

    measure = "robust accuracy, higher is better"
    if group.keeps:
        measure = "predictions unchanged although the class changed, lower is better"
    at = tuple("any distance" if e == inf else f"≤ {format_eps(e)}" for e in levels)
    ranked, apart = placed(publishable=True), placed(publishable=False)
    about_data, words = describe_dataset(group.dataset), protocol.words
    names = protocol.name, protocol.title, about_data, words, measure
    return Board(*names, at, decisive, ranked, apart)


def _is_publishable(conclusion: Conclusion | None) -> bool:
    return conclusion is not None and conclusion.verdict == CONCLUSIONS[0]


def _placing(
    cases: Sequence[WorstCase],
    decisive: int,
    page: str,
    conclusion: Conclusion | None,
    ranks: tuple[int, int],
) -> Placing:
    first = cases[decisive]
    reasons = conclusion.reasons if conclusion else ()
    return Placing(
        first.model,
        page,
        _cell(first.clean),
        tuple(_cell(w.success_rate if w.group.keeps else w.rate) for w in cases),
        strongest_attack(first) if first.success_rate.successes else "",
        conclusion.verdict if conclusion else "",
        reasons[0].text if reasons else "",
        ranks,
    )


def _cell(rate: Rate) -> TableCell:
    return rate_cell(rate, wilson(rate))


def _conclusion(worst: WorstCase, conclusions: Sequence[Conclusion]) -> Conclusion | None:
    return next((each for each in conclusions if each.concerns(worst.cells[0])), None)
