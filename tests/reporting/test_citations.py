"""BibTeX: every shipped card resolves to entries of the bibliography; other sources are quoted."""

import tomllib
from pathlib import Path

import pytest

from robustbench_inv.reporting.citations import FILE, collect_citations, references_of
from robustbench_inv.testing.toy_cells import toy_cell

ROOT = Path(__file__).parents[2]
CARDS = [*ROOT.glob("attacks/presets/*.toml"), *ROOT.glob("models/*/card.toml")]


def keys(paper):
    return [each.key for each in references_of(paper, "mine")]


def test_every_source_of_a_shipped_card_is_in_the_bibliography():
    assert len(CARDS) > 60
    papers = {tomllib.loads(card.read_text()).get("paper", ""): card for card in CARDS}
    quoted = {str(card): paper for paper, card in papers.items() if keys(paper) == ["mine"]}
    assert quoted == {}


@pytest.mark.parametrize(
    ("paper", "expected"),
    [
        ("Moosavi-Dezfooli, Fawzi and Frossard, DeepFool, CVPR 2016", ["moosavi2016deepfool"]),
        ("Alemi et al., Deep Variational Information Bottleneck, ICLR 2017, in the setting of Zhu, An and Niu, arXiv 2001.03311", ["alemi2017deep", "zhu2020guess"]),
        ("Tramèr et al., ICML 2020; Sabour et al., ICLR 2016", ["tramer2020fundamental", "sabour2016adversarial"]),
        ("Behrmann, thesis, section 6.2.1", ["behrmann2019principles"]),
        ("Croce and Hein, 2020", ["croce2020reliable"]),
        ("", []),
    ],
)  # fmt: skip
def test_a_source_is_found_by_title_preprint_or_author_and_year(paper, expected):
    assert keys(paper) == expected


def test_an_unknown_source_is_quoted_and_cannot_end_its_entry():
    (entry,) = references_of("Nobody, A {new} attack}, 2031\n@misc{x", "My attack: v=1")
    assert entry.key == "my-attack-v-1"
    assert entry.text == "@misc{my-attack-v-1,\n  note = {Nobody, A new attack, 2031 @miscx},\n}"


def test_entries_have_distinct_keys_and_balanced_braces():
    entries = FILE.read_text().strip().split("\n\n")
    found = [entry.partition("{")[2].partition(",")[0] for entry in entries]
    assert len(set(found)) == len(found) == FILE.read_text().count("\n@") + 1
    assert all(entry.count("{") == entry.count("}") for entry in entries)


def test_a_page_cites_attacks_models_and_the_library_of_an_attack():
    pgd = {"card": {"paper": "Madry et al., ICLR 2018"}, "implementation": "foolbox:LinfPGD"}
    net = {"name": "net", "card": {"paper": "Zhu, An and Niu, Guess First, arXiv 2001.03311"}}
    found = collect_citations([toy_cell("pgd", [0.1], attack=pgd, model=net)] * 2)
    assert {each.reference.key: each.cited_by for each in found} == {
        "madry2018towards": ("pgd",),
        "rauber2020foolbox": ("pgd",),
        "zhu2020guess": ("net",),
    }
