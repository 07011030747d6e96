"""Measures minimum-norm attacks against the committed envelope of the smallest known distances."""

import tempfile
from pathlib import Path

import robustbench_inv as rbi
from robustbench_inv.results.envelope import read_envelope

__all__ = ["envelope_section"]

ENVELOPE = Path(__file__).parents[1] / "models" / "envelope.json"
MODELS, SAMPLES = ("mnist-cnn", "mnist-cnn-at", "mnist-lenet5"), 20
CW = "cw:searches=5,steps=200,learning_rate=0.1,initial_constant=0.1"
ATTACKS = {
    "l0": ("fmn", "minimum-norm"),
    "l1": ("fmn", "minimum-norm"),
    "l2": ("deepfool", "ddn", "fmn", CW, "minimum-norm"),
    "linf": ("deepfool-linf", "fmn", "minimum-norm"),
}


def envelope_section() -> str:
    """Return the benchmark's text for the page."""
    known = read_envelope(ENVELOPE)
    found = dict[tuple[str, str], dict[str, float]]()
    for norm, attacks in ATTACKS.items():
        with tempfile.TemporaryDirectory() as folder:
            options = {"dataset": "mnist5k", "samples": SAMPLES, "checks": False, "progress": False}
            run = rbi.evaluate(
                list(MODELS),
                attack=list(attacks),
                threat=f"none:norm={norm}",
                out=Path(folder) / "run",
                **options,
            )
            for cell in run.cells:
                row = found.setdefault((norm, cell.attack_label), {})
                row[cell.model.name] = known.optimality(cell)
    rows = [
        f"| {norm} | `{attack}` | {' | '.join(f'{row[name]:.3f}' for name in MODELS)} |"
        for (norm, attack), row in found.items()
    ]
    return "\n".join([_OPENING, *rows, ""])


_OPENING = f"""
## Distance from the best known examples

Local optimality of minimum-norm attacks (AttackBench, equations 4 and 5) against `models/envelope.json`, the smallest
distances that any attack has found. 1 is as close as the best known one for each of {SAMPLES} digits of `mnist5k`.

| norm | attack | {" | ".join(MODELS)} |
|---|---|{"---|" * len(MODELS)}"""


if __name__ == "__main__":
    print(envelope_section())
