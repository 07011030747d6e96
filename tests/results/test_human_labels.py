"""Human labels: what is read, what is refused with its line, how judgements are put to the vote."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_inv.errors import BadData
from robustbench_inv.results.human_labels import COLUMNS, HumanLabel, HumanLabels, read_labels

HEAD = ",".join(COLUMNS) + "\n"


@pytest.fixture
def read(tmp_path):
    def write(text, head=HEAD):
        (tmp_path / "l.csv").write_text(head + text, encoding="utf-8")
        return read_labels(tmp_path / "l.csv")

    return write


def refuse(call, words):
    with pytest.raises(BadData, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_file_is_read(read):
    labels = read('aa,c,3,7,"me, too",\nbb,c,4,unclear,you,\ncc,c,5,?,you,\ndd,c,6,1,you,1\n')
    assert [each.label for each in labels.judgements] == [7, None, None, 1]
    assert labels.raters == ("me, too", "you")
    assert (labels.of_image("aa"), labels.of_image("bb"), labels.of_image("zz")) == (7, None, None)
    assert labels.of_image("dd") is None  # a catch trial is no judgement
    assert [each.line for each in labels.counted] == [2, 3, 4]


def test_a_table_of_cells_and_samples_will_do(read):
    labels = read("abc,3,7\nabc,4,none\n", "cell,sample,human_label\n")
    assert not labels.names_images
    assert (labels.of_sample("abcdef", 3), labels.of_sample("abcdef", 4)) == (7, None)
    assert labels.of_sample("ffff", 3) is None


def test_a_spreadsheets_mark_and_empty_lines_are_no_trouble(read):
    assert read("aa,,,1,,\n,,,,,\n", "\ufeff" + HEAD).of_image("aa") == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("aa,c,x,7,,\n", "line 2 of l.csv: unusable sample, got 'x'"),
        ("aa,c,1,7,,\naa,c,1,seven,,\n", "line 3 of l.csv: unusable human_label, got 'seven'"),
        ("aa,c,1,-1,,\n", "unusable human_label"),
        ("aa,c,1,²,,\n", "unusable human_label"),
        (",c,,7,,\n", "line 2 of l.csv names no image"),
        ("", "has no judgement"),
    ],
)
def test_a_bad_line_is_named(read, text, says):
    refuse(lambda: read(text), says)


@pytest.mark.parametrize("head", ["sample,human_label\n", "image,label\n", "a;b;c\n", ""])
def test_other_tables_are_refused(read, head):
    refuse(lambda: read("1,2\n", head), "no table of human labels")


def test_no_file_and_no_text(tmp_path):
    refuse(lambda: read_labels(tmp_path / "no.csv"), "No such file .* labelling page")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    refuse(lambda: read_labels(tmp_path / "b.csv"), "cannot read")


def test_labels_out_of_range(read):
    read("aa,,,9,,9\n").check_classes(10)
    refuse(lambda: read("aa,,,1,,\nbb,,,9,,\n").check_classes(9), "line 3 .* out of range, got 9")
    refuse(lambda: read("aa,,,1,,9\n").check_classes(9), "line 2 .* out of range")


def labels_of(*votes):
    return HumanLabels("l", tuple(HumanLabel(i, "aa", "", None, v, "", None) for i, v in enumerate(votes)))  # fmt: skip


@pytest.mark.parametrize(
    ("votes", "expected", "disputed"),
    [
        ((3,), 3, (0, 0)),
        ((3, 3, 5), 3, (1, 0)),
        ((3, 5), None, (1, 1)),
        ((3, None), None, (1, 1)),
        ((None, None, 3), None, (1, 1)),
        ((None,), None, (0, 0)),
        ((3, 3, None), 3, (1, 0)),
    ],
)
def test_the_majority_counts(votes, expected, disputed):
    assert labels_of(*votes).of_image("aa") == expected
    assert labels_of(*votes).disagreements() == disputed


@given(st.lists(st.sampled_from([None, 0, 1, 2]), max_size=9))
def test_a_class_that_is_named_has_more_than_half_of_the_votes(votes):
    said = labels_of(*votes).of_image("aa")
    assert said is None or 2 * votes.count(said) > len(votes)
    assert all(2 * votes.count(k) <= len(votes) for k in range(3) if k != said)
    shuffled = labels_of(*reversed(votes))
    assert shuffled.of_image("aa") == said
    assert shuffled.digest == labels_of(*votes).digest


def test_the_digest_is_of_what_was_said():
    assert labels_of(1).digest == labels_of(1, 1).digest != labels_of(2).digest
    assert labels_of(1).digest != labels_of().digest


def test_catch_trials_tell_how_sure_a_rater_is(read):
    labels = read("aa,,,1,me,1\nbb,,,2,me,1\ncc,,,,you,0\ndd,,,5,you,\n")
    error = labels.error()
    assert (error.trials, error.errors, error.undecided) == (3, 1, 1)
    assert labels.error("me").error_rate.value == 0.5
    assert labels.error("nobody") is None
    assert (error.source, error.measured_on) == ("human", "catch trials")


SHOWN = {"abcd": {1: "aa", 2: "bb"}, "abef": {1: "cc"}}


@pytest.mark.parametrize(
    ("text", "elsewhere"),
    [
        ("aa,,,1,,\ncc,abef,1,2,,\n", 0),
        (",abcd,2,1,,\n,abe,1,1,,\n", 0),
        ("aa,,,1,,\nzz,,,1,,\n,ffff,9,1,,\n", 2),
        ("aa,abef,1,1,,\n", 0),  # the same image in another cell
    ],
)
def test_rows_find_their_places(read, text, elsewhere):
    assert read(text).check_images(SHOWN) == elsewhere


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("aa,,,1,,\n,abcd,7,1,,\n", "line 3 of l.csv: unknown sample of cell abcd, got 7"),
        ("zz,abcd,1,1,,\n", "line 2 .* has another image than the labelled one, got 'zz'"),
        (",ab,1,1,,\n", "several cells have digests that begin so, got 'ab'"),
        ("zz,,,1,,\n", "no row of l.csv is about an image of this run"),
    ],
)
def test_a_row_that_contradicts_the_run_is_named(read, text, says):
    refuse(lambda: read(text).check_images(SHOWN), says)
