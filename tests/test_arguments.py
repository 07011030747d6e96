"""Checks of single arguments, and texts without control characters."""

import json
from pathlib import Path

import pytest

from robustbench_inv.arguments import (
    MAX_SEED,
    check_file,
    check_flag,
    check_folder,
    check_number,
    check_path,
    check_root,
    check_seed,
    check_text,
    format_eps,
    printable,
    printable_json,
)
from robustbench_inv.errors import UsageError


@pytest.mark.parametrize("value", ["", " ", "\t\n", None, 3, b"x", ["x"]])
def test_a_text_is_not_blank(value):
    assert check_text("x y", "name") == "x y"
    with pytest.raises(UsageError, match="name"):
        check_text(value, "name")


@pytest.mark.parametrize("value", [True, 1.0, "1", None, 0, 11, float("nan")])
def test_a_number_is_whole_and_in_range(value):
    assert check_number(10, "count", 1, 10) == 10
    with pytest.raises(UsageError, match="count"):
        check_number(value, "count", 1, 10)


@pytest.mark.parametrize("value", [-1, MAX_SEED + 1, True, "0", 0.0, None])
def test_a_seed_is_a_number_of_torch(value):
    assert check_seed(0) == 0
    assert check_seed(MAX_SEED) == MAX_SEED
    with pytest.raises(UsageError, match="seed"):
        check_seed(value)


@pytest.mark.parametrize("value", [0, 1, "no", None])
def test_a_flag_is_true_or_false(value):
    assert check_flag(False, "checks") is False
    with pytest.raises(UsageError, match="checks"):
        check_flag(value, "checks")


@pytest.mark.parametrize("value", ["", 3, None, "a\0b"])
def test_a_path_can_exist(value):
    assert check_path("a/b", "out") == Path("a/b") == check_path(Path("a/b"), "out")
    for check in (check_folder, check_file):
        with pytest.raises(UsageError):
            check(value)


@pytest.mark.parametrize("place", ["file", "file/below", "file/far/below", "nowhere/../file"])
def test_a_file_is_no_folder(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write"):
        check_folder(tmp_path / place)
    assert check_folder(tmp_path / "new" / "far") == tmp_path / "new" / "far"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("place", ["", "folder", "file/below"])
def test_a_folder_is_no_file(tmp_path, place):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError):
        check_file(tmp_path / place)
    assert check_file(tmp_path / "file") == tmp_path / "file"


def test_a_data_root_exists(tmp_path):
    check_root(None)
    check_root(tmp_path)
    for value in ("", tmp_path / "nowhere", 3):
        with pytest.raises(UsageError, match="data root"):
            check_root(value)


@pytest.mark.parametrize(
    "text",
    [
        "a\x1b[31mb",
        "a\x1b[2J\x1b[1;1Hb",
        "a\x1b]0;title\x07b",
        "a\x1b]8;;http://x\x1b\\b",
        "a\x9b31mb",
        "a\x07\x08\rb",
        "a\x1bPq\x1b\\b",
        "a\u202eb",
        "a\u2066b\u2069",
        "a\u2028b",
        "a\udcffb",
        "a\x1b",
        "a\x7fb",
    ],
)
def test_a_printed_text_has_no_control_characters(text):
    assert printable(text) in {"ab", "a"}
    quoted = printable_json(json.dumps({"x": text}, ensure_ascii=False))
    assert json.loads(quoted) == {"x": text}
    assert printable(quoted) == quoted


def test_ordinary_texts_are_printed_as_they_are():
    text = "pgd:steps=3\tℓ∞ ≤ 0.1 → 98 % [96, 99]\nséance 模型 🙂"
    assert printable(text) == printable_json(text) == text


@pytest.mark.parametrize(
    ("eps", "text"),
    [
        (8 / 255, "8/255"),
        (0.5 / 255, "0.5/255"),
        (128 / 255, "128/255"),
        (51 / 255, "0.2"),
        (1.0, "1"),
        (0.031, "0.031"),
        (0.0314, "0.0314"),
        (1 / 7, "0.142857"),
        (0.0, "0"),
        (8.0, "8"),
        (float("inf"), "inf"),
    ],
)
def test_budgets_of_grey_levels_are_fractions(eps, text):
    assert format_eps(eps) == text


def test_a_threat_is_read_back_from_its_text():
    from robustbench_inv.catalogue.threats import load_threat

    threat = load_threat("linf=0.5/255,8/255,0.1")
    assert threat.text == "linf=0.5/255,8/255,0.1"
    assert load_threat(threat.text) == threat
