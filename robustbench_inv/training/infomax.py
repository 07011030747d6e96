"""The objective of Supervised Deep InfoMax, its critic, and lower bounds of mutual information."""

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
    """Return E_J[g(T)] − E_M[f*(g(T))] for the Jensen-Shannon divergence: at most 2 log 2, no MI bound in nats.

    Args:
        joint: (n, …) critic T on pairs of the joint distribution, one per sample.
        product: (k, n, …) T on pairs of the product of the marginals, k per sample.

    Returns:
        The bound, (…).

    References:
        Nowozin, Cseke and Tomioka, f-GAN, NeurIPS 2016, equation 4 and tables 2 and 6; Hjelm et al., Learning deep
        representations by mutual information estimation and maximization, ICLR 2019, equation 4.
    """
    inside, conjugate = F_DIVERGENCES["js"]
    return inside(joint).mean(0) - conjugate(product).mean((0, 1))


def donsker_varadhan(joint: Tensor, product: Tensor) -> Tensor:
    """Return E_J[T] − log E_M[exp T], a lower bound of the MI in nats for exact expectations.

    Args:
        joint: as for ``jensen_shannon``.
        product: as for ``jensen_shannon``.

    References:
        Belghazi et al., Mutual information neural estimation, ICML 2018, equation 6.
    """
    count = product.shape[0] * product.shape[1]
    return joint.mean(0) - (product.flatten(0, 1).logsumexp(0) - log(count))


def info_nce(joint: Tensor, product: Tensor) -> Tensor:
    """Return E[T − log mean exp T], a lower bound of the MI, at most log(k + 1).

    The inner mean is over the sample's joint pair and its k pairs of the product.

    Args:
        joint: as for ``jensen_shannon``.
        product: as for ``jensen_shannon``.

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
"""Lower bounds of mutual information by name."""


@dataclass
class SupervisedInfoMax:
    """α J_MI + β J_NLL + γ J_LM, with log p(z|y) / d instead of log p(x|y).

    J_MI is minus a bound of the mutual information between the code and the 4×4 positions of the last feature map,
    averaged over positions; negative pairs take their local features from the batch's next ``negatives`` samples.
    J_NLL = −E log p(z|y). J_LM = E (log p(z|c) + K − log p(z|y))₊² over classes c ≠ y. The critic T is not part of
    the model: checkpoints contain it, exported models do not.

    Args:
        bound: a name of MI_BOUNDS.
        alpha: α, weight of J_MI.
        beta: β, weight of J_NLL.
        gamma: γ, weight of J_LM.
        margin: K, in nats per dimension, because the authors divide by d. The published logits agree: they differ
            by more than dK = 640 nats (table 4).
        negatives: negative pairs per positive pair.
        seed: seed of the critic's initialisation.

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

    def begin(self, model: nn.Module, data: TrainingData) -> None:
        """Create the critic.

        Raises:
            BadModel: if the network is no SDIM.
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
        """Return the critic's weights, which the network's optimiser trains as well."""
        assert self._critic is not None, "begin() comes first"
        return self._critic.parameters()

    def state(self) -> dict[str, Tensor]:
        """Return the critic's weights by name."""
        assert self._critic is not None
        return self._critic.state_dict()

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        assert self._critic is not None
        self._critic.load_state_dict(state)


class LocalCritic(nn.Module):
    """T(l, z) of one position's features l and the code z: 1×1 convolutions of 256, 256 and 1 on both.

    The first layer is the sum of a function of l and a function of z, so that each is computed once for all pairs.

    Args:
        features: channels of the local feature map.
        dimensions: d, dimension of the code.
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
        """Return T of the pairs of a batch, and of each code with other samples' features.

        Args:
            local: (n, features, h, w).
            code: (n, d).
            negatives: k < n.

        Returns:
            T of the n positive pairs, (n, h w), and of the k n negative pairs, (k, n, h w).
        """
        positions = self.local(local.flatten(2).transpose(1, 2))
        codes = self.code(code)[:, None]
        shuffled = [positions.roll(-step, 0) + codes for step in range(1, negatives + 1)]
        values = self.head(torch.stack([positions + codes, *shuffled]))[..., 0]
        return values[0], values[1:]


def likelihood_margin(likelihoods: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Return the mean of (ℓ_c + K − ℓ_y)₊² over samples and classes c ≠ y; zero if every margin is at least K.

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
