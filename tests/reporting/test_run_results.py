"""Reading run folders, and the worst case over several attacks."""

import json
from itertools import product
from math import inf

import numpy as np
import pytest

from robustbench_inv.errors import BadResults
from robustbench_inv.reporting.definitions import Selection
from robustbench_inv.reporting.run_results import group_cells, read_runs, worst_cases


def cells_of(run, **select):
    return [cell for result in read_runs([run], Selection(**select)) for cell in result.cells]


def test_worst_is_taken_for_each_sample_by_itself(writer, record):
    eps = [0.1, 0.2]
    first = [record(0, broken_at=0.1), record(1), record(2, broken_at=0.2), record(3)]
    second = [record(0), record(1, broken_at=0.2), record(2, broken_at=0.1), record(3)]
    run = writer.cell(first, attack="fgsm", epsilons=eps).cell(second, epsilons=eps).finish()
    small, large = worst_cases(cells_of(run))
    assert (small.eps, small.robust.tolist()) == (0.1, [False, True, False, True])
    assert (large.eps, large.robust.tolist()) == (0.2, [False, False, False, True])
    assert large.strongest[0] == "fgsm"
    assert large.strongest[1].successes == 2


def test_worst_never_exceeds_any_single_attack(full_run):
    for group in group_cells(cells_of(full_run)).values():
        for worst in worst_cases(group):
            for cell in worst.cells:
                assert (worst.robust <= cell.robust_mask(worst.eps, worst.ids)).all()


def test_a_smaller_sample_set_gets_a_row_of_its_own(writer, record):
    run = (
        writer.cell([record(i) for i in range(10)], attack="fgsm")
        .cell([record(i, broken_at=0.1) for i in range(4)], attack="pgd")
        .finish()
    )
    everything, common = worst_cases(cells_of(run))
    assert (len(everything.ids), [c.attack_label for c in everything.cells]) == (10, ["fgsm"])
    assert (common.ids, [c.attack_label for c in common.cells]) == ((0, 1, 2, 3), ["fgsm", "pgd"])
    assert (everything.rate.value, common.rate.value) == (1.0, 0.0)


def test_a_minimum_norm_attack_counts_at_every_eps(writer, record):
    minimal = [record(i, broken_at=d, distance=d) for i, d in enumerate((0.05, 0.15, 0.9))]
    run = (
        writer.cell([record(i) for i in range(3)], epsilons=[0.1, 0.2])
        .cell(minimal, attack="fmn", kind="minimum-norm", epsilons=[])
        .finish()
    )
    held = {worst.eps: worst.robust.tolist() for worst in worst_cases(cells_of(run))}
    assert held == {0.1: [False, True, True], 0.2: [False, False, True]}


def test_norms_goals_and_data_sets_are_never_mixed(full_run):
    for group in group_cells(cells_of(full_run)).values():
        assert len({(c.dataset.name, c.norm, c.goal) for c in group}) == 1


def test_an_already_wrong_sample_fell_at_distance_zero(writer, record):
    run = writer.cell(
        [record(0, status="already_wrong"), record(1, broken_at=0.1), record(2)]
    ).finish()
    (cell,) = cells_of(run)
    assert cell.failure_distance.tolist() == [0.0, 0.1, inf]
    assert cell.broken_at.tolist() == [0.0, 0.1, inf]


def test_unfinished_cells_are_named_with_their_counts(writer, record):
    run = (
        writer.cell([record(0)], planned=[0, 1, 2])
        .cell([], attack="fgsm", started=False, planned=[0, 1, 2])
        .cell([record(i) for i in range(3)], attack="noise")
        .finish()
    )
    (result,) = read_runs([run])
    assert list(result.pending.values()) == [
        ("pgd on mnist-cnn", 1, 3),
        ("fgsm on mnist-cnn", 0, 3),
    ]
    assert [cell.attack_label for cell in result.cells] == ["pgd", "noise"]


def test_names_that_two_digests_share_are_told_apart(writer, record):
    run = writer.cell([record(0)], version=1).cell([record(0)], version=2).finish()
    names = {cell.model_label for cell in cells_of(run)}
    assert len(names) == 2
    assert all(name.startswith("mnist-cnn #") for name in names)


def test_two_seeds_are_told_apart(writer, record):
    run = writer.cell([record(0)], seed=0).cell([record(0)], seed=1).finish()
    assert [cell.attack_label for cell in cells_of(run)] == ["pgd seed 0", "pgd seed 1"]


def test_a_cell_in_two_runs_is_taken_once_with_most_records(tmp_path, sweep_records, run_writer):
    for name, count in (("short", 1), ("long", 3)):
        run_writer(tmp_path / name).cell(
            sweep_records(count, [0], [0.1]), planned=[0, 1, 2]
        ).finish()
    results = read_runs([tmp_path / "short", tmp_path / "long"])
    assert [len(cell.records) for result in results for cell in result.cells] == [3]


def test_copies_of_a_cell_with_other_samples_are_joined(tmp_path, sweep_records, run_writer):
    records, images = sweep_records(9, [4], [0.1]), np.zeros((9, 1, 8, 8), np.float32)
    chosen = {"first": range(4), "second": range(2, 8)}
    for name, ids in chosen.items():
        kept = {"clean": images[ids], "adversarial": images[ids], "samples": np.array(ids)}
        run = run_writer(tmp_path / name).cell([records[i] for i in ids], images=kept)
        run.cell([], attack="later", planned=[0, 1]).finish()
    first, second = read_runs([tmp_path])
    assert (first.cells, len(first.empty), second.empty) == ((), 1, ())
    assert list(first.pending.values()) == [("later on mnist-cnn", 0, 2)]
    assert second.pending == {}
    (cell,) = second.cells
    assert list(cell.records) == records[:8]
    assert (cell.requested, cell.finished) == (tuple(range(8)), True)
    assert sorted(cell.read_images()["samples"].tolist()) == list(range(8))


def test_what_a_copy_lacks_is_pending_until_another_has_it(tmp_path, sweep_records, run_writer):
    records = sweep_records(6, [2], [0.1])
    for name, ids, planned in (("a", [0, 1, 2], range(5)), ("b", [2, 3], range(2, 4))):
        part = [records[i] for i in ids]
        run_writer(tmp_path / name).cell(part, planned=list(planned)).finish()
    first, second = read_runs([tmp_path])
    assert (list(first.pending.values()), second.pending) == ([("pgd on mnist-cnn", 4, 5)], {})
    run_writer(tmp_path / "c").cell(records[4:]).finish()
    assert not any(result.pending for result in read_runs([tmp_path]))
    run_writer(tmp_path / "d").cell([], planned=list(range(7)), started=False).finish()
    *_, last = read_runs([tmp_path])
    assert list(last.pending.values()) == [("pgd on mnist-cnn", 0, 7)]


def test_copies_with_other_results_of_a_sample_are_refused(tmp_path, sweep_records, run_writer):
    run_writer(tmp_path / "a").cell(sweep_records(6, [2], [0.1])).finish()
    run_writer(tmp_path / "b").cell(sweep_records(4, [3], [0.1])).finish()
    with pytest.raises(BadResults, match="pgd on mnist-cnn has two results") as error:
        read_runs([tmp_path])
    assert error.value.got == f"others in {tmp_path / 'b'} than in {tmp_path / 'a'}, sample 2"


def test_a_folder_of_runs_is_all_its_runs(tmp_path, record, run_writer):
    for name, model in (("one", "mnist-cnn"), ("two", "mnist-vib")):
        run_writer(tmp_path / name).cell([record(0)], model=model).finish()
    assert [result.name for result in read_runs([tmp_path])] == ["one", "two"]


@pytest.mark.parametrize(
    ("select", "count"),
    [
        ({"models": ("mnist-*",)}, 9),
        ({"attacks": ("pgd", "f*")}, 5),
        ({"norms": ("l2",)}, 4),
        ({}, 11),
    ],
)
def test_a_selection_keeps_what_fits(full_run, select, count):
    assert len(cells_of(full_run, **select)) == count


def test_an_empty_selection_says_so(full_run):
    with pytest.raises(BadResults, match="no results fit the selection, got 'nobody'"):
        read_runs([full_run], Selection(models=("nobody",)))


def test_a_folder_without_a_plan_is_named(tmp_path):
    with pytest.raises(BadResults, match="not a results folder"):
        read_runs([tmp_path / "nowhere"])


def test_a_damaged_cell_is_named(writer, record):
    run = writer.cell([record(0)]).finish()
    (path,) = run.glob("*/cell.json")
    info = json.loads(path.read_text())
    del info["threat"]["norm"]
    path.write_text(json.dumps(info))
    with pytest.raises(BadResults, match=r"cell\.json is damaged"):
        read_runs([run])


def test_held_counts_what_the_records_say(full_run):
    for cell, eps in product(cells_of(full_run), (0.1, 0.2, 0.3, inf)):
        limit = min(eps * (1 + 1e-9), 1e300)  # 3 · 0.1 and 0.3 are one eps
        expected = [r.broken_at is None or r.broken_at > limit for r in cell.records]
        np.testing.assert_array_equal(cell.robust_mask(eps), expected)


def test_an_attack_on_a_substitute_is_told_apart(writer, record):
    """The same attack on the model, through a substitute, led by it, and through another of its name."""
    lenet = {"name": "lenet5", "digest": "1" * 64}
    other = {"name": "lenet5", "digest": "2" * 64}
    eps, held = [0.1], [record(0), record(1, broken_at=0.1)]
    run = (
        writer.cell(held, epsilons=eps)
        .cell(held, epsilons=eps, access="transfer", substitute=lenet)
        .cell(held, epsilons=eps, access="score", substitute=lenet)
        .cell([record(0, broken_at=0.1), record(1)], attack="fgsm", access="transfer", substitute=lenet)
        .cell(held, attack="fgsm", access="transfer", substitute=other)
        .finish()
    )  # fmt: skip
    cells = cells_of(run)
    names = ["pgd", "pgd via lenet5 #1111", "pgd guided by lenet5 #1111"]
    assert [c.attack_label for c in cells] == [
        *names,
        "fgsm via lenet5 #1111",
        "fgsm via lenet5 #2222",
    ]
    substitutes = [c.threat.substitute and c.threat.substitute.name for c in cells]
    assert substitutes == [None, *["lenet5 #1111"] * 3, "lenet5 #2222"]
    assert [c.threat.access for c in cells][:3] == ["white-box", "transfer", "score"]
    ((worst,),) = (worst_cases(group) for group in group_cells(cells).values())
    assert worst.robust.tolist() == [False, False]
    assert [c.attack_label for c in cells_of(run, attacks=("pgd",))] == ["pgd"]
    assert len(cells_of(run, attacks=("* via *",))) == 3
