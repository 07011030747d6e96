"""Networks of other libraries, with their preprocessing inside, and networks and weights in files."""

import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from robustbench_inv.errors import BadModel, BadParameter, InvbenchError, import_library

__all__ = ["LIBRARIES", "Preprocessed", "fill_weights", "load_network", "load_program"]

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of each channel that torchvision's networks are trained with."""


@dataclass(frozen=True)
class Found:
    """A network of a library, and mean and deviation that it expects of images in [0, 1]; None for no normalisation."""

    network: nn.Module
    normalisation: tuple[Sequence[float], Sequence[float]] | None


class Preprocessed(nn.Module):
    """A network behind its preprocessing: it takes images in [0, 1], so that eps is in units of the images.

    Args:
        network: takes normalised images (n, c, h, w).
        mean: of each channel.
        deviation: of each channel.
        size: height and width to which images are scaled, bilinear; None for those of the images.
    """

    bounds = (0.0, 1.0)

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        deviation: Sequence[float],
        size: int | None = None,
    ) -> None:
        super().__init__()
        self.network, self.size = network, size
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).reshape(-1, 1, 1))

    def forward(self, images: Tensor) -> Any:  # noqa: ANN401 - what the network returns
        if self.size is not None:
            images = interpolate(
                images, (self.size, self.size), mode="bilinear", align_corners=False
            )
        return self.network((images - self.mean) / self.deviation)  # type: ignore[operator]


def load_network(library: str, name: str, parameters: Mapping[str, Any]) -> nn.Module:
    """Return a network of a library, with its preprocessing.

    Args:
        library: one of LIBRARIES.
        name: the library's name for it, or the folder of a network of transformers.
        parameters: ``mean`` and ``std`` (numbers, one for each channel, such as ``0.5/0.5/0.5``) replace those of the
            library, ``resize`` scales the images; the library gets the others.

    Raises:
        MissingExtra: if the library cannot be imported.
        BadModel: if it has no such network, or no preprocessing.
        BadParameter: for an unusable parameter.
    """
    options = dict(parameters)
    size = options.pop("resize", None)
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise BadParameter("unusable resize", got=size, expected="a number of pixels")
    given = [options.pop(key, None) for key in ("mean", "std")]
    if (given[0] is None) != (given[1] is None):
        raise BadParameter("only one of mean and std is given", expected="both")
    normalisation = None if given[0] is None else (_numbers(given[0]), _numbers(given[1]))
    try:
        found = LIBRARIES[library](name, options, normalisation is None)
    except InvbenchError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise BadModel(f"{library} cannot load {name}", remedy=reason) from error
    mean, deviation = normalisation or found.normalisation or ((0.0,), (1.0,))
    return Preprocessed(found.network, mean, deviation, size)


def _timm(name: str, options: dict[str, Any], normalised: bool) -> Found:
    timm = _import("timm")
    network = timm.create_model(name, **{"pretrained": True, **options})
    config = _import("timm.data").resolve_model_data_config(network) if normalised else None
    return Found(network, (config["mean"], config["std"]) if config else None)


def _torchvision(name: str, options: dict[str, Any], normalised: bool) -> Found:
    models = _import("torchvision.models")
    pretrained, chosen = options.pop("pretrained", True), options.pop("weights", "DEFAULT")
    weights = models.get_model_weights(name)[chosen] if pretrained else None
    network = models.get_model(name, weights=weights, **options)
    if weights is None or not normalised:
        return Found(network, IMAGENET)
    preset = weights.transforms()
    return Found(network, (preset.mean, preset.std))


def _transformers(name: str, options: dict[str, Any], normalised: bool) -> Found:
    library = _import("transformers")
    network = library.AutoModelForImageClassification.from_pretrained(name, **options).float()
    return Found(network, _processor(library, name) if normalised else None)


def _processor(library: Any, name: str) -> tuple[list[float], list[float]] | None:  # noqa: ANN401
    """Return mean and deviation, for images in [0, 1], of what a processor of transformers does with bytes."""
    try:
        processor = library.AutoImageProcessor.from_pretrained(name)
    except Exception as error:
        raise BadModel(
            f"{name} has no image processor, which holds the normalisation",
            remedy="save it in the same folder (processor.save_pretrained), or append mean=0.5,std=0.5",
        ) from error
    rescales = getattr(processor, "do_rescale", True)
    scale = 255 * (processor.rescale_factor if rescales else 1)
    shift = 1.0 if rescales and getattr(processor, "rescale_offset", False) else 0.0
    normalises = getattr(processor, "do_normalize", False)
    means = processor.image_mean if normalises else [0.0]
    deviations = processor.image_std if normalises else [1.0]
    return [(mean + shift) / scale for mean in means], [each / scale for each in deviations]


def _robustbench(name: str, options: dict[str, Any], normalised: bool) -> Found:  # noqa: ARG001
    chosen = {"dataset": "cifar10", "threat_model": "Linf", **options}
    return Found(_import("robustbench.utils").load_model(model_name=name, **chosen), None)


LIBRARIES: Mapping[str, Callable[[str, dict[str, Any], bool], Found]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "hf": _transformers,
    "robustbench": _robustbench,
}
"""What loads a network, by the prefix of its name: its name, the library's parameters, is the normalisation needed?"""


def _import(module: str) -> Any:  # noqa: ANN401 - an untyped library
    top = module.partition(".")[0]
    return import_library(module, "hf" if top == "transformers" else top)


def _numbers(value: object) -> list[float]:
    try:
        return [float(each) for each in str(value).split("/")]
    except ValueError:
        expected = "a number for each channel, such as 0.5/0.5/0.5"
        raise BadParameter("unusable mean or std", got=value, expected=expected) from None


NESTED = ("state_dict", "model_state_dict", "model", "net", "weights")
"""Keys under which training scripts save the weights beside other values."""

PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
"""What wrappers for several GPUs, compilation and training put before each name."""


def fill_weights(module: object, path: Path) -> None:
    """Load a file of weights into a network.

    A file of pickled values is read with ``weights_only=True``, which runs no code of the file. Weights inside a
    checkpoint are found under its usual keys, and prefixes of wrappers such as ``module.`` are dropped.

    Args:
        module: the network.
        path: ``.safetensors``, or any file of ``torch.save``.

    Raises:
        BadModel: for a missing file, one that holds no weights, or weights that do not fit the network.
    """
    if not isinstance(module, nn.Module):
        raise BadModel("only a torch.nn.Module gets weights", got=type(module).__name__)
    state = _without_prefix(_read_weights(path), module.state_dict().keys())
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise BadModel(f"{path.name} does not fit the network", remedy=reason) from error
    if missing or unexpected:
        raise BadModel(
            f"{path.name} does not fit the network",
            got=_some("unexpected", unexpected) or _some("missing", missing),
            expected=f"its {len(module.state_dict())} tensors, {_some('such as', missing or [*module.state_dict()])}",
            remedy="build the network with the parameters that it was trained with",
        )


def load_program(path: Path) -> nn.Module:
    """Return the network of a TorchScript or ``torch.export`` file; no Python code of the file is run.

    Raises:
        BadModel: for a missing or damaged file, and for one that holds weights or a pickled object alone.
    """
    _check_file(path)
    names = _members(path)
    try:
        if any(name.rpartition("/")[2] == "archive_format" for name in names):
            with _weights_only():
                exported: nn.Module = torch.export.load(path).module()
            return exported
        if any("/code/" in name for name in names):
            script: nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
            return script
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BadModel(f"{path.name} cannot be loaded", remedy=reason) from error
    count = len(_read_weights(path))
    raise BadModel(
        f"{path.name} holds weights and no network",
        got=f"{count} tensors",
        expected="a TorchScript or torch.export file",
        remedy=f"name the function that builds the network: FILE.py:FUNCTION:weights={path}",
    )


def _read_weights(path: Path) -> dict[str, Tensor]:
    _check_file(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, RuntimeError) as error:
        expected = "safetensors, or a state dictionary saved by torch.save"
        problem = f"{path.name} is damaged, or no file of weights"
        raise BadModel(problem, got=str(path), expected=expected) from error
    except Exception as error:  # of the restricted unpickler, which names what it does not allow
        raise BadModel(
            f"{path.name} holds a pickled object, which could run any code when loaded",
            expected="weights alone",
            remedy="save them: torch.save(model.state_dict(), FILE), or safetensors",
        ) from error
    for key in NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    tensors = found if isinstance(found, Mapping) else {}
    wrong = [key for key, value in tensors.items() if not isinstance(value, Tensor)]
    if wrong or not tensors:
        raise BadModel(
            f"{path.name} holds no weights by name",
            got=", ".join(map(str, wrong[:3])) or type(found).__name__,
            expected="a state dictionary, also under the key state_dict",
        )
    return dict(tensors)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise BadModel("no such file of weights", got=str(path))


@contextmanager
def _weights_only() -> Iterator[None]:
    """Let torch read no pickled objects but tensors; loading an exported program would else allow any."""
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ[names[0]] = "1"
    try:
        yield
    finally:
        del os.environ[names[0]]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _members(path: Path) -> list[str]:
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def _without_prefix(state: dict[str, Tensor], names: Set[str]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if not names & state.keys() and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _some(title: str, names: list[str]) -> str:
    return f"{title} {', '.join(names[:3])}" if names else ""
