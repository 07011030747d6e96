"""The objective of Supervised Deep InfoMax, its critic, and the lower bounds of mutual information it maximises."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import log

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from robustbench_inv.errors import BadModel, BadParameter
from robustbench_inv.models.resnet import FILTERS
from robustbench_inv.models.sdim import SDIM
from robustbench_inv.training.objectives import F_DIVERGENCES, TrainingBatch, TrainingData

__all__ = [
    "MI_BOUNDS",
    "LocalCritic",
    "SupervisedInfoMax",
    "donsker_varadhan",
    "info_nce",
    "jensen_shannon",
    "likelihood_margin",
]


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
    inside, conjugate = F_DIVERGENCES["js"]
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


@dataclass
class SupervisedInfoMax:
    """α J_MI + β J_NLL + γ J_LM, with log p(z|y) / d in the place of log p(x|y).

    J_MI is minus a bound of the mutual information between the 4×4 positions of the last map and the code, averaged
    over positions; pairs that do not belong together take their local features from the batch's next
    ``negatives`` samples. J_NLL = −E log p(z|y). J_LM = E (log p(z|c) + K − log p(z|y))₊² over classes c ≠ y. The
    critic T is no part of the model: a checkpoint holds it beside the network, a trained model goes without.

    Args:
        bound: a name of MI_BOUNDS.
        alpha: weight of J_MI.
        beta: weight of J_NLL.
        gamma: weight of J_LM.
        margin: K, in nats for each of the d dimensions, as the authors divide by d. The published logits agree with
            that: they differ by more than dK = 640 nats (table 4).
        negatives: pairs that do not belong together, for each that does.
        seed: of the critic's initialisation.

    References:
        Supervised Deep Infomax, equations 3, 5, 6 and 7, appendix B.2 and table 8.
    """

    bound: str = "js"
    alpha: float = 1.0
    beta: float = 1.0
    gamma: float = 1.0
    margin: float = 10.0
    negatives: int = 1
    seed: int = 0
    _critic: "LocalCritic | None" = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.bound not in MI_BOUNDS:
            expected = "one of " + ", ".join(MI_BOUNDS)
            raise BadParameter("unknown bound", got=self.bound, expected=expected)
        if self.negatives < 1:
            raise BadParameter("unusable negatives", got=self.negatives, expected=">= 1")

    def begin(self, model: nn.Module, data: TrainingData, *, fresh: bool) -> None:
        """Make the critic.

        Raises:
            BadModel: if the network has no code with class conditionals.
        """
        if not isinstance(model, SDIM):
            problem = "supervised infomax needs a code with class conditionals"
            raise BadModel(problem, got=type(model).__name__, expected="an SDIM")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            critic = LocalCritic(FILTERS[-1], model.dimensions)
        self._critic = critic.to(model.conditionals.mean.device)

    def __call__(self, model: nn.Module, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        assert isinstance(model, SDIM)
        assert self._critic is not None, "begin() comes first"
        local, code = model.encoder(batch.images)
        joint, product = self._critic(local, code, self.negatives)
        information = MI_BOUNDS[self.bound](joint.float(), product.float()).mean()
        likelihoods = model.conditionals(code) / model.dimensions
        negative_log_likelihood = -likelihoods.gather(1, batch.labels[:, None]).mean()
        margin = likelihood_margin(likelihoods, batch.labels, self.margin)
        loss = self.beta * negative_log_likelihood + self.gamma * margin - self.alpha * information
        return loss, likelihoods

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the critic's weights, which are learned along with the network's."""
        assert self._critic is not None, "begin() comes first"
        return self._critic.parameters()

    def state(self) -> dict[str, Tensor]:
        """Return the critic's weights by name."""
        assert self._critic is not None
        return self._critic.state_dict()

    def load(self, state: dict[str, Tensor]) -> None:
        """Take back what ``state`` returned."""
        assert self._critic is not None
        self._critic.load_state_dict(state)


class LocalCritic(nn.Module):
    """T(l, z) of one position's features l and the code z: 1×1 convolutions of 256, 256 and 1 on both.

    The first layer is a sum of a part that knows l and one that knows z, so that each is computed once for all
    pairs.

    Args:
        features: channels of the local map.
        dimensions: d of the code.
        hidden: units of the two hidden layers.

    References:
        Supervised Deep Infomax, table 8.
    """

    def __init__(self, features: int, dimensions: int, hidden: int = 256) -> None:
        super().__init__()
        self.local = nn.Linear(features, hidden)
        self.code = nn.Linear(dimensions, hidden, bias=False)
        self.head = nn.Sequential(
            nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )

    def forward(self, local: Tensor, code: Tensor, negatives: int) -> tuple[Tensor, Tensor]:
        """Judge the pairs of a batch, and those of each code with other samples' features.

        Args:
            local: (n, features, h, w).
            code: (n, d).
            negatives: k < n.

        Returns:
            T of the n pairs, (n, h w), and of k n others, (k, n, h w).
        """
        positions = self.local(local.flatten(2).transpose(1, 2))
        told = self.code(code)[:, None]
        others = [positions.roll(-step, 0) + told for step in range(1, negatives + 1)]
        values = self.head(torch.stack([positions + told, *others]))[..., 0]
        return values[0], values[1:]


def likelihood_margin(likelihoods: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Return the mean over samples and classes c ≠ y of (ℓ_c + K − ℓ_y)₊², zero where every margin is kept.

    Args:
        likelihoods: (n, C) ℓ.
        labels: (n,) classes y.
        margin: K.

    References:
        Supervised Deep Infomax, equation 6.
    """
    missing = (likelihoods + margin - likelihoods.gather(1, labels[:, None])).relu()
    others = 1 - one_hot(labels, likelihoods.shape[1])
    return (missing**2 * others).sum() / others.sum()
