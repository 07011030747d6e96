"""Evaluates single blocks of a cell, whose records depend on nothing but the cell and their samples."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from torch import Tensor

from robustbench_inv.arguments import format_eps
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.errors import DEADLINE_PASSED, AttackFailed, DeadlinePassed
from robustbench_inv.evaluation.block import CellContext, EventLogger, evaluate_block
from robustbench_inv.evaluation.jobs import Job
from robustbench_inv.evaluation.judge import BlockState, Judge
from robustbench_inv.evaluation.loading import Loader
from robustbench_inv.evaluation.search import SearchCache, make_searches
from robustbench_inv.randomness import seeded
from robustbench_inv.results.record import Record
from robustbench_inv.tensors import is_out_of_memory
from robustbench_inv.torch_state import full_precision, kept_modules, release_memory

__all__ = ["BlockResult", "BlockRunner"]


@dataclass(frozen=True)
class BlockResult:
    """What a block gives: a record for each sample, and ``clean`` and ``adversarial`` images (n, …) if they are kept."""

    records: Sequence[Record]
    images: Mapping[str, np.ndarray] | None


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


class BlockRunner:
    """Evaluates blocks of a cell, in any order and in any process: a block's records depend on nothing else.

    It holds the model in evaluation mode until it is closed.

    Args:
        job: the cell.
        device: where the model computes.
        report: called with details within a block.
        deadline: time of ``time.time`` after which attacks are stopped.
        keep: return the images too?
        cache: results of other cells that search on the same substitute.
    """

    def __init__(
        self,
        job: Job,
        device: str,
        report: Callable[[str], None],
        deadline: float,
        *,
        keep: bool,
        cache: SearchCache | None = None,
    ) -> None:
        self._job, self._device, self._keep = job, torch.device(device), keep
        self._fitting: int | None = None
        self._stack = ExitStack()
        roots = [job.model.classifier] if job.model.is_foreign else []
        self._kept = self._stack.enter_context(kept_modules(roots))
        watch = BlockProgress(report, deadline)
        self._search, self._short_run = make_searches(job, self._device, cache, watch)
        self._loader = Loader(
            job.dataset, self._device, job.model.classifier.dtype, job.effective_oracle
        )
        self._judge = Judge(job.model.classifier, job.dataset, job.seed, job.effective_oracle)

    def close(self) -> None:
        """Return the model to its mode and state."""
        self._stack.close()

    def run(self, ids: tuple[int, ...], log_event: EventLogger) -> BlockResult:
        """Evaluate the samples of a block, in parts where memory runs out.

        The size of the parts is halved until one fits, once for all later blocks.

        Raises:
            AttackFailed: if a single sample needs more memory than there is.
        """
        parts, rest = [], ids
        while rest:
            part = rest[: self._fitting]
            try:
                parts.append(self._run(part, log_event))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._fitting = _half_of(len(part), error)
                reason = str(error).splitlines()[0]
                log_event("batch_size_lowered", batch_size=self._fitting, reason=reason)
            else:
                rest = rest[len(part) :]
                continue
            release_memory(self._device)  # outside of the handler, whose traceback holds tensors
        return _joined(parts)

    def _run(self, ids: tuple[int, ...], log_event: EventLogger) -> BlockResult:
        began = time.perf_counter()
        job, searches = self._job, (self._search, self._short_run)
        context = CellContext(job.attack.attack, job.threat, *searches, self._judge, log_event)
        self._kept.restore()  # each block starts from the same model, so that a resumed run does
        with full_precision(), seeded(self._job.seed, ids[0], self._device):
            state = evaluate_block(context, self._loader.batch(ids))
        seconds = round(time.perf_counter() - began, 4)
        log_event("block_time", seconds=seconds, n_samples=len(ids))
        oracle = self._judge.oracle
        records = state.records(oracle.source if oracle else None)
        return BlockResult(records, _images(state) if self._keep else None)


def _joined(parts: Sequence[BlockResult]) -> BlockResult:
    kept = [part.images for part in parts if part.images]
    names = kept[0] if kept else ()
    images = {name: np.concatenate([each[name] for each in kept]) for name in names}
    return BlockResult([record for part in parts for record in part.records], images or None)


def _half_of(size: int, error: BaseException) -> int:
    """Return half the size of a block for which memory ran out.

    Raises:
        AttackFailed: if a single sample needs more memory than there is.
    """
    if size == 1:
        raise AttackFailed("not enough memory for a single sample") from error
    return size // 2


def _images(state: BlockState) -> dict[str, np.ndarray]:
    return {"clean": _array(state.batch.images), "adversarial": _array(state.images)}


def _array(images: Tensor) -> np.ndarray:
    kept = images if images.dtype in (torch.float32, torch.float64) else images.float()
    array: np.ndarray = kept.cpu().contiguous().numpy()
    return array
