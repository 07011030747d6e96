"""Opens the other data set of an attack that shows its inputs, for a plan and for the process that runs a cell."""

from collections.abc import Callable
from typing import Any

from robustbench_inv.attacks.protocol import Attack, ShowsOthers
from robustbench_inv.catalogue.load import LoadedAttack, load_attack, showing, usual_others
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import BadData

__all__ = ["with_others"]


def with_others(
    source: str | Attack | LoadedAttack,
    loaded: LoadedAttack,
    dataset: Dataset,
    open_dataset: Callable[[str], Dataset],
    *,
    optional: bool = False,
) -> LoadedAttack:
    """Return an attack with the other data set at hand, if it shows inputs of one; any other as it is.

    Args:
        source: what the attack was loaded from; the usual data set is added to its name.
        loaded: the attack.
        dataset: the data that is evaluated.
        open_dataset: opens a data set by name.
        optional: leave the attack without its data set if that is not here; it then refuses to run.

    Raises:
        BadData: if the other data set is damaged, or is not here and cannot be fetched.
    """
    if not isinstance(loaded.attack, ShowsOthers):
        return loaded
    name = loaded.attack.dataset or usual_others(dataset.name)
    if not name:
        return loaded
    plain: Any = source.attack if isinstance(source, LoadedAttack) else source
    named = loaded if loaded.attack.dataset else load_attack(plain, dataset=name)
    assert isinstance(named.attack, ShowsOthers)
    try:
        return showing(named, named.attack, open_dataset(name))
    except BadData:
        if optional:
            return named
        raise
