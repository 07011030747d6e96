"""Bad arguments of every command and of the Python functions, each of which must be refused in one line.

Run ``python tests/robustness/bad_arguments.py``: it prints one line for each argument that is accepted, crashes, is
refused after something was written, or is refused without saying what to type, and exits with 1 if there is any.
"""

import contextlib
import io
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

EVALUATE = {
    "--model": "mnist-cnn",
    "--attack": "pgd:steps=1",
    "--threat": "linf=0.1",
    "--samples": "10",
    "--out": "new",
}
SPHERES = EVALUATE | {"--model": "spheres-max-margin", "--dataset": "spheres:d=5,n=1"}

BASES: dict[str, tuple[str, dict[str, str]]] = {
    "list": ("list", {}),
    "show": ("show", {}),
    "evaluate": ("evaluate", EVALUATE),
    "dry": ("evaluate --dry-run", EVALUATE),
    "spheres": ("evaluate", SPHERES),
    "suite": ("evaluate", {"--model": "mnist-cnn", "--samples": "10", "--out": "new"}),
    "audit": (
        "audit mnist-cnn",
        {"--threat": "linf=0.1", "--samples": "4", "--minutes": "0.1", "--out": "new"},
    ),
    "audited": ("audit", {"--threat": "linf=0.1", "--samples": "4", "--out": "new"}),
    "benchmark": ("run", {"--out": "new"}),
    "report": ("report", {"--from": "run", "--out": "new.html"}),
    "label": ("label run", {"--out": "new.html"}),
    "rescore": ("rescore run", {"--oracle": "mnist-panel", "--out": "new"}),
    "reproduce": (
        "reproduce guess-first/table-1",
        {"--out": "new", "--dataset": "mnist5k", "--samples": "10"},
    ),
    "plan": (
        "reproduce --dry-run guess-first/table-1",
        {"--dataset": "mnist5k", "--samples": "10"},
    ),
    "experiment": ("reproduce --dry-run sdim/table-3", {}),
    "train": ("train", {"--out": "new"}),
    "queue": ("queue --status", {"--out": "new"}),
    "calibrate": (
        "calibrate mnist-cnn",
        {"--out": "new.safetensors", "--dataset": "mnist5k"},
    ),
    "data": ("data verify mnist5k", {}),
    "root": ("", {}),
}
"""Commands and their usual options, one of which each bad argument replaces."""

OPTIONS = {
    "show": ("--kind",),
    "evaluate": (
        *(
            "--model",
            "--attack",
            "--suite",
            "--threat",
            "--dataset",
            "--samples",
            "--seed",
            "--out",
        ),
        *("--existing", "--batch-size", "--device", "--workers", "--data-root"),
    ),
    "report": ("--from", "--out"),
    "label": ("--out", "--cells", "--max-images", "--catch-trials", "--seed"),
    "rescore": ("--oracle", "--out", "--data-root", "--device"),
    "plan": (
        *(
            "--rows",
            "--dataset",
            "--samples",
            "--seed",
            "--from",
            "--out",
            "--report",
            "--existing",
        ),
        *("--batch-size", "--device", "--workers", "--data-root"),
    ),
    "train": ("--out", "--seed", "--device", "--data-root"),
    "queue": ("--out", "--threads", "--device", "--data-root"),
    "calibrate": ("--out", "--dataset", "--ids", "--device", "--data-root"),
    "data": ("--data-root",),
}
"""Options that must refuse an empty text and a blank."""

POSITIONAL = (
    *(
        "list",
        "show",
        "report",
        "label --out new.html",
        "rescore --oracle mnist-panel",
        "reproduce",
    ),
    *("train", "queue", "calibrate", "data fetch", "data verify", "--catalogue", "--trust"),
)
"""Commands whose argument must not be empty or blank."""

BAD: dict[str, dict[str, str]] = {
    "list": {"": "x models; models attacks; Models; '[models'; --all=3 models; models --json=yes"},
    "show": {
        "": "pgdd; pgd:stepz=3; pgd:steps=x; pgd:steps=; pgd:=3; ':'; '=3'; ../pgd; os:system2; pgd:steps=3,steps=4; mnist-cnn --kind attacks; pgd --kind models; pgd --cite --kind threats"
    },
    "evaluate": {
        "--model": (
            "mnist-cn; MNIST-CNN; mnist-cnn:width=3; mnist-cnn:dtype=int8; mnist-cnn:; mnist-cnn:x; mnist-cnn:=; "
            "mnist-cnn:reject=margins; mnist-cnn:reject=margin,percentile=200; mnist-cnn:percentile=x; "
            "mnist-cnn:reject=margin,percentile=-1; mnist-cnn:reject=margin,thresholds=nowhere.safetensors; "
            "mnist-cnn:reject=margin,thresholds=file; mnist-cnn:reject=margin,thresholds=.; mnist-cnn:reject=true; "
            "mnist-vib:noise=loud; mnist-vib:draws=0; mnist-vib:draws=1.5; mnist-vib:noise=mean,draws=3; "
            "net.py; net.py:; net.py:build2; net.py:build:width=wide; net.py:build:depth=3; "
            "net.py:build:width=-1; net.py:text; net.py:number; net.py:Plain; net.py:raises; net.py:nothing; "
            "net.py:twice; net.py:wrong_bounds; net.py:three; "
            "nowhere.py:build; folder.py:build; .:build; file:build; notes.csv; syntax.py:build; "
            "os:system; os:path; nomodule:x; math:pi; json:loads; torch.nn:Linear; torch:nn; :build; build:; "
            "../net.py:build2; fashion-mnist-resnet99; foolbox:LinfPGD; 'mnist-cnn mnist-cnn'; "
            "$'mnist\\x1b[31m'; 'a\nb'; -; --; mnist-cnn --model; cifar10-sdim --dataset mnist5k; mnist-panel"
        ),
        "--attack": (
            "pdg; PGD; pgd:steps=0; pgd:steps=-1; pgd:steps=1.5; pgd:steps=many; pgd:loss=mse; pgd:restarts=0; "
            "pgd:; pgd:x; pgd:steps; pgd:steps=1,; pgd:steps=1,,; foolbox:; foolbox:Nope; foolbox:LinfPGD:steps=x; "
            "foolbox:LinfPGD:nope=1; foolbox:LinfPGD:steps=-1; torchattacks:; torchattacks:Nope; torchattacks:PGD:eps=0.1; "
            "torchattacks:PGD:steps=x; net.py:Plain; net.py:build; net.py:text; nowhere.py:Attack; os:system; "
            "noise-image:kind=loud; spheres-perturbation; out-of-distribution:dataset=nope; quick; "
            "altered-input; metamer; cw:steps=nan; fmn:steps=0; "
            "apgd:loss=dlrr; square:queries=0; boundary:steps=0; deepfool:steps=0; cw; mnist-cnn"
        ),
        "--suite": "standrd; pgd; mnist-linf; standard:seed=1; ../standard; quick.toml",
        "--threat": (
            "linf; linf=; linf=-0.1; linf=nan; linf=inf; linf=abc; linf=0.2,0.1; linf=0.1,0.1; linf=0.1,; l3=0.1; Linf=0.1; "
            "linf=1/0; linf=8/; =0.1; linf=0.1:; linf=0.1:goal=; linf=0.1:goal=win; linf=0.1:goal=target; "
            "linf=0.1:goal=target:label=10; linf=0.1:goal=target:label=-1; linf=0.1:goal=target:label=x; "
            "linf=0.1:goal=target:offset=0; linf=0.1:goal=target:offset=10; linf=0.1:goal=target:label=1,offset=1; "
            "linf=0.1:goal=target:confidence=-1,label=1; linf=0.1:goal=keep-decision; linf=0.1:goal=keep-logits; "
            "linf=0.1:goal=keep-logits:tolerance=-1; linf=0.1:goal=accept; linf=0.1:goal=misclassify:x=1; "
            "linf=0.1:oracle=; linf=0.1:oracle=nobody; linf=0.1:oracle=nowhere.csv; "
            "linf=0.1:oracle=notes.csv; linf=0.1:oracle=mnist-panel:rule=loud; linf=0.1:oracle=fashion-mnist-panel:rule=; "
            "linf=0.1:substitute=; linf=0.1:substitute=nobody; linf=0.1:substitute=mnist-cnn; linf=0.1:guide=; "
            "linf=0.1:guide=nobody; linf=0.1:substitute=spheres-max-margin; linf=0.1:what=3; none; none:norm=l3; "
            "none:eps=3; mnist-linff; pgd; l0=0.5:goal; linf=0.1;linf=0.2; 0.1; ','; l2=1e400; linf=1_0; linf=０.1"
        ),
        "--dataset": (
            "mnits; MNIST5K; mnist5k:pad=x; mnist5k:pad=-1; mnist5k:nope=3; spheres; spheres:d=0; spheres:d=5,n=6; mnist:split=test2; "
            "fashion-mnist:split=; cifar10; nowhere.npz; file; folder; mnist5k:; ../mnist5k; mnist-cnn"
        ),
        "--samples": "0; -1; 1.5; many; first:; first:0; first:-3; first:x; last:3; 6000; first:6000; 1e2; ²; ' 5 x'; nan; 10,20; first:first:3; 99999999999999999999999",
        "--seed": "x; 1.5; ''; 1e3; nan; 99999999999999999999999; -1",
        "--out": "file; file/run; /dev/null; /proc/x; new --out; .ci/../file",
        "--existing": "Resume; restart; redo,skip; 3",
        "--batch-size": "0; -1; x; 1.5",
        "--device": "tpu; cuda:x; cuda:99; cpu:x; meta; CPU; gpu; 'cpu '; cpu:1",
        "--workers": "-2; -1; x; 1.5; ray:; Ray; two; ray-address; ray,gpus=0; ray,gpus=x; ray:,gpus=1; ray,cpus=2",
        "--data-root": "file; nowhere",
        "": "more; --nope; --dry-run=3; --keep-images=maybe; --checks=1; --json=x; --suite quick --suite; --threat linf=0.1 --threat",
    },
    "dry": {
        "--device": "tpu; cuda:99; meta",
        "--workers": "-2; x; 1.5; ray:",
        "--batch-size": "0; x",
        "--out": "file; /dev/null; run/plan.json",
        "--existing": "again",
        "--samples": "0; 6000; x",
        "--threat": "linf=0.1:goal=keep-decision; none; linf=0.1:goal=accept",
        "--attack": "metamer; altered-input; noise-image:kind=x",
        "--model": "net.py:raises; net.py:three; spheres-max-margin:n=2",
        "--dataset": "spheres; nope",
        "--seed": "-1; 99999999999999999999999",
    },
    "spheres": {
        "--model": "mnist-cnn; spheres-max-margin:n=3; spheres-misaligned:points=0; spheres-misaligned:points=x",
        "--attack": "spheres-perturbation:steps=x; relu-preimage; altered-input; metamer",
        "--dataset": "mnist5k; spheres:d=1; spheres:r1=2,r2=1; spheres:r1=1,r2=1; spheres:n=-1; spheres:size=0; spheres:seed=x; spheres:d=1e3",
        "--threat": "none:oracle=labels.csv; none:oracle=mnist-panel",
    },
    "suite": {
        "": "--suite standard --threat mnist-linff; --suite standard --attack nope; --suite spheres-invariance; --suite standard --dataset spheres:d=5"
    },
    "report": {
        "": "nope; file; run; net.py; ../default; default default; folder",
        "--from": "nowhere; file; folder; run/plan.json; run nowhere; file run",
        "--out": "file/report.html; /proc/report.html; /dev/null/x.html",
    },
    "label": {
        "": "nowhere; file; folder; run/plan.json",
        "--out": "file/page.html; /proc/page.html; folder",
        "--cells": "nope; '['; pgdd*",
        "--max-images": "0; -1; x; 1.5",
        "--catch-trials": "-1; x; 1.5",
        "--seed": "x; 1.5; -1; 99999999999999999999999",
    },
    "rescore": {
        "": "extra; --nope",
        "--oracle": "nobody; nowhere.csv; notes.csv; empty.csv; header.csv; folder.csv; mnist-panel:rule=loud; mnist-panel:x; mnist-panel:rule=; fashion; net.py:build; .csv",
        "--out": "file; run; file/x; /dev/null",
        "--device": "tpu; cuda:99; meta",
        "--data-root": "file",
    },
    "reproduce": {
        "": "extra; --nope",
        "--out": "file; file/x",
        "--report": "file/x.html; folder",
        "--workers": "0; x",
        "--device": "tpu; cuda:99; meta",
        "--from": "nowhere; file; folder; run",
    },
    "plan": {
        "--rows": "nope; '['; 'PGD w'",
        "--dataset": "nope; spheres; fashion-mnist; mnist5k:pad=x",
        "--samples": "0; x; first:; 6000; -5",
        "--seed": "x; -1",
        "--batch-size": "0; x",
        "--device": "tpu; cuda:99; meta",
        "--workers": "0; x; -2",
        "--existing": "again",
        "--out": "file",
        "--report": "file/x.html",
    },
    "experiment": {
        "--samples": "0; x; -1; first:x",
        "--dataset": "nope; spheres; cifar10",
        "--device": "tpu; cuda:99",
        "--seed": "-1; x",
        "--rows": "nope",
        "--workers": "0; x",
        "--out": "file",
        "--report": "file/x.html",
    },
    "train": {
        "": "nope; file; notes.csv; nowhere.toml; broken.toml; folder; net.py; spheres-max-margin; mnist-lenet5 extra; ../models/mnist-cnn; recipe.toml; mnist-lenet5:width=3",
    },
    "queue": {
        "": "nowhere.toml; file; broken.toml; folder; notes.csv; recipe.toml; queue.toml",
        "--threads": "0; -1; x; 1.5",
    },
    "audit": {
        "": "extra; --nope; --attack pgd; --suite standard",
        "--minutes": "0; -1; x; nan; inf; '1 min'; 1,5",
        "--threat": "0.1; linf; linf=; linf=x; linf=-0.1; l3=0.1; nope; linf=0.1:goal=nope; linf=0.1:oracle=nope",
        "--dataset": "nope; spheres; mnist5k:pad=2; folder:nowhere; npz:nowhere.npz",
        "--samples": "0; -5; x; 1.5",
        "--out": "file; /dev/null/x",
        "--existing": "again; ''",
        "--batch-size": "0; -1; x",
        "--device": "tpu; cuda:99",
        "--workers": "0; -1; x; ray:",
        "--fail-on": "nope; ''",
        "--fail-under": "x; -0.1; 1.1; nan; inf; 40%; ''",
        "--logger": "nope; nowhere.py:x; json:nope; math:pi; ''",
        "--data-root": "file",
    },
    "audited": {
        "": "mnist-cn; net.py; net.py:; net.py:build2; mnist-cnn:width=3; nowhere.py:build; ''"
    },
    "benchmark": {
        "": "nowhere.toml; folder; notes.csv; recipe.toml; file; ''; bench.toml; empty.toml extra",
        "--out": "file; /dev/null/x",
    },
    "calibrate": {
        "": "extra; --nope",
        "--dataset": "nope; spheres; fashion-mnist:split=x; spheres:d=784; invariance-mnist",
        "--ids": "5; 5:; :5; 5:5; 9:3; -3:5; 0:6000; x:y; 0:5:9; 1.5:3; ':'; '0 : x'",
        "--out": "file/x; folder; /dev/null/x",
        "--device": "tpu; cuda:99; meta",
        "--data-root": "file",
    },
    "data": {
        "": "nope; MNIST; spheres2; mnist5k:pad=2; ../mnist5k; mnist5k nope",
        "--data-root": "file",
    },
    "root": {
        "": (
            "evaluat; --nope; '--model x'; --catalogue; --catalogue nowhere list models; --catalogue file list models; --trust; "
            "--trust os:system list models; --trust nowhere.py list models; --trust a/b list models; data; data nope; data fetch nope; "
            "--catalogue folder --catalogue nowhere list models; evaluate; train; label; label run; rescore run; calibrate; queue; "
            "reproduce nope; reproduce guess-first/table-99; reproduce nope.toml; reproduce broken.toml; reproduce ../x/table-1; "
            "calibrate nope --dataset mnist5k; calibrate net.py:build; calibrate net.py:build --dataset nope; "
            "calibrate mnist-cnn:reject=margin --dataset mnist5k; calibrate spheres-max-margin --dataset mnist5k; "
            "train good/recipe.toml --out file; train good/recipe.toml --out file/x; train good/recipe.toml --device tpu --out new; "
            "train good/recipe.toml --data-root file --out new; train good/recipe.toml --seed x --out new; train good/recipe.toml --seed -1 --out new; "
            "train good/recipe.toml --seed 99999999999999999999999 --out new; queue recipe.toml --out new; rescore nowhere --oracle mnist-panel; "
            "rescore folder --oracle mnist-panel; rescore file --oracle mnist-panel; report --from; judge ''"
        )
    },
}
"""Bad values by command and option, separated by semicolons; the empty option means further arguments."""

PYTHON = """
evaluate(model="")
evaluate(model=[])
evaluate(model=None, attack="pgd")
evaluate(model=3, attack="pgd", dataset="mnist5k")
evaluate(model=object(), attack="pgd", dataset="mnist5k")
evaluate(model="mnist-cnn", attack="")
evaluate(model="mnist-cnn", attack=[])
evaluate(model="mnist-cnn", attack=3)
evaluate(model="mnist-cnn", attack=["pgd", ""])
evaluate(model="mnist-cnn", attack=["pgd", None])
evaluate(model=["mnist-cnn", ""], attack="pgd")
evaluate(model="mnist-cnn", suite="")
evaluate(model="mnist-cnn", suite=3)
evaluate(model="mnist-cnn", attack="pgd", suite="")
evaluate(**OK | {"threat": ""})
evaluate(**OK | {"threat": " "})
evaluate(**OK | {"threat": 0.1})
evaluate(**OK | {"threat": ["linf=0.1"]})
evaluate(**OK | {"threat": object()})
evaluate(**OK | {"dataset": ""})
evaluate(**OK | {"dataset": 3})
evaluate(**OK | {"dataset": object()})
evaluate(**OK | {"samples": ""})
evaluate(**OK | {"samples": 0})
evaluate(**OK | {"samples": -1})
evaluate(**OK | {"samples": 1.5})
evaluate(**OK | {"samples": True})
evaluate(**OK | {"samples": [1, 2]})
evaluate(**OK | {"samples": float("nan")})
evaluate(**OK | {"seed": ""})
evaluate(**OK | {"seed": "3"})
evaluate(**OK | {"seed": 1.5})
evaluate(**OK | {"seed": None})
evaluate(**OK | {"seed": True})
evaluate(**OK | {"seed": -1})
evaluate(**OK | {"seed": 2**80})
evaluate(**OK | {"out": ""})
evaluate(**OK | {"out": 3})
evaluate(**OK | {"out": "file"})
evaluate(**OK | {"out": "a\\0b"})
evaluate(**OK | {"existing": ""})
evaluate(**OK | {"existing": None})
evaluate(**OK | {"existing": "again"})
evaluate(**OK | {"existing": ["resume"]})
evaluate(**OK | {"batch_size": 0})
evaluate(**OK | {"batch_size": "3"})
evaluate(**OK | {"batch_size": 1.5})
evaluate(**OK | {"batch_size": True})
evaluate(**OK | {"device": ""})
evaluate(**OK | {"device": None})
evaluate(**OK | {"device": 0})
evaluate(**OK | {"device": "tpu"})
evaluate(**OK | {"device": "meta"})
evaluate(**OK | {"workers": -2})
evaluate(**OK | {"workers": None})
evaluate(**OK | {"workers": "2"})
evaluate(**OK | {"workers": True})
evaluate(**OK | {"workers": 1.5})
evaluate(**OK | {"workers": ""})
evaluate(**OK | {"data_root": ""})
evaluate(**OK | {"data_root": 3})
evaluate(**OK | {"progress": 3})
evaluate(**OK | {"progress": None})
evaluate(**OK | {"keep_images": "no"})
evaluate(**OK | {"checks": "no"})
evaluate(**OK | {"checks": None})
evaluate(**OK | {"command": "invbench"})
evaluate(**OK | {"command": [3]})
evaluate(**OK | {"model": Path("net.py")})
evaluate(**OK | {"model": b"mnist-cnn"})
evaluate(**OK | {"model": {}})
evaluate(**OK | {"model": {"": "mnist-cnn"}})
evaluate(**OK | {"model": torch.nn.Linear(784, 10)})
evaluate(**OK | {"attack": torch.nn.Linear(784, 10)})
evaluate(**OK | {"attack": type})
load_model("")
load_model(" ")
load_model(None)
load_model(3)
load_model("mnist-cnn", device="tpu")
load_model("mnist-cnn", device="")
load_model("mnist-cnn", device=None)
load_model("mnist-cnn", dtype="int8")
load_model("mnist-cnn", dtype=3)
load_model("mnist-cnn", reject="")
load_model("mnist-cnn", reject=None)
load_model("mnist-cnn", reject="margin", percentile="1")
load_model("mnist-cnn", reject="margin", percentile=float("nan"))
load_model("mnist-cnn", reject="margin", thresholds=3)
load_model("mnist-cnn", nope=1)
load_model("spheres-max-margin", dataset="mnist5k")
load_model("spheres-max-margin", dataset="")
load_model("spheres-max-margin", dataset=3)
load_model(torch.nn.Linear(784, 10))
load_model(torch.nn.Linear(784, 10), width=3)
load_model("net.py:build", width=[3])
load_model("../net.py:build")
load_attack("")
load_attack(None)
load_attack(3)
load_attack("pgd", steps="x")
load_attack("pgd", steps=None)
load_attack("pgd", steps=0)
load_attack("pgd", steps=True)
load_attack("pgd", nope=1)
load_attack(load_attack("pgd").attack, nope=1)
load_attack(load_attack("pgd").attack, steps="x")
load_attack("foolbox:LinfPGD", steps="x")
load_attack("torchattacks:PGD", eps=0.1)
load_dataset("")
load_dataset(None)
load_dataset(3)
load_dataset("mnist5k", data_root="")
load_dataset("mnist5k", data_root=3)
load_dataset("spheres:d=0")
load_threat("")
load_threat(None)
load_threat(0.1)
load_threat("linf=")
load_threat("none:norm=l2,norm=l1")
write_report([], "new.html")
write_report("", "new.html")
write_report("run", "")
write_report(["nowhere"], "new.html")
write_report(["run"], "new.html", "")
write_report(["run"], "new.html", 3)
write_report([3], "new.html")
write_report(None, "new.html")
write_report(["run"], None)
write_report(["run"], 3)
"""
"""Calls of the functions of the package; OK holds the arguments of a valid evaluation."""

NETWORK = """
import torch
from torch import nn

number, text = 3, "text"

def build(width: int = 8):
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))
    model.bounds = (0.0, 1.0)
    return model

class Plain:
    pass

def raises():
    raise RuntimeError("boom\\nbang")

def nothing():
    return None

def twice():
    return [build(), build()]

def wrong_bounds():
    model = build()
    model.bounds = (1.0, 0.0)
    return model

def three():
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
    model.bounds = (0.0, 1.0)
    return model
"""

RECIPE = """
model = "lenet5"
objective = "cross-entropy"
dataset = "mnist5k"
held_out = ["mnist5k"]
first = 0
last = 20
epochs = 1
batch_size = 10
learning_rate = 0.1
seed = 0

[card]
summary = "s"
dataset = "mnist5k"
"""

FILES = {
    "net.py": NETWORK,
    "syntax.py": "def build(:\n",
    "file": "a file",
    "notes.csv": "just,some\nnotes",
    "empty.csv": "",
    "header.csv": "image,human_label\n",
    "labels.csv": "image,human_label\nff,1\n",
    "broken.toml": "model = [",
    "recipe.toml": 'model = "lenet5"\n',
    "good/recipe.toml": RECIPE,
    "queue.toml": '[[entry]]\nrecipe = "nowhere.toml"\npriority = 1\nseconds_per_epoch = 1.0\nwhy = "x"\n',
    "folder/empty": "",
    "folder.py/empty": "",
    "folder.csv/empty": "",
}
"""Files of the folder in which the commands run; ``run`` holds the results of an evaluation."""


@dataclass(frozen=True)
class Outcome:
    """What a command or call did."""

    code: int
    out: str
    err: str


def command_lines() -> Iterator[list[str]]:
    """Yield every bad command line, without the name of the program."""
    for command, options in BAD.items():
        for option, values in options.items():
            for value in values.split("; "):
                yield _line(command, option, shlex.split(_unescaped(value)))
    for command, names in OPTIONS.items():
        for name in names:
            yield from (_line(command, name, [value]) for value in ("", " "))
    for command in POSITIONAL:
        yield from ([*command.split(), value] for value in ("", " "))


def calls() -> Iterator[str]:
    """Yield every bad call of a Python function."""
    yield from filter(None, PYTHON.splitlines())


def prepare(folder: Path) -> None:
    """Write the files that the commands name, and a run with images."""
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    done = run(
        ["evaluate", "--model", "mnist-cnn", "--attack", "fgsm", "--threat", "linf=0.3", *_RUN]
    )
    assert done.code == 0, done.err


_RUN = ("--samples", "10", "--out", "run", "--keep-images", "--no-checks", "--json")


def run(arguments: list[str]) -> Outcome:
    """Run the command line in this process."""
    from robustbench_inv.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    before = dict(os.environ), sys.argv
    sys.argv = ["invbench", *arguments]
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    finally:
        os.environ.clear()
        os.environ.update(before[0])
        sys.argv = before[1]
    return Outcome(code, out.getvalue(), err.getvalue())


def call(text: str) -> Outcome:
    """Evaluate a call of a function of the package; an error of the package has code 2, any other code 1."""
    import torch

    import robustbench_inv as rbi
    from robustbench_inv.errors import InvbenchError

    names = {name: getattr(rbi, name) for name in rbi.__all__} | {"torch": torch, "Path": Path}
    names["OK"] = {"model": "mnist-cnn", "attack": "pgd:steps=1", "threat": "linf=0.1"}
    names["OK"] |= {"samples": 10, "out": "new"}
    try:
        eval(text, names)
    except InvbenchError as error:
        return Outcome(2, "", f"error: {error}\n")
    except BaseException as error:
        return Outcome(1, "", f"error: unexpected {type(error).__name__}: {error}\n")
    return Outcome(0, "", "")


def problem(outcome: Outcome, created: list[str]) -> str:
    """Return what is wrong with how a bad argument was refused; empty if nothing is."""
    lines = outcome.err.splitlines()
    if outcome.code == 0:
        return "accepted"
    if created:
        return f"wrote {created}"
    if "unexpected" in outcome.err or "Traceback" in outcome.err:
        return "unexpected"
    if outcome.out:
        return "printed on standard output"
    if lines and lines[0].startswith("Usage:"):
        return ""
    if outcome.code != 2 or len(lines) != 1 or not lines[0].startswith("error: "):
        return f"exit code {outcome.code}, {len(lines)} lines"
    if any(ord(sign) < 32 or 127 <= ord(sign) < 160 for sign in lines[0]):
        return "control characters"
    return ""


def problems(folder: Path, every: int = 1) -> Iterator[str]:
    """Yield one line for each bad argument that is not refused as it should be.

    Args:
        folder: a prepared folder, the current one.
        every: try each argument whose position is a multiple of this.
    """
    tried = [(shlex.join(["invbench", *line]), run, line) for line in command_lines()]
    tried += [(text, call, text) for text in calls()]
    known = _listing(folder)
    for title, act, argument in tried[::every]:
        outcome = act(argument)
        created = sorted(_listing(folder) - known)
        if found := problem(outcome, created):
            yield f"{title!r}: {found}: {outcome.err.strip()[:300]!r}"
        for name in created:
            _remove(folder / name)


def _line(command: str, option: str, value: list[str]) -> list[str]:
    words, usual = BASES[command]
    kept = {name: text for name, text in usual.items() if name != option}
    pairs = [part for pair in kept.items() for part in pair]
    return [*words.split(), *pairs, *([option] if option else []), *value]


def _unescaped(text: str) -> str:
    """Return a text with the escapes of ``$'…'`` replaced, which ``shlex`` does not know."""
    return text.replace("$'", "'").replace("\\x1b", "\x1b").replace("\\x07", "\x07")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _listing(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


def main() -> None:
    """Try every bad argument in a fresh folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        os.chdir(folder)
        prepare(folder)
        count = len(list(command_lines())) + len(list(calls()))
        found = 0
        for line in problems(folder):
            found += 1
            print(line, flush=True)
        print(f"{count} bad arguments, {found} not refused in one line")
        os.chdir("/")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
