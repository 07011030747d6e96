"""Pairs of models whose hidden layers a figure holds against one another."""

from dataclasses import dataclass

__all__ = ["LayerPair"]


@dataclass(frozen=True)
class LayerPair:
    """A model before and after a layer of it was regularised.

    Args:
        name: as the paper calls the model before.
        before: the model; ``{data}`` stands for the data set.
        after: the same, regularised.
    """

    name: str
    before: str
    after: str

    def models(self, data: str) -> tuple[str, str]:
        """Return both models' names for a data set.

        Example:
            >>> LayerPair("C-DV", "{data}-c-dv", "{data}-c-dv-ie").models("mnist")
            ('mnist-c-dv', 'mnist-c-dv-ie')
        """
        return self.before.format(data=data), self.after.format(data=data)
