"""A record is read only if arrays can hold it."""

import json

import pytest

from robustbench_inv.errors import BadResults
from robustbench_inv.results.record import LARGEST, Record
from robustbench_inv.testing.toy_cells import toy_record

WHOLE = [
    ("sample",),
    ("label",),
    ("forward_passes",),
    ("backward_passes",),
    ("oracle_label",),
    ("clean", "prediction"),
    ("adversarial", "prediction"),
    ("distance", "l0"),
]


def line_with(keys, value):
    made = json.loads(toy_record(3, 0.2, oracle_label=1).to_json_line())
    inner = made
    for key in keys[:-1]:
        inner = inner[key]
    assert keys[-1] in inner
    inner[keys[-1]] = value
    return json.dumps(made)


@pytest.mark.parametrize("keys", WHOLE, ids=".".join)
def test_a_whole_number_beyond_64_bits_is_refused(keys):
    assert Record.from_json_line(line_with(keys, 1))
    for value in (LARGEST + 1, -(10**30)):
        with pytest.raises(BadResults, match="unreadable record"):
            Record.from_json_line(line_with(keys, value))


def test_a_number_beyond_all_floats_is_refused():
    with pytest.raises(BadResults, match="unreadable record"):
        Record.from_json_line(line_with(("broken_at",), 10**400))
