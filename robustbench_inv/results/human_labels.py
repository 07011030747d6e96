"""Human labels: reads a CSV with a row for each judgement, checks it, and takes the majority."""

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
"""The columns that the labelling page exports. ``image`` is a digest of its pixels; ``known`` is the class of a catch
trial. A file needs ``human_label``, and ``image`` or else ``cell`` and ``sample``."""

UNCLEAR = "unclear"
"""The label of an image without a clear class; ``none``, ``?`` and an empty field mean the same."""

Key = TypeVar("Key", str, tuple[str, int])
_UNCLEAR = (UNCLEAR, "none", "?", "")


@dataclass(frozen=True)
class HumanLabel:
    """One row: the label that a person gave to one image.

    Args:
        line: in the file, from 2.
        image: digest of its pixels; empty if the row has only cell and sample.
        cell: digest of the cell, or its start; empty if the row has only the image.
        sample: sample id; None likewise.
        label: class; None if unclear.
        rater: name or initials; may be empty.
        known: class of a catch trial; None for other images.
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
    def counted(self) -> tuple[HumanLabel, ...]:
        """The judgements without catch trials."""
        return tuple(each for each in self.judgements if each.known is None)

    @property
    def raters(self) -> tuple[str, ...]:
        """The raters in the order of the file; an empty name for those without one."""
        return tuple(dict.fromkeys(each.rater for each in self.judgements))

    @property
    def names_images(self) -> bool:
        """Does any row have the digest of an image?"""
        return any(each.image for each in self.counted)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the classes of images and samples."""
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
        """Return the class of more than half of the judgements of an image; None without a majority."""
        return _majority(self._of_images.get(image, ()))

    def of_sample(self, cell: str, sample: int) -> int | None:
        """Return the same for a sample of a cell, by the rows without an image.

        Args:
            cell: whole digest of the cell.
            sample: sample id.
        """
        found = (v for (c, s), v in self._of_samples.items() if s == sample and cell.startswith(c))
        return _majority([vote for votes in found for vote in votes])

    def error(self, rater: str | None = None) -> OracleError | None:
        """Return the error rate of one rater or of all on catch trials; None without any."""
        trials = [each for each in self.judgements if each.known is not None]
        if rater is not None:
            trials = [each for each in trials if each.rater == rater]
        unknown = sum(each.label is None for each in trials)
        wrong = sum(each.label not in (None, each.known) for each in trials)
        found = OracleError("human", "catch trials", len(trials), wrong, unknown)
        return found if trials else None

    def disagreements(self) -> tuple[int, int]:
        """Return the number of images or samples with different labels, and how many of these have no majority."""
        votes = [*self._of_images.values(), *self._of_samples.values()]
        split = [each for each in votes if len(set(each)) > 1]
        return len(split), sum(_majority(each) is None for each in split)

    def check_images(self, digests: Mapping[str, Mapping[int, str]]) -> int:
        """Compare the rows with the images of a run, and return how many are about other images.

        Args:
            digests: by the digest of the cell and the sample id, the digest of the image.

        Raises:
            BadData: with the line, if it names a cell of the run and another image than that cell contains; or
                if no row is about the run.
        """
        images = {image for samples in digests.values() for image in samples.values()}
        elsewhere = sum(not self._fits(each, digests, images) for each in self.counted)
        if elsewhere == len(self.counted):
            raise BadData(
                f"no row of {self.name} is about an image of this run",
                remedy="give the run, with images, from which the labelling page was made",
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
        self, row: HumanLabel, digests: Mapping[str, Mapping[int, str]], images: set[str]
    ) -> bool:
        where, cell = f"line {row.line} of {self.name}", _cell_of_row(row, digests, self.name)
        if row.image in images or cell is None:
            return row.image in images
        if row.sample is None or row.sample not in digests[cell]:
            raise BadData(
                f"{where}: unknown sample of cell {cell[:8]}",
                got=row.sample,
                expected=f"one of its {len(digests[cell])} samples with images",
            )
        if row.image:
            raise BadData(
                f"{where}: sample {row.sample} of cell {cell[:8]} has another image than the labelled one",
                got=row.image,
                expected=digests[cell][row.sample],
            )
        return True

    @cached_property
    def _of_images(self) -> Mapping[str, list[int | None]]:
        return _group_votes((each.image, each.label) for each in self.counted if each.image)

    @cached_property
    def _of_samples(self) -> Mapping[tuple[str, int], list[int | None]]:
        return _group_votes(
            ((each.cell, each.sample), each.label)
            for each in self.counted
            if not each.image and each.sample is not None
        )


def read_labels(path: Path) -> HumanLabels:
    """Read a CSV of human labels.

    Raises:
        BadData: if it cannot be read, lacks columns, or a line has an unusable value.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}",
            remedy="give the CSV that the labelling page exported",
        ) from error
    rows = csv.DictReader(io.StringIO(text, newline=""))
    _check_columns(path.name, rows.fieldnames or ())
    judgements = tuple(
        _read_row(path.name, rows.line_num, row) for row in rows if any(row.values())
    )
    if not judgements:
        raise BadData(f"{path.name} has no judgement", expected="a line for each image")
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
        raise BadData(f"{where} names no image", expected="cell and sample")
    label = values["human_label"]
    return HumanLabel(
        line,
        values["image"],
        values["cell"],
        sample,
        None if label.lower() in _UNCLEAR else _whole_number(label, "human_label", where),
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


def _cell_of_row(row: HumanLabel, digests: Mapping[str, object], name: str) -> str | None:
    """Return the digest of a row's cell; None if the row has none or it is not in the run."""
    found = [digest for digest in digests if row.cell and digest.startswith(row.cell)]
    if len(found) > 1:
        raise BadData(
            f"line {row.line} of {name}: several cells have digests that begin so", got=row.cell
        )
    return found[0] if found else None


def _group_votes(pairs: Iterable[tuple[Key, int | None]]) -> dict[Key, list[int | None]]:
    found: dict[Key, list[int | None]] = {}
    for key, label in pairs:
        found.setdefault(key, []).append(label)
    return found


def _majority(votes: Sequence[int | None]) -> int | None:
    """Return the class of more than half of the votes; an unclear one votes for no class."""
    if not votes:
        return None
    label, count = Counter(votes).most_common(1)[0]
    return label if 2 * count > len(votes) else None
