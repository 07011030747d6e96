"""What people said of images: a CSV with a row for each judgement, read, checked, and put to the vote."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from robustbench_inv.errors import BadData
from robustbench_inv.identity import digest_value
from robustbench_inv.results.oracle_error import OracleError

__all__ = ["COLUMNS", "UNCLEAR", "HumanLabel", "HumanLabels", "read_labels"]

COLUMNS = ("image", "cell", "sample", "human_label", "rater", "known")
"""Of the files that the labelling page exports. ``image`` is a digest of what was seen; ``known`` is the class of
a catch trial. A file needs ``human_label``, and ``image`` or else ``cell`` and ``sample``."""

UNCLEAR = "unclear"
"""What is written where a person sees none of the classes; ``none``, ``?`` and nothing are read like it."""

Key = TypeVar("Key", str, tuple[str, int])
_UNCLEAR = (UNCLEAR, "none", "?", "")


@dataclass(frozen=True)
class HumanLabel:
    """One row: what a person saw in one image.

    Args:
        line: in the file, from 2.
        image: digest of what was seen; empty if the row names cell and sample alone.
        cell: digest of the cell, or the start of one; empty if the row names the image alone.
        sample: sample id, None likewise.
        label: class, None where it was unclear.
        rater: who said so; may be empty.
        known: class of a catch trial, None for what is to be judged.
    """

    line: int
    image: str
    cell: str
    sample: int | None
    label: int | None
    rater: str
    known: int | None


@dataclass(frozen=True)
class HumanLabels:
    """All judgements of a file.

    Args:
        name: of the file.
        judgements: its rows.
    """

    name: str
    judgements: tuple[HumanLabel, ...]

    @property
    def asked(self) -> tuple[HumanLabel, ...]:
        """The judgements that count: those that are no catch trials."""
        return tuple(each for each in self.judgements if each.known is None)

    @property
    def raters(self) -> tuple[str, ...]:
        """Who judged, in the order of the file; an empty name for those who gave none."""
        return tuple(dict.fromkeys(each.rater for each in self.judgements))

    @property
    def names_images(self) -> bool:
        """Does any row name the image that was seen?"""
        return any(each.image for each in self.asked)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what the images and samples were taken for."""
        return digest_value(
            {
                "images": {image: _majority(votes) for image, votes in self._of_images.items()},
                "samples": {
                    f"{cell} {sample}": _majority(votes)
                    for (cell, sample), votes in self._of_samples.items()
                },
            }
        )

    def of_image(self, image: str) -> int | None:
        """Return the class that more than half of the judgements of an image name, None if there is none."""
        return _majority(self._of_images.get(image, ()))

    def of_sample(self, cell: str, sample: int) -> int | None:
        """Return the like for a sample of a cell, by the rows that name no image.

        Args:
            cell: whole digest of the cell.
            sample: sample id.
        """
        found = (v for (c, s), v in self._of_samples.items() if s == sample and cell.startswith(c))
        return _majority([vote for votes in found for vote in votes])

    def error(self, rater: str | None = None) -> OracleError | None:
        """Return how the catch trials of one rater or of all went, None if there were none."""
        trials = [each for each in self.judgements if each.known is not None]
        if rater is not None:
            trials = [each for each in trials if each.rater == rater]
        unknown = sum(each.label is None for each in trials)
        wrong = sum(each.label not in (None, each.known) for each in trials)
        found = OracleError("human", "catch trials", len(trials), wrong, unknown)
        return found if trials else None

    def disputed(self) -> tuple[int, int]:
        """Return how many images or samples were judged differently, and how many of these no majority settles."""
        votes = [*self._of_images.values(), *self._of_samples.values()]
        split = [each for each in votes if len(set(each)) > 1]
        return len(split), sum(_majority(each) is None for each in split)

    def check_places(self, shown: Mapping[str, Mapping[int, str]]) -> int:
        """Hold the rows against what a run shows, and return how many are about something else.

        Args:
            shown: of each cell, by its digest, the digest of what was seen of each sample.

        Raises:
            BadData: naming the line, if it is about a cell of the run and yet not about what that shows; or if no
                row is about the run at all.
        """
        images = {image for samples in shown.values() for image in samples.values()}
        elsewhere = sum(not self._fits(each, shown, images) for each in self.asked)
        if elsewhere == len(self.asked):
            raise BadData(
                f"no row of {self.name} is about what this run shows",
                remedy="name the run that the page was made from, with its images",
            )
        return elsewhere

    def check_classes(self, classes: int) -> None:
        """Raise for a label that is no class.

        Raises:
            BadData: naming the line.
        """
        for each in self.judgements:
            for label in (each.label, each.known):
                if label is not None and not 0 <= label < classes:
                    raise BadData(
                        f"line {each.line} of {self.name}: label out of range",
                        got=label,
                        expected=f"0 to {classes - 1}, or {UNCLEAR}",
                    )

    def _fits(
        self, row: HumanLabel, shown: Mapping[str, Mapping[int, str]], images: set[str]
    ) -> bool:
        where, cell = f"line {row.line} of {self.name}", _cell_of_row(row, shown, self.name)
        if row.image in images or cell is None:
            return row.image in images
        if row.sample is None or row.sample not in shown[cell]:
            raise BadData(
                f"{where}: unknown sample of cell {cell[:8]}",
                got=row.sample,
                expected=f"one of its {len(shown[cell])} samples with images",
            )
        if row.image:
            raise BadData(
                f"{where}: sample {row.sample} of cell {cell[:8]} shows another image than was labelled",
                got=row.image,
                expected=shown[cell][row.sample],
            )
        return True

    @cached_property
    def _of_images(self) -> Mapping[str, list[int | None]]:
        return _group_votes((each.image, each.label) for each in self.asked if each.image)

    @cached_property
    def _of_samples(self) -> Mapping[tuple[str, int], list[int | None]]:
        return _group_votes(
            ((each.cell, each.sample), each.label)
            for each in self.asked
            if not each.image and each.sample is not None
        )


def read_labels(path: Path) -> HumanLabels:
    """Read a CSV of human labels.

    Raises:
        BadData: if it cannot be read, lacks columns, or a line says nothing that can be understood.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}",
            remedy="name the CSV that the labelling page exported",
        ) from error
    rows = csv.DictReader(io.StringIO(text, newline=""))
    _check_columns(path.name, rows.fieldnames or ())
    judgements = tuple(
        _read_row(path.name, rows.line_num, row) for row in rows if any(row.values())
    )
    if not judgements:
        raise BadData(f"{path.name} holds no judgement", expected="a line for each image")
    return HumanLabels(path.name, judgements)


def _check_columns(name: str, found: Sequence[str]) -> None:
    if "human_label" in found and ("image" in found or {"cell", "sample"} <= set(found)):
        return
    raise BadData(
        f"{name} is no table of human labels",
        got=", ".join(found)[:80],
        expected="columns human_label, and image or cell and sample, separated by commas",
    )


def _read_row(name: str, line: int, row: Mapping[str, str | None]) -> HumanLabel:
    where = f"line {line} of {name}"
    values = {column: (row.get(column) or "").strip() for column in COLUMNS}
    sample = _whole_number(values["sample"], "sample", where)
    if not values["image"] and (not values["cell"] or sample is None):
        raise BadData(f"{where} does not say which image it is about", expected="cell and sample")
    said = values["human_label"]
    return HumanLabel(
        line,
        values["image"],
        values["cell"],
        sample,
        None if said.lower() in _UNCLEAR else _whole_number(said, "human_label", where),
        values["rater"],
        _whole_number(values["known"], "known", where),
    )


def _whole_number(text: str, what: str, where: str) -> int | None:
    if not text:
        return None
    if not text.isascii() or not text.isdecimal():
        expected = "a whole number" + (f", or {UNCLEAR}" if what == "human_label" else "")
        raise BadData(f"{where}: unusable {what}", got=text, expected=expected)
    return int(text)


def _cell_of_row(row: HumanLabel, shown: Mapping[str, object], name: str) -> str | None:
    """Return the digest of the cell that a row names, None if it is not of the run or the row names none."""
    found = [digest for digest in shown if row.cell and digest.startswith(row.cell)]
    if len(found) > 1:
        raise BadData(f"line {row.line} of {name}: several cells begin so", got=row.cell)
    return found[0] if found else None


def _group_votes(pairs: Iterable[tuple[Key, int | None]]) -> dict[Key, list[int | None]]:
    found: dict[Key, list[int | None]] = {}
    for key, label in pairs:
        found.setdefault(key, []).append(label)
    return found


def _majority(votes: Sequence[int | None]) -> int | None:
    """Return what more than half of the votes say; an unclear one is a vote for nothing."""
    if not votes:
        return None
    label, count = Counter(votes).most_common(1)[0]
    return label if 2 * count > len(votes) else None
