"""What the validity checks are about, in the words of a reader."""

from collections.abc import Mapping

__all__ = ["TOPICS", "topic_of"]

TOPICS: Mapping[str, tuple[str, ...]] = {
    "Are model and data what they should be?": (
        "C10",
        "C11",
        "C12",
        "C17",
        "C39",
        "C40",
        "C41",
        "C42",
    ),
    "Do gradients lead the attacks?": ("C6", "C7", "C8", "C31"),
    "Are the attacks strong enough?": ("C1", "C2", "C3", "C4", "C5", "C13", "C19", "C47"),
    "Are the records complete and right?": ("C14", "C15", "C16", "C22", "C23", "C30", "C46"),
    "Is the rejection measured fairly?": ("C24", "C25", "C26", "C27", "C28", "C29"),
    "Is the invariance real?": ("C32", "C33", "C34", "C35", "C43", "C44", "C45"),
}
"""Topics, with the ids of their checks."""


def topic_of(check: str) -> str:
    """Return the topic of a check, by its id.

    Example:
        >>> topic_of("C6")
        'Do gradients lead the attacks?'
    """
    return next((topic for topic, ids in TOPICS.items() if check in ids), "Other checks")
