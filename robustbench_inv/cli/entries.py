"""``invbench list`` and ``invbench show``: list the catalogue's entries, print the card of one."""

from typing import Annotated

import typer

from robustbench_inv.cli.options import EntryKind, Json, Timeout, option
from robustbench_inv.cli.output import (
    print_card,
    print_json,
    print_message,
    print_names,
    print_warnings,
)
from robustbench_inv.foreign import time_limit

__all__ = ["list_catalogue", "show"]


def list_catalogue(
    kind: Annotated[EntryKind, typer.Argument(metavar="KIND", help="Kind of entry to list.")],
    all_attacks: Annotated[
        bool,
        option(
            "--all", help="Also list the attacks of Foolbox, torchattacks and adversarial-library."
        ),
    ] = False,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """List the entries of the catalogue."""
    from robustbench_inv.catalogue.listing import library_attacks, list_entries

    with time_limit(timeout):
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
            "plus every attack of Foolbox, torchattacks and adversarial-library (foolbox:NAME, torchattacks:NAME, adv-lib:NAME); list them with --all"
        )
    return None


def show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Name of the entry; a model or attack may carry parameters."
        ),
    ],
    kind: Annotated[
        EntryKind | None, option(help="Choose the kind of entry if several share the name.")
    ] = None,
    cite: Annotated[
        bool, option("--cite", help="Print only the citation, in words and in BibTeX.")
    ] = False,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Print the card of one catalogue entry.

    The entry is a model, attack, data set, suite, threat, oracle or reproduction.
    """
    from robustbench_inv.catalogue.listing import show_entry
    from robustbench_inv.errors import UsageError

    with time_limit(timeout):
        found, card = show_entry(name, kind.value if kind else None)
    if cite:
        if not card.get("paper"):
            raise UsageError(f"the card of {name} names no paper")
        from robustbench_inv.reporting.citations import references_of

        bibtex = "\n\n".join(each.text for each in references_of(card["paper"], card["name"]))
        card = {"name": card["name"], "paper": card["paper"], "bibtex": bibtex}
    if json:
        return print_json(card)
    return print_card(found, card)
