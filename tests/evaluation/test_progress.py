"""Progress within a block: the part of the attack, and the samples on which it has not succeeded."""

import pytest
import torch

from robustbench_inv import progress as progress_module
from robustbench_inv.attacks.ensemble import Ensemble
from robustbench_inv.attacks.pgd import PGD
from robustbench_inv.evaluation import block_runner
from robustbench_inv.evaluation.engine import Progress, RunOptions
from robustbench_inv.evaluation.schedule import run_cell
from robustbench_inv.results.run_files import CellFolder


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Report before every query."""
    monkeypatch.setattr(block_runner, "REPORT_SECONDS", -1.0)


def test_an_ensemble_reports_its_part_and_the_samples_left(toys, tmp_path):
    reports = []
    attack = Ensemble((PGD(2), PGD(3)))
    job = toys.make_job(attack, toys.linf(8 / 255), dtype=torch.float32)
    run_cell(job, tmp_path / "c", RunOptions(), reports.append)
    details = [report.detail for report in reports if report.detail]
    assert reports[0].detail == reports[-1].detail == ""
    assert details[0].startswith("block 1 of 1: eps 8/255, attack 1 of 2, 55 of 55 samples robust")
    assert any("attack 2 of 2" in detail for detail in details)
    assert all(detail.endswith(" passes") for detail in details)


def test_a_report_that_fails_is_no_fault_of_the_attack(toys, tmp_path):
    def fail(progress):
        if progress.detail:
            raise RuntimeError("the callback")

    job = toys.make_job(PGD(2), toys.linf(0.001))
    run_cell(job, tmp_path / "c", RunOptions(), fail)
    plain = toys.make_job(PGD(2), toys.linf(0.001))
    run_cell(plain, tmp_path / "d", RunOptions())
    assert CellFolder(tmp_path / "c").records() == CellFolder(tmp_path / "d").records()


def test_without_a_terminal_a_running_cell_prints_a_line_now_and_then(monkeypatch, capsys):
    now = iter([0.0, 1.0, 29.0, 31.0, 50.0, 62.0])
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: next(now))
    report = progress_module._line_callback()
    running = Progress("pgd on net", "d", 250, 1000, 1, 2, detail="eps 8/255, attack 2 of 5")
    for _ in range(5):
        report(running)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0] == (
        "[1/2] pgd on net: 250 of 1000 samples done after 31 s; eps 8/255, attack 2 of 5"
    )
