"""How a cell is run, opened and completed, and what is reported meanwhile."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Literal, get_args

from robustbench_inv.arguments import check_flag, check_number, check_text
from robustbench_inv.errors import BadParameter
from robustbench_inv.evaluation.jobs import Job
from robustbench_inv.evaluation.provenance import describe_cell
from robustbench_inv.evaluation.stored_answers import store_answers
from robustbench_inv.results.cell_parts import CellRequest
from robustbench_inv.results.cell_writing import CellWriter
from robustbench_inv.results.certificates import CertificateOptions
from robustbench_inv.results.oracle_error import write_oracle_error
from robustbench_inv.results.run_files import WITHOUT_DIGESTS, CellFolder

__all__ = [
    "BATCH_SIZE",
    "SKIPPED",
    "CellState",
    "Existing",
    "Progress",
    "RunOptions",
    "cell_messages",
    "complete_cell",
    "ignore_progress",
    "open_cell",
    "until",
]

BATCH_SIZE = 250
"""Default number of samples in a block.

PGD-40 at six eps on 1,000 digits and the baseline CNN takes 8.4 s on one core at 64, 7.2 s at 125, 6.9 s at 250,
7.0 s at 500 and 7.0 s at 1,000. Larger blocks gain nothing, and a crash loses one block.
"""

Existing = Literal["resume", "skip", "redo", "repair"]
"""What to do with existing results of a cell: add the missing samples, skip the cell, delete them and start again, or
compute what is damaged again and add the missing samples."""


SKIPPED = "skipped, since it has results already"

_deadlines: list[float] = []


@contextmanager
def until(deadline: float) -> Iterator[None]:
    """Stop the evaluations inside at a time of ``time.time``; their cells fail with DeadlinePassed."""
    _deadlines.append(deadline)
    try:
        yield
    finally:
        _deadlines.pop()


@dataclass(frozen=True)
class RunOptions:
    """How to run a cell; no option is part of the cell's identity.

    Args:
        batch_size: samples of a block; None for BATCH_SIZE. A resumed cell keeps its first batch size.
        device: where the model computes, as torch names it.
        keep_images: store the clean and the adversarial images.
        existing: resume, skip, redo or repair existing results.
        timeout: seconds that one call of a model, attack or oracle may take; None for no limit.
        deadline: time of ``time.time`` after which attacks are stopped and the present block is not written; by default
            that of the innermost ``until``.
        certify: certify the samples after the attacks; None for no certificates.

    Raises:
        BadParameter: for an unusable value.
    """

    batch_size: int | None = None
    device: str = "cpu"
    keep_images: bool = False
    existing: Existing = "resume"
    timeout: float | None = None
    deadline: float = field(default_factory=lambda: min(_deadlines, default=inf))
    certify: CertificateOptions | None = None

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            check_number(self.batch_size, "batch size")
        check_text(self.device, "device")
        check_flag(self.keep_images, "value of keep_images")
        if self.existing not in get_args(Existing):
            expected = "one of " + ", ".join(get_args(Existing))
            raise BadParameter("unknown value of existing", got=self.existing, expected=expected)


CellState = Literal["running", "completed", "failed"]


@dataclass(frozen=True)
class Progress:
    """Progress of a cell.

    Args:
        title: the cell's title.
        digest: the cell's digest.
        done: number of records written.
        total: number of samples to evaluate.
        cell: number of the cell in the evaluation, from 1.
        cells: number of cells.
        state: ``running``, until the cell is ``completed`` or has ``failed``.
        detail: what the attack does within a block, such as ``eps 0.1, attack 2 of 5, 31 of 250 samples robust``;
            empty between blocks.
    """

    title: str
    digest: str
    done: int = 0
    total: int = 0
    cell: int = 1
    cells: int = 1
    state: CellState = "running"
    detail: str = ""


ProgressCallback = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """Do nothing."""


def complete_cell(job: Job, writer: CellWriter) -> list[str]:
    """Put the images of a cell without further blocks into one file, and write its oracle's error; return messages."""
    writer.finish()
    _write_oracle_error(job, writer.path)
    return _lost_images(job, writer)


def open_cell(
    job: Job, folder: Path, options: RunOptions, *, trusted: bool = False, shared: bool = False
) -> CellWriter:
    """Return the writer of a cell, with the blocks that other processes have finished.

    Args:
        job: the cell.
        folder: its folder.
        options: how to run.
        trusted: has this process compared the kept images with their records before?
        shared: do other processes compute samples of the cell, which keep their places?

    Raises:
        BadResults: if the folder cannot be written, or belongs to another process or cell.
    """
    size = options.batch_size or BATCH_SIZE
    redo, repair = options.existing == "redo", options.existing == "repair"
    description = describe_cell(job, options.device)
    identity = description["identity"]
    if redo or not CellFolder(folder).has_description(repair=repair, identity=identity):
        description["answers"] = store_answers(job, options.device)
    seen = options.deadline == inf  # else the clock decides when to stop, not the results
    request = CellRequest(description, job.samples, size, redo, repair, seen, trusted, shared)
    return CellWriter(folder, request)


def cell_messages(job: Job, writer: CellWriter, options: RunOptions) -> list[str]:
    """Return messages for the user about a cell that was opened."""
    notes = []
    if writer.repaired:
        notes.append(f"{job.title}: {writer.repaired} damaged or later samples are computed again")
    if writer.unprotected:
        notes.append(f"{job.title}: {WITHOUT_DIGESTS}")
    if options.batch_size not in (None, writer.batch_size):
        notes.append(f"{job.title}: resumed with its first batch size, {writer.batch_size}")
    if options.keep_images and writer.done and not (writer.has_images or writer.lost_images):
        notes.append(
            f"{job.title}: images are missing for the {writer.done} samples of earlier runs"
        )
    return notes


def _lost_images(job: Job, writer: CellWriter) -> list[str]:
    if not (lost := writer.lost_images):
        return []
    found = f"the images of {len(lost)} samples were removed (first: {lost[0]})"
    return [f"{job.title}: {found}; --existing repair computes them again"]


def _write_oracle_error(job: Job, folder: Path) -> None:
    """Write the oracle's own error rate on the samples of the cell, unless the file is complete."""
    cell = CellFolder(folder)
    known = cell.oracle_error()
    if job.effective_oracle is None or (known and known.trials == len(cell.samples)):
        return
    if error := job.effective_oracle.error(cell.samples):
        write_oracle_error(folder, error)
