"""Independence cross-entropy: the nuisance variables of a classifier shall contain no class information."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import log, pi

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from robustbench_inv.errors import BadModel, BadParameter
from robustbench_inv.models.firevnet import FiRevNet
from robustbench_inv.training.loop import optimiser_state, restore_optimiser
from robustbench_inv.training.nuisance_probe import Standardise, perceptron
from robustbench_inv.training.objectives import TrainingBatch, TrainingData

__all__ = ["IndependenceCrossEntropy"]

BLOCK = 1000
"""Samples that are encoded at a time."""

STANDARDISE_MOMENTUM = 0.02
"""Weight of the newest batch in the running mean and deviation that standardise the adversaries' input."""


_CHOICES = {
    "form": ("published", "uniform"),
    "optimiser": ("adam", "adamax"),
    "prior": ("running", "learned"),
}
"""Values of the objective's options."""


@dataclass
class IndependenceCrossEntropy:
    """L_sCE(θ) + a L_nCE(θ, θ_nc) + b L_MLEn(θ), minimised over θ and maximised over the nuisance classifiers θ_nc.

    L_sCE is the cross-entropy of the logits z_s. L_MLEn is the negative log-likelihood of the nuisances z_n under a
    Gaussian p_k = N(β_k, γ_k), in nats per dimension, with the log-determinant. With the prior ``learned``, β_k and
    γ_k are parameters that the network's optimiser trains, as in definition 7; ``running`` takes the running mean and
    deviation of the nuisances, without a gradient. L_nCE has two forms:
    ``published`` is E[log D(z_n)_y] with the true labels, whose gradient vanishes when the nuisance classifier D is
    certain. ``uniform`` is the cross-entropy between the uniform distribution and D, which has the same optimum
    and keeps its gradient. Each nuisance classifier takes ``inner_steps`` steps per batch, on the most recent
    batches. Its inputs are standardised, so that variables of small scale count as much as others.

    Args:
        nuisance: a.
        likelihood: b.
        form: ``published`` or ``uniform``.
        inner_steps: steps of each nuisance classifier per step of the network.
        adversaries: number of nuisance classifiers.
        hidden: width of their three hidden layers.
        dropout: share of their hidden units that are left out in training.
        per_input: divide L_nCE by the number of its inputs in their own steps (appendix B.2).
        optimiser: their optimiser: ``adam`` with decay rates 0.5 and 0.99, or ``adamax``.
        learning_rate: its learning rate.
        prior: ``running`` or ``learned``.
        onset: initial fraction of the training in which only the nuisance classifiers learn.
        ramp: fraction of the training over which a and b then rise from 0.
        seed: seed of the nuisance classifiers' initialisation.

    References:
        Jacobsen et al., Excessive invariance causes adversarial vulnerability, ICLR 2019, definition 7 and
        appendix B.2; Behrmann, thesis, definition 6.14 and equation 6.13.
    """

    nuisance: float = 1.0
    likelihood: float = 0.1
    form: str = "uniform"
    inner_steps: int = 2
    adversaries: int = 2
    hidden: int = 512
    dropout: float = 0.0
    per_input: bool = False
    optimiser: str = "adam"
    learning_rate: float = 1e-3
    prior: str = "running"
    onset: float = 0.0
    ramp: float = 0.0
    seed: int = 0
    _learners: "_Adversaries | None" = field(default=None, init=False, repr=False)
    _recent_batches: deque[tuple[Tensor, Tensor]] = field(
        default_factory=deque, init=False, repr=False
    )

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if (got := getattr(self, name)) not in known:
                raise BadParameter(f"unknown {name}", got=got, expected=" or ".join(known))
        if self.inner_steps < 1 or self.adversaries < 1:
            got = (self.inner_steps, self.adversaries)
            raise BadParameter("invalid inner_steps or adversaries", got=got, expected=">= 1")

    def begin(self, model: nn.Module, data: TrainingData) -> None:
        """Create the nuisance classifiers.

        Raises:
            BadModel: if the network is no fiRevNet.
        """
        if not isinstance(model, FiRevNet):
            raise BadModel(
                "independence cross-entropy needs nuisances",
                got=type(model).__name__,
                expected="a fiRevNet",
            )
        nuisances = data.images[0].numel() - model.num_classes
        self._learners = _Adversaries(self, nuisances, model.num_classes).to(data.images.device)

    def __call__(self, model: nn.Module, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        assert isinstance(model, FiRevNet)
        learners = self._learners
        assert learners is not None, "begin() comes first"
        code, log_det = model.transform(batch.images)
        logits, nuisance = model.split(code.float())
        learners.standardise.update(nuisance.detach(), STANDARDISE_MOMENTUM)
        self._recent_batches.append((nuisance.detach(), batch.labels))
        while len(self._recent_batches) > self.inner_steps:
            self._recent_batches.popleft()
        nuisance_loss = self._play(learners, nuisance, batch)
        negative_log_likelihood = learners.negative_log_likelihood(nuisance, log_det)
        loss = self._strength(batch.progress) * (
            self.nuisance * nuisance_loss + self.likelihood * negative_log_likelihood
        )
        return loss + cross_entropy(logits, batch.labels), logits

    def _play(self, learners: "_Adversaries", nuisance: Tensor, batch: TrainingBatch) -> Tensor:
        """Train the nuisance classifiers, and return L_nCE; dropout depends only on seed, epoch and samples."""
        drawn = batch.rng.named(f"{batch.rng.stream}/dropout").integers(2**31)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(drawn[0]))
            for recent in self._recent_batches if self.nuisance else ():
                learners.step(*recent)
            return torch.stack(
                [self._nuisance_loss(d(nuisance), batch.labels) for d in learners.classifiers()]
            ).mean()

    def _strength(self, progress: float) -> float:
        """Return the factor by which a and b are multiplied at this stage of the training."""
        if not self.ramp:
            return float(progress >= self.onset)
        return float(progress >= self.onset) * min(1.0, (progress - self.onset) / self.ramp)

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return β_k and log γ_k of a learned prior, which the network's optimiser trains."""
        assert self._learners is not None
        prior = self._learners.prior
        return () if prior is None else prior.parameters()

    def state(self) -> dict[str, Tensor]:
        """Return nuisance classifiers, their optimiser and the most recent batches, by name."""
        assert self._learners is not None
        tensors = {f"learners/{k}": v for k, v in self._learners.state_dict().items()}
        optimiser = optimiser_state(self._learners.optimiser)
        recent = {
            f"recent/{i}/{j}": v
            for i, pair in enumerate(self._recent_batches)
            for j, v in enumerate(pair)
        }
        return tensors | {f"optimiser/{k}": v for k, v in optimiser.items()} | recent

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state`` returned."""
        assert self._learners is not None
        parts: dict[str, dict[str, Tensor]] = {"learners": {}, "optimiser": {}, "recent": {}}
        for name, value in state.items():
            part, rest = name.split("/", 1)
            parts[part][rest] = value
        self._learners.load_state_dict(parts["learners"])
        restore_optimiser(self._learners.optimiser, parts["optimiser"])
        recent = parts["recent"]
        self._recent_batches = deque(
            (recent[f"{i}/0"], recent[f"{i}/1"]) for i in range(len(recent) // 2)
        )

    def _nuisance_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return L_nCE of a nuisance classifier's logits."""
        logits = logits.float()
        if self.form == "published":
            return -cross_entropy(logits, labels)
        return -log_softmax(logits, 1).mean() - log(logits.shape[1])


class _Adversaries(nn.Module):
    """Parameters of the objective: nuisance classifiers, and the scale of the nuisances."""

    def __init__(self, plan: IndependenceCrossEntropy, nuisances: int, classes: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed)
            widths = (plan.hidden,) * 3
            self.networks = nn.ModuleList(
                perceptron(nuisances, widths, classes, plan.dropout)
                for _ in range(plan.adversaries)
            )
        self.standardise = Standardise(nuisances)
        self.prior = _LearnedPrior(nuisances) if plan.prior == "learned" else None
        self.divisor = nuisances if plan.per_input else 1
        parameters = self.networks.parameters()
        self.optimiser: torch.optim.Optimizer = (
            torch.optim.Adam(parameters, plan.learning_rate, (0.5, 0.99))
            if plan.optimiser == "adam"
            else torch.optim.Adamax(parameters, plan.learning_rate)
        )

    def classifiers(self) -> list[nn.Sequential]:
        return [nn.Sequential(self.standardise, network) for network in self.networks]

    def step(self, nuisance: Tensor, labels: Tensor) -> None:
        """Train every nuisance classifier for one step."""
        losses = [cross_entropy(d(nuisance).float(), labels) for d in self.classifiers()]
        self.optimiser.zero_grad(set_to_none=True)
        (torch.stack(losses).sum() / self.divisor).backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()

    def negative_log_likelihood(self, nuisance: Tensor, log_det: Tensor) -> Tensor:
        """Return the negative log-likelihood in nats per dimension under the prior of the nuisances.

        Without a learned prior, this Gaussian has the running mean and deviation of the nuisances, which also
        standardise the adversaries' input.
        """
        mean, deviation = self.standardise.mean, self.standardise.deviation
        if self.prior is not None:
            mean, deviation = self.prior.mean, self.prior.log_deviation.exp()
        density = ((nuisance - mean) / deviation) ** 2 / 2 + deviation.log() + log(2 * pi) / 2
        return (density.sum(1) - log_det.float()).mean() / nuisance.shape[1]


class _LearnedPrior(nn.Module):
    """β_k and log γ_k of the prior p_k = N(β_k, γ_k) of definition 7, at first those of the standard normal."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(features))
        self.log_deviation = nn.Parameter(torch.zeros(features))
