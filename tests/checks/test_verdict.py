"""Every check has one topic."""

from collections import Counter

from robustbench_inv.checks.check_list import CHECKS
from robustbench_inv.checks.verdict import TOPICS, topic_of


def test_every_check_has_one_topic():
    named = Counter(each for ids in TOPICS.values() for each in ids)
    assert set(CHECKS) <= set(named)
    assert set(named.values()) == {1}
    assert all(topic_of(each) in TOPICS for each in CHECKS)


def test_a_check_of_another_version_has_a_topic():
    assert topic_of("C999") == "Other checks"
