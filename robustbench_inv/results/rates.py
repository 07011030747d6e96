"""Rates beyond accuracy, computed from the records of a cell: invariance, fixed inputs, members of an ensemble."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, isinf, nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.certificates import sandwiches
from robustbench_inv.results.rate import ChangeDetection, CorrectedRate
from robustbench_inv.results.record import Record
from robustbench_inv.results.record_columns import Records
from robustbench_inv.results.summary import Rate, distance_curve, share_of

__all__ = [
    "AgreementRates",
    "EnsembleBreakdown",
    "InvarianceRates",
    "agreement_rates",
    "cell_to_json",
    "closer_attacks",
    "corrected_failure_rate",
    "corrected_rate",
    "distances_by_norm",
    "ensemble_breakdown",
    "example_distances",
    "invariance_rates",
    "invariance_to_json",
    "searched_by_panel",
]


@dataclass(frozen=True)
class InvarianceRates:
    """Shares of the attacked samples of an invariance attack.

    Args:
        same_prediction: the prediction is that for the clean input, and a model with a reject option accepts the input.
        reportable: the same, of inputs that the attack changed and that are within its budget: an oracle cannot report
            a change of the others.
        class_changed: the input was changed, and the oracle names another class than the label.
        success: the goal was reached; for ``keep-decision`` that is both of these.
        oracle_undecided: the oracle names no class.
        agrees_with_oracle: the prediction is the oracle's class, among changed inputs with such a class. The
            prediction of a rejected input agrees with nothing.
        agrees_with_label: the prediction is the label of the clean input, among the same inputs. A model
            that follows the label on all of them is wrong wherever the class has changed.
    """

    same_prediction: Rate
    reportable: Rate
    class_changed: Rate
    success: Rate
    oracle_undecided: Rate
    agrees_with_oracle: Rate
    agrees_with_label: Rate

    def to_json(self) -> dict[str, dict[str, float]]:
        """Return each share as ``--json`` prints it."""
        return {name: rate.to_json() for name, rate in vars(self).items()}


CORRECTION_DRAWS = 10_000
"""Draws of the Monte Carlo interval of a corrected rate; its ends vary by about 0.3 points."""


def corrected_failure_rate(
    found: InvarianceRates, detection: ChangeDetection | None, *, by_oracle: bool = False
) -> CorrectedRate | None:
    """Return the failure rate corrected for the oracle's error; None if that was not measured on changed inputs.

    Of k changed inputs with the same prediction the oracle reports a changed class for a. With recall R and false rate F,
    a = t R + (k − t) F, so the true failures are t = (a − k F) / (R − F). An attack's inputs may differ from those on
    which R and F were measured, so the interval assumes less of them. The lower end uses R = 1, (a − k F) / (1 − F):
    changes that are easier to see do not inflate it. Its F is the larger one of altered inputs and of PGD examples:
    noise that misleads the oracle does not inflate it either. The upper end uses F = 0, a / R: inputs with fewer false reports do not
    deflate it. Both ends are quantiles over draws of the counts, R and F from their posteriors with Jeffreys priors.
    The draws are the same for each call.

    A search by the oracle's decisions (``by_oracle``) returns inputs that the oracle reports, so that any share of the
    reports may be false: there is no estimate, and the lower end is 0.

    References:
        Rogan and Gladen, Estimating prevalence from the results of a screening test, American Journal of
        Epidemiology 1978.
    """
    n, kept = found.success.trials, found.reportable.successes
    if detection is None or not (n and detection.changed and detection.unchanged):
        return None
    reported = min(found.success.successes, kept)
    rng = np.random.default_rng(0)
    counts = np.array([reported, kept - reported, n - kept]) + 0.5
    shares = rng.dirichlet(counts, CORRECTION_DRAWS)
    a, k = shares[:, 0], shares[:, 0] + shares[:, 1]
    recall = _draws(rng, detection.found, detection.changed)
    false = _draws(rng, detection.false, detection.unchanged)
    if detection.perturbed * detection.false < detection.perturbed_false * detection.unchanged:
        false = _draws(rng, detection.perturbed_false, detection.perturbed)
    least = np.clip((a - k * false) / (1 - false), 0, k)
    most = a / recall
    low, high = np.quantile(least, 0.025), np.quantile(np.clip(most, 0, k), 0.975)
    if by_oracle:
        return CorrectedRate(nan, 0.0, float(high))
    recall_value, false_value = detection.recall.value, detection.false_rate.value
    power = recall_value - false_value
    value = (reported - kept * false_value) / (n * power) if power > 0 else kept / n
    value = min(max(value, 0.0), kept / n)
    return CorrectedRate(value, float(min(low, value)), float(max(high, value)))


def corrected_rate(cell: FinishedCell) -> CorrectedRate | None:
    """Return a cell's failure rate, corrected as ``corrected_failure_rate`` does."""
    error, found = cell.oracle_error, invariance_rates(cell.records)
    detection = error.detection if error else None
    return corrected_failure_rate(found, detection, by_oracle=searched_by_panel(cell))


def searched_by_panel(cell: FinishedCell) -> bool:
    """Did the attack search by the decisions of models, whose errors it then finds?"""
    oracle, by_oracle = cell.threat.oracle, cell.attack.algorithm == "invariancestandard"
    return by_oracle and oracle is not None and bool(oracle.members)


def _draws(rng: np.random.Generator, successes: int, trials: int) -> NDArray[np.float64]:
    return rng.beta(successes + 0.5, trials - successes + 0.5, CORRECTION_DRAWS)


def invariance_to_json(cell: FinishedCell) -> dict[str, Any]:
    """Return the shares, the oracle and its error rates as ``--json`` prints them."""
    error, found = cell.oracle_error, invariance_rates(cell.records)
    detection, corrected = error.detection if error else None, corrected_rate(cell)
    return {
        **found.to_json(),
        "corrected_success": corrected and corrected.to_json(),
        "oracle_recall": detection and detection.recall.to_json(),
        "oracle_precision": detection and detection.precision.to_json(),
        "oracle": cell.oracle_source,
        "oracle_error_rate": error and error.error_rate.to_json(),
        "oracle_undecided_rate": error and error.undecided_rate.to_json(),
        "distances": {
            name: distance_curve(found, JSON_POINTS).to_json()
            for name, found in distances_by_norm(cell).items()
        },
    }


JSON_POINTS = 50
"""Largest number of points of a curve that ``--json`` prints."""

SMALLEST = "smallest_distance_"
"""Beginning of the names of numbers that an attack measures: the smallest distance of a success, by norm."""


def distances_by_norm(cell: FinishedCell) -> dict[str, NDArray[np.float64]]:
    """Return the distances at which the attacked samples are broken, by norm, that of the threat first; inf for none.

    In other norms they are those of a search that reports them (``invariance-standard`` without a budget); a sample
    counts only if the judge confirmed its failure.
    """
    found = {cell.norm: cell.attacked_distances}
    if cell.epsilons:
        return found
    attacked, records = cell.was_attacked, cell.records.columns
    for key, column in cell.sample_values.items():
        norm = key.removeprefix(SMALLEST)
        if norm == key or norm == cell.norm:
            continue
        values = [column.get(sample) for sample in cell.ids[attacked].tolist()]
        near = np.array([inf if value is None else value for value in values], float)
        least = np.minimum(near, records.distance[norm][attacked])
        found[norm] = np.where(records.is_broken[attacked], least, inf)
    return found


def example_distances(
    cells: Iterable[FinishedCell], norm: str, ids: Sequence[int]
) -> NDArray[np.float64]:
    """Return the distance in a norm of the closest example that any cell has of each sample, (n,), inf for none."""
    wanted, closest = np.array(ids, int), np.full(len(ids), inf)
    for cell in cells:
        found, known = cell.records.columns, np.isin(wanted, cell.ids)
        distance = np.where(found.is_broken, found.distance[norm], inf)
        mine = distance[np.searchsorted(cell.ids, wanted[known])]
        closest[known] = np.minimum(closest[known], mine)
    return closest


def closer_attacks(
    closest: NDArray[np.float64], cells: Iterable[FinishedCell], norm: str, ids: Sequence[int]
) -> tuple[FinishedCell, ...]:
    """Return the cells that have a closer example than these distances (n,) and the cells before them."""
    used = []
    for cell in cells:
        found = example_distances([cell], norm, ids)
        used += [cell] if (found < closest).any() else []
        closest = np.minimum(closest, found)
    return tuple(used)


def invariance_rates(records: Sequence[Record]) -> InvarianceRates:
    """Return the rates of an invariance cell.

    References:
        Behrmann, thesis on invertible networks, definition 6.3; Tramèr et al., Fundamental tradeoffs between
        invariance and sensitivity to adversarial perturbations, ICML 2020, for agreement with the oracle.
    """
    found = Records.of(records).columns
    attacked, known = found.was_attacked, found.has_oracle_label
    moved = found.distance["l0"] > 0
    changed = known & moved
    return InvarianceRates(
        same_prediction=share_of(found.keeps_prediction, attacked),
        reportable=share_of(found.keeps_prediction & moved & found.within_budget, attacked),
        class_changed=share_of(changed & (found.oracle_label != found.label), attacked),
        success=share_of(found.is_broken, attacked),
        oracle_undecided=share_of(~known, attacked),
        agrees_with_oracle=share_of(found.predicts(found.oracle_label), changed),
        agrees_with_label=share_of(found.predicts(found.label), changed),
    )


@dataclass(frozen=True)
class AgreementRates:
    """Correct predictions on fixed inputs: altered ones, whose class an oracle names, or shifted ones.

    Args:
        clean_accuracy: correct predictions for the clean inputs.
        agrees_with_label: predictions that are the label of the clean input. With an oracle, of the changed inputs
            that have a class by the oracle, where a rejected input agrees with nothing; else of all inputs: the
            accuracy on shifted inputs.
        agrees_with_oracle: predictions that are the oracle's class, of the same inputs; None without an oracle.
        agrees_with_oracle_where_changed: the same, where the oracle's class is not the label.
        class_changed: changed inputs whose class by the oracle is not the label, of all.
    """

    clean_accuracy: Rate
    agrees_with_label: Rate
    agrees_with_oracle: Rate | None
    agrees_with_oracle_where_changed: Rate | None
    class_changed: Rate | None

    def to_json(self) -> dict[str, dict[str, float] | None]:
        """Return each share as ``--json`` prints it."""
        return {name: rate and rate.to_json() for name, rate in vars(self).items()}


def agreement_rates(cell: FinishedCell) -> AgreementRates | None:
    """Return the agreement rates of a cell; None for a search, and for inputs of no class."""
    if cell.kind != "fixed-input" or cell.threat.no_class:
        return None
    found, everywhere = cell.records.columns, np.full(len(cell.records), True)
    if cell.oracle_source is None:  # rejected or not
        right = share_of(found.adversarial.prediction == found.label, everywhere)
        return AgreementRates(cell.summary.clean_accuracy, right, None, None, None)
    judged = found.has_oracle_label & (found.distance["l0"] > 0)
    changed, agrees = (
        judged & (found.oracle_label != found.label),
        found.predicts(found.oracle_label),
    )
    return AgreementRates(
        cell.summary.clean_accuracy,
        share_of(found.predicts(found.label), judged),
        share_of(agrees, judged),
        share_of(agrees, changed),
        share_of(changed, everywhere),
    )


MEMBER_COLUMN = "ensemble_member"
"""What an ensemble attack measures of each sample: the number of the member that broke it, from 1; 0 for none."""

DISPLAY_NAMES = {
    "Scouted": "Square with APGD",
    "SquareThenAPGD": "Square with APGD",
    "Counterpart": "altered input",
    "MALTAPGD": "APGD",
    "LevelSetTraversal": "LST",
}
"""Members that readers do not know by the name of their class."""


@dataclass(frozen=True)
class EnsembleBreakdown:
    """Numbers of samples by the member of an ensemble attack that broke them; they add up to all samples.

    Args:
        broken_by: by the member's name, in order; of a sweep, at the smallest eps that breaks the sample.
        broken_during_search: broken by an input that a member tried and did not return (check C15).
        misclassified_clean: misclassified before the attack.
        robust: broken by no member.
    """

    broken_by: Mapping[str, int]
    broken_during_search: int
    misclassified_clean: int
    robust: int

    @property
    def text(self) -> str:
        """One line.

        Example:
            >>> EnsembleBreakdown({"APGD": 31, "FMN": 2}, 0, 1, 12).text
            'broken by APGD 31, FMN 2; misclassified before 1, robust 12'
        """
        by = [f"{name} {count}" for name, count in self.broken_by.items()]
        met = self.broken_during_search
        during = f", during the search {met}" if met else ""
        wrong = self.misclassified_clean
        before = f"misclassified before {wrong}, " if wrong else ""
        return f"broken by {', '.join(by)}{during}; {before}robust {self.robust}"

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return asdict(self)


def ensemble_breakdown(cell: FinishedCell) -> EnsembleBreakdown | None:
    """Return the number of samples that each member broke; None if the attack is no ensemble."""
    column = cell.sample_values.get(MEMBER_COLUMN)
    names = _member_names(cell.attack.members)
    if column is None or not names:
        return None
    wrong = int((~cell.was_attacked).sum())
    broken = cell.ids[cell.records.columns.is_broken].tolist()
    numbers = (int(column.get(sample) or 0) for sample in broken)
    counts = Counter(number if number <= len(names) else 0 for number in numbers)
    members = {name: counts[number] for number, name in enumerate(names, 1)}
    return EnsembleBreakdown(members, counts[0], wrong, len(cell.records) - wrong - len(broken))


def _member_names(members: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the display names of the members; those that share a name are numbered."""
    names = [_member_name(member) for member in members]
    several = {name for name, count in Counter(names).items() if count > 1}
    return [
        f"{name} ({number})" if name in several else name for number, name in enumerate(names, 1)
    ]


def _member_name(member: Mapping[str, Any]) -> str:
    kind = str(member["type"]).rpartition(":")[2]
    name, classes = DISPLAY_NAMES.get(kind, kind), member.get("target_classes")
    if member.get("donor") == "aligned":
        return f"{name} to aligned images"
    if member.get("radius_schedule") or member.get("widths"):
        return f"{name} from larger budgets"
    return f"{name} toward {classes} classes" if classes else name


def attack_seconds(cell: FinishedCell) -> float:
    """Return the seconds that the blocks of samples took, in all runs that the cell was resumed in."""
    times = [e.get("seconds") for e in cell.events if e.get("event") == "block_time"]
    return round(sum(float(t) for t in times if isinstance(t, float | int)), 1)


def cell_to_json(cell: FinishedCell) -> dict[str, Any]:
    """Return a cell as ``--json`` prints it, without the verdicts of the checks."""
    summary, helper, breakdown = cell.summary, cell.threat.substitute, ensemble_breakdown(cell)
    invariance, agreement = cell.threat.wants_same_prediction, agreement_rates(cell)
    median = summary.median_distance
    return {
        "digest": cell.digest,
        "model": cell.model.name,
        "model_digest": cell.model.key,
        "attack": cell.attack.name,
        "attack_label": cell.attack_label,
        "attack_digest": cell.attack.key,
        "kind": cell.kind,
        "threat": cell.threat.text,
        "norm": cell.norm,
        "goal": cell.goal,
        "access": cell.threat.access,
        "substitute": helper and helper.name,
        "dataset": cell.dataset.name,
        "dataset_digest": cell.info.dataset_key,
        "seed": cell.info.seed,
        "samples": len(cell.records),
        "epsilons": list(cell.epsilons),
        "clean_accuracy": summary.clean_accuracy.to_json(),
        "robust_accuracy": [rate.to_json() for rate in summary.robust_accuracy],
        **({"looks": list(cell.looks)} if cell.looks else {}),
        "certified": [each.to_json() for each in sandwiches(cell)],
        "attack_success_rate": summary.attack_success_rate.to_json(),
        "median_distance": None if median is None or isinf(median) else median,
        "rejection": summary.rejection and summary.rejection.to_json(),
        "forward_passes": summary.forward_passes,
        "backward_passes": summary.backward_passes,
        "statuses": summary.statuses,
        "invariance": invariance_to_json(cell) if invariance else None,
        "agreement": agreement and agreement.to_json(),
        "ensemble": breakdown and breakdown.to_json(),
    }
