"""The validity checks of a run: probes of its models, and checks of its finished cells."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from robustbench_inv.checks.cells import CellView, FinishedCell
from robustbench_inv.checks.comparisons import (
    check_eps_scale,
    check_gradient_free,
    check_monotone,
    check_single_step,
    escalate_saturation,
)
from robustbench_inv.checks.effort import check_changed, check_reach
from robustbench_inv.checks.inverse import check_inverse, inverts
from robustbench_inv.checks.oracles import check_agreement, check_oracle
from robustbench_inv.checks.preimage import check_preimage, solves_for_preimages
from robustbench_inv.checks.records import (
    check_completeness,
    check_consistency,
    check_crashes,
    check_lost_successes,
    check_shown_inputs,
)
from robustbench_inv.checks.rejection import (
    check_adaptive,
    check_both_rates,
    check_false_rejection,
    check_frozen,
    check_noise,
    check_small_steps,
    rejecting,
)
from robustbench_inv.checks.verdict import CHECKS, Verdict

if TYPE_CHECKING:  # torch is imported by what runs a model, not by what reads records
    from robustbench_inv.checks.probes import ProbedModel
    from robustbench_inv.data.protocol import Dataset

__all__ = ["Requested", "check_records", "concerning", "probe_model"]

Requested = Sequence[int] | Mapping[str, Sequence[int]] | None
"""The samples asked for: the same of every cell, or by a cell's digest; None: what each cell says itself."""


def probe_model(
    model: "ProbedModel",
    dataset: "Dataset",
    samples: Sequence[int],
    seed: int = 0,
    device: str = "cpu",
    *,
    deep: bool = False,
) -> list[Verdict]:
    """Run the probes C1, C2, C6, C7, C10, C11, C12 and C17 on a model, the deep ones C4, C8, C13 and C31 if asked for.

    Args:
        model: the loaded model.
        dataset: the data it is evaluated on.
        samples: ids of the evaluation; at most 100 of them are probed and 64 attacked.
        seed: of the attacks' random numbers.
        device: where the model is.
        deep: run the costly probes as well.

    Returns:
        one verdict for each check; a probe that raises gives NA and the reason.
    """
    from robustbench_inv.checks.probe import Probe, spread
    from robustbench_inv.checks.probes import DEEP_PROBES, PROBES

    def run(check: Callable[[Probe], Verdict], count: int) -> list[Verdict]:
        ids = spread(samples, count)
        return [check(Probe.of(model.name, model.classifier, dataset, ids, seed).on(device))]

    probes = (*PROBES, *DEEP_PROBES) if deep else PROBES
    guarded = (_guarded(id_, model.name, partial(run, check, n)) for id_, n, check in probes)
    return [verdict for verdicts in guarded for verdict in verdicts]


def check_records(
    cells: Sequence[FinishedCell],
    samples: Requested = None,
    probes: Sequence[Verdict] = (),
) -> list[Verdict]:
    """Check the finished cells of a run, each by itself and against one another; imports no torch.

    Args:
        cells: the cells.
        samples: the samples asked for.
        probes: verdicts of ``probe_model``, which come first in what is returned; C7 is decided here, as it
            depends on which losses the plan uses.

    Returns:
        the probes' verdicts, those of each cell (C14, C15, C22, C23, C30, C16 where errors are sought, C19 of iterative attacks, C27
        and C28 where the model rejects, C32 where an inverse was used, C33 where preimages were solved for, C34 and C35 where the decision is to be
        kept), and those that compare cells (C1,
        C3, C5, C17, and C24, C25, C26 and C29 of models that reject), which have the models as subjects.
    """
    views = [CellView.read(cell) for cell in cells]
    decided = escalate_saturation(probes, views)
    alone = [v for view in views for v in _check_cell(view, _requested(view, samples))]
    comparisons = (
        ("C1", check_monotone),
        ("C3", check_single_step),
        ("C5", check_gradient_free),
        ("C17", check_eps_scale),
        ("C24", check_frozen),
        ("C25", check_false_rejection),
        ("C26", check_adaptive),
        ("C29", check_noise),
    )
    models = ", ".join(sorted({view.model for view in views}))
    compared = [v for id_, f in comparisons for v in _guarded(id_, models, partial(f, views))]
    return [*decided, *alone, *compared]


def concerning(verdicts: Iterable[Verdict], cell: FinishedCell) -> list[Verdict]:
    """Return the verdicts that concern a cell: its own, its model's, and the run's."""
    view = CellView(cell, (), ())
    subjects = {"cell": view.subject, "model": view.model}
    return [v for v in verdicts if subjects.get(v.scope, v.subject) == v.subject]


def _check_cell(view: CellView, requested: Sequence[int]) -> list[Verdict]:
    checks: tuple[tuple[str, Callable[[CellView], Verdict]], ...] = (
        ("C14", check_shown_inputs),
        ("C15", check_lost_successes),
        *((("C16", check_changed),) if view.seeks_errors else ()),
        *((("C19", check_reach),) if view.iterative else ()),
        ("C22", check_consistency),
        ("C23", partial(check_completeness, requested=requested)),
        ("C30", check_crashes),
        *((("C32", check_inverse),) if inverts(view) else ()),
        *((("C33", check_preimage),) if solves_for_preimages(view) else ()),
        *(
            (("C27", check_both_rates), ("C28", check_small_steps))
            if _judged_by_class(view)
            else ()
        ),
        *((("C34", check_oracle), ("C35", check_agreement)) if not view.seeks_errors else ()),
    )

    def run(check: Callable[[CellView], Verdict]) -> list[Verdict]:
        return [check(view)]

    return [v for id_, c in checks for v in _guarded(id_, view.subject, partial(run, c))]


def _judged_by_class(view: CellView) -> bool:
    """Does the model reject, and is what is shown to it of a class? Noise is of none."""
    return rejecting(view) and view.goal != "accept"


def _requested(view: CellView, samples: Requested) -> Sequence[int]:
    if samples is None:
        return view.source.samples
    if isinstance(samples, Mapping):
        return samples.get(view.source.digest, view.source.samples)
    return samples


def _guarded(id_: str, subject: str, run: Callable[[], list[Verdict]]) -> list[Verdict]:
    """Run a check; what it raises is a verdict too, as a check must never end an evaluation."""
    try:
        return run()
    except Exception as error:
        reason = f"The check could not be made: {type(error).__name__}: {error}"
        return [CHECKS[id_].says(subject, "NA", None, " ".join(reason.split()))]
