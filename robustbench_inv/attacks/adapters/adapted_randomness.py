"""Per-sample random numbers for attacks of other libraries; the global generators are restored afterwards."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from robustbench_inv.randomness import SampleRNG, seeded_generators

__all__ = ["adapted_randomness", "adapted_seed"]


@contextmanager
def adapted_randomness(rng: SampleRNG, *, one_by_one: bool = False) -> Iterator[None]:
    """Replace draws from torch, NumPy and ``random`` inside the block by per-sample random numbers.

    A torch draw with one row per sample gets the samples' own numbers, with the index of the call as their step. All
    other draws come from generators that are seeded for the block, so that they depend on the evaluation's seed
    alone. The global generators are restored afterwards.

    Args:
        rng: the n samples' random numbers.
        one_by_one: the block works on a single sample, which also seeds the other draws.
    """
    seed, devices = adapted_seed(rng, one_by_one=one_by_one), range(torch.cuda.device_count())
    with seeded_generators(seed, devices), _PerSampleDraws(rng.named("foreign")):
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


class _PerSampleDraws(TorchFunctionMode):
    """Replaces draws that have a row for each sample."""

    def __init__(self, rng: SampleRNG) -> None:
        super().__init__()
        self._rng = rng
        self._calls = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - whatever the function returns
        kwargs = kwargs or {}
        if func not in _DRAWS:
            return func(*args, **kwargs)
        distribution, place_of, limits_of = _DRAWS[func]
        place = place_of(*args, **kwargs)
        if not self._addressed(place):
            return func(*args, **kwargs)
        values = self._draw(distribution, place)
        first, second = limits_of(*args, **kwargs)
        width = second if distribution == "normal" else second - first
        with torch.no_grad():
            return place.copy_(first + width * values)

    def _addressed(self, place: Tensor) -> bool:
        """Return whether a tensor has a row for each sample; (d, 1) is Foolbox's direction for all samples."""
        shape = place.shape
        column = len(shape) == 2 and shape[1] == 1
        return len(shape) >= 2 and shape[0] == len(self._rng.ids) and not column

    def _draw(self, distribution: str, place: Tensor) -> Tensor:
        draw = self._rng.normal if distribution == "normal" else self._rng.uniform
        values = draw(tuple(place.shape[1:]), step=self._calls, dtype=place.dtype)
        self._calls += 1
        return values


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


_DRAWS: dict[Callable[..., Any], tuple[str, Callable[..., Tensor], Callable[..., Any]]] = {
    torch.rand: ("uniform", _new, _standard),
    torch.randn: ("normal", _new, _standard),
    torch.rand_like: ("uniform", _like, _standard),
    torch.randn_like: ("normal", _like, _standard),
    Tensor.uniform_: ("uniform", _itself, _interval),
    Tensor.normal_: ("normal", _itself, _moments),
}
"""The functions that attacks draw with: distribution, filled tensor, and parameters (for a normal distribution mean and
standard deviation, for a uniform one both ends)."""
