"""What model, substitute, oracle and data set of a cell return for fixed inputs: stored with it, compared on resume."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from robustbench_inv.catalogue.fingerprint import plain
from robustbench_inv.catalogue.models import LoadedModel
from robustbench_inv.data.protocol import Dataset, HasCounterparts
from robustbench_inv.errors import BadResults, describe_error
from robustbench_inv.evaluation.jobs import Job
from robustbench_inv.evaluation.judge import Judge
from robustbench_inv.evaluation.loading import Loader
from robustbench_inv.foreign import foreign_call
from robustbench_inv.identity import digest_value
from robustbench_inv.randomness import seeded
from robustbench_inv.results.run_files import CELL, CellFolder
from robustbench_inv.tensors import SAME_ANSWER_TOLERANCE, Output, is_out_of_memory

__all__ = ["ModelAnswers", "refuse_changed_cells", "store_answers"]

PROBE_SAMPLES = 8
"""Samples of the probe, evenly spaced over the data set; each is used clean and blended with noise."""

PROBE_CLASSES = 16
"""Largest number of stored logits of an input: classes evenly spaced, the last place for the largest logit."""

ROUNDING = 2e-5
"""Difference that rounding explains on a CPU, relative to the largest logit."""

COARSE_ROUNDING = 1e-2
"""The same on other devices, whose products may have 10 bits, and for 16-bit weights."""

SPREAD_FACTOR = 10
"""How many times the spread of repeated answers a difference may be."""

REPEATS = 8
"""Further repetitions for a model whose answers vary."""


@dataclass(frozen=True, eq=False)
class ModelAnswers:
    """A model's outputs for m inputs.

    Args:
        logits: (m, at most PROBE_CLASSES).
        score: (m,) or None.
        accepted: (m,) booleans or None.
        spread: largest difference between repeated answers, relative to the largest logit.
    """

    logits: NDArray[np.float64]
    score: NDArray[np.float64] | None
    accepted: NDArray[np.bool_] | None
    spread: float = 0.0

    @classmethod
    def of(cls, output: Output) -> "ModelAnswers":
        """Return what is stored of an output."""
        logits = output.logits.double()
        if logits.shape[1] > PROBE_CLASSES:
            kept = torch.linspace(0, logits.shape[1] - 1, PROBE_CLASSES - 1).long()
            logits = torch.cat([logits[:, kept.to(logits.device)], logits.amax(1, True)], 1)
        score = None if output.score is None else output.score.double().cpu().numpy()
        accepted = None if output.accepted is None else output.accepted.bool().cpu().numpy()
        return cls(logits.cpu().numpy(), score, accepted)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ModelAnswers":
        """Read one model of ``answers`` in cell.json."""
        score, accepted = value["score"], value["accepted"]
        return cls(
            np.array(value["logits"], dtype=np.float64),
            None if score is None else np.array(score, dtype=np.float64),
            None if accepted is None else np.array(accepted, dtype=np.bool_),
            float(value["spread"]),
        )

    def to_json(self) -> dict[str, Any]:
        """Return one model of ``answers`` in cell.json."""
        return {
            "logits": [_numbers(row) for row in self.logits],
            "score": None if self.score is None else _numbers(self.score),
            "accepted": None if self.accepted is None else self.accepted.tolist(),
            "spread": _numbers(np.array([self.spread]))[0],
        }

    def differences(self, other: "ModelAnswers") -> NDArray[np.float64]:
        """Return by how much each input's outputs differ, (m,), relative to the largest logit or score; inf for another kind."""
        parts = [_relative(self.logits, other.logits)]
        if self.score is not None and other.score is not None:
            parts.append(_relative(self.score[:, None], other.score[:, None]))
        same_kind = [(self.score is None) == (other.score is None)]
        same_kind.append((self.accepted is None) == (other.accepted is None))
        if not all(same_kind) or len({len(part) for part in parts}) > 1:
            return np.full(len(self.logits), inf)
        largest: NDArray[np.float64] = np.max(parts, axis=0)
        return largest

    @classmethod
    def typical(cls, answers: Sequence["ModelAnswers"]) -> "ModelAnswers":
        """Return the median of repeated answers, with their largest difference from it as the spread.

        A median, so that a rare fault of a model is not what is stored of it.
        """
        middle = len(answers) // 2
        logits = np.sort([each.logits for each in answers], axis=0)[middle]
        scores = [each.score for each in answers if each.score is not None]
        accepted = [each.accepted for each in answers if each.accepted is not None]
        found = cls(
            logits,
            np.sort(scores, axis=0)[middle] if scores else None,
            np.sort(accepted, axis=0)[middle] if accepted else None,
        )
        apart = max(float(found.differences(each).max(initial=0.0)) for each in answers)
        varies = any(found.accepts_otherwise(each).any() for each in answers)
        return replace(found, spread=max(apart, float(varies)))

    def accepts_otherwise(self, other: "ModelAnswers") -> NDArray[np.bool_]:
        """Return which inputs one accepts and the other rejects, (m,)."""
        if self.accepted is None or other.accepted is None or len(self.logits) != len(other.logits):
            return np.zeros(len(self.logits), dtype=np.bool_)
        differs: NDArray[np.bool_] = self.accepted != other.accepted
        return differs


def store_answers(job: Job, device: str) -> dict[str, Any]:
    """Return ``answers`` of cell.json: what the parts of a job return for the probe; None for a part that raises."""
    found = {key: answer(True) for key, answer in _Probe(job, torch.device(device)).parts.items()}
    return {key: None if isinstance(v, BaseException) else v for key, v in found.items()}


def refuse_changed_cells(
    jobs: Sequence[Job], root: Path, device: str, *, repair: bool = False
) -> None:
    """Compare the parts of every job that has results with the answers stored in its cell.

    Args:
        jobs: the jobs to resume or to skip.
        root: the run's folder.
        device: where the models compute.
        repair: pass over cells whose cell.json is damaged.

    Raises:
        BadResults: if a part of a job returns something else than it did when its cell was evaluated.
    """
    for job in jobs:
        folder = CellFolder(root / job.spec.digest)
        if folder.has_description(repair=repair):
            _refuse_change(folder, _Probe(job, torch.device(device)))


def _refuse_change(folder: CellFolder, probe: "_Probe") -> None:
    path, stored = folder.path / CELL, folder.info.answers
    coarse = probe.coarse or folder.info.software.get("device", "cpu") != "cpu"
    for key, answer in probe.parts.items():
        if (old := stored.get(key)) is None:
            continue
        try:
            problem = _difference(old, answer, coarse=coarse)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            remedy = "restore it, or evaluate this cell again with --existing redo"
            raise BadResults(f"{path} is damaged: {error!r}", remedy=remedy) from error
        if problem:
            raise BadResults(
                f"{probe.job.title}: the {key} is another than the one that this cell was evaluated with",
                got=problem,
                expected=f"the outputs stored in {path}",
                remedy="evaluate into another folder with --out, or evaluate again with --existing redo",
            )


Answer = Callable[[bool], object]
"""Returns what a part returns for the probe, as cell.json holds it, or the exception that it raised.

The argument states whether to repeat the answer, which measures its spread.
"""


def _difference(old: object, answer: Answer, *, coarse: bool) -> str:
    """Return how a part's answers differ from stored ones; empty if they do not."""
    new = answer(False)
    if isinstance(new, BaseException):
        return "" if is_out_of_memory(new) else describe_error(new)
    if isinstance(old, str):
        return "" if old == new else "other images or labels"
    if isinstance(old, list) and isinstance(new, list):
        return _class_difference(old, new, answer, coarse=coarse)
    stored, found = _model_answers(old), _model_answers(new)
    problem = _model_difference(stored, found, stored.spread, coarse=coarse)
    again = answer(True) if problem else None  # it may vary only since its cell was stored
    if isinstance(again, Mapping):
        typical = _model_answers(again)
        spread = max(stored.spread, typical.spread)
        problems = [_model_difference(stored, m, spread, coarse=coarse) for m in (found, typical)]
        return problem if all(problems) else ""
    return problem


def _class_difference(old: list[Any], new: list[Any], answer: Answer, *, coarse: bool) -> str:
    """Return how an oracle's classes differ from stored ones; those that vary are None, and do not count."""
    wrong = [place for place, known in enumerate(old) if known not in (None, new[place])]
    again = answer(True) if wrong else None
    if isinstance(again, list):
        wrong = [place for place in wrong if again[place] is not None]
    allowed = len(old) // 4 if coarse else 0
    return f"other classes for {len(wrong)} of {len(old)} inputs" if len(wrong) > allowed else ""


def _model_answers(value: Any) -> ModelAnswers:  # noqa: ANN401 - a value of cell.json
    return ModelAnswers.from_json(value)


def _model_difference(
    stored: ModelAnswers, found: ModelAnswers, spread: float, *, coarse: bool
) -> str:
    limit = SPREAD_FACTOR * spread + (COARSE_ROUNDING if coarse else ROUNDING)
    apart = stored.differences(found)
    wrong = apart > limit
    if spread <= SAME_ANSWER_TOLERANCE and not coarse:
        wrong = wrong | stored.accepts_otherwise(found)
    if not wrong.any():
        return ""
    most = (
        f"{apart.max():.3g} of the largest logit"
        if isfinite(apart.max())
        else "other kinds of output"
    )
    return f"other outputs for {wrong.sum()} of {len(wrong)} inputs ({most})"


@dataclass(frozen=True)
class _Probe:
    """The fixed inputs of a job, and its parts that return something for them."""

    job: Job
    device: torch.device

    @property
    def parts(self) -> dict[str, Answer]:
        """The parts by their name in messages and in cell.json."""
        job = self.job
        found: dict[str, Answer] = {
            "data set": self._data,
            "model": partial(self._model, job.model),
        }
        if job.substitute:
            found["substitute"] = partial(self._model, job.substitute)
        return {**found, "oracle": self._oracle} if job.effective_oracle else found

    @property
    def coarse(self) -> bool:
        """Do the same weights give rather different logits elsewhere?"""
        models = [m.classifier for m in (self.job.model, self.job.substitute) if m]
        tensors = [p for m in models if isinstance(m, nn.Module) for p in m.parameters()]
        return self.device.type != "cpu" or any(p.dtype.itemsize == 2 for p in tensors)

    @property
    def ids(self) -> list[int]:
        size = len(self.job.dataset)
        count = min(PROBE_SAMPLES, size)
        return [place * size // count for place in range(count)]

    def _model(self, model: LoadedModel, repeated: bool) -> object:
        key = ("model", model.digest, self.job.spec.dataset, self.job.seed, repeated)
        return self._once(key, lambda: self._query(model, repeated=repeated).to_json())

    def _query(self, model: LoadedModel, *, repeated: bool) -> ModelAnswers:
        judge = Judge(model.classifier, self.job.dataset, self.job.seed)
        images, ids = self._inputs(model.classifier.dtype)
        with seeded(self.job.seed, 0, self.device):
            first = ModelAnswers.of(judge.predict(images, ids))
            if not repeated:
                return first
            outputs = [judge.predict(images, ids), judge.replay(images, ids)]
            found = [first, *map(ModelAnswers.of, outputs)]
            if ModelAnswers.typical(found).spread > ROUNDING:
                outputs = [judge.predict(images, ids) for _ in range(REPEATS)]
                found += map(ModelAnswers.of, outputs)
        return ModelAnswers.typical(found)

    def _oracle(self, repeated: bool) -> object:
        oracle, classifier = self.job.effective_oracle, self.job.model.classifier
        assert oracle is not None
        judge = Judge(classifier, self.job.dataset, self.job.seed, oracle)
        key = ("oracle", oracle.digest, self.job.spec.dataset, repeated)

        def classes() -> list[int | None]:
            images, ids = self._inputs(classifier.dtype)
            first: list[int] = judge.true_classes(images, ids).tolist()
            others = [judge.true_classes(images, ids).tolist() for _ in range(2 * repeated)]
            rows = zip(first, *others, strict=True)
            return [row[0] if len({*row}) == 1 else None for row in rows]

        return self._once(key, classes)

    def _data(self, repeated: bool) -> object:
        key = ("answers of the data", self.job.spec.dataset)
        return self._once(key, lambda: _digest(self.job.dataset, self.ids))

    def _once(self, key: tuple[object, ...], answer: Callable[[], object]) -> object:
        """Return an answer or the exception that it raised, the same for all jobs of an evaluation."""
        if key not in self.job.shared:
            try:
                with foreign_call(self.job.title):
                    self.job.shared[key] = answer()
            except Exception as error:  # the evaluation reports what a user's code raises
                self.job.shared[key] = error
        return self.job.shared[key]

    def _inputs(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the probe, (m, …), and the sample ids (m,): clean samples, and the same blended with noise."""
        batch = Loader(self.job.dataset, self.device, dtype).batch(self.ids)
        low, high = self.job.dataset.bounds
        shape, generator = batch.images.shape, torch.Generator().manual_seed(0)
        noise = low + (high - low) * torch.rand(shape, generator=generator)
        blended = (batch.images + noise.to(batch.images)) / 2
        return torch.cat([batch.images, blended]), torch.cat([batch.ids, batch.ids])


def _relative(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each row's largest difference, (m,), relative to the largest finite element; inf for other shapes and values."""
    if one.shape != other.shape:
        return np.full(len(one), inf)
    finite = np.isfinite(one) & np.isfinite(other)
    size = np.abs(one[finite]).max(initial=0.0) or 1.0
    with np.errstate(invalid="ignore"):
        same = (one == other) | (np.isnan(one) & np.isnan(other))
        apart = np.where(same, 0.0, np.where(finite, np.abs(one - other) / size, inf))
    return np.asarray(apart.max(axis=1, initial=0.0))


def _digest(dataset: Dataset, ids: list[int]) -> str:
    images, labels = dataset.batch(ids)
    given = dataset.counterparts(ids) if isinstance(dataset, HasCounterparts) else labels
    return digest_value({"of": plain([images, labels, given, dataset.labels])})


def _numbers(values: NDArray[np.float64]) -> list[float | str]:
    """Return numbers of 8 digits for JSON; those that are not finite as text, which ``float`` reads."""
    return [float(f"{x:.8g}") if isfinite(x) else str(x) for x in values.tolist()]
