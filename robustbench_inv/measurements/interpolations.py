"""Images between a sample and its metamer, logits held fast: Figure 6 of Excessive invariance."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from robustbench_inv.measurements.metamers import (
    DONOR,
    SOURCE,
    Mixture,
    Subject,
    few_of,
    mixtures,
    rounded,
    subjects_of,
    told_by,
)
from robustbench_inv.measurements.protocol import Asked
from robustbench_inv.results.measurement import Grid, Measured, Number
from robustbench_inv.results.seen import Seen, look

__all__ = ["measure_interpolations", "percent"]


def measure_interpolations(
    asked: Asked,
    oracle: str = "mnist-panel",
    shown: int = 10,
    steps: int = 9,
    rule: str = "other-class",
) -> Measured:
    """Return a grid of interpolations, a group of columns for each model, and what a panel sees on the way.

    Args:
        asked: models whose code is split, and the held-out data.
        oracle: a panel of the catalogue.
        shown: columns of each model, the same samples and donors for all.
        steps: images from the sample itself to its metamer, at least 2; the panel is asked about every other.
        rule: by which donors are chosen.

    References:
        Jacobsen et al., Excessive invariance, ICLR 2019, section 4 and figure 6.
    """
    dataset = asked.open_dataset()
    ids, numbers, columns, digests = asked.draw(dataset), list[Number](), {}, {}
    shares: list[float] = torch.linspace(0, 1, steps).tolist()
    for subject in subjects_of(asked, dataset, oracle):
        asked.report(f"interpolations of {subject.model.name}: {len(ids):,} samples")
        numbers += _numbers(subject, ids, rule, asked.seed, shares[::2])
        (mixture,) = mixtures(subject, few_of(dataset, ids, shown), rule, asked.seed)
        columns[subject.column] = (mixture, _images(subject, mixture, shares))
        digests[subject.model.name] = subject.model.digest
    grid = _grid(columns, shares)
    return Measured(dataset.name, len(ids), digests, tuple(numbers), (grid,))


@torch.no_grad()
def _numbers(
    subject: Subject, ids: Tensor, rule: str, seed: int, shares: Sequence[float]
) -> Iterator[Number]:
    """Yield for each row of the table a number for each share of the way."""
    blocks = list(mixtures(subject, ids, rule, seed))
    told = {share: [_told(subject, block, share) for block in blocks] for share in shares}
    for row in told[shares[0]][0]:
        for share, found in told.items():
            held = torch.cat([each[row] for each in found]).cpu().numpy()
            yield Number.of(f"{row}, at {percent(share)}", subject.column, held)


def _told(subject: Subject, mixture: Mixture, share: float) -> dict[str, Tensor]:
    """Return whether the decision stays, and who is seen, (n,) each."""
    images = rounded(mixture.decode(subject.network, share), subject.network.bounds)
    kept = subject.network(images).logits.argmax(1) == mixture.semantic.argmax(1)
    seen = told_by(subject, mixture, images)
    return {
        "Decision kept, rounded": kept,
        **{f"Panel sees {whose}": seen[whose] for whose in (SOURCE, DONOR)},
    }


@torch.no_grad()
def _images(subject: Subject, mixture: Mixture, shares: Sequence[float]) -> Seen:
    """Return (rows, n, c, h, w): the images on the way, and the donors below them."""
    rows = [mixture.decode(subject.network, share) for share in shares]
    bounds = subject.network.bounds
    return np.stack([look(row.cpu().numpy(), bounds) for row in (*rows, mixture.donors)])


def _grid(columns: dict[str, tuple[Mixture, Seen]], shares: Sequence[float]) -> Grid:
    decided = [str(k) for m, _ in columns.values() for k in m.semantic.argmax(1).tolist()]
    donors = [str(k) for m, _ in columns.values() for k in m.donor_labels.tolist()]
    nothing = ((),) * len(shares)
    return Grid(
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
