"""Per-sample random numbers for attacks of other libraries; the global generators are restored afterwards."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from robustbench_inv.randomness import SampleRNG, seeded_generators

__all__ = ["PerSampleDraws", "adapted_randomness", "adapted_seed"]


@contextmanager
def adapted_randomness(rng: SampleRNG, *, one_by_one: bool = False) -> Iterator["PerSampleDraws"]:
    """Replace draws from torch, NumPy and ``random`` inside the block by per-sample random numbers.

    A torch draw with one row per sample gets the samples' own numbers, with the index of the call as their step. All
    other draws come from generators that are seeded for the block, so that they depend on the evaluation's seed
    alone. The global generators are restored afterwards.

    Args:
        rng: the n samples' random numbers.
        one_by_one: the block works on a single sample, which also seeds the other draws.

    Yields:
        The draws, so that those that nobody uses can be left out.
    """
    seed, devices = adapted_seed(rng, one_by_one=one_by_one), range(torch.cuda.device_count())
    draws = PerSampleDraws(rng.named("foreign"))
    with seeded_generators(seed, devices), _replaced(draws):
        yield draws


@contextmanager
def _replaced(draws: "PerSampleDraws") -> Iterator[None]:
    """Replace torch's functions by draws; a mode that intercepts every call costs a third of the time."""
    with ExitStack() as stack:
        for owner, name, how in _DRAWS:
            own = name in vars(owner)  # a method of Tensor is inherited
            undo = (setattr, owner, name, vars(owner)[name]) if own else (delattr, owner, name)
            stack.callback(*undo)
            setattr(owner, name, draws.in_place_of(getattr(owner, name), how))
        yield


def adapted_seed(rng: SampleRNG, *, one_by_one: bool = False) -> int:
    """Return a seed below 2**31 for draws that are not addressed by sample.

    Args:
        rng: the samples' random numbers; without ``one_by_one`` only its seed is used.
        one_by_one: return the seed of the only sample.
    """
    ids = rng.ids[:1] if one_by_one else torch.zeros_like(rng.ids[:1])
    stream = "foreign-alone" if one_by_one else "foreign-shared"
    return int(SampleRNG(rng.seed, ids, stream).integers(2**31)[0])


class PerSampleDraws:
    """Replaces draws that have a row for each sample.

    Args:
        rng: the samples' random numbers.
    """

    def __init__(self, rng: SampleRNG) -> None:
        self._rng, self._calls, self._unused = rng, 0, False

    @contextmanager
    def unused(self) -> Iterator[None]:
        """Draw zeros inside the block, whose numbers nobody uses; later draws are the same as without it."""
        self._unused = True
        try:
            yield
        finally:
            self._unused = False

    def in_place_of(self, function: Callable[..., Any], how: "_Draw") -> Callable[..., Any]:
        """Return a function that draws the samples' own numbers if there is a row for each sample."""

        def draw(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever the function returns
            place = how.place(*args, **kwargs)
            if not self._addressed(place):
                return function(*args, **kwargs)
            values = self._draw(how.distribution, place)
            first, second = how.limits(*args, **kwargs)
            width = second if how.distribution == "normal" else second - first
            with torch.no_grad():
                return place.copy_(first + width * values)

        return draw

    def _addressed(self, place: Tensor) -> bool:
        """Return whether a tensor has a row for each sample; (d, 1) is Foolbox's direction for all samples."""
        shape = place.shape
        column = len(shape) == 2 and shape[1] == 1
        return len(shape) >= 2 and shape[0] == len(self._rng.ids) and not column

    def _draw(self, distribution: str, place: Tensor) -> Tensor:
        draw = self._rng.normal if distribution == "normal" else self._rng.uniform
        self._calls += 1
        if self._unused:
            return place.new_zeros(())
        return draw(tuple(place.shape[1:]), step=self._calls - 1, dtype=place.dtype)


def _new(*args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
    return torch.empty(*args, **{k: v for k, v in kwargs.items() if k != "generator"})


def _like(*args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
    return torch.empty_like(*args, **{k: v for k, v in kwargs.items() if k != "generator"})


def _itself(place: Tensor, *_: object, **__: object) -> Tensor:
    return place


def _standard(*_: object, **__: object) -> tuple[float, float]:
    return 0.0, 1.0


def _interval(_: Tensor, *args: float, **kwargs: Any) -> tuple[float, float]:  # noqa: ANN401
    named = {"from": 0.0, "to": 1.0, **dict(zip(("from", "to"), args, strict=False)), **kwargs}
    return named["from"], named["to"]


def _moments(_: Tensor, *args: float, **kwargs: Any) -> tuple[float, float]:  # noqa: ANN401
    named = {"mean": 0.0, "std": 1.0, **dict(zip(("mean", "std"), args, strict=False)), **kwargs}
    return named["mean"], named["std"]


class _Draw(NamedTuple):
    """A distribution, the tensor that a function fills, and the distribution's parameters: mean and deviation, or ends."""

    distribution: str
    place: Callable[..., Tensor]
    limits: Callable[..., Any]


_DRAWS: tuple[tuple[Any, str, _Draw], ...] = (
    (torch, "rand", _Draw("uniform", _new, _standard)),
    (torch, "randn", _Draw("normal", _new, _standard)),
    (torch, "rand_like", _Draw("uniform", _like, _standard)),
    (torch, "randn_like", _Draw("normal", _like, _standard)),
    (Tensor, "uniform_", _Draw("uniform", _itself, _interval)),
    (Tensor, "normal_", _Draw("normal", _itself, _moments)),
)
"""The functions that attacks draw with."""
