"""Logits of one image's adversarial examples by several attacks: Tables 4, 6 and 9 of Supervised Deep InfoMax."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from robustbench_inv.catalogue.cards import SuiteEntry
from robustbench_inv.catalogue.models import LoadedModel
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import InvbenchError
from robustbench_inv.evaluation.engine import RunOptions
from robustbench_inv.evaluation.jobs import EvaluationRequest, Job, build_jobs
from robustbench_inv.evaluation.plan import plan_jobs
from robustbench_inv.evaluation.schedule import run_cell
from robustbench_inv.experiments.protocol import ExperimentRequest
from robustbench_inv.models.protocol import classify, device_of
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.results.cell_parts import ThresholdInfo
from robustbench_inv.results.experiment_result import (
    ExperimentResult,
    ImageGrid,
    LogitRow,
    LogitSheet,
)
from robustbench_inv.results.pixels import to_pixels
from robustbench_inv.results.record import Record
from robustbench_inv.results.run_files import CellFolder
from robustbench_inv.tensors import Output

__all__ = ["measure_logits", "measure_targeted_logits"]


AttackSpecs = Mapping[str, Sequence[str]]
"""Attack and threat by name, as on the command line."""

PublishedLogits = Mapping[str, Sequence[float]]
"""Published logits by row."""

DETECTOR_AWARE = "detector-aware"
"""Suffix of the names of detector-aware attacks."""

MISSING = "–"
"""Printed instead of a logit if the attack failed."""


@dataclass(frozen=True)
class AttackedImage:
    """The clean sample or one adversarial example of it, with the model's output.

    Args:
        name: name of the row.
        image: (c, h, w).
        output: the model's output.
        label: true class of the sample.
        record: record of the attack; None for the clean sample.
    """

    name: str
    image: Tensor
    output: Output
    label: int
    record: Record | None = None

    @property
    def reached(self) -> bool:
        """Whether the attack succeeded; true for the clean sample."""
        return self.record is None or self.record.goal_reached

    @property
    def logits(self) -> tuple[float, ...]:
        """The model's logits, (C,)."""
        return tuple(self.output.logits[0].double().tolist())

    @property
    def accepted(self) -> bool:
        """Whether the model accepts the image."""
        return self.output.accepted is None or bool(self.output.accepted[0])

    @property
    def words(self) -> str:
        """Predicted class, a cross if the image is rejected, and the l2 distance."""
        if not self.reached:
            return MISSING
        rejected = "" if self.accepted else " ✕"
        distance = f", {self.record.distance.l2:.2f}" if self.record else ""
        return f"{int(self.output.decision)}{rejected}{distance}"

    @property
    def sheet_line(self) -> LogitRow:
        """Row of the table of logits."""
        if not self.reached:
            return LogitRow(f"{self.name}: not reached", (nan,) * len(self.logits))
        wrong = int(self.output.decision) != self.label
        return LogitRow(self.name, self.logits, self.accepted, wrong)


@dataclass(frozen=True)
class AttackedSample:
    """A model and the sample that is attacked."""

    model: LoadedModel
    dataset: Dataset
    sample: int
    seed: int

    @property
    def label(self) -> int:
        """The true class."""
        return int(self.dataset.labels[self.sample])

    @property
    def thresholds(self) -> tuple[float, ...]:
        """(C,) rejection thresholds of the model; nan if it has none."""
        about = self.model.card.get("rejection")
        values = ThresholdInfo.from_json(about).values if about else ()
        return values or (nan,) * self.model.classifier.num_classes

    def clean_row(self) -> AttackedImage:
        """Return the clean sample."""
        images, _ = self.dataset.batch(torch.tensor([self.sample]))
        return AttackedImage("original", images[0], self._output(images), self.label)

    def attack(self, name: str, attack: str, threat: str) -> AttackedImage:
        """Attack the sample with the evaluation engine, in a cell of its own."""
        run = SuiteEntry(attack, threat)
        (job,) = build_jobs(
            EvaluationRequest([self.model], runs=[run], dataset=self.dataset, seed=self.seed)
        )
        (job,) = plan_jobs([replace(job, samples=(self.sample,))]).jobs
        record, image = _attack_sample(job, device_of(self.model.classifier))
        return AttackedImage(name, image, self._output(image[None]), self.label, record)

    def _output(self, images: Tensor) -> Output:
        classifier = self.model.classifier
        shown = images.to(device_of(classifier), classifier.dtype)
        return classify(classifier, shown, SampleRNG(self.seed, torch.tensor([self.sample])))


def measure_logits(
    request: ExperimentRequest,
    attacks: AttackSpecs,
    detector_aware: AttackSpecs,
    label: int = 0,
    published: PublishedLogits | None = None,
) -> ExperimentResult:
    """Attack one image, and return a grid of its adversarial examples and all their logits.

    Args:
        request: models, and the data whose first sample of a class is attacked.
        attacks: oblivious attacks by name.
        detector_aware: detector-aware attacks by name.
        label: class of the sample.
        published: the published logits.

    References:
        Supervised Deep Infomax, ICLR 2020 submission, tables 4 and 9.
    """

    def show(subject: AttackedSample) -> tuple[ImageGrid, LogitSheet]:
        found = [subject.clean_row()]
        named = [
            *attacks.items(),
            *((f"{name}, {DETECTOR_AWARE}", run) for name, run in detector_aware.items()),
        ]
        for name, (attack, threat) in named:
            request.report(f"{name} on {subject.model.name}")
            found.append(subject.attack(name, attack, threat))
        return _attack_grid(subject, found, len(detector_aware)), _logit_sheet(subject, found)

    return _run_on_models(request, label, published, show)


def measure_targeted_logits(
    request: ExperimentRequest,
    attacks: AttackSpecs,
    label: int = 0,
    published: PublishedLogits | None = None,
) -> ExperimentResult:
    """Attack one image towards every other class, and return a grid of adversarial examples and all their logits.

    Args:
        request: models, and the data whose first sample of a class is attacked.
        attacks: attacks by name; ``{target}`` in a threat is replaced by each of the other classes.
        label: class of the sample.
        published: the published logits.

    References:
        Supervised Deep Infomax, ICLR 2020 submission, table 6.
    """

    def show(subject: AttackedSample) -> tuple[ImageGrid, LogitSheet]:
        targets = [k for k in range(subject.dataset.num_classes) if k != label]
        rows = []
        for name, (attack, threat) in attacks.items():
            request.report(f"{name} on {subject.model.name}: {len(targets)} targets")
            aims = [(f"{name} → {k}", attack, threat.replace("{target}", str(k))) for k in targets]
            rows.append([subject.attack(*aim) for aim in aims])
        sheet = _logit_sheet(
            subject, [subject.clean_row(), *(each for row in rows for each in row)]
        )
        return _targeted_grid(subject, list(attacks), rows, targets), sheet

    return _run_on_models(request, label, published, show)


def _run_on_models(
    request: ExperimentRequest,
    label: int,
    published: PublishedLogits | None,
    show: Callable[[AttackedSample], tuple[ImageGrid, LogitSheet]],
) -> ExperimentResult:
    """Return grids and logits of every model; only the published logits if a model cannot be loaded."""
    printed = [_published_sheet(published)] if published else []
    try:
        models = request.open_models()
    except InvbenchError as error:
        if not published:
            raise
        request.report(f"not reproduced: {error}")
        return ExperimentResult(request.dataset, 0, {}, logit_sheets=tuple(printed))
    dataset = request.open_dataset()
    sample = int((dataset.labels == label).nonzero()[0])
    subjects = [AttackedSample(model, dataset, sample, request.seed) for model in models.values()]
    found = [show(subject) for subject in subjects]
    return ExperimentResult(
        dataset.name,
        1,
        {model.name: model.digest for model in models.values()},
        image_grids=tuple(grid for grid, _ in found),
        logit_sheets=(*(sheet for _, sheet in found), *printed),
    )


def _attack_sample(job: Job, device: torch.device) -> tuple[Record, Tensor]:
    """Run a cell of one sample, and return its record and the final image (c, h, w)."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / job.spec.digest
        run_cell(job, path, RunOptions(device=str(device), keep_images=True))
        cell = CellFolder(path)
        images, (record,) = cell.images(), cell.records()
    assert images is not None
    return record, torch.from_numpy(images["adversarial"][0])


def _attack_grid(
    subject: AttackedSample, shown: Sequence[AttackedImage], detector_aware: int
) -> ImageGrid:
    """Return one row of images, the last of which are by detector-aware attacks."""
    groups = (
        (subject.model.name, len(shown) - detector_aware),
        (DETECTOR_AWARE, detector_aware),
    )
    return ImageGrid(
        name=f"adversarial-{subject.model.name}",
        title="Adversarial examples",
        caption="Below each image: the predicted class, ✕ if it is rejected, and the l2 distance from the original.",
        rows=("",),
        groups=tuple((title, count) for title, count in groups if count),
        images=_to_uint8(subject, [shown]),
        heads=tuple(each.name.removesuffix(f", {DETECTOR_AWARE}") for each in shown),
        words=(tuple(each.words for each in shown),),
    )


def _targeted_grid(
    subject: AttackedSample,
    rows: Sequence[str],
    shown: Sequence[Sequence[AttackedImage]],
    targets: Sequence[int],
) -> ImageGrid:
    logits = (
        tuple(
            f"{each.logits[k]:.1f}".replace("-", "−") if each.reached else MISSING
            for k, each in zip(targets, row, strict=True)
        )
        for row in shown
    )
    return ImageGrid(
        name=f"targets-{subject.model.name}",
        title="Targeted adversarial examples",
        caption=f"Above: the target class and its threshold. Below: the logit of that class; {MISSING} if the attack failed.",
        rows=tuple(rows),
        groups=((subject.model.name, len(targets)),),
        images=_to_uint8(subject, shown),
        heads=tuple(f"{k}: {subject.thresholds[k]:.0f}".replace("-", "−") for k in targets),
        words=tuple(logits),
    )


def _to_uint8(
    subject: AttackedSample, shown: Sequence[Sequence[AttackedImage]]
) -> np.typing.NDArray[np.uint8]:
    """Return the images (rows, columns, c, h, w) as uint8."""
    bounds = subject.model.classifier.bounds
    rows = [[to_pixels(each.image.cpu().numpy(), bounds) for each in row] for row in shown]
    return np.stack([np.stack(row) for row in rows])


def _logit_sheet(subject: AttackedSample, shown: Sequence[AttackedImage]) -> LogitSheet:
    return LogitSheet(
        name=f"logits-{subject.model.name}",
        title=f"Logits: {subject.model.name}",
        caption=f"First row: the threshold of each class. Then the logits of the first image of class {subject.label} "
        f"({subject.dataset.name}, sample {subject.sample}) and of its adversarial examples. The largest logit is the "
        "predicted class: green, correct and accepted; yellow, rejected; red, incorrect and accepted.",
        heads=tuple(map(str, range(len(subject.thresholds)))),
        lines=(LogitRow("threshold", subject.thresholds), *(each.sheet_line for each in shown)),
    )


def _published_sheet(published: PublishedLogits) -> LogitSheet:
    lines = tuple(LogitRow(name, tuple(map(float, values))) for name, values in published.items())
    heads = tuple(map(str, range(len(lines[0].values))))
    caption = "Logits of the paper's own network."
    return LogitSheet("logits-paper", "Logits in the paper", caption, heads, lines)
