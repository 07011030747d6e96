"""Finds the samples on which a model or an attack raises, so that their fault stays theirs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from math import ceil, log2
from typing import TypeVar

import torch
from torch import Tensor

from robustbench_inv.errors import DeadlinePassed, TimeLimitExceeded
from robustbench_inv.tensors import Output, is_out_of_memory
from robustbench_inv.threat.goals import UNKNOWN

__all__ = [
    "attempts_for",
    "isolate",
    "joined_classes",
    "joined_output",
    "joined_values",
    "other_samples",
]


T = TypeVar("T")

STOPS = (DeadlinePassed, TimeLimitExceeded)
"""Errors that are no fault of a sample: halves of it would take as long, or there is no time left."""


def isolate(
    run: Callable[[Tensor], T], rows: Tensor, error: Exception, attempts: int | None = None
) -> Iterator[tuple[Tensor, T | Exception]]:
    """Run a function that raised for some rows on halves of them, until it raises for single rows alone.

    Args:
        run: the function; rows (m,) → result.
        rows: (n,) the rows for which it raised.
        error: what it raised.
        attempts: largest number of further calls; None for no limit.

    Yields:
        Rows (m,) with their result, or with an exception for rows that raise, in order.

    Raises:
        DeadlinePassed, TimeLimitExceeded: if a call raises them.
    """
    if isinstance(error, STOPS):
        raise error
    left = [rows.numel() * 2 if attempts is None else attempts]

    def visit(part: Tensor, raised: Exception) -> Iterator[tuple[Tensor, T | Exception]]:
        if len(part) < 2 or left[0] <= 0:
            yield part, raised
            return
        for half in torch.tensor_split(part, 2):
            left[0] -= 1
            try:
                result = run(half)
            except Exception as again:
                if is_out_of_memory(again) or isinstance(again, STOPS):
                    raise
                yield from visit(half, again)
            else:
                yield half, result

    yield from visit(rows, error)


def attempts_for(samples: int) -> int:
    """Return how many further searches may isolate the samples of a block on which an attack raises.

    Eight samples can be found. A search that raises for every sample ends after about three times its usual cost.
    """
    return 8 * max(1, ceil(log2(max(samples, 1))))


def joined_output(
    parts: Sequence[tuple[Tensor, Output | Exception]], images: Tensor, classes: int
) -> Output:
    """Return the outputs of all parts for (n, …) images; the logits are NaN where there is an exception instead.

    Args:
        parts: rows (m,) with their outputs.
        images: (n, …).
        classes: number of classes.
    """
    found = [(rows, output) for rows, output in parts if isinstance(output, Output)]
    logits = images.new_full((len(images), classes), torch.nan)
    scores, accepted = logits[:, 0].clone(), torch.ones_like(logits[:, 0], dtype=torch.bool)
    for rows, output in found:
        logits[rows] = output.logits.to(logits)
        if output.score is not None:
            scores[rows] = output.score.to(scores)
        if output.accepted is not None:
            accepted[rows] = output.accepted
    return Output(
        logits,
        scores if any(output.score is not None for _, output in found) else None,
        accepted if any(output.accepted is not None for _, output in found) else None,
    )


def joined_classes(classify: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Return an oracle's classes (n,) of (n, …) images, UNKNOWN for single images on which it raises.

    Args:
        classify: rows (m,) → classes (m,).
        images: (n, …).

    Raises:
        Exception: whatever it raises for every image.
    """
    rows = torch.arange(len(images), device=images.device)
    try:
        return classify(rows)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        found = torch.full_like(rows, UNKNOWN)
        parts = list(isolate(classify, rows, error))
        if all(isinstance(classes, Exception) for _, classes in parts):
            raise
        for part, classes in parts:
            if isinstance(classes, Tensor):
                found[part] = classes
        return found


def joined_values(parts: Sequence[tuple[int, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """Return the numbers of all parts by name, each part given with its number of samples.

    Numbers that a part lacks are NaN, or 0 if they are integers.
    """
    known = {name: values for _, part in parts for name, values in part.items()}
    joined = {}
    for name, values in known.items():
        missing = torch.nan if values.is_floating_point() else 0
        columns = [part.get(name, values.new_full((n,), missing)) for n, part in parts]
        joined[name] = torch.cat(columns)
    return joined


OTHER_SAMPLES = 3
"""Samples that are tried to learn whether a model that fails on some samples works on others."""


def other_samples(ids: Tensor, size: int) -> list[list[int]]:
    """Return the ids of a few samples of a data set other than some samples (n,), each alone."""
    known = {*ids.tolist()}
    spaced = (place * size // OTHER_SAMPLES for place in range(OTHER_SAMPLES))
    others = (sample for sample in (*spaced, *range(size)) if sample not in known)
    return [[sample] for sample in islice(dict.fromkeys(others), OTHER_SAMPLES)]
