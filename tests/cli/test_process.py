"""Settings of the process: set once, for workers too, and the user's own stay."""

import os
from types import SimpleNamespace

from robustbench_inv.cli.main import MALLOC_SETTINGS, configure_process


def test_settings_are_inherited_and_those_of_the_user_stay(monkeypatch):
    for name in ("OMP_WAIT_POLICY", *MALLOC_SETTINGS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "4096")
    configure_process()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert os.environ["MALLOC_TRIM_THRESHOLD_"] == "4096"
    assert os.environ["MALLOC_MMAP_THRESHOLD_"] == str(32 << 20)


def test_freed_buffers_are_kept_by_the_allocator(monkeypatch):
    """The C library is told so by ``mallopt``; ``make bench`` measures what it saves."""
    calls = []
    library = SimpleNamespace(mallopt=lambda number, size: calls.append((number, size)))
    monkeypatch.setattr("ctypes.CDLL", lambda _: library)
    for name in MALLOC_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    configure_process()
    assert calls == list(MALLOC_SETTINGS.values())
    configure_process()
    assert len(calls) == 2  # now the environment says so, and stays


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda _: SimpleNamespace())
    for name in MALLOC_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    configure_process()
