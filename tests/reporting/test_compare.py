"""Two models on the same samples: counts by hand, words, refusals, and the page."""

import re
from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, false_discovery_control

import robustbench_inv as rbi
from robustbench_inv.errors import BadParameter, BadResults, UnknownName
from robustbench_inv.reporting.model_comparison import compare_models
from robustbench_inv.reporting.statistics import holm
from robustbench_inv.testing.toy_cells import toy_cell


def cells(name, *attacks, **about):
    """Return cells of a toy model; attacks are (name, where each sample fell)."""
    return [toy_cell(attack, broken, model={"name": name}, **about) for attack, broken in attacks]


def found(first, second):
    return {(r.quantity, r.eps if r.eps < inf else None): r for r in compare_models(first, second)}


def test_every_share_is_paired_and_counted_by_hand():
    a = cells("a", ("pgd", [0.1, 0.1, 0.2, None, 0.0, None]))
    b = cells("b", ("pgd", [None, 0.1, None, 0.1, 0.2, None]))
    results = {r.eps: r for r in compare_models(a, b) if r.quantity == "robust"}
    assert set(results) == {0.1, 0.2}
    small, large = results[0.1], results[0.2]
    assert (small.gained, small.lost) == ([0, 4], [3])
    assert (large.gained, large.lost) == ([0, 2], [3])
    assert [rate.successes for rate in small.rates] == [3, 4]
    assert small.difference == pytest.approx(1 / 6)
    assert small.p == pytest.approx(binomtest(1, 3).pvalue)
    (clean,) = (r for r in compare_models(a, b) if r.quantity == "clean")
    assert (clean.gained, clean.lost) == ([4], [])


def test_only_samples_that_both_models_have_count():
    a = cells("a", ("pgd", [None, None, 0.1, 0.1]))
    b = cells("b", ("pgd", [None, 0.1]))
    assert [len(r.ids) for r in compare_models(a, b)] == [2, 2, 2]


def test_attacks_of_one_name_in_two_folders_are_other_attacks_if_their_code_differs(
    tmp_path, run_writer, sweep_records
):
    for name, code in (("a", 0), ("b", 0), ("c", 1)):
        run = run_writer(tmp_path / name)
        run.cell(sweep_records(40, [10], [0.1]), model=name, attack="mine", code=code).finish()
    same, other = (rbi.compare(tmp_path / "a", tmp_path / name) for name in "bc")
    assert not any("other attacks" in note for note in same.notes)
    assert any("other attacks" in note for note in other.notes)
    assert [each.attacks for each in same.results][-1] == (("mine",), ("mine",))
    first, second = other.results[-1].attacks
    assert first != second
    assert all(label.startswith("mine #") for label in (*first, *second))


def test_the_worst_case_over_all_attacks_counts_and_other_attacks_are_told():
    a = cells("a", ("pgd", [None, None, None]), ("square", [0.1, None, None]))
    b = cells("b", ("pgd", [None, None, 0.1]))
    robust = next(r for r in compare_models(a, b) if r.quantity == "robust")
    assert (robust.gained, robust.lost) == ([0], [2])
    assert not robust.same_attacks


def test_an_attack_at_a_smaller_eps_alone_is_none_of_this_eps():
    wide, narrow = (0.01, 0.1), (0.01,)
    a = [
        *cells("a", ("fgsm", [None] * 3), epsilons=wide),
        *cells("a", ("pgd", [None] * 3), epsilons=narrow),
    ]
    b = [
        *cells("b", ("fgsm", [None] * 3), epsilons=wide),
        *cells("b", ("pgd", [0.1] * 3), epsilons=wide),
    ]
    found = {r.eps: r for r in compare_models(a, b) if r.quantity == "robust"}
    assert found[0.01].same_attacks
    assert found[0.1].attacks == (("fgsm",), ("fgsm", "pgd"))


def test_distances_are_compared_sample_by_sample_and_robust_ones_are_infinitely_far():
    about = {"epsilons": (), "attack": {"kind": "minimum-norm"}, "threat": {"norm": "linf"}}
    a = cells("a", ("fmn", [0.1, 0.2, 0.3, None, 0.0]), **about)
    b = cells("b", ("fmn", [0.2, 0.1, None, None, 0.2]), **about)
    distance = next(r for r in compare_models(a, b) if r.quantity == "distance")
    assert distance.ids.tolist() == [0, 1, 2, 3]  # the last is misclassified by one model
    assert (distance.gained, distance.lost) == ([0, 2], [1])
    assert distance.medians == (pytest.approx(0.25), inf)
    assert "(medians ∞ and 0.25)" in distance._distances


def test_data_of_one_name_and_other_content_are_not_compared():
    a = cells("a", ("pgd", [None, 0.1]))
    b = cells("b", ("pgd", [None, 0.1]), dataset={"digest": "0" * 64})
    assert list(compare_models(a, b)) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_between_the_value_and_bonferroni_and_keeps_the_order(values):
    adjusted = holm(values)
    n = len(values)
    assert all(p <= q <= min(1, n * p) + 1e-12 for p, q in zip(values, adjusted, strict=True))
    order = sorted(range(n), key=values.__getitem__)
    assert [adjusted[i] for i in order] == sorted(adjusted)
    assert all(
        q >= f - 1e-12 for q, f in zip(adjusted, false_discovery_control(values), strict=True)
    )


@pytest.fixture
def runs(tmp_path, run_writer):
    """Return a function that begins a run folder of a name."""
    return lambda name: run_writer(tmp_path / name)


@pytest.fixture
def before_and_after(runs, sweep_records):
    """Return two run folders of one network before and after a defence: 30 and 24 of 40 robust."""
    before = runs("before").cell(sweep_records(40, [10], [0.1]), version=0).finish()
    after = runs("after").cell(sweep_records(40, [16], [0.1]), version=1).finish()
    return before, after


def test_a_network_before_and_after_is_named_by_its_folder(before_and_after):
    found = rbi.compare(*before_and_after)
    assert found.models == ["mnist-cnn (before)", "mnist-cnn (after)"]
    robust = next(r for r in found.results if r.quantity == "robust")
    assert robust.comparisons == 2
    assert robust.p_adjusted == pytest.approx(2 * 2 * 0.5**6)
    assert not robust.differs
    assert "mnist-cnn (after) minus mnist-cnn (before)" in robust.sentence
    assert "-15.0 points" in robust.sentence


def test_a_difference_is_a_sentence(runs, sweep_records):
    before = runs("before").cell(sweep_records(40, [30], [0.1]), model="plain").finish()
    after = runs("after").cell(sweep_records(40, [6], [0.1]), model="defended").finish()
    text = str(rbi.compare(before, after))
    assert re.search(
        r"defended keeps 60\.0 points more than plain on mnist5k at ℓ∞ ≤ 0\.1 \[", text
    )
    assert "plain keeps 60.0 points" not in text
    swapped = str(rbi.compare(after, before))
    assert "plain keeps 60.0 points fewer than defended" in swapped


def test_the_models_of_one_folder_are_compared_with_the_first(runs, sweep_records):
    run = runs("one")
    for model, fall in (("a", 10), ("b", 4), ("c", 8)):
        run.cell(sweep_records(40, [fall], [0.1]), model=model)
    found = rbi.compare(run.finish())
    assert {r.models for r in found.results} == {("a", "b"), ("a", "c")}
    chosen = rbi.compare(run.path, models=["c", "b"])
    assert {r.models for r in chosen.results} == {("c", "b")}


def test_what_cannot_be_compared_is_refused(before_and_after, runs, sweep_records, record):
    before, _ = before_and_after
    other = runs("other").cell(sweep_records(40, [3], [0.1]), model="b").cell(sweep_records(40, [3], [0.1]), model="c").finish()  # fmt: skip
    elsewhere = runs("elsewhere").cell([record(77)]).finish()
    with pytest.raises(BadParameter, match="one model cannot be compared"):
        rbi.compare(before)
    with pytest.raises(BadParameter, match="no model is in both folders"):
        rbi.compare(before, other)
    with pytest.raises(BadParameter, match="too many models"):
        rbi.compare(before, other, models=["a", "b", "c"])
    with pytest.raises(UnknownName, match="no results of 'mnist-cn'"):
        rbi.compare(before, other, models=["mnist-cn", "b"])
    with pytest.raises(BadResults, match="nothing in common"):
        rbi.compare(before, elsewhere)
    with pytest.raises(BadResults):
        rbi.compare(before, before.with_name("missing"))


def test_the_page_has_table_figure_and_samples(before_and_after, tmp_path):
    path = rbi.compare(*before_and_after).write(tmp_path / "page.html")
    html = path.read_text()
    assert "10 11 12 13 14 15" in html  # the samples that were lost
    assert {each.name for each in (tmp_path / "page_files").rglob("*.*")} >= {
        "comparison.csv",
        "differences.svg",
    }


def test_numbers_that_must_not_be_published_are_marked_and_the_text_says_why(runs, sweep_records):
    run = runs("one")
    for model, fall, verdict in (("a", 10, "PASS"), ("b", 4, "FAIL")):
        run.cell(sweep_records(40, [fall], [0.1]), model=model, attack="standard")
        run.verdict(verdict, model)
    found = rbi.compare(run.finish())
    assert "verdict on b, mnist5k: do not publish." in str(found)
    shown = {
        result.quantity: row for result, row in zip(found.results, found.table.rows, strict=True)
    }
    shares = [cell.text for cell in shown["robust"] if cell.share is not None]
    assert [text.split()[1:] for text in shares] == [["!"], ["✗"]]
    assert all(" " not in cell.text for cell in shown["clean"] if cell.share is not None)


def test_signs_are_those_of_the_data(runs, sweep_records):
    run = runs("one")
    for data in ("mnist5k", "mnist"):
        for model in "ab":
            run.cell(sweep_records(40, [10], [0.1]), model=model, attack="standard", dataset=data)
    found = rbi.compare(run.finish())
    (bad, *_) = found.conclusions
    marked = replace(
        found,
        conclusions=tuple(
            replace(c, verdict="do not publish" if c is bad else "publishable")
            for c in found.conclusions
        ),
    )
    texts = {
        result.group.dataset: [cell.text for cell in row if cell.share is not None]
        for result, row in zip(marked.results, marked.table.rows, strict=True)
        if result.quantity == "robust"
    }
    assert texts.pop(bad.dataset)[0].endswith("✗")
    assert not [text for other in texts.values() for text in other if "✗" in text]


def test_a_planned_cell_without_records_is_a_reservation(runs, sweep_records):
    run = runs("one")
    for model in "ab":
        run.cell(sweep_records(40, [10], [0.1]), model=model, attack="standard")
    run.cell([], model="b", attack="square", planned=list(range(40)))
    reasons = {each.model: each.reasons for each in rbi.compare(run.finish()).conclusions}
    missing = {
        name: any("Samples are missing" in r.text for r in each) for name, each in reasons.items()
    }
    assert missing == {"a": False, "b": True}
