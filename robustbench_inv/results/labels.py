"""Cells of several runs: copies of a cell are joined, and labels made distinct where several digests share a name."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robustbench_inv.errors import BadResults
from robustbench_inv.results.cell import CellInfo, FinishedCell
from robustbench_inv.results.cell_events import LaterEvents
from robustbench_inv.results.cell_parts import JSON, OracleInfo

__all__ = [
    "Labels",
    "cell_title",
    "distinct_labels",
    "join_copies",
    "label_attacks",
    "label_distinctly",
    "names_and_digests",
]

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


def label_distinctly(cells: Sequence[FinishedCell]) -> Callable[[FinishedCell], FinishedCell]:
    """Return a function that labels some cells distinctly: by digests, and by the seed if there are several."""
    labels = Labels.of((cell.info, cell.model_label) for cell in cells)
    several = len({cell.info.seed for cell in cells}) > 1

    def rename(cell: FinishedCell) -> FinishedCell:
        named = labels.apply(cell)
        suffix = f" seed {cell.info.seed}" if several else ""
        return replace(named, attack_label=named.attack_label + suffix)

    return rename


def label_attacks(cells: Sequence[FinishedCell]) -> Callable[[FinishedCell], FinishedCell]:
    """Return a function that labels attacks and substitutes alike in cells that were labelled apart, and nothing else."""
    labels = Labels.of((cell.info, "") for cell in cells)

    def rename(cell: FinishedCell) -> FinishedCell:
        attack = replace(cell.attack, name=labels.attacks[cell.attack.key])
        threat, helper = cell.threat, cell.threat.substitute
        if helper:
            threat = replace(threat, substitute=replace(helper, name=labels.models[helper.digest]))
        info = replace(cell.info, attack=attack, threat=threat)
        suffix = cell.attack_label.removeprefix(cell.info.attack_label)
        return replace(cell, info=info, attack_label=info.attack_label + suffix)

    return rename


def join_copies(copies: Sequence[tuple[Path, FinishedCell]]) -> FinishedCell:
    """Return a cell with the records, events, images and certificates of all its copies.

    Args:
        copies: of one cell, each with the folder of its run.

    Raises:
        BadResults: if two copies have different results of a sample.
    """
    for (folder, cell), (other, copy) in combinations(copies, 2):
        for sample in _differing_samples(cell, copy):
            raise BadResults(
                f"{cell.attack_label} on {cell.model_label} has two results",
                got=f"others in {other} than in {folder}, sample {sample}",
                remedy="leave one of the folders out",
            )
    joined, *others = sorted((cell for _, cell in copies), key=lambda cell: -len(cell.records))
    for copy in others:
        joined = _join(joined, copy)
    return joined


def _join(one: FinishedCell, other: FinishedCell) -> FinishedCell:
    """Return a cell with what another copy has beside it."""
    errors = [cell.oracle_error for cell in (one, other) if cell.oracle_error]
    certificates = one.certificates or other.certificates
    if one.certificates and one.certificates != other.certificates:
        certificates = one.certificates.merged(other.certificates)
    joined = replace(
        one,
        requested=tuple(sorted({*one.requested, *other.requested})),
        oracle_error=max(errors, key=lambda error: error.trials, default=None),
        certificates=certificates,
        remarks=tuple(dict.fromkeys((*one.remarks, *other.remarks))),
        read_images=partial(_read_both, one, other),
    )
    new = ~np.isin(other.ids, one.ids)
    if not new.any():
        return joined
    records = one.records + other.records.where(new)
    return replace(joined, records=records, events=LaterEvents(partial(_both_events, one, other)))


def _both_events(one: FinishedCell, other: FinishedCell) -> list[JSON]:
    return [*one.events, *other.events]


def _read_both(one: FinishedCell, other: FinishedCell) -> Mapping[str, NDArray[np.generic]] | None:
    """Return the images of both copies, each sample once."""
    first, second = one.read_images(), other.read_images()
    if first is None or second is None:
        return second if first is None else first
    new = ~np.isin(second["samples"], first["samples"])
    return {key: np.concatenate([first[key], second[key][new]]) for key in first}


def _differing_samples(one: FinishedCell, other: FinishedCell) -> list[int]:
    """Return the samples of which two copies of a cell have different results, ascending."""
    both = np.intersect1d(one.ids, other.ids)
    (values, numbers), (others, other_numbers) = (_outcomes(c, both) for c in (one, other))
    close = np.isclose(numbers, other_numbers, rtol=ROUNDING, equal_nan=True).all(axis=0)
    same = close & (values == others).all(axis=0)
    return [int(sample) for sample in both[~same]]


ROUNDING = 1e-3
"""Distances of two copies that differ by less are equal: batches of other sizes round differently."""


def _outcomes(
    cell: FinishedCell, ids: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return what must be equal in copies, and what up to rounding; one column for each sample."""
    found = cell.records.columns.take(np.isin(cell.ids, ids))
    outputs = [
        each for o in (found.clean, found.adversarial) for each in (o.prediction, o.accepted)
    ]
    values = [found.label, *outputs, found.oracle_label, found.status]
    flags = [found.within_budget, found.goal_reached]
    numbers = [found.broken_at, found.distance[cell.norm]]
    return np.stack([*values, *flags]).astype(np.int64), np.stack(numbers).astype(float)


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
