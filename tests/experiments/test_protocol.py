"""Experiments by name: unknown names and parameters raise one-line errors."""

from pathlib import Path

import pytest

from robustbench_inv.errors import BadCatalogue
from robustbench_inv.experiments.protocol import ExperimentRequest, run_experiment

NETWORKS = Path(__file__).parent / "toy_networks.py"


READER = f"{NETWORKS}:reader"


def make_request(**options):
    return ExperimentRequest(
        **{"dataset": "mnist5k", "columns": {"R": READER}, "samples": 60, **options}
    )


def test_unknown_experiments_and_parameters_raise():
    with pytest.raises(BadCatalogue, match="does not take these parameters"):
        run_experiment("error-rates", make_request(), {"hidden": 3})
    with pytest.raises(BadCatalogue, match="did you mean error-rates"):
        run_experiment("errors-rates", make_request(), {})
    with pytest.raises(BadCatalogue, match="is no experiment"):
        run_experiment("robustbench_inv.experiments.error_rates:BLOCK", make_request(), {})
