"""Grids of images: what attacks and experiments show."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from robustbench_inv.reporting.canvas import (
    COLOURS,
    INK,
    MUTED,
    ReportFigure,
    render,
    shorten,
    styled,
)
from robustbench_inv.reporting.run_results import CellGroup
from robustbench_inv.reporting.table_formats import format_number, norm_symbol, slug
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.experiment_result import ImageGrid
from robustbench_inv.results.pixels import is_image_shape
from robustbench_inv.results.record import Record

__all__ = ["draw_attack_images", "draw_image_grid"]


ImageArray = NDArray[Any]
ATTACK_SIDE, ATTACK_MARGIN, LABEL = 0.82, 1.25, 0.32
"""Inches: an image, the names on the left, the words beneath an image."""

ATTACK_NAME_WIDTH = 14
"""Letters of a name that fit into the margin; longer names take several lines."""

BROKEN_COLOUR, ROBUST_COLOUR = COLOURS[1], MUTED


@dataclass(frozen=True)
class _KeptImages:
    """The images of one cell, by sample id."""

    cell: FinishedCell
    clean: dict[int, ImageArray]
    adversarial: dict[int, ImageArray]
    records: dict[int, Record]


def draw_attack_images(cells: Sequence[FinishedCell], columns: int) -> Iterator[ReportFigure]:
    """Yield one grid for each attack, data set, threat and set of samples, with all the models below each other.

    Args:
        cells: those without kept images, or with inputs that are no images, are passed over.
        columns: number of samples shown, of different classes as far as possible.
    """
    groups: dict[tuple[str, CellGroup, str, frozenset[int]], list[_KeptImages]] = {}
    for cell in cells:
        kept = _read_images(cell)
        if kept and kept.adversarial:
            key = (
                cell.attack_label,
                CellGroup.of(cell),
                cell.threat.text,
                frozenset(kept.adversarial),
            )
            groups.setdefault(key, []).append(kept)
    for (attack, panel, _, _), group in groups.items():
        ids = _choose_samples(group, columns)
        models = ", ".join(kept.cell.model_label for kept in group)
        yield ReportFigure(
            slug(f"images-{panel.dataset}-{panel.norm}-{panel.goal}-{attack}"),
            f"{attack}: {panel.title}",
            "Clean inputs, then for each model the adversarial inputs and the difference "
            f"(red: more, blue: less). Below: label → prediction, {norm_symbol(panel.norm)} distance.",
            f"{len(ids)} samples attacked by {attack} against {models}.",
            render(_attack_grid(group, ids)),
        )


def _read_images(cell: FinishedCell) -> _KeptImages | None:
    images = cell.read_images() if is_image_shape(cell.dataset.shape) else None
    if images is None:
        return None
    records = {r.sample: r for r in cell.records}
    rows = [(i, int(s)) for i, s in enumerate(images["samples"]) if int(s) in records]
    return _KeptImages(
        cell,
        {s: images["clean"][i] for i, s in rows},
        {s: images["adversarial"][i] for i, s in rows},
        records,
    )


def _choose_samples(group: Sequence[_KeptImages], columns: int) -> list[int]:
    """Take one sample of each class in turn, those first that the attack broke on most models."""
    records = group[0].records
    broken = {s: sum(kept.records[s].is_broken for kept in group) for s in group[0].adversarial}
    order = sorted(broken, key=lambda s: (-broken[s], s))
    turn: dict[int, int] = {}
    seen: Counter[int] = Counter()
    for sample in order:
        turn[sample] = seen[records[sample].label]
        seen[records[sample].label] += 1
    chosen = sorted(order, key=turn.__getitem__)[:columns]
    return sorted(chosen, key=lambda s: (records[s].label, s))


def _attack_grid(group: Sequence[_KeptImages], ids: Sequence[int]) -> Figure:
    rows = 1 + 2 * len(group)
    heights = [ATTACK_SIDE, *([ATTACK_SIDE + LABEL, ATTACK_SIDE] * len(group))]
    width, height = ATTACK_MARGIN + ATTACK_SIDE * len(ids) * 1.06, sum(heights) + 0.06 * rows + 0.1
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(
        rows,
        len(ids),
        squeeze=False,
        gridspec_kw={
            "left": ATTACK_MARGIN / width,
            "right": 0.995,
            "top": 0.99,
            "bottom": 0.01,
            "wspace": 0.06,
            "hspace": 0.08,
            "height_ratios": heights,
        },
    )
    bounds = group[0].cell.dataset.bounds
    for column, sample in enumerate(ids):
        _draw_image(axes[0, column], group[0].clean[sample], bounds)
    _write_row_name(axes[0, 0], "clean", INK)
    for i, kept in enumerate(group):
        _draw_model(axes[1 + 2 * i : 3 + 2 * i], kept, ids, bounds)
    return figure


def _draw_model(
    axes: NDArray[Any], kept: _KeptImages, ids: Sequence[int], bounds: Sequence[float]
) -> None:
    changes = [kept.adversarial[s].astype(float) - kept.clean[s] for s in ids]
    largest = max(float(np.abs(change).max()) for change in changes) or 1.0
    for column, (sample, change) in enumerate(zip(ids, changes, strict=True)):
        upper, difference = axes[0, column], axes[1, column]
        _draw_image(upper, kept.adversarial[sample], bounds)
        _write_outcome(upper, kept.records[sample], kept.cell.norm)
        mean = change.mean(0) if change.shape[0] == 3 else change[0]
        difference.imshow(mean, cmap="RdBu_r", vmin=-largest, vmax=largest, interpolation="none")
        _hide_axes(difference)
    _write_row_name(axes[0, 0], fill(shorten(kept.cell.model_label), ATTACK_NAME_WIDTH), INK)
    _write_row_name(axes[1, 0], f"difference\n±{format_number(largest)}", MUTED)


def _draw_image(axes: Axes, image: ImageArray, bounds: Sequence[float]) -> None:
    low, high = bounds
    pixels = np.clip((image.astype(float) - low) / (high - low), 0, 1)
    pixels = pixels.transpose(1, 2, 0) if image.shape[0] == 3 else pixels[0]
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="none")
    _hide_axes(axes)


def _write_outcome(axes: Axes, record: Record, norm: str) -> None:
    """Write below an image: label → prediction, ✕ if rejected, the oracle's class if it differs; distance."""
    broken = record.goal_reached or not record.was_attacked
    rejected = " ✕" if record.adversarial.accepted is False else ""
    known = record.oracle_label in (None, record.label, -1)
    truth = "" if known else f" (is {record.oracle_label})"
    distance = format_number(float(getattr(record.distance, norm)))
    outcome = distance if broken else f"{distance} robust"
    below = outcome if record.was_attacked else "misclassified"
    place: dict[str, Any] = {"ha": "center", "va": "top", "transform": axes.transAxes}
    weight, colour = ("bold", BROKEN_COLOUR) if broken else ("normal", ROBUST_COLOUR)
    prediction = f"{record.label} → {record.adversarial.prediction}{rejected}{truth}"
    axes.text(0.5, -0.06, prediction, fontsize=8, fontweight=weight, color=colour, **place)
    axes.text(0.5, -0.22, below, fontsize=7, color=MUTED, **place)


def _write_row_name(axes: Axes, text: str, colour: str) -> None:
    axes.text(
        -0.12,
        0.5,
        text,
        ha="right",
        va="center",
        transform=axes.transAxes,
        color=colour,
        fontsize=8.5,
    )


def _hide_axes(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.set_anchor("N")
    for spine in axes.spines.values():
        spine.set_visible(False)


GRID_SIDE, GRID_WIDTH = 0.82, 11.0
"""Inches: the side of an image where there is room, and all images abreast."""

GRID_MARGIN = 1.15
"""Inches for the names of the rows."""

IMAGE_GAP, GROUP_GAP = 0.06, 0.35
"""Between images, and between groups, in sides."""

GRID_NAME_WIDTH = 16
"""Letters of a row's name that fit into the margin; longer names take several lines."""

TEXT_LINE = 0.19
"""Inches of a line of words."""


def draw_image_grid(grid: ImageGrid, prefix: str = "") -> ReportFigure:
    """Return the picture of a grid.

    Args:
        grid: the images.
        prefix: of its name, to distinguish grids of other data.
    """
    layout = _GridLayout.of(grid)
    with styled():
        figure = Figure(figsize=(layout.width, layout.height))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, layout.width), ylim=(layout.height, 0))
        axes.set_axis_off()
        _draw_grid_images(axes, grid, layout)
        _write_grid_text(axes, grid, layout)
        svg = render(figure)
    _, columns, *_ = grid.images.shape
    alt = f"{len(grid.rows)} rows ({', '.join(grid.rows)}) of {columns} images."
    name = slug(f"{prefix}-{grid.name}" if prefix else grid.name)
    return ReportFigure(name, grid.title, grid.caption, alt, svg)


@dataclass(frozen=True)
class _GridLayout:
    """The layout in inches from the upper left: left edges of columns, upper edges of rows."""

    side: float
    left: tuple[float, ...]
    top: tuple[float, ...]
    width: float
    height: float

    @classmethod
    def of(cls, grid: ImageGrid) -> "_GridLayout":
        sizes = [count for _, count in grid.groups]
        side = min(
            GRID_SIDE,
            (GRID_WIDTH - GRID_MARGIN) / (sum(sizes) * (1 + IMAGE_GAP) + GROUP_GAP * len(sizes)),
        )
        group = [number for number, size in enumerate(sizes) for _ in range(size)]
        left = [
            GRID_MARGIN + side * (i * (1 + IMAGE_GAP) + GROUP_GAP * g) for i, g in enumerate(group)
        ]
        top, height = [], TEXT_LINE * (1 + bool(grid.heads)) + 0.08
        for row in range(len(grid.rows)):
            top.append(height)
            height += side * (1 + IMAGE_GAP) + (TEXT_LINE if _texts_of_row(grid, row) else 0)
        return cls(side, tuple(left), tuple(top), left[-1] + side + 0.05, height + 0.05)


def _texts_of_row(grid: ImageGrid, row: int) -> Sequence[str]:
    return grid.words[row] if row < len(grid.words) else ()


def _draw_grid_images(axes: Axes, grid: ImageGrid, layout: _GridLayout) -> None:
    for y, row in zip(layout.top, grid.images, strict=True):
        for x, image in zip(layout.left, row, strict=True):
            box = (x, x + layout.side, y + layout.side, y)
            pixels = np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)
            axes.imshow(pixels, extent=box, aspect="auto", interpolation="none")
    axes.set(xlim=(0, layout.width), ylim=(layout.height, 0))


def _write_grid_text(axes: Axes, grid: ImageGrid, layout: _GridLayout) -> None:
    half, first = layout.side / 2, 0
    small: dict[str, Any] = {"fontsize": 8, "ha": "center"}
    names: dict[str, Any] = {"fontsize": 8.5, "ha": "right", "va": "center"}
    for title, count in grid.groups:
        axes.text(layout.left[first], TEXT_LINE * 0.8, title, color=INK, fontweight="bold")
        first += count
    for x, head in zip(layout.left, grid.heads, strict=False):
        axes.text(x + half, TEXT_LINE * 1.85, head, color=INK, **small)
    for number, (y, name) in enumerate(zip(layout.top, grid.rows, strict=True)):
        axes.text(GRID_MARGIN - 0.1, y + half, fill(name, GRID_NAME_WIDTH), color=MUTED, **names)
        for x, word in zip(layout.left, _texts_of_row(grid, number), strict=False):
            axes.text(x + half, y + layout.side + TEXT_LINE * 0.75, word, color=MUTED, **small)
