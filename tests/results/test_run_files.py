"""Run folders whose plan, cells or verdicts are damaged: what is rebuilt, what is refused, and with which line."""

import json
import shutil
from pathlib import Path

import pytest

from robustbench_inv.errors import BadResults
from robustbench_inv.results.cell_writing import CellWriter
from robustbench_inv.results.files import write_json
from robustbench_inv.results.run_files import CellFolder, RunFolder
from robustbench_inv.results.run_writing import check_seconds, write_checks, write_plan

OLD_RUNS = Path(__file__).parent.parent / "data"
DIGEST = "396368ac991fb89284b504e2e76aacbe"

VERDICT = {
    **dict.fromkeys(("title", "rule", "evidence"), "text"),
    "id": "C6",
    "scope": "model",
    "subject": "m",
    "verdict": "PASS",
    "value": 0.5,
}


@pytest.fixture
def old_run(tmp_path):
    """A run without digests, whose values are checked one by one."""
    shutil.copytree(OLD_RUNS / "run-v2", tmp_path / "run")
    return tmp_path / "run"


def numbers(run):
    return [[r.to_json_line() for r in cell.read().records] for cell in run.cells()]


@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "other text", "no JSON object"])
def test_a_lost_plan_is_made_from_the_cells(old_run, damage):
    path, run = old_run / "plan.json", RunFolder(old_run)
    before = sorted(numbers(run))
    text = {"cut": path.read_text()[:-30], "empty": "", "other text": "{]", "no JSON object": "3"}
    path.unlink() if damage == "missing" else path.write_text(text[damage])
    assert run.exists
    assert sorted(numbers(run)) == before
    assert {entry["attack"] for entry in run.plan["cells"]} == {"pgd", "breaks"}
    assert run.plan["samples"] == list(range(12))
    (remark,) = run.remarks
    assert "plan" in remark
    write_plan(old_run, {**run.plan, "commands": [["invbench"]]})
    assert run.remarks == ()
    assert sorted(numbers(run)) == before


def test_a_plan_names_a_cell_that_is_damaged(old_run):
    (old_run / "plan.json").unlink()
    (old_run / DIGEST / "cell.json").write_text("{")
    with pytest.raises(BadResults, match=r"cell\.json"):
        numbers(RunFolder(old_run))


def test_a_cell_without_its_description_is_told(old_run):
    (old_run / DIGEST / "cell.json").unlink()
    with pytest.raises(BadResults, match=r"cannot read .*cell\.json"):
        numbers(RunFolder(old_run))


@pytest.mark.parametrize("name", ["plan.json", "cell.json", "checks.json"])
@pytest.mark.parametrize("old", ["1", "a", '"'])
def test_a_changed_sign_of_a_json_file_is_refused(tmp_path, name, old):
    content = {"version": 2, "name": "1 a", "cells": [], "verdicts": []}
    write_json(tmp_path / name, content)
    data = (tmp_path / name).read_text()
    position = data.index(old, data.index("name"))
    (tmp_path / name).write_text(f"{data[:position]}2{data[position + 1 :]}")
    run = RunFolder(tmp_path)
    with pytest.raises(BadResults, match=r"changed|cannot read"):
        {
            "plan.json": lambda: run.plan,
            "cell.json": lambda: CellFolder(tmp_path).info,
            "checks.json": run.checks,
        }[name]()


def places(value, path=()):
    """Yield the paths of all values inside a JSON value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in entries:
        yield (*path, key)
        if isinstance(entry, dict | list):
            yield from places(entry, (*path, key))


NEEDED = [
    ("version",),
    ("model",),
    ("model", "name"),
    ("model", "digest"),
    ("model", "card"),
    ("attack", "name"),
    ("attack", "kind"),
    ("attack", "parameters"),
    ("threat", "norm"),
    ("threat", "epsilons"),
    ("threat", "epsilons", 0),
    ("threat", "goal"),
    ("threat", "goal_parameters"),
    ("dataset", "bounds"),
    ("dataset", "bounds", 1),
    ("dataset", "shape"),
    ("dataset", "num_classes"),
    ("seed",),
    ("versions",),
    ("batch_size",),
    ("segments",),
    ("segments", 0),
    ("segments", 0, "samples"),
    ("segments", 0, "samples", 3),
    ("segments", 0, "batch_size"),
]


@pytest.mark.parametrize("place", NEEDED, ids=lambda place: ".".join(map(str, place)))
def test_a_value_of_another_type_in_a_cell_is_one_line(old_run, place):
    path = old_run / DIGEST / "cell.json"
    for strange in (3.5, "12", {"a": [1]}, [None], True):
        value = json.loads((OLD_RUNS / "run-v2" / DIGEST / "cell.json").read_text())
        *parents, last = place
        parent = value
        for key in parents:
            parent = parent[key]
        if type(parent[last]) is type(strange) or (last in ("epsilons", 0, 1) and strange == 3.5):
            continue
        parent[last] = strange
        path.write_text(json.dumps(value))
        with pytest.raises(BadResults) as error:
            CellFolder(path.parent).read()
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "strange"),
    [
        ("label", "3"),
        ("label", 3.0),
        ("sample", True),
        ("clean", None),
        ("clean", {"prediction": "0", "score": None, "accepted": None}),
        ("adversarial", {"prediction": 0, "score": "high", "accepted": None}),
        ("distance", {"l0": 0.5, "l1": 0.0, "l2": 0.0, "linf": 0.0}),
        ("distance", {"l0": 1, "l1": 1e999, "l2": 0.0, "linf": 0.0}),
        ("broken_at", "0.1"),
        ("goal_reached", 1),
        ("status", "fine"),
        ("status", ["ok"]),
        ("oracle_label", [1]),
        ("unknown_key", 1),
    ],
)
def test_a_value_of_another_type_in_a_record_is_one_line(old_run, key, strange):
    path = old_run / DIGEST / "records.jsonl"
    lines = path.read_text().splitlines()
    lines[4] = json.dumps({**json.loads(lines[4]), key: strange})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(BadResults, match="line 5 of") as error:
        CellFolder(path.parent).read()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["plan.json", "cell.json", "checks.json", "oracle.json"])
def test_deep_nesting_and_odd_numbers_are_one_line(old_run, name):
    folder = old_run if name in ("plan.json", "checks.json") else old_run / DIGEST
    if name == "plan.json":  # else it is made from the cells
        for cell in list(old_run.glob("*/cell.json")):
            shutil.rmtree(cell.parent)
    for data in (b'{"version": ' + b"[" * 100_000, b'{"version": NaN}', b"\xff\xfe\x00\xd8"):
        (folder / name).write_bytes(data)
        run = RunFolder(old_run)
        with pytest.raises(BadResults) as error:
            _ = run.plan if name == "plan.json" else run.checks() + numbers(run)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "strange"),
    [("cells", {}), ("cells", [3]), ("samples", "12"), ("commands", [1]), ("name", 3)],
)
def test_a_plan_of_another_type_is_made_from_the_cells(old_run, key, strange):
    path = old_run / "plan.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: strange}))
    assert len(RunFolder(old_run).cells()) == 2
    assert len(RunFolder(old_run).remarks) == 1


def test_a_plan_cannot_name_a_folder_elsewhere(old_run, tmp_path):
    shutil.copytree(old_run / DIGEST, tmp_path / "elsewhere")
    path = old_run / "plan.json"
    path.write_text(path.read_text().replace(DIGEST, "../elsewhere"))
    assert {cell.path.parent for cell in RunFolder(old_run).cells()} == {old_run}


@pytest.mark.parametrize(
    "change", [{"value": "0.5"}, {"value": float("inf")}, {"subject": 3}, {"evidence": None}]
)
def test_a_verdict_of_another_type_is_one_line(tmp_path, change):
    (tmp_path / "checks.json").write_text(json.dumps([VERDICT, {**VERDICT, **change}]))
    with pytest.raises(BadResults, match=r"checks\.json"):
        RunFolder(tmp_path).checks()


def test_verdicts_that_are_stored_already_are_not_written_again(old_run):
    run = RunFolder(old_run)
    write_checks(run, [VERDICT])
    before = (old_run / "checks.json").stat().st_ino
    write_checks(run, [VERDICT])
    assert (old_run / "checks.json").stat().st_ino == before
    write_checks(run, [{**VERDICT, "verdict": "FAIL"}])
    assert (old_run / "checks.json").stat().st_ino != before


def test_a_damaged_description_is_repaired(make, tmp_path):
    with CellWriter(tmp_path / "c", make.request(range(10))) as writer:
        make.fill(writer)
    records = (tmp_path / "c" / "records.jsonl").read_bytes()
    path = tmp_path / "c" / "cell.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(BadResults, match="changed after it was written"):
        CellWriter(tmp_path / "c", make.request(range(10)))
    with CellWriter(tmp_path / "c", make.request(range(10), repair=True)) as writer:
        assert writer.done == 0
        make.fill(writer)
    assert (tmp_path / "c" / "records.jsonl").read_bytes() == records


@pytest.mark.parametrize(("seconds", "read"), [(2.5, 2.5), (None, None), ("x", None), (-1, None)])
def test_the_time_of_the_checks_is_read_if_it_is_one(tmp_path, seconds, read):
    content = {"version": 2, "verdicts": []} | ({} if seconds is None else {"seconds": seconds})
    (tmp_path / "checks.json").write_text(json.dumps(content))
    assert check_seconds(RunFolder(tmp_path)) == read
