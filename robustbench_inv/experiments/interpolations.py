"""Images on the path from a sample to its metamer at constant logits: Figure 6 of Excessive invariance."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from robustbench_inv.data.sampling import balanced_subset
from robustbench_inv.experiments.metamers import (
    DONOR,
    SOURCE,
    InvertibleModel,
    MetamerBatch,
    compare_oracle_labels,
    metamer_batches,
    open_invertible_models,
    quantise_images,
)
from robustbench_inv.experiments.protocol import ExperimentRequest
from robustbench_inv.results.experiment_result import ExperimentResult, ImageGrid, MeasuredNumber
from robustbench_inv.results.pixels import Pixels, to_pixels

__all__ = ["measure_interpolations", "percent"]


def measure_interpolations(
    request: ExperimentRequest,
    oracle: str = "mnist-panel",
    num_examples: int = 10,
    steps: int = 9,
    rule: str = "other-class",
) -> ExperimentResult:
    """Return a grid of interpolations, a group of columns for each model, and what a panel sees on the way.

    Args:
        request: models whose code is split, and the held-out data.
        oracle: a panel of the catalogue.
        num_examples: columns of each model, the same samples and donors for all.
        steps: images from the sample itself to its metamer, at least 2; the panel is asked about every other.
        rule: by which donors are chosen.

    References:
        Jacobsen et al., Excessive invariance, ICLR 2019, section 4 and figure 6.
    """
    dataset = request.open_dataset()
    ids, numbers, columns, digests = request.draw(dataset), list[MeasuredNumber](), {}, {}
    shares: list[float] = torch.linspace(0, 1, steps).tolist()
    for subject in open_invertible_models(request, dataset, oracle):
        request.report(f"interpolations of {subject.model.name}: {len(ids):,} samples")
        numbers += _oracle_numbers(subject, ids, rule, request.seed, shares[::2])
        (mixture,) = metamer_batches(
            subject, balanced_subset(dataset.labels, ids, num_examples), rule, request.seed
        )
        columns[subject.column] = (mixture, _interpolation_images(subject, mixture, shares))
        digests[subject.model.name] = subject.model.digest
    grid = _interpolation_grid(columns, shares)
    return ExperimentResult(dataset.name, len(ids), digests, tuple(numbers), (grid,))


@torch.no_grad()
def _oracle_numbers(
    subject: InvertibleModel, ids: Tensor, rule: str, seed: int, shares: Sequence[float]
) -> Iterator[MeasuredNumber]:
    """Yield for each row of the table a number for each share of the way."""
    blocks = list(metamer_batches(subject, ids, rule, seed))
    told = {share: [_row_values(subject, block, share) for block in blocks] for share in shares}
    for row in told[shares[0]][0]:
        for share, found in told.items():
            held = torch.cat([each[row] for each in found]).cpu().numpy()
            yield MeasuredNumber.of(f"{row}, at {percent(share)}", subject.column, held)


def _row_values(subject: InvertibleModel, mixture: MetamerBatch, share: float) -> dict[str, Tensor]:
    """Return whether the decision stays, and who is seen, (n,) each."""
    images = quantise_images(mixture.decode(subject.network, share), subject.network.bounds)
    kept = subject.network(images).logits.argmax(1) == mixture.semantic.argmax(1)
    seen = compare_oracle_labels(subject, mixture, images)
    return {
        "Decision kept, rounded": kept,
        **{f"Panel sees {whose}": seen[whose] for whose in (SOURCE, DONOR)},
    }


@torch.no_grad()
def _interpolation_images(
    subject: InvertibleModel, mixture: MetamerBatch, shares: Sequence[float]
) -> Pixels:
    """Return (rows, n, c, h, w): the images on the way, and the donors below them."""
    rows = [mixture.decode(subject.network, share) for share in shares]
    bounds = subject.network.bounds
    return np.stack([to_pixels(row.cpu().numpy(), bounds) for row in (*rows, mixture.donors)])


def _interpolation_grid(
    columns: dict[str, tuple[MetamerBatch, Pixels]], shares: Sequence[float]
) -> ImageGrid:
    decided = [str(k) for m, _ in columns.values() for k in m.semantic.argmax(1).tolist()]
    donors = [str(k) for m, _ in columns.values() for k in m.donor_labels.tolist()]
    nothing = ((),) * len(shares)
    return ImageGrid(
        name="interpolations",
        title="From each image to its metamer",
        caption="Each column has the same logits from top to bottom; the nuisances go in equal steps from those of the "
        "image on top to those of the donor in the last row. Above: the decision, the same for the whole column. "
        "Beneath: the donor's class. All models are shown the same images and donors. Drawn is what a screen can show: "
        "clipped and rounded.",
        rows=(*map(percent, shares), "nuisances of"),
        groups=tuple((column, images.shape[1]) for column, (_, images) in columns.items()),
        images=np.concatenate([images for _, images in columns.values()], 1),
        heads=tuple(decided),
        words=(*nothing, tuple(donors)),
    )


def percent(share: float) -> str:
    """Return a share of the way in per cent.

    Example:
        >>> percent(0.125)
        '12.5 %'
    """
    return f"{100 * share:g} %"
