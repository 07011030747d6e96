"""Loads data sets by name."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from robustbench_inv.arguments import check_path, check_text
from robustbench_inv.catalogue.code_identity import origin_of
from robustbench_inv.catalogue.fields import call_factory
from robustbench_inv.catalogue.fingerprint import content
from robustbench_inv.catalogue.references import (
    Reference,
    import_object,
    parse_reference,
    parse_source,
)
from robustbench_inv.errors import BadCatalogue, BadParameter, MissingData, UnknownName
from robustbench_inv.foreign import foreign, foreign_call
from robustbench_inv.identity import digest_value

if TYPE_CHECKING:
    from robustbench_inv.data.protocol import Dataset
    from robustbench_inv.data.registry import DatasetEntry

__all__ = [
    "default_ood_dataset",
    "default_oracle",
    "describe_dataset",
    "evaluation_dataset",
    "identify_dataset",
    "load_dataset",
    "read_arrays",
    "refuse_code",
    "split_missing",
]

_EVALUATION_DATASETS = {"mnist": "mnist5k"}
"""Data set that replaces the one of a model's card in evaluations, because it needs no download."""


def evaluation_dataset(card: Mapping[str, Any]) -> str:
    """Return the data set on which a model is evaluated if the user names none; empty if its card names none.

    Example:
        >>> evaluation_dataset({"dataset": "mnist"})
        'mnist5k'
        >>> evaluation_dataset({"dataset": "mnist", "trained_on": ["mnist5k"]})
        'mnist'
    """
    own = str(card.get("dataset") or "")
    other = _EVALUATION_DATASETS.get(own, own)
    return own if other in (card.get("trained_on") or ()) else other


def load_dataset(
    source: "str | Dataset", *, data_root: "str | Path | None" = None, code: bool = True
) -> "Dataset":
    """Return a data set.

    Args:
        source: a name, with optional ``:key=value,…`` (``spheres:d=500,n=10``); your own data as
            ``folder:PATH,size=224``, ``npz:FILE``, ``npy:FILE,labels=FILE`` or ``file.py:function``; one of a library as
            ``torchvision:CIFAR10`` or ``hf:ORG/NAME``; or a data set, which is checked (``data.protocol.check_dataset``) and returned unchanged.
        data_root: folder of its files; None for INVBENCH_DATA and the default places.
        code: may the name refer to Python code? False for a name that a file contains.

    Raises:
        UnknownName: for an unknown name.
        BadParameter: for an unknown parameter.
        BadData: if its files are missing or damaged, or an object is no data set.
        BadCatalogue: for code that cannot be imported, or that the name may not refer to.
    """
    root = None if data_root is None else check_path(data_root, "data root").expanduser()
    if not isinstance(source, str):
        from robustbench_inv.data.protocol import check_dataset

        with foreign("the data set"):
            check_dataset(source)
        return source
    from robustbench_inv.data.registry import open_dataset

    if own := parse_source(check_text(source, "data set")):
        return _open_own(*own, source.strip(), root, code=code)
    reference = parse_reference(source)
    _hint_at_sources(reference.name)
    return open_dataset(reference.name, reference.parameters, root)


def _open_own(
    kind: str, reference: Reference, text: str, root: Path | None, *, code: bool
) -> "Dataset":
    """Return the user's own data set."""
    from robustbench_inv.data.sources import dataset_of, open_source

    if kind != "code":
        given = dict(reference.parameters)
        if kind == "torchvision" and root:
            given.setdefault("root", str(root))
        with foreign(text):
            return open_source(kind, reference.name, given, text)
    if not code:
        refuse_code(text)
    from robustbench_inv.randomness import seeded_generators

    with foreign_call(text), seeded_generators(0, []):
        factory = import_object(reference.name)
        built = factory
        if callable(factory) and not hasattr(factory, "__getitem__"):
            built = call_factory(factory, reference.parameters, reference.name)
        elif reference.parameters:
            problem = f"{reference.name} is data and not a function"
            raise BadParameter(problem, got=dict(reference.parameters), expected="no parameters")
        return dataset_of(built, text)


def refuse_code(text: str) -> None:
    """Check the name of a data set that a file contains: it must not refer to Python code.

    Raises:
        BadCatalogue: for ``file.py:function``.
    """
    found = parse_source(text)
    if found and found[0] == "code":
        raise BadCatalogue(
            "a file names a data set by Python code",
            got=text,
            expected="a name, or a source such as npz:FILE",
            remedy="name the data set yourself: --dataset FILE.py:FUNCTION",
        )


def _hint_at_sources(name: str) -> None:
    """Raise UnknownName with the right reference for the path of a folder or file."""
    path = Path(name).expanduser()
    kinds = {".npz": "npz:{}", ".npy": "npy:{},labels=FILE", ".py": "{}:FUNCTION"}
    hint = "folder:{}" if path.is_dir() else kinds.get(path.suffix)
    if hint and path.exists() and name not in _names():
        raise UnknownName("no such data set", got=name, remedy="write " + hint.format(name))


def _names() -> "Mapping[str, DatasetEntry]":
    from robustbench_inv.data.registry import DATASETS

    return DATASETS


T = TypeVar("T")
R = TypeVar("R")


def describe_dataset(name: str) -> str:
    """Return the summary of a data set with parameters; empty for one that is not in the catalogue."""
    entry = _names().get(name.partition(":")[0])
    return entry.summary if entry else ""


def split_missing(
    parts: Iterable[T], use: Callable[[T], R]
) -> tuple[list[tuple[T, R]], list[tuple[T, MissingData]]]:
    """Use parts of a table or figure, and return those whose data are at hand apart from the others.

    Args:
        parts: the parts.
        use: opens or evaluates the data of one.

    Returns:
        The parts with what ``use`` returned, and those without data with the error.

    Raises:
        MissingData: if no part has its data.
    """
    found, missing = list[tuple[T, R]](), list[tuple[T, MissingData]]()
    for part in parts:
        try:
            found.append((part, use(part)))
        except MissingData as error:
            missing.append((part, error))
    if missing and not found:
        raise missing[-1][1]
    return found, missing


def read_arrays(x: object, y: object, bounds: tuple[float, float] | None) -> "Dataset":
    """Return your arrays as a data set, as ``data.own_data.arrays_to_dataset`` reads them; raises as it does."""
    from robustbench_inv.data.own_data import arrays_to_dataset

    with foreign("the arrays"):
        return arrays_to_dataset(x, y, bounds=bounds)  # type: ignore[arg-type]


def identify_dataset(dataset: "Dataset") -> str:
    """Return a data set's identity: its digest; for a class of the user or of a library, its code and all it holds."""
    if origin_of(type(dataset).__module__) == "package":
        return dataset.digest
    return digest_value({"data": dataset.digest, "content": content(dataset)})


def default_oracle(dataset: "Dataset") -> str:
    """Return the default oracle for changed inputs of a data set, empty if there is none."""
    known = _opened_entry(dataset)
    return known.oracle if known else ""


def default_ood_dataset(dataset: "Dataset") -> str:
    """Return the default out-of-distribution data set for a data set, empty if there is none.

    Example:
        >>> default_ood_dataset(load_dataset("mnist5k")), default_ood_dataset(load_dataset("spheres"))
        ('fashion-mnist', '')
    """
    known = _opened_entry(dataset)
    return known.ood if known else ""


def _opened_entry(dataset: "Dataset") -> "DatasetEntry | None":
    from robustbench_inv.data.registry import opened_entry

    return opened_entry(dataset)
