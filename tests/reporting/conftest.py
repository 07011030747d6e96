"""Run folders made by hand, with known answers, for the tests of reports."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from robustbench_inv.identity import digest_value
from robustbench_inv.results.record import Distances, ModelOutput, Record

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--disable-dev-shm-usage",
]  # fmt: skip
PAPER = "Zhu, An and Niu, Guess First, arXiv 2001.03311"
VERSIONS = {"python": "3.11.2", "torch": "2.13.0", "robustbench-inv": "0.1.0"}


def record(sample, *, label=3, broken_at=None, distance=0.1, status="ok", **changes):
    """A record; ``broken_at`` says whether and where the sample fell, ``distance`` holds for every norm."""
    wrong = status == "already_wrong"
    fell = broken_at is not None
    answer = ModelOutput(label if not wrong else label + 1, 2.0, None)
    value = Record(
        sample=sample,
        label=label,
        clean=answer,
        adversarial=replace(answer, prediction=label + 1) if fell else answer,
        oracle_label=None,
        oracle_source=None,
        distance=Distances(5, distance, distance, distance),
        broken_at=0.0 if wrong else broken_at,
        within_budget=True,
        goal_reached=fell and not wrong,
        forward_passes=0 if wrong else 10,
        backward_passes=0 if wrong else 9,
        zero_gradient=False,
        replayed=True,
        status=status,
    )
    return replace(value, **changes)


class RunWriter:
    """Writes a run folder as the engine would."""

    def __init__(self, path):
        self.path, self.cells, self.checks = path, [], []
        path.mkdir(parents=True)

    def cell(self, records, **about):
        """Write one cell; ``about``: model, attack, kind, norm, epsilons, goal, dataset, planned, images, …"""
        about = {
            "model": "mnist-cnn", "attack": "pgd", "kind": "fixed-budget", "norm": "linf", "epsilons": [0.1],
            "goal": "misclassify", "dataset": "mnist5k", "shape": [1, 8, 8], "bounds": [0.0, 1.0],
            "classes": 10, "seed": 0, "planned": [r.sample for r in records], "events": (),
            "images": None, "version": 0, "started": True, "access": "white-box",
            "substitute": None, "goal_parameters": {}, "members": 0, "code": 0, **about,
        }  # fmt: skip
        digest = digest_value(
            {k: str(v) for k, v in about.items() if k not in {"images", "planned"}}
        )[:32]
        self.cells.append(self._entry(digest, about))
        if about["started"]:
            folder = self.path / digest
            folder.mkdir()
            (folder / "cell.json").write_text(json.dumps(self._info(about)))
            (folder / "records.jsonl").write_text("".join(r.to_json_line() for r in records))
            (folder / "events.jsonl").write_text(
                "".join(json.dumps(e) + "\n" for e in about["events"])
            )
            if about["images"] is not None:
                save_file(about["images"], folder / "adversarial.safetensors")
        return self

    def verdict(self, grade, subject, **changes):
        """Add a verdict of a check."""
        self.checks.append({
            "id": "C6", "title": "gradients exist", "scope": "model", "subject": subject, "verdict": grade,
            "value": 0.125, "rule": "WARN above 1 %", "evidence": "Five of 40 gradients are zero.", **changes,
        })  # fmt: skip
        return self

    def finish(self):
        """Write plan and checks, and return the folder."""
        samples = sorted({s for cell in self.cells for s in cell.pop("ids")})
        plan = {
            "version": 2, "name": self.path.name, "created_by": VERSIONS, "samples": samples,
            "commands": [["invbench", "evaluate", "--model", "mnist-cnn"]], "cells": self.cells,
        }  # fmt: skip
        (self.path / "plan.json").write_text(json.dumps(plan))
        (self.path / "checks.json").write_text(json.dumps(self.checks))
        return self.path

    def _entry(self, digest, about):
        named = {key: about[key] for key in ("model", "attack", "dataset", "seed")}
        return {
            "digest": digest, **named, "threat": _threat(about), "samples": len(about["planned"]),
            "ids": about["planned"],
        }  # fmt: skip

    def _info(self, about):
        helped = {"access": about["access"], "substitute": about["substitute"]}
        goal = {"goal": about["goal"], "goal_parameters": about["goal_parameters"], **helped}
        attack = {"kind": about["kind"], "implementation": "robustbench_inv.attacks.pgd:PGD"}
        member = {"type": "robustbench_inv.attacks.apgd:APGD"}
        parameters = {"steps": 40} | (
            {"members": [member] * about["members"]} if about["members"] else {}
        )
        return {
            "version": 2,
            "identity": {"seed": about["seed"]},
            "model": {
                "name": about["model"], "digest": _digest(about, "model", "version"), "card": {"paper": PAPER},
                "weights_digest": "d" * 64, "rejection": None,
            },
            "attack": {"name": about["attack"], "digest": _digest(about, "attack", "code"), "parameters": parameters, **attack},
            "threat": {
                "norm": about["norm"], "epsilons": about["epsilons"], "text": _threat(about), **goal
            },
            "dataset": {
                "name": about["dataset"], "digest": _digest(about, "dataset"), "size": 5000, "num_classes": about["classes"],
                "bounds": about["bounds"], "shape": about["shape"],
            },
            "seed": about["seed"], "batch_size": 256, "device": "cpu", "dtype": "float32",
            "segments": [{"batch_size": 256, "samples": about["planned"]}],
            "versions": VERSIONS, "git": {"commit": "f" * 40, "dirty": True},
        }  # fmt: skip


def _digest(about, *keys):
    return digest_value({key: about[key] for key in keys})


def _threat(about):
    sweep = ",".join(f"{eps:g}" for eps in about["epsilons"])
    return f"{about['norm']}={sweep}" if sweep else "none"


def sweep_records(n, fall, eps):
    """``n`` records over ten classes; sample i falls at eps[j] where i is below ``fall[j]`` samples."""
    falls = [
        next((e for e, count in zip(eps, fall, strict=True) if i < count), None) for i in range(n)
    ]
    return [record(i, label=i % 10, broken_at=e, distance=e or 0.01) for i, e in enumerate(falls)]


def tiny_images(n, eps):
    """Clean and shifted 8 × 8 images of ``n`` samples."""
    clean = np.linspace(0, 1, n * 64, dtype=np.float32).reshape(n, 1, 8, 8)
    signs = np.where(np.arange(64).reshape(8, 8) % 2, 1, -1).astype(np.float32)
    shown = np.clip(clean + eps * signs, 0, 1)
    return {"samples": np.arange(n), "clean": clean, "adversarial": shown}


@pytest.fixture
def writer(tmp_path):
    """A run folder to be filled."""
    return RunWriter(tmp_path / "mnist-0123abcd")


@pytest.fixture(scope="session")
def full_run(tmp_path_factory):
    """A run with all there is: sweeps, distances, spheres, rejection, crashes, images, checks. Not to be changed."""
    run, eps = RunWriter(tmp_path_factory.mktemp("runs") / "full-0123abcd"), [0.1, 0.2, 0.3]
    for model, strength in (("mnist-cnn", 1), ("mnist-vib", 2)):
        for attack, fall in (("noise", (0, 1, 2)), ("fgsm", (4, 12, 20)), ("pgd", (8, 24, 40))):
            records = sweep_records(40, [count // strength for count in fall], eps)
            if attack == "fgsm" and model == "mnist-vib":
                records[-1] = replace(records[-1], status="crash")
            run.cell(
                records, model=model, attack=attack, epsilons=eps, images=tiny_images(40, 0.2),
                events=[{"event": "crash", "reason": "ValueError: no <b>luck</b>"}],
            )  # fmt: skip
        found = [
            record(i, label=i % 10, broken_at=0.1 * (i + 1), distance=0.1 * (i + 1))
            for i in range(20)
        ]
        run.cell(found, model=model, attack="deepfool", kind="minimum-norm", norm="l2", epsilons=[])
    spheres = {
        "model": "spheres-misaligned", "dataset": "spheres:d=500,n=10,r1=1,r2=1.3", "norm": "l2",
        "epsilons": [], "classes": 2, "shape": [500], "bounds": [-1.3, 1.3],
    }  # fmt: skip
    for attack, goal, kind, loser in (
        ("spheres-perturbation", "misclassify", "minimum-norm", 1),
        ("spheres-invariance", "keep-decision", "invariance", 0),
    ):
        records = [
            record(i, label=i % 2, broken_at=0.5 + i / 40, distance=0.5 + i / 40)
            if i % 2 == loser
            else record(i, label=i % 2, oracle_label=i % 2, oracle_source="exact")
            for i in range(40)
        ]
        run.cell(records, attack=attack, kind=kind, goal=goal, **spheres)
    refusing = [replace(r, clean=replace(r.clean, accepted=r.sample != 7),
                        adversarial=replace(r.adversarial, accepted=r.sample % 2 == 0))
                for r in sweep_records(40, (10, 20, 30), eps)]  # fmt: skip
    run.cell(refusing, model="mnist-sdim", epsilons=eps)
    run.verdict("PASS", "mnist-cnn").verdict(
        "FAIL", "mnist-vib", id="C7", evidence="<script>margin</script>"
    )
    run.verdict(
        "WARN", "pgd on mnist-cnn, linf=0.1,0.2,0.3, mnist5k, seed 0", scope="cell", id="C15"
    )
    return run.finish()


@pytest.fixture(name="record")
def make_record():
    """The function that makes one record."""
    return record


@pytest.fixture(name="tiny_images", scope="session")
def make_tiny_images():
    """The function that makes images."""
    return tiny_images


@pytest.fixture(name="sweep_records", scope="session")
def make_sweep_records():
    """The function that makes the records of a sweep."""
    return sweep_records


@pytest.fixture(name="run_writer", scope="session")
def make_run_writer():
    """The class that writes run folders."""
    return RunWriter


@pytest.fixture(scope="session")
def report(full_run, tmp_path_factory):
    """The default report of that run. Not to be changed."""
    from robustbench_inv.reporting.html import write_report

    return write_report([full_run], tmp_path_factory.mktemp("reports") / "new" / "report.html")


@pytest.fixture(scope="session")
def comparison(tmp_path_factory, run_writer, sweep_records, tiny_images):
    """A page of one network before and after a defence, with images of both."""
    import robustbench_inv as rbi

    folder = tmp_path_factory.mktemp("compared")
    for version, (name, fall) in enumerate({"before": 24, "after": 9}.items()):
        run = run_writer(folder / name).cell(
            sweep_records(40, [fall], [0.2]),
            version=version,
            images=tiny_images(40, 0.2),
            epsilons=[0.2],
        )
        run.verdict("PASS", "mnist-cnn").finish()
    return rbi.compare(folder / "before", folder / "after").write(folder / "page.html")


@pytest.fixture(scope="session")
def leaderboard(tmp_path_factory, run_writer, sweep_records):
    """The first page of a site over seven models, one of which has no publishable number."""
    from robustbench_inv.reporting.leaderboard import read_leaderboard

    writer = run_writer(tmp_path_factory.mktemp("runs") / "zoo")
    for i, model in enumerate("abcdefg"):
        about = {"model": model, "attack": "standard", "epsilons": [0.1, 0.2], "members": 2}
        writer.cell(sweep_records(40, [5 * i, 6 * i], [0.1, 0.2]), **about)
        writer.verdict("FAIL" if model == "c" else "PASS", model)
    return read_leaderboard([writer.finish()]).write(tmp_path_factory.mktemp("site") / "out")


@pytest.fixture(scope="module")
def browser():
    """A real browser."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="the package playwright is not installed"
    )
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()
