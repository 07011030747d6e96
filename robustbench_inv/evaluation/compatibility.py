"""Checks, before anything runs, that model, attack, threat and data set of a cell are compatible."""

from collections.abc import Iterator

from robustbench_inv.arguments import format_eps, is_tiny
from robustbench_inv.attacks.protocol import RestrictsUse
from robustbench_inv.catalogue.attacks import LoadedAttack
from robustbench_inv.catalogue.listing import list_entries
from robustbench_inv.catalogue.models import LoadedModel
from robustbench_inv.data.protocol import Dataset, HasClassNames, HasNotes, beyond_classes_remedy
from robustbench_inv.errors import CapabilityMismatch, RangeMismatch
from robustbench_inv.evaluation.jobs import Job
from robustbench_inv.evaluation.loading import inspect_model
from robustbench_inv.evaluation.oracles import needs_oracle
from robustbench_inv.evaluation.panel import PanelOracle
from robustbench_inv.threat.goals import Accept, KeepDecision, KeepLogits, Target

__all__ = ["check_compatible", "check_fits", "warnings"]


def check_compatible(job: Job) -> None:
    """Check that a cell can be evaluated.

    Raises:
        CapabilityMismatch: for incompatible parts; the message names both, on one line.
        BadModel: for a model whose output cannot be used.
    """
    _check_budget(job)
    _check_goal(job)
    for model in (job.model, job.substitute):
        if model is not None:
            check_fits(model, job.dataset)
    _check_substitute(job)
    _check_oracle(job)
    if isinstance(job.attack.attack, RestrictsUse):
        _check_own_restrictions(job.attack.attack, job)


def warnings(job: Job) -> Iterator[str]:
    """Yield warnings about likely mistakes, one line each."""
    yield from job.oracle.notes if job.oracle else ()
    yield from job.dataset.notes if isinstance(job.dataset, HasNotes) else ()
    if job.excluded:
        n = len(job.samples) + job.excluded
        yield f"{job.title}: {job.excluded} of {n} samples belong to the target class and are excluded"
    low, high = job.dataset.bounds
    largest, width = max(job.epsilons, default=0.0), high - low
    far = "larger than the whole" if job.threat.norm == "linf" and largest > width else ""
    if is_tiny(job.threat.norm, largest, width):
        far = "less than a thousandth of the"
    if far:
        yield (
            f"eps {format_eps(largest)} is {far} range [{low:g}, {high:g}] of {job.dataset.name}: eps is in input units; "
            f"8 of 255 grey levels are linf={format_eps(8 / 255 * width)}"
        )


def _check_own_restrictions(attack: RestrictsUse, job: Job) -> None:
    """Check the attack's own requirements; the names of attack and model are added to its message."""
    try:
        attack.check_requirements(job.search_model.classifier, job.threat, job.dataset)
    except CapabilityMismatch as error:
        problem = f"{job.attack.name} on {job.search_model.name}: {error.problem}"
        raise CapabilityMismatch(
            problem, got=error.got, expected=error.expected, remedy=error.remedy
        ) from None


def _check_budget(job: Job) -> None:
    attack, threat = job.attack, job.threat
    if attack.attack.kind == "fixed-budget" and not threat.bounded:
        raise CapabilityMismatch(
            f"{attack.name} is a fixed-budget attack",
            got="threat none",
            expected="a budget such as linf=0.1 or l2=1.5",
        )
    if isinstance(threat.goal, Accept) and threat.bounded:
        raise CapabilityMismatch(
            f"{attack.name} has inputs of no class, which have no distance to the sample",
            got=f"the budget {threat.text}",
            expected="none",
            remedy=f"run it by itself: --attack {attack.name} --threat none, into the same --out",
        )
    if threat.norm not in attack.attack.norms:
        raise CapabilityMismatch(
            f"{attack.name} does not support this norm",
            got=threat.norm,
            expected="one of " + ", ".join(sorted(attack.attack.norms)),
            remedy=_similar_attacks(attack, threat.norm),
        )


def _similar_attacks(attack: LoadedAttack, norm: str) -> str:
    """Return the presets of the same kind that support a norm: variants of the attack, or else all."""
    kind, word = attack.attack.kind, attack.name.partition(":")[0].partition("-")[0]
    names = [
        c["name"]
        for c in list_entries("attacks").entries
        if kind == c["kind"] and norm in c["norms"]
    ]
    chosen = sorted([name for name in names if name.partition("-")[0] == word] or names)
    return f"for {norm} write {' or '.join(chosen)}" if chosen else ""


def _check_goal(job: Job) -> None:
    goal, data = job.threat.goal, job.dataset
    judged = needs_oracle(goal)
    if judged and job.effective_oracle is None:
        raise CapabilityMismatch(
            f"the goal {goal.name} of {job.attack.name} needs the true class of a changed input",
            got=f"{data.name}, which has labels for its own inputs only",
            expected="an oracle, or a data set that classifies any input, such as spheres",
            remedy="name an oracle in the threat: none:oracle=panel:MODEL,MODEL of your own models, or none:oracle=labels.csv",
        )
    if job.attack.attack.kind == "invariance" and not judged:
        raise CapabilityMismatch(
            f"{job.attack.name} is an invariance attack, which keeps the prediction",
            got=f"the goal {goal.name}",
            expected="keep-decision or keep-logits",
        )
    searches = job.attack.attack.kind in ("fixed-budget", "minimum-norm")
    if searches and isinstance(goal, KeepDecision | KeepLogits | Accept):
        raise CapabilityMismatch(
            f"{job.attack.name} searches for another prediction",
            got=f"the goal {goal.name}",
            expected="misclassify, misclassify-accepted, misclassify-same-class, target or target-accepted",
            remedy="for this goal, name an attack of another kind: invbench list attacks",
        )
    if isinstance(job.attack.goal, Accept) and not isinstance(goal, Accept):
        raise CapabilityMismatch(
            f"{job.attack.name} has inputs of no class of the data",
            got=f"the goal {goal.name}",
            expected="accept",
        )
    if isinstance(goal, Target):
        _check_target(job, goal)


def _check_target(job: Job, goal: Target) -> None:
    least, text = (1, f"offset {goal.offset}") if goal.label is None else (0, f"{goal.label}")
    target = goal.offset if goal.label is None else goal.label
    if target is None or not least <= target < job.dataset.num_classes:
        raise CapabilityMismatch(
            f"{job.dataset.name} has no such target class",
            got=text,
            expected=f"{least} to {job.dataset.num_classes - 1}",
        )
    labels = job.dataset.labels[list(job.samples)]
    same = int((goal.classes(labels, job.dataset.num_classes) == labels).sum())
    if same or not len(labels):
        raise CapabilityMismatch(
            f"the target {text} is the true class of {same or job.excluded} of the samples",
            remedy="choose samples of other classes, or another target",
        )


def check_fits(model: LoadedModel, data: Dataset) -> None:
    """Check that a model can classify a data set.

    Raises:
        CapabilityMismatch: for other classes, another range or shape of inputs.
        BadModel: for a model whose output cannot be used.
    """
    _check_classes(model, data)
    _check_bounds(model, data)
    _check_output(model, data)


def _check_classes(model: LoadedModel, data: Dataset) -> None:
    classes = model.classifier.num_classes
    if classes != data.num_classes:
        remedy = beyond_classes_remedy(int(data.labels.min()))
        if isinstance(data, HasClassNames) and classes > data.num_classes and data.classes:
            remedy = f"list the names of the {classes} classes in the model's order: classes=FILE"
        raise CapabilityMismatch(
            f"{model.name} and {data.name} differ in the number of classes",
            got=classes,
            expected=str(data.num_classes),
            remedy=remedy,
        )


def _check_bounds(model: LoadedModel, data: Dataset) -> None:
    """Check that data, model and search use the same bounds (checks C17 and C18)."""
    if tuple(model.classifier.bounds) != tuple(data.bounds):
        raise RangeMismatch(
            f"{model.name} and {data.name} differ in the range of their inputs",
            got=tuple(model.classifier.bounds),
            expected=str(tuple(data.bounds)),
            remedy="declare the bounds of the data and rescale inside the model, or load your data in the model's range: "
            "low={:g},high={:g}".format(*model.classifier.bounds),
        )


def _check_output(model: LoadedModel, data: Dataset) -> None:
    """Raise if the data leave their bounds, or the model cannot take them."""
    problem = inspect_model(model, data).problem
    if problem is not None:
        raise problem


def _check_substitute(job: Job) -> None:
    """Check that the substitute fits the attacked model."""
    model, substitute, threat = job.model, job.substitute, job.threat
    if (substitute is None) != (threat.substitute is None):
        raise CapabilityMismatch(
            "the threat and the job name different substitutes",
            got=substitute and substitute.name,
            expected=str(threat.substitute),
        )
    if substitute is None:
        return
    if substitute.digest == model.digest:
        raise CapabilityMismatch(
            f"{substitute.name} is the attacked model and cannot be its own substitute",
            remedy="remove it from the threat for a white-box attack",
        )
    if substitute.classifier.dtype != model.classifier.dtype:
        raise CapabilityMismatch(
            f"{substitute.name} and {model.name} differ in their dtype",
            got=_dtype(substitute),
            expected=_dtype(model),
            remedy=f"give it the parameter dtype={_dtype(model)}",
        )
    searches = job.attack.attack.kind in ("fixed-budget", "minimum-norm")
    if not searches or isinstance(threat.goal, KeepDecision | KeepLogits):
        raise CapabilityMismatch(
            f"{job.attack.name} does not search for a misclassification and needs the attacked model itself",
            got=f"the substitute {substitute.name}",
            expected="a threat without a substitute",
        )


def _check_oracle(job: Job) -> None:
    """Check that the threat's oracle, and the members of a panel, fit the job."""
    if (job.oracle is None) != (job.threat.oracle is None):
        raise CapabilityMismatch(
            "the threat and the job name different oracles",
            got=job.oracle and job.oracle.source,
            expected=str(job.threat.oracle),
        )
    if isinstance(job.oracle, PanelOracle):
        for member in job.oracle.members:
            check_fits(member, job.dataset)


def _dtype(model: LoadedModel) -> str:
    return str(model.classifier.dtype).removeprefix("torch.")
