"""Accuracy with a planted feature that tells the class, and when it no longer does: the thesis's Remark 6.12."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from robustbench_inv.catalogue.load import LoadedModel
from robustbench_inv.data.planted import Planted
from robustbench_inv.errors import BadParameter
from robustbench_inv.measurements.errors import decide, probe_errors, split_of
from robustbench_inv.measurements.metamers import few_of
from robustbench_inv.measurements.protocol import Asked
from robustbench_inv.results.measurement import Grid, Measured, Number
from robustbench_inv.results.seen import look

__all__ = ["measure_shift"]

SHOWN = 10
"""Columns of the grid."""

TOLD, RANDOM, BARE = "with the feature", "with that of a random class", "without a feature"


def measure_shift(
    asked: Asked,
    train: str,
    first: int = 6_000,
    last: int = 60_000,
    probes: Sequence[Mapping[str, Any]] = (),
) -> Measured:
    """Return each model's accuracy on the same digits with the feature, with a random one, and without.

    Args:
        asked: any models, and planted digits that are held out.
        train: planted digits for training nuisance classifiers, of models that split their code.
        first: id of the first of them.
        last: one more than the id of the last.
        probes: as ``measure_errors`` takes them.

    Raises:
        BadParameter: for data without a planted feature.

    References:
        Behrmann, thesis, remark 6.12.
    """
    dataset = asked.open_dataset()
    if not isinstance(dataset, Planted):
        expected = "mnist-planted:…"
        raise BadParameter("nothing is planted here", got=dataset.name, expected=expected)
    data = split_of(asked, dataset, asked.open_dataset(train), range(first, last))
    models, numbers = asked.open_models(), list[Number]()
    for column, model in models.items():
        asked.report(f"{model.name}: {len(data.test.ids):,} digits")
        numbers += _accuracies(column, model, dataset, data.test.ids)
        numbers += probe_errors(asked, column, model, data, probes)
    digests = {model.name: model.digest for model in models.values()}
    grids = (_grid(dataset, data.test.ids),)
    return Measured(dataset.name, len(data.test.ids), digests, tuple(numbers), grids)


def _versions(dataset: Planted, ids: Tensor) -> dict[str, Tensor]:
    planted, bare = dataset.batch(ids)[0], dataset.base.batch(ids)[0]
    return {TOLD: planted, RANDOM: dataset.counterparts(ids), BARE: bare}


def _accuracies(column: str, model: LoadedModel, dataset: Planted, ids: Tensor) -> Iterator[Number]:
    labels = dataset.labels[ids]
    for name, images in _versions(dataset, ids).items():
        right = decide(model.classifier, images, ids) == labels
        yield Number.of(f"Accuracy {name}", column, right.numpy())


def _grid(dataset: Planted, ids: Tensor) -> Grid:
    few = few_of(dataset, ids, SHOWN)
    versions = _versions(dataset, few)
    return Grid(
        name="planted",
        title="The planted feature",
        caption="The same digits with the feature of their class, as in training, with that of a random class, and without.",
        rows=tuple(versions),
        groups=((dataset.name, len(few)),),
        images=np.stack([look(images.numpy(), dataset.bounds) for images in versions.values()]),
    )
