"""``invbench list``: what there is to evaluate, to evaluate with, and to evaluate on."""

from typing import Annotated

import typer

from robustbench_inv.cli.options import Json, What, option
from robustbench_inv.cli.output import complain, print_json, print_names, say

__all__ = ["list_catalogue"]


def list_catalogue(
    kind: Annotated[What, typer.Argument(help="What to list.")],
    every: Annotated[
        bool, option("--all", help="Name the attacks of Foolbox and torchattacks as well.")
    ] = False,
    json: Json = False,
) -> None:
    """List models, attacks, suites, threats, oracles, data sets or reproductions."""
    from robustbench_inv.catalogue.listing import library_attacks, list_entries

    listing = list_entries(kind.value)
    entries, problems = listing.entries, listing.problems
    if every and kind is What.attacks:
        more = library_attacks()
        entries, problems = entries + more.entries, problems + more.problems
    complain(problems)
    if json:
        return print_json(entries)
    print_names(entries)
    if kind is What.attacks and not every:
        say(
            "and every attack of two libraries, as foolbox:NAME and torchattacks:NAME; --all names them"
        )
    return None
