"""Counter-based random numbers that depend on (seed, stream, sample, restart, step) alone, and seeded global generators."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustbench_inv.identity import digest_value

__all__ = ["SampleRNG", "philox", "seeded", "seeded_generators"]


Shape = tuple[int, ...]
"""Shape of one sample's draw."""

Step = int | Tensor
"""Step of a draw: one number, or (n,) numbers, one for each sample."""

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Return the Philox-4x32-10 words of each counter.

    Args:
        counter: (..., 4) int64, each a 32-bit word.
        key: two 32-bit words.

    Returns:
        (..., 4) int64, each a 32-bit word.

    References:
        Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011.
    """
    if counter.device.type != "cpu":
        return torch.stack(_rounds(list(counter.unbind(-1)), key), -1)
    words: NDArray[np.int64] = counter.reshape(-1, 4).numpy()  # a third of torch's time
    return torch.from_numpy(np.stack(_rounds(list(words.T), key), -1)).reshape(counter.shape)


_Words = TypeVar("_Words", Tensor, NDArray[np.int64])


def _rounds(counter: list[_Words], key: tuple[int, int]) -> list[_Words]:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # modulo 2**64, signed
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return [c0, c1, c2, c3]


@dataclass(frozen=True)
class SampleRNG:
    """The random numbers of one batch, addressed by sample id, not by position.

    Args:
        seed: the seed of the evaluation.
        ids: (n,) int64 sample ids, in the order of the batch.
        stream: separates uses that must not share draws ("attack", "verdict", …).
        copies: (n,) int64, the number of the copy if a sample occurs several times in the batch; each copy has its own
            draws. None if no sample is repeated.

    Example:
        >>> both = SampleRNG(0, torch.tensor([3, 8])).uniform((2,))
        >>> alone = SampleRNG(0, torch.tensor([8])).uniform((2,))
        >>> bool((both[1] == alone[0]).all())
        True
    """

    seed: int
    ids: Tensor
    stream: str = "attack"
    copies: Tensor | None = None

    def rows(self, rows: Tensor) -> "SampleRNG":
        """Return the random numbers of a subset of the batch, given positions (m,) or a mask (n,)."""
        return replace(
            self, ids=self.ids[rows], copies=None if self.copies is None else self.copies[rows]
        )

    def named(self, stream: str) -> "SampleRNG":
        """Return the same samples' random numbers on another stream."""
        return replace(self, stream=stream)

    def uniform(
        self, shape: Shape, *, restart: int = 0, step: Step = 0, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return (n, *shape) numbers uniform on (0, 1)."""
        count = _count(shape)
        words = self._words(count, restart, step)[:, :count]
        limits = torch.finfo(dtype)  # rounding to float32 must not reach 1
        numbers = ((words.double() + 0.5) / 2**32).to(dtype)
        return numbers.clamp(limits.tiny, 1 - limits.eps / 2).reshape(-1, *shape)

    def normal(
        self, shape: Shape, *, restart: int = 0, step: Step = 0, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return (n, *shape) standard normal numbers (Box-Muller)."""
        count = _count(shape)
        half = (count + 1) // 2
        words = (self._words(2 * half, restart, step)[:, : 2 * half].double() + 0.5) / 2**32
        radius, angle = (-2 * words[:, :half].log()).sqrt(), 2 * torch.pi * words[:, half:]
        both = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)
        return both[:, :count].to(dtype).reshape(-1, *shape)

    def integers(self, high: int, shape: Shape = (), *, restart: int = 0, step: Step = 0) -> Tensor:
        """Return (n, *shape) int64 uniform on 0 … high − 1 (bias below high / 2**32)."""
        count = _count(shape)
        words = self._words(count, restart, step)[:, :count]
        return ((words * high) >> 32).reshape(-1, *shape)

    def _words(self, count: int, restart: int, step: Step) -> Tensor:
        device = self.ids.device
        blocks = torch.arange((count + 3) // 4, device=device)
        counter = torch.empty((len(self.ids), len(blocks), 4), dtype=torch.int64, device=device)
        counter[..., 0] = blocks
        counter[..., 1] = torch.as_tensor(step, device=device).reshape(-1, 1) & _MASK
        copies = 0 if self.copies is None else self.copies[:, None] << 16
        counter[..., 2] = (restart + copies) & _MASK
        counter[..., 3] = self.ids[:, None] & _MASK
        return philox(counter, self._key()).flatten(1)

    def _key(self) -> tuple[int, int]:
        text = f"{self.seed}/{self.stream}".encode()
        word = int.from_bytes(hashlib.sha256(text).digest()[:8], "little")
        return word & _MASK, word >> 32


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


@contextmanager
def seeded(seed: int, block: int, device: torch.device) -> Iterator[None]:
    """Seed all global generators for one block of a cell, and restore them afterwards.

    This package passes random numbers as arguments. A user's model, Foolbox and torchattacks use global generators;
    without seeding, a resumed run would give them other numbers than an uninterrupted one.

    Args:
        seed: the seed of the evaluation.
        block: first sample id of the block.
        device: its generator is seeded as well as the CPU's.
    """
    start = int(digest_value({"seed": seed, "block": block})[:8], 16)
    with seeded_generators(start, [device] if device.type == "cuda" else []):
        yield


@contextmanager
def seeded_generators(seed: int, devices: Sequence[torch.device | int]) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and ``random``, and restore them afterwards.

    Args:
        seed: below 2**32.
        devices: CUDA devices whose generators are seeded and restored as well.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
    with torch.random.fork_rng(devices):
        try:
            _seed_torch(seed)
            np.random.seed(seed)  # noqa: NPY002
            random.seed(seed)
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


def _seed_torch(seed: int) -> None:
    """Seed the generators of devices in use; ``torch.manual_seed`` remembers a stack for each of the others."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
