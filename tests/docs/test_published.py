"""The index of reproduced papers agrees with the pages that it lists."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACE = importlib.util.spec_from_file_location("published", ROOT / "tools" / "published.py")
published = importlib.util.module_from_spec(PLACE)
PLACE.loader.exec_module(published)


def test_the_index_is_up_to_date():
    index = ROOT / "reports" / "published" / "index.html"
    assert index.read_text() == published.index(), "run python tools/published.py"


def test_an_item_is_confirmed_only_if_no_claim_fails_or_is_undecided():
    def outcome(*statuses, page="p.html"):
        claims = [(f"claim {k}", status) for k, status in enumerate(statuses)]
        return published.Item("f", "p", "t", page, claims, 0, 0, "").outcome

    assert outcome("holds", "not measured") == "confirmed"
    assert outcome("holds", "undecided") == "undecided"
    assert outcome("holds", "undecided", "does not hold") == "not confirmed"
    assert outcome("not measured") == outcome(page="") == "not reached"
    assert outcome() == "shown"


def test_every_item_has_an_outcome_and_a_missing_page_a_reason():
    items = list(published.read_items())
    assert {item.folder for item in items} == set(published.PAPERS)
    assert all(item.page or item.reason for item in items)
    table = next(item for item in items if item.page == "guess-first/table-1.html")
    assert (table.outcome, table.far, sum(table.counts.values())) == ("not confirmed", 28, 8)


def test_the_index_counts_every_data_set_and_compares_amounts_by_tenths():
    items = {item.page: item for item in published.read_items()}
    both = items["sdim/figure-2.html"]
    assert {text.rpartition(" (")[2] for text, _ in both.claims} == {"mnist)", "fashion-mnist)"}
    assert both.outcome == "confirmed"
    assert "None of the paper's numbers" in items["excessive-invariance/table-1.html"].reason
    bits = items["thesis/table-5.1.html"]  # 1.39 bits, the thesis has 1.06
    assert (bits.far, bits.compared) == (1, 1)
