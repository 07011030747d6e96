"""Every preset breaks a model that is known to break: the undefended CNN, or a model with the weakness it exploits.

A bound has room for other rounding and other draws: one to eight samples, a tenth of a distance, half of it for the
random walks. An attack that has lost its way does not fit in: with steps that are too short or a gradient of the wrong
sign it leaves most of the digits. Presets that are not here are named with the reason.
"""

from dataclasses import dataclass
from math import inf

import pytest

import robustbench_inv as rbi
from robustbench_inv.catalogue.cards import read_attack
from robustbench_inv.catalogue.locate import shipped_root


@dataclass(frozen=True)
class Row:
    """One attack and what it must come to.

    Args:
        attack: preset, with parameters where the usual ones take too long here.
        threat: as on the command line.
        samples: how many are attacked.
        left: the largest share that may hold.
        found: the share that did when the row was written.
        far: the largest median distance of a success.
        median: what it was.
        model: its name.
        data: its data.
    """

    attack: str
    threat: str
    samples: int
    left: float
    found: float
    far: float = inf
    median: float | None = None
    model: str = "mnist-cnn"
    data: str = "mnist5k"

    def __str__(self) -> str:
        return f"{self.attack}-{self.threat}"

    @property
    def preset(self) -> str:
        return self.attack.partition(":")[0]


SPHERES = {"model": "spheres-misaligned", "data": "spheres:d=500,n=10,r1=1,r2=1.3,size=200"}
ROWS = (
    # fixed-budget attacks: largest robust accuracy allowed, robust accuracy measured
    Row("random-perturbation", "linf=0.5", 60, 0.55, 0.417),  # breaks digits only at a large eps
    Row("random-perturbation", "l2=10", 60, 0.4, 0.233),
    Row("fgsm", "linf=0.15", 60, 0.3, 0.167),
    Row("fgsm", "l2=3", 60, 0.2, 0.1),
    Row("pgd", "linf=0.1", 60, 0.3, 0.217),
    Row("pgd", "l2=1.5", 60, 0.25, 0.15),
    Row("pgd-tuned", "linf=0.1", 60, 0.2, 0.133),
    Row("pgd-tuned", "l2=1.5", 60, 0.2, 0.1),
    Row("apgd", "linf=0.1", 40, 0.25, 0.15),
    Row("apgd", "l2=1.5", 40, 0.2, 0.1),
    Row("apgd:steps=40", "l1=10", 40, 0.15, 0.05),
    Row("apgd-targeted", "linf=0.1", 5, 0.2, 0.0),
    Row("apgd-targeted", "l2=1.5", 10, 0.2, 0.0),
    Row("apgd-targeted", "l1=10", 10, 0.2, 0.0),
    Row("standard", "linf=0.1", 10, 0.2, 0.0),
    Row("standard", "l2=1.5", 10, 0.2, 0.0),
    Row("standard", "l1=10", 10, 0.2, 0.0),
    Row("square", "linf=0.2", 10, 0.1, 0.0),
    Row("square", "l2=3", 20, 0.1, 0.0),
    Row("square", "l1=20", 10, 0.2, 0.0),
    # minimum-norm attacks: robust accuracy 0, largest median distance allowed, median distance measured
    Row("deepfool", "none", 20, 0.0, 0.0, far=1.33, median=1.218),
    Row("deepfool-linf", "none:norm=linf", 20, 0.0, 0.0, far=0.095, median=0.0855),
    Row("ddn:steps=40", "none", 20, 0.0, 0.0, far=1.12, median=1.026),
    # as published, FMN may end before the boundary in l1 and l2
    Row("fmn:steps=40", "none", 20, 0.4, 0.3, far=1.7, median=1.5),
    Row("fmn:steps=40", "none:norm=linf", 20, 0.0, 0.0, far=0.08, median=0.0732),
    Row("fmn:steps=40", "none:norm=l1", 20, 0.3, 0.2, far=8.0, median=7.275),
    Row("fmn:steps=40", "none:norm=l0", 20, 0.15, 0.1, far=10, median=9),
    Row(
        "cw:searches=4,steps=60,learning_rate=0.1,initial_constant=0.3",
        "none",
        5,
        0.0,
        0.0,
        far=1.15,
        median=1.039,
    ),
    Row("minimum-norm:steps=30,lagrangian_steps=0", "none", 10, 0.0, 0.0, far=1.0, median=0.887),
    Row("minimum-norm:steps=30", "none:norm=linf", 10, 0.0, 0.0, far=0.07, median=0.064),
    Row("minimum-norm:steps=30", "none:norm=l1", 10, 0.0, 0.0, far=4.85, median=4.41),
    Row("minimum-norm:steps=40", "none:norm=l0", 10, 0.0, 0.0, far=6.5, median=6),
    Row("local-search", "none:norm=l0", 6, 0.2, 0.0, far=130),
    Row("local-search-log-odds", "none:norm=l0", 8, 0.0, 0.0, far=17, median=15),
    Row(
        "boundary:steps=200,spherical_step=0.1,source_step=0.1,update_interval=1",
        "none",
        3,
        0.0,
        0.0,
        far=5.5,
        median=4.683,
    ),
    Row("hopskipjump:steps=8", "none", 2, 0.0, 0.0, far=2.5, median=1.778),
    Row("hopskipjump:steps=4", "none:norm=linf", 3, 0.0, 0.0, far=0.18, median=0.152),
    # attacks that change the class: on models that are too invariant, or as far as it takes
    Row("spheres-perturbation", "none", 40, 0.5, 0.5, **SPHERES),
    Row("spheres-invariance", "none", 40, 0.5, 0.5, **SPHERES),
    Row("metamer", "none", 20, 0.6, 0.4, model="mnist-firevnet-ce"),
    Row("invariance-ball", "l0=100", 20, 0.8, 0.65),
    Row("invariance-ball", "l2=8", 20, 0.85, 0.7),
    Row("invariance-ball", "linf=0.8", 20, 0.9, 0.8),
    Row("collision", "none", 20, 0.8, 0.6),
    Row("level-set-traversal", "none", 10, 0.3, 0.1),
    Row("invariance-standard", "none", 5, 0.1, 0.0),
    Row("layer-metamer", "none", 10, 0.9, 0.75),
    Row("relu-preimage", "none", 10, 0.7, 0.5, model="mnist-mlp"),
)

FIXED = "returns inputs of the data set; nothing is searched"
REJECTS = "needs a reject option, which the CNN does not have"
ELSEWHERE = {
    "altered-input": FIXED,
    "shifted-input": FIXED,
    "noise-image": REJECTS,
    "out-of-distribution": REJECTS,
    "distal": REJECTS,
}
"""Presets without a row, and why; ``test_rejection_aware.py`` and ``test_fixed_inputs.py`` test them."""


PRESETS = {path.stem: path for path in (shipped_root() / "attacks/presets").glob("*.toml")}


def test_every_preset_has_a_row_or_a_reason():
    rows = {row.preset for row in ROWS}
    assert rows | ELSEWHERE.keys() == PRESETS.keys()
    assert not rows & ELSEWHERE.keys()


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_names_its_algorithm_and_each_deviation_in_a_sentence(preset):
    card = read_attack(PRESETS[preset])
    assert card.algorithm
    assert card.paper or not card.deviations
    for sentence in card.deviations:
        assert sentence.endswith(".")
        assert len(sentence.split()) <= 35


@pytest.mark.parametrize("preset", sorted(PRESETS.keys() - ELSEWHERE.keys()))
def test_every_norm_that_is_searched_in_has_a_row(preset):
    """Whoever names a goal of its own, or keeps the decision, measures in any norm what it finds in one."""
    card = read_attack(PRESETS[preset])
    found = {norm_of(row) for row in ROWS if row.preset == preset}
    assert found >= set(card.norms) or card.goal


BY_HAND = (
    "apgd-targeted-l2=1.5",
    "apgd-targeted-l1=10",
    "standard-l2=1.5",
    "standard-l1=10",
    "square-l2=3",
    "square-l1=20",
)
"""Rows that take seconds and whose attack has a row in another norm: run by hand (marked slow)."""

PARAMETERS = [
    pytest.param(row, marks=[pytest.mark.slow] * (str(row) in BY_HAND), id=str(row)) for row in ROWS
]


@pytest.mark.parametrize("row", PARAMETERS)
def test_the_attack_breaks_a_model_known_to_break(row, tmp_path):
    run = rbi.evaluate(
        model=row.model, attack=row.attack, threat=row.threat, dataset=row.data,
        samples=row.samples, out=tmp_path, checks=False,
    )  # fmt: skip
    (summary,) = run.summary()
    assert not run.failures
    assert summary.clean_accuracy.value > max(row.left, 0.9)
    assert summary.robust_accuracy[0].value <= row.left
    if row.far < inf:
        assert summary.median_distance is not None
        assert summary.median_distance <= row.far


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_bound_is_close_to_the_measured_value(row):
    assert row.found <= row.left <= row.found + 0.2
    assert row.median is None or row.median < row.far < 1.6 * row.median


def norm_of(row: Row) -> str:
    """Return the norm of a row's threat."""
    budget, _, norm = row.threat.partition(":norm=")
    return norm or ("l2" if budget == "none" else budget.partition("=")[0])
