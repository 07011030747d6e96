"""Protocols of models: the classifier, and optional capabilities such as stochastic outputs and inversion."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from robustbench_inv.errors import BadModel
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.tensors import Output
from robustbench_inv.torch_state import call_keeping_modes

__all__ = [
    "Classifier",
    "Invertible",
    "InvertibleWithSplitCode",
    "Output",
    "SplitsCode",
    "Stochastic",
    "all_units",
    "classify",
    "device_of",
    "has_fresh_draws",
    "query_model",
    "require_split_code",
    "swap_nuisance",
    "wants_all_units",
]

_ALL_UNITS: ContextVar[bool] = ContextVar("all_units", default=False)


@runtime_checkable
class Classifier(Protocol):
    """A classifier of inputs inside ``bounds``, with any normalisation inside the model.

    ``bounds`` are the smallest and largest value of an input element, ``dtype`` is the type of its inputs,
    float32 or float64: a model that computes in 16 bits casts its inputs itself (``models.precision``).
    """

    @property
    def num_classes(self) -> int: ...

    @property
    def bounds(self) -> tuple[float, float]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __call__(self, images: Tensor) -> Output:
        """Return the output for (n, …) images."""
        ...


@runtime_checkable
class Stochastic(Protocol):
    """A classifier whose output depends on latent draws, which are an argument.

    ``draws`` is the number of draws averaged per output. With ``fixed_noise`` a sample has the same draws in every
    query, which the attacker may use; otherwise every query has fresh draws (check C13).
    """

    @property
    def draws(self) -> int: ...

    @property
    def fixed_noise(self) -> bool: ...

    @property
    def latent_shape(self) -> tuple[int, ...]: ...

    def respond(self, images: Tensor, latent: Tensor) -> Output:
        """Return the output for (n, …) images under (k, n, *latent_shape) standard normal draws.

        The logits (n, classes) are the logarithm of a mean over the k draws: of softmax outputs, or of
        likelihoods for a generative classifier.
        """
        ...


@runtime_checkable
class Invertible(Protocol):
    """A model that is a bijection between inputs and codes."""

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, code: Tensor) -> Tensor: ...


@runtime_checkable
class SplitsCode(Protocol):
    """An invertible model that splits its code into semantic and nuisance variables."""

    def split(self, code: Tensor) -> tuple[Tensor, Tensor]: ...

    def join(self, semantic: Tensor, nuisance: Tensor) -> Tensor: ...


@runtime_checkable
class InvertibleWithSplitCode(Invertible, SplitsCode, Protocol):
    """A model whose code has semantic and nuisance variables."""


def require_split_code(model: object) -> InvertibleWithSplitCode:
    """Return the model.

    Raises:
        BadModel: if it is not invertible, or does not split its code.
    """
    if not isinstance(model, InvertibleWithSplitCode):
        raise BadModel(
            "the model has no nuisance variables",
            got=type(model).__name__,
            expected="a model with encode, decode, split and join, such as spheres-firevnet",
        )
    return model


def swap_nuisance(model: InvertibleWithSplitCode, sources: Tensor, donors: Tensor) -> Tensor:
    """Return the metamers F⁻¹(z_s of the sources, z_n of the donors), (n, …), which may lie outside the bounds.

    Args:
        model: F.
        sources: (n, …) inputs whose logits the metamers have.
        donors: (n, …) inputs.

    References:
        Jacobsen et al., Excessive invariance causes adversarial vulnerability, ICLR 2019, section 2.2.
    """
    semantic, _ = model.split(model.encode(sources))
    _, nuisance = model.split(model.encode(donors))
    return model.decode(model.join(semantic, nuisance))


def device_of(classifier: Classifier) -> torch.device:
    """Return the device of a classifier's first weight; the CPU if it has no weights."""
    weights = classifier.parameters() if isinstance(classifier, nn.Module) else ()
    return next((weight.device for weight in weights), torch.device("cpu"))


def query_model(
    classifier: Classifier, images: Tensor, rng: SampleRNG, step: int | Tensor = 0
) -> Output:
    """Return a classifier's output; a stochastic one uses its samples' draws.

    The model gets a copy of the images, since one that normalises in place would change the clean inputs.

    Args:
        classifier: any classifier.
        images: (n, …) inputs.
        rng: the n samples' random numbers.
        step: number of each sample's draw, one number or (n,); ignored if the noise is fixed.
    """
    if not isinstance(classifier, Stochastic):
        return call_keeping_modes(classifier, images.clone())
    if classifier.fixed_noise:
        rng, step = rng.named("fixed"), 0
    shape = (classifier.draws, *classifier.latent_shape)
    latent = rng.normal(shape, step=step, dtype=images.dtype).transpose(0, 1)
    return call_keeping_modes(lambda given: classifier.respond(given, latent), images.clone())


@torch.no_grad()
def classify(classifier: Classifier, images: Tensor, rng: SampleRNG, replay: int = 0) -> Output:
    """Return the output that counts in records, with draws that no attack has used, unless the noise is fixed.

    Args:
        classifier: the original model.
        images: (n, …) inputs.
        rng: the n samples' random numbers.
        replay: number of the set of draws.
    """
    return query_model(classifier, images, rng.named("verdict"), replay).copied()


def has_fresh_draws(classifier: Classifier) -> bool:
    """Return whether a classifier is stochastic with fresh draws in every query."""
    return isinstance(classifier, Stochastic) and not classifier.fixed_noise


@contextmanager
def all_units() -> Iterator[None]:
    """Let networks compute inactive units as well while the block runs, so that these can be recorded.

    Which units are inactive depends on the batch, and so do the number and order of those that are computed.
    """
    token = _ALL_UNITS.set(True)
    try:
        yield
    finally:
        _ALL_UNITS.reset(token)


def wants_all_units() -> bool:
    """Return whether a network must compute every unit, also those without influence on its output."""
    return _ALL_UNITS.get()
