"""Finds a user's network: a factory's, or an object; it has no card."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustbench_inv.catalogue.fields import call_factory
from robustbench_inv.catalogue.fingerprint import content
from robustbench_inv.catalogue.locate import entries
from robustbench_inv.catalogue.references import (
    MODEL_LIBRARIES,
    Reference,
    import_module,
    import_object,
    source_file,
)
from robustbench_inv.errors import BadModel, BadParameter

if TYPE_CHECKING:
    from torch import nn

    from robustbench_inv.models.protocol import Classifier

__all__ = [
    "UserModel",
    "finder_of",
    "from_code",
    "from_file",
    "from_library",
    "from_object",
    "is_file",
    "is_library",
]

SUFFIXES = (".pt", ".pth", ".pt2", ".ts", ".jit", ".ckpt", ".bin", ".safetensors")
"""Endings of files that hold weights, or a network."""


@dataclass(frozen=True)
class UserModel:
    """A network, and the entries of its card.

    Args:
        model: the network, or a ``Classifier``.
        name: as the user wrote it.
        about: entries of its card: implementation and parameters.
        code: the part of its identity that is not the network itself.
        bounds: smallest and largest value of an input element, None if the network declares them.
    """

    model: object
    name: str
    about: Mapping[str, Any]
    code: Mapping[str, Any] = field(default_factory=dict)
    bounds: object = None


def from_code(reference: Reference) -> UserModel:
    """Return the network of ``module:factory`` or ``file.py:factory``.

    The parameters ``dtype``, ``bounds`` (``0..1``) and ``weights`` (a file) apply to every network, unless the factory
    has a parameter ``bounds`` or ``weights``; the factory gets the others.

    Raises:
        BadParameter: for a parameter that the factory does not have.
        BadModel: for what is no network, or for a factory that fails.
    """
    from robustbench_inv.models.sources import fill_weights
    from robustbench_inv.models.wrapping import cast_module
    from robustbench_inv.torch_state import set_evaluation_mode

    parameters = dict(reference.parameters)
    dtype = parameters.pop("dtype", None)
    found = import_object(reference.name)
    bounds, weights = (
        None if _accepts(found, key) else parameters.pop(key, None) for key in ("bounds", "weights")
    )
    if _is_model(found):
        if parameters:
            problem = f"{reference.name} is a model and not a factory"
            raise BadParameter(problem, got=parameters, expected="no parameters")
        built = found
    elif callable(found):
        built = call_factory(found, parameters, reference.name)
    else:
        raise BadModel(f"{reference.name} is not a model", got=type(found).__name__)
    set_evaluation_mode(built)
    path, given = source_file(reference.name), dict(reference.parameters)
    if weights is not None:
        fill_weights(
            built, Path(str(given.pop("weights"))).expanduser()
        )  # the tensors count, not the path
    inner = reference.name.rpartition(":")[2]
    implementation = f"{path.name}:{inner}" if path else reference.name
    code = {"code": content([import_module(reference.name), None if built is found else found])}
    about = {"implementation": implementation, "parameters": given}
    return UserModel(cast_module(built, dtype), str(reference), about, code, bounds)


def from_file(reference: Reference) -> UserModel:
    """Return the network of a TorchScript or ``torch.export`` file, with optional ``dtype`` and ``bounds``.

    Raises:
        BadParameter: for another parameter.
        BadModel: for a file that holds no network.
    """
    from robustbench_inv.models.sources import load_program
    from robustbench_inv.models.wrapping import cast_module
    from robustbench_inv.torch_state import set_evaluation_mode

    given = dict(reference.parameters)
    if given.keys() - {"dtype", "bounds"}:
        raise BadParameter(
            "a saved network takes no parameters", got=given, expected="dtype or bounds"
        )
    path = Path(reference.name).expanduser()
    network = load_program(path)
    set_evaluation_mode(network)
    about = {"implementation": path.name, "parameters": given}
    cast = cast_module(network, given.get("dtype"))
    return UserModel(cast, str(reference), about, {"code": "saved network"}, given.get("bounds"))


def from_library(reference: Reference) -> UserModel:
    """Return the network of ``timm:NAME``, ``torchvision:NAME``, ``hf:NAME`` or ``robustbench:NAME``.

    The parameters ``dtype`` and ``bounds`` apply to every network, and so does ``weights`` if it is a file; see
    ``models.sources.load_network`` for the others.

    Raises:
        MissingExtra: if the library cannot be imported.
        BadModel: if it has no such network.
        BadParameter: for an unusable parameter.
    """
    from robustbench_inv.models.sources import fill_weights, load_network
    from robustbench_inv.models.wrapping import cast_module
    from robustbench_inv.torch_state import set_evaluation_mode

    given = dict(reference.parameters)
    library, _, name = reference.name.partition(":")
    options = {key: value for key, value in given.items() if key not in ("dtype", "bounds")}
    file = str(options.get("weights", ""))
    if is_file(file):
        del options["weights"], given["weights"]
        options["pretrained"] = False
    network = load_network(library, name, options)
    set_evaluation_mode(network)
    if is_file(file):
        fill_weights(network.network, Path(file).expanduser())
    about = {"implementation": reference.name, "parameters": given}
    cast = cast_module(network, given.get("dtype"))
    return UserModel(cast, str(reference), about, {"code": library}, given.get("bounds"))


def finder_of(name: str) -> Callable[[Reference], UserModel] | None:
    """Return what finds the network of a name; None for a name of the catalogue."""
    if name in entries("models"):
        return None
    if is_library(name):
        return from_library
    if is_file(name):
        return from_file
    return from_code if ":" in name else None


def is_library(name: str) -> bool:
    """Return whether a reference names a network of a library, as in ``timm:resnet18``."""
    return name.partition(":")[0] in MODEL_LIBRARIES and ":" in name


def is_file(name: str) -> bool:
    """Return whether a reference names a file of weights or of a network."""
    return Path(name).suffix.lower() in SUFFIXES


def from_object(model: "nn.Module | Classifier", parameters: Mapping[str, Any]) -> UserModel:
    """Return a network that is an object, with optional ``dtype`` and ``bounds``.

    Raises:
        BadParameter: for another parameter.
    """
    from robustbench_inv.models.wrapping import cast_module

    if parameters.keys() - {"dtype", "bounds"}:
        expected = "dtype or bounds"
        raise BadParameter("a model takes no parameters", got=dict(parameters), expected=expected)
    kind = type(model)
    about = {"implementation": f"{kind.__module__}:{kind.__qualname__}", "parameters": {}}
    cast = cast_module(model, parameters.get("dtype"))
    return UserModel(cast, kind.__name__.lower(), about, bounds=parameters.get("bounds"))


def _accepts(factory: object, name: str) -> bool:
    """Return whether a factory has a parameter of a name."""
    try:
        return callable(factory) and name in inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return False


def _is_model(found: object) -> bool:
    from torch import nn

    from robustbench_inv.models.protocol import Classifier

    return isinstance(found, nn.Module) or (
        isinstance(found, Classifier) and not isinstance(found, type)
    )
