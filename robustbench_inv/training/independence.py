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
from robustbench_inv.models.layers.bijection import Bijection, Chain
from robustbench_inv.models.layers.class_conditional import DecisionConditional, FittedByClass
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import blocks
from robustbench_inv.training.loop import dequantise, optimiser_state, restore_optimiser
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

    If the network recodes its nuisances given the predicted class (``DecisionConditional``), the objective separates:
    cross-entropy does not depend on the recoding, and the other two terms do not depend on the logits. With
    ``recoding_only`` the rest of the network is frozen and cross-entropy, now a constant, is omitted. The layers
    fitted by class are fitted before training, and their outputs are computed once, for ``draws`` dequantisations
    of every sample.

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
        recoding_only: train only the recoding.
        draws: number of dequantisations of every sample for training a recoding.
        levels: number of grey levels for dequantising the inputs of a recoding; 0 disables it.
        seed: seed of the nuisance classifiers' initialisation and of that dequantisation.

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
    recoding_only: bool = False
    draws: int = 8
    levels: int = 256
    seed: int = 0
    _learners: "_Adversaries | None" = field(default=None, init=False, repr=False)
    _data: TrainingData | None = field(default=None, init=False, repr=False)
    _code_cache: "_CodeCache | None" = field(default=None, init=False, repr=False)
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

    def begin(self, model: nn.Module, data: TrainingData, *, fresh: bool) -> None:
        """Create the nuisance classifiers, and freeze the parameters that are not trained.

        Raises:
            BadModel: if the network is no fiRevNet.
        """
        if not isinstance(model, FiRevNet):
            raise BadModel(
                "independence cross-entropy needs nuisances",
                got=type(model).__name__,
                expected="a fiRevNet",
            )
        if self.recoding_only:
            if fresh:
                _fit_recoding(model, data, self)
            model.requires_grad_(False)
            _get_recoding(model).requires_grad_(True)
        self._data, self._code_cache = data, None
        nuisances = data.images[0].numel() - model.num_classes
        self._learners = _Adversaries(self, nuisances, model.num_classes).to(data.images.device)

    def __call__(self, model: nn.Module, batch: TrainingBatch) -> tuple[Tensor, Tensor]:
        assert isinstance(model, FiRevNet)
        learners = self._learners
        assert learners is not None, "begin() comes first"
        logits, nuisance, log_det = self._encode(model, batch)
        learners.standardise.update(nuisance.detach(), STANDARDISE_MOMENTUM)
        self._recent_batches.append((nuisance.detach(), batch.labels))
        while len(self._recent_batches) > self.inner_steps:
            self._recent_batches.popleft()
        nuisance_loss = self._play(learners, nuisance, batch)
        negative_log_likelihood = learners.negative_log_likelihood(nuisance, log_det)
        loss = self._strength(batch.progress) * (
            self.nuisance * nuisance_loss + self.likelihood * negative_log_likelihood
        )
        return loss if self.recoding_only else loss + cross_entropy(logits, batch.labels), logits

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

    def _encode(self, model: FiRevNet, batch: TrainingBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits (n, C), nuisances (n, d − C) and log-determinants (n,), up to a constant of the sample."""
        if not self.recoding_only:
            code, log_det = model.transform(batch.images)
            return *model.split(code.float()), log_det
        if self._code_cache is None:
            assert self._data is not None
            self._code_cache = _CodeCache(model.eval(), self._data, self)
        return self._code_cache(batch.rng)

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


class _CodeCache:
    """Inputs of the trained layers of a recoding, for some dequantisations of every training sample."""

    def __init__(self, model: FiRevNet, data: TrainingData, plan: IndependenceCrossEntropy) -> None:
        self.recoding, self.ids, self.draws = _get_recoding(model), data.ids, plan.draws
        self.learning = _learning_part(self.recoding)
        # codes are stored in half precision, whose error is a tenth of the dequantisation noise
        with torch.autocast(data.images.device.type, enabled=False):
            codes = (_encode(model.flow, data, plan, f"bank/{k}") for k in range(self.draws))
            parts = [self._fitted(*self.recoding.parts(code)) for code in codes]
            self.nuisances = torch.stack([nuisances for nuisances, _ in parts])
            self.decisions = torch.stack([decisions for _, decisions in parts])

    def __call__(self, rng: SampleRNG) -> tuple[Tensor, Tensor, Tensor]:
        """Return decisions (n, C) as one-hot logits, nuisances (n, d − C) and log-determinants (n,)."""
        draw = rng.named(f"{rng.stream}/draw").integers(self.draws)
        rows = torch.searchsorted(self.ids, rng.ids)
        decisions = self.decisions[draw, rows]
        nuisances, log_det = self.learning(self.nuisances[draw, rows].float(), decisions)
        return decisions, nuisances, log_det

    @torch.no_grad()
    def _fitted(self, nuisances: Tensor, decisions: Tensor) -> tuple[Tensor, Tensor]:
        for layer in _fitted_part(self.recoding):
            nuisances, _ = layer(nuisances, decisions)
        return nuisances.half(), decisions


def _fitted_part(recoding: DecisionConditional) -> list[FittedByClass]:
    """Return the first layers of a recoding, which are fitted by class."""
    layers = list(recoding.rest) if isinstance(recoding.rest, Chain) else [recoding.rest]
    return [layer for layer in layers if isinstance(layer, FittedByClass)]


def _learning_part(recoding: DecisionConditional) -> Bijection:
    """Return the layers after those that are fitted by class."""
    if not isinstance(recoding.rest, Chain):
        return recoding.rest
    return Chain(*list(recoding.rest)[len(_fitted_part(recoding)) :])


@torch.no_grad()
def _fit_recoding(model: FiRevNet, data: TrainingData, plan: IndependenceCrossEntropy) -> None:
    """Fit the closed-form layers of a network's recoding, one after the other."""
    recoding = _get_recoding(model)
    nuisances, decisions = recoding.parts(_encode(model.eval().flow, data, plan, "fit"))
    for layer in _fitted_part(recoding):
        layer.fit(nuisances, decisions.argmax(1))
        nuisances, _ = layer(nuisances, decisions)


@torch.no_grad()
def _encode(
    flow: Bijection, data: TrainingData, plan: IndependenceCrossEntropy, stream: str
) -> Tensor:
    """Return the codes (N, d) of all samples, dequantised with the random numbers of a stream."""
    codes = []
    for rows in blocks(torch.arange(len(data.ids)), BLOCK):
        images = data.images[rows]
        if plan.levels:
            images = dequantise(images, SampleRNG(plan.seed, data.ids[rows], stream), plan.levels)
        codes.append(flow(images)[0])
    return torch.cat(codes)


def _get_recoding(model: FiRevNet) -> DecisionConditional:
    """Return a network's recoding.

    Raises:
        BadModel: if it has none.
    """
    if isinstance(model.recoding, DecisionConditional):
        return model.recoding
    raise BadModel(
        "recoding_only needs a network with a recoding",
        got=type(model).__name__,
        expected='model = "firevnet-recoded"',
    )
