"""Detection of inputs from another data set, class by class: Table 3 and Figure 2 of Supervised Deep InfoMax."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from robustbench_inv.catalogue.datasets import default_ood_dataset
from robustbench_inv.catalogue.models import LoadedModel, calibration_digest, load_model
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.data.registry import dataset_entry
from robustbench_inv.errors import BadModel
from robustbench_inv.experiments.calibration import collect_outputs
from robustbench_inv.experiments.protocol import ExperimentRequest
from robustbench_inv.models.reject_option import RejectingClassifier, class_scores
from robustbench_inv.results.experiment_result import (
    ExperimentResult,
    Histogram,
    HistogramPanels,
    MeasuredNumber,
)
from robustbench_inv.tensors import Output

__all__ = [
    "ThresholdMargins",
    "measure_ood_detection",
    "measure_score_distributions",
    "threshold_margins",
]


BINS = 60

TAIL = 0.02
"""Share of strangers that may lie below the bins of a panel, where they are counted in the first."""

IN_DISTRIBUTION = "its own class, held out"


@dataclass(frozen=True)
class ThresholdMargins:
    """How far inputs score above the thresholds of a model that rejects.

    Args:
        scores: (n, classes) what each class would score if it were the decision.
        thresholds: (classes,).
        decision: (n,) the class decided for.
        labels: (n,) their classes in their own data set.
    """

    scores: Tensor
    thresholds: Tensor
    decision: Tensor
    labels: Tensor

    @property
    def below(self) -> Tensor:
        """(n, classes) truth values: is the score of the class below its threshold?"""
        return self.scores < self.thresholds

    @property
    def rejected(self) -> NDArray[np.bool_]:
        """(n,) does the class decided for score below its threshold, so that the input is rejected?"""
        found: NDArray[np.bool_] = self.below.gather(1, self.decision[:, None])[:, 0].numpy()
        return found


def threshold_margins(model: LoadedModel, output: Output, labels: Tensor) -> ThresholdMargins:
    """Return how far inputs score above a model's thresholds.

    Args:
        model: one that rejects.
        output: of the model without rejection, on the CPU.
        labels: (n,) classes of the inputs.

    Raises:
        BadModel: if it does not reject.
    """
    rejecting = _require_rejecting(model)
    thresholds = rejecting.get_buffer("thresholds").cpu().to(output.logits.dtype)
    scores = class_scores(rejecting.score, output)
    return ThresholdMargins(scores, thresholds, output.decision, labels)


def measure_ood_detection(
    request: ExperimentRequest, pairs: Sequence[Mapping[str, object]]
) -> ExperimentResult:
    """Return how many inputs of other data sets models tell from their own, at the thresholds that they have.

    For each model three rows: the mean over the classes of the share of strangers that score below the
    class's threshold, as published; the share that the model rejects, which looks at the class decided for
    alone; and the share of held-out inputs of its own that it rejects.

    A model whose classes exclude one another scores below all thresholds but one, whatever it is shown: with ten
    classes the first share is then 90 % at least. The second is what a user sees.

    Args:
        request: how many samples of each data set.
        pairs: for each column ``column``, ``data`` and ``ood`` (names of data sets), and ``models``: the model that
            rejects by the row's name.

    References:
        Supervised Deep Infomax, section 5.2 and table 3.
    """
    found, digests, known = list[list[MeasuredNumber]](), dict[str, str](), _OutputCache(request)
    for pair in pairs:
        for row, model in _load_models(request, pair).items():
            request.report(f"{model.name}: {pair['ood']} against {pair['data']}")
            clear = {key: known.margins(model, str(pair[key])) for key in ("ood", "data")}
            found.append(
                list(_detection_numbers(row, str(pair["column"]), clear["ood"], clear["data"]))
            )
            digests[model.name] = model.digest
    numbers = tuple(number for kind in zip(*found, strict=True) for number in kind)
    names = dict.fromkeys(str(pair[key]) for pair in pairs for key in ("data", "ood"))
    return ExperimentResult(", ".join(names), known.most, digests, numbers)


def measure_score_distributions(request: ExperimentRequest, ood: str = "") -> ExperimentResult:
    """Return for each class how its scores are spread: over held-out inputs of the class, and over strangers.

    Args:
        request: the held-out data; models that reject by one score, which differ in their thresholds alone.
        ood: name of the other data set; empty for the usual one.

    References:
        Supervised Deep Infomax, appendix C and figure 2.
    """
    dataset = request.open_dataset()
    ood = ood or default_ood_dataset(dataset.name)
    models, known, digests = request.open_models(), _OutputCache(request), dict[str, str]()
    found: dict[str, tuple[ThresholdMargins, ThresholdMargins]] = {}
    for column, model in models.items():
        request.report(f"{model.name}: {ood} against {dataset.name}")
        pair = (known.margins(model, ood), known.margins(model, request.dataset))
        found[column], digests[model.name] = pair, model.digest
    names = dataset_entry(dataset.name.partition(":")[0]).classes
    titles = names or tuple(f"class {label}" for label in range(dataset.num_classes))
    numbers = tuple(
        n for column, pair in found.items() for n in _class_numbers(titles, column, *pair)
    )
    spread = HistogramPanels(
        name="class-conditionals",
        title=f"Class conditionals of {dataset.name} and of {ood}",
        caption="Each panel is about one class c: log p(x|c) of held-out inputs of that class, and of all inputs of the other "
        "data set. Left of a threshold an input would be rejected, were c the decision; in the corner, how many strangers "
        "are left of the first. Each histogram is drawn to its own height; what lies further left is in its first bin.",
        axis="log p(x|c), nats",
        panels=tuple(_panels(titles, ood, found)),
    )
    return ExperimentResult(dataset.name, known.most, digests, numbers, histograms=(spread,))


@dataclass
class _OutputCache:
    """Answers of networks to data sets, each computed once however many thresholds are tried on them."""

    request: ExperimentRequest
    most: int = 0
    data: dict[str, Dataset] = field(default_factory=dict)
    outputs: dict[tuple[str, str], tuple[Output, Tensor]] = field(default_factory=dict)

    def margins(self, model: LoadedModel, name: str) -> ThresholdMargins:
        """Return how far the inputs of a data set score above a model's thresholds."""
        name = self.request.resolve_dataset(name)
        if name not in self.data:
            self.data[name] = self.request.open_dataset(name)
        key = (calibration_digest(model), name)
        if key not in self.outputs:
            ids = self.request.draw(self.data[name]).tolist()
            self.most = max(self.most, len(ids))
            self.outputs[key] = collect_outputs(
                _require_rejecting(model).base, self.data[name], ids
            )
        return threshold_margins(model, *self.outputs[key])


def _load_models(request: ExperimentRequest, pair: Mapping[str, object]) -> dict[str, LoadedModel]:
    named = pair["models"]
    assert isinstance(named, Mapping)
    return {row: load_model(name, device=request.device) for row, name in named.items()}


def _require_rejecting(model: LoadedModel) -> RejectingClassifier:
    if not isinstance(model.classifier, RejectingClassifier):
        expected = f"{model.name}:reject=likelihood,percentile=1"
        raise BadModel("a model that rejects is needed", got=model.name, expected=expected)
    return model.classifier


def _detection_numbers(
    row: str, column: str, ood: ThresholdMargins, in_distribution: ThresholdMargins
) -> Iterator[MeasuredNumber]:
    """Yield the three shares of a model; the trials of a mean over classes are the inputs, not inputs × classes."""
    yield MeasuredNumber(row, column, ood.below.double().mean().item(), len(ood.labels))
    yield MeasuredNumber.of(f"{row}, strangers rejected", column, ood.rejected)
    yield MeasuredNumber.of(f"{row}, own inputs rejected", column, in_distribution.rejected)


def _class_numbers(
    titles: Sequence[str], column: str, ood: ThresholdMargins, in_distribution: ThresholdMargins
) -> Iterator[MeasuredNumber]:
    for label, title in enumerate(titles):
        yield MeasuredNumber.of(f"{title}: strangers below", column, ood.below[:, label].numpy())
        mine = in_distribution.below[in_distribution.labels == label, label]
        yield MeasuredNumber.of(f"{title}: its own below", column, mine.numpy())
    mean = ood.below.double().mean().item()
    yield MeasuredNumber("Mean of strangers below", column, mean, len(ood.labels))


def _panels(
    titles: Sequence[str],
    whose: str,
    found: Mapping[str, tuple[ThresholdMargins, ThresholdMargins]],
) -> Iterator[Histogram]:
    ood, in_distribution = next(iter(found.values()))
    for label, title in enumerate(titles):
        spread = {
            IN_DISTRIBUTION: in_distribution.scores[in_distribution.labels == label, label].numpy(),
            whose: ood.scores[:, label].numpy(),
        }
        limits = {name: pair[0].thresholds[label].item() for name, pair in found.items()}
        edges = _bin_edges(list(spread.values()), list(limits.values()))
        counts = {name: _bin_counts(values, edges) for name, values in spread.items()}
        below = ood.below[:, label].double().mean().item()
        yield Histogram(title, tuple(edges.tolist()), counts, limits, f"{100 * below:.1f} % below")


def _bin_edges(
    spread: Sequence[NDArray[np.float64]], limits: Sequence[float]
) -> NDArray[np.float64]:
    """Return ends of bins that hold every value but the lowest of each series, and the limits."""
    low = min(*(float(np.quantile(values, TAIL)) for values in spread), *limits)
    high = max(*(float(values.max()) for values in spread), *limits)
    return np.linspace(low, high if high > low else low + 1, BINS + 1)


def _bin_counts(values: NDArray[np.float64], edges: NDArray[np.float64]) -> tuple[int, ...]:
    counts, _ = np.histogram(values.clip(min=edges[0]), edges)
    return tuple(counts.tolist())
