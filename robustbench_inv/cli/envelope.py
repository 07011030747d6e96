"""``invbench envelope``: the smallest known distances, merged from runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_inv.cli.options import DataRoot, Json, option
from robustbench_inv.cli.output import print_json, print_line

if TYPE_CHECKING:
    from robustbench_inv.results.cell import FinishedCell

__all__ = ["app"]

app = typer.Typer(
    name="envelope",
    help="Keep the smallest known distance of each image, model and norm.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def envelope() -> None:
    """Keep the smallest known distance of each image, model and norm."""


@app.command()
def merge(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN…", help="Folders of results, and envelopes (.json)."),
    ],
    out: Annotated[
        Path,
        option("--out", metavar="FILE", help="Write to this file; distances that it has are kept."),
    ],
    data_root: DataRoot = None,
    json: Json = False,
) -> None:
    """Merge the adversarial examples of runs: whichever attack found them, the smallest distance in each norm is kept.

    Images are identified by their content: from --keep-images, or from the data set. Nothing else is written.
    """
    from robustbench_inv.results.envelope import Envelope, read_envelope
    from robustbench_inv.results.run_files import RunFolder

    found = read_envelope(out) if out.exists() else Envelope()
    shorter = 0
    for run in runs:
        if run.suffix == ".json":
            found.merge(read_envelope(run))
        else:
            cells = [cell.read() for cell in RunFolder(run).cells()]
            shorter += found.add(cells, lambda cell: _hashes(cell, data_root))
    found.write(out)
    facts = {
        "models": len(found.models),
        "distances": sum(map(len, found.best.values())),
        "new": shorter,
    }
    if json:
        return print_json({"envelope": str(out), **facts})
    counts = ", ".join(f"{count:,} {name}" for name, count in facts.items())
    return print_line(f"{out}: {counts}")


def _hashes(cell: "FinishedCell", data_root: Path | None) -> dict[int, str]:
    """Return the hash of the clean image of each sample of a cell.

    Raises:
        BadResults: if neither the images were kept, nor the data set is the one that was evaluated.
    """
    from robustbench_inv.catalogue.datasets import identify_dataset, load_dataset
    from robustbench_inv.errors import InvbenchError
    from robustbench_inv.results.envelope import hash_image

    samples = sorted(cell.sample_ids)
    if kept := cell.read_images():
        rows = zip(kept["samples"], kept["clean"], strict=True)
        found = {int(sample): hash_image(image) for sample, image in rows}
        if found.keys() >= cell.sample_ids:
            return {sample: found[sample] for sample in samples}
    try:
        data = load_dataset(cell.dataset.name, data_root=data_root)
        same = identify_dataset(data) == cell.info.dataset_key
    except InvbenchError as error:
        raise _unknown_images(cell, str(error)) from error
    if not same:
        raise _unknown_images(cell, f"another {cell.dataset.name}")
    import torch

    images, _ = data.batch(torch.tensor(samples))
    return {s: hash_image(image.numpy()) for s, image in zip(samples, images, strict=True)}


def _unknown_images(cell: "FinishedCell", got: str) -> Exception:
    from robustbench_inv.errors import BadResults

    problem = f"the images of {cell.subject} cannot be identified"
    return BadResults(problem, got=got, remedy="evaluate with --keep-images")
