"""Runs a cell: the blocks that have no records yet, one after the other, each written as soon as it is done."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from robustbench_inv.errors import AttackFailed, BadParameter
from robustbench_inv.evaluation.block import BlockResult, CellContext, evaluate_block
from robustbench_inv.evaluation.jobs import Job
from robustbench_inv.evaluation.judge import Judge
from robustbench_inv.evaluation.loading import Loader
from robustbench_inv.evaluation.provenance import describe_cell
from robustbench_inv.evaluation.search import (
    SearchCache,
    SearchFunction,
    is_out_of_memory,
    make_searches,
)
from robustbench_inv.randomness import seeded
from robustbench_inv.results.cell_writing import CellRequest, CellWriter
from robustbench_inv.results.oracle_error import write_oracle_error
from robustbench_inv.results.run_files import CELL, CellFolder

__all__ = ["BATCH_SIZE", "Existing", "Progress", "RunOptions", "ignore_progress", "run_cell"]

BATCH_SIZE = 250
"""Samples of a block where the user names no number.

PGD-40 at six eps on 1,000 digits and the baseline CNN takes, on one core, 8.4 s at 64, 7.2 s at 125, 6.9 s at
250, 7.0 s at 500 and 7.0 s at 1,000: nothing is gained above, and a block is what a crash can lose.
"""

Existing = Literal["resume", "skip", "redo"]
"""What to do with a cell that is there: add what is missing, leave it alone, or forget it and start anew."""


@dataclass(frozen=True)
class RunOptions:
    """How to run, none of which changes what a cell is.

    Args:
        batch_size: samples of a block; None for BATCH_SIZE. A cell keeps the one it began with.
        device: where the model computes, as torch names it.
        keep_images: store what is shown of each sample.
        existing: what to do with cells that are there.
    """

    batch_size: int | None = None
    device: str = "cpu"
    keep_images: bool = False
    existing: Existing = "resume"

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise BadParameter("unusable batch size", got=self.batch_size, expected=">= 1")
        if self.existing not in get_args(Existing):
            expected = "one of " + ", ".join(get_args(Existing))
            raise BadParameter("unknown way with what exists", got=self.existing, expected=expected)


@dataclass(frozen=True)
class Progress:
    """How far a cell has come.

    Args:
        title: the cell's title.
        done: records written.
        total: samples asked for.
        cell: which of the evaluation's cells this is, from 1.
        cells: how many there are.
    """

    title: str
    done: int
    total: int
    cell: int = 1
    cells: int = 1


ProgressCallback = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """Take no notice."""


def run_cell(
    job: Job,
    folder: Path,
    options: RunOptions,
    report: ProgressCallback = ignore_progress,
    cache: SearchCache | None = None,
) -> list[str]:
    """Bring a cell to its end, from wherever it is.

    Args:
        job: the cell and its samples.
        folder: the cell's folder.
        options: how to run.
        report: called when the cell is opened and after each block.
        cache: what other cells that search on the same substitute have found.

    Returns:
        What the user should know, one line each.

    Raises:
        BadResults: if the folder cannot be written, or belongs to another process or cell.
        BadModel: if the model's answers to clean inputs are no numbers.
    """
    if options.existing == "skip" and (folder / CELL).exists():
        return [f"{job.title}: left as it is"]
    redo = options.existing == "redo"
    size = options.batch_size or BATCH_SIZE
    request = CellRequest(describe_cell(job, options.device), job.samples, size, redo)
    with CellWriter(folder, request) as writer:
        notes = _messages(job, writer, options)
        report(Progress(job.title, writer.done, writer.total))
        if writer.next_block():
            searches = make_searches(job, torch.device(options.device), cache)
            _run_blocks(job, writer, options, report, *searches)
        writer.finish()
        _write_oracle_error(job, folder)
    return notes


def _messages(job: Job, writer: CellWriter, options: RunOptions) -> list[str]:
    notes = []
    if options.batch_size not in (None, writer.batch_size):
        notes.append(f"{job.title}: goes on with the batch size it began with, {writer.batch_size}")
    if options.keep_images and writer.done and not writer.has_images:
        notes.append(f"{job.title}: no images of the {writer.done} samples that were done before")
    return notes


def _run_blocks(
    job: Job,
    writer: CellWriter,
    options: RunOptions,
    report: ProgressCallback,
    search: SearchFunction,
    short_run: SearchFunction | None,
) -> None:
    device = torch.device(options.device)
    loader = Loader(job.dataset, device, job.model.classifier.dtype)
    judge = Judge(job.model.classifier, job.dataset, job.seed, job.effective_oracle)
    while pending := writer.next_block():
        number, ids = pending
        began = time.perf_counter()
        note = partial(writer.note, block=number)
        setting = CellContext(job.attack.attack.kind, job.threat, search, short_run, judge, note)
        try:
            with seeded(job.seed, ids[0], device):
                done = evaluate_block(setting, loader.batch(ids))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            _halve_batch_size(writer, len(ids), error)
            continue
        writer.note("time", block=number, seconds=round(time.perf_counter() - began, 4), n=len(ids))
        writer.append(done.records, _images(done) if options.keep_images else None)
        report(Progress(job.title, writer.done, writer.total))


def _write_oracle_error(job: Job, folder: Path) -> None:
    """Write down how often the oracle errs itself on the samples of the cell, unless that is known."""
    cell = CellFolder(folder)
    known = cell.oracle_error()
    if job.effective_oracle is None or (known and known.trials == len(cell.samples)):
        return
    if error := job.effective_oracle.error(cell.samples):
        write_oracle_error(folder, error)


def _halve_batch_size(writer: CellWriter, size: int, error: BaseException) -> None:
    """Go on with half the batch size.

    Raises:
        AttackFailed: if a single sample needs more memory than there is.
    """
    if size == 1:
        raise AttackFailed("not enough memory for a single sample") from error
    writer.lower_batch_size(size // 2)
    writer.note("batch_size", batch_size=writer.batch_size, reason=str(error).splitlines()[0])


def _images(done: BlockResult) -> dict[str, np.ndarray]:
    return {"clean": _array(done.clean), "adversarial": _array(done.shown)}


def _array(images: Tensor) -> np.ndarray:
    kept = images if images.dtype in (torch.float32, torch.float64) else images.float()
    array: np.ndarray = kept.cpu().contiguous().numpy()
    return array
