"""Hidden layers before and after they were regularised: Figure 2 of Guess First."""

from collections.abc import Mapping, Sequence

from robustbench_inv.errors import BadCatalogue
from robustbench_inv.measurements.protocol import Asked
from robustbench_inv.results.measurement import Measured
from robustbench_inv.training.elimination_effect import draw_samples, measure_effect

__all__ = ["measure_layers"]


def measure_layers(asked: Asked, pairs: Mapping[str, Sequence[str]]) -> Measured:
    """Return the second fully connected layer of pairs of label-hypothesis nets.

    Args:
        asked: the held-out data.
        pairs: a model before regularisation and one after, by the pair's name.

    References:
        Zhu, An and Niu, Guess First, arXiv 2001.03311, figure 2.
    """
    if short := [name for name, pair in pairs.items() if len(pair) != 2]:
        raise BadCatalogue(f"{short[0]} is no pair", got=len(pairs[short[0]]), expected="2 models")
    drawn = draw_samples(asked.dataset, asked.samples, asked.data_root)
    asked.report(f"{len(drawn.labels)} samples of {asked.dataset}, {len(pairs)} pairs of models")
    both = {name: (before, after) for name, (before, after) in pairs.items()}
    effect = measure_effect(both, drawn, device=asked.device)
    digests = {view.model: view.digest for pair in effect.values() for view in pair}
    layers = {
        "dataset": drawn.dataset,
        "labels": drawn.labels.tolist(),
        "pairs": {
            name: {"before": before.to_json(), "after": after.to_json()}
            for name, (before, after) in effect.items()
        },
    }
    return Measured(drawn.dataset, len(drawn.labels), digests, layers=layers)
