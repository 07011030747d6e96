"""Inputs of another data set, class by class: Table 3 and Figure 2 of Supervised Deep InfoMax."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from robustbench_inv.catalogue.load import LoadedModel, load_model, usual_others
from robustbench_inv.catalogue.rejecting import fitted_digest
from robustbench_inv.data.protocol import Dataset
from robustbench_inv.data.registry import entry
from robustbench_inv.errors import BadModel
from robustbench_inv.measurements.calibration import answers
from robustbench_inv.measurements.protocol import Asked
from robustbench_inv.models.rejection import Rejecting, class_scores
from robustbench_inv.results.histogram import Histogram, Spread
from robustbench_inv.results.measurement import Measured, Number
from robustbench_inv.tensors import Output

__all__ = ["Clearance", "clearance_of", "measure_spread", "measure_strangers"]

BINS = 60

TAIL = 0.02
"""Share of strangers that may lie below the bins of a panel, where they are counted in the first."""

OWN = "its own class, held out"


@dataclass(frozen=True)
class Clearance:
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


def clearance_of(model: LoadedModel, output: Output, labels: Tensor) -> Clearance:
    """Return how far inputs score above a model's thresholds.

    Args:
        model: one that rejects.
        output: of the model without rejection, on the CPU.
        labels: (n,) classes of the inputs.

    Raises:
        BadModel: if it does not reject.
    """
    rejecting = _rejecting(model)
    thresholds = rejecting.get_buffer("thresholds").cpu().to(output.logits.dtype)
    scores = class_scores(rejecting.score, output)
    return Clearance(scores, thresholds, output.decision, labels)


def measure_strangers(asked: Asked, pairs: Sequence[Mapping[str, object]]) -> Measured:
    """Return how many inputs of other data sets models tell from their own, at the thresholds that they have.

    For each model three rows: the mean over the classes of the share of strangers that score below the
    class's threshold, as published; the share that the model rejects, which looks at the class decided for
    alone; and the share of held-out inputs of its own that it rejects.

    A model whose classes exclude one another scores below all thresholds but one, whatever it is shown: with ten
    classes the first share is then 90 % at least. The second is what a user sees.

    Args:
        asked: how many samples of each data set.
        pairs: for each column ``column``, ``data`` and ``others`` (names of data sets), and ``models``: the model that
            rejects by the row's name.

    References:
        Supervised Deep Infomax, section 5.2 and table 3.
    """
    found, digests, known = list[list[Number]](), dict[str, str](), _Known(asked)
    for pair in pairs:
        for row, model in _models(asked, pair).items():
            asked.report(f"{model.name}: {pair['others']} against {pair['data']}")
            clear = {key: known.clearance(model, str(pair[key])) for key in ("others", "data")}
            found.append(list(_rows(row, str(pair["column"]), clear["others"], clear["data"])))
            digests[model.name] = model.digest
    numbers = tuple(number for kind in zip(*found, strict=True) for number in kind)
    names = dict.fromkeys(str(pair[key]) for pair in pairs for key in ("data", "others"))
    return Measured(", ".join(names), known.most, digests, numbers)


def measure_spread(asked: Asked, others: str = "") -> Measured:
    """Return for each class how its scores are spread: over held-out inputs of the class, and over strangers.

    Args:
        asked: the held-out data; models that reject by one score, which differ in their thresholds alone.
        others: name of the other data set; empty for the usual one.

    References:
        Supervised Deep Infomax, appendix C and figure 2.
    """
    dataset = asked.open_dataset()
    others = others or usual_others(dataset.name)
    models, known, digests = asked.open_models(), _Known(asked), dict[str, str]()
    found: dict[str, tuple[Clearance, Clearance]] = {}
    for column, model in models.items():
        asked.report(f"{model.name}: {others} against {dataset.name}")
        pair = (known.clearance(model, others), known.clearance(model, asked.dataset))
        found[column], digests[model.name] = pair, model.digest
    names = entry(dataset.name.partition(":")[0]).classes
    titles = names or tuple(f"class {label}" for label in range(dataset.num_classes))
    numbers = tuple(n for column, pair in found.items() for n in _by_class(titles, column, *pair))
    spread = Spread(
        name="class-conditionals",
        title=f"Class conditionals of {dataset.name} and of {others}",
        caption="Each panel is about one class c: log p(x|c) of held-out inputs of that class, and of all inputs of the other "
        "data set. Left of a threshold an input would be rejected, were c the decision; in the corner, how many strangers "
        "are left of the first. Each histogram is drawn to its own height; what lies further left is in its first bin.",
        axis="log p(x|c), nats",
        panels=tuple(_panels(titles, others, found)),
    )
    return Measured(dataset.name, known.most, digests, numbers, spreads=(spread,))


@dataclass
class _Known:
    """Answers of networks to data sets, each computed once however many thresholds are tried on them."""

    asked: Asked
    most: int = 0
    data: dict[str, Dataset] = field(default_factory=dict)
    outputs: dict[tuple[str, str], tuple[Output, Tensor]] = field(default_factory=dict)

    def clearance(self, model: LoadedModel, name: str) -> Clearance:
        """Return how far the inputs of a data set score above a model's thresholds."""
        name = self.asked.place(name)
        if name not in self.data:
            self.data[name] = self.asked.open_dataset(name)
        key = (fitted_digest(model), name)
        if key not in self.outputs:
            ids = self.asked.draw(self.data[name]).tolist()
            self.most = max(self.most, len(ids))
            self.outputs[key] = answers(_rejecting(model).base, self.data[name], ids)
        return clearance_of(model, *self.outputs[key])


def _models(asked: Asked, pair: Mapping[str, object]) -> dict[str, LoadedModel]:
    named = pair["models"]
    assert isinstance(named, Mapping)
    return {row: load_model(name, device=asked.device) for row, name in named.items()}


def _rejecting(model: LoadedModel) -> Rejecting:
    if not isinstance(model.classifier, Rejecting):
        expected = f"{model.name}:reject=likelihood,percentile=1"
        raise BadModel("a model that rejects is needed", got=model.name, expected=expected)
    return model.classifier


def _rows(row: str, column: str, others: Clearance, own: Clearance) -> Iterator[Number]:
    """Yield the three shares of a model; the trials of a mean over classes are the inputs, not inputs × classes."""
    yield Number(row, column, others.below.double().mean().item(), len(others.labels))
    yield Number.of(f"{row}, strangers rejected", column, others.rejected)
    yield Number.of(f"{row}, own inputs rejected", column, own.rejected)


def _by_class(
    titles: Sequence[str], column: str, others: Clearance, own: Clearance
) -> Iterator[Number]:
    for label, title in enumerate(titles):
        yield Number.of(f"{title}: strangers below", column, others.below[:, label].numpy())
        mine = own.below[own.labels == label, label]
        yield Number.of(f"{title}: its own below", column, mine.numpy())
    mean = others.below.double().mean().item()
    yield Number("Mean of strangers below", column, mean, len(others.labels))


def _panels(
    titles: Sequence[str], whose: str, found: Mapping[str, tuple[Clearance, Clearance]]
) -> Iterator[Histogram]:
    others, own = next(iter(found.values()))
    for label, title in enumerate(titles):
        spread = {
            OWN: own.scores[own.labels == label, label].numpy(),
            whose: others.scores[:, label].numpy(),
        }
        limits = {name: pair[0].thresholds[label].item() for name, pair in found.items()}
        edges = _edges(list(spread.values()), list(limits.values()))
        counts = {name: _counts(values, edges) for name, values in spread.items()}
        below = others.below[:, label].double().mean().item()
        yield Histogram(title, tuple(edges.tolist()), counts, limits, f"{100 * below:.1f} % below")


def _edges(spread: Sequence[NDArray[np.float64]], limits: Sequence[float]) -> NDArray[np.float64]:
    """Return ends of bins that hold every value but the lowest of each series, and the limits."""
    low = min(*(float(np.quantile(values, TAIL)) for values in spread), *limits)
    high = max(*(float(values.max()) for values in spread), *limits)
    return np.linspace(low, high if high > low else low + 1, BINS + 1)


def _counts(values: NDArray[np.float64], edges: NDArray[np.float64]) -> tuple[int, ...]:
    counts, _ = np.histogram(values.clip(min=edges[0]), edges)
    return tuple(counts.tolist())
