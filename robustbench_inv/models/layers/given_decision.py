"""A coupling whose passive part are the logits: everything else is mapped given the decision."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from robustbench_inv.models.layers.bijection import Bijection

__all__ = ["GivenDecision"]


class GivenDecision(Bijection):
    """(z_s, z_n) ↦ (z_s, G(z_n)), G knowing the decision argmax z_s as a one-hot condition.

    z_s passes unchanged, so the inverse knows the same decision.

    Args:
        rest: G, a bijection of vectors (n, d − C) under a condition (n, C).
        num_classes: C.
    """

    def __init__(self, rest: Bijection, num_classes: int) -> None:
        super().__init__()
        self.rest, self.num_classes = rest, num_classes

    def forward(self, x: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        nuisance, log_det = self.rest(*self.parts(x))
        return torch.cat([x[:, : self.num_classes], nuisance], 1), log_det

    def inverse(self, y: Tensor, condition: Tensor | None = None) -> Tensor:
        return torch.cat([y[:, : self.num_classes], self.rest.inverse(*self.parts(y))], 1)

    def parts(self, code: Tensor) -> tuple[Tensor, Tensor]:
        """Return the nuisances (n, d − C) of codes (n, d), and the decisions one-hot (n, C)."""
        semantic, nuisance = code[:, : self.num_classes], code[:, self.num_classes :]
        return nuisance, one_hot(semantic.argmax(1), self.num_classes).to(code.dtype)
