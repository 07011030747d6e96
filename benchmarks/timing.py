"""Measures time: in one process, tasks in turn, medians of processor time."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from statistics import median

import torch

__all__ = ["Task", "medians", "one_thread", "seconds_of"]

Task = Callable[[], object]


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: processor time then counts work, not threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def medians(tasks: Mapping[str, Task], repeats: int = 3, times: int = 1) -> dict[str, float]:
    """Return the median processor time of each task in seconds.

    The tasks take turns, so that a temporary load of the machine affects all of them.

    Args:
        tasks: by name.
        repeats: number of measured rounds; with several ``times`` one warm-up round is added.
        times: number of runs per measured round.
    """
    taken: dict[str, list[float]] = {name: [] for name in tasks}
    for repeat in range(-(times > 1), repeats):
        for name, task in tasks.items():
            seconds = seconds_of(task, times)
            if repeat >= 0:
                taken[name].append(seconds)
    return {name: median(found) for name, found in taken.items()}


def seconds_of(task: Task, times: int = 1) -> float:
    """Return the processor time of a task, the mean of so many runs."""
    start = time.process_time()
    for _ in range(times):
        task()
    return (time.process_time() - start) / times
