"""What was measured survives the file as it was, and what is damaged is one line."""

import gzip
import json
from dataclasses import replace
from math import isnan, nan

import numpy as np
import pytest

from robustbench_inv.errors import BadResults
from robustbench_inv.results.experiment_result import (
    ExperimentResult,
    ImageGrid,
    LogitRow,
    LogitSheet,
    MeasuredNumber,
    read_result,
    result_to_gzip,
)


def measured():
    images = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 1, 4, 5)
    grid = ImageGrid("g", "t", "c", ("a", "b"), (("x", 1), ("y", 2)), images, ("1", "2", "3"), ((), ("4", "5", "6")))  # fmt: skip
    lines = (
        LogitRow("threshold", (1.5, nan)),
        LogitRow("x", (-2.0, 3.0), accepted=False, wrong=True),
    )
    sheet = LogitSheet("s", "t", "c", ("0", "1"), lines)
    numbers = (
        MeasuredNumber.of("errors", "CE", np.array([True, False, False, True])),
        MeasuredNumber("size", "CE", 12.5),
        MeasuredNumber.mean_of("robust", "CE", [0.5, 0.75]),
    )
    return ExperimentResult(
        "mnist", 4, {"m": "d"}, numbers, (grid,), (sheet,), planes={"planes": [1]}
    )


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "measured-mnist.json.gz"
    path.write_bytes(result_to_gzip(measured()))
    found = read_result(path)
    np.testing.assert_array_equal(found.image_grids[0].images, measured().image_grids[0].images)
    assert result_to_gzip(found) == path.read_bytes() == result_to_gzip(measured())
    assert found.numbers == measured().numbers
    assert found.numbers[0].counted == (0, 3)
    assert found.planes == {"planes": [1]}
    assert found.logit_sheets[0].lines[1] == measured().logit_sheets[0].lines[1]
    assert isnan(found.logit_sheets[0].lines[0].values[1])
    assert found.layers is None


def test_a_share_has_an_interval_and_an_amount_has_none():
    share, amount, mean = measured().numbers
    assert (mean.value, mean.rate, mean.trainings) == (0.625, None, (0.5, 0.75))
    assert (share.rate.successes, share.rate.trials) == (2, 4)
    assert amount.rate is None


def test_a_share_of_no_trials_is_stored_and_was_not_measured(tmp_path):
    """A subset without a class ended a reproduction with "unexpected ZeroDivisionError"."""
    none = MeasuredNumber.of("errors of class 3", "CE", np.zeros(0, bool))
    assert (isnan(none.value), none.trials, none.rate) == (True, 0, None)
    path = tmp_path / "measured-mnist.json.gz"
    path.write_bytes(result_to_gzip(replace(measured(), numbers=(none,))))
    (found,) = read_result(path).numbers
    assert (isnan(found.value), found.trials, found.rate) == (True, 0, None)
    assert b"NaN" not in gzip.decompress(path.read_bytes())


DAMAGED = {
    "no gzip": b"not gzip",
    "torn": result_to_gzip(measured())[:60],
    "no keys": gzip.compress(b'{"version": 1}'),
    "another version": gzip.compress(json.dumps({**measured().to_json(), "version": 3}).encode()),
    "no pixels": gzip.compress(json.dumps({**measured().to_json(), "image_grids": [{}]}).encode()),
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_damaged_files_are_one_line(tmp_path, data):
    path = tmp_path / "measured-x.json.gz"
    path.write_bytes(data)
    with pytest.raises(BadResults) as caught:
        read_result(path)
    assert "\n" not in str(caught.value)
