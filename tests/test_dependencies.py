"""Direction of imports between the parts of the package, no import cycle, and the parts that import no torch."""

import ast
import importlib.util
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "tools" / "structure.py"


def load_script():
    """Return the module of the script; other tests that loaded it share the syntax trees it has read."""
    if "structure" in sys.modules:
        return sys.modules["structure"]
    spec = importlib.util.spec_from_file_location("structure", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up while the file runs
    spec.loader.exec_module(module)
    return module


structure = load_script()

PACKAGE = Path(__file__).parent.parent / "robustbench_inv"
GROUND = ("arguments", "errors", "identity", "foreign")
NUMBERS = (*GROUND, "randomness", "tensors", "torch_state")
PROTOCOLS = ("attacks.protocol", "models.protocol", "data.protocol")

MAY_IMPORT = {
    "errors": (),
    "arguments": ("errors",),
    "identity": ("errors",),
    "foreign": ("errors", "torch_state"),
    "torch_state": (),
    "randomness": GROUND,
    "tensors": (*GROUND, "randomness"),
    "threat": NUMBERS,
    "isolation": (*NUMBERS, "threat.goals"),
    "models": (*NUMBERS, "threat"),
    "attacks": (*NUMBERS, "threat", "isolation", "models.protocol", "data.protocol"),
    "data": NUMBERS,
    "results": GROUND,
    "catalogue": (*GROUND, "results"),
    "evaluation": (
        *NUMBERS,
        "isolation",
        *PROTOCOLS,
        "threat",
        "data.sampling",
        "results",
        "catalogue",
        "attacks.queries",
    ),
    "checks": (*NUMBERS, *PROTOCOLS, "data.registry", "threat", "attacks", "results"),
    "certification": (*NUMBERS, "threat", "models", "results", "evaluation"),
    "progress": ("arguments",),
    "run": (*GROUND, "evaluation", "checks", "results", "reporting"),
    "api": (
        *NUMBERS,
        *PROTOCOLS,
        "deciding",
        "progress",
        "run",
        "threat",
        "data.arrays",
        "catalogue",
        "evaluation",
        "certification",
        "checks",
        "results",
    ),
    "deciding": (
        *NUMBERS,
        "evaluation",
        "reporting",
        "results",
    ),
    "auditing": (
        "api",
        "run",
        "errors",
        "arguments",
        "threat.threat_model",
        "data.protocol",
        "catalogue",
        "evaluation",
        "results.certificates",
    ),
    "experiments": (
        *NUMBERS,
        "threat",
        "models",
        "data",
        "attacks",
        "catalogue",
        "results",
        "evaluation",
        "training",
    ),
    "reporting": (
        *GROUND,
        "results",
        "catalogue",
        "checks.audit_verdict",
        "checks.verdict",
    ),
    "training": (*NUMBERS, "threat", "models", "data", "attacks", "catalogue"),
    "testing": None,
    "cli": None,
    "__main__": ("cli",),
}
"""The parts that each part may import besides itself; None for all but the command line.

Attacks import no concrete model, models no attack; results and reporting import nothing that computes.
"""

ON_DEMAND = {"catalogue", "cli"}
"""Parts that name objects as strings, and import them in functions when they are needed."""

WITHOUT_TORCH = ("results", "reporting", "catalogue", "cli")


def modules():
    return sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def part_of(name):
    return name.split(".")[0]


@cache
def imports(path, *, functions):
    """Return the modules of the package that a file imports, without imports for type checkers."""
    found, queue = set(), [structure.tree(PACKAGE / path)]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            queue += node.orelse
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not functions:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        queue += ast.iter_child_nodes(node)
    return {name.removeprefix("robustbench_inv.") for name in found if "robustbench_inv." in name}


def allowed(part, name):
    targets = MAY_IMPORT[part]
    if targets is None:
        return part_of(name) != "cli" or part == "cli"
    return any(name == target or name.startswith(f"{target}.") for target in (part, *targets))


def is_module(name):
    path = PACKAGE.joinpath(*name.split("."))
    return path.with_suffix(".py").exists()


@pytest.mark.parametrize("path", modules(), ids=str)
def test_dependencies_point_one_way(path):
    part = path.parts[0].removesuffix(".py")
    if part == "__init__":
        return
    assert part in MAY_IMPORT, f"{part} is missing in MAY_IMPORT"
    names = imports(path, functions=part not in ON_DEMAND)
    wrong = [name for name in sorted(names) if is_module(name) and not allowed(part, name)]
    assert not wrong


def test_a_wrong_import_would_be_found():
    assert not allowed("attacks", "models.cnn")
    assert not allowed("models", "attacks.protocol")
    assert not allowed("reporting", "api")
    assert not allowed("testing", "cli.main")
    assert allowed("attacks", "models.protocol")
    assert "torch" not in imports(Path("cli/main.py"), functions=True)
    assert "evaluation.plan" in imports(Path("cli/evaluate.py"), functions=True)
    assert "evaluation.plan" not in imports(Path("cli/evaluate.py"), functions=False)


def test_checks_and_evaluation_are_independent():
    for part, other in (("checks", "evaluation"), ("evaluation", "checks")):
        assert not allowed(part, f"{other}.anything")
    above = [path for path in modules() if {"checks", "evaluation"} <= parts_of_imports(path)]
    assert {path.parts[0] for path in above} <= {"api.py", "run.py", "cli", "testing"}


def parts_of_imports(path):
    return {part_of(name) for name in imports(path, functions=True)}


def test_no_import_cycle():
    """Imports in functions and for type checkers count."""
    assert structure.cycles(structure.import_graph()) == []


def test_results_and_reporting_import_no_torch():
    names = [".".join(p.with_suffix("").parts) for p in modules() if p.parts[0] in WITHOUT_TORCH]
    code = "import sys, importlib\n"
    code += "import robustbench_inv\nassert 'numpy' not in sys.modules\n"
    code += "".join(
        f"importlib.import_module('robustbench_inv.{name.removesuffix('.__init__')}')\n"
        f"assert 'torch' not in sys.modules, {name!r}\n"
        for name in names
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names_exist():
    import robustbench_inv

    assert set(robustbench_inv.__all__) == {*robustbench_inv._PLACES, "__version__"}
    for name in robustbench_inv.__all__:
        assert getattr(robustbench_inv, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'load_modle'"):
        robustbench_inv.load_modle  # noqa: B018 - the access is the test
