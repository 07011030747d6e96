"""How well an oracle notices changes of the true class, on inputs that people labelled."""

from dataclasses import dataclass

from robustbench_inv.results.rate import Rate

__all__ = ["ChangeDetection"]


@dataclass(frozen=True)
class ChangeDetection:
    """How many changes of the true class an oracle reports, on changed inputs that people labelled.

    Args:
        measured_on: the inputs, and how the oracle was kept from seeing them.
        changed: inputs whose class has changed for people.
        found: those of them that have another class than the label for the oracle as well.
        unchanged: inputs whose class has not changed for people.
        false: those of them that have another class than the label for the oracle.
    """

    measured_on: str
    changed: int
    found: int
    unchanged: int
    false: int

    @property
    def recall(self) -> Rate:
        """Share of the changes that the oracle reports: its sensitivity."""
        return Rate(self.found, self.changed)

    @property
    def precision(self) -> Rate:
        """Share of the oracle's changes that are changes for people."""
        return Rate(self.found, self.found + self.false)

    @property
    def false_rate(self) -> Rate:
        """Share of the unchanged inputs for which the oracle reports a change: one minus its specificity."""
        return Rate(self.false, self.unchanged)

    @property
    def text(self) -> str:
        """One line.

        Example:
            >>> ChangeDetection("altered digits", 157, 59, 193, 11).text
            'of 157 changes that people see on altered digits it reports 59, of 193 others 11'
        """
        return (
            f"of {self.changed} changes that people see on {self.measured_on} it reports {self.found}, "
            f"of {self.unchanged} others {self.false}"
        )
