"""Errors of a classifier's logits, and of classifiers trained on what it does not look at (Table 2)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from robustbench_inv.catalogue.fields import Mismatch, check_fields
from robustbench_inv.catalogue.load import LoadedModel
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.data.sampling import select_samples
from robustbench_inv.errors import BadCatalogue
from robustbench_inv.evaluation.metering import judge
from robustbench_inv.measurements.protocol import Asked, samples_of
from robustbench_inv.models.protocol import Classifier, SplitsCode, device_of
from robustbench_inv.randomness import Noise
from robustbench_inv.results.measurement import Measured, Number
from robustbench_inv.training.nuisance import Probing, probe_nuisance
from robustbench_inv.training.objectives import TrainingData

__all__ = ["Split", "decide", "measure_errors", "probe_errors", "probing", "split_of"]

BLOCK = 500
"""Samples that a model is asked about at a time."""


@dataclass(frozen=True)
class Split:
    """Samples for training probes, and held-out ones."""

    train: TrainingData
    test: TrainingData


def measure_errors(
    asked: Asked,
    train: str = "mnist:split=train",
    first: int = 6_000,
    last: int = 60_000,
    probes: Sequence[Mapping[str, Any]] = (),
) -> Measured:
    """Return train and test error of each model's logits and nuisance classifiers.

    Args:
        asked: models that split their code, and the held-out data.
        train: data for training the nuisance classifiers.
        first: id of the first training sample.
        last: one more than the id of the last; as many as are asked for are drawn from these.
        probes: for each nuisance classifier fields of ``Probing``, and ``name`` for its rows.

    References:
        Jacobsen et al., Excessive invariance, ICLR 2019, table 2.
    """
    held_out = asked.open_dataset()
    data = split_of(asked, held_out, asked.open_dataset(train), range(first, last))
    models, numbers = asked.open_models(), list[Number]()
    for column, model in models.items():
        for name, part in (("Test", data.test), ("Train", data.train)):
            wrong = decide(model.classifier, part.images, part.ids) != part.labels
            numbers.append(Number.of(f"{name} error, logits", column, wrong.numpy()))
        numbers += probe_errors(asked, column, model, data, probes)
    digests = {model.name: model.digest for model in models.values()}
    return Measured(held_out.name, len(data.test.ids), digests, tuple(numbers))


def split_of(asked: Asked, held_out: Dataset, train: Dataset, allowed: range) -> Split:
    """Return the held-out samples that are asked about, and training samples: all that are allowed, or as many.

    Args:
        asked: how many.
        held_out: data for the test.
        train: data for training.
        allowed: ids of training samples.
    """
    ids = torch.tensor(allowed)
    if asked.samples is not None:
        count = min(len(asked.draw(held_out)), len(ids))
        ids = ids[torch.tensor(select_samples(train.labels[ids], count))]
    return Split(samples_of(train, ids), samples_of(held_out, asked.draw(held_out)))


@torch.no_grad()
def decide(model: Classifier, images: Tensor, ids: Tensor) -> Tensor:
    """Return the decisions (n,) on images of the samples ``ids`` (n,), on the CPU."""
    place, decisions = device_of(model), []
    for rows in torch.arange(len(ids)).split(BLOCK):  # type: ignore[no-untyped-call]
        noise = Noise(0, ids[rows].to(place), "measured")
        decisions.append(judge(model, images[rows].to(place, model.dtype), noise).decision.cpu())
    return torch.cat(decisions)


def probe_errors(
    asked: Asked,
    column: str,
    model: LoadedModel,
    data: Split,
    probes: Sequence[Mapping[str, Any]],
) -> Iterator[Number]:
    """Yield held-out and training error of each nuisance classifier; none for a model without nuisances.

    Raises:
        BadCatalogue: for a probe with unknown fields.
    """
    if not isinstance(model.classifier, SplitsCode):
        return
    for fields in probes:
        name, plan = probing(fields, asked.seed)
        asked.report(f"{column}: {name}, {plan.epochs} epochs on {len(data.train.ids):,} samples")
        tell = partial(_tell, asked, f"{column}: {name}")
        found = probe_nuisance(model.classifier, data.train, data.test, plan, report=tell)
        yield Number(f"Test error, {name}", column, found.errors / found.trials, found.trials)
        share = found.train_errors / found.train_trials
        yield Number(f"Train error, {name}", column, share, found.train_trials)


def probing(fields: Mapping[str, Any], seed: int) -> tuple[str, Probing]:
    """Return the name of a probe's rows, and how it is trained.

    Raises:
        BadCatalogue: for an unknown field.
    """
    values = {"seed": seed, **fields}
    name = str(values.pop("name", "nuisance"))
    try:
        return name, Probing(**check_fields(Probing, values))
    except Mismatch as mismatch:
        problem = f"probe {name}: {mismatch.problem}"
        raise BadCatalogue(problem, **mismatch.details()) from mismatch


def _tell(asked: Asked, what: str, epoch: int, error: float) -> None:
    if epoch % 10 == 0:
        asked.report(f"{what}: epoch {epoch}, error {error:.2%} in training")
