"""Runs foreign code: it cannot end the program, change the state of the process, or run for ever."""

import faulthandler
import gc
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from robustbench_inv.errors import (
    BadParameter,
    BadResults,
    ForeignCodeError,
    TimeLimitExceeded,
    describe_error,
    print_trace,
)

__all__ = ["code_folders", "foreign", "foreign_call", "keep_on_path", "limited", "time_limit"]


@contextmanager
def foreign(what: str) -> Iterator[None]:
    """Run code of a model, attack, data set or plugin, and restore what it changed in the process.

    That is folder, environment, module path, streams, signal handlers, timers and warning filters, and the state of
    torch and NumPy but for random generators (``randomness.seeded_generators``): draws continue from call to call.

    Args:
        what: the code, for messages ("mine.py:build").

    Raises:
        ForeignCodeError: for exceptions that would end the program or a loop, such as SystemExit; other exceptions
            pass, and so does the user's Ctrl-C.
    """
    process = _owner[-1] if _owner else os.getpid()
    _end_child(process)
    with (
        _owned(process),
        _kept_process(),
        _kept_torch(),
        _without_exits(process),
        _interruptible(),
    ):
        try:
            yield
        except BaseException as error:
            print_trace(error)
            stops = isinstance(error, StopIteration | StopAsyncIteration)
            if not stops and (isinstance(error, Exception | _TimeUp) or _is_users(error)):
                raise
            raise _ended(what, error) from error
        finally:
            _end_child(process)
        if _pressed:  # and the code caught the exception
            raise KeyboardInterrupt


@contextmanager
def foreign_call(what: str, seconds: float | None = None) -> Iterator[None]:
    """Run one call of foreign code (``foreign``) within the time limit.

    Args:
        what: the code, for messages.
        seconds: the time limit if ``time_limit`` sets none; None for no limit.

    Raises:
        TimeLimitExceeded: after the time limit.
        ForeignCodeError: as ``foreign`` does.
    """
    with foreign(what), limited(what, seconds):
        try:
            yield
        except BadResults as error:  # ends an evaluation; foreign code writes no results
            raise ForeignCodeError(f"{what} raised {describe_error(error)}") from error


def limited(what: str, seconds: float | None = None) -> AbstractContextManager[None]:
    """Limit the time of a part of guarded code, as ``foreign_call`` does; costs nothing without a limit."""
    return _alarm(what, _limits[-1] if _limits and _limits[-1] is not None else seconds)


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Limit every call of foreign code to some seconds; None for no limit.

    Python interrupts the call in the main thread. A call that is deaf to that, in C, ends the process HARD_SECONDS
    later, with the places of all threads on standard error.

    Raises:
        BadParameter: for a limit that is not positive.
    """
    if seconds is not None and not 0 < seconds <= threading.TIMEOUT_MAX:
        raise BadParameter("unusable timeout", got=seconds, expected="> 0 seconds")
    _limits.append(seconds)
    try:
        yield
    finally:
        _limits.pop()


_limits: list[float | None] = []

AGAIN_SECONDS = 1.0
"""Seconds between two interruptions of code that catches the first."""

HARD_SECONDS = 20.0
"""Seconds from the time limit to the end of a process that no interruption reaches."""


class _TimeUp(BaseException):
    """Interrupts foreign code that exceeds the time limit; not an Exception, which such code often catches."""


@contextmanager
def _alarm(what: str, seconds: float | None) -> Iterator[None]:
    """Interrupt the code inside after some seconds; an alarm outside keeps running."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    began, outer, process = time.monotonic(), signal.getsignal(signal.SIGALRM), os.getpid()
    signal.signal(signal.SIGALRM, _ring)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN_SECONDS)
    if not left:
        faulthandler.dump_traceback_later(seconds + HARD_SECONDS, exit=True, file=2)
    try:
        yield
    except _TimeUp:
        raise TimeLimitExceeded(
            f"{what} took longer than the time limit of {seconds:g} seconds",
            remedy="raise it with --timeout SECONDS",
        ) from None
    finally:
        _end_child(process)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, outer)
        if left:
            rest = max(left - (time.monotonic() - began), 1e-3)
            signal.setitimer(signal.ITIMER_REAL, rest, AGAIN_SECONDS)
        else:
            faulthandler.cancel_dump_traceback_later()


def _ring(*_: object) -> NoReturn:
    raise _TimeUp


def _ended(what: str, error: BaseException) -> ForeignCodeError:
    return ForeignCodeError(
        f"{what} tried to end the program",
        got=str(error) if isinstance(error, _Exit) else describe_error(error),
        expected="a result, or an ordinary exception",
    )


class _Exit(BaseException):
    """Replaces a function that ends the process."""


_EXITS: dict[str, Callable[..., Any]] = {
    name: getattr(os, name) for name in ("_exit", "abort", "execv", "execve")
}
"""Functions that end the process without an exception; ``os.execl`` and the like call the last two."""


_owner: list[int] = []
"""The process whose guards are open, once for each guard."""


@contextmanager
def _owned(process: int) -> Iterator[None]:
    _owner.append(process)
    try:
        yield
    finally:
        _owner.pop()


def _end_child(process: int) -> None:
    """End a process that foreign code forked, and that would continue the evaluation of its parent."""
    if os.getpid() != process:
        _EXITS["_exit"](0)


@contextmanager
def _without_exits(process: int) -> Iterator[None]:
    """Let the functions that end a process raise instead; in a child process they do what they always did."""
    if os._exit is not _EXITS["_exit"]:
        yield
        return
    for name, function in _EXITS.items():
        setattr(os, name, _refusing(name, function, process))
    try:
        yield
    finally:
        for name, function in _EXITS.items():
            setattr(os, name, function)


def _refusing(name: str, function: Callable[..., Any], process: int) -> Callable[..., Any]:
    def refuse(*arguments: object) -> Any:  # noqa: ANN401 - what the function returns
        if os.getpid() != process:
            return function(*arguments)
        raise _Exit(f"os.{name}({', '.join(map(repr, arguments[:1]))})")

    return refuse


_pressed: list[int] = []
"""Holds the signal after the user pressed Ctrl-C, until the outermost guard ends."""


@contextmanager
def _interruptible() -> Iterator[None]:
    """Record Ctrl-C in the outermost guard, since code can raise KeyboardInterrupt as well."""
    default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not default or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _pressed.clear()


def _interrupt(number: int, frame: Any) -> None:  # noqa: ANN401 - a frame
    _pressed.append(number)
    signal.default_int_handler(number, frame)


def _is_users(error: BaseException) -> bool:
    """Return whether the user pressed Ctrl-C; under another handler of SIGINT, every KeyboardInterrupt counts."""
    known = signal.getsignal(signal.SIGINT) in (_interrupt, signal.SIG_IGN)
    return isinstance(error, KeyboardInterrupt) and (bool(_pressed) or not known)


def _kept_torch() -> AbstractContextManager[None]:
    """Keep the settings of torch, if it is imported."""
    if not hasattr(sys.modules.get("torch"), "set_default_dtype"):
        return nullcontext()
    from robustbench_inv.torch_state import kept_torch

    return kept_torch()


class _Setting(NamedTuple):
    """How to get and set a setting of the process; ``==`` compares its values."""

    get: Callable[[], Any]
    set: Callable[[Any], object]


@contextmanager
def _kept_process() -> Iterator[None]:
    """Restore the settings of Python that the code inside changed."""
    before = [setting.get() for setting in _SETTINGS]
    with warnings.catch_warnings():
        try:
            yield
        finally:
            for setting, value in zip(_SETTINGS, before, strict=True):
                if setting.get() != value:
                    # a folder that is gone, a thread without signals
                    with suppress(OSError, ValueError):
                        setting.set(value)


def _folder() -> str:
    try:
        return str(Path.cwd())
    except OSError:
        return ""


def _environment() -> dict[bytes, bytes]:
    """Return the environment as bytes; decoding it would take a fifth of a guard's time."""
    values: dict[bytes, bytes] = vars(os.environ)["_data"].copy()
    return values


def _set_environment(values: dict[bytes, bytes]) -> None:
    for name in os.environb.keys() - values.keys():
        del os.environb[name]
    os.environb.update(values)


def _attribute(place: Any, name: str) -> _Setting:  # noqa: ANN401
    return _Setting(lambda: getattr(place, name), lambda value: setattr(place, name, value))


def _items(place: Any, name: str) -> _Setting:  # noqa: ANN401
    return _Setting(lambda: list(getattr(place, name)), lambda value: setattr(place, name, value))


code_folders: list[str] = []
"""Folders of the user's Python files, which stay on the module path; the latest is first."""


def keep_on_path(folder: str) -> None:
    """Put a folder on the module path for the rest of the process: before installed packages, behind Python's own."""
    if folder not in (others := _module_path()):
        code_folders[:] = [folder, *(each for each in code_folders if each != folder)]
        _set_module_path(others)


def _module_path() -> list[str]:
    return [each for each in sys.path if each not in code_folders]


def _set_module_path(folders: list[str]) -> None:
    packages = (place for place, each in enumerate(folders) if "-packages" in each)
    place = next(packages, len(folders))
    sys.path = [*folders[:place], *code_folders, *folders[place:]]


def _file_mask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGHUP, signal.SIGCHLD)


def _set_handlers(handlers: list[Any]) -> None:
    for number, handler in zip(SIGNALS, handlers, strict=True):
        if handler is not None:  # of a C library
            signal.signal(number, handler)


def _stop_timer(running: bool) -> None:
    if not running:
        signal.setitimer(signal.ITIMER_REAL, 0)


STREAMS = ("stdin", "stdout", "stderr")


def _open_descriptors() -> list[bool]:
    """Return which of the descriptors 0, 1 and 2 are open: the next file would get one that is closed."""
    return [_is_open(number) for number in range(len(STREAMS))]


def _is_open(number: int) -> bool:
    try:
        return os.fstat(number) is not None
    except OSError:
        return False


def _open_again(wanted: list[bool]) -> None:
    for number, was_open in enumerate(wanted):
        if was_open and not _is_open(number):
            null = os.open(os.devnull, os.O_RDWR)  # the lowest free number: this or one before it
            if null != number:
                os.dup2(null, number)


def _streams() -> list[Any]:
    """Return the standard streams, and whether each is closed."""
    found = [getattr(sys, name) for name in STREAMS]
    return [*found, *(bool(getattr(each, "closed", False)) for each in found)]


def _set_streams(values: list[Any]) -> None:
    triples = zip(STREAMS, values[:3], values[3:], strict=True)
    for number, (name, stream, was_closed) in enumerate(triples):
        setattr(sys, name, stream)
        if getattr(stream, "closed", False) and not was_closed:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
            if stream is getattr(sys, f"__{name}__"):
                setattr(sys, f"__{name}__", getattr(sys, name))


_SETTINGS = (
    _Setting(_open_descriptors, _open_again),
    _Setting(_streams, _set_streams),
    _Setting(lambda: signal.getitimer(signal.ITIMER_REAL)[0] > 0, _stop_timer),
    _Setting(lambda: [signal.getsignal(each) for each in SIGNALS], _set_handlers),
    _Setting(_folder, os.chdir),
    _Setting(_file_mask, os.umask),
    _Setting(_environment, _set_environment),
    _Setting(_module_path, _set_module_path),
    _items(sys, "argv"),
    _attribute(sys, "excepthook"),
    _attribute(threading, "excepthook"),
    _Setting(sys.gettrace, sys.settrace),
    _Setting(sys.getprofile, sys.setprofile),
    _Setting(sys.getrecursionlimit, sys.setrecursionlimit),
    _Setting(gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
)
