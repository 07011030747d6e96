"""``invbench show``: the card of one entry."""

from typing import Annotated

import typer

from robustbench_inv.cli.options import Json, What, option
from robustbench_inv.cli.output import print_card, print_json

__all__ = ["show"]


def show(
    name: Annotated[
        str, typer.Argument(help="A model, attack, data set, suite, threat or oracle.")
    ],
    kind: Annotated[What | None, option(help="Which, if several have the name.")] = None,
    cite: Annotated[bool, option("--cite", help="Print the paper alone.")] = False,
    json: Json = False,
) -> None:
    """Show what is known of one model, attack, data set, suite, threat or oracle."""
    from robustbench_inv.catalogue.listing import show_entry
    from robustbench_inv.errors import UsageError

    found, card = show_entry(name, kind.value if kind else None)
    if cite:
        if not card.get("paper"):
            raise UsageError(f"the card of {name} names no paper")
        card = {"name": card["name"], "paper": card["paper"]}
    if json:
        return print_json(card)
    return print_card(found, card)
