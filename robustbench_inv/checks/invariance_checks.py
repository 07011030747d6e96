"""Checks of invariance cells: exact inverse (C32), ReLU preimage (C33), oracle (C34, C35), strength (C43 to C45)."""

from collections.abc import Hashable, Iterable, Sequence
from math import inf

from robustbench_inv.arguments import format_eps
from robustbench_inv.checks.check_list import CHECKS
from robustbench_inv.checks.comparisons import (
    TOLERATED_SHARE,
    common_samples,
    group_by,
    verdict_about,
)
from robustbench_inv.checks.verdict import Grade, Verdict, format_ids, grade
from robustbench_inv.results.cell import FinishedCell
from robustbench_inv.results.rates import corrected_rate, invariance_rates, searched_by_panel
from robustbench_inv.results.record import Record
from robustbench_inv.results.summary import Rate

__all__ = [
    "EXACT_TOLERANCE",
    "FAILURE_SHARE",
    "check_activation_match",
    "check_invariance_effort",
    "check_inverse",
    "check_oracle",
    "check_oracle_agreement",
    "check_preimage",
    "check_weaker_invariance",
    "exceeds_tolerance",
    "invariance_number",
    "largest_error",
    "matches_activations",
    "uses_inverse",
    "uses_preimage_solver",
]


ORACLE_ERROR_LIMIT = 0.1
"""C34: error rate of an oracle, on clean inputs or catch trials, above which the check warns."""


def check_oracle(cell: FinishedCell) -> Verdict:
    """C34: does every success name an oracle that is not the model itself and whose error rate is known?

    Classes that the data set itself defines, by computation or by human labels, need no error rate.
    """
    nameless = [r.sample for r in cell.records if _success_without_oracle(r)]
    itself, (error, doubtful) = _attacked_model_in_oracle(cell), _oracle_error_text(cell)
    unsure = _possible_errors(cell)
    sources = sorted({r.oracle_source for r in cell.records if r.oracle_source}) or ["no oracle"]
    evidence = (
        f"Classes of {len(cell.records)} inputs are from {', '.join(sources)}; {len(nameless)} "
        f"successes without an oracle{': samples ' + format_ids(nameless) if nameless else ''}{itself}; {error}{unsure}."
    )
    verdict: Grade = "FAIL" if nameless or itself else "WARN" if doubtful or unsure else "PASS"
    return CHECKS["C34"].make_verdict(cell.subject, verdict, len(nameless), evidence)


def check_oracle_agreement(cell: FinishedCell) -> Verdict:
    """C35: can agreement with the oracle be reported beside agreement with the label of the clean input?

    A model that predicts the old label on all changed inputs is wrong: that is the invariance failure.
    """
    found = invariance_rates(cell.records)
    unknown = found.oracle_undecided.value if found.oracle_undecided.trials else 0.0
    same, old = found.agrees_with_oracle, found.agrees_with_label
    evidence = (
        f"Of {same.trials} changed inputs with a class by the oracle, {same.successes} are predicted as the "
        f"oracle's class and {old.successes} as the label of the clean input; on {found.oracle_undecided.successes} of "
        f"{found.oracle_undecided.trials} attacked samples the oracle is undecided."
    )
    verdict = grade(unknown, warn=0.5, fail=1 - 1e-9)
    return CHECKS["C35"].make_verdict(cell.subject, verdict, unknown, evidence)


def _success_without_oracle(record: Record) -> bool:
    return record.is_broken and None in (record.oracle_label, record.oracle_source)


def _attacked_model_in_oracle(cell: FinishedCell) -> str:
    """Return a note if the attacked model is part of the oracle; else an empty text."""
    oracle, model = cell.threat.oracle, cell.model
    if oracle is None or not model.digest:
        return ""
    digests = {oracle.digest, *(member.digest for member in oracle.members)}
    return f"; {model.name} is part of its own oracle" if model.digest in digests else ""


def _possible_errors(cell: FinishedCell) -> str:
    """Return a note if all failures may be errors of the oracle; else an empty text."""
    corrected, failures = corrected_rate(cell), cell.summary.attack_success_rate.successes
    if not failures or not (searched_by_panel(cell) or (corrected and not corrected.low)):
        return ""
    search = "the search takes the oracle's decisions, so " if searched_by_panel(cell) else ""
    return f"; {search}all failures ({failures}) may be its errors"


def _oracle_error_text(cell: FinishedCell) -> tuple[str, bool]:
    """Return the oracle's error rate as text, and whether it is unknown or too high."""
    error = cell.oracle_error
    if error is None:
        named = cell.threat.oracle is not None
        return "its error rate was not measured" if named else "it belongs to the data set", named
    share = error.error_rate
    text = (
        f"it is wrong on {error.errors} of {error.trials} {error.measured_on} "
        f"[{100 * share.low:.1f}, {100 * share.high:.1f}] %, undecided on {error.undecided}"
        + (f"; {error.detection.text}" if error.detection else "")
    )
    return text, not share.trials or share.value > ORACLE_ERROR_LIMIT


EXACT_TOLERANCE = 1e-3
"""Largest error of an element, of a reconstructed input or of a re-encoded metamer's logits."""

FAILURE_SHARE = 0.001
"""Share of samples above which a cell fails."""

INVERSE_ERRORS = {
    "reconstruction_error": "inputs that are decoded from their own code",
    "reencoding_error": "logits of re-encoded metamers",
}


PREIMAGE_VALUES = ("activation_error", "changed_units", "solver_status")


def invariance_number(cell: FinishedCell) -> str:
    """Return a sentence with the failure rate, the budget, and what the oracle misses where that was measured."""
    rate, corrected = cell.summary.attack_success_rate, corrected_rate(cell)
    levels = [format_eps(eps) for eps in cell.epsilons]
    within = f"within {cell.norm} {levels[-1]}" if levels else "at any distance"
    judged = f", oracle {cell.oracle_source}" if cell.oracle_source else ""
    detection = cell.oracle_error and cell.oracle_error.detection
    if corrected and detection:
        seen = f"{detection.recall.value:.0%} of the changes that people see"
        judged += f", which reports {seen}: corrected {corrected.percent}"
    return f"Invariance failures {rate.percent} {within} of {rate.trials} samples, attack: {cell.attack_label}{judged}."


def uses_inverse(cell: FinishedCell) -> bool:
    """Did the attack measure the error of an inverse?"""
    return bool(INVERSE_ERRORS.keys() & cell.sample_values.keys())


def check_inverse(cell: FinishedCell) -> Verdict:
    """C32: is the inverse exact: does every input decode from its code, and every metamer encode to its logits?

    If not, a metamer has other logits than its source and proves nothing.
    """
    columns = cell.sample_values
    errors = {name: columns[name] for name in INVERSE_ERRORS if name in columns}
    worst = {name: largest_error(column.values()) for name, column in errors.items()}
    off = {
        s for column in errors.values() for s, error in column.items() if exceeds_tolerance(error)
    }
    n = max(map(len, errors.values()), default=0)
    share = len(off) / max(n, 1)
    listed = "; ".join(
        f"{INVERSE_ERRORS[name]} are off by at most {worst[name]:.2g}" for name in errors
    )
    more = f": samples {format_ids(off)}; try float64" if off else ""
    evidence = f"{n} samples: {listed}; {len(off)} of them by more than {EXACT_TOLERANCE:g}{more}."
    verdict = grade(share, warn=0, fail=FAILURE_SHARE) if errors else "NA"
    return CHECKS["C32"].make_verdict(cell.subject, verdict, share, evidence)


def largest_error(errors: Iterable[float | None]) -> float:
    """Return the largest error; inf if one is not finite."""
    return max((inf if error is None else error for error in errors), default=0.0)


def exceeds_tolerance(error: float | None) -> bool:
    """Is an error not finite, or larger than rounding explains?"""
    return error is None or error > EXACT_TOLERANCE


def uses_preimage_solver(cell: FinishedCell) -> bool:
    """Did the attack measure the errors of the activations that it keeps?"""
    return set(PREIMAGE_VALUES) <= cell.sample_values.keys()


def check_preimage(cell: FinishedCell) -> Verdict:
    """C33: has every adversarial input the activations of the clean one, with every unit on its side of the ReLU?

    If not, it does not lie in the preimage and shows no invariance of the layer. A solver that stopped before
    its optimum gives WARN: the preimage may reach farther.
    """
    columns = cell.sample_values
    activation, pattern, solver = (columns[name] for name in PREIMAGE_VALUES)
    off = {s for s, moved in activation.items() if exceeds_tolerance(moved)}
    crossed = {s for s, units in pattern.items() if units is None or units > 0}
    stopped = {s for s, status in solver.items() if status != 0}
    bad = off | crossed
    share = len(bad) / max(len(activation), 1)
    which = f": samples {format_ids(bad)}" if bad else ""
    evidence = (
        f"{len(activation)} samples: activations differ by at most {largest_error(activation.values()):.2g}, on {len(off)} by more than {EXACT_TOLERANCE:g}; units "
        f"changed sides on {len(crossed)}{which}; the solver ended early on {len(stopped)}."
    )
    verdict = grade(share, warn=0, fail=FAILURE_SHARE)
    if verdict == "PASS" and stopped:
        verdict = "WARN"
    return CHECKS["C33"].make_verdict(cell.subject, verdict, share, evidence)


MATCH_VALUES = ("match_error", "null_error")

UNMATCHED_SHARE = 0.5
"""C44: share of samples without a match above which the check warns: the search did not converge."""


def matches_activations(cell: FinishedCell) -> bool:
    """Did the attack measure how well activations match, and how well those of random inputs do?"""
    return set(MATCH_VALUES) <= cell.sample_values.keys()


def check_activation_match(cell: FinishedCell) -> Verdict:
    """C44: do the activations of every counted metamer match better than those of random inputs?

    Otherwise the layer distinguishes the metamer from its source as it does any other input, and the failure is no
    evidence of invariance of the layer. Where most searches end without a match, the failure rate is too low.

    References:
        Feather, Leclerc, Mądry and McDermott, Model metamers reveal divergent invariances between biological and
        artificial neural networks, Nature Neuroscience 2023: a metamer must match better than random pairs.
    """
    match, null = (cell.sample_values[name] for name in MATCH_VALUES)
    broken = [record.sample for record in cell.records if record.is_broken]
    missed = [sample for sample, error in match.items() if not _beats(error, null.get(sample))]
    counted = [sample for sample in broken if sample in set(missed) or sample not in match]
    share, open_ = len(counted) / max(len(broken), 1), len(missed) / max(len(match), 1)
    which = f" (samples {format_ids(counted)})" if counted else ""
    evidence = (
        f"{len(counted)} of {len(broken)} failures have activations that match no better than the closest of random "
        f"inputs{which}; of all {len(match)} searches {len(missed)} ended without a match."
    )
    verdict = grade(share, warn=0, fail=FAILURE_SHARE)
    if verdict == "PASS" and open_ > UNMATCHED_SHARE:
        verdict = "WARN"
    return CHECKS["C44"].make_verdict(cell.subject, verdict, share, evidence)


def _beats(error: float | None, null: float | None) -> bool:
    return error is not None and null is not None and error < null


def check_weaker_invariance(cells: Sequence[FinishedCell]) -> list[Verdict]:
    """C43: does a single invariance attack reach its goal for a sample that the worst case over attacks missed?

    The limit is that of C5. Models that only one of the two kinds was run on get no verdict.
    """
    pairs = ((group, *_by_strength(group)) for group in _invariance_groups(cells))
    return [_weaker(*pair) for pair in pairs if pair[1] and pair[2]]


FEW_FAILURES, MANY_FAILURES = 0.1, 0.5
"""C45: failure rates below which a report calls a model not invariant, and below which its rate is doubtful."""

FEWEST_ATTACKED = 20
"""C45: attacked samples from which on a low failure rate is a claim, and false without a stronger attack."""


def check_invariance_effort(cells: Sequence[FinishedCell]) -> list[Verdict]:
    """C45: does the worst case over invariance attacks support a low failure rate?

    Single attacks miss most failures: ``collision`` finds 0.2 % on mnist-cnn-at, where other attacks find all. The closed
    form on spheres is a worst case too.
    """
    found = ((group, *_by_strength(group)) for group in _invariance_groups(cells))
    return [_effort(group, weak) for group, strong, weak in found if weak and not strong]


def _invariance_groups(cells: Sequence[FinishedCell]) -> list[list[FinishedCell]]:
    searched = (c for c in cells if c.threat.wants_same_prediction and c.kind == "invariance")
    return group_by(searched, _invariance_key)


def _invariance_key(cell: FinishedCell) -> Hashable:
    threat = cell.threat
    oracle = threat.oracle.digest if threat.oracle else cell.oracle_source
    return cell.model.key, cell.info.dataset_key, cell.norm, cell.goal, oracle


def _by_strength(
    group: Sequence[FinishedCell],
) -> tuple[list[FinishedCell], list[FinishedCell]]:
    """Return the worst cases over attacks, and the single attacks."""
    strong = [c for c in group if c.attack.members or c.attack.algorithm == "spheresinvariance"]
    return strong, [cell for cell in group if cell not in strong]


def _weaker(
    group: Sequence[FinishedCell], strong: Sequence[FinishedCell], weak: Sequence[FinishedCell]
) -> Verdict:
    worst: tuple[Rate, str] | None = None
    for eps in sorted({eps for cell in group for eps in cell.epsilons or (inf,)}):
        here = [[c for c in kind if _searched_up_to(c, eps)] for kind in (strong, weak)]
        samples = common_samples([*here[0], *here[1]])
        if all(here) and samples:
            found = _missed(here[0], here[1], eps, samples)
            worst = max(worst or found, found, key=lambda gap: gap[0].value)
    if worst is None:
        return verdict_about("C43", group[0], "NA", None, "No samples and budgets are common.")
    gap, evidence = worst
    verdict = "FAIL" if gap.low > TOLERATED_SHARE else grade(gap.value, warn=TOLERATED_SHARE)
    return verdict_about("C43", group[0], verdict, gap.value, evidence)


def _searched_up_to(cell: FinishedCell, eps: float) -> bool:
    """Was the cell's search allowed to go as far, so that a sample without a failure is one that it missed?"""
    return not cell.epsilons or (eps < inf and cell.covers(eps))


def _missed(
    strong: Sequence[FinishedCell], weak: Sequence[FinishedCell], eps: float, samples: set[int]
) -> tuple[Rate, str]:
    ours, theirs = (set().union(*(c.broken_samples(eps) for c in k)) for k in (strong, weak))
    extra = theirs & samples - ours
    which = f": samples {format_ids(extra)}" if extra else ""
    where = "at any distance" if eps == inf else f"at {strong[0].norm} eps {format_eps(eps)}"
    names = " and ".join(sorted({cell.attack_label for cell in weak}))
    evidence = (
        f"{where[:1].upper()}{where[1:]}, {names} found failures for {len(extra)} of {len(samples)} samples that "
        f"{strong[0].attack_label} missed{which}."
    )
    return Rate(len(extra), len(samples)), evidence


def _effort(group: Sequence[FinishedCell], weak: Sequence[FinishedCell]) -> Verdict:
    samples = sorted(common_samples(weak))
    attacked = set(samples).intersection(*(c.ids[c.was_attacked].tolist() for c in weak))
    broken = set().union(*({r.sample for r in c.records if r.is_broken} for c in weak)) & attacked
    rate, names = Rate(len(broken), len(attacked)), sorted({c.attack_label for c in weak})
    if not rate.trials:
        return verdict_about("C45", group[0], "NA", None, "No sample was attacked.")
    evidence = (
        f"{' and '.join(names)} found failures for {rate.successes} of {rate.trials} samples, and invariance-standard was "
        f"not run in {group[0].norm}."
    )
    verdict: Grade = "PASS" if rate.value >= MANY_FAILURES else "WARN"
    is_claim = rate.trials >= FEWEST_ATTACKED
    verdict = "FAIL" if is_claim and rate.value < FEW_FAILURES else verdict
    return verdict_about("C45", group[0], verdict, rate.value, evidence)
