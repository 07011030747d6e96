"""Ensemble attacks: the number of samples that each member broke."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from robustbench_inv.results.cell import sample_values
from robustbench_inv.results.record import Record

__all__ = ["EnsembleBreakdown", "ensemble_breakdown"]


MEMBER_COLUMN = "broken_by"
"""What ``attacks.cascade`` calls the number that it keeps of each sample: the member's, from 1; 0 for none."""

DISPLAY_NAMES = {"Scouted": "Square with APGD"}
"""Members that readers do not know by the name of their class."""


@dataclass(frozen=True)
class EnsembleBreakdown:
    """Numbers of samples, which add up to all.

    Args:
        members: that fell to each member, by its name, in the order of the cascade; of a sweep, at the smallest eps.
        others: that fell to what a member tried and did not return (check C15).
        wrong: that were wrong to begin with.
        left: that hold.
    """

    members: Mapping[str, int]
    others: int
    wrong: int
    left: int

    @property
    def text(self) -> str:
        """One line.

        Example:
            >>> EnsembleBreakdown({"APGD": 31, "FMN": 2}, 0, 1, 12).text
            'broken by APGD 31, FMN 2; wrong before 1, left 12'
        """
        by = [f"{name} {count}" for name, count in self.members.items()]
        met = f", met on the way {self.others}" if self.others else ""
        before = f"wrong before {self.wrong}, " if self.wrong else ""
        return f"broken by {', '.join(by)}{met}; {before}left {self.left}"

    def to_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return asdict(self)


def ensemble_breakdown(
    cell: Mapping[str, Any], records: Sequence[Record], events: Iterable[Mapping[str, Any]]
) -> EnsembleBreakdown | None:
    """Return to which member of a cascade the samples fell; None if the attack was none.

    Args:
        cell: the content of cell.json.
        records: of the cell.
        events: its notes.
    """
    column = sample_values(events).get(MEMBER_COLUMN)
    names = _member_names(cell["attack"].get("parameters", {}).get("members", ()))
    if column is None or not names:
        return None
    wrong = sum(record.status == "already_wrong" for record in records)
    fallen = [r.sample for r in records if r.goal_reached and r.status != "already_wrong"]
    counts = Counter(int(column.get(sample) or 0) for sample in fallen)
    members = {name: counts[number] for number, name in enumerate(names, 1)}
    return EnsembleBreakdown(members, counts[0], wrong, len(records) - wrong - len(fallen))


def _member_names(members: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what readers call the members; those that share a name are numbered."""
    names = [_member_name(member) for member in members]
    several = {name for name, count in Counter(names).items() if count > 1}
    return [
        f"{name} ({number})" if name in several else name for number, name in enumerate(names, 1)
    ]


def _member_name(member: Mapping[str, Any]) -> str:
    kind = str(member["type"]).rpartition(":")[2]
    name, classes = DISPLAY_NAMES.get(kind, kind), member.get("target_classes")
    if member.get("widths"):
        return f"{name} from larger budgets"
    return f"{name} toward {classes} classes" if classes else name
