"""From a name to the thing it names: attacks, models, data sets, threats and goals."""

from robustbench_inv.catalogue.loaded_attack import LoadedAttack, load_attack, showing
from robustbench_inv.catalogue.loaded_dataset import load_dataset, usual_others
from robustbench_inv.catalogue.loaded_model import LoadedModel, load_model
from robustbench_inv.catalogue.threats import load_goal, load_threat

__all__ = [
    "LoadedAttack",
    "LoadedModel",
    "load_attack",
    "load_dataset",
    "load_goal",
    "load_model",
    "load_threat",
    "showing",
    "usual_others",
]
