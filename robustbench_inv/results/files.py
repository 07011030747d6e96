"""Files that survive a crash: they are written whole or not at all; a damaged file gives a one-line error."""

import errno
import fcntl
import glob
import gzip
import hashlib
import json
import os
import shutil
import socket
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from robustbench_inv.errors import BadResults, Locked
from robustbench_inv.identity import digest_bytes

__all__ = [
    "DIGEST",
    "FORMAT_VERSION",
    "PIECE",
    "LineCounter",
    "check_unlocked",
    "explain_write_errors",
    "file_digest",
    "file_stamp",
    "is_locked",
    "is_running",
    "lock",
    "matching",
    "parse_json",
    "place",
    "read_gzip",
    "read_json",
    "read_versioned",
    "read_whole",
    "remove_leftovers",
    "replaced",
    "temporary_path",
    "write_all",
    "write_atomically",
    "write_json",
]

DIGEST = "sha256"
"""The last key of a JSON file, and the metadata of a file of images: the digest of the content before it."""

PIECE = 1 << 20
"""Bytes of a file that are read at once."""

FORMAT_VERSION = 2
"""The version of the files that this program writes; it reads version 1 as well."""


@contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of writing into a one-line error.

    Raises:
        BadResults: for a full disk, a read-only folder, a file where a folder should be, and the like.
    """
    try:
        yield
    except OSError as error:
        raise BadResults(
            f"cannot write {path}: {error.strerror or error}",
            remedy="mend the folder and run the same command again, which keeps finished samples, or write to another one",
        ) from error


def write_all(descriptor: int, data: bytes, *, flush: bool = True) -> None:
    """Write bytes to the end in as few calls as the system needs (one, as a rule), and flush them to disk."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    if flush:
        os.fsync(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file so that at every moment the old or the new one is there, never a part.

    Raises:
        BadResults: if it cannot be written.
    """
    with replaced(path) as temporary:
        _write_new(temporary, data)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary path whose file takes the place of another at the end.

    Raises:
        BadResults: if it cannot be written.
    """
    temporary = temporary_path(path)
    with explain_write_errors(path):
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _flush_folder(path.parent)


@cache
def place() -> str:
    """Return what identifies this machine since it was started, and this namespace of process ids."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return digest_bytes("\n".join(parts).encode())[:16]


def temporary_path(path: Path) -> Path:
    """Return a hidden path beside a file or folder, where this process prepares its new content."""
    return path.with_name(f".{path.name}.{place()}-{os.getpid()}.tmp")


def matching(folder: Path, pattern: str) -> list[Path]:
    """Return the files of a folder with such names, in order; none if another process removes it meanwhile."""
    with suppress(FileNotFoundError):
        return sorted(folder.glob(pattern))
    return []


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove the temporary files and folders of this machine's killed processes; those of other processes stay.

    Args:
        folder: where they are; it may not exist.
        name: the file or folder whose new content they were; ``*`` for any.
    """
    pattern = name if name == "*" else glob.escape(name)
    for path in matching(folder, f".{pattern}.*.tmp"):
        origin, _, process = path.stem.rpartition(".")[2].rpartition("-")
        if origin in ("", place()) and process.isdecimal() and not is_running(int(process)):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def read_whole(path: Path, tries: int = 20) -> bytes:
    """Read a file; again if another machine has replaced it, whose old content is lost on a network file system."""
    try:
        if len(data := path.read_bytes()) >= path.stat().st_size or tries == 1:
            return data
    except OSError as error:
        if tries == 1 or error.errno not in (errno.ESTALE, path.exists() and errno.ENOENT):
            raise
    time.sleep(0.05)
    return read_whole(path, tries - 1)


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Replace a JSON file atomically; each entry of the object is one line, the last is the digest of the others."""
    entries = {key: entry for key, entry in value.items() if key != DIGEST}
    lines = (
        f" {json.dumps(key)}: {json.dumps(v, allow_nan=False)},\n" for key, v in entries.items()
    )
    write_atomically(path, _with_digest("".join(["{\n", *lines]).encode()))


def read_json(path: Path) -> object:
    """Read a JSON file.

    Raises:
        BadResults: if it is missing, unreadable or no JSON, or was changed after it was written.
    """
    try:
        data = read_whole(path)
        value = parse_json(data)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BadResults(
            f"cannot read {path}: {reason}",
            remedy="restore the file, or evaluate into another folder",
        ) from error
    if isinstance(value, dict) and DIGEST in value:
        text = data.rpartition(f' "{DIGEST}": '.encode())[0]
        if data != _with_digest(text):
            raise BadResults(
                f"{path} was changed after it was written",
                remedy="restore the file, or evaluate again with --existing repair",
            )
    return value


def parse_json(data: bytes) -> object:
    """Return the value of a JSON text.

    Raises:
        ValueError: if it is no JSON, nests too deeply, or holds NaN or Infinity.
    """
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("it nests too deeply") from error


LARGEST_UNPACKED = 1 << 30
"""Bytes that a compressed result may unpack to."""


def file_digest(salt: str, path: Path) -> str:
    """Return the SHA-256 of the salt and a file, which is read in pieces."""
    found = hashlib.sha256(salt.encode())
    with path.open("rb") as file:
        while data := file.read(PIECE):
            found.update(data)
    return found.hexdigest()


def read_gzip(path: Path) -> bytes:
    """Return the content of a gzip file.

    Raises:
        BadResults: if it cannot be read, is damaged, or unpacks to more than LARGEST_UNPACKED bytes.
    """
    try:
        with gzip.open(path) as file:
            data = file.read(LARGEST_UNPACKED + 1)
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise BadResults(f"cannot read {path}: {error}", remedy="restore the file") from error
    if len(data) > LARGEST_UNPACKED:
        problem = f"{path} unpacks to more than {LARGEST_UNPACKED >> 20} MiB"
        raise BadResults(problem, remedy="restore the file")
    return data


def read_versioned(path: Path) -> dict[str, Any]:
    """Read plan.json or cell.json.

    Raises:
        BadResults: if it cannot be read, is no JSON object, or is of a later version than this program reads.
    """
    value = read_json(path)
    version = value.get("version") if isinstance(value, dict) else None
    if not isinstance(value, dict) or type(version) is not int or version < 1:
        raise BadResults(f"{path} is not a results file", got=version, expected="a version")
    if version > FORMAT_VERSION:
        raise BadResults(
            f"{path} was written by a newer program",
            got=f"version {version}",
            expected=f"at most {FORMAT_VERSION}",
            remedy="upgrade robustbench-inv",
        )
    return value


def _with_digest(text: bytes) -> bytes:
    return text + f' "{DIGEST}": "{digest_bytes(text)}"\n}}\n'.encode()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def file_stamp(path: Path) -> tuple[int, ...]:
    """Return what changes when a file is replaced; nothing if there is none."""
    with suppress(FileNotFoundError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns, found.st_size
    return ()


class LineCounter:
    """The lines of a file that grows, of which each count reads only what is new.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = self._lines = 0

    def count(self) -> int:
        """Return the number of lines; raises OSError if the file cannot be read."""
        size, lines = self._size, self._lines
        with self.path.open("rb") as file:
            if file.seek(0, 2) < size:
                size = lines = 0
            file.seek(size)
            while new := file.read(PIECE):
                size, lines = size + len(new), lines + new.count(b"\n")
        self._size, self._lines = size, lines
        return lines


def is_running(process: int) -> bool:
    """Is a process of this machine running? A dead child that its parent has not noticed is not."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    with suppress(OSError, IndexError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return True


def _write_new(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    try:
        write_all(descriptor, data)
    finally:
        os.close(descriptor)


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


LOCK_TRIES = 10
"""How often a lock is tried in one second: a process that was killed, or ``check_unlocked``, frees it in a moment."""


def is_locked(path: Path) -> bool:
    """Is another process writing a file? A missing one is free."""
    with suppress(OSError), path.open("rb") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def check_unlocked(path: Path) -> None:
    """Raise BadResults if another process is writing a file; a missing one is free."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        lock(file.fileno(), path.parent)


def lock(descriptor: int, folder: Path) -> None:
    """Lock a file of a folder until its descriptor is closed.

    Raises:
        BadResults: if another process holds the lock.
    """
    for tries_left in reversed(range(LOCK_TRIES)):
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if not tries_left:
                raise Locked(
                    f"another process is writing {folder}",
                    remedy="wait for it, or evaluate into another folder with --out",
                ) from error
        time.sleep(1 / LOCK_TRIES)
    return None
