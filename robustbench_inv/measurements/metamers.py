"""Metamers and what a panel sees in them: Figure 4 of Excessive invariance, and the shares it cannot show."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustbench_inv.attacks.invariance.donors import choose_donors, pool_of
from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.catalogue.load import LoadedModel, load_model
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.data.sampling import select_samples
from robustbench_inv.errors import BadModel
from robustbench_inv.evaluation.loading import Loader
from robustbench_inv.evaluation.oracles import Attacked, Oracle, load_oracle
from robustbench_inv.measurements.photographs import draw_photographs
from robustbench_inv.measurements.protocol import Asked
from robustbench_inv.models.module import CodeClassifier
from robustbench_inv.randomness import Noise
from robustbench_inv.results.measurement import Grid, Measured, Number
from robustbench_inv.results.seen import look
from robustbench_inv.threat.goals import UNKNOWN

__all__ = [
    "DONOR",
    "SOURCE",
    "Mixture",
    "Subject",
    "few_of",
    "measure_metamers",
    "mixtures",
    "rounded",
    "subjects_of",
    "told_by",
]

BLOCK = 250
"""Samples that are coded at a time."""

EXACT = 1e-3
"""How near the logits of a metamer must be to the source's."""

STAGES = ("decoded", "clipped", "rounded")
"""As the inverse gives it; cut off at the bounds; rounded to 256 grey levels, as it can be stored."""

_EXACTLY = "Logits equal to 1e-3, decoded"

DONOR, SOURCE = "the donor's class", "the source's class"


@dataclass(frozen=True)
class Subject:
    """A model whose code is split, with the data and who judges its metamers."""

    column: str
    model: LoadedModel
    network: CodeClassifier
    loader: Loader
    oracle: Oracle


@dataclass(frozen=True)
class Mixture:
    """Sources, donors and their codes, of a block of samples.

    Args:
        batch: the sources.
        donors: (n, …) images.
        donor_labels: (n,) their classes.
        semantic: (n, C) of the sources: their logits.
        nuisance: (n, d − C) of the sources.
        foreign: (n, d − C) of the donors.
    """

    batch: Batch
    donors: Tensor
    donor_labels: Tensor
    semantic: Tensor
    nuisance: Tensor
    foreign: Tensor

    def decode(self, network: CodeClassifier, share: float = 1.0) -> Tensor:
        """Return F⁻¹(z_s, (1 − share) z_n + share z_n of the donor), (n, …)."""
        mixed = torch.lerp(self.nuisance, self.foreign, share)
        return network.decode(network.join(self.semantic, mixed))


def measure_metamers(
    asked: Asked,
    oracle: str = "mnist-panel",
    shown: int = 10,
    photographs: int = 20,
    rule: str = "other-class",
) -> Measured:
    """Return grids of sources, metamers and donors, and for all samples what becomes of decisions and content.

    Args:
        asked: models whose code is split, and the held-out data.
        oracle: a panel of the catalogue.
        shown: columns of each grid.
        photographs: of ImageNet, on an untrained network; 0 for none.
        rule: by which donors are chosen.

    References:
        Jacobsen et al., Excessive invariance, ICLR 2019, section 2.2 and figure 4.
    """
    dataset = asked.open_dataset()
    ids, grids, numbers, digests = asked.draw(dataset), list[Grid](), list[Number](), {}
    few = few_of(dataset, ids, shown)
    for subject in subjects_of(asked, dataset, oracle):
        asked.report(f"metamers of {subject.model.name}: {len(ids):,}")
        numbers += _numbers(subject, ids, rule, asked.seed)
        grids.append(_grid(subject, few, rule, asked.seed))
        digests[subject.model.name] = subject.model.digest
    if photographs:
        asked.report(f"metamers of {photographs} photographs, on an untrained network")
        grids += draw_photographs(photographs, asked.seed)
    return Measured(dataset.name, len(ids), digests, tuple(numbers), tuple(grids))


def subjects_of(asked: Asked, dataset: Dataset, oracle: str) -> Iterator[Subject]:
    """Yield every model, ready to be looked into.

    Raises:
        BadModel: for one whose code has no two parts.
        CapabilityMismatch: if too few members of the panel may judge it.
    """

    def load(name: str) -> LoadedModel:
        return load_model(name, device=asked.device)

    for column, model in asked.open_models().items():
        network = model.classifier
        if not isinstance(network, CodeClassifier):
            expected = "encode, decode, split and join, such as a fiRevNet"
            raise BadModel(f"{model.name} has no metamers", got=type(network), expected=expected)
        panel = load_oracle(oracle, dataset, [Attacked.of(model)], load)
        loader = Loader(dataset, torch.device(asked.device), network.dtype)
        yield Subject(column, model, network, loader, panel)


def few_of(dataset: Dataset, ids: Tensor, count: int) -> Tensor:
    """Return a balanced draw of some samples (count,), or all where there are no more."""
    chosen = select_samples(dataset.labels[ids], min(count, len(ids)))
    return ids[torch.tensor(chosen)]


@torch.no_grad()
def mixtures(subject: Subject, ids: Tensor, rule: str, seed: int) -> Iterator[Mixture]:
    """Yield the samples block by block with donors, which are drawn for each sample alone."""
    network = subject.network
    for block in ids.split(BLOCK):  # type: ignore[no-untyped-call]
        batch = subject.loader.batch(block.tolist())
        pool = pool_of(batch)
        which, _ = choose_donors(batch, rule, Noise(seed, batch.ids, "metamers"))
        semantic, nuisance = network.split(network.encode(batch.images))
        foreign = network.split(network.encode(pool.images[which]))[1]
        yield Mixture(batch, pool.images[which], pool.labels[which], semantic, nuisance, foreign)


def told_by(subject: Subject, mixture: Mixture, images: Tensor) -> dict[str, Tensor]:
    """Return what the oracle sees in each image (n,): the source's class, the donor's, another, or none it knows."""
    seen = subject.oracle.judge(images, mixture.batch.ids)
    source, donor = seen == mixture.batch.labels, seen == mixture.donor_labels
    unknown = seen == UNKNOWN
    other = ~(source | donor | unknown)
    return {DONOR: donor, SOURCE: source, "another class": other, "no class": unknown}


def rounded(images: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Return images as they can be stored: cut off at the bounds, in 256 grey levels."""
    low, high = bounds
    seen = torch.from_numpy(look(images.cpu().numpy(), bounds)).to(images)
    return seen * ((high - low) / 255) + low


@torch.no_grad()
def _numbers(subject: Subject, ids: Tensor, rule: str, seed: int) -> Iterator[Number]:
    error, columns = 0.0, dict[str, list[Tensor]]()
    for mixture in mixtures(subject, ids, rule, seed):
        raw = mixture.decode(subject.network)
        far = (subject.network(raw).logits - mixture.semantic).abs().amax(1)
        error = max(error, far.max().item())
        for row, held in {_EXACTLY: far <= EXACT, **_told(subject, mixture, raw)}.items():
            columns.setdefault(row, []).append(held.cpu())
    yield Number("Largest error of a logit, decoded", subject.column, error)
    for row, values in columns.items():
        yield Number.of(row, subject.column, torch.cat(values).numpy())


def _told(subject: Subject, mixture: Mixture, raw: Tensor) -> dict[str, Tensor]:
    """Return for each row of the table whether it holds of a metamer (n,), stage by stage."""
    network, found = subject.network, dict[str, Tensor]()
    stages = (raw, raw.clamp(*network.bounds), rounded(raw, network.bounds))
    for stage, images in zip(STAGES, stages, strict=True):
        kept = network(images).logits.argmax(1) == mixture.semantic.argmax(1)
        found[f"Decision kept, {stage}"] = kept
        for whose, seen in told_by(subject, mixture, images).items():
            found[f"Panel sees {whose}, {stage}"] = seen
    return found


@torch.no_grad()
def _grid(subject: Subject, few: Tensor, rule: str, seed: int) -> Grid:
    (mixture,) = mixtures(subject, few, rule, seed)
    metamers = mixture.decode(subject.network)
    rows = (mixture.batch.images, metamers, mixture.donors)
    images = np.stack([look(row.cpu().numpy(), subject.network.bounds) for row in rows])
    seen = subject.oracle.judge(rounded(metamers, subject.network.bounds), few)
    decided = subject.network(metamers).logits.argmax(1)
    return Grid(
        name=f"metamers-{subject.column}",
        title=f"Metamers of {subject.column}",
        caption="Above the source, whose logits the metamer in the middle has; below the donor of its nuisances. "
        "Beneath a metamer: the network's decision on it as decoded, and what the panel sees (? for no class) in it as drawn, "
        "clipped and rounded. How many decisions survive that stands in the table.",
        rows=("logits of", "metamer", "nuisances of"),
        groups=((subject.model.name, len(few)),),
        images=images,
        words=((), tuple(map(_words, decided.tolist(), seen.tolist())), ()),
    )


def _words(decision: int, seen: int) -> str:
    return f"{decision}, seen {'?' if seen == UNKNOWN else seen}"
