"""What all blocks of a cell share."""

from collections.abc import Callable
from dataclasses import dataclass

from robustbench_inv.attacks.protocol import Kind
from robustbench_inv.evaluation.search import Search
from robustbench_inv.evaluation.verdict import Court
from robustbench_inv.threat.threat_model import ThreatModel

__all__ = ["Note", "Setting"]

Note = Callable[..., None]
"""Called with a kind and values for what is worth an entry in events.jsonl."""


@dataclass(frozen=True)
class Setting:
    """What all blocks of a cell share.

    Args:
        kind: of the attack.
        threat: the threat with its whole sweep.
        search: searches on a copy of the model, or on a substitute.
        brief: the same in brief, which makes a sweep go down from its largest eps; None for one that goes up.
        court: judges on the original.
        note: takes notes.
    """

    kind: Kind
    threat: ThreatModel
    search: Search
    brief: Search | None
    court: Court
    note: Note
