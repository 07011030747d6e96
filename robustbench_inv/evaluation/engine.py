"""Runs a cell: evaluates the blocks that have no records yet, and writes each as soon as it is finished."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from math import inf
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from robustbench_inv.arguments import check_flag, check_number, check_text, format_eps
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.errors import DEADLINE_PASSED, AttackFailed, BadParameter, DeadlinePassed
from robustbench_inv.evaluation.block import CellContext, evaluate_block
from robustbench_inv.evaluation.jobs import Job
from robustbench_inv.evaluation.judge import BlockState, Judge
from robustbench_inv.evaluation.loading import Loader
from robustbench_inv.evaluation.provenance import describe_cell
from robustbench_inv.evaluation.search import (
    SearchCache,
    make_searches,
)
from robustbench_inv.evaluation.stored_answers import store_answers
from robustbench_inv.randomness import seeded
from robustbench_inv.results.cell_writing import CellRequest, CellWriter
from robustbench_inv.results.oracle_error import write_oracle_error
from robustbench_inv.results.run_files import CELL, WITHOUT_DIGESTS, CellFolder
from robustbench_inv.tensors import is_out_of_memory
from robustbench_inv.torch_state import KeptModules, kept_modules

__all__ = [
    "BATCH_SIZE",
    "CellState",
    "Existing",
    "Progress",
    "RunOptions",
    "ignore_progress",
    "run_cell",
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

    Raises:
        BadParameter: for an unusable value.
    """

    batch_size: int | None = None
    device: str = "cpu"
    keep_images: bool = False
    existing: Existing = "resume"
    timeout: float | None = None
    deadline: float = field(default_factory=lambda: min(_deadlines, default=inf))

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


REPORT_SECONDS = 1.0
"""Least seconds between two reports within a block."""


class BlockProgress:
    """Reports what an attack does within a block, at most once in REPORT_SECONDS, and stops it at the deadline.

    Args:
        report: called with one line of details.
        deadline: time of ``time.time``.
    """

    def __init__(self, report: Callable[[str], None], deadline: float = inf) -> None:
        self._report, self._next = report, time.monotonic() + REPORT_SECONDS
        self._deadline = deadline

    def __call__(self, model: CountingModel) -> None:
        """Report the state of the queried model, if it is time.

        Raises:
            DeadlinePassed: after the deadline.
        """
        if time.time() > self._deadline:
            raise DeadlinePassed(DEADLINE_PASSED)
        if time.monotonic() < self._next:
            return
        with suppress(Exception):  # within the attack, which would be blamed
            self._report(_detail(model))
        self._next = time.monotonic() + REPORT_SECONDS


def _detail(model: CountingModel) -> str:
    """Return the eps, the part of the attack, and the samples on which it has not succeeded yet."""
    epsilons, count = model.threat.epsilons, len(model.batch)
    robust = count - int(model.found.sum()) if model.keep_best else None
    passes = int((model.forward_passes + model.backward_passes).sum())
    parts = (
        f"eps {format_eps(epsilons[-1])}" if epsilons else "",
        model.stage,
        f"{count} samples" if robust is None else f"{robust} of {count} samples robust",
        f"{passes:,} passes",
    )
    return ", ".join(part for part in parts if part)


def run_cell(
    job: Job,
    folder: Path,
    options: RunOptions,
    report: ProgressCallback = ignore_progress,
    cache: SearchCache | None = None,
) -> list[str]:
    """Evaluate the samples of a cell that have no records yet.

    Args:
        job: the cell and its samples.
        folder: the cell's folder.
        options: how to run.
        report: called when the cell is opened, within blocks, and after each block.
        cache: results of other cells that search on the same substitute.

    Returns:
        Messages for the user, one line each.

    Raises:
        BadResults: if the folder cannot be written, or belongs to another process or cell.
        BadModel: if the model's output for a clean input is not a number.
        DeadlinePassed: after the deadline; finished blocks are kept.
    """
    if time.time() > options.deadline:
        raise DeadlinePassed(DEADLINE_PASSED)
    if options.existing == "skip" and (folder / CELL).exists():
        return [f"{job.title}: skipped, since it has results already"]
    size = options.batch_size or BATCH_SIZE
    redo, repair = options.existing == "redo", options.existing == "repair"
    description = describe_cell(job, options.device)
    identity = description["identity"]
    if redo or not CellFolder(folder).has_description(repair=repair, identity=identity):
        description["answers"] = store_answers(job, options.device)
    request = CellRequest(description, job.samples, size, redo=redo, repair=repair)
    with CellWriter(folder, request) as writer:
        notes = _messages(job, writer, options)
        report(_progress(job, writer))
        if writer.next_block():
            with kept_modules([job.model.classifier] if job.model.is_foreign else []) as kept:
                _run_blocks(job, writer, options, report, cache, kept)
        writer.finish()
        _write_oracle_error(job, folder)
        notes += _lost_images(job, writer)
    return notes


def _messages(job: Job, writer: CellWriter, options: RunOptions) -> list[str]:
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


def _run_blocks(
    job: Job,
    writer: CellWriter,
    options: RunOptions,
    report: ProgressCallback,
    cache: SearchCache | None,
    kept: KeptModules,
) -> None:
    device = torch.device(options.device)
    watch = BlockProgress(lambda detail: report(_progress(job, writer, detail)), options.deadline)
    search, short_run = make_searches(job, device, cache, watch)
    loader = Loader(job.dataset, device, job.model.classifier.dtype, job.effective_oracle)
    judge = Judge(job.model.classifier, job.dataset, job.seed, job.effective_oracle)
    source = judge.oracle.source if judge.oracle else None
    while pending := writer.next_block():
        number, ids = pending
        began = time.perf_counter()
        log_event = partial(writer.note, block=number)
        kind = job.attack.attack.kind
        context = CellContext(kind, job.threat, search, short_run, judge, log_event)
        try:
            kept.restore()  # each block starts from the same model, so that a resumed run does
            with seeded(job.seed, ids[0], device):
                state = evaluate_block(context, loader.batch(ids))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            _halve_batch_size(writer, len(ids), error)
            continue
        seconds = round(time.perf_counter() - began, 4)
        log_event("block_time", seconds=seconds, n_samples=len(ids))
        keep = options.keep_images or writer.restores_images
        writer.append(state.records(source), _images(state) if keep else None)
        report(_progress(job, writer))


def _progress(job: Job, writer: CellWriter, detail: str = "") -> Progress:
    return Progress(job.title, job.spec.digest, writer.done, writer.total, detail=detail)


def _write_oracle_error(job: Job, folder: Path) -> None:
    """Write the oracle's own error rate on the samples of the cell, unless the file is complete."""
    cell = CellFolder(folder)
    known = cell.oracle_error()
    if job.effective_oracle is None or (known and known.trials == len(cell.samples)):
        return
    if error := job.effective_oracle.error(cell.samples):
        write_oracle_error(folder, error)


def _halve_batch_size(writer: CellWriter, size: int, error: BaseException) -> None:
    """Continue with half the batch size.

    Raises:
        AttackFailed: if a single sample needs more memory than there is.
    """
    if size == 1:
        raise AttackFailed("not enough memory for a single sample") from error
    writer.lower_batch_size(size // 2)
    writer.note(
        "batch_size_lowered", batch_size=writer.batch_size, reason=str(error).splitlines()[0]
    )


def _images(state: BlockState) -> dict[str, np.ndarray]:
    return {"clean": _array(state.batch.images), "adversarial": _array(state.images)}


def _array(images: Tensor) -> np.ndarray:
    kept = images if images.dtype in (torch.float32, torch.float64) else images.float()
    array: np.ndarray = kept.cpu().contiguous().numpy()
    return array
