"""How numbers are spread: histograms over common bins, with lines that mark limits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Histogram", "Spread"]


@dataclass(frozen=True)
class Histogram:
    """One panel.

    Args:
        title: a few words.
        edges: (k + 1,) ascending ends of the bins.
        counts: (k,) numbers in each bin by whose they are; the first bin holds what lies below it as well.
        limits: places of vertical lines, by name.
        note: one short line, such as a share.
    """

    title: str
    edges: tuple[float, ...]
    counts: Mapping[str, tuple[int, ...]]
    limits: Mapping[str, float]
    note: str = ""

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Histogram":
        """Read the plain values of one."""
        return cls(
            title=str(found["title"]),
            edges=tuple(map(float, found["edges"])),
            counts={str(whose): tuple(map(int, n)) for whose, n in found["counts"].items()},
            limits={str(name): float(at) for name, at in found["limits"].items()},
            note=str(found["note"]),
        )


@dataclass(frozen=True)
class Spread:
    """Panels side by side that are read in the same way.

    Args:
        name: for file names.
        title: a few words.
        caption: what is to be seen.
        axis: what is counted, with its unit.
        panels: the histograms.
    """

    name: str
    title: str
    caption: str
    axis: str
    panels: tuple[Histogram, ...]

    def to_json(self) -> dict[str, object]:
        """Return plain values."""
        return {**vars(self), "panels": [vars(panel) for panel in self.panels]}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "Spread":
        """Read what ``to_json`` returned."""
        words = {key: str(found[key]) for key in ("name", "title", "caption", "axis")}
        return cls(**words, panels=tuple(map(Histogram.from_json, found["panels"])))
