"""``invbench list`` and ``invbench show``: list the catalogue's entries, print the card of one."""

from typing import Annotated

import typer

from robustbench_inv.cli.options import EntryKind, Json, option
from robustbench_inv.cli.output import (
    print_card,
    print_json,
    print_message,
    print_names,
    print_warnings,
)

__all__ = ["list_catalogue", "show"]


def list_catalogue(
    kind: Annotated[EntryKind, typer.Argument(help="What to list.")],
    all_attacks: Annotated[
        bool, option("--all", help="Name the attacks of Foolbox and torchattacks as well.")
    ] = False,
    json: Json = False,
) -> None:
    """List models, attacks, suites, threats, oracles, data sets or reproductions."""
    from robustbench_inv.catalogue.listing import library_attacks, list_entries

    listing = list_entries(kind.value)
    entries, problems = listing.entries, listing.problems
    if all_attacks and kind is EntryKind.attacks:
        more = library_attacks()
        entries, problems = entries + more.entries, problems + more.problems
    print_warnings(problems)
    if json:
        return print_json(entries)
    print_names(entries)
    if kind is EntryKind.attacks and not all_attacks:
        print_message(
            "and every attack of two libraries, as foolbox:NAME and torchattacks:NAME; --all names them"
        )
    return None


def show(
    name: Annotated[
        str, typer.Argument(help="A model, attack, data set, suite, threat or oracle.")
    ],
    kind: Annotated[EntryKind | None, option(help="Which, if several have the name.")] = None,
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
