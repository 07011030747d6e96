"""Writes reports/published/index.html: each paper, table by table, with the claims that our runs confirm or do not.

``python tools/published.py`` reads the pages' own tables; it evaluates nothing. A test fails if the page is not up to date.
"""

import csv
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from robustbench_inv.catalogue.locate import entries
from robustbench_inv.catalogue.reproduction import Reproduction
from robustbench_inv.catalogue.reproduction_file import load_reproduction
from robustbench_inv.reporting.html import page_environment

ROOT = Path(__file__).parent.parent
PUBLISHED, MODELS = ROOT / "reports" / "published", ROOT / "models"
PAPERS = {
    "excessive-invariance": "Jacobsen et al., Excessive invariance causes adversarial vulnerability",
    "guess-first": "Zhu, An and Niu, Guess first to enable better compression and adversarial robustness",
    "sdim": "Anonymous, Reject illegal inputs: scaling generative classifiers with supervised deep infomax",
    "thesis": "Behrmann, thesis on invertible networks",
}
PAGE = """{% from "parts.html" import head %}
{{ head("Reproduced papers") }}
<body>
<header>
  <p class="eyebrow">robustbench-inv</p>
  <h1>Reproduced papers</h1>
  <p class="lead">Each table and figure of the four papers: how many of the paper's claims our runs confirm, and the page with all numbers, networks, schedules and samples.</p>
  <p class="lead">A claim is confirmed if the 95 % interval of our result lies inside the claimed range, not confirmed if it lies outside, undecided if it crosses the limit. A number is far from the paper's if it differs by more than 10 percentage points, or by more than a tenth of an amount that is no share. The pages of {{ reached }} of {{ total }} items are there.</p>
  <nav aria-label="Contents">{% for paper, items in papers %}<a href="#{{ items[0].folder }}">{{ items[0].folder }}</a> {% endfor %}</nav>
</header>
<main>
{% for paper, items in papers %}
<section id="{{ items[0].folder }}" aria-labelledby="{{ items[0].folder }}-title">
  <h2 id="{{ items[0].folder }}-title">{{ paper }}</h2>
  <div class="scroll" tabindex="0" role="region" aria-label="Table: {{ paper }}"><table class="data">
    <caption class="unseen">{{ paper }}: outcomes of the claims</caption>
    <thead><tr><th scope="col">Item</th><th scope="col">Outcome</th>{% for status in statuses %}<th scope="col" class="figure">{{ status|capitalize }}</th>{% endfor %}<th scope="col" class="figure">Numbers far from the paper's</th><th scope="col">Claims and reasons</th></tr></thead>
    <tbody>
    {% for item in items %}
    <tr>
      <th scope="row">{% if item.page %}<a class="long" href="{{ item.page }}">{{ item.title }}</a>{% else %}<span class="long">{{ item.title }}</span>{% endif %}</th>
      <td><span class="badge {{ item.tone }}">{{ item.outcome }}</span></td>
      {% for status in statuses %}<td class="figure">{{ item.counts[status] }}</td>{% endfor %}
      <td class="figure">{% if item.compared %}{{ item.far }} of {{ item.compared }}{% else %}—{% endif %}</td>
      <td class="note">{% if item.reason %}{{ item.reason }}{% endif %}{% if item.claims %}<details><summary>{{ item.claims|length }} {{ "claim" if item.claims|length == 1 else "claims" }}</summary><ul>{% for text, status in item.claims %}<li>{{ text }} <strong>{{ names[status] }}</strong></li>{% endfor %}</ul></details>{% endif %}</td>
    </tr>
    {% endfor %}
    </tbody>
  </table></div>
</section>
{% endfor %}
</main>
</body>
</html>
"""

NAMES = {
    "holds": "confirmed",
    "does not hold": "not confirmed",
    "undecided": "undecided",
    "not measured": "not reached",
}
TONES = {"confirmed": "pass", "not confirmed": "fail", "undecided": "warn"}
NONE = "None of the paper's numbers is reproduced."
SHOWN = "The page has the numbers; no claim about them is tested."


@dataclass(frozen=True)
class Item:
    """A table or figure of a paper, and the outcomes of its claims.

    Args:
        folder: of the paper.
        paper: the publication.
        title: of the item.
        page: path relative to the index; empty if it was not reached.
        claims: each claim of the paper, with its status.
        far: numbers that differ from the paper's by more than 10 points.
        compared: numbers that the paper has as well.
        reason: why it was not reached, or why it has no outcome.
    """

    folder: str
    paper: str
    title: str
    page: str
    claims: Sequence[tuple[str, str]]
    far: int
    compared: int
    reason: str

    @property
    def counts(self) -> Mapping[str, int]:
        """Number of claims of each outcome."""
        return Counter(NAMES[status] for _, status in self.claims)

    @property
    def outcome(self) -> str:
        """The item as a whole: one claim that does not hold decides, then one that is undecided."""
        order = ("not confirmed", "undecided", "confirmed")
        left = "shown" if self.page and not self.claims else "not reached"
        return next((name for name in order if self.counts[name]), left)

    @property
    def tone(self) -> str:
        """Class of the badge."""
        return TONES.get(self.outcome, "none")


def read_items() -> Iterator[Item]:
    """Yield the items of all papers, in the order of their files."""
    yield from map(_read_item, sorted(entries("reproductions").values(), key=_order))


def _order(path: Path) -> tuple[str, str, tuple[int, ...]]:
    word, _, number = path.stem.partition("-")
    digits = "".join(each if each.isdigit() else " " for each in number).split()
    return path.parent.name, word, tuple(map(int, digits))


def _read_item(path: Path) -> Item:
    item = load_reproduction(f"{path.parent.name}/{path.stem}")
    page = PUBLISHED / path.parent.name / f"{path.stem}.html"
    tables = page.with_name(f"{path.stem}_files") / "tables"
    claims = [
        (f"{row['claim']}{data and f' ({data})'}", _status(row))
        for data, rows in _tables(tables, "claims")
        for row in rows
    ]
    numbers = [row for _, rows in _tables(tables, "numbers") for row in rows]
    compared = [row["far"] == "True" for row in numbers if row["difference"]]
    unreached = not compared and any(row["published"] for row in numbers)
    return Item(
        path.parent.name,
        PAPERS[path.parent.name],
        item.title,
        str(page.relative_to(PUBLISHED)) if page.exists() else "",
        claims,
        sum(compared),
        len(compared),
        _reason(item, page, claims=bool(claims), unreached=unreached),
    )


def _tables(folder: Path, name: str) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yield the data set and the rows of each table of a page; no data set if the page has one alone."""
    for path in sorted(folder.glob(f"{name}*.csv")):
        with path.open(newline="") as file:
            yield path.stem.removeprefix(name).removeprefix("-"), list(csv.DictReader(file))


def _status(row: Mapping[str, str]) -> str:
    """Return the status by the attacks as published; by the adaptive ones if these were not run."""
    own = row["published"]
    return row.get("adaptive") or own if own == "not measured" else own


def _reason(item: Reproduction, page: Path, *, claims: bool, unreached: bool) -> str:
    if page.exists():
        return " ".join(([] if claims else [SHOWN]) + ([NONE] if unreached else []))
    folders = (MODELS / name for name in _model_names(item) if (MODELS / name).is_dir())
    missing = sorted(each.name for each in folders if not (each / "weights.safetensors").exists())
    if missing:
        return f"Not trained yet: {', '.join(missing)}."
    return "Not run yet."


def _model_names(item: Reproduction) -> set[str]:
    """Return the names in an item that may be those of models: its columns and the parameters of its measurement."""
    columns = [column for column in item.columns if column.published]
    found = [
        column.model(side, data)
        for column in columns
        for side in ("published", "adaptive")
        for data in item.datasets
    ]
    if item.measurement:
        found += [
            text for data in item.datasets for text in _strings(item.measurement.filled(data))
        ]
    return {text.partition(":")[0] for text in found if text}


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(inner)


def index() -> str:
    """Return the page."""
    items = list(read_items())
    papers = [
        (mine[0].paper, mine)
        for mine in (list(group) for _, group in groupby(items, key=lambda item: item.folder))
    ]
    return (
        page_environment({})
        .from_string(PAGE)
        .render(
            papers=papers,
            names=NAMES,
            statuses=list(NAMES.values()),
            total=len(items),
            reached=sum(bool(item.page) for item in items),
        )
    )


if __name__ == "__main__":
    PUBLISHED.joinpath("index.html").write_text(index())
    sys.stdout.write(f"{PUBLISHED / 'index.html'}\n")
