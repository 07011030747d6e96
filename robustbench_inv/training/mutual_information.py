"""Lower bounds of mutual information, from a critic's values on pairs that belong together and pairs that do not."""

from collections.abc import Callable, Mapping
from math import log

import torch
from torch import Tensor

from robustbench_inv.training.objectives import CONJUGATES

__all__ = ["MI_BOUNDS", "donsker_varadhan", "info_nce", "jensen_shannon"]


def jensen_shannon(joint: Tensor, product: Tensor) -> Tensor:
    """Return E_J[g(T)] − E_M[f*(g(T))] for f of Jensen and Shannon: at most 2 log 2, and no bound of the MI in nats.

    Args:
        joint: (n, …) critic T on pairs of the joint distribution, one for each sample.
        product: (k, n, …) T on k pairs of the product of the marginals for each sample.

    Returns:
        The bound, (…).

    References:
        Nowozin, Cseke and Tomioka, f-GAN, NeurIPS 2016, equation 4 and tables 2 and 6; Hjelm et al., Learning deep
        representations by mutual information estimation and maximization, ICLR 2019, equation 4.
    """
    inside, conjugate = CONJUGATES["js"]
    return inside(joint).mean(0) - conjugate(product).mean((0, 1))


def donsker_varadhan(joint: Tensor, product: Tensor) -> Tensor:
    """Return E_J[T] − log E_M[exp T], at most the MI in nats when the expectations are exact; arguments as above.

    References:
        Belghazi et al., Mutual information neural estimation, ICML 2018, equation 6.
    """
    count = product.shape[0] * product.shape[1]
    return joint.mean(0) - (product.flatten(0, 1).logsumexp(0) - log(count))


def info_nce(joint: Tensor, product: Tensor) -> Tensor:
    """Return E[T − log mean of exp T over a sample's own pair and its k others], at most the MI and log(k + 1).

    References:
        Van den Oord, Li and Vinyals, Representation learning with contrastive predictive coding,
        arXiv 1807.03748, equation 4 and appendix A.1.
    """
    every = torch.cat([joint[None], product])
    return (joint - (every.logsumexp(0) - log(len(every)))).mean(0)


MI_BOUNDS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "js": jensen_shannon,
    "donsker-varadhan": donsker_varadhan,
    "infonce": info_nce,
}
"""Bounds by name."""
