"""One image under many attacks, and the logits of all that they show: tables 4, 6 and 9 of Supervised Deep InfoMax."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from robustbench_inv.catalogue.cards import SuiteRun
from robustbench_inv.catalogue.load import LoadedModel
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.errors import InvbenchError
from robustbench_inv.evaluation.engine import Settings, run_cell
from robustbench_inv.evaluation.metering import judge
from robustbench_inv.evaluation.plan import Job, plan_jobs
from robustbench_inv.evaluation.sources import Question, build_jobs
from robustbench_inv.measurements.protocol import Asked
from robustbench_inv.models.protocol import device_of
from robustbench_inv.randomness import Noise
from robustbench_inv.results.measurement import Grid, Line, Measured, Sheet
from robustbench_inv.results.record import Record
from robustbench_inv.results.rejection import thresholds_of
from robustbench_inv.results.seen import look
from robustbench_inv.results.store import CellFolder
from robustbench_inv.tensors import Output

__all__ = ["measure_logits", "measure_targeted_logits"]

Runs = Mapping[str, Sequence[str]]
"""Name → an attack and its threat, as the command line takes them."""

Paper = Mapping[str, Sequence[float]]
"""Name of a row → the logits that the paper prints."""

AWARE = "aware"
"""Behind the name of an attack that knows of the rejection."""

NONE = "–"
"""In place of a logit, where an attack failed."""


@dataclass(frozen=True)
class Exhibit:
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
            return NONE
        refused = "" if self.accepted else " ✕"
        far = f", {self.record.distance.l2:.2f}" if self.record else ""
        return f"{int(self.output.decision)}{refused}{far}"

    @property
    def line(self) -> Line:
        """Its row in the sheet."""
        if not self.reached:
            return Line(f"{self.name}: not reached", (nan,) * len(self.logits))
        wrong = int(self.output.decision) != self.label
        return Line(self.name, self.logits, self.accepted, wrong)


@dataclass(frozen=True)
class Subject:
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
        values = thresholds_of({"card": self.model.card}).get("values")
        return tuple(values) if values else (nan,) * self.model.classifier.num_classes

    def clean(self) -> Exhibit:
        """Return the sample itself."""
        images, _ = self.dataset.batch(torch.tensor([self.sample]))
        return Exhibit("original", images[0], self._answer(images), self.label)

    def attacked(self, name: str, attack: str, threat: str) -> Exhibit:
        """Attack the sample as the engine does, by a plan of one cell."""
        run = SuiteRun(attack, threat)
        (job,) = build_jobs(
            Question([self.model], runs=[run], dataset=self.dataset, seed=self.seed)
        )
        (job,) = plan_jobs([replace(job, samples=(self.sample,))]).jobs
        record, image = _carried_out(job, device_of(self.model.classifier))
        return Exhibit(name, image, self._answer(image[None]), self.label, record)

    def _answer(self, images: Tensor) -> Output:
        classifier = self.model.classifier
        shown = images.to(device_of(classifier), classifier.dtype)
        return judge(classifier, shown, Noise(self.seed, torch.tensor([self.sample])))


def measure_logits(
    asked: Asked, attacks: Runs, aware: Runs, label: int = 0, paper: Paper | None = None
) -> Measured:
    """Return a grid of what attacks show of one image, and all its logits.

    Args:
        asked: models, and the data of which the first sample of a class is attacked.
        attacks: by name.
        aware: those that know of the rejection.
        label: the class.
        paper: what is printed there.

    References:
        Supervised Deep Infomax, ICLR 2020 submission, tables 4 and 9.
    """

    def show(subject: Subject) -> tuple[Grid, Sheet]:
        found = [subject.clean()]
        named = [*attacks.items(), *((f"{name}, {AWARE}", run) for name, run in aware.items())]
        for name, (attack, threat) in named:
            asked.report(f"{name} on {subject.model.name}")
            found.append(subject.attacked(name, attack, threat))
        return _grid(subject, found, len(aware)), _sheet(subject, found)

    return _measured(asked, label, paper, show)


def measure_targeted_logits(
    asked: Asked, attacks: Runs, label: int = 0, paper: Paper | None = None
) -> Measured:
    """Return a grid of what attacks show of one image towards each of the other classes, and all its logits.

    Args:
        asked: models, and the data of which the first sample of a class is attacked.
        attacks: by name; ``{target}`` in a threat stands for each of the other classes.
        label: the class.
        paper: what is printed there.

    References:
        Supervised Deep Infomax, ICLR 2020 submission, table 6.
    """

    def show(subject: Subject) -> tuple[Grid, Sheet]:
        targets = [k for k in range(subject.dataset.num_classes) if k != label]
        rows = []
        for name, (attack, threat) in attacks.items():
            asked.report(f"{name} on {subject.model.name}: {len(targets)} targets")
            aims = [(f"{name} → {k}", attack, threat.replace("{target}", str(k))) for k in targets]
            rows.append([subject.attacked(*aim) for aim in aims])
        sheet = _sheet(subject, [subject.clean(), *(each for row in rows for each in row)])
        return _targeted_grid(subject, list(attacks), rows, targets), sheet

    return _measured(asked, label, paper, show)


def _measured(
    asked: Asked,
    label: int,
    paper: Paper | None,
    show: Callable[[Subject], tuple[Grid, Sheet]],
) -> Measured:
    """Return what is shown of every model; of models that have no weights here, what the paper prints alone."""
    printed = [_printed(paper)] if paper else []
    try:
        models = asked.open_models()
    except InvbenchError as error:
        if not paper:
            raise
        asked.report(f"not reproduced: {error}")
        return Measured(asked.dataset, 0, {}, sheets=tuple(printed))
    dataset = asked.open_dataset()
    sample = int((dataset.labels == label).nonzero()[0])
    subjects = [Subject(model, dataset, sample, asked.seed) for model in models.values()]
    found = [show(subject) for subject in subjects]
    return Measured(
        dataset.name,
        1,
        {model.name: model.digest for model in models.values()},
        grids=tuple(grid for grid, _ in found),
        sheets=(*(sheet for _, sheet in found), *printed),
    )


def _carried_out(job: Job, device: torch.device) -> tuple[Record, Tensor]:
    """Return the record of a cell of one sample, and the image (c, h, w) that is shown of it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / job.spec.digest
        run_cell(job, path, Settings(device=str(device), keep_images=True))
        cell = CellFolder(path)
        images, (record,) = cell.adversarial(), cell.records()
    assert images is not None
    return record, torch.from_numpy(images["adversarial"][0])


def _grid(subject: Subject, shown: Sequence[Exhibit], aware: int) -> Grid:
    """Return one row of images, the last of which know of the rejection."""
    groups = ((subject.model.name, len(shown) - aware), ("knowing of the rejection", aware))
    return Grid(
        name=f"shown-{subject.model.name}",
        title="What the attacks show",
        caption="Beneath: the decision, ✕ if it is rejected, and the l2 distance from the original.",
        rows=("",),
        groups=tuple((title, count) for title, count in groups if count),
        images=_looked(subject, [shown]),
        heads=tuple(each.name.removesuffix(f", {AWARE}") for each in shown),
        words=(tuple(each.words for each in shown),),
    )


def _targeted_grid(
    subject: Subject,
    rows: Sequence[str],
    shown: Sequence[Sequence[Exhibit]],
    targets: Sequence[int],
) -> Grid:
    logits = (
        tuple(
            f"{each.logits[k]:.1f}".replace("-", "−") if each.reached else NONE
            for k, each in zip(targets, row, strict=True)
        )
        for row in shown
    )
    return Grid(
        name=f"targets-{subject.model.name}",
        title="Towards each of the other classes",
        caption=f"Above: the class aimed at and its threshold. Beneath: the logit of that class; {NONE} where it was not reached.",
        rows=tuple(rows),
        groups=((subject.model.name, len(targets)),),
        images=_looked(subject, shown),
        heads=tuple(f"{k}: {subject.thresholds[k]:.0f}".replace("-", "−") for k in targets),
        words=tuple(logits),
    )


def _looked(subject: Subject, shown: Sequence[Sequence[Exhibit]]) -> np.typing.NDArray[np.uint8]:
    """Return (rows, columns, c, h, w) as a person sees them."""
    bounds = subject.model.classifier.bounds
    rows = [[look(each.image.cpu().numpy(), bounds) for each in row] for row in shown]
    return np.stack([np.stack(row) for row in rows])


def _sheet(subject: Subject, shown: Sequence[Exhibit]) -> Sheet:
    return Sheet(
        name=f"logits-{subject.model.name}",
        title=f"Logits: {subject.model.name}",
        caption=f"First row: the threshold of each class. Then the logits of the first image of class {subject.label} "
        f"({subject.dataset.name}, sample {subject.sample}) and of what each attack shows of it. The largest is the "
        "answer: green, right and accepted; yellow, rejected; red, wrong and accepted.",
        heads=tuple(map(str, range(len(subject.thresholds)))),
        lines=(Line("threshold", subject.thresholds), *(each.line for each in shown)),
    )


def _printed(paper: Paper) -> Sheet:
    lines = tuple(Line(name, tuple(map(float, values))) for name, values in paper.items())
    heads = tuple(map(str, range(len(lines[0].values))))
    caption = "What the paper prints, of its own network."
    return Sheet("logits-paper", "Logits in the paper", caption, heads, lines)
