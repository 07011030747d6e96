"""What every invertible layer offers, and how layers follow one another."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor, nn

__all__ = ["Bijection", "Chain"]


class Bijection(nn.Module, ABC):
    """An invertible map of each sample, which may depend on a condition that belongs to the sample."""

    @abstractmethod
    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return y (n, …) and log |det ∂y/∂x| (n,).

        Args:
            x: (n, …).
            condition: (n, k), or None.
        """

    @abstractmethod
    def inverse(self, y: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return the x (n, …) that is mapped to y under the same condition."""

    if TYPE_CHECKING:  # torch declares the call of a module as Any

        def __call__(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]: ...


class Chain(Bijection):
    """Bijections one after the other, all under the same condition."""

    def __init__(self, *steps: Bijection) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def __iter__(self) -> Iterator[Bijection]:
        return iter(self.steps)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.steps)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for step in self:
            x, log_det = step(x, condition)
            total = total + log_det
        return x, total

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> Tensor:
        for step in reversed(list(self)):
            y = step.inverse(y, condition)
        return y
