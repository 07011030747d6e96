"""The published outcomes and results fit the shipped definitions: every cell and every claim has numbers."""

import pytest

from robustbench_inv.catalogue.locate import shipped_root
from robustbench_inv.catalogue.reproduction_file import load_reproduction
from robustbench_inv.reporting.reproduction.claims import evaluate_claims, evaluate_expectations
from robustbench_inv.reporting.reproduction.comparison import compare_result, find_datasets
from robustbench_inv.reporting.reproduction.outcomes import ReproductionOutcomes, read_outcomes
from robustbench_inv.results.experiment_result import read_result

PUBLISHED = shipped_root() / "reports" / "published"
OUTCOMES = sorted(PUBLISHED.glob("*/*/outcomes.csv.gz"))
RESULTS = sorted(PUBLISHED.glob("*/*/measured-*.json.gz"))


def item_of(path):
    return load_reproduction(f"{path.parents[1].name}/{path.parent.name.removesuffix('_files')}")


@pytest.mark.parametrize("path", OUTCOMES, ids=lambda path: path.parent.name)
def test_every_cell_has_published_outcomes(path):
    item, frame = item_of(path), read_outcomes(path)
    outcomes = ReproductionOutcomes(item, frame, find_datasets(item, frame))
    assert outcomes.missing == []
    for finding in evaluate_claims(outcomes):
        assert finding.status("published") != "not measured", finding.text


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_every_expectation_has_published_results(path):
    item, result = item_of(path), read_result(path)
    numbers = compare_result(item, result)
    measured = [e for e in item.expectations if not set(e.columns) <= set(result.left_out)]
    findings = evaluate_expectations(measured, numbers)
    assert len(findings) == len(measured)
    for finding in findings:
        assert finding.status("published") != "not measured", finding.text
