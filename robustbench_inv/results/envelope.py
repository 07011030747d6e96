"""The smallest known distance of an adversarial example, for each image, model and norm; and attacks measured by it."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np

from robustbench_inv.errors import BadResults
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.files import read_json, write_json
from robustbench_inv.results.record_columns import NORMS

__all__ = ["Best", "Envelope", "hash_image", "local_optimality", "read_envelope"]

VERSION = 1

Best = tuple[float, str]
"""A distance, and the attack that found it."""

ImagesOf = Callable[[FinishedCell], Mapping[int, str]]
"""Returns sample → hash of the clean image, of the samples of a cell."""


def hash_image(image: np.ndarray) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of an image's shape and its values in float32."""
    values = np.ascontiguousarray(image, dtype="<f4")
    return hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest()[:16]


def local_optimality(distances: Sequence[float] | np.ndarray, best: Sequence[float]) -> float:
    """Return how close the distances of an attack are to the best known ones: 1 if they are the same.

    LO = (ρ ε₀ − AUREC(a)) / (ρ ε₀ − AUREC(a*)) with the clean accuracy ρ, the area AUREC under robust accuracy from 0 to
    ε₀, and the smallest ε₀ at which the best attack a* leaves no sample robust. With the steps of robust accuracy summed it
    is Σ max(ε₀ − dᵢ, 0) / Σ (ε₀ − dᵢ*) over the attacked samples; ε₀ is the largest finite dᵢ*.

    Args:
        distances: of an attack for each attacked sample; inf for a robust one.
        best: the smallest known ones, in the same order; none is larger than that of the attack.

    Returns:
        A number from 0 to 1; nan if all best distances are equal or infinite.

    References:
        Cinà, Rony, Pintor, Demetrio, Demontis, Biggio, Ben Ayed and Roli, AttackBench: evaluating gradient-based attacks
        for adversarial examples, arXiv 2404.19460, equations 4 and 5.

    Example:
        >>> local_optimality([1.0, 3.0], [1.0, 3.0]), local_optimality([2.0, 3.0], [1.0, 3.0])
        (1.0, 0.5)
    """
    found, known = np.asarray(distances, dtype=float), np.asarray(best, dtype=float)
    finite = known[np.isfinite(known)]
    end = float(finite.max()) if len(finite) else nan
    whole = float((end - finite).sum())
    return float(np.maximum(end - found, 0.0).sum()) / whole if whole > 0 else nan


@dataclass
class Envelope:
    """The smallest known distances.

    Args:
        images: data set → sample → hash of its image.
        best: model and norm → hash → distance and attack.
        models: digest → name.
    """

    images: dict[str, dict[int, str]] = field(default_factory=dict)
    best: dict[tuple[str, str], dict[str, Best]] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)

    def add(
        self,
        cells: Iterable[FinishedCell],
        images_of: ImagesOf,
        norms: Collection[str] = NORMS,
    ) -> int:
        """Take the adversarial examples of cells in, in some norms, and return how many distances became smaller.

        Examples count whose only condition is a wrong prediction: not those of a target class, of an oracle, of fixed inputs,
        of a reject option or of invariance attacks.
        """
        shorter = 0
        for cell in filter(_counts, cells):
            hashes = images_of(cell)
            self.images.setdefault(cell.info.dataset_key, {}).update(hashes)
            self.models[cell.model.key] = cell.model.name
            records = cell.records.columns
            keys = [hashes[sample] for sample in cell.ids[records.is_broken].tolist()]
            for norm in norms:
                place = self.best.setdefault((cell.model.key, norm), {})
                distances = records.distance[norm][records.is_broken].astype(float).tolist()
                for key, distance in zip(keys, distances, strict=True):
                    if isfinite(distance) and distance < place.get(key, (inf, ""))[0]:
                        place[key] = (distance, cell.attack_label)
                        shorter += 1
        return shorter

    def distances(self, cell: FinishedCell) -> list[float]:
        """Return the smallest known distance of each attacked sample of a cell, its own included; inf without any."""
        known = self.best.get((cell.model.key, cell.norm), {})
        hashes = self.images.get(cell.info.dataset_key, {})
        attacked = cell.ids[cell.was_attacked].tolist()
        listed = (known.get(hashes.get(sample, ""), (inf, ""))[0] for sample in attacked)
        return [min(pair) for pair in zip(listed, map(float, cell.attacked_distances), strict=True)]

    def optimality(self, cell: FinishedCell) -> float:
        """Return the local optimality of the attack of a cell; nan for cells whose examples do not count."""
        if not _counts(cell):
            return nan
        return local_optimality(cell.attacked_distances, self.distances(cell))

    def merge(self, other: "Envelope") -> None:
        """Take the distances of another envelope in."""
        self.models |= other.models
        for dataset, images in other.images.items():
            self.images.setdefault(dataset, {}).update(images)
        for place, found in other.best.items():
            mine = self.best.setdefault(place, {})
            mine |= {key: each for key, each in found.items() if each < mine.get(key, (inf, ""))}

    def write(self, path: Path) -> None:
        """Write the envelope as JSON: images in order, and one list of distances for each model and norm.

        Raises:
            BadResults: if it cannot be written.
        """
        order = sorted({key for found in self.best.values() for key in found})
        attacks = sorted({attack for found in self.best.values() for _, attack in found.values()})
        row = {key: number for number, key in enumerate(order)}
        models = {
            digest: {
                "name": name,
                **{norm: self._column(digest, norm, order, attacks) for norm in NORMS},
            }
            for digest, name in sorted(self.models.items())
        }
        datasets = {
            dataset: {str(s): row[key] for s, key in sorted(images.items()) if key in row}
            for dataset, images in sorted(self.images.items())
        }
        content = {"images": order, "attacks": attacks, "datasets": datasets, "models": models}
        write_json(path, {"version": VERSION, **content})

    def _column(
        self, digest: str, norm: str, order: Sequence[str], attacks: Sequence[str]
    ) -> list[tuple[float, int] | None]:
        found = self.best.get((digest, norm), {})
        return [(found[k][0], attacks.index(found[k][1])) if k in found else None for k in order]


def _counts(cell: FinishedCell) -> bool:
    fixed = cell.kind == "fixed-input" or cell.threat.wants_same_prediction or cell.threat.no_class
    return cell.goal == "misclassify" and cell.threat.oracle is None and not fixed


def read_envelope(path: Path) -> Envelope:
    """Read an envelope.

    Raises:
        BadResults: if the file is missing, damaged or of another version.
    """
    value = read_json(path)
    try:
        return _parse(value)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise BadResults(
            f"{path} is no envelope",
            got=f"{type(error).__name__}: {error}",
            expected=f"version {VERSION}, written by invbench envelope merge",
        ) from error


def _parse(value: Any) -> Envelope:  # noqa: ANN401 - JSON
    if value["version"] != VERSION:
        raise ValueError(f"version {value['version']}")
    images, attacks = list(map(str, value["images"])), list(map(str, value["attacks"]))
    found = Envelope(models={key: str(model["name"]) for key, model in value["models"].items()})
    for dataset, rows in value["datasets"].items():
        found.images[dataset] = {int(sample): images[row] for sample, row in rows.items()}
    for digest, model in value["models"].items():
        for norm in NORMS:
            entries = zip(images, model[norm], strict=True)
            found.best[digest, norm] = {
                key: (_distance(each[0]), attacks[each[1]]) for key, each in entries if each
            }
    return found


def _distance(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < inf:
        raise ValueError(f"distance {value}")
    return float(value)
