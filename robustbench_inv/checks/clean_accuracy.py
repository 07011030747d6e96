"""Checks of what precedes the attack: clean accuracy (C39), that of the card (C40), inputs (C41) and labels (C42)."""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from math import comb, isfinite

import torch
from torch import Tensor

from robustbench_inv.checks.check_list import CHECKS
from robustbench_inv.checks.probe import Probe
from robustbench_inv.checks.verdict import Grade, Verdict
from robustbench_inv.models.protocol import Classifier, Stochastic
from robustbench_inv.results.summary import Rate
from robustbench_inv.tensors import is_out_of_memory

__all__ = ["check_clean_accuracy", "check_inputs", "check_labels"]

NEAR_CHANCE = 0.1
"""C39: share of the way from chance to 100 % below which a clean accuracy is near chance."""

CONSTANT_ERRORS = 5
"""C39: samples of other classes from which on a constant prediction fails."""

USED_RANGE = 0.02
"""C41: share of the bounds that the data use at least; bytes of 0 and 1 use 1/255."""

LEAST_GAIN = 0.1
"""C41, C42: gain of accuracy from which on another form of inputs or labels names a fault.

Two exchanged classes of ten give almost 0.2. Of 100 samples, ten that change give p = 0.001.
"""

LARGEST_P = 1e-3
"""Largest probability of a gain by chance, in a one-sided sign test over the samples that differ."""


def check_clean_accuracy(probe: Probe) -> Verdict:
    """C39: does the model classify clean data better than chance, with more than one class?

    A model near chance was not given its own labels, inputs or weights, and looks as robust as it is useless. The
    evidence names the likely cause, as found by C41 and C42.
    """
    answers = _Answers.one_by_one(probe)
    classes, n = probe.classifier.num_classes, len(answers.right)
    rate = Rate(int(answers.right.sum()), n)
    others = n - int(answers.labels.bincount().max())
    constant = answers.predicted_classes == 1 and others >= CONSTANT_ERRORS
    chance = 1 / classes
    grade: Grade = "WARN" if rate.low < chance + NEAR_CHANCE * (1 - chance) else "PASS"
    if rate.low <= chance or constant:
        grade = "FAIL"
    evidence = (
        f"{rate.successes} of {n} samples, spread over the data set, are classified correctly: {rate.value:.1%}, 95 % "
        f"interval {rate.low:.1%} to {rate.high:.1%}, chance {chance:.1%}."
    )
    cause = "" if grade == "PASS" else f" {_likely_cause(probe, answers)}"
    return CHECKS["C39"].make_verdict(probe.model, grade, rate.value, evidence + cause)


def check_inputs(probe: Probe) -> Verdict:
    """C41: do the data use their bounds, and does no other form of the inputs suit the model better?

    Inputs that were divided by 255 twice, are in BGR order, transposed, inverted or not normalised give another clean
    accuracy than the model has, and another size of eps. Each form is classified once.
    """
    images = probe.batch.images
    low, high = probe.data_bounds
    used = float(images.max() - images.min()) / (high - low) if isfinite(high - low) else 1.0
    better = _explanation(probe, _Answers.one_by_one(probe))
    better = better if better and better.of_inputs else None
    noisy = isinstance(probe.classifier, Stochastic)  # more contrast drowns its noise
    grade: Grade = "PASS"
    if better:
        grade = "FAIL" if better.doubles and not noisy else "WARN"
    evidence = (
        f"The data use {used:.3g} of the width of their bounds, [{low:g}, {high:g}]. "
        f"{better.text if better else 'No other form of the inputs gives a higher clean accuracy.'}"
    )
    if used < USED_RANGE:
        grade = "FAIL"
        evidence += " Bytes of 0 and 1, or a division by 255 twice, explain such a small range."
    gain = better.gain if better else 0.0
    return CHECKS["C41"].make_verdict(probe.model, grade, gain, evidence)


def check_labels(probe: Probe) -> Verdict:
    """C42: do the predictions agree with the labels as they are, better than with renamed or displaced labels?

    Names are fitted on one half of the samples and applied to the other half, in both directions, so that random
    predictions gain nothing.
    """
    batch, every = probe.batch, probe.all_labels
    better = _explanation(probe, _Answers.one_by_one(probe), labels_first=True)
    better = None if better is None or better.of_inputs else better
    evidence = f"No other labels suit the {len(batch)} predictions better."
    if better:
        evidence = better.text
    if every is not None and int(every.min()) > 0:
        evidence += f" Labels begin at {int(every.min())}."
    differ = every is not None and bool((every[batch.ids] != batch.labels).any())
    if differ:
        evidence = f"The data set's labels differ from those of its batches. {evidence}"
    grade: Grade = "FAIL" if better or differ else "PASS"
    return CHECKS["C42"].make_verdict(probe.model, grade, better.gain if better else 0.0, evidence)


@dataclass(frozen=True)
class _Answers:
    """The predictions of a model for the samples of a probe.

    Args:
        predicted: (n,) int64.
        labels: (n,) int64.
        valid: (n,) booleans: the model did not fail, and no logit is nan.
    """

    predicted: Tensor
    labels: Tensor
    valid: Tensor

    @classmethod
    def of(cls, probe: Probe, rows: Tensor | None = None) -> "_Answers":
        output = probe.query(rows)
        labels = probe.batch.labels if rows is None else probe.batch.labels[rows]
        return cls(output.decision, labels, ~output.logits.isnan().any(1))

    @classmethod
    def one_by_one(cls, probe: Probe) -> "_Answers":
        """Return the predictions; if the model fails on the batch, on every sample alone."""
        try:
            return cls.of(probe)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            alone = [cls._alone(probe, row) for row in range(len(probe.batch))]
            if not any(each.valid for each in alone):
                raise
        parts = zip(*((each.predicted, each.labels, each.valid) for each in alone), strict=True)
        return cls(*(torch.cat(part) for part in parts))

    @classmethod
    def _alone(cls, probe: Probe, row: int) -> "_Answers":
        labels = probe.batch.labels[row : row + 1]
        try:
            return cls.of(probe, torch.tensor([row], device=labels.device))
        except Exception:
            return cls(torch.zeros_like(labels), labels, torch.zeros_like(labels, dtype=torch.bool))

    @property
    def right(self) -> Tensor:
        """(n,) booleans."""
        return (self.predicted == self.labels) & self.valid

    @property
    def predicted_classes(self) -> int:
        """Number of different predictions."""
        return len(set(self.predicted[self.valid].tolist()))


@dataclass(frozen=True)
class _Better:
    """A form of inputs or labels under which more samples are classified correctly.

    Args:
        how: the form, in words.
        right: number of correct predictions under it.
        before: number of correct predictions as it is.
        samples: number of samples.
        of_inputs: is it a form of the inputs, not of the labels?
    """

    how: str
    right: int
    before: int
    samples: int
    of_inputs: bool

    @property
    def gain(self) -> float:
        """Difference of the two accuracies."""
        return (self.right - self.before) / self.samples

    @property
    def doubles(self) -> bool:
        """Is it at least twice as accurate?"""
        return self.right >= 2 * self.before

    @property
    def text(self) -> str:
        """One sentence with the numbers."""
        return f"{self.how}, {self.right} of {self.samples} are classified correctly instead of {self.before}."


def _compared(how: str, right: Tensor, before: Tensor, *, of_inputs: bool) -> "_Better | None":
    """Return a form of inputs or labels if its gain is large and not by chance, else None."""
    won, lost = int((right & ~before).sum()), int((before & ~right).sum())
    by_chance = sum(comb(won + lost, k) for k in range(won, won + lost + 1)) / 2 ** (won + lost)
    if won - lost < LEAST_GAIN * len(right) or by_chance > LARGEST_P:
        return None
    return _Better(how, int(right.sum()), int(before.sum()), len(right), of_inputs)


def _explanation(probe: Probe, answers: _Answers, *, labels_first: bool = False) -> _Better | None:
    """Return the form of inputs or labels that gives the highest accuracy, None if that of the data does.

    Either may look better while the other is at fault: many transposed digits look like one of another class.

    Args:
        probe: the model and its samples.
        answers: its predictions.
        labels_first: try inputs, which costs passes, only if a form of the labels is better.
    """
    labels = _better_labels(probe, answers)
    inputs = _better_input(probe, answers) if labels or not labels_first else None
    found = [each for each in (inputs, labels) if each]
    return max(found, key=lambda each: each.right, default=None)


def _likely_cause(probe: Probe, answers: _Answers) -> str:
    """Name what explains an accuracy near chance."""
    invalid = int((~answers.valid).sum())
    if invalid:
        return f"The outputs of {invalid} samples are not numbers, or the model failed."
    better = _explanation(probe, answers)
    if better:
        return better.text
    count = answers.predicted_classes
    predicted = f"The model predicts {count} of {probe.classifier.num_classes} classes"
    return (
        f"{predicted}; neither another range or layout of the inputs nor renamed classes explain it, so check whether "
        "the weights were loaded, and whether labels are in the order of the images."
    )


def _better_input(probe: Probe, answers: _Answers) -> _Better | None:
    """Return the form of the inputs that gives the highest accuracy, None if that of the data does.

    A form is tried on a third of the samples first, and none on a model with too few errors for a gain. A copy of the
    model is queried: inputs outside the bounds would widen the ranges that a quantised model observes.
    """
    if (~answers.right).sum() < LEAST_GAIN * len(answers.right):
        return None
    rows = torch.arange(0, len(answers.right), 3, device=answers.right.device)
    found: list[_Better] = []
    probe = replace(probe, classifier=_copied(probe.classifier))
    for how, images in _other_inputs(probe):
        changed = replace(
            probe, batch=replace(probe.batch, images=images.to(probe.classifier.dtype))
        )
        try:
            if _Answers.of(changed, rows).right.sum() <= answers.right[rows].sum():
                continue
            right = _Answers.of(changed).right
        except Exception:
            continue
        better = _compared(f"With inputs {how}", right, answers.right, of_inputs=True)
        found += [better] if better else []
    return max(found, key=lambda each: each.gain, default=None)


def _copied(classifier: Classifier) -> Classifier:
    try:
        return deepcopy(classifier)
    except Exception:  # some models cannot be copied
        return classifier


def _other_inputs(probe: Probe) -> Iterator[tuple[str, Tensor]]:
    """Yield forms of the inputs that differ by a common mistake, with their description."""
    images, (low, high) = probe.batch.images, probe.data_bounds
    yield "multiplied by 255", images * 255
    yield "divided by 255", images / 255
    yield "mapped from [0, 1] to [-1, 1]", 2 * images - 1
    yield "mapped from [-1, 1] to [0, 1]", (images + 1) / 2
    axes = [0, *range(2, images.ndim)]
    spread = images.std(axes, keepdim=True) + 1e-12
    yield (
        "standardised to mean 0 and deviation 1",
        (images - images.mean(axes, keepdim=True)) / spread,
    )
    if isfinite(high - low):
        least, width = images.min(), (images.max() - images.min()).clamp_min(1e-12)
        yield "stretched to the bounds", low + (images - least) / width * (high - low)
        yield "inverted", low + high - images
    for how, turn in _LAYOUTS.items():
        if images.ndim >= 3 and (turned := turn(images)).shape == images.shape:
            yield how, turned


_LAYOUTS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda images: images.transpose(-1, -2),
    "upside down": lambda images: images.flip(-2),
    "mirrored": lambda images: images.flip(-1),
    "turned by 180 degrees": lambda images: images.flip(-1, -2),
    "in reverse order of channels (BGR)": lambda images: (
        images.flip(1) if images.ndim == 4 else images[:0]
    ),
    "read as height × width × channels": lambda images: (
        images.reshape(len(images), *images.shape[2:], images.shape[1]).permute(0, 3, 1, 2)
        if images.ndim == 4 and images.shape[1] > 1
        else images[:0]
    ),
}
"""Layouts of images; those that do not apply change the shape."""


def _better_labels(probe: Probe, answers: _Answers) -> _Better | None:
    """Return the renaming or displacement of labels that agrees best with the predictions, None without one."""
    tried = (
        _compared(how, right & answers.valid, answers.right, of_inputs=False)
        for how, right in (*_renamed(probe, answers), *_displaced(probe, answers))
    )
    return max((each for each in tried if each), key=lambda each: each.gain, default=None)


def _renamed(probe: Probe, answers: _Answers) -> Iterator[tuple[str, Tensor]]:
    """Yield correct predictions (n,) under labels that are shifted, reversed, or renamed one by one."""
    predicted, labels, classes = answers.predicted, answers.labels, probe.classifier.num_classes
    shift = int(((labels - predicted) % classes).mode().values)
    yield f"If labels are the model's classes plus {shift}", (predicted + shift) % classes == labels
    yield "If classes are in reverse order", classes - 1 - predicted == labels
    if 2 * classes > len(labels):  # too few samples of each class to fit names
        return
    even = torch.arange(len(labels), device=labels.device) % 2 == 0
    names = [_majority_labels(predicted[rows], labels[rows], classes) for rows in (even, ~even)]
    renamed = torch.where(even, names[1][predicted], names[0][predicted])
    everywhere = _majority_labels(predicted, labels, classes).tolist()
    changes = [f"{k} to {name}" for k, name in enumerate(everywhere) if name != k]
    text = ", ".join(changes[:10]) + (", …" if len(changes) > 10 else "")
    yield f"If the model's classes are renamed ({text})", renamed == labels


def _majority_labels(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the most frequent label of each predicted class (classes,); its own name without a prediction."""
    counts = torch.zeros(classes, max(classes, int(labels.max()) + 1), device=labels.device)
    counts.index_put_((predicted, labels), torch.ones(len(labels), device=labels.device), True)
    own = torch.arange(classes, device=labels.device)
    return torch.where(counts.sum(1) > 0, counts.argmax(1), own)


def _displaced(probe: Probe, answers: _Answers) -> Iterator[tuple[str, Tensor]]:
    """Yield correct predictions (n,) if each sample has the label of the next or the previous one."""
    every = probe.all_labels
    if every is None:
        return
    for step, which in ((1, "next"), (-1, "previous")):
        labels = every[(probe.batch.ids + step) % len(every)]
        yield f"If each sample has the label of the {which} one", answers.predicted == labels
