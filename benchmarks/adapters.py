"""Times attacks of Foolbox and torchattacks through our adapters against the same attacks called directly.

Both run in one process on one thread, in turn, on the same samples in one batch and on the same network; times are
medians of processor time.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from standard import Logits
from timing import medians, one_thread
from torch import Tensor

import robustbench_inv as rbi
from robustbench_inv.attacks.protocol import Batch
from robustbench_inv.attacks.queries import CountingModel
from robustbench_inv.data.sampling import select_samples
from robustbench_inv.models.protocol import Classifier
from robustbench_inv.randomness import SampleRNG

__all__ = ["adapters_section"]

SAMPLES, MODEL, DATA, EPS = 50, "mnist-cnn", "mnist5k", 0.1

CONTESTS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("torchattacks:AutoAttack", "linf=0.1", {}),
    ("torchattacks:Square", "linf=0.1", {"n_queries": 1000}),
    ("torchattacks:FAB", "linf=0.1", {"steps": 5}),
    ("torchattacks:APGD", "linf=0.1", {"steps": 50}),
    ("torchattacks:PGD", "linf=0.1", {"steps": 100}),
    ("torchattacks:CW", "none", {"steps": 100}),
    ("torchattacks:DeepFool", "none", {"steps": 10}),
    ("foolbox:LinfPGD", "linf=0.1", {"steps": 100}),
    ("foolbox:L2CarliniWagnerAttack", "none", {"steps": 50, "binary_search_steps": 2}),
    ("foolbox:DDNAttack", "none", {"steps": 100}),
)
"""Attack, threat and parameters."""


def adapters_section() -> str:
    """Return the benchmark's text for the page."""
    with one_thread():
        rows = [_row(*contest) for contest in CONTESTS]
    return "\n".join([_OPENING, *rows, ""])


def _row(name: str, threat: str, parameters: Mapping[str, Any]) -> str:
    data, classifier = rbi.load_dataset(DATA), rbi.load_model(MODEL).classifier
    ids = torch.tensor(select_samples(data.labels, SAMPLES))
    batch = Batch(*data.batch(ids), ids)
    library, _, attack = name.partition(":")
    direct = _torchattacks if library == "torchattacks" else _foolbox
    tasks = {
        "direct": direct(attack, parameters, classifier, batch),
        "adapter": _adapter(name, threat, parameters, classifier, batch),
    }
    times = medians(tasks, repeats=5)
    ratio = times["adapter"] / times["direct"]
    return f"| `{name}` | {times['direct']:.2f} s | {times['adapter']:.2f} s | {ratio:.2f} |"


def _adapter(
    name: str, threat: str, parameters: Mapping[str, Any], classifier: Classifier, batch: Batch
) -> Callable[[], Tensor]:
    chosen, rng = rbi.load_threat(threat), SampleRNG(0, batch.ids)
    attack = rbi.load_attack(name, **parameters).attack
    return lambda: attack.run(CountingModel(classifier, batch, chosen, rng), batch, chosen, rng)


def _torchattacks(
    attack: str, parameters: Mapping[str, Any], classifier: Classifier, batch: Batch
) -> Callable[[], Tensor]:
    import torchattacks as ta

    given = dict(parameters)
    if attack not in ("CW", "DeepFool"):
        given["eps"] = EPS
    if attack == "PGD":
        given["alpha"] = EPS / 4
    if attack in ("AutoAttack", "FAB"):
        given["n_classes"] = classifier.num_classes
    if attack in ("APGD", "AutoAttack", "FAB", "Square"):
        given["seed"] = (
            0  # the clock by default: another number of samples is left to Square each time
        )
    network = Logits(classifier).eval()
    network.place = torch.nn.Parameter(torch.zeros(0))  # torchattacks reads the device from it
    return lambda: getattr(ta, attack)(network, **given)(batch.images, batch.labels)


def _foolbox(
    attack: str, parameters: Mapping[str, Any], classifier: Classifier, batch: Batch
) -> Callable[[], Tensor]:
    import foolbox

    network = foolbox.PyTorchModel(Logits(classifier).eval(), bounds=(0, 1), device="cpu")
    eps = EPS if attack == "LinfPGD" else None
    made = getattr(foolbox.attacks, attack)(**parameters)
    return lambda: made(network, batch.images, batch.labels, epsilons=eps)[1]


_OPENING = f"""
## Adapters

Attacks of other libraries through our adapters and called directly, with the same parameters, on {SAMPLES} samples of
`{MODEL}` in one batch; one process, one thread, in turn, processor time.

| attack | called directly | through the adapter | adapter / direct |
|---|---|---|---|"""
