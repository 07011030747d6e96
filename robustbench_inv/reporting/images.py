"""Grids of images: what was shown to the models instead of the clean inputs, and what they decided."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from robustbench_inv.reporting.canvas import COLOURS, INK, MUTED, Picture, render, shorten
from robustbench_inv.reporting.cells import CellResult, Panel, norm_sign
from robustbench_inv.reporting.exports import number, slug
from robustbench_inv.results.record import Record

__all__ = ["draw_images"]

Image = NDArray[Any]
SIDE, MARGIN, LABEL = 0.82, 1.25, 0.32
"""Inches: an image, the names on the left, the words beneath an image."""

WORDS = 14
"""Letters of a name that fit into the margin; longer names take several lines."""

FELL, HELD = COLOURS[1], MUTED


@dataclass(frozen=True)
class _Kept:
    """The images of one cell, by sample id."""

    cell: CellResult
    clean: dict[int, Image]
    shown: dict[int, Image]
    records: dict[int, Record]


def draw_images(cells: Sequence[CellResult], columns: int) -> Iterator[Picture]:
    """Yield one grid for each attack, data set, threat and set of samples, with all the models below each other.

    Args:
        cells: those without kept images, or with inputs that are no images, are passed over.
        columns: number of samples shown, of different classes as far as possible.
    """
    groups: dict[tuple[str, Panel, str, frozenset[int]], list[_Kept]] = {}
    for cell in cells:
        kept = _read(cell)
        if kept and kept.shown:
            key = (cell.attack, cell.panel, cell.threat, frozenset(kept.shown))
            groups.setdefault(key, []).append(kept)
    for (attack, panel, _, _), group in groups.items():
        ids = _choose(group, columns)
        models = ", ".join(kept.cell.model for kept in group)
        yield Picture(
            slug(f"images-{panel.dataset}-{panel.norm}-{panel.goal}-{attack}"),
            f"{attack}: {panel.title}",
            "Clean inputs, then for each model what the attack shows and the difference "
            f"(red: more, blue: less). Beneath: label → decision, {norm_sign(panel.norm)} distance.",
            f"{len(ids)} samples attacked by {attack} against {models}.",
            render(_grid(group, ids)),
        )


def _read(cell: CellResult) -> _Kept | None:
    shape = tuple(cell.info["dataset"]["shape"])
    images = cell.folder.adversarial() if len(shape) == 3 and shape[0] in (1, 3) else None
    if images is None:
        return None
    records = {r.sample: r for r in cell.records}
    rows = [(i, int(s)) for i, s in enumerate(images["samples"]) if int(s) in records]
    return _Kept(
        cell,
        {s: images["clean"][i] for i, s in rows},
        {s: images["adversarial"][i] for i, s in rows},
        records,
    )


def _choose(group: Sequence[_Kept], columns: int) -> list[int]:
    """Take one sample of each class in turn, those first that the attack broke on most models."""
    records = group[0].records
    broken = {s: sum(kept.records[s].goal_reached for kept in group) for s in group[0].shown}
    order = sorted(broken, key=lambda s: (-broken[s], s))
    turn: dict[int, int] = {}
    seen: Counter[int] = Counter()
    for sample in order:
        turn[sample] = seen[records[sample].label]
        seen[records[sample].label] += 1
    chosen = sorted(order, key=turn.__getitem__)[:columns]
    return sorted(chosen, key=lambda s: (records[s].label, s))


def _grid(group: Sequence[_Kept], ids: Sequence[int]) -> Figure:
    rows = 1 + 2 * len(group)
    heights = [SIDE, *([SIDE + LABEL, SIDE] * len(group))]
    width, height = MARGIN + SIDE * len(ids) * 1.06, sum(heights) + 0.06 * rows + 0.1
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(
        rows,
        len(ids),
        squeeze=False,
        gridspec_kw={
            "left": MARGIN / width,
            "right": 0.995,
            "top": 0.99,
            "bottom": 0.01,
            "wspace": 0.06,
            "hspace": 0.08,
            "height_ratios": heights,
        },
    )
    bounds = group[0].cell.info["dataset"]["bounds"]
    for column, sample in enumerate(ids):
        _show(axes[0, column], group[0].clean[sample], bounds)
    _name(axes[0, 0], "clean", INK)
    for i, kept in enumerate(group):
        _draw_model(axes[1 + 2 * i : 3 + 2 * i], kept, ids, bounds)
    return figure


def _draw_model(
    axes: NDArray[Any], kept: _Kept, ids: Sequence[int], bounds: Sequence[float]
) -> None:
    changes = [kept.shown[s].astype(float) - kept.clean[s] for s in ids]
    largest = max(float(np.abs(change).max()) for change in changes) or 1.0
    for column, (sample, change) in enumerate(zip(ids, changes, strict=True)):
        shown, difference = axes[0, column], axes[1, column]
        _show(shown, kept.shown[sample], bounds)
        _say(shown, kept.records[sample], kept.cell.panel.norm)
        mean = change.mean(0) if change.shape[0] == 3 else change[0]
        difference.imshow(mean, cmap="RdBu_r", vmin=-largest, vmax=largest, interpolation="none")
        _bare(difference)
    _name(axes[0, 0], fill(shorten(kept.cell.model), WORDS), INK)
    _name(axes[1, 0], f"difference\n±{number(largest)}", MUTED)


def _show(axes: Axes, image: Image, bounds: Sequence[float]) -> None:
    low, high = bounds
    pixels = np.clip((image.astype(float) - low) / (high - low), 0, 1)
    pixels = pixels.transpose(1, 2, 0) if image.shape[0] == 3 else pixels[0]
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="none")
    _bare(axes)


def _say(axes: Axes, record: Record, norm: str) -> None:
    """Write beneath an image: label → decision, ✕ if rejected, the oracle's class if it is another; distance."""
    wrong_before = record.status == "already_wrong"
    fell = record.goal_reached or wrong_before
    refused = " ✕" if record.after.accepted is False else ""
    truth = "" if record.oracle in (None, record.label, -1) else f" (is {record.oracle})"
    distance = number(float(getattr(record.distance, norm)))
    below = "wrong before" if wrong_before else distance if fell else f"{distance} held"
    place: dict[str, Any] = {"ha": "center", "va": "top", "transform": axes.transAxes}
    weight, colour = ("bold", FELL) if fell else ("normal", HELD)
    decision = f"{record.label} → {record.after.decision}{refused}{truth}"
    axes.text(0.5, -0.06, decision, fontsize=8, fontweight=weight, color=colour, **place)
    axes.text(0.5, -0.22, below, fontsize=7, color=MUTED, **place)


def _name(axes: Axes, text: str, colour: str) -> None:
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


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.set_anchor("N")
    for spine in axes.spines.values():
        spine.set_visible(False)
