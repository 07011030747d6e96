"""The blocks of a cell that several processes compute: claims with leases, and finished blocks that wait for the journal.

Nothing here needs a lock. A claim is a file that is created exclusively, and a finished block appears whole and once. Both
are atomic on local disks and on NFS. Clocks of different machines are never compared.
"""

import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

from robustbench_inv.errors import Locked
from robustbench_inv.results.files import explain_write_errors, is_running, place, write_all

__all__ = [
    "LEASE_SECONDS",
    "OPENING",
    "BlockBoard",
    "BlockClaim",
    "StoredBlock",
    "evaluation_of",
    "is_gone",
    "new_evaluation",
]

FOLDER = "blocks"
"""Folder of claims and finished blocks inside a cell's folder; it is gone when the cell is complete."""

LEASE_SECONDS = float(os.environ.get("INVBENCH_LEASE") or 60.0)
"""A claim that has not changed for so long, by the observer's own clock, may be taken by another process."""

BEATS = 6
"""How often in a lease its holder renews it."""

ATTEMPTS = 5
"""How many holders of a block may let their leases expire: one that was paused is no fault of the block."""

STALE_LEASES = 10
"""Leases after which the claim of another machine, whose process cannot be looked at, is taken for left behind."""

MOVED_BYTES = 4 << 20
"""Finished blocks up to this size are moved into the journal at once, since each flush to disk takes milliseconds."""

OPENING = -1
"""Stands for a block's number: the claim to write cell.json."""


@dataclass(frozen=True)
class BlockClaim:
    """The claim of a process to a block.

    Args:
        token: identifies the claim.
        worker: the process, ``EVALUATION/NUMBER``.
        place: machine and process namespace.
        process: its id there.
        attempt: 1, or more if earlier holders let their leases expire.
    """

    token: str
    worker: str
    place: str
    process: int
    attempt: int = 1


@dataclass(frozen=True)
class StoredBlock:
    """A finished block that is not in the journal yet.

    Args:
        samples: its sample ids.
        records: the lines of records.jsonl.
        events: the lines of events.jsonl.
        images: are its images stored?
        worker: the process that computed it.
    """

    samples: tuple[int, ...]
    records: bytes
    events: bytes
    images: bool
    worker: str


def new_evaluation() -> str:
    """Return a name that no other evaluation has; its processes are named ``EVALUATION/NUMBER``."""
    return f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"


def evaluation_of(worker: str) -> str:
    """Return the evaluation that started a process."""
    return worker.rpartition("/")[0]


def is_gone(claim: BlockClaim) -> bool:
    """Has the process of a claim ended? False for a process of another machine, which cannot be known."""
    return claim.place == place() and not is_running(claim.process)


@dataclass
class BlockBoard:
    """Claims and finished blocks of one cell.

    Args:
        cell: the cell's folder, whose name is part of the digests.
        worker: name of this process.
        lease: seconds, see LEASE_SECONDS.
    """

    cell: Path
    worker: str
    lease: float = LEASE_SECONDS
    _seen: dict[int, tuple[object, float]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where claims and blocks are."""
        return self.cell / FOLDER

    @property
    def failure(self) -> str | None:
        """Why the cell cannot be completed; None if no process has said so."""
        with suppress(OSError, ValueError):
            return str(json.loads((self.folder / "failure.json").read_bytes())["reason"])
        return None

    def fail(self, reason: str) -> None:
        """State for the other processes that the cell cannot be completed."""
        self._create("failure.json", json.dumps({"reason": reason}).encode())

    def check_unclaimed(self) -> None:
        """Check that no process computes a block of the cell.

        Raises:
            BadResults: if one does.
        """
        for claim in self.live_claims():
            raise Locked(
                f"other processes compute blocks of {self.cell}",
                got=claim.worker,
                remedy="wait for them, join them with --workers 2, or use another folder: --out",
            )

    def live_claims(self) -> list[BlockClaim]:
        """Return the claims whose processes may still compute."""
        return [
            claim
            for number, claim in self.claims().items()
            if not is_gone(claim) and self.age(number) < STALE_LEASES * self.lease
        ]

    def mark_images(self) -> None:
        """State for the other processes that the cell keeps its images, as those that a repair replaces."""
        self._create("images.keep", b"")

    @property
    def keeps_images(self) -> bool:
        """Does the cell keep its images?"""
        return (self.folder / "images.keep").exists()

    def forgive(self) -> None:
        """Forget a failure, so that the cell is tried again."""
        (self.folder / "failure.json").unlink(missing_ok=True)

    def numbers(self) -> tuple[set[int], set[int]]:
        """Return the numbers of the finished and of the claimed blocks."""
        finished, claimed = set[int](), set[int]()
        with suppress(FileNotFoundError, NotADirectoryError):
            for path in self.folder.iterdir():
                found = {".block": finished, ".claim": claimed}.get(path.suffix)
                if found is not None:
                    found.add(int(path.stem))
        return finished, claimed

    def claims(self) -> dict[int, BlockClaim]:
        """Return the present claims by the numbers of their blocks."""
        found = {number: self._claim(number) for number in sorted(self.numbers()[1])}
        return {number: claim for number, claim in found.items() if claim}

    def age(self, number: int) -> float:
        """Return the seconds since a claim was renewed last, by the clocks of the file system and of this machine."""
        with suppress(OSError):
            return max(0.0, time.time() - self._path(number, "claim").stat().st_mtime)
        return 0.0

    def claim(self, number: int) -> BlockClaim | None:
        """Claim a block; None if another process has it.

        Raises:
            BadResults: if the folder cannot be written.
        """
        return self._try(number, 1)

    def take_over(self, number: int) -> BlockClaim | None:
        """Claim a block whose holder has ended, or has let its lease expire; None if it is still being computed.

        A holder of the same evaluation that has ended is left to the process that started it, and that gets its exit code.
        The cell fails when the leases of ATTEMPTS holders have expired.
        """
        path, claim = self._path(number, "claim"), self._claim(number)
        if claim is None:
            return self.claim(number)
        ended = is_gone(claim) and evaluation_of(claim.worker) != evaluation_of(self.worker)
        if not ended and not self._expired(number, claim):
            return None
        aside = self.folder / f"{number}.{claim.token}.expired"
        try:
            path.rename(aside)
        except FileNotFoundError:
            return None
        found = _read_claim(aside)
        if found is None or found.token != claim.token:
            # another process was faster, and this is its claim
            with suppress(OSError):
                os.link(aside, path)
            aside.unlink(missing_ok=True)
            return None
        aside.unlink(missing_ok=True)
        if not ended and claim.attempt >= ATTEMPTS:
            self.fail(f"{ATTEMPTS} processes did not finish its block {number + 1} in time")
            return None
        return self._try(number, 1 if ended else claim.attempt + 1)

    def holds(self, number: int, claim: BlockClaim) -> bool:
        """Is this still the claim to the block?"""
        found = self._claim(number)
        return found is not None and found.token == claim.token

    def release(self, number: int, claim: BlockClaim) -> None:
        """Give up a claim, if it is still this one."""
        if self.holds(number, claim):
            self._path(number, "detail").unlink(missing_ok=True)
            self._path(number, "claim").unlink(missing_ok=True)

    @contextmanager
    def held(self, number: int, claim: BlockClaim) -> Iterator[None]:
        """Renew a claim in the background, and give it up at the end."""
        ended = Event()

        def renew() -> None:
            path = self._path(number, "claim")
            while not ended.wait(self.lease / BEATS):
                if not self.holds(number, claim):
                    return
                with suppress(OSError):
                    os.utime(path)

        beat = Thread(target=renew, daemon=True)
        beat.start()
        try:
            yield
        finally:
            ended.set()
            beat.join(self.lease)  # a late renewal would be that of the next holder's claim
            self.release(number, claim)

    def store(self, number: int, block: StoredBlock) -> bool:
        """Write a finished block whole, unless another process has; return whether this one was written.

        Raises:
            BadResults: if it cannot be written.
        """
        head = {**vars(block), "records": len(block.records), "events": len(block.events)}
        body = block.records + block.events
        head["sha256"] = self._digest(head, body)
        # not flushed: a block that a power failure damages does not fit its digest, and is computed again
        content = json.dumps(head).encode() + b"\n" + body
        return self._create(f"{number}.block", content, flush=False)

    def read(self, number: int, samples: Sequence[int]) -> StoredBlock | None:
        """Return a finished block; None if there is none. A damaged one, or one of other samples, is deleted.

        Args:
            number: of the block.
            samples: that the block must hold.
        """
        path = self._path(number, "block")
        try:
            line, _, body = path.read_bytes().partition(b"\n")
        except OSError:
            return None
        with suppress(ValueError, KeyError, TypeError):
            head = json.loads(line)
            size, digest = head["records"], head.pop("sha256")
            if tuple(head["samples"]) == tuple(samples) and digest == self._digest(head, body):
                parts = {"samples": tuple(samples), "records": body[:size], "events": body[size:]}
                return StoredBlock(**{**head, **parts})
        path.unlink(missing_ok=True)
        return None

    def next_blocks(
        self, pending: Iterable[tuple[int, Sequence[int]]]
    ) -> Iterator[tuple[int, StoredBlock]]:
        """Yield blocks with their numbers, until one is not finished or MOVED_BYTES are reached."""
        size = 0
        for number, samples in pending:
            if size >= MOVED_BYTES or (block := self.read(number, samples)) is None:
                return
            yield number, block
            size += len(block.records) + len(block.events)

    def describe(self, number: int, text: str) -> None:
        """State how far a claimed block is, for who watches: see ``details``."""
        with suppress(OSError):
            self._path(number, "detail").write_text(text, "utf-8")

    def details(self, number: int) -> str:
        """Return how far a block was a few seconds ago; empty if its process has not said so."""
        with suppress(OSError, ValueError):
            return self._path(number, "detail").read_text("utf-8")
        return ""

    def discard(self, number: int) -> None:
        """Delete a finished block, which is in the journal now."""
        self._path(number, "block").unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete everything, claims as well: the cell is complete, or starts again."""
        with suppress(FileNotFoundError, NotADirectoryError):
            for path in self.folder.iterdir():
                path.unlink(missing_ok=True)
            self.folder.rmdir()

    def _digest(self, head: dict[str, Any], body: bytes) -> str:
        text = json.dumps(head, sort_keys=True, default=list)
        return hashlib.sha256(self.cell.name.encode() + text.encode() + body).hexdigest()

    def _path(self, number: int, kind: str) -> Path:
        return self.folder / f"{number}.{kind}"

    def _claim(self, number: int) -> BlockClaim | None:
        return _read_claim(self._path(number, "claim"))

    def _try(self, number: int, attempt: int) -> BlockClaim | None:
        claim = BlockClaim(uuid.uuid4().hex[:12], self.worker, place(), os.getpid(), attempt)
        made = self._create(f"{number}.claim", json.dumps(asdict(claim)).encode(), flush=False)
        return claim if made else None

    def _expired(self, number: int, claim: BlockClaim) -> bool:
        """Has a claim stayed the same for a lease, by the clock of this process?"""
        with suppress(OSError), self._path(number, "claim").open("rb") as file:
            stamp = (
                claim.token,
                os.fstat(file.fileno()).st_mtime_ns,
            )  # fresh on NFS, since it was opened
            known, since = self._seen.get(number, (None, 0.0))
            if known != stamp:
                self._seen[number] = stamp, time.monotonic()
                return False
            return time.monotonic() - since > self.lease
        return False

    def _create(self, name: str, data: bytes, *, flush: bool = True) -> bool:
        """Make a file with its whole content, unless it exists; return whether it was made."""
        path = self.folder / name
        draft = self.folder / f"{uuid.uuid4().hex}.draft"
        with explain_write_errors(path):
            try:
                self.folder.mkdir(exist_ok=True, parents=True)
                descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
                try:
                    write_all(descriptor, data, flush=flush)
                finally:
                    os.close(descriptor)
                os.link(draft, path)
            except FileExistsError:
                return False
            except (
                FileNotFoundError
            ):  # another process has completed the cell, and removed the folder
                return False
            except OSError:
                # the answer to a link may be lost on NFS: the number of names decides
                if not draft.exists() or draft.stat().st_nlink != 2:
                    raise
            finally:
                draft.unlink(missing_ok=True)
        return True


def _read_claim(path: Path) -> BlockClaim | None:
    with suppress(OSError, ValueError, TypeError):
        return BlockClaim(**json.loads(path.read_bytes()))
    return None
