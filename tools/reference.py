"""Writes the parts of the reference that follow from the program: options of commands, and the list of checks.

``python tools/reference.py`` writes docs/cli.md and docs/checks.md between their marks; a test compares.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from robustbench_inv.checks.check_list import CHECKS
from robustbench_inv.cli.main import app

ROOT = Path(__file__).parent.parent
CONTEXT = typer.Context(typer.main.get_command(app))
MARKS = "<!-- written by tools/reference.py -->", "<!-- end of what is written -->"


def commands() -> str:
    """Return a section for each command: what it does, arguments and options with defaults."""
    group = typer.main.get_command(app)
    return "\n".join(line for name, each in _commands(group) for line in _section(name, each))


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - a command of typer
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def _section(name: str, command: Any) -> Iterator[str]:  # noqa: ANN401
    arguments = " ".join(
        _usage(each) for each in command.params if each.param_type_name == "argument"
    )
    yield f"### invbench {name}\n"
    yield f"{inspect.cleandoc(command.help)}\n"
    yield f"Usage: `invbench {' '.join(filter(None, (name, arguments)))} [OPTIONS]`\n"
    yield "| argument or option | default | effect |\n|---|---|---|"
    yield from (_row(each) for each in command.params)
    yield ""


def _usage(argument: Any) -> str:  # noqa: ANN401
    name = argument.metavar or argument.name.upper()
    name += "…" if argument.nargs == -1 and not name.endswith("…") else ""
    return name if argument.required else f"[{name}]"


def _row(parameter: Any) -> str:  # noqa: ANN401
    if parameter.param_type_name == "argument":
        name = _usage(parameter)
    else:
        kind = parameter.metavar or parameter.display_type(CONTEXT).strip("<>[]")
        name = "/".join((*parameter.opts, *parameter.secondary_opts))
        name += "" if parameter.is_flag else f" {kind}"
    return f"| `{_cell(name)}` | {_cell(_default(parameter))} | {_cell(parameter.help or '')} |"


def _default(parameter: Any) -> str:  # noqa: ANN401
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    if parameter.required:
        return "required"
    if isinstance(parameter.default, bool):
        return "on" if parameter.default else "off"
    value = getattr(parameter.default, "value", parameter.default)
    return "" if value is None else f"`{value}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def checks() -> str:
    """Return a section for each check that gives a verdict: when it fires, and what to do then."""
    return "\n".join(line for check in CHECKS.values() for line in _check(check))


def _check(check: Any) -> Iterator[str]:  # noqa: ANN401
    yield f"### {check.id}: {check.title}\n"
    yield from (f"- **Fires:** {_cell(part)}." for part in re.split(r"; |\. ", check.rule))
    if check.consequence:
        yield f"- **What to do:** {_cell(check.consequence)}."
    if check.caution:
        yield f"- **On a warning:** {_cell(check.caution)}."
    if check.note:
        yield f"- **On a note:** {_cell(check.note)}."
    yield ""


WRITTEN = {"docs/cli.md": commands, "docs/checks.md": checks}


def page(name: str) -> str:
    """Return a page with what is written between its marks."""
    before, _, rest = (ROOT / name).read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}\n\n{WRITTEN[name]()}\n{MARKS[1]}{after}"


if __name__ == "__main__":
    for name in WRITTEN:
        (ROOT / name).write_text(page(name))
