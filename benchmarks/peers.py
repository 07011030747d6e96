"""Other libraries, models and data sets; those that are not installed are left out of a benchmark."""

import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

import robustbench_inv as rbi
from robustbench_inv.errors import InvbenchError

__all__ = [
    "adversarial_library",
    "is_there",
    "run_adversarial_library",
    "run_art",
    "run_foolbox",
    "run_torchattacks",
]


@cache
def adversarial_library() -> ModuleType | None:
    """Return the attacks of adversarial-library (``adv-lib``), or None where it cannot be imported.

    It imports ``visdom`` and ``torchvision`` for plots and segmentation, which nothing here uses: empty modules stand for
    them while it is imported.
    """
    if not find_spec("adv_lib"):
        return None
    names = ("torchvision", "visdom")
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.modules.update({name: _Empty(name) for name in names})
    try:
        return import_module("adv_lib.attacks")
    except (ImportError, RuntimeError):
        return None
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)


class _Empty(ModuleType):
    """A module all of whose names are None."""

    def __getattr__(self, name: str) -> None:
        return None


def run_foolbox(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    name: str,
    seed: int = 0,
    **parameters: object,
) -> Tensor:
    """Return the adversarial examples of an attack of Foolbox.

    Raises:
        ImportError: if it is not installed.
    """
    import foolbox as fb
    from foolbox.models.pytorch import PyTorchModel

    torch.manual_seed(seed)
    model = PyTorchModel(network, bounds=(0, 1), device="cpu")
    found: Tensor = getattr(fb.attacks, name)(**parameters)(model, images, labels, epsilons=None)[1]
    return found


def run_torchattacks(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    name: str,
    seed: int = 0,
    **parameters: object,
) -> Tensor:
    """Return the adversarial examples of an attack of torchattacks.

    Raises:
        ImportError: if it is not installed.
    """
    import torchattacks as ta

    torch.manual_seed(seed)
    model = nn.Sequential(network)
    model.register_parameter("device", nn.Parameter(torch.zeros(1), requires_grad=False))
    found: Tensor = getattr(ta, name)(model.eval(), **parameters)(images, labels)
    return found


def run_adversarial_library(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    name: str,
    seed: int = 0,
    **parameters: object,
) -> Tensor:
    """Return the adversarial examples of an attack of adversarial-library.

    Raises:
        ImportError: if it is not installed.
    """
    library = adversarial_library()
    if library is None:
        raise ImportError("adv_lib")
    torch.manual_seed(seed)
    found: Tensor = getattr(library, name)(network, images, labels, **parameters)
    return found


def run_art(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    name: str,
    seed: int = 0,
    **parameters: object,
) -> Tensor:
    """Return the adversarial examples of an attack of the Adversarial Robustness Toolbox.

    Raises:
        ImportError: if it is not installed.
    """
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    np.random.seed(seed)  # noqa: NPY002
    shape = tuple(images.shape[1:])
    model = PyTorchClassifier(
        network, nn.CrossEntropyLoss(), shape, 10, clip_values=(0.0, 1.0), device_type="cpu"
    )
    attack = getattr(evasion, name)(model, verbose=False, **parameters)
    return torch.as_tensor(
        attack.generate(images.numpy(), nn.functional.one_hot(labels, 10).numpy())
    )


def is_there(model: str, dataset: str) -> bool:
    """Are the weights of a model and the files of a data set installed?"""
    try:
        rbi.load_dataset(dataset)
        rbi.load_model(model)
    except InvbenchError:
        return False
    return True
