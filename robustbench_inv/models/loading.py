"""Builds the model that a card describes: factory, weights, dtype, and how a stochastic one draws."""

from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from robustbench_inv.errors import BadModel, BadParameter
from robustbench_inv.identity import digest_file
from robustbench_inv.models.module import ModuleClassifier, cast_module, wrap_module
from robustbench_inv.models.protocol import Classifier
from robustbench_inv.models.stochastic import SampledNetwork, StochasticClassifier

__all__ = ["build_model", "load_weights"]


class Card(Protocol):
    """What is needed of a model's card."""

    @property
    def name(self) -> str: ...

    @property
    def implementation(self) -> str: ...

    @property
    def parameters(self) -> Mapping[str, Any]: ...

    @property
    def weights_sha256(self) -> str | None: ...

    @property
    def fits_dataset(self) -> bool: ...


def build_model(
    card: Card, folder: Path, parameters: Mapping[str, Any], dataset: object | None = None
) -> Classifier:
    """Return the classifier of a card.

    Args:
        card: names the factory ``module:name``, its parameters and the digest of its weights.
        folder: holds ``weights.safetensors`` where the card has a digest.
        parameters: override the card's; besides, ``dtype`` (float32 or float64) for any network, and
            ``noise`` (fresh, fixed or mean) and ``draws`` for a stochastic one.
        dataset: what the model is fitted to, if its card says so.

    Raises:
        BadModel: for weights that are missing, damaged or do not fit.
        BadParameter: for a parameter that the model does not have.
    """
    chosen = {**card.parameters, **parameters}
    dtype, noise, draws = (chosen.pop(key, None) for key in ("dtype", "noise", "draws"))
    try:
        arguments = (dataset,) if card.fits_dataset else ()
        module = resolve_name(card.implementation)(*arguments, **chosen)
    except TypeError as error:
        raise BadParameter(f"cannot build {card.name}", got=chosen, remedy=str(error)) from error
    if card.weights_sha256 is not None:
        load_weights(module, folder / "weights.safetensors", card.weights_sha256)
    if isinstance(module, SampledNetwork):
        return _stochastic(cast_module(module, dtype), "fresh" if noise is None else noise, draws)
    if noise is not None or draws is not None:
        raise BadParameter(
            f"{card.name} is not stochastic", got="noise or draws", remedy="leave it out"
        )
    return wrap_module(cast_module(module, dtype), card.name)


def load_weights(module: nn.Module, path: Path, sha256: str) -> None:
    """Read weights into a network, checked by digest, name and shape.

    Raises:
        BadModel: if the file is missing, is not the one of the card, or does not fit the network.
    """
    if not path.is_file():
        raise BadModel("weights not found", got=str(path), remedy="reinstall, or train its recipe")
    if (found := digest_file(path)) != sha256:
        raise BadModel(
            f"{path.name} of {path.parent.name} is not the file of its card",
            got=found[:12],
            expected=f"SHA-256 {sha256[:12]}…",
            remedy="reinstall, or train its recipe",
        )
    try:
        module.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise BadModel(f"{path} does not fit the network", remedy=str(error)) from error


def _stochastic(module: object, noise: object, draws: object) -> Classifier:
    assert isinstance(module, SampledNetwork)
    if noise == "mean":
        if draws is not None:
            got = f"draws={draws}"
            raise BadParameter("noise=mean draws nothing", got=got, remedy="leave it out")
        return ModuleClassifier(module, module.bounds, module.num_classes)
    if noise not in ("fresh", "fixed"):
        raise BadParameter("unusable noise", got=noise, expected="fresh, fixed or mean")
    draws = module.averaged if draws is None else draws
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise BadParameter("unusable draws", got=draws, expected="a positive integer")
    return StochasticClassifier(module, draws, fixed_noise=noise == "fixed")
