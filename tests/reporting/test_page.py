"""One quantity is one number: on cards, in tables, figures, captions, CSV, ``--json``, the terminal and Python.

Each case is a run of one cell, made at random with the rules of the engine. The expected numbers are counted here from
its records, with no code of the package.
"""

import csv
import io
import json
import re
from dataclasses import dataclass, replace
from math import inf, isclose, isnan
from types import SimpleNamespace

import numpy as np
import pytest

from robustbench_inv.checks.records import check_consistency
from robustbench_inv.cli.run_tables import print_rescored, print_run
from robustbench_inv.reporting.definitions import load_definition
from robustbench_inv.reporting.figures import cell_curve, worst_curve
from robustbench_inv.reporting.headlines import build_headlines
from robustbench_inv.reporting.html import export_files, render_page
from robustbench_inv.reporting.page import build_page
from robustbench_inv.reporting.run_results import (
    eps_levels,
    group_cells,
    most_attacked,
    read_runs,
    worst_cases,
)
from robustbench_inv.reporting.statistics import wilson
from robustbench_inv.reporting.tables import build_tables
from robustbench_inv.results.rates import cell_to_json
from robustbench_inv.results.record import Distances, ModelOutput, Record
from robustbench_inv.testing.toy_cells import toy_cell

CLASSES = 10
OTHERS = {"linf": 7.0, "l2": 3.0, "l1": 11.0}


@dataclass(frozen=True)
class Case:
    """One cell: what it is, and how often what happens to a sample."""

    kind: str
    goal: str = "misclassify"
    norm: str = "linf"
    epsilons: tuple[float, ...] = ()
    rejects: bool = False
    n: int = 23
    wrong: float = 0.2
    failures: float = 0.2
    reached: float = 0.6
    accepted: float = 0.7
    undecided: float = 0.2
    silent: float = 0.0

    @property
    def no_class(self):
        return self.goal == "accept"

    @property
    def keeps(self):
        return self.goal == "keep-decision"


SWEEP = (0.1, 0.2, 0.30000000000000004)
KEEP = {"goal": "keep-decision"}
CASES = {
    "sweep": Case("fixed-budget", epsilons=SWEEP),
    "one-eps": Case("fixed-budget", norm="l2", epsilons=(0.3,)),
    "ten-digits": Case("fixed-budget", norm="l1", epsilons=(0.1568627451, 0.31372549019607843)),
    "pixels": Case("fixed-budget", norm="l0", epsilons=(2.0, 5.0)),
    "oblivious": Case("fixed-budget", epsilons=SWEEP, rejects=True),
    "aware": Case("fixed-budget", "misclassify-accepted", epsilons=SWEEP, rejects=True),
    "aware-distance": Case("minimum-norm", "misclassify-accepted", "l2", rejects=True),
    "targeted": Case("fixed-budget", "target", epsilons=SWEEP),
    "minimum-norm": Case("minimum-norm", norm="l2"),
    "minimum-norm-weak": Case("minimum-norm", norm="l1", reached=0.3),
    "minimum-norm-budget": Case("minimum-norm", epsilons=(0.2, 0.4)),
    "minimum-norm-rejects": Case("minimum-norm", rejects=True),
    "invariance-ball": Case("invariance", **KEEP, epsilons=(0.3,)),
    "invariance-sweep": Case("invariance", **KEEP, norm="l2", epsilons=SWEEP, reached=0.9),
    "metamer": Case("invariance", **KEEP, norm="l2"),
    "metamer-rejects": Case("invariance", **KEEP, rejects=True),
    "altered": Case("fixed-input", **KEEP, norm="l2"),
    "shifted": Case("fixed-input", norm="l2", failures=0),
    "noise": Case("fixed-input", "accept", "l2", rejects=True, failures=0),
    "noise-failures": Case("fixed-input", "accept", "l2", rejects=True, failures=0.4),
    "all-wrong": Case("fixed-budget", epsilons=SWEEP, wrong=1),
    "all-wrong-distance": Case("minimum-norm", norm="l2", wrong=1),
    "all-wrong-invariance": Case("invariance", **KEEP, epsilons=(0.3,), wrong=1),
    "all-rejected": Case("fixed-budget", epsilons=(0.1,), rejects=True, accepted=0),
    "all-rejected-aware": Case(
        "fixed-budget", "misclassify-accepted", epsilons=(0.1,), rejects=True, accepted=0
    ),
    "all-failures": Case("fixed-budget", epsilons=SWEEP, failures=1),
    "all-failures-noise": Case("fixed-input", "accept", "l2", rejects=True, failures=1),
    "all-broken": Case("minimum-norm", norm="l2", reached=1, failures=0, wrong=0),
    "all-robust": Case("minimum-norm", norm="l2", reached=0),
    "all-undecided": Case("invariance", **KEEP, undecided=1),
    "model-failures": Case("fixed-budget", epsilons=SWEEP, silent=0.3),
    "model-failures-distance": Case("minimum-norm", norm="l2", silent=0.3, reached=0.9),
    "model-failures-invariance": Case("invariance", **KEEP, epsilons=(0.3,), silent=0.3),
    "model-failures-rejects": Case("fixed-budget", epsilons=(0.1,), rejects=True, silent=0.3),
    "model-failures-noise": Case("fixed-input", "accept", "l2", rejects=True, silent=0.3),
    "only-model-failures": Case("fixed-budget", epsilons=(0.1,), rejects=True, silent=1),
    "one-sample": Case("fixed-budget", epsilons=(0.1,), n=1, wrong=0),
    "one-sample-invariance": Case("invariance", **KEEP, n=1, wrong=0, reached=1, failures=0),
    "one-wrong-sample": Case("minimum-norm", norm="l2", n=1, wrong=1),
}


def make_records(case, seed):
    """Return records as the engine writes them."""
    rng = np.random.default_rng(seed)
    return [_record(case, sample, rng) for sample in range(case.n)]


def _output(case, prediction, accepted):
    return ModelOutput(prediction, (1.0 if accepted else -1.0) * (1 + prediction / 10), accepted) if case.rejects else ModelOutput(prediction, None, None)  # fmt: skip


def _record(case, sample, rng):
    label = int(rng.integers(4, 8))
    predicted = label if rng.random() >= case.wrong else 3 if case.goal == "target" else label + 1
    clean = _output(case, predicted, bool(rng.random() < case.accepted))
    before = _without_attack(case, clean, label)
    if rng.random() < case.silent:
        clean = ModelOutput(-1, None, True if case.rejects else None)
        oracle, source = (label, "human") if case.keeps else (None, None)
        return Record(
            sample, label, clean, clean, oracle, source, _distances(case, 0.0),
            0.0, True, True, 5, 4, False, True, "model_failure",
        )  # fmt: skip
    failed = rng.random() < case.failures
    status = str(rng.choice(["crash", "no_start", "numerics"])) if failed else "ok"
    oracle = _oracle(case, label, rng)
    after = _output(
        case, int(rng.choice([label, 3, predicted])), bool(rng.random() < case.accepted)
    )
    wanted, far = rng.random() < case.reached, float(rng.uniform(0.01, 0.45))
    if wanted:
        after, oracle = _reaching(case, label, clean, after, oracle)
    if case.norm == "l0":
        far = float(rng.integers(1, 8))
    still = failed or (before and case.kind != "fixed-input")
    if still:
        after, far, oracle = clean, 0.0, label if case.keeps else None
    within = [eps for eps in case.epsilons if far <= eps] or [] if case.epsilons else [far]
    success = not still and bool(within) and _reaches(case, label, clean, after, oracle)
    broken_at = 0.0 if before else within[0] if success else None
    return Record(
        sample, label, clean, after, oracle, "human" if case.keeps else None, _distances(case, far),
        broken_at, bool(within), broken_at is not None, 5, 4, False, True, "already_wrong" if before else status,
    )  # fmt: skip


def _distances(case, far):
    values = {name: far * factor for name, factor in OTHERS.items()} | {"l0": int(far > 0)}
    values[case.norm] = int(far) if case.norm == "l0" else far
    return Distances(**values)


def _oracle(case, label, rng):
    if not case.keeps:
        return None
    return None if rng.random() < case.undecided else int(rng.choice([label, 9]))


def _without_attack(case, clean, label):
    if case.no_class:
        return False
    if case.goal == "target":
        return clean.prediction == 3
    wrong = clean.prediction != label
    return wrong and (clean.accepted is not False if case.goal.endswith("accepted") else True)


def _reaching(case, label, clean, after, oracle):
    """Return an output and an oracle's class that reach the goal, unless the oracle is undecided."""
    prediction = {"keep-decision": clean.prediction, "target": 3, "accept": after.prediction}.get(
        case.goal, label + 1
    )
    accepted = (case.no_class or case.goal.endswith("accepted")) and case.accepted > 0
    return _output(case, prediction, accepted or bool(after.accepted)), oracle and 9


def _reaches(case, label, clean, after, oracle):
    if case.no_class:
        return after.accepted is not False
    if case.keeps:
        return after.prediction == clean.prediction and oracle not in (None, label)
    if case.goal == "target":
        return after.prediction == 3
    return after.prediction != label and (
        after.accepted is not False or not case.goal.endswith("accepted")
    )


@pytest.fixture(scope="module")
def pages(tmp_path_factory, run_writer):
    """Return name → case, its cell, its page and the page as HTML; each page is built once."""
    built = {}

    def build(name):
        if name not in built:
            case = CASES[name]
            writer = run_writer(tmp_path_factory.mktemp("runs") / name)
            writer.cell(
                make_records(case, sorted(CASES).index(name)), model="m", attack="a", kind=case.kind, goal=case.goal,
                norm=case.norm, epsilons=list(case.epsilons), dataset="d", goal_parameters={"label": 3} if case.goal == "target" else {},
            )  # fmt: skip
            page = build_page(load_definition(), runs := read_runs([writer.finish()]))
            html = render_page("report.html", {}, page=page, folder="files")
            built[name] = SimpleNamespace(case=case, cell=runs[0].cells[0], page=page, html=html)
        return built[name]

    return build


@pytest.fixture(params=CASES)
def shown(request, pages):
    """A case with its page."""
    return pages(request.param)


def ratio(found, records):
    """Return (successes, trials)."""
    records = list(records)
    return sum(bool(found(r)) for r in records), len(records)


def attacked_of(records):
    return [r for r in records if r.status not in ("already_wrong", "model_failure")]


def robust_at(records, eps):
    return ratio(lambda r: r.broken_at is None or r.broken_at > eps + 1e-7, records)


def success_of(records):
    return ratio(lambda r: r.broken_at is not None, attacked_of(records))


def median_of(records, norm):
    far = [inf if r.broken_at is None else getattr(r.distance, norm) for r in attacked_of(records)]
    return float(np.median(np.array(far))) if far else None


def percent(pair):
    return f"{100 * pair[0] / pair[1]:.1f}" if pair[1] else "—"


def table_of(shown, kind):
    """Return the rows and the CSV's rows of the table of one kind, as mappings; empty without one."""
    tables = [t for t in shown.page.tables if t.name.startswith(f"{kind}-")]
    if not tables:
        return [], []
    (table,) = tables
    text = export_files([table], [])[f"tables/{table.name}.csv"].decode()
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    return rows, list(csv.DictReader(io.StringIO(text)))


def unmarked(cell):
    """Return a table's cell without the sign of a reservation."""
    return replace(cell, text=cell.text.rstrip(" !✗"))


def assert_share(text, pair, cell=None):
    """Assert that a share in a CSV, and in a table's cell, is that of a pair."""
    assert (text == "") if not pair[1] else isclose(float(text), pair[0] / pair[1])
    assert cell is None or unmarked(cell).text == percent(pair)


def counts(rate):
    return rate["successes"], rate["trials"]


def test_the_records_are_such_as_the_engine_writes(shown):
    assert check_consistency(shown.cell).verdict == "PASS"


def test_python_and_json_count_the_records(shown):
    case, records = shown.case, shown.cell.records
    summary, told = shown.cell.summary, json.loads(json.dumps(cell_to_json(shown.cell)))
    clean = ratio(lambda r: r.clean.prediction == r.label, records)
    robust = [robust_at(records, eps) for eps in case.epsilons or (1e9,)]
    assert counts(told["clean_accuracy"]) == counts(vars(summary.clean_accuracy)) == clean
    assert [counts(rate) for rate in told["robust_accuracy"]] == robust
    assert [counts(vars(rate)) for rate in summary.robust_accuracy] == robust
    assert counts(told["attack_success_rate"]) == success_of(records)
    assert counts(vars(summary.attack_success_rate)) == success_of(records)
    sought = case.kind == "minimum-norm" or (case.kind == "invariance" and not case.epsilons)
    median = median_of(records, case.norm) if sought else None
    assert summary.median_distance == median
    assert told["median_distance"] == (None if median == inf else median)


def test_the_card_shows_the_number_of_its_caption(shown):
    case, records = shown.case, shown.cell.records
    (headline,) = shown.page.headlines
    (row,) = headline.rows
    attacked, pair = len(attacked_of(records)), success_of(records)
    assert row.clean.text == percent(ratio(lambda r: r.clean.prediction == r.label, records))
    if case.no_class:
        caption, pair = "rejected, % of", ratio(lambda r: r.broken_at is None, attacked_of(records))
    elif case.keeps:
        within = f" at {_sign(case.norm)} ≤ {eps_text(case.epsilons[-1])}" if case.epsilons else ""
        caption = f"prediction unchanged although the class changed{within}, % of {attacked} "
    elif case.kind == "fixed-input":
        caption = "correct predictions on fixed inputs, % of"
        pair = ratio(lambda r: r.adversarial.prediction == r.label, records)
    elif case.epsilons:
        (eps,) = re.findall(r"≤ ([0-9./]+), %", headline.caption)
        pair = robust_at(records, next(own for own in case.epsilons if eps_text(own) == eps))
        caption = "robust accuracy at"
    else:
        median = median_of(records, case.norm)
        if median is not None and median < inf:
            assert headline.caption.startswith(f"median {_sign(case.norm)} distance to an input ")
            assert row.result.text == f"{median:.3g}"
            return
        caption = "misclassified"
    assert headline.caption.startswith(caption)
    assert f" {pair[1]} " in headline.caption
    assert row.result.text == percent(pair)
    shown_text = rf"<strong>{re.escape(row.result.text)}( [!✗])?</strong> <small>{re.escape(row.result.detail)}<"
    assert re.search(shown_text, shown.html)


def eps_text(eps):
    """A multiple of 1/255 as a fraction, unless it is a short decimal number."""
    level, short = round(255 * eps), f"{eps:.6g}"
    grey = isclose(level / 255, eps, rel_tol=1e-9) and not isclose(float(short), eps, rel_tol=1e-9)
    return f"{level}/255" if grey else short


def _sign(norm):
    return {"linf": "ℓ∞", "l2": "ℓ2", "l1": "ℓ1", "l0": "ℓ0"}[norm]


def test_tables_and_csv_show_the_same_accuracies(shown):
    case, records = shown.case, shown.cell.records
    clean = ratio(lambda r: r.clean.prediction == r.label, records)
    rows, facts = table_of(shown, "accuracy")
    assert bool(rows) == bool(case.epsilons)
    for fact, eps in zip(facts, case.epsilons, strict=True):
        assert isclose(float(fact["eps"]), eps)
        assert_share(
            fact["robust_accuracy"], robust_at(records, eps), rows[0][f"≤ {eps_text(eps)}"]
        )
        assert_share(fact["clean_accuracy"], clean, rows[0]["Clean"])
        assert_share(fact["attack_success_rate"], success_of(records))
    rows, facts = table_of(shown, "worst")
    for fact, eps in zip(facts, case.epsilons, strict=True):
        assert_share(
            fact["worst_case_accuracy"], robust_at(records, eps), rows[0][f"≤ {eps_text(eps)}"]
        )
        assert_share(fact["strongest_accuracy"], robust_at(records, eps))
        assert_share(fact["clean_accuracy"], clean, rows[0]["Clean"])


def test_tables_of_distances_show_the_success_rate_and_the_median(shown):
    case, records = shown.case, shown.cell.records
    rows, facts = table_of(shown, "distances")
    for row, fact in zip(rows, facts, strict=True):
        median = median_of(records, case.norm)
        assert_share(fact["broken"], success_of(records), row["Broken %"])
        assert row["Attacked"].text == fact["attacked"] == str(len(attacked_of(records)))
        told = float(fact["median"] or "nan")
        assert isnan(told) if median is None else told == median
        expected = "—" if median is None else "∞" if median == inf else f"{median:.3g}"
        assert row["Median"].text == expected
    assert bool(rows) == (shown.cell.summary.median_distance is not None or bool(rows))


def test_invariance_failures_are_those_of_the_card(shown):
    rows, facts = table_of(shown, "invariance")
    assert bool(rows) == shown.case.keeps
    told = cell_to_json(shown.cell)["invariance"]
    records = shown.cell.records
    for row, fact in zip(rows, facts, strict=True):
        attacked = attacked_of(records)
        expected = {
            "same_prediction": (
                lambda r: (
                    r.adversarial.prediction == r.clean.prediction
                    and r.adversarial.accepted is not False
                ),
                "Decision unchanged",
            ),
            "class_changed": (
                lambda r: r.oracle_label not in (None, r.label),
                "True class changed",
            ),
            "success": (lambda r: r.broken_at is not None, "Failure (both)"),
            "oracle_undecided": (lambda r: r.oracle_label is None, "Undecided"),
        }
        for name, (found, heading) in expected.items():
            assert_share(fact[name], ratio(found, attacked), row[heading])
            assert counts(told[name]) == ratio(found, attacked)
        (headline,) = shown.page.headlines
        assert headline.rows[0].result == row["Failure (both)"]


def test_fixed_inputs_are_those_of_the_card(shown):
    case, records = shown.case, shown.cell.records
    rows, facts = table_of(shown, "agreement")
    told = cell_to_json(shown.cell)["agreement"]
    assert bool(rows) == bool(told) == (case.kind == "fixed-input" and not case.no_class)
    if not rows:
        return
    judged = [r for r in records if r.oracle_label is not None and r.distance.l0]
    label = ratio(lambda r: r.adversarial.prediction == r.label, judged if case.keeps else records)
    heading = "d: label" if case.keeps else "d: adversarial"
    assert_share(facts[0]["agrees_with_label"], label, rows[0][heading])
    assert counts(told["agrees_with_label"]) == label
    if case.keeps:
        oracle = ratio(lambda r: r.adversarial.prediction == r.oracle_label, judged)
        assert_share(facts[0]["agrees_with_oracle"], oracle, rows[0]["d: human"])
        assert counts(told["agrees_with_oracle"]) == oracle
        ((invariance,), _) = table_of(shown, "invariance")
        assert invariance["Agrees with oracle"] == rows[0]["d: human"]
        assert invariance["Agrees with label"] == rows[0]["d: label"]
    else:
        assert shown.page.headlines[0].rows[0].result == rows[0][heading]


def test_rates_of_rejection(shown):
    case, records = shown.case, shown.cell.records
    rows, facts = table_of(shown, "rejection")
    told = cell_to_json(shown.cell)["rejection"]
    assert bool(rows) == bool(told) == case.rejects
    if not rows:
        return
    classed = [] if case.no_class else records

    def correct(r):
        return r.adversarial.prediction == (r.label if r.oracle_label is None else r.oracle_label)

    accepted = [r for r in classed if r.adversarial.accepted]
    errors = [r for r in attacked_of(classed) if not correct(r)]
    rejected = ratio(lambda r: not r.adversarial.accepted, attacked_of(records))
    if case.no_class:
        rejected = ratio(lambda r: r.broken_at is None, attacked_of(records))
        assert shown.page.headlines[0].rows[0].result == rows[0]["Rejected attacked"]
    expected = {
        "false_rejection": ("False rejection", ratio(lambda r: not r.clean.accepted, records)),
        "clean_accuracy_with_rejection": (
            "Clean accuracy",
            ratio(lambda r: r.clean.accepted and r.clean.prediction == r.label, records),
        ),
        "accuracy_with_rejection": (
            "Accuracy",
            ratio(lambda r: r.adversarial.accepted and correct(r), classed),
        ),
        "accuracy_on_accepted": ("Accuracy on accepted", ratio(correct, accepted)),
        "undetected_errors": (
            "Undetected errors",
            ratio(lambda r: r.adversarial.accepted and not correct(r), classed),
        ),
        "rejected_errors": (
            "Rejected errors",
            ratio(lambda r: not r.adversarial.accepted, errors),
        ),
        "rejected_adversarial": ("Rejected attacked", rejected),
    }
    for name, (heading, pair) in expected.items():
        assert_share(facts[0][name], pair, rows[0][heading])
        assert counts(told[name]) == pair


def test_captions_of_figures_show_the_numbers_of_the_tables(shown):
    case, records = shown.case, shown.cell.records
    texts = {picture.name.partition("-")[0]: picture.alt for picture in shown.page.pictures}
    assert bool("curves" in texts) == bool(case.epsilons)
    if case.epsilons:
        found = re.findall(r"m: ([0-9.]+) % of (\d+) robust at ([0-9./]+)\.", texts["curves"])
        assert found == [
            (percent(robust_at(records, eps)), str(case.n), eps_text(eps)) for eps in case.epsilons
        ]
    if "distances" in texts:
        ((row,), _) = table_of(shown, "distances")
        assert texts["distances"] == f"a on m: median {row['Median'].text}."
    if "risk" in texts and case.goal.startswith("misclassify"):
        ((row,), _) = table_of(shown, "rejection")
        share = row["Accuracy on accepted"]
        told = re.findall(r"([0-9.]+)% of these misclassified|none accepted", texts["risk"])[-1]
        expected = "" if share.text == "—" else f"{100 * (1 - share.share):.2f}"
        assert told == expected


def test_the_terminal_shows_the_numbers_of_the_page(shown, capsys):
    case, records = shown.case, shown.cell.records
    told = [{**cell_to_json(shown.cell), "checks": []}]
    run = {
        "path": "runs/x",
        "conclusions": (),
        "decisions": (),
        "cells": [shown.cell],
        "checks": (),
    }
    print_run(SimpleNamespace(to_json=lambda: told, **run))
    printed = capsys.readouterr().out
    print_rescored([cell_to_json(shown.cell)], "runs/x")
    assert capsys.readouterr().out + "next: invbench report --from runs/x\n" == printed
    shares = re.findall(r"([0-9.]+) \[[0-9.]+, [0-9.]+\]", printed)
    clean = ratio(lambda r: r.clean.prediction == r.label, records)
    robust = [robust_at(records, eps) for eps in case.epsilons or (1e9,)]
    assert shares[: 1 + len(robust)] == [percent(clean), *map(percent, robust)]
    rejects = shown.cell.can_reject and not case.keeps
    assert ("a rejected input counts as robust above" in printed) == rejects
    if rejects and shown.cell.summary.rejection.accuracy_with_rejection.trials:
        rate = shown.cell.summary.rejection.accuracy_with_rejection
        assert percent((rate.successes, rate.trials)) in shares[1 + len(robust) :][:4]
    assert ("a → 3" in printed) == (case.goal == "target")
    if case.kind == "minimum-norm" and attacked_of(records):
        median = median_of(records, case.norm)
        assert ("∞" if median == inf else f" {median:.3g} ") in printed
    if case.keeps and attacked_of(records):
        assert shares[1 + len(robust) :][2] == percent(success_of(records))


def test_curves_pass_through_the_numbers_of_the_tables(shown):
    case, records = shown.case, shown.cell.records
    curve = cell_curve(shown.cell, wilson)
    start = robust_at(records, 0)
    assert isclose(curve.y[0], 100 * start[0] / start[1])
    if case.kind == "fixed-budget":
        shares = [robust_at(records, eps) for eps in case.epsilons]
        assert curve.y[1:] == pytest.approx([100 * k / n for k, n in shares])
    else:
        robust = robust_at(records, 1e9)
        assert isclose(curve.y[-1], 100 * robust[0] / robust[1])


def random_cells(seed):
    """Return cells of two models under three attacks, on samples and eps that only overlap."""
    rng = np.random.default_rng(seed)
    cells = []
    for model in ("m", "n"):
        wrong = rng.random(12) < 0.2
        for attack in rng.permutation(["a", "b", "c"])[: rng.integers(1, 4)]:
            eps = sorted(rng.choice([0.1, 0.2, 0.3, 0.4], rng.integers(0, 4), replace=False))
            far = [0.0 if w else rng.uniform(0.01, 0.7) for w in wrong]
            if eps:
                far = [d and next((e for e in eps if d <= e), None) for d in far]
            cell = toy_cell(
                str(attack), far, epsilons=eps, model={"name": model},
                attack={"kind": "fixed-budget" if eps else "minimum-norm"},
            )  # fmt: skip
            first, last = sorted(rng.choice(13, 2, replace=False))
            cells.append(replace(cell, digest=f"{seed}{model}{attack}", records=cell.records[first:last]))  # fmt: skip
    return cells


def broken_by_any(cells, sample, eps):
    """Count by hand: has any attack an example within eps, at this eps or at a smaller one?"""
    mine = [r for cell in cells for r in cell.records if r.sample == sample]
    return any(r.broken_at is not None and r.broken_at <= eps + 1e-9 for r in mine)


@pytest.mark.parametrize("seed", range(40))
def test_the_worst_case_over_attacks_is_that_of_the_records(seed):
    cells = random_cells(seed)
    found = worst_cases(cells)
    assert found
    for worst in found:
        robust = [s for s in worst.ids if not broken_by_any(worst.cells, s, worst.eps)]
        assert (worst.rate.successes, worst.rate.trials) == (len(robust), len(worst.ids))
        assert all(worst.rate.successes <= c.robust_rate(worst.eps, worst.ids).successes for c in worst.cells)  # fmt: skip
        assert any(c.covers(worst.eps) for c in worst.cells)
        counted = {c.digest for c in worst.cells}
        for cell in cells:
            everywhere = set(worst.ids) <= {r.sample for r in cell.records}
            early = not cell.epsilons or cell.epsilons[0] <= worst.eps
            if cell.model.name == worst.model and everywhere and early:
                assert cell.digest in counted  # no attack that was run is left out
    for model in {w.model for w in found}:
        rows = most_attacked([w for w in found if w.model == model])
        assert [w.rate.successes for w in rows] == sorted((w.rate.successes for w in rows), reverse=True)  # fmt: skip
        curve = worst_curve(rows, wilson)
        assert list(curve.y) == sorted(curve.y, reverse=True)


@pytest.mark.parametrize("seed", range(40))
def test_cards_tables_and_comparisons_show_that_worst_case(seed):
    cells = random_cells(seed)
    (headline,) = build_headlines(cells, wilson)
    assert [row.model for row in headline.rows] == list(dict.fromkeys(c.model.name for c in cells))
    tables = build_tables("worst", cells)
    facts = [fact for table in tables for fact in table.frame.to_dict("records")]
    found = [w for w in worst_cases(cells) if w.eps < inf or len(w.cells) > 1]
    assert [(f["model"], f["samples"], f["worst_case_accuracy"]) for f in facts] == [
        (w.model, len(w.ids), w.rate.value) for w in found
    ]
    if (at := re.findall(r"robust accuracy at ℓ∞ ≤ ([0-9.]+),", headline.caption)) and at:
        for row in headline.rows:
            here = [w for w in found if (w.model, w.eps) == (row.model, float(at[0]))]
            best = max(here, key=lambda w: (len(w.cells), len(w.ids)), default=None)
            expected = (best.rate.successes, best.rate.trials) if best else (0, 0)
            assert row.result.text == percent(expected)
    for table in build_tables("comparison", cells):
        for fact, row in zip(table.frame.to_dict("records"), table.rows, strict=True):
            assert isclose(fact["difference"], fact["second_share"] - fact["share"], abs_tol=1e-12)
            same = set(fact["attacks"].split("+")) == set(fact["second_attacks"].split("+"))
            assert row[2].detail == ("" if same else "different attacks")


def test_samples_that_two_unfinished_attacks_share_are_combined():
    """One attack has samples 0 to 3, the other 2 to 5: both count on 2 and 3."""
    one, two = (toy_cell(name, broken, epsilons=[0.1]) for name, broken in (("a", [None] * 6), ("b", [0.1] * 6)))  # fmt: skip
    found = worst_cases([replace(one, records=one.records[:4]), replace(two, records=two.records[2:])])  # fmt: skip
    assert {w.ids: (len(w.cells), w.rate.value) for w in found} == {
        (0, 1, 2, 3): (1, 1.0), (2, 3, 4, 5): (1, 0.0), (2, 3): (2, 0.0),
    }  # fmt: skip
    (headline,) = build_headlines([w.cells[0] for w in found[:2]], wilson)
    assert headline.rows[0].result.text == "0.0"


def test_an_example_within_a_smaller_budget_counts_for_a_larger_one():
    small, large = toy_cell("a", [0.1, None], epsilons=[0.1]), toy_cell("b", [None, 0.3], epsilons=[0.3])  # fmt: skip
    assert {w.eps: w.rate.successes for w in worst_cases([small, large])} == {0.1: 1, 0.3: 0}


def test_a_model_without_the_budget_of_the_card_keeps_its_row():
    strong = toy_cell("a", [0.1, 0.1], epsilons=[0.1], model={"name": "m"})
    other = toy_cell("a", [None, None], epsilons=[0.3], model={"name": "n"})
    (headline,) = build_headlines([strong, other], wilson)
    assert [(row.model, row.result.text) for row in headline.rows] == [("m", "0.0"), ("n", "—")]


def test_eps_that_differ_by_rounding_share_a_column():
    one, two = toy_cell("a", [0.3], epsilons=[0.3]), toy_cell("b", [3 * 0.1], epsilons=[3 * 0.1])
    assert eps_levels([one, two]) == [0.3]
    assert eps_levels([toy_cell("a", [None], epsilons=[1e-10, 2e-10])]) == [1e-10, 2e-10]
    (table,) = build_tables("accuracy", [one, two])
    assert table.columns[4:-1] == ("≤ 0.3",)
    assert [row[4].text for row in table.rows] == ["0.0", "0.0"]


def test_goals_of_another_tolerance_are_not_combined():
    """The card showed the failures of the loosest tolerance."""
    cells = [
        toy_cell(
            name, broken, epsilons=[], attack={"kind": "invariance"},
            threat={"goal": "keep-logits", "goal_parameters": {"tolerance": tolerance}, "epsilons": []},
        )
        for name, broken, tolerance in (("a", [None, 0.1], 1e-3), ("b", [0.1, 0.1], 0.5))
    ]  # fmt: skip
    found = {h.group.title: h.rows[0].result.text for h in build_headlines(cells, wilson)}
    assert found == {
        "four · ℓ∞ · invariance (keep-logits, tolerance 0.001)": "50.0",
        "four · ℓ∞ · invariance (keep-logits, tolerance 0.5)": "100.0",
    }
    targets = [
        toy_cell(name, [0.1], threat={"goal": "target", "goal_parameters": {"label": k, "confidence": 0.0}})
        for name, k in (("a", 1), ("b", 2))
    ]  # fmt: skip
    assert len(group_cells(targets)) == 1


def test_fixed_inputs_are_not_combined_with_a_search():
    search = toy_cell("a", [0.1], epsilons=[], attack={"kind": "minimum-norm"})
    fixed = toy_cell("b", [None], epsilons=[], attack={"kind": "fixed-input"})
    assert len(group_cells([search, fixed])) == 2
    assert [h.rows[0].result.text for h in build_headlines([search, fixed], wilson)] == ["0.1", "100.0"]  # fmt: skip
