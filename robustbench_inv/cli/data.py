"""``invbench data``: downloads and verifies the files of data sets."""

from typing import Annotated

import typer

from robustbench_inv.cli.options import DataRoot, Json
from robustbench_inv.cli.output import print_json, print_line

__all__ = ["app"]

app = typer.Typer(
    name="data",
    help="Download and verify the files of data sets.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

DatasetNames = Annotated[
    list[str] | None,
    typer.Argument(metavar="NAME", help="Data sets to fetch or verify.", show_default="all"),
]


@app.command()
def fetch(names: DatasetNames = None, data_root: DataRoot = None, json: Json = False) -> None:
    """Download missing files of data sets, and verify their checksums."""
    from robustbench_inv.data.archives import fetch_or_unpack

    found = {
        name: [str(path) for path in fetch_or_unpack(name, data_root)]
        for name in _dataset_names(names)
    }
    if json:
        return print_json([{"name": name, "files": files} for name, files in found.items()])
    for name, files in found.items():
        for line in files or ["nothing to fetch: it is generated"]:
            print_line(f"{name}: {line}")
    return None


@app.command()
def verify(names: DatasetNames = None, data_root: DataRoot = None, json: Json = False) -> None:
    """Verify the checksum of every file. The exit code is 1 if a file is missing or damaged."""
    from robustbench_inv.arguments import check_root
    from robustbench_inv.data.archives import verify_files

    check_root(data_root)
    checks = [
        (name, check) for name in _dataset_names(names) for check in verify_files(name, data_root)
    ]
    if json:
        print_json(
            [
                {"name": name, "file": str(check.file), "ok": check.ok, "message": check.message}
                for name, check in checks
            ]
        )
    else:
        for name, check in checks:
            print_line(f"{name}: {check.file}: {'ok' if check.ok else check.message}")
    raise typer.Exit(0 if all(check.ok for _, check in checks) else 1)


def _dataset_names(names: list[str] | None) -> list[str]:
    from robustbench_inv.data.registry import DATASETS, dataset_entry

    if names:
        return [dataset_entry(name).name for name in names]
    return [name for name, known in DATASETS.items() if known.has_files]
