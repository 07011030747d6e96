"""Detection of out-of-distribution (OOD) inputs by class: Table 3 and Figure 2 of Supervised Deep InfoMax."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from robustbench_inv.catalogue.datasets import default_ood_dataset
from robustbench_inv.catalogue.models import LoadedModel, calibration_digest, load_model
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
"""Fraction of the inputs that may lie below the first bin of a panel, which then counts them."""

IN_DISTRIBUTION = "the same class, held out"


@dataclass(frozen=True)
class ThresholdMargins:
    """Scores of inputs and the rejection thresholds of a model.

    Args:
        scores: (n, classes) score of each class as if it were predicted.
        thresholds: (classes,) rejection thresholds.
        decision: (n,) predicted classes.
        labels: (n,) labels of the inputs in their own data set.
    """

    scores: Tensor
    thresholds: Tensor
    decision: Tensor
    labels: Tensor

    @property
    def below(self) -> Tensor:
        """(n, classes) mask of the scores below the threshold of their class."""
        return self.scores < self.thresholds

    @property
    def rejected(self) -> NDArray[np.bool_]:
        """(n,) mask of the rejected inputs: the score of the predicted class is below its threshold."""
        found: NDArray[np.bool_] = self.below.gather(1, self.decision[:, None])[:, 0].numpy()
        return found


def threshold_margins(model: LoadedModel, output: Output, labels: Tensor) -> ThresholdMargins:
    """Return scores and thresholds of inputs.

    Args:
        model: a model with a reject option.
        output: output of the model without reject option, on the CPU.
        labels: (n,) classes of the inputs.

    Raises:
        BadModel: if the model has no reject option.
    """
    rejecting = _require_rejecting(model)
    thresholds = rejecting.get_buffer("thresholds").cpu().to(output.logits.dtype)
    scores = class_scores(rejecting.score, output)
    return ThresholdMargins(scores, thresholds, output.decision, labels)


def measure_ood_detection(
    request: ExperimentRequest, pairs: Sequence[Mapping[str, object]]
) -> ExperimentResult:
    """Return detection rates of OOD inputs at the models' rejection thresholds.

    Each model has three rows. First, the published rate: the fraction of OOD inputs that score below a class's
    threshold, averaged over the classes. Second, the fraction of OOD inputs that the model rejects, which depends only
    on the predicted class. Third, the fraction of held-out in-distribution inputs that the model rejects.

    If scores are mutually exclusive, such as softmax outputs, any input scores below all thresholds but one. With
    ten classes the published rate is then at least 90 %. The second rate is the one that matters to a user.

    Args:
        request: number of samples per data set.
        pairs: for each column ``column``, ``data`` and ``ood`` (names of data sets), and ``models``: the rejecting
            model by row.

    References:
        Supervised Deep Infomax, section 5.2 and table 3.
    """
    found, digests, known = list[list[MeasuredNumber]](), dict[str, str](), _OutputCache(request)
    pairs = request.available(pairs, "column", "data", "ood")
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
    """Return histograms of the scores of each class: for held-out inputs of the class, and for OOD inputs.

    Args:
        request: the held-out data, and rejecting models that differ only in their thresholds.
        ood: name of the OOD data set; empty for the default of the held-out data.

    References:
        Supervised Deep Infomax, appendix C and figure 2.
    """
    dataset = request.open_dataset()
    ood = ood or default_ood_dataset(dataset)
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
        caption="One panel per class c: log p(x|c) of held-out inputs of class c, and of all inputs of the OOD data set. An "
        "input left of a threshold would be rejected if the model predicted c. In the corner: the fraction of OOD inputs "
        "left of the first threshold. Each histogram is scaled to its own height; its first bin includes all lower values.",
        axis="log p(x|c), nats",
        panels=tuple(_panels(titles, ood, found)),
    )
    return ExperimentResult(dataset.name, known.most, digests, numbers, histograms=(spread,))


@dataclass
class _OutputCache:
    """Outputs of networks on data sets, computed once for all thresholds."""

    request: ExperimentRequest
    most: int = 0
    outputs: dict[tuple[str, str], tuple[Output, Tensor]] = field(default_factory=dict)

    def margins(self, model: LoadedModel, name: str) -> ThresholdMargins:
        """Return the scores of a data set's inputs with a model's thresholds."""
        name = self.request.resolve_dataset(name)
        dataset = self.request.open_dataset(name)
        key = (calibration_digest(model), name)
        if key not in self.outputs:
            ids = self.request.draw(dataset).tolist()
            self.most = max(self.most, len(ids))
            self.outputs[key] = collect_outputs(_require_rejecting(model).base, dataset, ids)
        return threshold_margins(model, *self.outputs[key])


def _load_models(request: ExperimentRequest, pair: Mapping[str, object]) -> dict[str, LoadedModel]:
    named = pair["models"]
    assert isinstance(named, Mapping)
    return {row: load_model(name, device=request.device) for row, name in named.items()}


def _require_rejecting(model: LoadedModel) -> RejectingClassifier:
    if not isinstance(model.classifier, RejectingClassifier):
        expected = f"{model.name}:reject=likelihood,percentile=1"
        raise BadModel("the model has no reject option", got=model.name, expected=expected)
    return model.classifier


def _detection_numbers(
    row: str, column: str, ood: ThresholdMargins, in_distribution: ThresholdMargins
) -> Iterator[MeasuredNumber]:
    """Yield the three rates of a model; the mean over classes counts each input as one trial."""
    yield MeasuredNumber(row, column, ood.below.double().mean().item(), len(ood.labels))
    yield MeasuredNumber.of(f"{row}, OOD inputs rejected", column, ood.rejected)
    name = f"{row}, in-distribution inputs rejected"
    yield MeasuredNumber.of(name, column, in_distribution.rejected)


def _class_numbers(
    titles: Sequence[str], column: str, ood: ThresholdMargins, in_distribution: ThresholdMargins
) -> Iterator[MeasuredNumber]:
    for label, title in enumerate(titles):
        name = f"{title}: OOD inputs below threshold"
        yield MeasuredNumber.of(name, column, ood.below[:, label].numpy())
        same_class = in_distribution.below[in_distribution.labels == label, label]
        name = f"{title}: inputs of the class below threshold"
        yield MeasuredNumber.of(name, column, same_class.numpy())
    mean = ood.below.double().mean().item()
    yield MeasuredNumber("Mean OOD inputs below threshold", column, mean, len(ood.labels))


def _panels(
    titles: Sequence[str],
    ood_name: str,
    found: Mapping[str, tuple[ThresholdMargins, ThresholdMargins]],
) -> Iterator[Histogram]:
    ood, in_distribution = next(iter(found.values()))
    for label, title in enumerate(titles):
        spread = {
            IN_DISTRIBUTION: in_distribution.scores[in_distribution.labels == label, label].numpy(),
            ood_name: ood.scores[:, label].numpy(),
        }
        limits = {name: pair[0].thresholds[label].item() for name, pair in found.items()}
        edges = _bin_edges(list(spread.values()), list(limits.values()))
        counts = {name: _bin_counts(values, edges) for name, values in spread.items()}
        below = ood.below[:, label].double().mean().item()
        yield Histogram(title, tuple(edges.tolist()), counts, limits, f"{100 * below:.1f} % below")


def _bin_edges(
    spread: Sequence[NDArray[np.float64]], limits: Sequence[float]
) -> NDArray[np.float64]:
    """Return bin edges that cover the thresholds and all values except the lowest TAIL of each series."""
    known = [values for values in spread if len(values)]
    low = min([*(float(np.quantile(values, TAIL)) for values in known), *limits])
    high = max([*(float(values.max()) for values in known), *limits])
    return np.linspace(low, high if high > low else low + 1, BINS + 1)


def _bin_counts(values: NDArray[np.float64], edges: NDArray[np.float64]) -> tuple[int, ...]:
    counts, _ = np.histogram(values.clip(min=edges[0]), edges)
    return tuple(counts.tolist())
