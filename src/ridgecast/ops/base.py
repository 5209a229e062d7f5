"""What every operation is: checked fields, and the work that they ask for.

An operation is a frozen dataclass of sizes, shares, choices and formats. One value stands for one
operation (its fields are numbers) or for a column of them (arrays [rows]): formulas are written
once, with numpy. Knows no device, no kernel, no time. Imports only `dtypes` and `errors`.

    @dataclass(frozen=True)
    class Softmax(Op):
        rows: int = size("rows")
        ...
        def work(self) -> Work: ...
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from ..dtypes import DTYPES, dtype
from ..errors import SpecError, unknown_name

__all__ = ["Amount", "FieldInfo", "Op", "Rule", "Traits", "Work", "choice", "flag", "fmt", "number",
           "plain", "resident_of", "share", "size"]  # fmt: skip

F64 = npt.NDArray[np.float64]
Amount = float | F64
MAX_SIZE = 2**31 - 1
MAX_NUMBER = 1e18  # an exabyte
_KEY = "ridgecast"


@dataclass(frozen=True, slots=True)
class Work:
    """What has to be done; numbers, or arrays [rows] that broadcast against each other.

    `flops` counts operations by the unit that does them: the name of a format (multiply-adds of a
    matrix unit in that format, two operations each), "vector" (fp32 adds and multiplies on the
    lanes), "special" (exponentials, reciprocals, square roots), "integer".
    `read` and `written` are bytes that this variant moves between kernels and memory; bytes that
    stay on chip in it do not count. `footprint` are the distinct bytes among them (they may stay
    in cache from run to run), by default all. `resident` are the bytes held while it runs, by
    default the footprint. `launches` counts kernels, `steps` the dependent steps inside them that
    wait for memory or for each other (each costs a latency). `links` are bytes that each device
    sends over a kind of link ("peer": to devices of the same node, "network": to other nodes,
    "host"), `hops` the messages on the critical path by the same kinds.
    """

    flops: Mapping[str, Amount] = field(default_factory=dict[str, Amount])
    read: Amount = 0.0
    written: Amount = 0.0
    footprint: Amount | None = None
    resident: Amount | None = None
    launches: Amount = 1.0
    steps: Amount = 0.0
    links: Mapping[str, Amount] = field(default_factory=dict[str, Amount])
    hops: Mapping[str, Amount] = field(default_factory=dict[str, Amount])

    @property
    def moved(self) -> Amount:
        """Bytes read and written."""
        return self.read + self.written

    @property
    def matrix_flops(self) -> Amount:
        """Operations of matrix products, whatever their format; as torch's FlopCounter counts."""
        return sum((v for unit, v in self.flops.items() if unit in DTYPES), start=0.0)

    @property
    def all_flops(self) -> Amount:
        """Operations of all units together."""
        return sum(self.flops.values(), start=0.0)


@dataclass(frozen=True, slots=True)
class FieldInfo:
    """What a field holds: kind ("size", "share", "number", "choice", "format", "flag") and limits.

    `like` names the field whose value stands in where this one is not given (None).
    """

    kind: str
    what: str
    low: float = -np.inf
    high: float = np.inf
    options: tuple[str, ...] = ()
    like: str = ""

    @property
    def need(self) -> str:
        """What is allowed, in words."""
        if self.kind == "size":
            return f"an integer from {self.low:.0f} to {self.high:.0f}"
        if self.kind == "share":
            return "a share above 0, at most 1"
        if self.kind == "number":
            return f"a number from {self.low:g} to {self.high:g}"
        return ", ".join(self.options)

    def wrong(self, value: Any) -> Any:
        """Whether a number, or which numbers of an array, are not allowed."""
        v = np.asarray(value, np.float64)
        bad = ~((v >= self.low) & (v <= self.high) & np.isfinite(v))
        if self.kind == "size":
            bad |= v != np.floor(v)
        if self.kind == "share":
            bad |= ~(v > 0)
        return bad


@dataclass(frozen=True, slots=True)
class Rule:
    """A relation between fields: where `bad` (a boolean or one a row), `field` must be `need`."""

    field: str
    bad: Any
    need: str


def _field(default: Any, info: FieldInfo) -> Any:
    meta = {_KEY: info}
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


def size(
    what: str, default: Any = dataclasses.MISSING, *, low: int = 1, high: int = MAX_SIZE,
    like: str = "",
) -> Any:  # fmt: skip
    """Define a whole number; with `like`, the value of that field where it is not given."""
    return _field(None if like else default, FieldInfo("size", what, low, high, like=like))


def share(what: str, default: Any = dataclasses.MISSING) -> Any:
    """Define a number in (0, 1]."""
    return _field(default, FieldInfo("share", what, 0.0, 1.0))


def number(
    what: str, default: Any = dataclasses.MISSING, *, low: float = 0.0, high: float = MAX_NUMBER
) -> Any:
    """Define a real number between two ends, both allowed."""
    return _field(default, FieldInfo("number", what, low, high))


def choice(what: str, options: Sequence[str], default: Any = dataclasses.MISSING) -> Any:
    """Define one of several words."""
    return _field(default, FieldInfo("choice", what, options=tuple(options)))


def fmt(what: str, default: str = "bf16", *, like: str = "") -> Any:
    """Define a number format (`dtypes`); other spellings are understood."""
    names = tuple(DTYPES)
    return _field("" if like else default, FieldInfo("format", what, options=names, like=like))


def flag(what: str, default: bool = False) -> Any:
    """Define a yes or no."""
    return _field(default, FieldInfo("flag", what, options=("true", "false")))


_YES = {
    "1": True,
    "1.0": True,
    "0.0": False,
    "true": True,
    "yes": True,
    "0": False,
    "false": False,
    "no": False,
}


@dataclass(frozen=True, slots=True)
class Traits:
    """What learned times see of an operation beside its fields and its work; see `Op.traits`.

    `sizes`: positive numbers of the part that one device runs. `tallies`: counts that may each take
    a time of their own. `streams`: bytes that are read or written together. `padded`: products that
    are computed over those that are asked for, at a tile. `dealt`: blocks of a kernel that are
    dealt over the units, and the steps of each.
    """

    sizes: Mapping[str, Amount] = dataclasses.field(default_factory=dict[str, Amount])
    tallies: Mapping[str, Amount] = dataclasses.field(default_factory=dict[str, Amount])
    streams: Mapping[str, Amount] = dataclasses.field(default_factory=dict[str, Amount])
    padded: Mapping[str, Amount] = dataclasses.field(default_factory=dict[str, Amount])
    dealt: Mapping[str, tuple[Amount, Amount]] = dataclasses.field(
        default_factory=dict[str, tuple[Amount, Amount]]
    )


@dataclass(frozen=True)
class Op:
    """Base of all operations but GEMM, which has an engine of its own.

    Subclasses are frozen dataclasses whose fields are made by `size`, `share`, `number`, `choice`,
    `fmt` and `flag`; they set `name`, `what` and `example` (the words after `ridgecast predict`)
    and define `work`, and `rules` where fields bear on each other. A field `dtype` is the format
    that the operation computes in. `not_monotone` names sizes that may lower operations and bytes
    as they grow (`ridgecast.testing.check_op` asks it of all others).
    """

    name: ClassVar[str] = ""
    what: ClassVar[str] = ""
    example: ClassVar[str] = ""
    inexact: ClassVar[tuple[str, ...]] = ()
    """Variants that compute something else than the others, and so are no advice."""
    not_monotone: ClassVar[tuple[str, ...]] = ()
    streams: ClassVar[bool] = False
    """Whether it reads and writes arrays once in order, with little work on each element."""

    def __post_init__(self) -> None:
        infos = self.infos()
        for name, info in infos.items():
            object.__setattr__(self, name, self._scalar(name, info))
        self._fill_likes(infos)
        for rule in self.rules():
            if bool(np.any(rule.bad)):
                got = getattr(self, rule.field)
                raise SpecError(f"{self.name}.{rule.field}: got {got}, need {rule.need}")

    @classmethod
    def infos(cls) -> dict[str, FieldInfo]:
        """Fields by name, in the order of the constructor."""
        return {f.name: f.metadata[_KEY] for f in dataclasses.fields(cls) if _KEY in f.metadata}

    def rules(self) -> Iterator[Rule]:
        """Relations between fields; none by default."""
        return iter(())

    def work(self) -> Work:
        """Operations, bytes, launches and links."""
        raise NotImplementedError

    def counts(self) -> Mapping[str, Amount]:
        """Independent pieces of work, by kind: how well it can fill a machine; none by default."""
        return {}

    def settled(self) -> Self:
        """Return the operation with numbers that do nothing in it at 0; itself by default."""
        return self

    @cached_property
    def traits(self) -> Traits:
        """What learned times may rest on beside fields, work and `counts`; nothing by default."""
        return Traits()

    @property
    def flops(self) -> Amount:
        """Operations of matrix products; of the lanes where there are none."""
        w = self.work()
        return w.matrix_flops if any(u in DTYPES for u in w.flops) else w.all_flops

    @property
    def bytes(self) -> Amount:
        """Bytes that move between kernels and memory."""
        return self.work().moved

    @property
    def memory_bytes(self) -> Amount:
        """Bytes held while it runs."""
        return resident_of(self.work())

    def _scalar(self, name: str, info: FieldInfo) -> Any:
        value = getattr(self, name)
        if info.kind in ("choice", "format", "flag"):
            return self._word(name, info, value)
        if value is None and info.like:
            return None
        allowed = Integral if info.kind == "size" else Real
        fits = isinstance(value, allowed) and value is not True and value is not False
        if not fits or bool(info.wrong(value)):
            raise SpecError(f"{self.name}.{name}: got {value!r}, need {info.need}")
        plain_value: Any = value
        return int(plain_value) if info.kind == "size" else float(plain_value)

    @classmethod
    def _word(cls, name: str, info: FieldInfo, value: Any) -> Any:
        """One word in its usual spelling. Raises SpecError with the nearest three."""
        if info.kind == "flag":
            found = _YES.get(str(value).strip().lower())
            if found is None:
                raise SpecError(f"{cls.name}.{name}: got {value!r}, need true or false")
            return found
        text = str(value).strip() if value is not None else ""
        if not text and info.like:
            return ""
        if info.kind == "format":
            try:
                return dtype(text).name
            except SpecError as error:
                raise SpecError(f"{cls.name}.{name}: {error}") from None
        if text not in info.options:
            raise SpecError(unknown_name(f"{cls.name}.{name}", text, info.options))
        return text

    def _fill_likes(self, infos: Mapping[str, FieldInfo]) -> None:
        for name, info in infos.items():
            if info.like:
                value, other = getattr(self, name), getattr(self, info.like)
                if info.kind == "format":
                    value = value or other
                elif value is None:
                    value = other
                elif isinstance(value, np.ndarray):
                    given: F64 = np.asarray(value, np.float64)
                    value = np.where(np.isnan(given), other, given)
                object.__setattr__(self, name, value)

    @classmethod
    def of_columns(
        cls, columns: Mapping[str, Any], rows: int
    ) -> tuple[Self, npt.NDArray[np.bool_], npt.NDArray[np.object_]]:
        """Build the operation of a table: arrays [rows] for numbers, one word for the others.

        `columns` holds float arrays (NaN where a row leaves the default) and words; missing ones
        take their defaults. Returns it with which rows are bad, and why. Numbers of bad rows are
        replaced by the least allowed, so that formulas stay finite.
        Raises SpecError for a word that is not allowed, or a number that is needed everywhere.
        """
        infos = cls.infos()
        defaults = {f.name: f.default for f in dataclasses.fields(cls)}
        self = object.__new__(cls)
        bad, reason = np.zeros(rows, bool), np.full(rows, "", dtype=object)
        for name, info in infos.items():
            default = defaults[name]
            if info.kind in ("choice", "format", "flag"):
                given = columns.get(name)
                missing = given is None or given == ""
                value = cls._word(name, info, default if missing else given)
                object.__setattr__(self, name, value)
                continue
            value = cls._numbers(name, info, columns.get(name), default, rows)
            wrong = info.wrong(value) & ~(np.isnan(value) & bool(info.like))
            need = f"{cls.name}.{name}: got {{}}, need {info.need}"
            _mark(bad, reason, wrong, need, value)
            least = info.low if np.isfinite(info.low) and info.kind != "share" else 1.0
            object.__setattr__(self, name, np.where(wrong, max(least, 1.0), value))
        self._fill_likes(infos)
        with np.errstate(all="ignore"):
            for rule in self.rules():
                got = np.broadcast_to(np.asarray(getattr(self, rule.field)), (rows,))
                wrong = np.broadcast_to(np.asarray(rule.bad, bool), (rows,))
                need = f"{cls.name}.{rule.field}: got {{}}, need {rule.need}"
                _mark(bad, reason, wrong, need, got)
        if bad.any() and not bad.all():  # formulas then see good rows only
            good = int(np.flatnonzero(~bad)[0])
            for name, info in infos.items():
                if info.kind not in ("choice", "format", "flag"):
                    values = getattr(self, name)
                    object.__setattr__(self, name, np.where(bad, values[good], values))
        return self, bad, reason

    @classmethod
    def _numbers(cls, name: str, info: FieldInfo, given: Any, default: Any, rows: int) -> F64:
        needed = default is None or default is dataclasses.MISSING
        default = np.nan if needed else default
        if given is None:
            if needed and not info.like:
                raise SpecError(f"{cls.name}.{name}: not given; need {info.need} ({info.what})")
            return np.full(rows, float(default))
        values = np.asarray(given, np.float64)
        return np.where(np.isnan(values), float(default), values)


def _mark(
    bad: npt.NDArray[np.bool_], reason: npt.NDArray[np.object_], wrong: Any, told: str, got: Any
) -> None:
    """Mark rows that are wrong for the first time, with their reason."""
    for i in np.flatnonzero(np.asarray(wrong) & ~bad):
        cell = got[i]
        shown = f"{cell:g}" if isinstance(cell, float | np.floating) else str(cell)
        bad[i], reason[i] = True, told.format(shown)


def plain(value: Any) -> Amount:
    """Return a float where the value is one number, else float64 [rows]."""
    array = np.asarray(value, np.float64)
    return float(array) if array.ndim == 0 else array


def resident_of(work: Work) -> Amount:
    """Bytes held while work runs: as stated, else its footprint, else all that it moves."""
    if work.resident is not None:
        return work.resident
    return work.footprint if work.footprint is not None else work.moved
