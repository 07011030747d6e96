"""The validity checks of a run: probes of its models, and checks of its finished cells."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from robustbench_inv.checks.check_list import CHECKS
from robustbench_inv.checks.comparisons import (
    check_card_accuracy,
    check_eps_scale,
    check_gradient_free,
    check_monotone,
    check_single_step,
    escalate_saturation,
)
from robustbench_inv.checks.invariance_checks import (
    check_inverse,
    check_oracle,
    check_oracle_agreement,
    check_preimage,
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
from robustbench_inv.checks.verdict import Verdict
from robustbench_inv.errors import describe_error
from robustbench_inv.foreign import foreign_call
from robustbench_inv.results.cell import FinishedCell

if TYPE_CHECKING:
    from robustbench_inv.checks.probe import Probe, ProbedModel
    from robustbench_inv.data.protocol import Dataset

__all__ = [
    "RequestedSamples",
    "check_records",
    "list_probes",
    "probe_model",
    "verdicts_about",
]


OF_THE_DATA_SET = ("C39", "C41", "C42")
"""Probes of the whole data set: a few requested samples, or those of one class, may hide wrong labels."""

RequestedSamples = Sequence[int] | Mapping[str, Sequence[int]] | None
"""The requested samples: the same for all cells, or by a cell's digest; None for those of each cell.json."""


def probe_model(
    model: "ProbedModel",
    dataset: "Dataset",
    samples: Sequence[int],
    seed: int = 0,
    device: str = "cpu",
    *,
    deep: bool = False,
) -> list[Verdict]:
    """Run the probes C1, C2, C6, C7, C10 to C12, C17, C39, C41 and C42 on a model, with ``deep`` C4, C8, C13 and C31.

    Args:
        model: the loaded model.
        dataset: the data it is evaluated on.
        samples: ids of the evaluation; at most 100 of them are probed and 64 attacked, fewer if memory is short.
            C39, C41 and C42 use 100 of the whole data set.
        seed: of the attacks' random numbers.
        device: where the model is.
        deep: run the costly probes too.

    Returns:
        one verdict for each check; a probe that raises gives NA and the reason.
    """
    from robustbench_inv.checks.probe import Probe, evenly_spaced
    from robustbench_inv.randomness import seeded_generators
    from robustbench_inv.tensors import is_out_of_memory
    from robustbench_inv.torch_state import kept_modules, stated_torch

    def run(check: Callable[[Probe], Verdict], count: int, chosen: Sequence[int]) -> list[Verdict]:
        ids = evenly_spaced(chosen, count)
        kept.restore()
        try:
            probe = Probe.of(model.name, model.classifier, dataset, ids, seed).to_device(device)
            return [check(probe)]
        except (RuntimeError, MemoryError) as error:
            if len(ids) == 1 or not is_out_of_memory(error):
                raise
        return run(check, len(ids) // 2, chosen)

    every, guarded = range(len(dataset)), []
    with (
        stated_torch(),
        seeded_generators(seed % 2**32, []),
        kept_modules([model.classifier]) as kept,
    ):
        for id_, n, check in list_probes(deep=deep):
            chosen = every if id_ in OF_THE_DATA_SET else samples
            guarded.append(_run_check(id_, model.name, partial(run, check, n, chosen)))
    return [verdict for verdicts in guarded for verdict in verdicts]


def list_probes(*, deep: bool = False) -> list[tuple[str, int, "Callable[[Probe], Verdict]"]]:
    """Return the id of each check of a model, its number of samples, and its function.

    The deep ones take hundreds of passes for each sample.
    """
    from robustbench_inv.checks import attack_strength, clean_accuracy, gradients, model_outputs
    from robustbench_inv.checks.probe import ATTACK_SAMPLES, DIFFERENCE_SAMPLES, PROBE_SAMPLES

    usual: list[tuple[str, int, Callable[[Probe], Verdict]]] = [
        ("C1", ATTACK_SAMPLES, attack_strength.check_monotone_attack),
        ("C2", ATTACK_SAMPLES, attack_strength.check_unbounded),
        ("C6", PROBE_SAMPLES, gradients.check_gradients),
        ("C7", PROBE_SAMPLES, gradients.check_saturation),
        ("C10", PROBE_SAMPLES, model_outputs.check_logits),
        ("C11", PROBE_SAMPLES, model_outputs.check_determinism),
        ("C12", PROBE_SAMPLES, gradients.check_single_pass),
        ("C17", PROBE_SAMPLES, model_outputs.check_bounds),
        ("C39", PROBE_SAMPLES, clean_accuracy.check_clean_accuracy),
        ("C41", PROBE_SAMPLES, clean_accuracy.check_inputs),
        ("C42", PROBE_SAMPLES, clean_accuracy.check_labels),
    ]
    costly: list[tuple[str, int, Callable[[Probe], Verdict]]] = [
        ("C4", ATTACK_SAMPLES, attack_strength.check_convergence),
        ("C8", ATTACK_SAMPLES, attack_strength.check_logit_scale),
        ("C13", ATTACK_SAMPLES, attack_strength.check_fixed_noise),
        ("C31", DIFFERENCE_SAMPLES, gradients.check_gradient_accuracy),
    ]
    return [*usual, *costly] if deep else usual


def check_records(
    cells: Sequence[FinishedCell],
    samples: RequestedSamples = None,
    probes: Sequence[Verdict] = (),
) -> list[Verdict]:
    """Check the finished cells of a run, each alone and together; imports no torch.

    Args:
        cells: the cells.
        samples: the requested samples.
        probes: verdicts of ``probe_model``. C7 is decided here, since it depends on the losses of the attacks.

    Returns:
        the probes' verdicts, then those of each cell, then those that compare cells (subject: the model).
        Every cell gets C14, C15, C22, C23 and C30; C16 unless it is an invariance attack; C19 if it is iterative;
        C27 and C28 if the model has a reject option; C32 if an inverse was used; C33 if preimages were computed;
        C34 and C35 if it is an invariance attack. Cells are compared by C1, C3, C5, C17 and C40, those of models with
        a reject option also by C24, C25, C26 and C29.
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
    )
    models = ", ".join(sorted({cell.model.name for cell in cells}))
    compared = [v for id_, f in comparisons for v in _run_check(id_, models, partial(f, cells))]
    return [*decided, *alone, *compared]


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

    def run(check: Callable[[FinishedCell], Verdict]) -> list[Verdict]:
        return [check(cell)]

    found = [v for id_, c in checks for v in _run_check(id_, cell.subject, partial(run, c))]
    return [replace(verdict, about=(cell.digest,)) for verdict in found]


def _rejection_applies(cell: FinishedCell) -> bool:
    """Has the model a reject option, and do the inputs belong to a class? Noise does not."""
    return cell.can_reject and not cell.threat.no_class


def _requested(cell: FinishedCell, samples: RequestedSamples) -> Sequence[int]:
    if samples is None:
        return cell.requested
    if isinstance(samples, Mapping):
        return samples.get(cell.digest, cell.requested)
    return samples


def _run_check(id_: str, subject: str, run: Callable[[], list[Verdict]]) -> list[Verdict]:
    """Run a check; an exception becomes a verdict, since a check must never end an evaluation."""
    try:
        with foreign_call(f"check {id_}"):
            return run()
    except Exception as error:
        reason = f"The check could not be made: {describe_error(error)}"
        return [CHECKS[id_].make_verdict(subject, "NA", None, reason)]
