"""Turns a network into a classifier with bounds, number of classes, weights and dtype."""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Protocol, TypeGuard, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from robustbench_inv.errors import BadModel, BadParameter, InvbenchError, describe_error
from robustbench_inv.foreign import foreign_call
from robustbench_inv.identity import digest_file
from robustbench_inv.models.outputs import (
    SampleInputs,
    find_logits,
    likely_range,
    probe_classes,
    probe_failure,
    two_logits,
)
from robustbench_inv.models.precision import cast_inputs, input_dtype, scale_gradients
from robustbench_inv.models.protocol import Classifier, Invertible, SplitsCode, Stochastic
from robustbench_inv.models.stochastic import LatentSamplingNetwork, StochasticClassifier
from robustbench_inv.randomness import seeded_generators
from robustbench_inv.tensors import HALF_PRECISION, Output
from robustbench_inv.torch_state import call_keeping_modes, evaluation_mode, set_evaluation_mode

__all__ = [
    "InvertibleClassifier",
    "ModuleClassifier",
    "SplitCodeClassifier",
    "build_model",
    "cast_module",
    "initialise_lazy",
    "load_weights",
    "move_to_device",
    "read_bounds",
    "wrap_module",
]


class ModuleClassifier(nn.Module):
    """A module that maps (n, …) inputs to (n, classes) logits, to an ``Output``, or to what contains logits.

    A binary classifier may return one logit an input, positive for class 1 (``outputs.two_logits``).
    A network of 16 bits gets its inputs cast to its type; the classifier's inputs and outputs are float32.

    Args:
        module: the network, normalisation included.
        bounds: smallest and largest value of an input element.
        num_classes: number of logits.
    """

    def __init__(self, module: nn.Module, bounds: tuple[float, float], num_classes: int) -> None:
        super().__init__()
        self.module, self.bounds, self.num_classes = module, bounds, num_classes
        self.training = False  # the module keeps its mode, but for its calls

    @property
    def dtype(self) -> torch.dtype:
        """Type of the inputs: float64 if the network's first floating-point weight is, else float32."""
        return input_dtype(self.module)

    def forward(self, images: Tensor) -> Output:
        if images.requires_grad:
            images = images.view_as(images)  # its gradient hooks belong to this call alone
        with evaluation_mode(self.module):
            answer = call_keeping_modes(self.module, cast_inputs(images, self.module))
        found = two_logits(find_logits(answer), self.num_classes)
        output = found if isinstance(found, Output) else Output(found)  # type: ignore[arg-type]
        expected = (len(images), self.num_classes)
        if not isinstance(output.logits, Tensor) or tuple(output.logits.shape) != expected:
            got = getattr(output.logits, "shape", type(output.logits).__name__)
            raise BadModel(
                "the model's output is not a batch of logits",
                got=tuple(got) if isinstance(got, torch.Size) else got,
                expected=f"a tensor of shape {expected}",
                remedy="return the logits alone, or an Output",
            )
        _check_kind(output.logits, images.device)
        scale_gradients(self.module, images, output)
        return output.copied()


def _check_kind(logits: Tensor, device: torch.device) -> None:
    if (
        not logits.is_floating_point()
        or logits.layout is not torch.strided
        or logits.device != device
    ):
        raise BadModel(
            "the model's logits cannot be used",
            got=f"{logits.dtype} on {logits.device}, {logits.layout}",
            expected=f"dense floating-point numbers on {device}",
        )


class InvertibleClassifier(ModuleClassifier):
    """A classifier that is also a bijection between inputs and codes (``Invertible``)."""

    def encode(self, images: Tensor) -> Tensor:
        inputs = cast_inputs(images, self.module)
        return cast("Invertible", self.module).encode(inputs).to(images.dtype)

    def decode(self, code: Tensor) -> Tensor:
        inputs = cast_inputs(code, self.module)
        return cast("Invertible", self.module).decode(inputs).to(code.dtype)


class SplitCodeClassifier(InvertibleClassifier):
    """An invertible classifier that splits its code into semantic and nuisance variables (``SplitsCode``)."""

    def split(self, code: Tensor) -> tuple[Tensor, Tensor]:
        return cast("SplitsCode", self.module).split(code)

    def join(self, semantic: Tensor, nuisance: Tensor) -> Tensor:
        return cast("SplitsCode", self.module).join(semantic, nuisance)


def cast_module(module: object, dtype: object) -> object:
    """Return a copy of a network in another dtype; return any object unchanged for None.

    Args:
        module: a network.
        dtype: ``float32``, ``float64`` or None.

    Raises:
        BadParameter: for another dtype, or an object that is no network.
    """
    kinds = {"float32": torch.float32, "float64": torch.float64}
    if dtype is None:
        return module
    if not isinstance(module, nn.Module) or not isinstance(dtype, str) or dtype not in kinds:
        raise BadParameter("unusable dtype", got=dtype, expected="float32 or float64, of a network")
    return _copy(module).to(kinds[dtype])


def move_to_device(module: nn.Module, device: str) -> nn.Module:
    """Return a copy of a network on a device; the network itself if it is there.

    Raises:
        BadParameter: for an unusable device.
        BadModel: if the network cannot be copied.
    """
    try:
        place = torch.zeros(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise BadParameter("unusable device", got=device, remedy=str(error)) from error
    tensors = (*module.parameters(), *module.buffers())
    return module if all(each.device == place for each in tensors) else _copy(module).to(place)


def _copy(module: nn.Module) -> nn.Module:
    try:
        return deepcopy(module)
    except Exception as error:
        raise BadModel(
            f"the network cannot be copied: {describe_error(error)}",
            remedy="give it in the dtype and on the device of the evaluation",
        ) from error


def initialise_lazy(module: object, name: str, images: Callable[[], Tensor | None]) -> None:
    """Give the lazy weights of a network their shapes and values, by one forward pass under a fixed seed.

    Args:
        module: a network, or any other object, which is left alone.
        name: name of the model in messages.
        images: returns (n, …) inputs; None if there are none.

    Raises:
        BadModel: if there are lazy weights and no inputs.
    """
    if not isinstance(module, nn.Module):
        return
    if not any(map(nn.parameter.is_lazy, (*module.parameters(), *module.buffers()))):
        return
    inputs = images()
    if inputs is None:
        raise BadModel(
            f"{name} has lazy weights, which have no shape yet",
            expected="a data set, or weights with shapes",
            remedy="call the model once on a batch of images",
        )
    with foreign_call(name), seeded_generators(0, []), torch.no_grad():
        module(inputs)


def wrap_module(
    module: object,
    name: str,
    bounds: object = None,
    probe: Callable[[], SampleInputs | None] = lambda: None,
) -> Classifier:
    """Return a user's model as a classifier.

    Args:
        module: a ``Classifier`` that is no network, or is also stochastic or invertible; or an ``nn.Module`` with
            an attribute ``bounds``. Its number of classes is the attribute ``num_classes``, else that of its output
            for a probe, or the width of its last linear layer if there is no probe.
        name: name of the model in messages.
        bounds: the pair (low, high) if the module does not declare it, or else declares the same.
        probe: returns a few inputs of the data set; None if there is none.

    Raises:
        BadModel: if it is no module, or has no bounds or number of classes.
    """
    if _is_classifier(module):
        if module.dtype in HALF_PRECISION:
            raise BadModel(
                f"{name} takes images of 16 bits, which rounding moves out of a budget",
                got=module.dtype,
                expected="float32 or float64",
                remedy="declare dtype = torch.float32 and cast the images inside the model",
            )
        if isinstance(module, nn.Module):
            set_evaluation_mode(module)
        return module
    if not isinstance(module, nn.Module):
        raise BadModel(
            f"{name} is not a model", got=type(module).__name__, expected="a torch.nn.Module"
        )
    low, high = _declared_bounds(module, name, bounds, probe)
    return _wrapper(module)(module, (low, high), _count_classes(module, name, probe))


def _count_classes(module: nn.Module, name: str, probe: Callable[[], SampleInputs | None]) -> int:
    classes = getattr(module, "num_classes", None)
    if not isinstance(classes, int) or classes < 2:
        last = _last_layer_width(module.modules())
        classes = probe_classes(module, probe(), name) or last or classes
    if not isinstance(classes, int) or classes < 2:
        if failure := probe_failure(module, probe()):
            raise BadModel(f"{name} fails {failure}", expected="logits of shape (n, classes)")
        single = classes == 1
        raise BadModel(
            f"{name} has {'one output, of which the probe failed' if single else 'no number of classes'}",
            got=classes,
            expected="an attribute num_classes >= 2",
            remedy="pass the data set as well" if single else "set model.num_classes = 10",
        )
    return classes


def _wrapper(module: nn.Module) -> type[ModuleClassifier]:
    """Return the wrapper class that exposes all capabilities of a network."""
    if not isinstance(module, Invertible):
        return ModuleClassifier
    return SplitCodeClassifier if isinstance(module, SplitsCode) else InvertibleClassifier


def _is_classifier(module: object) -> TypeGuard[Classifier]:
    """Return whether the module is a classifier that needs no wrapper, which would hide its capabilities."""
    special = isinstance(module, Stochastic | Invertible) or not isinstance(module, nn.Module)
    return special and isinstance(module, Classifier)


def _declared_bounds(
    module: nn.Module, name: str, given: object, probe: Callable[[], SampleInputs | None]
) -> tuple[float, float]:
    declared = getattr(module, "bounds", None)
    bounds = read_bounds(declared if given is None else given)
    if bounds is None:
        problem = f"{name} has no valid bounds"
        got = declared if given is None else given
        remedy = likely_range(module, probe())
        raise BadModel(problem, got=got, expected="a pair (low, high)", remedy=remedy)
    if given is not None and read_bounds(declared) not in (None, bounds):
        raise BadModel(f"{name} declares other bounds", got=given, expected=str(declared))
    return bounds


def read_bounds(value: object) -> tuple[float, float] | None:
    """Return bounds given as a pair, or as text such as ``0..1``; None for anything else.

    Example:
        >>> read_bounds("-1..1")
        (-1.0, 1.0)
    """
    pair = value.split("..") if isinstance(value, str) else value
    try:
        low, high = map(float, pair)  # type: ignore[call-overload]
    except (TypeError, ValueError, RuntimeError):
        return None
    return (low, high) if low < high else None


def _last_layer_width(modules: Iterable[nn.Module]) -> int | None:
    widths = [m.out_features for m in modules if isinstance(m, nn.Linear)]
    return widths[-1] if widths else None


class BuildableCard(Protocol):
    """Entries of a model's card that are needed to build it."""

    @property
    def name(self) -> str: ...

    @property
    def parameters(self) -> Mapping[str, Any]: ...

    @property
    def weights_sha256(self) -> str | None: ...

    @property
    def fits_dataset(self) -> bool: ...

    @property
    def bounds(self) -> tuple[float, float]: ...


def build_model(
    factory: Callable[..., Any],
    card: BuildableCard,
    folder: Path,
    parameters: Mapping[str, Any],
    dataset: object | None = None,
) -> Classifier:
    """Return the classifier of a card.

    Args:
        factory: the card's implementation.
        card: contains the parameters of the factory, the digest of the weights, and the bounds of a module without any.
        folder: contains ``weights.safetensors`` if the card has a digest.
        parameters: replace the card's parameters. In addition, ``dtype`` (float32 or float64) for any network, and
            ``noise`` (fresh, fixed or mean) and ``draws`` for a stochastic network.
        dataset: data to fit the model to, if the card requires it.

    Raises:
        BadModel: if weights are missing, damaged or do not fit the network.
        BadParameter: for a parameter that the model does not have.
    """
    chosen = {**card.parameters, **parameters}
    dtype, noise, draws = (chosen.pop(key, None) for key in ("dtype", "noise", "draws"))
    try:
        arguments = (dataset,) if card.fits_dataset else ()
        module = factory(*arguments, **chosen)
    except InvbenchError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, TypeError) else f"{type(error).__name__}: {error}"
        raise BadParameter(f"cannot build {card.name}", got=chosen, remedy=reason) from error
    set_evaluation_mode(module)
    if isinstance(module, nn.Module) and not hasattr(module, "bounds"):
        module.bounds = card.bounds  # type: ignore[assignment]
    if card.weights_sha256 is not None:
        load_weights(module, folder / "weights.safetensors", card.weights_sha256)
    if isinstance(module, LatentSamplingNetwork):
        return _wrap_stochastic(
            cast_module(module, dtype), "fresh" if noise is None else noise, draws
        )
    if noise is not None or draws is not None:
        raise BadParameter(
            f"{card.name} is not stochastic", got="noise or draws", remedy="remove it"
        )
    return wrap_module(cast_module(module, dtype), card.name)


def load_weights(module: nn.Module, path: Path, sha256: str) -> None:
    """Load weights into a network after checking digest, names and shapes.

    Raises:
        BadModel: if the file is missing, has another digest than the card, or does not fit the network.
    """
    if not path.is_file():
        raise BadModel("weights not found", got=str(path), remedy="reinstall, or train its recipe")
    if (found := digest_file(path)) != sha256:
        raise BadModel(
            f"{path.name} of {path.parent.name} has the wrong digest",
            got=found[:12],
            expected=f"SHA-256 {sha256[:12]}…",
            remedy="reinstall, or train its recipe",
        )
    try:
        module.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise BadModel(f"{path} does not fit the network", remedy=str(error)) from error


def _wrap_stochastic(module: object, noise: object, draws: object) -> Classifier:
    assert isinstance(module, LatentSamplingNetwork)
    if noise == "mean":
        if draws is not None:
            got = f"draws={draws}"
            raise BadParameter("noise=mean uses no draws", got=got, remedy="remove draws")
        return ModuleClassifier(module, module.bounds, module.num_classes)
    if noise not in ("fresh", "fixed"):
        raise BadParameter("unknown noise", got=noise, expected="fresh, fixed or mean")
    draws = module.default_draws if draws is None else draws
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise BadParameter("invalid draws", got=draws, expected="a positive integer")
    return StochasticClassifier(module, draws, fixed_noise=noise == "fixed")
