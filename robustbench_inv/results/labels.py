"""Labels of models, attacks and data sets: names for display, made distinct where several digests share one."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from robustbench_inv.results.cell import CellInfo, FinishedCell
from robustbench_inv.results.cell_parts import OracleInfo

__all__ = ["Labels", "cell_title", "distinct_labels", "names_and_digests"]

MIN_DIGITS = 4
"""Smallest number of digits of a digest that distinguish two things of one name."""


@dataclass(frozen=True)
class Labels:
    """The labels of the models, attacks, data sets and files of human labels of several cells, by digest."""

    models: Mapping[str, str]
    attacks: Mapping[str, str]
    datasets: Mapping[str, str]
    oracles: Mapping[str, str]

    @classmethod
    def of(cls, cells: Iterable[tuple[CellInfo, str]]) -> "Labels":
        """Return the labels of cells, each given with the user's label of its model, empty for its name."""
        known = list(cells)
        models = [(info.model.key, label or info.model.name) for info, label in known]
        helpers = [info.threat.substitute for info, _ in known if info.threat.substitute]
        return cls(
            distinct_labels([*models, *((each.digest, each.name) for each in helpers)]),
            distinct_labels(_attacks([info for info, _ in known])),
            distinct_labels((info.dataset_key, info.dataset.name) for info, _ in known),
            distinct_labels(
                (each.digest, each.source) for info, _ in known for each in _human(info)
            ),
        )

    def apply(self, cell: FinishedCell) -> FinishedCell:
        """Return a cell whose model, attack, substitute and data set are named by their labels."""
        info, helper, oracle = cell.info, cell.threat.substitute, cell.threat.oracle
        if helper:
            helper = replace(helper, name=self.models.get(helper.digest, helper.name))
        for each in _human(info):
            oracle = replace(each, source=self.oracles[each.digest])
        named = replace(
            info,
            model=replace(info.model, name=self.models[info.model.key]),
            attack=replace(info.attack, name=self.attacks[info.attack.key]),
            dataset=replace(info.dataset, name=self.datasets[info.dataset_key]),
            threat=replace(info.threat, substitute=helper, oracle=oracle),
        )
        return replace(cell, info=named, model_label="", attack_label="")


def _attacks(infos: Sequence[CellInfo]) -> Iterator[tuple[str, str]]:
    """Yield the digest and name of each cell's attack, with the norm where it distinguishes attacks of one name."""
    norms: dict[str, dict[str, set[str]]] = {}
    for info in infos:
        by_digest = norms.setdefault(info.attack.name, {})
        by_digest.setdefault(info.attack.key, set()).add(info.threat.norm)
    for info in infos:
        name, norm, known = info.attack.name, info.threat.norm, norms[info.attack.name]
        others = [each for key, each in known.items() if key != info.attack.key]
        apart = others and known[info.attack.key] == {norm} and not any(norm in o for o in others)
        yield info.attack.key, f"{name} ({norm})" if apart else name


def _human(info: CellInfo) -> list[OracleInfo]:
    """Return the oracle of a cell if it is a file of labels; a panel differs between models, and stays one."""
    oracle = info.threat.oracle
    return [oracle] if oracle and not oracle.members else []


def names_and_digests(cell: FinishedCell) -> dict[str, str]:
    """Return the names of a cell's model, attack and data set, and the digests that distinguish parts of one name."""
    return {
        "model": cell.model.name,
        "attack": cell.attack.name,
        "dataset": cell.dataset.name,
        "model_digest": cell.model.key,
        "attack_digest": cell.attack.key,
        "dataset_digest": cell.info.dataset_key,
    }


def cell_title(*, model: str, attack: str, threat: str, dataset: str, seed: int) -> str:
    """Return the name of a cell in messages, in the verdicts of checks, and in the status of a run."""
    return f"{attack} on {model}, {threat}, {dataset}, seed {seed}"


def distinct_labels(named: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return a label for each digest: its first name, with the start of the digest where others share the name.

    Args:
        named: digests and names.

    Example:
        >>> distinct_labels([("1ab2c", "net"), ("77f3d", "net"), ("03bbb", "other"), ("1ab2c", "again")])
        {'1ab2c': 'net #1ab2', '77f3d': 'net #77f3', '03bbb': 'other'}
    """
    names: dict[str, str] = {}
    for digest, name in named:
        names.setdefault(digest, name)
    sharing: dict[str, list[str]] = {}
    for digest, name in names.items():
        sharing.setdefault(name, []).append(digest)
    return {
        digest: name if len(sharing[name]) == 1 else f"{name} #{_start(digest, name, sharing)}"
        for digest, name in names.items()
    }


def _start(digest: str, name: str, sharing: Mapping[str, list[str]]) -> str:
    """Return the shortest start of a digest that no other of the same name has, and that gives no other's name."""
    others = [each for each in sharing[name] if each != digest]
    lengths = range(MIN_DIGITS, len(digest) + 1)
    starts = (digest[:length] for length in lengths)
    fitting = (
        start
        for start in starts
        if f"{name} #{start}" not in sharing and not any(each.startswith(start) for each in others)
    )
    return next(fitting, digest)
