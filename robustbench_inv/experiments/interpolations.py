"""Images on the path from a sample to its metamer at constant logits: Figure 6 of Excessive invariance."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
    """Return a grid of interpolations and the panel's labels along the path.

    Args:
        request: models with semantic and nuisance variables, and the held-out data.
        oracle: a panel of the catalogue.
        num_examples: columns per model, with the same samples and donors for all models.
        steps: number of images from the sample to its metamer, at least 2; the panel labels every other one.
        rule: rule for choosing donors.

    References:
        Jacobsen et al., Excessive invariance, ICLR 2019, section 4 and figure 6.
    """
    dataset = request.open_dataset()
    ids, numbers, paths, digests = request.draw(dataset), list[MeasuredNumber](), list[_Path](), {}
    shares: list[float] = torch.linspace(0, 1, steps).tolist()
    for subject in open_invertible_models(request, dataset, oracle):
        request.report(f"interpolations of {subject.model.name}: {len(ids):,} samples")
        numbers += _oracle_numbers(subject, ids, rule, request.seed, shares[::2])
        (mixture,) = metamer_batches(
            subject, balanced_subset(dataset.labels, ids, num_examples), rule, request.seed
        )
        paths.append(_Path.of(subject, mixture, shares))
        digests[subject.model.name] = subject.model.digest
    grid = _interpolation_grid(paths, shares)
    return ExperimentResult(dataset.name, len(ids), digests, tuple(numbers), (grid,))


@torch.no_grad()
def _oracle_numbers(
    subject: InvertibleModel, ids: Tensor, rule: str, seed: int, shares: Sequence[float]
) -> Iterator[MeasuredNumber]:
    """Yield for each row of the table one number per point of the path."""
    blocks = list(metamer_batches(subject, ids, rule, seed))
    values = {share: [_row_values(subject, block, share) for block in blocks] for share in shares}
    for row in values[shares[0]][0]:
        for share, found in values.items():
            mask = torch.cat([each[row] for each in found]).cpu().numpy()
            yield MeasuredNumber.of(f"{row}, at {percent(share)}", subject.column, mask)


def _row_values(subject: InvertibleModel, mixture: MetamerBatch, share: float) -> dict[str, Tensor]:
    """Return the mask (n,) of each row of the table at one point of the path."""
    images = quantise_images(mixture.decode(subject.network, share), subject.network.bounds)
    unchanged = subject.network(images).logits.argmax(1) == mixture.semantic.argmax(1)
    labels = compare_oracle_labels(subject, mixture, images)
    return {
        "Prediction unchanged, rounded": unchanged,
        **{f"Panel label: {label}": labels[label] for label in (SOURCE, DONOR)},
    }


@dataclass(frozen=True)
class _Path:
    """The images of one model, as they are drawn: clipped to the bounds and rounded to 256 grey levels.

    Args:
        column: the model's name in the figure.
        images: (rows, n, c, h, w) along the path, and the donors in the last row.
        predicted: for each point of the path, the predictions for its n images as drawn.
        donor_labels: classes of the donors.
    """

    column: str
    images: Pixels
    predicted: tuple[tuple[int, ...], ...]
    donor_labels: tuple[int, ...]

    @classmethod
    @torch.no_grad()
    def of(
        cls, subject: InvertibleModel, mixture: MetamerBatch, shares: Sequence[float]
    ) -> "_Path":
        """Decode the path of each sample."""
        network, bounds = subject.network, subject.network.bounds
        rows = [mixture.decode(network, share) for share in shares]
        drawn = [network(quantise_images(row, bounds)).logits.argmax(1) for row in rows]
        pixels = [to_pixels(row.cpu().numpy(), bounds) for row in (*rows, mixture.donors)]
        predicted = tuple(tuple(each.tolist()) for each in drawn)
        return cls(
            subject.column, np.stack(pixels), predicted, tuple(mixture.donor_labels.tolist())
        )


def _interpolation_grid(paths: Sequence[_Path], shares: Sequence[float]) -> ImageGrid:
    points = [
        tuple(str(k) for path in paths for k in path.predicted[row]) for row in range(len(shares))
    ]
    donors = tuple(str(k) for path in paths for k in path.donor_labels)
    return ImageGrid(
        name="interpolations",
        title="From each image to its metamer",
        caption="Decoded, all images of a column have the same logits up to rounding; clipped and rounded, as drawn, they need not. Their "
        "nuisance variables go in equal steps from those of the image on top to those of the donor in the last row. Below "
        "each image: the prediction for it as drawn; below the donors: their class. All models use the same images and "
        "donors. The table counts the predictions that clipping and rounding leave unchanged.",
        rows=(*map(percent, shares), "nuisances of"),
        groups=tuple((path.column, path.images.shape[1]) for path in paths),
        images=np.concatenate([path.images for path in paths], 1),
        words=(*points, donors),
    )


def percent(share: float) -> str:
    """Return a fraction of the path in per cent.

    Example:
        >>> percent(0.125)
        '12.5 %'
    """
    return f"{100 * share:g} %"
