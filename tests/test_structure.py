"""The structure of the package keeps its limits: modules, import cycles, lengths, repeated names and lines."""

import importlib.util
import sys
from pathlib import Path

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


def test_every_measure_keeps_its_limit():
    exceeded = [measure.text for measure in structure.measures() if not measure.kept]
    assert exceeded == []


def test_cycles_are_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}
    assert structure.cycles(graph) == [["a", "b", "c"]]
    assert structure.cycles({"a": {"b"}, "b": set()}) == []


def test_lazy_and_type_only_imports_count():
    graph = structure.import_graph()
    assert "evaluation.plan" in graph["cli.evaluate"] or "api" in graph["cli.evaluate"]
