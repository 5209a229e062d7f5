"""Conformance suites for authors of plugins; ridgecast runs them on its own parts.

Owns what an operation must keep to, beyond what types say. Needs no test framework: a breach
raises AssertionError with what was asked, what came, and what is needed.

    from ridgecast.testing import check_op

    def test_my_op():
        check_op("my_op")  # a name of the registry, or the class
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .dtypes import DTYPES
from .errors import SpecError
from .ops import Gemm, op_class
from .ops.base import FieldInfo, Op, Work, resident_of

__all__ = ["check_op"]

UNITS = {*DTYPES, "vector", "special", "integer"}
LINKS = {"peer", "network", "host"}
WORDS = ("choice", "format", "flag")
OTHER_FORMATS = ("fp32", "fp8_e4m3", "int8")
CITES = re.compile(r"arXiv|doi|https?://|et al|\b(19|20)\d\d\b")


def check_op(op: str | type[Any]) -> None:
    """Check an operation, given by its class or its name in the registry.

    Fields are described and the docstring cites something; the example runs; counts are finite,
    not negative, and of known units; scalars and columns agree row by row; doubling a size never
    lowers operations plus bytes, unless the class names it in `not_monotone`; bad values are
    refused with the name of their field, and mark only their own row of a table.

    Raises AssertionError for the first breach.

    >>> check_op("attention")
    """
    cls = op_class(op) if isinstance(op, str) else op
    if isinstance(op, str):
        _need(cls.name == op, f"{op}: its class is named {cls.name!r}")
    if cls is Gemm:
        return _check_gemm()
    _need(isinstance(cls, type) and issubclass(cls, Op), f"{cls!r} is no subclass of Op")
    _check_class(cls)
    for words in _word_variants(cls):
        ops = _samples(cls, words)
        for one in ops:
            _check_work(one)
        _check_monotone(cls, words)
        _check_columns(cls, ops)
    _check_refusals(cls)


def example_fields(cls: type[Op]) -> dict[str, Any]:
    """Fields that the words of the example give.

    >>> example_fields(op_class("attention"))["q_heads"]
    32
    """
    infos, fields = cls.infos(), dict[str, Any]()
    for word in cls.example.split():
        name, equals, text = word.partition("=")
        _need(equals == "=" and name in infos, f"{cls.name}.example: {word!r} is no field=value")
        kind = infos[name].kind
        try:
            fields[name] = text if kind in WORDS else int(text) if kind == "size" else float(text)
        except ValueError:
            raise AssertionError(f"{cls.name}.example: {word!r} is no {kind}") from None
    return fields


def _need(holds: Any, told: str) -> None:
    if not holds:
        raise AssertionError(told)


def _check_gemm() -> None:
    """GEMM predates the base class: it keeps the part that callers rely on."""
    one = Gemm(64, 32, 16)
    for name in ("flops", "bytes", "memory_bytes"):
        _need(getattr(one, name) > 0, f"gemm.{name}: got {getattr(one, name)}, need more than 0")
    try:
        Gemm(0, 1, 1)
    except SpecError as error:
        _need("gemm.m" in str(error), f"gemm: the message names no field: {error}")
    else:
        raise AssertionError("gemm.m: 0 is not refused")


def _check_class(cls: type[Op]) -> None:
    """Name, texts, descriptions and sources."""
    _need(re.fullmatch(r"[a-z][a-z0-9_]*", cls.name), f"name {cls.name!r}: need lower_snake_case")
    _need(cls.what and "\n" not in cls.what, f"{cls.name}.what: need one line that says what it is")
    parameters = vars(cls).get("__dataclass_params__")
    _need(parameters and parameters.frozen, f"{cls.name}: need @dataclass(frozen=True)")
    infos = cls.infos()
    bare = [f.name for f in dataclasses.fields(cls) if f.name not in infos]
    _need(not bare, f"{cls.name}: {bare} not made by size, share, number, choice, fmt or flag")
    silent = [name for name, info in infos.items() if not info.what.strip()]
    _need(not silent, f"{cls.name}: {silent} have no description")
    strange = [name for name in cls.not_monotone if name not in infos]
    _need(not strange, f"{cls.name}.not_monotone: {strange} are no fields")
    methods = [getattr(value, "__doc__", "") for value in vars(cls).values()]
    module = getattr(__import__(cls.__module__, fromlist=["_"]), "__doc__", "")
    texts = " ".join(text or "" for text in (cls.__doc__, module, *methods))
    _need(CITES.search(texts), f"{cls.name}: no docstring cites a source (authors, year, arXiv)")
    try:
        cls(**example_fields(cls))
    except SpecError as error:
        raise AssertionError(f"{cls.name}.example is refused: {error}") from error


def _word_variants(cls: type[Op]) -> Iterator[dict[str, Any]]:
    """Words other than the example's, one at a time; those that rules refuse are left out."""
    example = example_fields(cls)
    yield {}
    for name, info in cls.infos().items():
        options: tuple[Any, ...] = ()
        if info.kind == "format":
            options = OTHER_FORMATS
        elif info.kind == "choice":
            options = info.options
        elif info.kind == "flag":
            options = (True, False)
        for option in options:
            try:
                cls(**{**example, name: option})
            except SpecError:
                continue
            yield {name: option}


def _samples(cls: type[Op], words: Mapping[str, Any]) -> list[Op]:
    """Vary the example with these words: each size doubled, each share halved, where allowed."""
    fields = {**example_fields(cls), **words}
    ops: list[Op] = [cls(**fields)]
    for name, info in cls.infos().items():
        value: Any = getattr(ops[0], name)
        if info.kind in WORDS or value is None:
            continue
        changed: Any = 2 * value if info.kind == "size" else 0.5 * value
        try:
            ops.append(cls(**{**fields, name: changed}))
        except SpecError:
            continue
    return ops


def _terms(work: Work) -> dict[str, Any]:
    """Every count of a work by a name for messages."""
    found: dict[str, Any] = {f"flops[{unit}]": n for unit, n in work.flops.items()}
    found |= {f"links[{kind}]": n for kind, n in work.links.items()}
    found |= {f"hops[{kind}]": n for kind, n in work.hops.items()}
    for name in ("read", "written", "launches", "steps"):
        found[name] = getattr(work, name)
    if work.footprint is not None:
        found["footprint"] = work.footprint
    found["resident"] = resident_of(work)
    return found


def _check_work(op: Op) -> None:
    """Need counts that are finite, not negative and of known kinds."""
    work = op.work()
    strange = sorted({*work.flops} - UNITS | ({*work.links} | {*work.hops}) - LINKS)
    _need(not strange, f"{op}: {strange} are no units ({sorted(UNITS)}) or links ({sorted(LINKS)})")
    for name, value in _terms(work).items():
        _need(np.ndim(value) == 0, f"{op}: {name} is an array for scalar fields")
        _need(np.isfinite(value) and value >= 0, f"{op}: {name} is {value}, need 0 or more")
    if work.footprint is not None:
        told = f"{op}: footprint {work.footprint} exceeds the bytes moved {work.moved}"
        _need(work.footprint <= work.moved * (1 + 1e-9), told)


def _total(work: Work) -> float:
    """Operations plus bytes, of memory and links."""
    return float(work.all_flops) + float(work.moved) + sum(float(n) for n in work.links.values())


def _check_monotone(cls: type[Op], words: Mapping[str, Any]) -> None:
    """Doubling a size never lowers operations plus bytes."""
    fields = {**example_fields(cls), **words}
    base = cls(**fields)
    for name, info in cls.infos().items():
        if info.kind != "size" or name in cls.not_monotone:
            continue
        try:
            more = cls(**{**fields, name: 2 * getattr(base, name)})
        except SpecError:
            continue
        before, after = _total(base.work()), _total(more.work())
        told = f"{cls.name}.{name}: doubling it in {base} lowers operations plus bytes"
        _need(after >= before * (1 - 1e-12), f"{told} from {before:g} to {after:g}")


def _columns(cls: type[Op], ops: list[Op]) -> dict[str, Any]:
    """Scalars as the columns of a table; words are the same in all rows."""
    columns: dict[str, Any] = {}
    for name, info in cls.infos().items():
        values: list[Any] = [getattr(op, name) for op in ops]
        columns[name] = values[0] if info.kind in WORDS else np.array(values, np.float64)
    return columns


def _check_columns(cls: type[Op], ops: list[Op]) -> None:
    """Rows of a table have the counts of their scalars."""
    table, bad, reason = cls.of_columns(_columns(cls, ops), len(ops))
    _need(not bad.any(), f"{cls.name}: columns are refused where scalars are not: {reason[bad]}")
    together = _terms(table.work())
    for row, op in enumerate(ops):
        alone = _terms(op.work())
        for name in sorted(alone.keys() | together.keys()):  # a count that is not there is none
            value, column = alone.get(name, 0.0), np.asarray(together.get(name, 0.0))
            got = float(np.broadcast_to(column, (len(ops),))[row])
            same = np.isclose(got, value, rtol=1e-12, atol=0.0)
            _need(same, f"{op}: {name} is {value}, but {got} as row {row} of a table")


def _bad_values(info: FieldInfo) -> list[Any]:
    if info.kind in WORDS:
        return ["no_such_word"]
    bad: list[Any] = [float("nan"), "many", True]
    if np.isfinite(info.low):
        bad.append(0.0 if info.kind == "share" else int(info.low) - 1)
    if np.isfinite(info.high):
        bad.append(2 * info.high + 2)
    return [*bad, 1.5] if info.kind == "size" else bad


def _check_refusals(cls: type[Op]) -> None:
    """Bad values raise SpecError with the field's name; in a table they mark their row only."""
    example = example_fields(cls)
    for name, info in cls.infos().items():
        for value in _bad_values(info):
            try:
                cls(**{**example, name: value})
            except SpecError as error:
                told = f"{cls.name}.{name}: the message for {value!r} names no field: {error}"
                _need(f"{cls.name}.{name}" in str(error), told)
            else:
                raise AssertionError(f"{cls.name}.{name}: {value!r} is not refused")
        if info.kind not in WORDS and np.isfinite(info.low):
            _check_bad_row(cls, name, info)


def _check_bad_row(cls: type[Op], name: str, info: FieldInfo) -> None:
    one = cls(**example_fields(cls))
    columns = _columns(cls, [one, one])
    columns[name] = columns[name].copy()
    columns[name][0] = info.low - 1.0
    table, bad, reason = cls.of_columns(columns, 2)
    marked = bool(bad[0]) and not bool(bad[1]) and f"{cls.name}.{name}" in str(reason[0])
    _need(marked, f"{cls.name}.{name}: a bad row of a table marks {bad} with {reason[0]!r}")
    alone = _terms(one.work())
    for term, value in _terms(table.work()).items():
        got = float(np.broadcast_to(np.asarray(value), (2,))[1])
        want = alone.get(term, 0.0)
        same = np.isclose(got, want, rtol=1e-12, atol=0.0)
        _need(same, f"{cls.name}: {term} of a good row is {got} beside a bad one, not {want}")
