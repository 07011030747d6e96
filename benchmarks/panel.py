"""Fits the panel of digits that pools probabilities, and cross-validates it on labels of people.

``python benchmarks/panel.py RUN`` prints the figures of decision 0033 and the numbers of
``attacks/oracles/mnist-panel-v2.toml``, and for both panels of digits the counts without each member. Two kinds of changed digits are fitted: the 350 altered digits of Tramèr et
al., with the classes of people, and PGD examples, whose class is that of their originals. RUN holds the latter::

    invbench evaluate --model mnist-cnn mnist-lenet5 --attack pgd --threat linf=0.3 --samples 100 --keep-images --out RUN

Both are split into ten parts by original digit, so no part has a version of a digit that the fit has seen.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from robustbench_inv.catalogue.cards import read_oracle
from robustbench_inv.catalogue.datasets import load_dataset
from robustbench_inv.catalogue.locate import find
from robustbench_inv.catalogue.models import load_model
from robustbench_inv.data.mnist import SETS, open_invariance_mnist
from robustbench_inv.evaluation.panel import PanelOracle, Pooling, load_panel
from robustbench_inv.results.oracle_error import ChangeDetection
from robustbench_inv.results.run_files import RunFolder
from robustbench_inv.results.summary import Rate
from robustbench_inv.threat.goals import UNKNOWN

PARTS, THRESHOLDS = 10, (0.4, 0.45, 0.5, 0.6)
TEMPERATURES = (0.3, 0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8, 12, 20, 50, 100, 200, 400, 800, 1600)
THRESHOLD = 0.4
PRIOR = 30.0
"""Pseudo-counts of each member in the fit of the weights: few labels must not silence a member."""


@dataclass(frozen=True)
class Labelled:
    """Changed digits: (n,) labels of the originals, classes for people and numbers of the originals, and logits.

    ``logits`` holds, for each member, (n, 10) of the changed digits, ``clean`` those of the originals. ``altered`` is
    the number of altered digits; PGD examples follow.
    """

    labels: Tensor
    human: Tensor
    original: Tensor
    logits: Mapping[str, Tensor]
    clean: Mapping[str, Tensor]
    altered: int

    @property
    def changed(self) -> Tensor:
        return self.labels != self.human


def read_digits(panel: str, run: Path) -> Labelled:
    """Return the altered digits, and the images of a run, with the logits of a panel's members."""
    data = [open_invariance_mnist(name) for name in SETS]
    everyone = [torch.arange(len(each)) for each in data]
    images = [each.counterparts(ids) for each, ids in zip(data, everyone, strict=True)]
    originals = [each.batch(ids)[0] for each, ids in zip(data, everyone, strict=True)]
    labels, human = [each.labels for each in data], [each.human for each in data]
    for cell in RunFolder(run).cells():
        kept = cell.images()
        assert kept is not None
        records = {record.sample: record.label for record in cell.records()}
        known = torch.tensor([records[sample] for sample in kept["samples"].tolist()])
        images.append(torch.from_numpy(kept["adversarial"]))
        originals.append(torch.from_numpy(kept["clean"]))
        labels, human = [*labels, known], [*human, known]
    number = torch.unique(torch.cat(originals).flatten(1), dim=0, return_inverse=True)[1]
    found = load_panel(panel, data[0], [], partial(load_model, dataset=data[0]))
    logits, clean = (
        {
            each.name: _logits(found, row, torch.cat(given).float())
            for row, each in enumerate(found.members)
        }
        for given in (images, originals)
    )
    altered = sum(map(len, data))
    return Labelled(torch.cat(labels), torch.cat(human), number, logits, clean, altered)


def _logits(panel: PanelOracle, row: int, images: Tensor) -> Tensor:
    with torch.no_grad():
        return panel._answer(panel.members[row], images, torch.arange(len(images)))[
            0
        ].logits.float()


def fit(digits: Labelled, rows: Tensor) -> Pooling:
    """Return temperatures of least cross-entropy, and the weights of largest likelihood (EM), of some digits."""
    human = digits.human[rows]
    temperatures = [
        min(TEMPERATURES, key=lambda t, z=z: cross_entropy(z[rows] / t, human).item())
        for z in digits.logits.values()
    ]
    given = torch.stack(
        [
            (z[rows] / t).softmax(1).gather(1, human[:, None])[:, 0]
            for z, t in zip(digits.logits.values(), temperatures, strict=True)
        ]
    ).double()
    weights = torch.full((len(given),), 1 / len(given), dtype=torch.float64)
    for _ in range(200):
        shares = weights[:, None] * given.clamp_min(1e-6)
        weights = (shares / shares.sum(0)).sum(1) + PRIOR
        weights = weights / weights.sum()
    return Pooling(tuple(weights.tolist()), tuple(map(float, temperatures)), THRESHOLD)


def pool(logits: Mapping[str, Tensor], pooling: Pooling) -> Tensor:
    """Return the weighted mean (n, 10) of the members' probabilities."""
    members = zip(logits.values(), pooling.weights, pooling.temperatures, strict=True)
    return sum(w * (z / t).softmax(1) for z, w, t in members) / sum(pooling.weights)  # type: ignore[return-value]


def cross_validated(digits: Labelled, parts: int = PARTS, left_out: int | None = None) -> Tensor:
    """Return the probabilities (2, n, 10) of altered digits and originals by fits without any version of them.

    A member at the position ``left_out`` is fitted with the others, and does not vote: it may be the attacked model.
    """
    voters = [row for row in range(len(digits.logits)) if row != left_out]
    names = [name for row, name in enumerate(digits.logits) if row != left_out]
    order = torch.randperm(
        int(digits.original.max()) + 1, generator=torch.Generator().manual_seed(0)
    )
    part, found = order[digits.original] % parts, torch.zeros(2, len(digits.labels), 10)
    for number in range(parts):
        held_out = part == number
        pooling = fit(digits, (~held_out).nonzero()[:, 0]).rows(voters)
        for row, logits in enumerate((digits.logits, digits.clean)):
            given = {name: logits[name] for name in names}
            found[row, held_out] = pool(given, pooling)[held_out]
    return found


def detection(
    digits: Labelled, probabilities: Tensor, threshold: float
) -> tuple[ChangeDetection, int]:
    """Return the changes that are reported on altered digits, and the number on PGD examples.

    As in the oracle, the class is unknown where the original is misclassified.
    """
    (most, clean), (classes, before) = probabilities.max(2)
    known = (most >= threshold) & (clean >= threshold) & (before == digits.labels)
    reported, changed = known & (classes != digits.labels), digits.changed
    tramer = torch.arange(len(digits.labels)) < digits.altered
    counts = (
        (changed & tramer).sum(),
        (reported & changed & tramer).sum(),
        (~changed & tramer).sum(),
        (reported & ~changed & tramer).sum(),
    )
    pgd = int((reported & ~tramer).sum())
    return ChangeDetection("invariance-mnist, cross-validated", *map(int, counts)), pgd


def without(digits: Labelled, prefix: str) -> Labelled:
    """Return the digits without the members whose name begins with ``prefix``."""
    kept = {name: z for name, z in digits.logits.items() if not name.startswith(prefix)}
    return replace(digits, logits=kept, clean={name: digits.clean[name] for name in kept})


def majority(panel: str, left_out: int | None, run: Path) -> tuple[int, int, int]:
    """Return what a panel without one member reports: true and false changes of altered digits, and PGD examples."""
    data, true, false, pgd = [open_invariance_mnist(name) for name in SETS], 0, 0, 0
    whole = load_panel(panel, data[0], [], partial(load_model, dataset=data[0])).members
    members = tuple(each for row, each in enumerate(whole) if row != left_out)
    for each in data:
        ids = torch.arange(len(each))
        oracle = PanelOracle(panel, "majority", members, each)
        classes = oracle.classify(each.counterparts(ids).float(), ids)
        reported = (classes != UNKNOWN) & (classes != each.labels)
        true += int((reported & (each.human != each.labels)).sum())
        false += int((reported & (each.human == each.labels)).sum())
    for cell in RunFolder(run).cells():
        kept, source = cell.images(), load_dataset("mnist5k")
        ids = torch.from_numpy(kept["samples"])
        classes = PanelOracle(panel, "majority", members, source).classify(
            torch.from_numpy(kept["adversarial"]), ids
        )
        pgd += int(((classes != UNKNOWN) & (classes != source.labels[ids])).sum())
    return true, false, pgd


def main(run: Path) -> None:
    """Print the table of the decision and the card's numbers."""
    digits = read_digits("mnist-panel-v2", run)
    rows: Sequence[tuple[str, Labelled]] = [
        ("all members", digits),
        *((f"without `{name}`", without(digits, name)) for name in digits.logits),
    ]
    for name, kept in rows:
        probabilities = cross_validated(kept)
        for threshold in THRESHOLDS:
            found, pgd = detection(kept, probabilities, threshold)
            print(
                f"| {name} | {threshold} | {_text(found.recall)} | {_text(found.precision)} | {pgd} |"
            )
    pooling = fit(digits, torch.arange(len(digits.labels)))
    print("weights =", [round(weight, 3) for weight in pooling.weights])
    print("temperatures =", list(pooling.temperatures))
    print(detection(digits, cross_validated(digits), THRESHOLD))
    for row, name in enumerate(digits.logits):
        found, pgd = detection(digits, cross_validated(digits, left_out=row), THRESHOLD)
        print(f"mnist-panel-v2 without {name}: {found.found}, {found.false}, {pgd}")
    everyone = read_oracle(find("oracles", "mnist-panel")).members
    for row, name in [(None, "none"), *enumerate(everyone)]:
        print(f"mnist-panel without {name}: {majority('mnist-panel', row, run)}")


def _text(rate: Rate) -> str:
    return f"{rate.successes} of {rate.trials}, {100 * rate.value:.0f} % [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
