"""The gallery of a report: samples with their images under every attack, to be filtered in the page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_inv.reporting.run_results import CellGroup
from robustbench_inv.reporting.table_formats import format_number, norm_symbol
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.pixels import is_image_shape, png_uri, to_pixels
from robustbench_inv.results.record import Record

__all__ = [
    "LARGEST_GALLERY",
    "NO_GALLERY",
    "Change",
    "Gallery",
    "collect_changes",
    "collect_gallery",
]

LARGEST_GALLERY = 3 << 20
"""Characters of all images of a page together; samples beyond are left out."""


@dataclass(frozen=True)
class Gallery:
    """What the page shows.

    Args:
        entries: one for each sample of each cell, as the script reads them.
        images: addresses of the images that the entries number.
        total: samples of all cells that keep images.
    """

    entries: tuple[dict[str, Any], ...]
    images: tuple[str, ...]
    total: int


NO_GALLERY = Gallery((), (), 0)


def collect_gallery(cells: Sequence[FinishedCell], largest: int = LARGEST_GALLERY) -> Gallery:
    """Return the samples of cells that keep images: broken ones first, each cell in turn.

    Args:
        cells: those without images, or with inputs that are no images, are passed over.
        largest: characters of all images together.
    """
    kept = [found for cell in cells if (found := _Kept.of(cell))]
    entries: list[dict[str, Any]] = []
    images: dict[str, int] = {}
    size = 0
    for turn in zip_longest(*(each.samples() for each in kept)):
        for cell, row in (each for each in turn if each is not None):
            pair = cell.images(row)
            size += sum(len(image) for image in set(pair) - images.keys())
            if size > largest:
                return Gallery(tuple(entries), tuple(images), sum(len(k.rows) for k in kept))
            numbers = [images.setdefault(image, len(images)) for image in pair]
            entries.append({**cell.facts(row), "images": numbers})
    return Gallery(tuple(entries), tuple(images), len(entries))


@dataclass(frozen=True)
class Change:
    """How a sample differs between two models: a filter's value, and where it differs, in words."""

    kind: str
    places: str


def collect_changes(
    cells: Sequence[FinishedCell], changes: Mapping[tuple[str, int], Change]
) -> Gallery:
    """Return the gallery of the samples that differ between compared models, under the attacks of both.

    Args:
        cells: of all models; those without images are passed over.
        changes: by identity of the data set and sample.
    """

    def changed(cell: FinishedCell) -> FinishedCell:
        key = cell.info.dataset_key
        chosen = np.array([(key, sample) in changes for sample in cell.ids.tolist()], bool)
        return replace(cell, records=cell.records.where(chosen))

    keys = {cell.dataset.name: cell.info.dataset_key for cell in cells}
    found = collect_gallery([each for each in map(changed, cells) if each.records])
    entries = (
        {**entry, "change": change.kind, "places": change.places}
        for entry in found.entries
        for change in [changes[keys[entry["dataset"]], entry["sample"]]]
    )
    return replace(found, entries=tuple(entries))


@dataclass(frozen=True, eq=False)
class _Kept:
    """The images of one cell: rows of ``clean`` and ``adversarial`` by sample."""

    cell: FinishedCell
    clean: NDArray[Any]
    adversarial: NDArray[Any]
    rows: dict[int, int]
    records: dict[int, Record]

    @classmethod
    def of(cls, cell: FinishedCell) -> "_Kept | None":
        """Return the kept images of a cell; None without any."""
        images = cell.read_images() if is_image_shape(cell.dataset.shape) else None
        if images is None:
            return None
        records = {r.sample: r for r in cell.records}
        rows = {int(s): i for i, s in enumerate(images["samples"]) if int(s) in records}
        return cls(cell, images["clean"], images["adversarial"], rows, records) if rows else None

    def samples(self) -> Iterator[tuple["_Kept", int]]:
        """Yield the samples, those first that the attack broke."""
        order = sorted(self.rows, key=lambda s: (not self.records[s].is_broken, s))
        yield from ((self, sample) for sample in order)

    def images(self, sample: int) -> tuple[str, str]:
        """Return the addresses of the clean and the adversarial image."""
        row, bounds = self.rows[sample], (self.cell.dataset.bounds[0], self.cell.dataset.bounds[1])
        pair = np.stack([self.clean[row], self.adversarial[row]])
        clean, adversarial = to_pixels(pair, bounds)
        return png_uri(clean), png_uri(adversarial)

    def facts(self, sample: int) -> dict[str, Any]:
        """Return the facts of a sample."""
        record, norm = self.records[sample], self.cell.norm
        distance = format_number(getattr(record.distance, norm))
        found = {
            "model": self.cell.model_label,
            "attack": self.cell.attack_label,
            "dataset": self.cell.dataset.name,
            "threat": CellGroup.of(self.cell).title,
            "sample": sample,
            "label": record.label,
            "clean": record.clean.prediction,
            "prediction": record.adversarial.prediction,
            "outcome": _outcome(record),
            "distance": f"{norm_symbol(norm)} {distance}",
        }
        if record.oracle_label is not None:
            found["oracle"] = record.oracle_label
        if record.adversarial.accepted is not None:
            found["accepted"] = record.adversarial.accepted
        return found


def _outcome(record: Record) -> str:
    if not record.was_attacked:
        return "misclassified before"
    if record.is_broken:
        return "attack succeeded"
    return "attack failed" if record.status == "ok" else record.status.replace("_", " ")
