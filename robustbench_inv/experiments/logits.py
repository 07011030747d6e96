"""Logits of the adversarial examples that many attacks find for one image: Tables 4, 6 and 9 of Supervised Deep InfoMax."""

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
from robustbench_inv.evaluation.engine import RunOptions, run_cell
from robustbench_inv.evaluation.jobs import EvaluationRequest, Job, build_jobs
from robustbench_inv.evaluation.plan import plan_jobs
from robustbench_inv.experiments.protocol import ExperimentRequest
from robustbench_inv.models.protocol import classify, device_of
from robustbench_inv.randomness import SampleRNG
from robustbench_inv.results.experiment_result import (
    ExperimentResult,
    ImageGrid,
    LogitRow,
    LogitSheet,
)
from robustbench_inv.results.pixels import to_pixels
from robustbench_inv.results.rates import thresholds_in_card
from robustbench_inv.results.record import Record
from robustbench_inv.results.run_files import CellFolder
from robustbench_inv.tensors import Output

__all__ = ["measure_logits", "measure_targeted_logits"]


AttackSpecs = Mapping[str, Sequence[str]]
"""Name → an attack and its threat, as the command line takes them."""

PublishedLogits = Mapping[str, Sequence[float]]
"""Name of a row → the logits that the paper prints."""

DETECTOR_AWARE = "aware"
"""Behind the name of an attack that knows of the rejection."""

MISSING = "–"
"""In place of a logit, where an attack failed."""


@dataclass(frozen=True)
class AttackedImage:
    """What is shown of the sample, and what is made of it.

    Args:
        name: of the row.
        image: (c, h, w).
        output: the model's answer.
        label: true class of the sample.
        record: of the attack; None for the sample itself.
    """

    name: str
    image: Tensor
    output: Output
    label: int
    record: Record | None = None

    @property
    def reached(self) -> bool:
        """Is there something to be shown?"""
        return self.record is None or self.record.goal_reached

    @property
    def logits(self) -> tuple[float, ...]:
        """The model's logits, (C,)."""
        return tuple(self.output.logits[0].double().tolist())

    @property
    def accepted(self) -> bool:
        """Does the model accept it?"""
        return self.output.accepted is None or bool(self.output.accepted[0])

    @property
    def words(self) -> str:
        """What is made of it: the decision, a cross if it is rejected, and the distance."""
        if not self.reached:
            return MISSING
        refused = "" if self.accepted else " ✕"
        far = f", {self.record.distance.l2:.2f}" if self.record else ""
        return f"{int(self.output.decision)}{refused}{far}"

    @property
    def sheet_line(self) -> LogitRow:
        """Its row in the sheet."""
        if not self.reached:
            return LogitRow(f"{self.name}: not reached", (nan,) * len(self.logits))
        wrong = int(self.output.decision) != self.label
        return LogitRow(self.name, self.logits, self.accepted, wrong)


@dataclass(frozen=True)
class AttackedSample:
    """A model, and the sample that it is shown."""

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
        """(C,) of the model; nan where it has none."""
        values = thresholds_in_card({"card": self.model.card}).get("values")
        return tuple(values) if values else (nan,) * self.model.classifier.num_classes

    def clean_row(self) -> AttackedImage:
        """Return the sample itself."""
        images, _ = self.dataset.batch(torch.tensor([self.sample]))
        return AttackedImage("original", images[0], self._output(images), self.label)

    def attack(self, name: str, attack: str, threat: str) -> AttackedImage:
        """Attack the sample as the engine does, by a plan of one cell."""
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
    """Return a grid of what attacks show of one image, and all its logits.

    Args:
        request: models, and the data of which the first sample of a class is attacked.
        attacks: by name.
        detector_aware: those that know of the rejection.
        label: the class.
        published: what is printed there.

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
    """Return a grid of what attacks show of one image towards each of the other classes, and all its logits.

    Args:
        request: models, and the data of which the first sample of a class is attacked.
        attacks: by name; ``{target}`` in a threat stands for each of the other classes.
        label: the class.
        published: what is printed there.

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
    """Return what is shown of every model; of models that have no weights here, what the paper prints alone."""
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
    """Return the record of a cell of one sample, and the image (c, h, w) that is shown of it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / job.spec.digest
        run_cell(job, path, RunOptions(device=str(device), keep_images=True))
        cell = CellFolder(path)
        images, (record,) = cell.adversarial(), cell.records()
    assert images is not None
    return record, torch.from_numpy(images["adversarial"][0])


def _attack_grid(
    subject: AttackedSample, shown: Sequence[AttackedImage], detector_aware: int
) -> ImageGrid:
    """Return one row of images, the last of which know of the rejection."""
    groups = (
        (subject.model.name, len(shown) - detector_aware),
        ("knowing of the rejection", detector_aware),
    )
    return ImageGrid(
        name=f"shown-{subject.model.name}",
        title="What the attacks show",
        caption="Beneath: the decision, ✕ if it is rejected, and the l2 distance from the original.",
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
        title="Towards each of the other classes",
        caption=f"Above: the class aimed at and its threshold. Beneath: the logit of that class; {MISSING} where it was not reached.",
        rows=tuple(rows),
        groups=((subject.model.name, len(targets)),),
        images=_to_uint8(subject, shown),
        heads=tuple(f"{k}: {subject.thresholds[k]:.0f}".replace("-", "−") for k in targets),
        words=tuple(logits),
    )


def _to_uint8(
    subject: AttackedSample, shown: Sequence[Sequence[AttackedImage]]
) -> np.typing.NDArray[np.uint8]:
    """Return (rows, columns, c, h, w) as a person sees them."""
    bounds = subject.model.classifier.bounds
    rows = [[to_pixels(each.image.cpu().numpy(), bounds) for each in row] for row in shown]
    return np.stack([np.stack(row) for row in rows])


def _logit_sheet(subject: AttackedSample, shown: Sequence[AttackedImage]) -> LogitSheet:
    return LogitSheet(
        name=f"logits-{subject.model.name}",
        title=f"Logits: {subject.model.name}",
        caption=f"First row: the threshold of each class. Then the logits of the first image of class {subject.label} "
        f"({subject.dataset.name}, sample {subject.sample}) and of what each attack shows of it. The largest is the "
        "answer: green, right and accepted; yellow, rejected; red, wrong and accepted.",
        heads=tuple(map(str, range(len(subject.thresholds)))),
        lines=(LogitRow("threshold", subject.thresholds), *(each.sheet_line for each in shown)),
    )


def _published_sheet(published: PublishedLogits) -> LogitSheet:
    lines = tuple(LogitRow(name, tuple(map(float, values))) for name, values in published.items())
    heads = tuple(map(str, range(len(lines[0].values))))
    caption = "What the paper prints, of its own network."
    return LogitSheet("logits-paper", "Logits in the paper", caption, heads, lines)
