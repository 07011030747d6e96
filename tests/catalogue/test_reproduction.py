"""Reproductions: the shipped ones name existing entries, and each kind of mistake is explained."""

import inspect

import pytest

from robustbench_inv.catalogue.attacks import load_attack
from robustbench_inv.catalogue.locate import entries, shipped_root
from robustbench_inv.catalogue.references import parse_reference
from robustbench_inv.catalogue.reproduction import Column, Row
from robustbench_inv.catalogue.reproduction_file import load_reproduction, read_reproduction
from robustbench_inv.catalogue.threats import load_threat
from robustbench_inv.errors import BadCatalogue, UnknownName, UsageError
from robustbench_inv.experiments.protocol import find_experiment

SHIPPED = sorted(entries("reproductions"))

GOOD = """
version = 1
title = "T"
summary = "s"
paper = "p"
datasets = ["mnist"]
columns = [{ name = "A", published = "{data}-a" }, { name = "B", published = "{data}-b:x=1", adaptive = "{data}-b" }]
trials = [
  { name = "fgsm", group = "linf", attack = "foolbox:FGSM", threat = "linf={sweep}" },
  { name = "pgd", group = "linf", side = "adaptive", attack = "pgd", threat = "linf={sweep}" },
]
rows = [{ name = "Clean", eps = 0, trial = "fgsm" }, { name = "F", eps = 0.2, trial = "fgsm", worst_of = ["linf"] }]
published = { "Clean" = [99, 98.5], "F 0.2" = [1, 2] }
sweeps = { sweep = [0.1, 0.2] }
claims = [{ text = "c", rows = ["F*"], left = ["B"], right = ["A"] }]
"""


def read(tmp_path, text, **others):
    folder = tmp_path / "paper"
    folder.mkdir(exist_ok=True)
    for name, other in others.items():
        (folder / f"{name}.toml").write_text(other)
    (folder / "table-1.toml").write_text(text)
    return read_reproduction(folder / "table-1.toml")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_model_is_in_the_catalogue(name):
    item, known = load_reproduction(name), entries("models")
    columns = [column for column in item.columns if column.published]
    named = {column.model("published", data) for column in columns for data in item.datasets}
    named |= {column.model("adaptive", data) for column in columns for data in item.datasets}
    absent = sorted(model for model in named if parse_reference(model).name not in known)
    if absent:
        pytest.skip(f"not trained yet: {', '.join(absent)}")


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_trial_can_run_and_covers_the_eps_of_its_rows(name):
    item = load_reproduction(name)
    for trial in item.trials:
        loaded = load_attack(trial.attack)
        assert loaded.name == str(parse_reference(trial.attack))
        for data in item.datasets:
            threats = [load_threat(text, loaded.goal) for text in item.threats(trial, data)]
            assert {threat.norm for threat in threats} <= loaded.attack.norms
            texts = [place.threat for place in item.addresses(trial, item.columns[0], data)]
            assert [threat.text for threat in threats] == texts, "records are found by this text"
            assert {threat.epsilons for threat in threats} == {item.sweep(trial)}
    for row in item.rows:
        sweeps = [item.sweep(trial) for trial in item.worst_case_trials(row)]
        told = {not sweep or row.eps in sweep for sweep in sweeps}  # without a budget every eps
        assert told == {True} or not row.eps


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_measurement_has_valid_parameters(name):
    item = load_reproduction(name)
    if item.measurement is None:
        pytest.skip("it runs attacks")
    measure = find_experiment(item.measurement.by)
    for data in item.datasets:
        inspect.signature(measure).bind(None, **item.measurement.filled(data))


@pytest.mark.parametrize("name", SHIPPED)
def test_no_two_shipped_trials_are_the_same(name):
    item, names = load_reproduction(name), {}
    for trial in item.trials:
        attack = load_attack(trial.attack)
        for threat in item.threats(trial, "data"):
            names.setdefault((attack.digest, threat), set()).add(attack.name)
    assert all(len(each) == 1 for each in names.values()), "records are found by one name only"


@pytest.mark.parametrize(
    ("name", "row", "numbers"),
    [
        ("guess-first/table-1", "Clean", (98.8, 98.9, 99.0, 98.9, 99.0, 99.0)),
        ("guess-first/table-1", "FGSM b 0.15", (65.6, 84.7, 88.0, 91.1, 89.8, 83.6)),
        ("guess-first/table-1", "PGD w 0.3", (0.0, 4.8, 29.7, 7.4, 50.0, 1.0)),
        ("guess-first/table-2", "PGD b 0.3", (4.8, 15.3, 11.8, 15.9, 14.5, 6.6)),
        ("guess-first/table-2", "C&W w 2", (0.0, 8.4, 2.9, 11.7, 3.5, 0.0)),
    ],
)
def test_published_numbers_are_those_of_the_paper(name, row, numbers):
    item = load_reproduction(name)
    assert (len(item.rows), len(item.columns), len(item.claims)) == (13, 6, 8)
    assert item.published.keys() == {each.label for each in item.rows}
    assert item.published[row] == numbers


@pytest.mark.parametrize(
    ("name", "row", "numbers"),
    [
        ("sdim/table-5", "DeepFool, detected", (98.0, 98.6)),
        ("sdim/table-5", "Boundary, detected", (100, 100)),
        ("sdim/table-5", "LocalSearch, detected", (99.9, 100)),
        ("sdim/table-7", "κ = 0, detected", (100, 100)),
        ("sdim/table-7", "κ = 500, detected", (99.78, 99.78)),
        ("sdim/table-7", "κ = 1000, detected", (90.24, 95.98)),
        ("sdim/table-7", "κ = 0, success", (84.65, 84.65)),
        ("sdim/table-7", "κ = 500, success", (76.61, 76.61)),
        ("sdim/table-7", "κ = 1000, success", (45.56, 45.56)),
    ],
)
def test_detection_and_success_are_those_of_the_paper(name, row, numbers):
    item = load_reproduction(name)
    assert item.published[row][:2] == numbers
    assert item.published.keys() == {each.label for each in item.rows}


def test_the_targeted_table_has_all_nine_targets():
    item = load_reproduction("sdim/table-7")
    first, _, counterpart = item.columns
    for trial in item.trials:
        texts = [place.threat for place in item.addresses(trial, first, "mnist")]
        assert len(set(texts)) == 9
        assert all(f"offset={j}" in text for j, text in enumerate(texts, 1))
    assert [trial.name for trial in item.trials if trial.attacks(counterpart)] == ["C&W 0"]


@pytest.mark.parametrize("name", ["sdim/table-4", "sdim/table-9"])
def test_printed_logits_lead_where_the_paper_says(name):
    """Each attack's example is decided otherwise than the original, and below its threshold."""
    printed = load_reproduction(name).measurement.parameters["published"]
    threshold, original, *attacked = printed.values()
    decided = [row.index(max(row)) for row in (original, *attacked)]
    assert decided[0] == 0
    assert 0 not in decided[1:]
    assert all(max(row) < threshold[row.index(max(row))] for row in attacked)
    assert original[0] >= threshold[0]


@pytest.mark.parametrize(
    ("name", "data"), [("figure-3", "mnist"), ("figure-3-fashion", "fashion-mnist")]
)
def test_the_figure_has_six_panels_and_no_rows(name, data):
    item = load_reproduction(f"guess-first/{name}")
    assert item.datasets == (data,)
    assert (len(item.panels), item.rows, item.samples) == (6, (), 1000)
    swept = {eps for panel in item.panels for eps in item.sweep(item.trial(panel.trial))}
    assert {0.15, 0.3, 2.0} <= swept


def test_a_shared_protocol_is_not_an_item():
    assert (shipped_root() / "reports/definitions/guess-first/protocol.toml").exists()
    assert "guess-first/protocol" not in SHIPPED
    assert "guess-first/table-1" not in entries("reports")


def test_names_are_written_as_records_write_them(tmp_path):
    item = read(tmp_path, GOOD)
    first, second = item.trials
    b = item.columns[1]
    (place,) = item.addresses(first, b, "mnist")
    assert str(place) == "mnist-b:x=1 | foolbox:FGSM | linf=0.1,0.2"
    assert [place.model for place in item.addresses(second, b, "mnist")] == ["mnist-b"]
    assert Column("A", "m:eps=1e-2").model("adaptive", "x") == "m:eps=0.01"


def test_an_item_overrides_its_protocol(tmp_path):
    own = 'version = 1\nprotocol = "protocol.toml"\ntitle = "mine"\n[sweeps]\nsweep = [0.2, 0.4]\n'
    item = read(tmp_path, own, protocol=GOOD.replace("{ sweep", "{ other = [1], sweep"))
    assert (item.title, item.summary) == ("mine", "s")
    assert item.sweeps == {"other": (1.0,), "sweep": (0.2, 0.4)}


def test_a_protocol_may_name_another_and_never_itself(tmp_path):
    middle = 'version = 1\nprotocol = "protocol.toml"\nsummary = "middle"\nsamples = 7\n'
    own = 'version = 1\nprotocol = "middle.toml"\nsamples = 9\n'
    item = read(tmp_path, own, protocol=GOOD, middle=middle)
    assert (item.title, item.summary, item.samples) == ("T", "middle", 9)
    with pytest.raises(BadCatalogue, match="a protocol reads itself"):
        read(tmp_path, own, middle=middle.replace("protocol.toml", "table-1.toml"))
    with pytest.raises(BadCatalogue, match="a protocol reads itself"):
        read(tmp_path, 'protocol = "table-1.toml"')


def test_rows_of_a_protocol_without_published_numbers_are_dropped(tmp_path):
    published = 'published = { "Clean" = [99, 98.5], "F 0.2" = [1, 2] }\n'
    own = 'version = 1\nprotocol = "protocol.toml"\n' + published.replace(
        '"Clean" = [99, 98.5], ', ""
    )
    item = read(tmp_path, own, protocol=GOOD.replace(published, ""))
    assert [row.label for row in item.rows] == ["F 0.2"]


def test_only_keeps_the_trials_that_its_rows_need(tmp_path):
    item = read(tmp_path, GOOD)
    clean = item.only("Clean")
    assert ([r.label for r in clean.rows], [t.name for t in clean.trials]) == (["Clean"], ["fgsm"])
    assert item.only("F*").trials == item.trials
    with pytest.raises(UnknownName, match=r"no row matches.*did you mean Clean"):
        item.only("Claen")


def test_the_worst_case_begins_with_the_published_attack(tmp_path):
    item = read(tmp_path, GOOD)
    assert [t.name for t in item.worst_case_trials(item.rows[1])] == ["fgsm", "pgd"]
    assert [t.name for t in item.worst_case_trials(Row("x", 0.2, "pgd", ("linf",)))] == [
        "pgd",
        "fgsm",
    ]


def test_a_data_set_replaces_its_original():
    item = load_reproduction("sdim/figure-2")
    assert item.places() == {"mnist": "mnist", "fashion-mnist": "fashion-mnist"}
    assert item.places("mnist5k") == {"mnist": "mnist5k"}
    with pytest.raises(UsageError, match=r"needs another data set.*fashion-mnist…"):
        load_reproduction("guess-first/table-2").places("mnist5k")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("version = 1", "version = 2", "version does not fit"),
        ('summary = "s"', "", "summary is missing"),
        ('title = "T"', 'tilte = "T"', "did you mean title"),
        ('name = "A", published', 'name = "B", published', "two columns have one name"),
        ('name = "pgd"', 'name = "fgsm"', "two trials have one name"),
        ("columns = [", "columns = [3, ", "columns does not fit"),
        ('"F 0.2" = [1, 2]', '"F 0.2" = [1]', "a number for each column"),
        ('"F 0.2" = [1, 2]', '"F 0.3" = [1, 2]', "unknown row, got 'F 0.3'"),
        (', "F 0.2" = [1, 2]', "", "no published numbers, got 'F 0.2'.*with nan"),
        ('"F 0.2" = [1, 2]', '"F 0.2" = ["x", 2]', "expected a list of numbers"),
        ('published = { "Clean" = [99, 98.5], "F 0.2" = [1, 2] }', "", "numbers or panels"),
        ('["mnist"]', '["mnist", "cifar10"]', "a table has one data set"),
        ('eps = 0.2, trial = "fgsm"', 'eps = 0.2, trial = "fgms"', "did you mean fgsm"),
        ("sweep = [0.1, 0.2]", "sweep = [0.1, 0.3]", "not in the sweep of its trial"),
        ('worst_of = ["linf"]', 'worst_of = ["l2"]', "unknown group"),
        ("linf={sweep}", "linf={swep}", "braces do not fit"),
        ('left = ["B"]', 'left = ["C"]', "unknown column"),
        ('rows = ["F*"]', 'rows = ["G*"]', "no row matches"),
        ("sweeps = {", "sweeps = 3 # {", "sweeps does not fit"),
        ('attack = "pgd"', 'attack = "pgd", targets = [1, 2]', "the cells of pgd are the same"),
        ('attack = "pgd"', 'attack = "pgd", columns = ["C"]', "pgd attacks no column"),
        ("eps = 0.2, trial", 'eps = 0.2, metric = "undetected", trial', "unknown row"),
    ],
)
def test_a_mistake_is_explained_in_one_line(tmp_path, old, new, told):
    assert old in GOOD
    with pytest.raises(BadCatalogue, match=told) as caught:
        read(tmp_path, GOOD.replace(old, new))
    assert "table-1" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_worst_case_includes_the_published_attack(tmp_path):
    text = GOOD.replace('group = "linf", side', 'group = "other", side').replace(
        'worst_of = ["linf"]', 'worst_of = ["other"]'
    )
    with pytest.raises(BadCatalogue, match="worst_of does not include the published attack"):
        read(tmp_path, text)


def test_competing_attacks_have_the_same_cells(tmp_path):
    text = GOOD.replace("linf={sweep}", "linf={sweep}:goal=target:offset={target}", 1)
    text = text.replace('group = "linf", attack', 'group = "linf", targets = [1, 2], attack', 1)
    with pytest.raises(BadCatalogue, match="pgd has other cells than fgsm"):
        read(tmp_path, text)


def test_the_default_goal_is_not_part_of_a_name(tmp_path):
    item = read(tmp_path, GOOD.replace("linf={sweep}", "linf={sweep}:goal=misclassify", 1))
    (place,) = item.addresses(item.trials[0], item.columns[0], "mnist")
    assert place.threat == "linf=0.1,0.2"
    assert item.threats(item.trials[0], "mnist") == ("linf=0.1,0.2:goal=misclassify",)


def test_left_and_right_are_paired(tmp_path):
    text = GOOD.replace('left = ["B"], right = ["A"]', 'left = ["B"], right = ["A", "B"]')
    with pytest.raises(BadCatalogue, match="not paired"):
        read(tmp_path, text)


def test_an_item_is_found_by_each_figure_of_its_page():
    others = {
        f"{item.name.partition('/')[0]}/{name}": item
        for item in map(load_reproduction, SHIPPED)
        for name in item.also
    }
    assert {
        "thesis/figure-3.2",
        "thesis/figure-4.2",
        "thesis/figure-4.3",
        "thesis/figure-7.4",
    } <= set(others)
    assert not set(others) & set(SHIPPED)
    assert all(load_reproduction(name) == item for name, item in others.items())
