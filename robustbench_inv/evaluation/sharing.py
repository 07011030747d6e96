"""A cell, seen from one of the processes that compute its blocks: claimed, computed, stored, moved into the journal."""

import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import ENOENT, ESTALE
from itertools import accumulate
from pathlib import Path

from robustbench_inv.errors import DEADLINE_PASSED, BadResults, DeadlinePassed, Locked
from robustbench_inv.evaluation.block_runner import BlockRunner
from robustbench_inv.evaluation.engine import (
    BATCH_SIZE,
    Progress,
    ProgressCallback,
    RunOptions,
    cell_messages,
    complete_cell,
    open_cell,
)
from robustbench_inv.evaluation.jobs import Job
from robustbench_inv.evaluation.packing import (
    CellOutcome,
    LoadCaches,
    PackedJob,
    explain,
    failed_outcome,
)
from robustbench_inv.evaluation.search import SearchCache
from robustbench_inv.foreign import foreign, time_limit
from robustbench_inv.results.block_board import (
    OPENING,
    BlockBoard,
    BlockClaim,
    StoredBlock,
    evaluation_of,
)
from robustbench_inv.results.cell_content import (
    EVENTS,
    RECORDS,
    block_samples,
    count_complete,
    extend_segments,
)
from robustbench_inv.results.cell_events import event_line
from robustbench_inv.results.cell_writing import CellWriter
from robustbench_inv.results.files import LineCounter, file_stamp, is_locked
from robustbench_inv.results.image_files import ImageShards
from robustbench_inv.results.parquet_records import COMPACTED
from robustbench_inv.results.run_files import CELL, CellFolder
from robustbench_inv.torch_state import stated_torch

__all__ = ["SharedCell", "check_time", "digest_of"]

DETAIL_SECONDS = 5.0
"""Least seconds between two notes in the folder on how far a block is."""

CACHE_SECONDS = 1.5
"""How long a network file system may show an earlier content of a folder."""

STORED_AT_MOST = 2
"""How often a process computes a block whose file is deleted before it is in the journal, as a damaged one is."""

MOVED_AT_ONCE = 64
"""Finished blocks are moved into the journal when there are so many, and a quarter of those in it: moving reads it all."""


def check_time(options: RunOptions) -> None:
    """Raise DeadlinePassed after the deadline."""
    if time.time() > options.deadline:
        raise DeadlinePassed(DEADLINE_PASSED)


def digest_of(job: Job | PackedJob) -> str:
    """Return the digest of a cell."""
    return job.digest if isinstance(job, PackedJob) else job.spec.digest


class SharedCell:
    """A cell, seen from one of the processes that compute its blocks.

    Args:
        job: the cell.
        folder: the cell's folder.
        options: how to run.
        report: called as the cell progresses.
        worker: name of this process.
        caches: what this process has loaded.

    Attributes:
        opened: is the order of its blocks known?
        claimed: the numbers of the blocks that were claimed when the folder was listed last.
        ended: is there nothing left to do, here or in another process?
        outcome: how it ended, if it ended in this process.
        error: the exception that ended it, if it failed in this process.
    """

    def __init__(
        self,
        job: Job | PackedJob,
        folder: Path,
        options: RunOptions,
        report: ProgressCallback,
        worker: str,
        caches: LoadCaches,
    ) -> None:
        self._source, self._options, self._report, self._caches = job, options, report, caches
        self.title = job.title
        self.digest = digest_of(job)
        self.folder = folder
        self.board = BlockBoard(self.folder, worker)
        self.opened = self.ended = False
        self.outcome: CellOutcome | None = None
        self.error: Exception | None = None
        self._job: Job | None = None
        self._runner: BlockRunner | None = None
        self._notes: tuple[str, ...] = ()
        self._lines = LineCounter(self.folder / RECORDS)
        self._finished, self.claimed = set[int](), set[int]()
        self._trusted = False
        self._order: tuple[int, ...] = ()
        self._shared = False
        self._stored = Counter[int]()

    def refresh(self) -> None:
        """Read the order of the blocks again, if another process has changed it.

        The cell is no longer open if the new order lacks samples of this evaluation.
        """
        if self.opened and not self.ended and self._is_outdated():
            self._stored.clear()
            self.opened = self._read_order()

    def _is_outdated(self) -> bool:
        """Has cell.json changed since the order was read?"""
        return self._order != file_stamp(self.folder / CELL)

    def open(self) -> bool:
        """Read the order of the blocks, or write it first; return whether that was possible."""
        if self._has_failed():
            return True
        if self.board.folder.exists() and self._read_order():
            self._list()
            self._report(self.progress())
            return True
        with self._claimed(OPENING) as claim:
            if claim is None:
                return False
            with self._failing():
                check_time(self._options)
                try:
                    with self._writer() as writer:
                        self._shared = True  # from now on, the order is only extended
                        self._notes = tuple(cell_messages(self._built(), writer, self._options))
                        self._complete(writer)
                except Locked:  # another process moves its blocks
                    return False
        return True

    def pending(self) -> list[int]:
        """Return the numbers of the blocks that are not finished."""
        if self._has_failed():
            return []
        self._list()
        moved, finished = self._moved(), self._finished
        return [number for number in range(moved, len(self._blocks)) if number not in finished]

    def compute(self, number: int, cache: SearchCache) -> bool:
        """Compute and store a block, unless another process has it; return whether this one did."""
        with self._claimed(number) as claim:
            if claim is None or self._is_outdated() or number not in self.pending():
                return False
            with self._failing():
                self._compute(number, claim, cache)
        return True

    def move(self) -> bool:
        """Move blocks that were finished when ``pending`` was called, if there are enough; return whether any was moved."""
        finished, moved, total = self._finished, self._moved(), len(self._blocks)
        ready = next((n for n in range(moved, total) if n not in finished), total) - moved
        if moved + ready < total and ready < max(MOVED_AT_ONCE, moved / 4):
            return False
        if is_locked(self.folder / EVENTS):
            return False
        scattered = ImageShards(self.folder, "").scattered
        if moved == total and not self.board.folder.exists() and not scattered:
            # another process has completed it
            self.ended = True
            return True
        done = False
        with self._failing():
            try:
                with self._writer() as writer:
                    done = self._complete(writer)
            except Locked:
                return False
        return done or self.ended

    def _writer(self) -> CellWriter:
        """Return the writer of the cell, which compares kept images with their records once for each process."""
        how = {"trusted": self._trusted, "shared": self._is_shared()}
        writer = open_cell(self._built(), self.folder, self._options, **how)
        self._trusted = True
        return writer

    def _is_shared(self) -> bool:
        """May other evaluations compute samples of the cell, or has this process read or written their order?"""
        own = evaluation_of(self.board.worker)
        others = (evaluation_of(claim.worker) != own for claim in self.board.live_claims())
        return self._shared or any(others)

    def _complete(self, writer: CellWriter) -> bool:
        """Move the next finished blocks into the journal, and end the cell if none is missing; return whether any moved."""
        moved = writer.absorb(self.board) > 0
        if writer.next_block() is None:
            lost = complete_cell(self._built(), writer)
            self._end(CellOutcome(self.digest, self.title, (*self._notes, *lost)))
            self.board.clear()
        return moved

    def save(self) -> None:
        """Move finished blocks into the journal, if another process does not."""
        if self.board.numbers()[0]:
            with suppress(Exception), self._writer() as writer:
                writer.absorb(self.board)

    def rest(self) -> None:
        """Release the model."""
        if self._runner:
            self._runner.close()
        self._runner = None

    def _compute(self, number: int, claim: BlockClaim, cache: SearchCache) -> None:
        check_time(self._options)
        self._check_accepted(number)
        ids, events = self._blocks[number], list[bytes]()
        self._number, self._described = number, 0.0

        def log_event(event: str, **values: object) -> None:
            events.append(event_line(event, block=number, **values))

        result = self._running(cache).run(ids, log_event)
        if not self.board.holds(number, claim) and number not in self.pending():
            return  # this process was paused past its lease, and another has computed the block
        if result.images is not None:
            shards = ImageShards(self.folder, CellFolder(self.folder).salt)
            try:
                shards.add(number, ids, result.images)
            except BadResults:
                time.sleep(CACHE_SECONDS)
                if number in self.pending():
                    raise
                return  # others have completed the cell since this process lost its claim
        lines = "".join(record.to_json_line() for record in result.records).encode()
        kept = result.images is not None
        block = StoredBlock(ids, lines, b"".join(events), kept, self.board.worker)
        self.board.store(number, block)
        self._stored[number] += 1
        self._finished.add(number)
        self._report(self.progress())

    def _check_accepted(self, number: int) -> None:
        """Raise BadResults if the file of a block was deleted again and again, since that would never end."""
        if self._stored[number] >= STORED_AT_MOST:
            raise BadResults(
                f"block {number + 1} of {self.folder} was deleted after it was stored",
                got=f"{STORED_AT_MOST} times",
                expected="a block that stays until it is in the journal",
                remedy="end the other processes that use this folder, or use another one: --out",
            )

    def _tell(self, detail: str) -> None:
        """Report what the attack does within the present block, now and then to other processes too."""
        text = f"block {self._number + 1} of {len(self._blocks)}: {detail}"
        if time.monotonic() - self._described >= DETAIL_SECONDS:
            self.board.describe(self._number, text)
            self._described = time.monotonic()
        self._list()
        self._report(self.progress(text))

    def _running(self, cache: SearchCache) -> BlockRunner:
        if self._runner is None:
            self._runner = BlockRunner(
                self._built(),
                self._options.device,
                self._tell,
                self._options.deadline,
                keep=self._options.keep_images or self.board.keeps_images,
                cache=cache,
            )
        return self._runner

    def _built(self) -> Job:
        """Return the job, which another process may have packed.

        Raises:
            _CannotBuild: if it cannot be built here.
        """
        if self._job is None:
            built = (
                self._source if isinstance(self._source, Job) else self._source.build(self._caches)
            )
            if isinstance(built, CellOutcome):
                raise _CannotBuild(built.failure)
            self._job = built
        return self._job

    def look(self) -> None:
        """Report what other processes do, read from the folder."""
        self.refresh()
        if self.opened or (self.board.folder.exists() and self._read_order()):
            self._list()
            details = (self.board.details(number) for number in sorted(self.claimed))
            self._report(self.progress("; ".join(filter(None, details))))

    def progress(self, detail: str = "") -> Progress:
        """Return how many samples were finished when the folder was listed last."""
        moved, total = self._moved(), len(self._blocks)
        done = sum(len(self._blocks[n]) for n in self._finished if moved <= n < total)
        done += self._ends[moved - 1] if moved else 0
        return Progress(self.title, self.digest, done, self._ends[-1], detail=detail)

    def _list(self) -> None:
        self._finished, self.claimed = self.board.numbers()

    def _has_failed(self) -> bool:
        if not self.ended and (reason := self.board.failure):
            self._end(failed_outcome(self.digest, self.title, reason))
        return self.ended

    def _end(self, outcome: CellOutcome) -> None:
        self.rest()
        self.ended, self.outcome = True, outcome

    def _read_order(self) -> bool:
        """Read the order of the blocks from cell.json; return whether it holds the samples of this evaluation."""
        stamp = file_stamp(self.folder / CELL)
        if not stamp:
            return False
        segments, samples = CellFolder(self.folder).info.segments, self._source.samples
        done = count_complete(segments, self._count_records())
        size = self._options.batch_size or BATCH_SIZE
        shared = self._is_shared()
        extended = extend_segments(segments, done, samples, size, shared=shared)
        if not segments or extended != segments:
            return False
        self._order, self._shared = stamp, True
        self._blocks = block_samples(segments)
        self._ends = list(accumulate(map(len, self._blocks)))
        self.opened = True
        return True

    def _moved(self) -> int:
        """Return how many blocks are in the journal."""
        return bisect_right(self._ends, self._count_records())

    def _count_records(self) -> int:
        """Return the number of lines in the journal, all if it was compacted; only what has grown is read."""
        try:
            return self._lines.count()
        except OSError as error:  # another process compacts or restores it meanwhile
            if (self.folder / COMPACTED).exists():
                return len(CellFolder(self.folder).samples)
            if error.errno not in (ENOENT, ESTALE):
                raise
            return self._count_records() if self._lines.path.exists() else 0

    @contextmanager
    def _claimed(self, number: int) -> Iterator[BlockClaim | None]:
        """Hold the claim to a block; None if another process has it."""
        claim = self.board.claim(number) or self.board.take_over(number)
        if claim is None:
            yield None
            return
        with self.board.held(number, claim):
            yield claim

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """End the cell, for all processes, if what is inside raises anything but errors of writing."""
        try:
            with time_limit(self._options.timeout), foreign(self.title), stated_torch():
                yield
        except _CannotBuild as error:
            self._fail(str(error))
        except BadResults:
            raise
        except Exception as error:
            self.error = error
            self._fail(explain(error))

    def _fail(self, reason: str) -> None:
        self.board.fail(reason)
        self._end(failed_outcome(self.digest, self.title, reason))


class _CannotBuild(Exception):
    """A packed job that cannot be built here; the message gives the reason."""
