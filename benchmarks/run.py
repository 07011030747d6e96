"""Writes docs/benchmarks.md and its picture: our attacks compared with other libraries and with the cost of their passes.

All run in one process. ``make bench`` writes the page; without ``--write`` it is printed only. With ``--only`` the other
sections are kept.
"""

import argparse
import platform
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from adapters import adapters_section
from certificates import certificates_section
from chart import draw_chart, draw_invariance
from envelope import envelope_section
from fixed_budget import fixed_budget_section
from floor import floor_section
from hypothesis_forward import hypothesis_section
from invariance import invariance_section
from minimum_norm import minimum_norm_section
from page import merge
from query_attacks import query_section
from real_cases import real_cases_section
from sharing import sharing_section
from standard import standard_section
from start_up import start_up_section
from sweeps import sweep_section
from switches import switch_section

DOCS = Path(__file__).parents[1] / "docs"
PAGE, PICTURE = DOCS / "benchmarks.md", DOCS / "images" / "benchmarks.svg"
CURVES = DOCS / "images" / "invariance-passes.svg"

# the last two change how the process allocates memory, so nothing may follow them
SECTIONS = {
    "start-up": start_up_section,
    "pgd": fixed_budget_section,
    "standard": standard_section,
    "minimum-norm": minimum_norm_section,
    "envelope": envelope_section,
    "query": query_section,
    "invariance": invariance_section,
    "adapters": adapters_section,
    "certificates": certificates_section,
    "real-cases": real_cases_section,
    "switches": switch_section,
    "sweeps": sweep_section,
    "hypothesis": hypothesis_section,
    "sharing": sharing_section,
    "floor": floor_section,
}

LIBRARIES = ("torch", "foolbox", "torchattacks", "adv-lib")


def main() -> None:
    """Print the page; with --write also write it to docs/, with its picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    parts = [_opening()]
    for name in arguments.only:
        print(parts[-1], flush=True)
        parts.append(SECTIONS[name]())
    print(parts[-1], flush=True)
    if arguments.write:
        text = merge(PAGE.read_text(encoding="utf-8"), parts)
        PAGE.write_text(text, encoding="utf-8")
        draw_chart(text, PICTURE)
        draw_invariance(text, CURVES)


def _opening() -> str:
    versions = ", ".join(f"{name} {_version(name)}" for name in LIBRARIES)
    return f"""# Benchmarks

Time and strength of our attacks against Foolbox, torchattacks and adversarial-library, and what each optimisation gains. `make bench` writes this
page: one process on {platform.machine()}, bfloat16 {_bfloat16()}; {versions}. Libraries and models that are not installed are left out. *ours / its
time* below 1: ours is faster.

![Time of our attacks relative to other libraries, and their results](images/benchmarks.svg)
"""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _bfloat16() -> str:
    native = torch.cpu.get_capabilities().get("avx512_bf16", False)
    return "in hardware" if native else "not in hardware"


if __name__ == "__main__":
    main()
