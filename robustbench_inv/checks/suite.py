"""The validity checks of the finished cells of a run."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from robustbench_inv.checks.check_list import CHECKS
from robustbench_inv.checks.comparisons import (
    check_card_accuracy,
    check_certificates,
    check_distances,
    check_eps_scale,
    check_gradient_free,
    check_monotone,
    check_single_step,
    escalate_saturation,
)
from robustbench_inv.checks.invariance_checks import (
    check_activation_match,
    check_invariance_effort,
    check_inverse,
    check_oracle,
    check_oracle_agreement,
    check_preimage,
    check_weaker_invariance,
    matches_activations,
    uses_inverse,
    uses_preimage_solver,
)
from robustbench_inv.checks.records import (
    check_adversarial_inputs,
    check_completeness,
    check_consistency,
    check_crashes,
    check_inputs_changed,
    check_lost_successes,
    check_step_budget,
)
from robustbench_inv.checks.rejection_checks import (
    check_detection_rates,
    check_detector_aware,
    check_false_rejection,
    check_ood_rejection,
    check_small_perturbations,
    check_thresholds_frozen,
)
from robustbench_inv.checks.verdict import IMPOSSIBLE, Verdict
from robustbench_inv.errors import describe_error
from robustbench_inv.foreign import foreign_call
from robustbench_inv.results.cell import FinishedCell

__all__ = [
    "RequestedSamples",
    "check_records",
    "run_check",
    "verdicts_about",
]


RequestedSamples = Sequence[int] | Mapping[str, Sequence[int]] | None
"""The requested samples: the same for all cells, or by a cell's digest; None for those of each cell.json."""


def check_records(
    cells: Sequence[FinishedCell],
    samples: RequestedSamples = None,
    probes: Sequence[Verdict] = (),
) -> list[Verdict]:
    """Check the finished cells of a run, each alone and together; imports no torch.

    Args:
        cells: the cells.
        samples: the requested samples.
        probes: verdicts of ``model_checks.probe_model``. C7 is decided here, since it depends on the losses of the attacks.

    Returns:
        the probes' verdicts, then those of each cell, then those that compare cells (subject: the model).
        A cell without records gets C23 alone. Every other gets C14, C15, C22, C23 and C30; C16 unless it is an invariance attack; C19 if it is iterative;
        C27 and C28 if the model has a reject option; C32 if an inverse was used; C33 if preimages were computed;
        C34 and C35 if it is an invariance attack, C44 if it matches activations. Cells are compared by C1, C3, C5, C17,
        C40, C47 and, with certificates, C46, those of invariance attacks by C43 and C45, those of models with a reject
        option by C24, C25, C26 and C29.
    """
    decided = escalate_saturation(probes, cells)
    alone = [v for cell in cells for v in _check_cell(cell, _requested(cell, samples))]
    comparisons = (
        ("C1", check_monotone),
        ("C3", check_single_step),
        ("C5", check_gradient_free),
        ("C17", check_eps_scale),
        ("C24", check_thresholds_frozen),
        ("C25", check_false_rejection),
        ("C26", check_detector_aware),
        ("C29", check_ood_rejection),
        ("C40", check_card_accuracy),
        ("C43", check_weaker_invariance),
        ("C45", check_invariance_effort),
        ("C46", check_certificates),
        ("C47", check_distances),
    )
    names = {cell.model.key: cell.model.name for cell in cells}
    models = ", ".join(sorted(set(names.values())))
    compared = [v for id_, f in comparisons for v in run_check(id_, models, partial(f, cells))]
    told = [each for v in compared for each in _of_each_model(v, names)]
    return [*decided, *alone, *told]


def _of_each_model(verdict: Verdict, names: Mapping[str, str]) -> list[Verdict]:
    """Return a verdict; one of a comparison that raised for each model, since it is missing for all of them."""
    if not verdict.evidence.startswith(IMPOSSIBLE):
        return [verdict]
    return [replace(verdict, subject=name, about=(key,)) for key, name in names.items()]


def verdicts_about(verdicts: Iterable[Verdict], cell: FinishedCell) -> list[Verdict]:
    """Return the verdicts that concern a cell: its own, its model's, and the run's."""
    return [verdict for verdict in verdicts if verdict.concerns(cell)]


def _check_cell(cell: FinishedCell, requested: Sequence[int]) -> list[Verdict]:
    checks: tuple[tuple[str, Callable[[FinishedCell], Verdict]], ...] = (
        ("C14", check_adversarial_inputs),
        ("C15", check_lost_successes),
        *((("C16", check_inputs_changed),) if not cell.threat.wants_same_prediction else ()),
        *((("C19", check_step_budget),) if cell.iterative else ()),
        ("C22", check_consistency),
        ("C23", partial(check_completeness, requested=requested)),
        ("C30", check_crashes),
        *((("C32", check_inverse),) if uses_inverse(cell) else ()),
        *((("C33", check_preimage),) if uses_preimage_solver(cell) else ()),
        *((("C44", check_activation_match),) if matches_activations(cell) else ()),
        *(
            (("C27", check_detection_rates), ("C28", check_small_perturbations))
            if _rejection_applies(cell)
            else ()
        ),
        *(
            (("C34", check_oracle), ("C35", check_oracle_agreement))
            if cell.threat.wants_same_prediction
            else ()
        ),
    )

    if not cell.records:
        checks = tuple(each for each in checks if each[0] == "C23")

    def run(check: Callable[[FinishedCell], Verdict]) -> list[Verdict]:
        return [check(cell)]

    found = [v for id_, c in checks for v in run_check(id_, cell.subject, partial(run, c))]
    about, count, records = (cell.digest,), len(cell.records), cell.records_digest
    return [replace(v, about=about, samples=count, records=records) for v in found]


def _rejection_applies(cell: FinishedCell) -> bool:
    """Has the model a reject option, and do the inputs belong to a class? Noise does not."""
    return cell.can_reject and not cell.threat.no_class


def _requested(cell: FinishedCell, samples: RequestedSamples) -> Sequence[int]:
    if samples is None:
        return cell.requested
    if isinstance(samples, Mapping):
        return samples.get(cell.digest, cell.requested)
    return samples


def run_check(id_: str, subject: str, run: Callable[[], list[Verdict]]) -> list[Verdict]:
    """Run a check; an exception becomes a verdict, since a check must never end an evaluation."""
    try:
        with foreign_call(f"check {id_}"):
            return run()
    except Exception as error:
        reason = f"{IMPOSSIBLE}: {describe_error(error)}"
        return [CHECKS[id_].make_verdict(subject, "NA", None, reason)]
