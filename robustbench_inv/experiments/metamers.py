"""Metamers and the classes that a panel of oracles assigns to them: Figure 4 of Excessive invariance."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustbench_inv.attacks.invariance.donors import choose_donors, required_pool
from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.catalogue.models import LoadedModel, load_model
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.data.sampling import balanced_subset
from robustbench_inv.errors import BadModel
from robustbench_inv.evaluation.loading import Loader
from robustbench_inv.evaluation.oracles import Oracle, load_oracle
from robustbench_inv.evaluation.panel import AttackedModel
from robustbench_inv.experiments.photographs import draw_photographs
from robustbench_inv.experiments.protocol import ExperimentRequest
from robustbench_inv.models.wrapping import SplitCodeClassifier
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.results.experiment_result import ExperimentResult, ImageGrid, MeasuredNumber
from robustbench_inv.results.pixels import to_pixels
from robustbench_inv.tensors import blocks
from robustbench_inv.threat.goals import UNKNOWN

__all__ = [
    "DONOR",
    "SOURCE",
    "InvertibleModel",
    "MetamerBatch",
    "compare_oracle_labels",
    "measure_metamers",
    "metamer_batches",
    "open_invertible_models",
    "quantise_images",
]


BLOCK = 250
"""Samples that are encoded at a time."""

METAMER_LOGIT_TOLERANCE = 1e-3
"""Largest difference between the logits of a metamer and its source that counts as equal."""

STAGES = ("decoded", "clipped", "rounded")
"""Post-processing of a metamer: none, clipped to the bounds, rounded to 256 grey levels."""

_EQUAL_LOGITS_ROW = "Logits equal to 1e-3, decoded"

DONOR, SOURCE = "donor class", "source class"
"""Labels of an oracle for a metamer, relative to the two images it is made of."""


@dataclass(frozen=True)
class InvertibleModel:
    """A model with semantic and nuisance variables, its data, and the oracle that labels its metamers."""

    column: str
    model: LoadedModel
    network: SplitCodeClassifier
    loader: Loader
    oracle: Oracle


@dataclass(frozen=True)
class MetamerBatch:
    """Sources, donors and their codes for one block of samples.

    Args:
        batch: the sources.
        donors: (n, …) images.
        donor_labels: (n,) classes of the donors.
        semantic: (n, C) z_s of the sources, their logits.
        source_nuisance: (n, d − C) z_n of the sources.
        donor_nuisance: (n, d − C) z_n of the donors.
    """

    batch: Batch
    donors: Tensor
    donor_labels: Tensor
    semantic: Tensor
    source_nuisance: Tensor
    donor_nuisance: Tensor

    def decode(self, network: SplitCodeClassifier, share: float = 1.0) -> Tensor:
        """Return F⁻¹(z_s, (1 − share) z_n + share z_n of the donor), (n, …)."""
        mixed = torch.lerp(self.source_nuisance, self.donor_nuisance, share)
        return network.decode(network.join(self.semantic, mixed))


def measure_metamers(
    request: ExperimentRequest,
    oracle: str = "mnist-panel",
    num_examples: int = 10,
    photographs: int = 20,
    rule: str = "other-class",
) -> ExperimentResult:
    """Return grids of sources, metamers and donors, and the fractions of unchanged predictions and oracle labels.

    Args:
        request: models with semantic and nuisance variables, and the held-out data.
        oracle: a panel of the catalogue.
        num_examples: columns of each grid.
        photographs: number of ImageNet photographs on an untrained network; 0 for none.
        rule: rule for choosing donors.

    References:
        Jacobsen et al., Excessive invariance, ICLR 2019, section 2.2 and figure 4.
    """
    dataset = request.open_dataset()
    ids, image_grids, numbers, digests = (
        request.draw(dataset),
        list[ImageGrid](),
        list[MeasuredNumber](),
        {},
    )
    few = balanced_subset(dataset.labels, ids, num_examples)
    for subject in open_invertible_models(request, dataset, oracle):
        request.report(f"metamers of {subject.model.name}: {len(ids):,}")
        numbers += _metamer_numbers(subject, ids, rule, request.seed)
        image_grids.append(_metamer_grid(subject, few, rule, request.seed))
        digests[subject.model.name] = subject.model.digest
    if photographs:
        request.report(f"metamers of {photographs} photographs, on an untrained network")
        image_grids += draw_photographs(photographs, request.seed)
    return ExperimentResult(dataset.name, len(ids), digests, tuple(numbers), tuple(image_grids))


def open_invertible_models(
    request: ExperimentRequest, dataset: Dataset, oracle: str
) -> Iterator[InvertibleModel]:
    """Yield every model with its oracle and a loader of the data.

    Raises:
        BadModel: for a model that is not invertible, or does not split its code.
        CapabilityMismatch: if too few members of the panel are independent of the model.
    """

    def load(name: str) -> LoadedModel:
        return load_model(name, device=request.device)

    for column, model in request.open_models().items():
        network = model.classifier
        if not isinstance(network, SplitCodeClassifier):
            expected = "encode, decode, split and join, such as a fiRevNet"
            raise BadModel(f"{model.name} has no metamers", got=type(network), expected=expected)
        panel = load_oracle(oracle, dataset, [AttackedModel.of(model)], load)
        loader = Loader(dataset, torch.device(request.device), network.dtype)
        yield InvertibleModel(column, model, network, loader, panel)


@torch.no_grad()
def metamer_batches(
    subject: InvertibleModel, ids: Tensor, rule: str, seed: int
) -> Iterator[MetamerBatch]:
    """Yield the samples block by block with their donors, which depend only on seed and sample."""
    network = subject.network
    for block in blocks(ids, BLOCK):
        batch = subject.loader.batch(block.tolist())
        pool = required_pool(batch)
        which, _ = choose_donors(batch, rule, SampleRNG(seed, batch.ids, "metamers"))
        semantic, source_nuisance = network.split(network.encode(batch.images))
        donor_nuisance = network.split(network.encode(pool.images[which]))[1]
        yield MetamerBatch(
            batch, pool.images[which], pool.labels[which], semantic, source_nuisance, donor_nuisance
        )


def compare_oracle_labels(
    subject: InvertibleModel, mixture: MetamerBatch, images: Tensor
) -> dict[str, Tensor]:
    """Return masks (n,) of the images that the oracle assigns to the donor's, the source's, another or no class."""
    labels = subject.oracle.classify(images, mixture.batch.ids)
    source, donor = labels == mixture.batch.labels, labels == mixture.donor_labels
    unknown = labels == UNKNOWN
    other = ~(source | donor | unknown)
    return {DONOR: donor, SOURCE: source, "other class": other, "no class": unknown}


def quantise_images(images: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Return images clipped to the bounds and rounded to 256 grey levels."""
    low, high = bounds
    levels = torch.from_numpy(to_pixels(images.cpu().numpy(), bounds)).to(images)
    return levels * ((high - low) / 255) + low


@torch.no_grad()
def _metamer_numbers(
    subject: InvertibleModel, ids: Tensor, rule: str, seed: int
) -> Iterator[MeasuredNumber]:
    error, columns = 0.0, dict[str, list[Tensor]]()
    for mixture in metamer_batches(subject, ids, rule, seed):
        raw = mixture.decode(subject.network)
        difference = (subject.network(raw).logits - mixture.semantic).abs().amax(1)
        error = max(error, difference.max().item())
        for row, mask in {
            _EQUAL_LOGITS_ROW: difference <= METAMER_LOGIT_TOLERANCE,
            **_row_values(subject, mixture, raw),
        }.items():
            columns.setdefault(row, []).append(mask.cpu())
    yield MeasuredNumber("Largest error of a logit, decoded", subject.column, error)
    for row, values in columns.items():
        yield MeasuredNumber.of(row, subject.column, torch.cat(values).numpy())


def _row_values(subject: InvertibleModel, mixture: MetamerBatch, raw: Tensor) -> dict[str, Tensor]:
    """Return the mask (n,) of each row of the table, stage by stage."""
    network, found = subject.network, dict[str, Tensor]()
    stages = (raw, raw.clamp(*network.bounds), quantise_images(raw, network.bounds))
    for stage, images in zip(STAGES, stages, strict=True):
        unchanged = network(images).logits.argmax(1) == mixture.semantic.argmax(1)
        found[f"Prediction unchanged, {stage}"] = unchanged
        for label, mask in compare_oracle_labels(subject, mixture, images).items():
            found[f"Panel label: {label}, {stage}"] = mask
    return found


@torch.no_grad()
def _metamer_grid(subject: InvertibleModel, few: Tensor, rule: str, seed: int) -> ImageGrid:
    (mixture,) = metamer_batches(subject, few, rule, seed)
    metamers = mixture.decode(subject.network)
    rows = (mixture.batch.images, metamers, mixture.donors)
    images = np.stack([to_pixels(row.cpu().numpy(), subject.network.bounds) for row in rows])
    labels = subject.oracle.classify(quantise_images(metamers, subject.network.bounds), few)
    predicted = subject.network(metamers).logits.argmax(1)
    return ImageGrid(
        name=f"metamers-{subject.column}",
        title=f"Metamers of {subject.column}",
        caption="Top: the source, whose logits the metamer has up to rounding. Middle: the metamer. Bottom: the donor of its nuisance "
        "variables. Below each metamer: the prediction before clipping, and the panel's label (? for no class) of the "
        "image as drawn, clipped and rounded. The table counts the predictions that clipping and rounding leave unchanged.",
        rows=("logits of", "metamer", "nuisances of"),
        groups=((subject.model.name, len(few)),),
        images=images,
        words=((), tuple(map(_caption, predicted.tolist(), labels.tolist())), ()),
    )


def _caption(predicted: int, label: int) -> str:
    return f"{predicted}, panel {'?' if label == UNKNOWN else label}"
