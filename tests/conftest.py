"""What holds for the whole suite: one thread a process, few searches for garbage, property tests without a time limit."""

import gc
import os
import signal
import sys
from functools import lru_cache
from pathlib import Path

# Set before torch is imported: the suite runs in as many processes as there are cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Processes that tests start compile the package once, not each for itself.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import pytest
from hypothesis import settings

settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")

sys.dont_write_bytecode = False  # else each process rewrites the assertions of all files anew

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # the suite runs in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.fsync = lambda _: None  # no test cuts the power

gc.set_threshold(100_000, 20, 100)  # a fifth of the suite's time went into looking for garbage


@pytest.fixture(autouse=True, scope="session")
def _training_points_of_spheres_are_drawn_once():
    """Keep 10,000 points in 500 dimensions: tests load the model that is fitted to them hundreds of times."""
    from robustbench_inv.data.spheres import Spheres

    drawn = Spheres.training
    Spheres.training = lru_cache(maxsize=2)(drawn)
    yield
    Spheres.training = drawn


TOGETHER = {
    "reporting": "reporting",
    "reproduction": "reporting",
    "test_dependencies.py": "structure",
    "test_structure.py": "structure",
    "test_readme.py": "processes",
    "test_resume.py": "processes",
    "test_ray.py": "processes",
}
"""Folders and files whose tests share what takes seconds to make, or start processes, and the group they run in; other
tests run with those of their file."""

LONG = (
    "reporting",
    "test_known_good.py",
    "test_snippets.py",
    "test_broken_defences.py",
    "test_toys.py",
    "test_schedule.py",
    "test_minimum_norm_attacks.py",
    "test_precision.py",
    "test_isolation.py",
    "test_misbehaving.py",
    "test_training_run.py",
    "test_search_transfer.py",
    "test_corruptions.py",
    "test_kills.py",
)
"""Folders and files that take more than seven seconds: they run first, so that no process waits at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first."""

    def rank(item: pytest.Item) -> int:
        places = {item.path.name, *(parent.name for parent in item.path.parents)}
        return next((number for number, name in enumerate(LONG) if name in places), len(LONG))

    items.sort(key=rank)


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of later searches for garbage."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Run the tests of a file or a group in one process, in their order (pytest-xdist).

    Its own ``--dist loadgroup`` ignores groups under pytest 9: it writes them to an attribute that is no longer read.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = Path(nodeid.partition("::")[0])
            return TOGETHER.get(path.name) or TOGETHER.get(path.parent.name) or str(path)

    config.option.loadscopereorder = False  # in the order of the items
    return Together(config, log)
