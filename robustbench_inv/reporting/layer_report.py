"""The report of hidden layers before and after regularisation: one HTML file, its tables and figures beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustbench_inv.catalogue.reproduction import Reproduction
from robustbench_inv.errors import BadResults
from robustbench_inv.reporting.canvas import Picture
from robustbench_inv.reporting.exports import Table, to_markdown
from robustbench_inv.reporting.html import export_files, files_of, render_page, write_page
from robustbench_inv.reporting.layer_figures import draw_effect, tabulate_effect
from robustbench_inv.reporting.layer_views import Effect, read_effect

__all__ = ["LayerReport", "find_effects", "report_layers"]

PATTERN = "layers-*.json.gz"


@dataclass(frozen=True)
class LayerReport:
    """What the page shows.

    Args:
        item: what is reproduced.
        effects: what was measured, by file name.
        shown: a table and figures for each data set.
    """

    item: Reproduction
    effects: dict[Path, Effect]
    shown: tuple[tuple[Table, tuple[Picture, ...]], ...]

    def write(self, path: Path) -> None:
        """Write the page, and what it shows as files beside it.

        Raises:
            BadResults: if they cannot be written.
        """
        pictures = [picture for _, drawn in self.shown for picture in drawn]
        files = export_files((table for table, _ in self.shown), pictures)
        files |= {source.name: source.read_bytes() for source in self.effects}
        html = render_page("layers.html", found=self, files=files_of(path).name)
        write_page(path, html, files)

    @property
    def texts(self) -> list[str]:
        """The tables in Markdown."""
        return [to_markdown(table) for table, _ in self.shown]

    def to_json(self) -> dict[str, Any]:
        """Return the mapping that ``--json`` prints."""
        facts = [fact for table, _ in self.shown for fact in table.frame.to_dict("records")]
        return {"item": self.item.name, "networks": facts}


def find_effects(folders: Sequence[Path]) -> list[Path]:
    """Return the files of measured layers in some folders, or in the files beside a page there.

    Raises:
        BadResults: if there are none.
    """
    found = [path for folder in folders for path in sorted(folder.glob(f"**/{PATTERN}"))]
    if not found:
        got = ", ".join(map(str, folders))
        raise BadResults("no measured layers", got=got, expected=f"files {PATTERN}")
    return list({path.name: path for path in found}.values())


def report_layers(item: Reproduction, files: Sequence[Path]) -> LayerReport:
    """Return the report of files that were measured for an item.

    Raises:
        BadResults: if one cannot be read.
    """
    effects = {path: read_effect(path) for path in files}
    shown = tuple((tabulate_effect(e), tuple(draw_effect(e))) for e in effects.values())
    return LayerReport(item, effects, shown)
