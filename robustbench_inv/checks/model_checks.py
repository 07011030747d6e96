"""The checks of a model: which there are, what they cost, and how many samples there is time for."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from robustbench_inv.checks import attack_strength, clean_accuracy, gradients, model_outputs
from robustbench_inv.checks.check_list import CHECKS
from robustbench_inv.checks.probe import (
    ATTACK_SAMPLES,
    DIFFERENCE_SAMPLES,
    PROBE_SAMPLES,
    Probe,
    ProbedModel,
    evenly_spaced,
)
from robustbench_inv.checks.suite import run_check
from robustbench_inv.checks.verdict import NOT_MADE, Verdict
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.models.protocol import query_model
from robustbench_inv.randomness import seeded_generators
from robustbench_inv.tensors import is_out_of_memory, margin, per_sample_gradient
from robustbench_inv.torch_state import kept_modules, stated_torch

__all__ = ["ModelCheck", "TimeLimit", "affordable_samples", "list_probes", "probe_model"]


OF_THE_DATA_SET = ("C39", "C41", "C42")
"""Probes of the whole data set: a few requested samples, or those of one class, may hide wrong labels."""

LEAST_SAMPLES = 4
"""A check that has time for fewer samples is not made."""

TIMED_SAMPLES, TIMINGS, TIMING_SECONDS = (1, 8, 64), 2, 0.05
"""Sizes of timed batches, and timings of each; no larger one after a pass that takes so long."""

TRUSTED_SHARE = 0.1
"""After this share of the time, the time of the checks so far replaces that of the timed batches."""


SEARCH_PROBES = frozenset({"C1", "C2", "C4", "C6", "C7", "C8", "C12", "C13", "C31"})
NO_SEARCH = "No attack of the plan searches for inputs: all are given."
"""Probes of what a search needs, and their evidence where no attack is one."""


class TimeLimit(NamedTuple):
    """Time for all checks of a model.

    Args:
        seconds: the time.
        by_the_clock: time in which other processes run counts as well.
    """

    seconds: float = inf
    by_the_clock: bool = False


class ModelCheck(NamedTuple):
    """A check of a model.

    Args:
        id: of the check.
        samples: number of probed samples, at most.
        passes: forward and backward passes of a sample, about.
        run: returns the verdict.
    """

    id: str
    samples: int
    passes: int
    run: Callable[[Probe], Verdict]


def list_probes(*, deep: bool = False) -> list[ModelCheck]:
    """Return the checks of a model; the deep ones take hundreds of passes for each sample."""
    usual = [
        ModelCheck("C1", ATTACK_SAMPLES, 130, attack_strength.check_monotone_attack),
        ModelCheck("C2", ATTACK_SAMPLES, 200, attack_strength.check_unbounded),
        ModelCheck("C6", PROBE_SAMPLES, 6, gradients.check_gradients),
        ModelCheck("C7", PROBE_SAMPLES, 1, gradients.check_saturation),
        ModelCheck("C10", PROBE_SAMPLES, 1, model_outputs.check_logits),
        ModelCheck("C11", PROBE_SAMPLES, 8, model_outputs.check_determinism),
        ModelCheck("C12", PROBE_SAMPLES, 2, gradients.check_single_pass),
        ModelCheck("C17", PROBE_SAMPLES, 1, model_outputs.check_bounds),
        ModelCheck("C39", PROBE_SAMPLES, 4, clean_accuracy.check_clean_accuracy),
        ModelCheck("C41", PROBE_SAMPLES, 4, clean_accuracy.check_inputs),
        ModelCheck("C42", PROBE_SAMPLES, 4, clean_accuracy.check_labels),
    ]
    costly = [
        ModelCheck("C4", ATTACK_SAMPLES, 500, attack_strength.check_convergence),
        ModelCheck("C8", ATTACK_SAMPLES, 600, attack_strength.check_logit_scale),
        ModelCheck("C13", ATTACK_SAMPLES, 300, attack_strength.check_fixed_noise),
        ModelCheck("C31", DIFFERENCE_SAMPLES, 130, gradients.check_gradient_accuracy),
    ]
    return [*usual, *costly] if deep else usual


def probe_model(  # noqa: PLR0913 - a caller may leave out most
    model: ProbedModel,
    dataset: Dataset,
    samples: Sequence[int],
    seed: int = 0,
    device: str = "cpu",
    *,
    deep: bool = False,
    searches: bool = True,
    limit: TimeLimit | None = None,
) -> list[Verdict]:
    """Run the probes C1, C2, C6, C7, C10 to C12, C17, C39, C41 and C42 on a model, with ``deep`` C4, C8, C13 and C31.

    Args:
        model: the loaded model.
        dataset: the data it is evaluated on.
        samples: ids of the evaluation; at most 100 of them are probed and 64 attacked, fewer if memory or time is
            short. C39, C41 and C42 use 100 of the whole data set.
        seed: of the attacks' random numbers.
        device: where the model is.
        deep: run the costly probes too.
        searches: does an attack search for inputs? If all are given, the probes of what a search needs are NA.
        limit: time for all checks; None for no limit.

    Returns:
        one verdict for each check. A probe that raises, or that has no time for four samples, gives NA and the reason.
    """

    def probe(ids: Sequence[int]) -> Probe:
        kept.restore()
        return Probe.of(model.name, model.classifier, dataset, ids, seed).to_device(device)

    every, checks = range(len(dataset)), list_probes(deep=deep)
    needless = [c.id for c in checks if not searches and c.id in SEARCH_PROBES]
    checks = [check for check in checks if check.id not in needless]
    found = [CHECKS[i].make_verdict(model.name, "NA", None, NO_SEARCH) for i in needless]
    with stated_torch(), kept_modules([model.classifier]) as kept:
        schedule = _Schedule(checks, max(len(samples), 1), len(every), limit or TimeLimit())
        if limit is not None:
            with seeded_generators(seed % 2**32, []), suppress(Exception):  # the checks report it
                timed = probe(evenly_spaced(samples, ATTACK_SAMPLES))
                schedule.per_pass = _seconds_per_pass(timed, schedule.since)
        with seeded_generators(seed % 2**32, []):
            for check in schedule:
                chosen = every if check.id in OF_THE_DATA_SET else samples
                run = partial(_check_fewer, check, chosen, probe)
                skipped = schedule.skipped(check, model.name)
                found += skipped or run_check(check.id, model.name, run)
    return found


def _check_fewer(
    check: ModelCheck, samples: Sequence[int], probe: Callable[[Sequence[int]], Probe]
) -> list[Verdict]:
    """Run a check on its number of samples, or on fewer if memory is short."""
    ids = evenly_spaced(samples, check.samples)
    while True:
        try:
            return [check.run(probe(ids))]
        except (RuntimeError, MemoryError) as error:
            if len(ids) == 1 or not is_out_of_memory(error):
                raise
        ids = evenly_spaced(samples, len(ids) // 2)


class _Schedule:
    """Yields checks with as many samples as there is time for.

    Args:
        checks: the checks.
        available: number of evaluated samples.
        whole: number of samples of the data set.
        limit: time for all.
    """

    def __init__(
        self, checks: Sequence[ModelCheck], available: int, whole: int, limit: TimeLimit
    ) -> None:
        self._checks, (self._seconds, self._by_the_clock) = checks, limit
        self._available = {
            check.id: whole if check.id in OF_THE_DATA_SET else available for check in checks
        }
        self.per_pass = 0.0
        """Seconds of a pass of one sample."""

    def __iter__(self) -> Iterator[ModelCheck]:
        began, passes = _clocks(), 0
        for number, check in enumerate(self._checks):
            taken = self.since(began)
            if taken > TRUSTED_SHARE * self._seconds:
                self.per_pass = taken / max(passes, 1)
            waiting = [
                each._replace(samples=min(each.samples, self._available[each.id]))
                for each in self._checks[number:]
            ]
            left = max(self._seconds - taken, 0.0)
            count = affordable_samples(waiting, left, self.per_pass)[check.id]
            passes += count * check.passes
            yield check._replace(samples=count)

    def since(self, began: "Clocks") -> float:
        """Return the seconds since a time; a processor's time is larger where a model uses several threads."""
        clock, processor = (now - then for now, then in zip(_clocks(), began, strict=True))
        return clock if self._by_the_clock else min(clock, processor)

    def skipped(self, check: ModelCheck, model: str) -> list[Verdict]:
        """Return the verdict of a check that has no time; none for the others."""
        if check.samples:
            return []
        needed = LEAST_SAMPLES * check.passes * self.per_pass
        reason = (
            f"{NOT_MADE}: {LEAST_SAMPLES} samples take about {needed:.0f} s, and all checks together have "
            f"{self._seconds:.0f} s."
        )
        return [CHECKS[check.id].make_verdict(model, "NA", None, reason)]


def affordable_samples(
    checks: Sequence[ModelCheck], seconds: float, per_pass: float
) -> dict[str, int]:
    """Return the number of samples of each check so that all end in time, 0 for those that are left out.

    Each check gets the same time, and the others share what a cheap one leaves. The most expensive checks are left out
    until each of the others has LEAST_SAMPLES.

    Args:
        checks: the checks.
        seconds: time for all of them.
        per_pass: seconds of a pass of one sample.

    Example:
        >>> cheap, dear = ModelCheck("C10", 100, 1, print), ModelCheck("C4", 64, 500, print)
        >>> affordable_samples([cheap, dear], 20.0, 0.001)
        {'C10': 100, 'C4': 39}
        >>> affordable_samples([cheap, dear], 1.0, 0.001)
        {'C10': 100, 'C4': 0}
    """
    made = sorted(checks, key=lambda check: check.samples * check.passes)
    while True:
        left, found = seconds, dict.fromkeys((check.id for check in checks), 0)
        for number, check in enumerate(made):
            share, cost = left / (len(made) - number), per_pass * check.passes
            found[check.id] = int(min(check.samples, share / cost if cost else inf))
            left -= found[check.id] * cost
        late = [check for check in made if found[check.id] < min(LEAST_SAMPLES, check.samples)]
        if not late:
            return found
        made.remove(max(late, key=lambda check: check.passes))


Clocks = tuple[float, float]
"""A time on the clock and of the processor."""


def _clocks() -> Clocks:
    return time.perf_counter(), time.process_time()


def _seconds_per_pass(probe: Probe, since: Callable[[Clocks], float]) -> float:
    """Return the seconds of one forward or backward pass of one sample, in the largest batch that is timed quickly."""
    seconds, count = 0.0, 1
    for count in sorted({min(size, len(probe.batch)) for size in TIMED_SAMPLES}):
        rows = torch.arange(count, device=probe.batch.ids.device)
        seconds = min(since(_compute_gradient(probe, rows)) for _ in range(TIMINGS)) / 2
        if seconds > TIMING_SECONDS:
            break
    return seconds / count


def _compute_gradient(probe: Probe, rows: Tensor) -> Clocks:
    """Make two passes and return when they began."""
    began, batch = _clocks(), probe.batch[rows]
    images = batch.images.clone().requires_grad_(True)
    with torch.enable_grad():
        output = query_model(probe.classifier, images, probe.rng.rows(rows))
        if output.logits.requires_grad:
            per_sample_gradient(margin(output.logits, batch.labels), images)
    return began
