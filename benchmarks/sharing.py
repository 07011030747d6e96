"""Measures what it costs that processes share a cell: claims alone with 64 processes, and whole evaluations with one and two.

The 64 processes import no torch, and their blocks sleep. ``python benchmarks/sharing.py`` takes five minutes on two idle cores.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

__all__ = ["sharing_section"]

PROCESSES, BLOCKS, SECONDS = 64, 640, 0.5
SAMPLES, RUNS = 4000, 2

CLAIMS = """
import os, sys, time
from pathlib import Path
from robustbench_inv.results.block_board import BlockBoard, StoredBlock
folder, processes, blocks, seconds = Path(sys.argv[1]), *map(float, sys.argv[2:])
children, began = [], time.perf_counter()
for number in range(int(processes)):
    if not (child := os.fork()):
        board, computed = BlockBoard(folder, f"bench/{number}"), 0
        while True:
            finished, claimed = board.numbers()
            left = [n for n in range(int(blocks)) if n not in finished and n not in claimed]
            if not left:
                break
            for block in left[number % len(left):] + left[:number % len(left)]:
                if claim := board.claim(block):
                    with board.held(block, claim):
                        if block in board.numbers()[0]:  # since the list was read
                            break
                        time.sleep(seconds)
                        board.store(block, StoredBlock((block,), b"x" * 500 * 250, b"", False, str(number)))
                        (folder / f"{number}-{block}.computed").touch()
                    break
        os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
print(time.perf_counter() - began)
"""

EVALUATION = """
import sys, time
import torch
import robustbench_inv as rbi
if __name__ == "__main__":
    workers, samples, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    began = time.perf_counter()
    rbi.evaluate("mnist-cnn", attack="standard", threat="linf=0.1", dataset="mnist5k", samples=samples, out=out,
                 workers=workers, checks=False)
    print(time.perf_counter() - began)
"""


def sharing_section() -> str:
    """Return the benchmark's text for the page."""
    rows = [_claims_row(PROCESSES, BLOCKS, SECONDS), _claims_row(1, 200, 0.0)]
    threads = {"one worker, one thread": (1, "1"), "one worker": (1, ""), "two workers": (2, "")}
    times = {name: median(_evaluate(*how) for _ in range(RUNS)) for name, how in threads.items()}
    first = times["one worker, one thread"]
    rows += [f"| {name} | {each:.1f} s | {first / each:.2f} |" for name, each in times.items()]
    return "\n".join([_OPENING, *rows[:2], _RUNS, *rows[2:], ""])


def _claims_row(processes: int, blocks: int, seconds: float) -> str:
    with tempfile.TemporaryDirectory() as folder:
        arguments = (folder, processes, blocks, seconds)
        spent = float(_python(CLAIMS, *arguments))
        computed = [path.name.partition("-")[2] for path in Path(folder).glob("*.computed")]
        assert len(computed) == len(set(computed)), "a block was computed twice"
        assert len(computed) == blocks, "a block was lost"
    if not seconds:
        return f"| {processes} | {blocks} | 0 s | {1000 * spent / blocks:.1f} ms a block |"
    ideal = blocks * seconds / processes
    return f"| {processes} | {blocks} | {seconds} s | {100 * ideal / spent:.0f} % of the ideal {ideal:.1f} s |"


def _evaluate(workers: int, threads: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return float(_python(EVALUATION, workers, SAMPLES, f"{folder}/r", threads=threads))


def _python(code: str, *arguments: object, threads: str = "") -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": threads} if threads else dict(os.environ)
    if not threads:
        environment.pop("OMP_NUM_THREADS", None)
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(code)
        file.flush()
        command = [sys.executable, file.name, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout.strip().splitlines()[-1]


_OPENING = """
## Processes that share a cell

Blocks are claimed in the run's folder. Processes without torch, whose blocks sleep and are written with 125 KB each; no
block was computed twice or lost.

| processes | blocks | each sleeps | result |
|---|---|---|---|"""

_RUNS = f"""
`standard` on `mnist-cnn`, linf 0.1, {SAMPLES:,} digits of `mnist5k`, start of the processes included; medians of {RUNS} runs.

| evaluation | time | faster than one thread |
|---|---|---|"""


if __name__ == "__main__":
    print(sharing_section())
