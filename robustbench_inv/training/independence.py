"""Independence cross-entropy: what a classifier does not look at shall say nothing of the class."""

from collections import deque
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
"""Share of the newest batch in the mean and the deviation by which the adversaries' input is standardised."""


@dataclass
class IndependenceCrossEntropy:
    """L_sCE(θ) + a L_nCE(θ, θ_nc) + b L_MLEn(θ), minimised over θ and maximised over the nuisance classifiers θ_nc.

    L_sCE is the cross-entropy of the logits z_s; L_MLEn, in nats for each dimension, the negative
    log-likelihood of the nuisances z_n under a learned Gaussian p_k = N(β_k, γ_k), volume included. L_nCE is, in
    the form ``published``, E[log D(z_n)_y] with the true labels, whose gradient vanishes when the
    nuisance classifier D is sure; in the form ``uniform`` it is the cross-entropy of the uniform distribution
    under D, which has the same optimum and keeps its gradient. Several nuisance classifiers, whose inputs are
    standardised so that nothing hides in small variables, take ``inner_steps`` steps a batch on the batches seen last.

    If the network recodes its nuisances given its decision (``DecisionConditional``), the objective falls apart:
    cross-entropy does not reach the recoding, and the other two terms do not reach the logits. With
    ``recoding_only`` the rest of the network stays as it is, the first layers of the recoding that are fitted by
    class are fitted before anything is trained, what comes to the others is computed once, for ``draws``
    dequantisations of every sample, and cross-entropy, a constant then, is left out of the loss.

    Args:
        nuisance: a.
        likelihood: b.
        form: ``published`` or ``uniform``.
        inner_steps: of each nuisance classifier, for one of the network.
        adversaries: how many nuisance classifiers.
        hidden: width of their three layers.
        learning_rate: of Adam for the nuisance classifiers.
        onset: share of the training at first in which only the nuisance classifiers learn.
        ramp: share of the training over which a and b rise from 0 after that.
        recoding_only: train the recoding alone.
        draws: dequantisations of every sample that a recoding is trained on.
        levels: grey levels of the training images, which a recoding is trained on dequantised; 0 for none.
        seed: of the nuisance classifiers' initialisation and of that dequantisation.

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
    learning_rate: float = 1e-3
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
        if self.form not in ("published", "uniform"):
            raise BadParameter("unknown form", got=self.form, expected="published or uniform")
        if self.inner_steps < 1 or self.adversaries < 1:
            got = (self.inner_steps, self.adversaries)
            raise BadParameter("unusable inner_steps or adversaries", got=got, expected=">= 1")

    def begin(self, model: nn.Module, data: TrainingData, *, fresh: bool) -> None:
        """Make the nuisance classifiers, and hold fixed what is not trained.

        Raises:
            BadModel: if the network's code has no two parts.
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
        for recent in self._recent_batches if self.nuisance else ():
            learners.step(*recent)
        nuisance_loss = torch.stack(
            [self._nuisance_loss(d(nuisance), batch.labels) for d in learners.classifiers()]
        ).mean()
        negative_log_likelihood = learners.negative_log_likelihood(nuisance, log_det)
        loss = self._strength(batch.progress) * (
            self.nuisance * nuisance_loss + self.likelihood * negative_log_likelihood
        )
        return loss if self.recoding_only else loss + cross_entropy(logits, batch.labels), logits

    def _strength(self, progress: float) -> float:
        """Return the factor by which a and b are multiplied at this stage of the training."""
        if not self.ramp:
            return float(progress >= self.onset)
        return float(progress >= self.onset) * min(1.0, (progress - self.onset) / self.ramp)

    def state(self) -> dict[str, Tensor]:
        """Return nuisance classifiers, their optimiser and the batches seen last, by name."""
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
        """Take back what ``state`` returned."""
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
        """Return L_nCE of a nuisance classifier's logits; the network wants them to say nothing."""
        logits = logits.float()
        if self.form == "published":
            return -cross_entropy(logits, labels)
        return -log_softmax(logits, 1).mean() - log(logits.shape[1])


class _Adversaries(nn.Module):
    """What the objective learns for itself: nuisance classifiers, and the scale of the nuisances."""

    def __init__(self, plan: IndependenceCrossEntropy, nuisances: int, classes: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed)
            widths = (plan.hidden,) * 3
            self.networks = nn.ModuleList(
                perceptron(nuisances, widths, classes) for _ in range(plan.adversaries)
            )
        self.standardise = Standardise(nuisances)
        self.optimiser = torch.optim.Adam(
            self.networks.parameters(), plan.learning_rate, (0.5, 0.99)
        )

    def classifiers(self) -> list[nn.Sequential]:
        return [nn.Sequential(self.standardise, network) for network in self.networks]

    def step(self, nuisance: Tensor, labels: Tensor) -> None:
        """Take a step of every nuisance classifier."""
        losses = [cross_entropy(d(nuisance).float(), labels) for d in self.classifiers()]
        self.optimiser.zero_grad(set_to_none=True)
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()

    def negative_log_likelihood(self, nuisance: Tensor, log_det: Tensor) -> Tensor:
        """Return the negative log-likelihood in nats for each dimension, under the prior of greatest likelihood.

        That is the Gaussian with the nuisances' own mean and deviation, which the adversaries' input is
        standardised by.
        """
        mean, deviation = self.standardise.mean, self.standardise.deviation
        density = ((nuisance - mean) / deviation) ** 2 / 2 + deviation.log() + log(2 * pi) / 2
        return (density.sum(1) - log_det.float()).mean() / nuisance.shape[1]


class _CodeCache:
    """What comes to the layers of a recoding that learn, for some dequantisations of every training sample."""

    def __init__(self, model: FiRevNet, data: TrainingData, plan: IndependenceCrossEntropy) -> None:
        self.recoding, self.ids, self.draws = _get_recoding(model), data.ids, plan.draws
        self.learning = _learning_part(self.recoding)
        # half precision, a tenth of the noise that dequantisation adds, is for keeping, not for computing
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
    """Return the layers of a recoding that are fitted by class, which come first."""
    layers = list(recoding.rest) if isinstance(recoding.rest, Chain) else [recoding.rest]
    return [layer for layer in layers if isinstance(layer, FittedByClass)]


def _learning_part(recoding: DecisionConditional) -> Bijection:
    """Return what follows the layers that are fitted by class."""
    if not isinstance(recoding.rest, Chain):
        return recoding.rest
    return Chain(*list(recoding.rest)[len(_fitted_part(recoding)) :])


@torch.no_grad()
def _fit_recoding(model: FiRevNet, data: TrainingData, plan: IndependenceCrossEntropy) -> None:
    """Fit the layers of a network's recoding that are fitted by class, one after the other."""
    recoding = _get_recoding(model)
    nuisances, decisions = recoding.parts(_encode(model.eval().flow, data, plan, "fit"))
    for layer in _fitted_part(recoding):
        layer.fit(nuisances, decisions.argmax(1))
        nuisances, _ = layer(nuisances, decisions)


@torch.no_grad()
def _encode(
    flow: Bijection, data: TrainingData, plan: IndependenceCrossEntropy, stream: str
) -> Tensor:
    """Return what a bijection makes of all samples, dequantised by the draws of a stream."""
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
    raise BadModel("there is no recoding to be trained alone", expected="a network that recodes")
