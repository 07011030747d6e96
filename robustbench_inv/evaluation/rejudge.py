"""Re-scores a run with another oracle, from its kept images and without querying the attacked models."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from robustbench_inv.catalogue.cards import read_model
from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.catalogue.locate import entries
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.catalogue.references import Reference, parse_reference
from robustbench_inv.catalogue.threats import load_goal, load_threat
from robustbench_inv.data.protocol import AdaptsClasses
from robustbench_inv.errors import BadResults
from robustbench_inv.evaluation.compatibility import check_fits
from robustbench_inv.evaluation.jobs import CellSpec
from robustbench_inv.evaluation.judge import smallest_breaking_eps
from robustbench_inv.evaluation.oracles import (
    HumanOracle,
    Oracle,
    describe_oracle,
    is_label_file,
    load_oracle,
    needs_oracle,
)
from robustbench_inv.evaluation.panel import AttackedModel, PanelOracle
from robustbench_inv.results.cell import CellInfo
from robustbench_inv.results.cell_parts import ModelInfo, OracleInfo, ThreatInfo
from robustbench_inv.results.human_labels import read_labels
from robustbench_inv.results.pixels import is_image_shape, pixel_digest, to_pixels
from robustbench_inv.results.record import ModelOutput, Record
from robustbench_inv.results.run_files import CellFolder, RunFolder
from robustbench_inv.results.run_writing import CheckFunction, RewrittenCell, write_run
from robustbench_inv.tensors import Output
from robustbench_inv.threat.goals import UNKNOWN, Goal, GoalInputs
from robustbench_inv.threat.threat_model import digest_threat

__all__ = ["LoadOptions", "RescoredRun", "rejudge"]


@dataclass(frozen=True)
class LoadOptions:
    """Options for loading a panel.

    Args:
        device: options its members compute, as torch names it.
        data_root: folder of data files; None for the default places.
        dataset: the run's data set, if Python code makes it; None for the name in the run.
    """

    device: str = "cpu"
    data_root: Path | None = None
    dataset: str | None = None


@dataclass(frozen=True)
class RescoredRun:
    """A re-scored run.

    Args:
        run: its folder.
        notes: messages for the user, one line each.
    """

    run: RunFolder
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _KeptImages:
    """The stored images of a cell: n samples in ascending order of their ids."""

    cell: CellFolder
    records: tuple[Record, ...]
    ids: Tensor
    clean: Tensor
    images: Tensor

    @property
    def info(self) -> CellInfo:
        return self.cell.info

    @property
    def bounds(self) -> tuple[float, float]:
        return self.info.dataset.bounds

    @property
    def changed(self) -> list[int]:
        """Positions of the samples whose input was changed."""
        return [row for row, record in enumerate(self.records) if record.distance.l0]

    def digests(self) -> dict[int, str]:
        """Return the digest of each sample's image; empty if the inputs are not images."""
        if not is_image_shape(tuple(self.images.shape[1:])):
            return {}
        seen = map(pixel_digest, to_pixels(self.images.numpy(), self.bounds))
        return dict(zip(self.ids.tolist(), seen, strict=True))


def rejudge(
    run: Path,
    oracle: str,
    out: Path,
    check: CheckFunction,
    options: LoadOptions | None = None,
    command: Sequence[str] = (),
) -> RescoredRun:
    """Write a copy of a run whose changed inputs have the classes of another oracle.

    Predictions, distances and images are those of the run, which stays unchanged. Each cell gets the identity of an
    evaluation with this oracle.

    Args:
        run: a run folder whose cells have images (``--keep-images``).
        oracle: ``FILE.csv`` of human labels, or the name of a panel.
        out: the new run folder, which must not exist.
        check: makes the verdicts of the re-scored cells (``checks.suite.check_records``).
        options: options a panel's members compute, and options data files are.
        command: the user's command, for plan.json.

    Raises:
        BadData: for labels that cannot be read, or that do not belong to the run's images.
        BadResults: if no cell has images, or the folder exists or cannot be written.
        CapabilityMismatch: if too few members of a panel are eligible.
    """
    old = RunFolder(run)
    found = [_read_images(cell) for cell in old.cells()]
    stored = [each for each in found if isinstance(each, _KeptImages)]
    notes = [each for each in found if isinstance(each, str)]
    if not stored:
        reason = notes[0] if notes else "there are no records"
        raise BadResults(f"nothing in {run} can be re-scored: {reason}")
    rescored = []
    for each, chosen in zip(
        stored, _oracles(oracle, stored, options or LoadOptions(), notes), strict=True
    ):
        rescored.append(_rescored(each, oracle, chosen))
        notes += [*chosen.notes, *_count_unknown(each, rescored[-1])]
    written = write_run(old, rescored, out, check, command)
    return RescoredRun(written, tuple(dict.fromkeys(notes)))


def _read_images(cell: CellFolder) -> "_KeptImages | str":
    """Return the stored images of a cell, or one line with the reason why it cannot be re-scored."""
    info, kept = cell.info, cell.images()
    title = f"{info.attack.name} on {info.model.name}"
    if kept is None:
        return f"{title} has no images; evaluate with --keep-images"
    if info.threat.goal == "keep-logits":
        return f"{title} has the goal keep-logits, and records hold no logits; evaluate it with the oracle"
    records = {record.sample: record for record in cell.records()}
    rows = [row for row, sample in enumerate(kept["samples"].tolist()) if sample in records]
    if len(rows) < len(records):
        return f"{title} has images of only {len(rows)} of {len(records)} samples"
    ids = torch.from_numpy(kept["samples"])[rows]
    clean, images = (torch.from_numpy(kept[name])[rows] for name in ("clean", "adversarial"))
    return _KeptImages(cell, tuple(records[sample] for sample in ids.tolist()), ids, clean, images)


def _oracles(
    text: str, stored: Sequence[_KeptImages], options: LoadOptions, notes: list[str]
) -> Iterator[Oracle]:
    """Yield the oracle of each cell: human labels are read once, a panel is loaded for each attacked model."""
    if not is_label_file(text):
        yield from (_panel(text, each.info, options) for each in stored)
        return
    labels = read_labels(Path(text))
    labels.check_classes(min(each.info.dataset.num_classes for each in stored))
    elsewhere = labels.check_images({each.cell.digest: each.digests() for each in stored})
    if elsewhere:
        notes.append(
            f"{labels.name}: {elsewhere} of {len(labels.counted)} rows belong to other runs"
        )
    yield from (HumanOracle(labels, each.bounds, each.cell.digest) for each in stored)


def _panel(text: str, info: CellInfo, options: LoadOptions) -> Oracle:
    name, own = options.dataset or info.dataset.name, options.dataset is not None
    dataset = load_dataset(name, data_root=options.data_root, code=own)
    if isinstance(dataset, AdaptsClasses):
        dataset = dataset.with_classes(info.dataset.num_classes)
    if dataset.digest != info.dataset.digest:
        raise BadResults(
            f"{dataset.name} is not the data set of the run",
            got=dataset.digest[:12],
            expected=info.dataset.digest[:12],
        )
    model, substitute = info.model, info.threat.substitute
    card = {**model.card, "implementation": _network(model)}
    attacked = [AttackedModel.of_card(model.name, model.digest, model.weights_digest, card)]
    if substitute:
        attacked.append(AttackedModel(substitute.name, substitute.digest, None, ""))
    load = partial(load_model, dataset=dataset, device=options.device)
    panel = load_oracle(text, dataset, attacked, load)
    if isinstance(panel, PanelOracle):
        for member in panel.members:
            check_fits(member, dataset)
    return panel


def _network(model: ModelInfo) -> str:
    """Return the implementation of an attacked model, from its present card if the catalogue has the model."""
    name, known = parse_reference(model.name).name, entries("models")
    if name in known:
        return read_model(known[name]).implementation
    return str(model.card.get("implementation", ""))


def _rescored(stored: _KeptImages, text: str, oracle: Oracle) -> RewrittenCell:
    info = stored.info
    threat = replace(
        info.threat,
        text=replace(load_threat(info.threat.text), oracle=text).text,
        oracle=OracleInfo.from_json(describe_oracle(text, oracle)),
    )
    identity = {**info.identity, "threat": digest_threat(threat.to_json())}
    spec = CellSpec(**{key: value for key, value in identity.items() if key != "version"})
    rescored = replace(info, identity=identity, threat=threat, rejudged_from=stored.cell.digest)
    records = {r.sample: r for r in _records(stored, oracle)}
    ordered = [records[r.sample] for r in stored.cell.records()]
    ids = stored.ids.tolist()
    return RewrittenCell(stored.cell, spec.digest, rescored, ordered, oracle.error(ids))


def _records(stored: _KeptImages, oracle: Oracle) -> Iterator[Record]:
    """Yield the records in ascending order, with the oracle's classes and the goal rescored by them."""
    classes, goal = oracle.classify(stored.images, stored.ids), _goal(stored.info.threat)
    reached = goal.reached(_evidence(stored, classes))
    threat = stored.info.threat
    breaking_eps = smallest_breaking_eps(stored.clean, stored.images, threat.epsilons, threat.norm)
    for row, record in enumerate(stored.records):
        label = None if classes[row] == UNKNOWN else int(classes[row])
        updated = replace(record, oracle_label=label, oracle_source=oracle.source)
        if not needs_oracle(goal) or not record.was_attacked:
            yield updated
        elif reached[row] and record.within_budget and record.replayed:
            yield replace(
                updated, broken_at=float(breaking_eps[row]), goal_reached=True, status="ok"
            )
        else:
            yield replace(updated, broken_at=None, goal_reached=False)


def _goal(threat: ThreatInfo) -> Goal:
    return load_goal(str(Reference(threat.goal, threat.goal_parameters)))


def _evidence(stored: _KeptImages, classes: Tensor) -> GoalInputs:
    """Return a goal's inputs; records hold predictions, so that each output is the one-hot vector of a class."""
    number = stored.info.dataset.num_classes
    labels = torch.tensor([record.label for record in stored.records])
    before = _output([record.clean for record in stored.records], number)
    after = _output([record.adversarial for record in stored.records], number)
    return GoalInputs(stored.clean, stored.images, labels, before, after, classes)


def _output(outputs: Sequence[ModelOutput], classes: int) -> Output:
    predictions = torch.tensor([max(output.prediction, 0) for output in outputs])
    accepted = torch.tensor([output.accepted is not False for output in outputs])
    return Output(one_hot(predictions, classes).float(), accepted=accepted)


def _count_unknown(stored: _KeptImages, rescored: RewrittenCell) -> list[str]:
    """Return a note with the number of changed images whose class is unknown, if there are any."""
    records = {record.sample: record for record in rescored.records}
    unknown = sum(records[int(stored.ids[row])].oracle_label is None for row in stored.changed)
    if not unknown:
        return []
    title = f"{stored.info.attack.name} on {stored.info.model.name}"
    return [f"{title}: {unknown} of {len(stored.changed)} changed images have an unknown class"]
