"""Other libraries, models and data sets; those that are not installed are left out of a benchmark."""

from functools import cache
from importlib import import_module
from types import ModuleType

import robustbench_inv as rbi
from robustbench_inv.errors import InvbenchError

__all__ = ["adversarial_library", "is_there"]


@cache
def adversarial_library() -> ModuleType | None:
    """Return the attacks of adversarial-library (``adv-lib``), or None where it cannot be imported."""
    try:
        return import_module("adv_lib.attacks")
    except (ImportError, RuntimeError):  # the second if torchvision was made for another torch
        return None


def is_there(model: str, dataset: str) -> bool:
    """Are the weights of a model and the files of a data set installed?"""
    try:
        rbi.load_dataset(dataset)
        rbi.load_model(model)
    except InvbenchError:
        return False
    return True
