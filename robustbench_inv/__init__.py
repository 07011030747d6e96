"""Measures both ways a classifier fails: too sensitive to perturbations, too invariant to content.

Importing this package imports neither torch nor numpy; each name below is fetched when it is first used.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robustbench_inv.api import evaluate
    from robustbench_inv.auditing import audit, certify
    from robustbench_inv.catalogue.attacks import LoadedAttack, load_attack
    from robustbench_inv.catalogue.datasets import load_dataset
    from robustbench_inv.catalogue.models import LoadedModel, load_model
    from robustbench_inv.catalogue.threats import load_threat
    from robustbench_inv.checks.audit_verdict import Conclusion
    from robustbench_inv.checks.verdict import Verdict
    from robustbench_inv.data.protocol import Dataset
    from robustbench_inv.errors import EvaluationWarning
    from robustbench_inv.models.protocol import Classifier, Output
    from robustbench_inv.reporting.compare import RunComparison, compare
    from robustbench_inv.reporting.exports import MetricLogger, log_metrics
    from robustbench_inv.reporting.html import write_report
    from robustbench_inv.results.record import Record
    from robustbench_inv.results.summary import Rate
    from robustbench_inv.run import Run
    from robustbench_inv.threat.threat_model import ThreatModel

__all__ = [
    "Classifier",
    "Conclusion",
    "Dataset",
    "EvaluationWarning",
    "LoadedAttack",
    "LoadedModel",
    "MetricLogger",
    "Output",
    "Rate",
    "Record",
    "Run",
    "RunComparison",
    "ThreatModel",
    "Verdict",
    "__version__",
    "audit",
    "certify",
    "compare",
    "evaluate",
    "load_attack",
    "load_dataset",
    "load_model",
    "load_threat",
    "log_metrics",
    "write_report",
]

__version__ = "0.1.0"

_PLACES = {
    "Classifier": "models.protocol",
    "Conclusion": "checks.audit_verdict",
    "Dataset": "data.protocol",
    "EvaluationWarning": "errors",
    "LoadedAttack": "catalogue.attacks",
    "LoadedModel": "catalogue.models",
    "MetricLogger": "reporting.exports",
    "Output": "models.protocol",
    "Rate": "results.summary",
    "Record": "results.record",
    "Run": "run",
    "RunComparison": "reporting.compare",
    "ThreatModel": "threat.threat_model",
    "Verdict": "checks.verdict",
    "audit": "auditing",
    "certify": "auditing",
    "compare": "reporting.compare",
    "evaluate": "api",
    "load_attack": "catalogue.attacks",
    "load_dataset": "catalogue.datasets",
    "load_model": "catalogue.models",
    "load_threat": "catalogue.threats",
    "log_metrics": "reporting.exports",
    "write_report": "reporting.html",
}


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found: object = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
