"""Settings of the process: set once, for workers too, and the user's own stay."""

import os
import subprocess
import sys

from robustbench_inv.cli.main import MALLOC_SETTINGS, configure_process


def test_settings_are_inherited_and_those_of_the_user_stay(monkeypatch):
    for name in ("OMP_WAIT_POLICY", *MALLOC_SETTINGS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "4096")
    configure_process()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert os.environ["MALLOC_TRIM_THRESHOLD_"] == "4096"
    assert os.environ["MALLOC_MMAP_THRESHOLD_"] == str(32 << 20)


def test_freed_buffers_are_not_faulted_in_again():
    """Minor page faults of 50 buffers of 8 MB, one after the other, in a process of its own."""
    code = """
import ctypes, resource, sys
from robustbench_inv.cli.main import configure_process
if sys.argv[1] == "settled": configure_process()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    buffer = libc.malloc(8 << 20); ctypes.memset(buffer, 1, 8 << 20); libc.free(buffer)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    faults = [
        int(subprocess.check_output([sys.executable, "-c", code, way], env=plain))
        for way in ("settled", "as it is")
    ]
    assert faults[0] < 10_000  # the pages of some two buffers
    assert faults[0] <= faults[1]
