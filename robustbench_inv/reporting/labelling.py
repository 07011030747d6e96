"""The labelling page: images of a run, shuffled, for people to label by class."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import numpy as np

from robustbench_inv.errors import BadParameter, BadResults
from robustbench_inv.identity import digest_value
from robustbench_inv.reporting.html import render_page
from robustbench_inv.results.files import explain_write_errors, write_atomically
from robustbench_inv.results.human_labels import COLUMNS, UNCLEAR
from robustbench_inv.results.pixels import Pixels, is_image_shape, pixel_digest, png_uri, to_pixels
from robustbench_inv.results.run_files import CellFolder, RunFolder

__all__ = ["LabelSelection", "LabelTask", "choose_tasks", "write_label_page"]


MAX_CLASSES = 10
"""Classes that a keyboard has digits for."""


@dataclass(frozen=True)
class LabelSelection:
    """What is to be labelled.

    Args:
        cells: patterns, one of which must fit a cell's attack, model, ``ATTACK on MODEL``, or digest or its start;
            no pattern selects every cell.
        images: number of changed images, drawn at random; None for all.
        catch: number of clean images of known class that are mixed in (catch trials).
        seed: of the draw and the order.
    """

    cells: tuple[str, ...] = ()
    images: int | None = None
    catch: int = 20
    seed: int = 0

    def matches(self, cell: CellFolder) -> bool:
        """Does a pattern fit the cell?"""
        model, attack = cell.info.model.name, cell.info.attack.name
        names = (model, attack, f"{attack} on {model}", cell.digest)
        fits = (fnmatchcase(n, p) or cell.digest.startswith(p) for p in self.cells for n in names)
        return not self.cells or any(fits)


@dataclass(frozen=True)
class LabelTask:
    """One image that a person labels.

    Args:
        image: digest of its pixels.
        cell: digest of the first cell that contains it.
        sample: its sample id there.
        known: class of a clean image, a catch trial; None for a changed one.
        png: the image as a data URI.
    """

    image: str
    cell: str
    sample: int
    known: int | None
    png: str = field(repr=False)


def choose_tasks(runs: Sequence[Path], choice: LabelSelection) -> tuple[list[LabelTask], int]:
    """Return the images to label in the order of the page, and the number of classes.

    Every image whose pixels differ from the clean ones is labelled once, even if several cells contain it.

    Args:
        runs: run folders whose cells have images.
        choice: selects cells and numbers of images.

    Raises:
        BadResults: if no image was kept, none was changed, or the cells do not have the same classes.
    """
    cells = [cell for run in runs for cell in RunFolder(run).cells() if choice.matches(cell)]
    kept = [cell for cell in cells if cell.images() is not None and _has_images(cell)]
    if not kept:
        raise BadResults(
            "there are no images to label",
            got="none were kept" if cells else f"no cell like {', '.join(choice.cells)}",
            expected="cells of images that were evaluated with --keep-images",
        )
    classes = _num_classes(kept)
    clean, changed = _distinct_images(kept)
    return _shuffled_tasks(clean, changed, choice), classes


def write_label_page(
    out: Path, trials: Sequence[LabelTask], classes: Sequence[str], title: str
) -> None:
    """Write the page: one file without external resources, which sends no data.

    Args:
        out: the HTML file.
        trials: in the order of the page.
        classes: their names, by number.
        title: of the page.

    Raises:
        BadResults: if it cannot be written.
    """
    page = {
        "id": digest_value({"trials": [[t.image, t.known] for t in trials]})[:12],
        "columns": COLUMNS,
        "unclear": UNCLEAR,
        "classes": list(classes),
        "trials": [asdict(trial) for trial in trials],
    }
    html = render_page("label.html", {}, title=title, page=page, classes=list(classes))
    with explain_write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, html.encode())


def _has_images(cell: CellFolder) -> bool:
    return is_image_shape(cell.info.dataset.shape)


def _num_classes(cells: Sequence[CellFolder]) -> int:
    numbers = {cell.info.dataset.num_classes for cell in cells}
    if len(numbers) > 1:
        raise BadResults("the cells differ in the number of classes", got=sorted(numbers))
    (number,) = numbers
    if number > MAX_CLASSES:
        raise BadResults(
            "too many classes for a keyboard", got=number, expected=f"at most {MAX_CLASSES}"
        )
    return number


@dataclass(frozen=True)
class _LabelImage:
    cell: str
    sample: int
    label: int
    pixels: Pixels = field(repr=False)

    def trial(self, image: str, known: int | None) -> LabelTask:
        return LabelTask(image, self.cell, self.sample, known, png_uri(self.pixels))


def _distinct_images(
    cells: Iterable[CellFolder],
) -> tuple[dict[str, _LabelImage], dict[str, _LabelImage]]:
    """Return the clean images and the changed ones by digest, each once."""
    clean: dict[str, _LabelImage] = {}
    changed: dict[str, _LabelImage] = {}
    for cell in cells:
        for before, after in _image_pairs(cell):
            digests = pixel_digest(before.pixels), pixel_digest(after.pixels)
            clean.setdefault(digests[0], before)
            if digests[0] != digests[1]:
                changed.setdefault(digests[1], after)
    return clean, changed


def _image_pairs(cell: CellFolder) -> Iterator[tuple[_LabelImage, _LabelImage]]:
    kept, bounds = cell.images(), cell.info.dataset.bounds
    assert kept is not None
    labels = {record.sample: record.label for record in cell.records()}
    before, after = (to_pixels(kept[name], bounds) for name in ("clean", "adversarial"))
    for row, sample in enumerate(np.asarray(kept["samples"]).tolist()):
        if sample in labels:
            image = partial(_LabelImage, cell.digest, sample, labels[sample])
            yield image(before[row]), image(after[row])


def _shuffled_tasks(
    clean: dict[str, _LabelImage], changed: dict[str, _LabelImage], choice: LabelSelection
) -> list[LabelTask]:
    if not changed:
        raise BadResults("there are no changed images to label", got=f"{len(clean)} clean ones")
    if choice.catch < 0 or (choice.images is not None and choice.images < 1):
        raise BadParameter("unusable number of images", got=(choice.images, choice.catch))
    draw = random.Random(choice.seed)
    images = sorted(changed)
    images = draw.sample(images, min(choice.images or len(images), len(images)))
    trials = [changed[image].trial(image, None) for image in images]
    catch = _catch_trials({k: v for k, v in clean.items() if k not in changed}, choice.catch, draw)
    trials += [clean[image].trial(image, clean[image].label) for image in catch]
    draw.shuffle(trials)
    return trials


def _catch_trials(clean: dict[str, _LabelImage], count: int, draw: random.Random) -> list[str]:
    """Return the digests of some clean images, of every class as many as of any other."""
    order = draw.sample(sorted(clean), len(clean))
    rank: dict[int, int] = {}
    ranks: list[tuple[int, int, str]] = []
    for image in order:
        label = clean[image].label
        rank[label] = rank.get(label, 0) + 1
        ranks.append((rank[label], len(ranks), image))
    return [image for _, _, image in sorted(ranks)[:count]]
