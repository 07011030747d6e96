"""Labels: digests are keys, and names for display are distinct."""

from dataclasses import replace
from pathlib import Path

import pytest

from robustbench_inv.errors import BadResults
from robustbench_inv.reporting.run_results import CellGroup
from robustbench_inv.results.certificates import Certificates, SampleCertificate
from robustbench_inv.results.labels import Labels, distinct_labels, join_copies
from robustbench_inv.results.oracle_error import OracleError
from robustbench_inv.testing.toy_cells import toy_cell


def test_names_without_a_namesake_stay():
    assert distinct_labels([("1a", "one"), ("2b", "two"), ("1a", "one")]) == {
        "1a": "one",
        "2b": "two",
    }


def test_digests_of_one_name_are_shown_as_far_as_they_differ():
    digests = ["aaaa11", "aaaa22", "bbbb11"]
    found = distinct_labels([(digest, "net") for digest in digests])
    assert list(found.values()) == ["net #aaaa1", "net #aaaa2", "net #bbbb"]


def test_no_label_is_the_name_of_another():
    named = [("aaaa11", "net"), ("bbbb22", "net"), ("cccc33", "net #aaaa")]
    assert len(set(distinct_labels(named).values())) == 3


def test_cells_are_named_by_their_labels():
    def cell(digest, substitute=None, data="d"):
        return toy_cell(
            "pgd",
            [0.1],
            model={"digest": digest},
            attack={"digest": digest},
            threat={"substitute": substitute},
            dataset={"digest": data},
        )

    cells = [
        cell("1" * 64),
        cell("2" * 64),
        cell("1" * 64, {"name": "toy", "digest": "2" * 64}, "e"),
    ]
    labels = Labels.of((each.info, "") for each in cells)
    named = [labels.apply(each) for each in cells]
    assert [each.model.name for each in named] == ["toy #1111", "toy #2222", "toy #1111"]
    assert [each.dataset.name for each in named] == ["four #d", "four #d", "four #e"]
    assert named[2].attack_label == "pgd #1111 guided by toy #2222"
    assert len({each.subject for each in named}) == 3


def test_attacks_of_one_name_are_told_apart_by_their_norm_where_it_suffices():
    def labels(*keys):
        cells = [
            toy_cell("search", [0.1], attack={"digest": digest * 64}, threat={"norm": norm})
            for digest, norm in keys
        ]
        found = Labels.of((each.info, "") for each in cells)
        return [found.apply(each).attack.name for each in cells]

    assert labels(("1", "l2"), ("2", "linf")) == ["search (l2)", "search (linf)"]
    assert labels(("1", "l2"), ("1", "linf")) == ["search", "search"]
    assert labels(("1", "l2"), ("2", "l2")) == ["search #1111", "search #2222"]
    assert labels(("1", "l2"), ("1", "linf"), ("2", "l1")) == ["search", "search", "search (l1)"]


def test_two_files_of_human_labels_are_two_oracles():
    def cell(digest, members=()):
        oracle = {"source": "human", "digest": digest, "members": members}
        return toy_cell("metamer", [0.1], threat={"oracle": oracle, "goal": "keep-decision"})

    cells = [cell("1" * 64), cell("2" * 64)]
    labels = Labels.of((each.info, "") for each in cells)
    groups = [CellGroup.of(labels.apply(each)) for each in cells]
    assert [group.oracle for group in groups] == ["human #1111", "human #2222"]
    panels = [cell(digit * 64, [{"name": "a", "digest": digit}]) for digit in "12"]
    labels = Labels.of((each.info, "") for each in panels)
    assert {CellGroup.of(labels.apply(each)).oracle for each in panels} == {"human"}


def test_a_label_of_the_user_wins():
    cells = [toy_cell("pgd", [0.1], model={"digest": digit * 64}) for digit in "12"]
    labels = Labels.of(zip([each.info for each in cells], ["A", ""], strict=True))
    assert [labels.apply(each).model_label for each in cells] == ["A", "toy"]


def copy_of(whole, samples):
    """Return a copy of a cell with some samples, and what would be measured of these."""
    numbers = {"samples": samples, "values": {"donor": [10 * s for s in samples]}}
    time = {"event": "block_time", "seconds": 1.5}
    return replace(
        whole,
        records=[whole.records[sample] for sample in samples],
        requested=tuple(samples),
        events=({"event": "sample_values", **numbers}, time),
        oracle_error=OracleError("panel", "clean inputs", len(samples), 1, 0),
        certificates=Certificates("linf", tuple(SampleCertificate(s, 0.1, "ibp") for s in samples)),
    )


def test_copies_of_a_cell_are_joined_with_all_that_belongs_to_their_samples():
    whole = toy_cell("pgd", [0.1, 0.2, None] * 3)
    parts = [copy_of(whole, samples) for samples in ([0, 1, 2], [2, 3, 4, 5], [6])]
    joined = join_copies([(Path(str(i)), part) for i, part in enumerate(parts)])
    assert joined.records == whole.records[:7]
    assert joined.requested == tuple(range(7))
    assert joined.sample_values["donor"] == {sample: 10 * sample for sample in range(7)}
    assert sum(event["event"] == "block_time" for event in joined.events) == 3
    assert joined.oracle_error.trials == 4
    assert [each.sample for each in joined.certificates.samples] == list(range(7))
    again = join_copies([(Path("a"), joined), (Path("b"), parts[0])])
    assert len(again.events) == len(joined.events), "a copy of known samples adds nothing"
    assert join_copies([(Path("a"), whole)]) is whole


def test_copies_may_differ_by_rounding_alone():
    whole = toy_cell("pgd", [0.1, 0.2])
    near = replace(whole.records[1], distance=replace(whole.records[1].distance, linf=0.2000001))
    other = replace(whole, records=[whole.records[0], near])
    assert join_copies([(Path("a"), whole), (Path("b"), other)]).records == whole.records
    far = replace(whole, records=toy_cell("pgd", [0.1, None]).records)
    with pytest.raises(BadResults, match="two results"):
        join_copies([(Path("a"), whole), (Path("b"), far)])
