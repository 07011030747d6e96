"""Finished cells in memory, for tests of what reads records; imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from robustbench_inv.results.cell import CellInfo, FinishedCell
from robustbench_inv.results.record import Distances, ModelOutput, Record
from robustbench_inv.results.record_columns import Records

__all__ = ["toy_cell", "toy_record"]


def toy_record(sample: int, broken_at: float | None = None, /, **changes: object) -> Record:
    """Return the record of a sample of class 3 under a linf attack, consistent unless ``changes`` override it.

    Args:
        sample: sample id.
        broken_at: eps that broke it, by a change of all 4 elements; 0 if misclassified before the attack.
        changes: fields to replace.
    """
    wrong = broken_at == 0
    shift = broken_at or 0.0
    record = Record(
        sample=sample,
        label=3,
        clean=ModelOutput(5 if wrong else 3, None, None),
        adversarial=ModelOutput(3 if broken_at is None else 5, None, None),
        oracle_label=None,
        oracle_source=None,
        distance=Distances(4 if shift else 0, 4 * shift, 2 * shift, shift),
        broken_at=broken_at,
        within_budget=True,
        goal_reached=broken_at is not None,
        forward_passes=0 if wrong else 5,
        backward_passes=0 if wrong else 4,
        zero_gradient=False,
        replayed=True,
        status="already_wrong" if wrong else "ok",
    )
    return replace(record, **changes)  # type: ignore[arg-type]


def toy_cell(
    attack: str,
    broken: Sequence[float | None],
    /,
    *,
    epsilons: Sequence[float] = (0.1, 0.2),
    gradients: bool = True,
    parameters: Mapping[str, object] | None = None,
    **parts: Mapping[str, object],
) -> FinishedCell:
    """Return the cell of an attack on a toy model with four inputs in [0, 1].

    Args:
        attack: its name, which is also the name of its class.
        broken: for the samples 0, 1, …, the eps that broke them.
        epsilons: the sweep.
        gradients: did the attack take gradients?
        parameters: of the attack.
        parts: values to replace in the parts of cell.json (model, attack, threat, dataset).
    """
    passes = {} if gradients else {"backward_passes": 0}
    about: dict[str, dict[str, object]] = {
        "model": {"name": "toy"},
        "attack": {
            "name": attack,
            "implementation": f"toys:{attack.upper()}",
            "kind": "fixed-budget",
            "parameters": dict(parameters or {}),
        },
        "threat": {"norm": "linf", "epsilons": list(epsilons), "goal": "misclassify"},
        "dataset": {"name": "four", "bounds": [0.0, 1.0], "shape": [4]},
    }
    cell = {name: {**part, **parts.get(name, {})} for name, part in about.items()}
    records = tuple(toy_record(sample, eps, **passes) for sample, eps in enumerate(broken))
    requested = tuple(range(len(broken)))
    info = CellInfo.from_json({**cell, "seed": 0})
    return FinishedCell("0" * 32, info, Records.of(records), requested)
