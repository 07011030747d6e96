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
from robustbench_inv.errors import BadResults
from robustbench_inv.evaluation.jobs import CellSpec
from robustbench_inv.evaluation.judge import smallest_breaking_eps
from robustbench_inv.evaluation.oracles import (
    AttackedModel,
    HumanOracle,
    Oracle,
    describe_oracle,
    is_label_file,
    load_oracle,
    needs_oracle,
)
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

__all__ = ["LoadOptions", "RejudgedRun", "rejudge"]


@dataclass(frozen=True)
class LoadOptions:
    """LoadOptions the members of a panel compute, and where data files are."""

    device: str = "cpu"
    data_root: Path | None = None


@dataclass(frozen=True)
class RejudgedRun:
    """A run with another oracle.

    Args:
        run: its folder.
        notes: what the user should know, one line each.
    """

    run: RunFolder
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _KeptImages:
    """What a cell shows: n samples in ascending order of their ids."""

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
        """Positions of the samples that are shown in another form."""
        return [row for row, record in enumerate(self.records) if record.distance.l0]

    def digests(self) -> dict[int, str]:
        """Return what names the image that was seen of each sample; empty for what a person cannot see."""
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
) -> RejudgedRun:
    """Write a run anew, its classes of changed inputs as another oracle names them.

    Model and attack stay as they are: decisions, distances and images are those of the run, which is left as it
    is. A cell gets the identity that an evaluation with this oracle would have given it.

    Args:
        run: a run folder whose cells have images (``--keep-images``).
        oracle: ``FILE.csv`` of human labels, or the name of a panel.
        out: the new run folder; there must be nothing yet.
        check: makes the verdicts of the re-scored cells (``checks.suite.check_records``).
        options: where a panel's members compute, and where data files are.
        command: what the user typed, for plan.json.

    Raises:
        BadData: for labels that cannot be read, or are not about what the run shows.
        BadResults: if there is nothing to judge, or the folder is there already or cannot be written.
        CapabilityMismatch: if too few members of a panel may judge.
    """
    old = RunFolder(run)
    found = [_read_images(cell) for cell in old.cells()]
    shown = [each for each in found if isinstance(each, _KeptImages)]
    notes = [each for each in found if isinstance(each, str)]
    if not shown:
        reason = notes[0] if notes else "there are no records"
        raise BadResults(f"nothing in {run} can be judged: {reason}")
    judged = []
    for each, judge in zip(
        shown, _oracles(oracle, shown, options or LoadOptions(), notes), strict=True
    ):
        judged.append(_rejudged(each, oracle, judge))
        notes += [*judge.notes, *_count_unknown(each, judged[-1])]
    written = write_run(old, judged, out, check, command)
    return RejudgedRun(written, tuple(dict.fromkeys(notes)))


def _read_images(cell: CellFolder) -> "_KeptImages | str":
    """Return what a cell shows, or one line that says why it cannot be judged."""
    info, kept = cell.info, cell.images()
    title = f"{info.attack.name} on {info.model.name}"
    if kept is None:
        return f"{title} has no images; evaluate with --keep-images"
    if info.threat.goal == "keep-logits":
        return (
            f"{title} is to keep the logits, which records do not hold; evaluate it with the oracle"
        )
    records = {record.sample: record for record in cell.records()}
    rows = [row for row, sample in enumerate(kept["samples"].tolist()) if sample in records]
    if len(rows) < len(records):
        return f"{title} has images of {len(rows)} of {len(records)} samples only"
    ids = torch.from_numpy(kept["samples"])[rows]
    clean, images = (torch.from_numpy(kept[name])[rows] for name in ("clean", "adversarial"))
    return _KeptImages(cell, tuple(records[sample] for sample in ids.tolist()), ids, clean, images)


def _oracles(
    text: str, shown: Sequence[_KeptImages], where: LoadOptions, notes: list[str]
) -> Iterator[Oracle]:
    """Yield the oracle of each cell: people's labels are read once, a panel is seated for each model."""
    if not is_label_file(text):
        yield from (_panel(text, each.info, where) for each in shown)
        return
    labels = read_labels(Path(text))
    labels.check_classes(min(each.info.dataset.num_classes for each in shown))
    elsewhere = labels.check_places({each.cell.digest: each.digests() for each in shown})
    if elsewhere:
        notes.append(f"{labels.name}: {elsewhere} of {len(labels.asked)} rows are about other runs")
    yield from (HumanOracle(labels, each.bounds, each.cell.digest) for each in shown)


def _panel(text: str, info: CellInfo, where: LoadOptions) -> Oracle:
    dataset = load_dataset(info.dataset.name, data_root=where.data_root)
    if dataset.digest != info.dataset.digest:
        raise BadResults(
            f"{dataset.name} is not the data set of the run",
            got=dataset.digest[:12],
            expected=info.dataset.digest[:12],
        )
    model, substitute = info.model, info.threat.substitute
    network = _network(model)
    attacked = [AttackedModel(model.name, model.digest, model.weights_digest, network)]
    if substitute:
        attacked.append(AttackedModel(substitute.name, substitute.digest, None, ""))
    load = partial(load_model, dataset=dataset, device=where.device)
    return load_oracle(text, dataset, attacked, load)


def _network(model: ModelInfo) -> str:
    """Return the code of an attacked model's network, by its present name where the catalogue has the model."""
    name, known = parse_reference(model.name).name, entries("models")
    if name in known:
        return read_model(known[name]).implementation
    return str(model.card.get("implementation", ""))


def _rejudged(shown: _KeptImages, text: str, oracle: Oracle) -> RewrittenCell:
    info = shown.info
    threat = replace(
        info.threat,
        text=replace(load_threat(info.threat.text), oracle=text).text,
        oracle=OracleInfo.from_json(describe_oracle(text, oracle)),
    )
    identity = {**info.identity, "threat": digest_threat(threat.to_json())}
    spec = CellSpec(**{key: value for key, value in identity.items() if key != "version"})
    judged = replace(info, identity=identity, threat=threat, rejudged_from=shown.cell.digest)
    records = {r.sample: r for r in _records(shown, oracle)}
    ordered = [records[r.sample] for r in shown.cell.records()]
    ids = shown.ids.tolist()
    return RewrittenCell(shown.cell, spec.digest, judged, ordered, oracle.error(ids))


def _records(shown: _KeptImages, oracle: Oracle) -> Iterator[Record]:
    """Yield the records, ascending, with the oracle's classes and what these make of the goal."""
    classes, goal = oracle.classify(shown.images, shown.ids), _goal(shown.info.threat)
    reached = goal.reached(_evidence(shown, classes))
    threat = shown.info.threat
    fallen = smallest_breaking_eps(shown.clean, shown.images, threat.epsilons, threat.norm)
    for row, record in enumerate(shown.records):
        said = None if classes[row] == UNKNOWN else int(classes[row])
        told = replace(record, oracle_label=said, oracle_source=oracle.source)
        if not needs_oracle(goal) or record.status == "already_wrong":
            yield told
        elif reached[row] and record.within_budget and record.replayed:
            yield replace(told, broken_at=float(fallen[row]), goal_reached=True, status="ok")
        else:
            yield replace(told, broken_at=None, goal_reached=False)


def _goal(threat: ThreatInfo) -> Goal:
    return load_goal(str(Reference(threat.goal, threat.goal_parameters)))


def _evidence(shown: _KeptImages, classes: Tensor) -> GoalInputs:
    """Return what a goal looks at; records hold decisions, so that each output is one vote for a class."""
    number = shown.info.dataset.num_classes
    labels = torch.tensor([record.label for record in shown.records])
    before = _output([record.clean for record in shown.records], number)
    after = _output([record.adversarial for record in shown.records], number)
    return GoalInputs(shown.clean, shown.images, labels, before, after, classes)


def _output(answers: Sequence[ModelOutput], classes: int) -> Output:
    decisions = torch.tensor([answer.prediction for answer in answers])
    return Output(one_hot(decisions, classes).float())


def _count_unknown(shown: _KeptImages, judged: RewrittenCell) -> list[str]:
    """Say of how many changed images the oracle names no class."""
    records = {record.sample: record for record in judged.records}
    unknown = sum(records[int(shown.ids[row])].oracle_label is None for row in shown.changed)
    if not unknown:
        return []
    title = f"{shown.info.attack.name} on {shown.info.model.name}"
    return [f"{title}: {unknown} of {len(shown.changed)} changed images have no class: unknown"]
