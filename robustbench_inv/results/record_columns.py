"""The records of a cell: a sequence of records, and the same values as arrays, which are read from disk when needed."""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from itertools import chain
from math import inf, nan
from typing import Any, Self, overload

import numpy as np
from numpy.typing import NDArray

from robustbench_inv.results.record import (
    NOT_ATTACKED,
    STATUSES,
    Distances,
    ModelOutput,
    Record,
    record_with,
)

__all__ = [
    "NORMS",
    "NO_ORACLE_LABEL",
    "OPTIONAL_FIELDS",
    "OutputColumns",
    "RecordColumns",
    "Records",
]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Codes = NDArray[np.int8]

NO_ORACLE_LABEL = int(np.iinfo(np.int64).min)
"""Stands for None in the column of the oracle's classes."""

_FLAGS = {-1: None, 0: False, 1: True}


@dataclass(frozen=True, eq=False)
class OutputColumns:
    """The model's outputs for n inputs.

    Args:
        prediction: (n,) predicted classes.
        score: (n,) rejection scores, nan for None.
        accepted: (n,) 1 or 0, −1 for None.
    """

    prediction: Ints
    score: Floats
    accepted: Codes

    @property
    def rejected(self) -> Bools:
        """(n,) is the input rejected?"""
        return np.asarray(self.accepted == 0)

    def take(self, rows: Any) -> "OutputColumns":  # noqa: ANN401 - what numpy takes as an index
        """Return some rows."""
        return OutputColumns(self.prediction[rows], self.score[rows], self.accepted[rows])


@dataclass(frozen=True, eq=False)
class RecordColumns:
    """The values of n records, one array for each field, named as in ``Record``.

    Args:
        oracle_label: NO_ORACLE_LABEL for None.
        oracle_source: numbers of ``sources``, −1 for None.
        distance: by norm.
        broken_at: inf for None.
        status: numbers of STATUSES.
        sources: the oracles.
        extras: optional keys of records: their values as JSON, None where a record lacks the key.
    """

    sample: Ints
    label: Ints
    clean: OutputColumns
    adversarial: OutputColumns
    oracle_label: Ints
    oracle_source: Codes
    distance: Mapping[str, NDArray[Any]]
    broken_at: Floats
    within_budget: Bools
    goal_reached: Bools
    forward_passes: Ints
    backward_passes: Ints
    zero_gradient: Bools
    replayed: Bools
    status: Codes
    sources: tuple[str, ...] = ()
    extras: Mapping[str, Sequence[str | None]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.sample)

    @classmethod
    def of(cls, records: Sequence[Record]) -> Self:
        """Return the values of records."""
        sources = tuple(sorted({r.oracle_source for r in records if r.oracle_source is not None}))
        numbers: dict[str | None, int] = {name: number for number, name in enumerate(sources)}
        numbers[None] = -1
        codes = {status: number for number, status in enumerate(STATUSES)}
        distances = [vars(r.distance) for r in records]
        arrays: dict[str, Any] = {
            name: np.array([getattr(r, name) for r in records], kind) for name, kind in _PLAIN
        }
        return cls(
            clean=_outputs([r.clean for r in records]),
            adversarial=_outputs([r.adversarial for r in records]),
            oracle_label=_ints(r.oracle_label for r in records),
            oracle_source=np.array([numbers[r.oracle_source] for r in records], np.int8),
            distance={
                norm: np.array(
                    [each[norm] for each in distances], np.int64 if norm == "l0" else float
                )
                for norm in NORMS
            },
            broken_at=np.array(
                [inf if r.broken_at is None else r.broken_at for r in records], float
            ),
            status=np.array([codes[r.status] for r in records], np.int8),
            sources=sources,
            extras=_extras(records),
            **arrays,
        )

    @cached_property
    def was_attacked(self) -> Bools:
        """(n,) was the sample attacked? One that is misclassified before the attack is not."""
        return ~np.isin(self.status, [STATUSES.index(each) for each in NOT_ATTACKED])

    @cached_property
    def is_broken(self) -> Bools:
        """(n,) did the attack succeed on a sample that was correct before?"""
        return (self.broken_at < inf) & self.was_attacked

    @property
    def is_clean_correct(self) -> Bools:
        """(n,) is the prediction for the clean input its label?"""
        return np.asarray(self.clean.prediction == self.label)

    @property
    def is_correct(self) -> Bools:
        """(n,) is the prediction for the adversarial input its true class: the oracle's, or the label without one?"""
        true = np.where(self.oracle_label >= 0, self.oracle_label, self.label)
        return np.asarray(self.adversarial.prediction == true)

    @property
    def has_oracle_label(self) -> Bools:
        """(n,) does the oracle name a class?"""
        return np.asarray(self.oracle_label != NO_ORACLE_LABEL)

    def predicts(self, labels: Ints) -> Bools:
        """Return where this class is predicted for the adversarial input, and the input accepted, (n,)."""
        return np.asarray(~self.adversarial.rejected & (self.adversarial.prediction == labels))

    @property
    def keeps_prediction(self) -> Bools:
        """(n,) is the prediction for the adversarial input that for the clean one, and the input accepted?"""
        return self.predicts(self.clean.prediction)

    def take(self, rows: Any) -> Self:  # noqa: ANN401 - what numpy takes as an index
        """Return some rows, in this order."""
        parts: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, np.ndarray):
                parts[each.name] = value[rows]
        return replace(
            self,
            **parts,
            clean=self.clean.take(rows),
            adversarial=self.adversarial.take(rows),
            distance={norm: column[rows] for norm, column in self.distance.items()},
            extras={
                key: np.array(each, object)[rows].tolist() for key, each in self.extras.items()
            },
        )

    def by_sample(self) -> Self:
        """Return the rows in ascending order of sample id."""
        if bool(np.all(self.sample[1:] > self.sample[:-1])):
            return self
        return self.take(np.argsort(self.sample, kind="stable"))

    def records(self) -> Iterator[Record]:
        """Yield the records."""
        for start in range(0, len(self), CHUNK):
            part = self.take(slice(start, start + CHUNK))
            found = map(Record, *part._lists())
            yield from _with_extras(found, part.extras) if self.extras else found

    def _lists(self) -> Iterator[list[Any]]:
        """Yield the values of each field of ``Record``, in its order."""
        sources, oracle = {-1: None, **dict(enumerate(self.sources))}, self.oracle_label.tolist()
        special: dict[str, list[Any]] = {
            "clean": _output_list(self.clean),
            "adversarial": _output_list(self.adversarial),
            "oracle_label": [None if each == NO_ORACLE_LABEL else each for each in oracle],
            "oracle_source": [sources[each] for each in self.oracle_source.tolist()],
            "distance": list(map(Distances, *(self.distance[norm].tolist() for norm in NORMS))),
            "broken_at": [None if each == inf else each for each in self.broken_at.tolist()],
            "status": [STATUSES[each] for each in self.status.tolist()],
        }
        for name in _FIELDS:
            yield special[name] if name in special else getattr(self, name).tolist()


NORMS = ("l0", "l1", "l2", "linf")

OPTIONAL_FIELDS = tuple(
    each.name
    for each in fields(Record)
    if each.name not in {own.name for own in fields(RecordColumns)}
)
"""Fields of records that older records lack; a record without one has None."""

CHUNK = 4096
"""Records that are made at once."""

_FIELDS = tuple(each.name for each in fields(RecordColumns))[:15]

_PLAIN = [
    *((name, np.int64) for name in ("sample", "label", "forward_passes", "backward_passes")),
    *((name, np.bool_) for name in ("within_budget", "goal_reached", "zero_gradient", "replayed")),
]


def _extras(records: Sequence[Record]) -> dict[str, list[str | None]]:
    found = {}
    for name in OPTIONAL_FIELDS:
        if any(getattr(record, name) is not None for record in records):
            values = (json.loads(record.to_json_line()).get(name) for record in records)
            found[name] = [None if value is None else json.dumps(value) for value in values]
    return found


def _ints(values: Iterable[int | None]) -> Ints:
    return np.array([NO_ORACLE_LABEL if each is None else each for each in values], np.int64)


def _outputs(outputs: Sequence[ModelOutput]) -> OutputColumns:
    return OutputColumns(
        np.array([each.prediction for each in outputs], np.int64),
        np.array([nan if each.score is None else each.score for each in outputs], float),
        np.array([-1 if each.accepted is None else each.accepted for each in outputs], np.int8),
    )


def _output_list(columns: OutputColumns) -> list[ModelOutput]:
    scores = (None if each != each else each for each in columns.score.tolist())  # nan
    flags = (_FLAGS[each] for each in columns.accepted.tolist())
    return list(map(ModelOutput, columns.prediction.tolist(), scores, flags))


def _with_extras(
    records: Iterable[Record], extras: Mapping[str, Sequence[str | None]]
) -> Iterator[Record]:
    for row, record in enumerate(records):
        found = {key: each[row] for key, each in extras.items()}
        yield record_with(record, {key: each for key, each in found.items() if each is not None})


@lru_cache(maxsize=2)
def _chunk(records: "Records", number: int) -> tuple[Record, ...]:
    """Return CHUNK records as they are: those that are read by index lie close to each other as a rule."""
    return tuple(records.columns.take(slice(number * CHUNK, (number + 1) * CHUNK)).records())


LOADED_ROWS = 1_000_000
"""Rows that are kept in memory after they were read from disk: about 150 MB."""

_loaded: "OrderedDict[Records, RecordColumns]" = OrderedDict()


class Records(Sequence[Record]):
    """Records, each made when it is needed; ``columns`` has all values as arrays.

    Args:
        count: how many there are.
        load: reads their columns; what was read last stays in memory, up to LOADED_ROWS.
        made: the records, if they are in memory already.
    """

    def __init__(
        self,
        count: int,
        load: Callable[[], RecordColumns],
        made: tuple[Record, ...] | None = None,
    ) -> None:
        self._count, self._load, self._made = count, load, made
        self._columns: RecordColumns | None = None

    @classmethod
    def of(cls, records: Iterable[Record]) -> "Records":
        """Return records of any kind as this kind."""
        if isinstance(records, Records):
            return records
        made = tuple(records)
        return cls(len(made), lambda: RecordColumns.of(made), made)

    @property
    def columns(self) -> RecordColumns:
        """The values as arrays.

        Raises:
            BadResults: if the file was changed since its digest was compared.
        """
        if self._made is not None:
            if self._columns is None:
                self._columns = self._load()
            return self._columns
        if self not in _loaded:
            _loaded[self] = self._load()
            while len(_loaded) > 1 and sum(map(len, _loaded)) > LOADED_ROWS:
                _loaded.popitem(last=False)
        _loaded.move_to_end(self)
        return _loaded[self]

    def by_sample(self) -> "Records":
        """Return the records in ascending order of sample id."""
        if self._made is not None:
            return Records.of(sorted(self._made, key=lambda record: record.sample))
        return Records(self._count, lambda: self._load().by_sample())

    def where(self, mask: Bools) -> "Records":
        """Return the records at which ``mask`` (n,) is true."""
        if self._made is not None:
            kept = zip(self._made, mask.tolist(), strict=True)
            return Records.of(record for record, keep in kept if keep)
        return Records(int(mask.sum()), lambda: self._load().take(mask))

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        if self._made is not None:
            return self._made[index]
        if isinstance(index, slice):
            return tuple(self.columns.take(index).records())
        number, place = divmod(range(self._count)[index], CHUNK)
        return _chunk(self, number)[place]

    def __iter__(self) -> Iterator[Record]:
        return iter(self._made) if self._made is not None else self.columns.records()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return self is other or (len(self) == len(other) and tuple(self) == tuple(other))

    __hash__ = object.__hash__

    def __add__(self, other: Iterable[Record]) -> "Records":
        return Records.of(chain(self, other))

    def __repr__(self) -> str:
        return f"Records({self._count})"


@lru_cache(maxsize=8)
def as_set(data: bytes) -> frozenset[int]:
    """Return sample ids as a set, the same for all cells that have the same samples."""
    return frozenset(np.frombuffer(data, np.int64).tolist())


@lru_cache(maxsize=8)
def as_array(ids: tuple[int, ...]) -> Ints:
    """Return sample ids as an array, the same for the same tuple."""
    return np.array(ids, np.int64)
