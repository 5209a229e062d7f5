"""Blocks of a sweep file to points: grids, lists, random and Latin-hypercube samples.

Owns what a column of a block may be (one value, a list, a range, an expression of other columns)
and how the blocks draw from it. Knows no provider and no file.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..dtypes import dtype as find_dtype
from ..errors import SpecError, unknown_name
from . import expressions
from .base import Point
from .expressions import Expression

__all__ = ["BLOCKS", "IDENTITY", "MOST_POINTS", "Block", "expand", "read_block"]

BLOCKS = ("grid", "list", "random", "latin_hypercube")
MOST_POINTS = 1_000_000
IDENTITY = ("kernel", "m", "n", "k", "dtype", "batch", "layout", "cache", "pattern", "energy",
            "repeat")  # fmt: skip
_TEXT = ("kernel", "dtype", "layout", "cache", "pattern")
_LAYOUTS = ("nn", "nt", "tn", "tt")
_OWN = {"grid": ("where", "repeats"), "list": ("where", "repeats", "points"),
        "random": ("where", "repeats", "count"),
        "latin_hypercube": ("where", "repeats", "count")}  # fmt: skip
_RANGE = ("from", "to", "steps", "scale", "multiple")
_TRIES = 200  # draws per wanted point before constraints count as too tight
Columns = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Range:
    """Whole numbers from `low` to `high`, even in the value or in its logarithm."""

    low: int
    high: int
    steps: int = 0  # 0: every number between can be drawn
    log2: bool = False
    multiple: int = 1

    def at(self, share: float) -> int:
        """Return the number at a share of the way (0 to 1), a multiple that lies inside."""
        if self.log2:
            value = 2.0 ** (math.log2(self.low) * (1.0 - share) + math.log2(self.high) * share)
        else:
            value = self.low + (self.high - self.low) * share
        least, most = self._multiples()
        return min(max(round(value / self.multiple), least), most) * self.multiple

    def draw(self, share: float) -> int:
        """Return the number of a share (0 to below 1); each multiple has its part of them."""
        if self.log2:
            return self.at(share)
        least, most = self._multiples()
        return (least + int(share * (most - least + 1))) * self.multiple

    def _multiples(self) -> tuple[int, int]:
        return -(-self.low // self.multiple), self.high // self.multiple

    def values(self) -> list[int]:
        """Return the steps, without repeats."""
        shares = [i / (self.steps - 1) for i in range(self.steps)] if self.steps > 1 else [0.0]
        return list(dict.fromkeys(self.at(share) for share in shares))


@dataclass(frozen=True, slots=True)
class Axis:
    """What varies as one: a column, or m, n and k of a shape; a list of choices or a range."""

    field: str
    choices: tuple[Columns, ...] = ()
    span: Range | None = None
    name: str = ""

    def at(self, share: float) -> Columns:
        """Columns at a share (0 to below 1) of the axis."""
        if self.span is not None:
            return {self.name: self.span.draw(share)}
        return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]

    def all(self) -> tuple[Columns, ...]:
        """Every choice. Raises SpecError for a range without steps."""
        if self.span is None:
            return self.choices
        raise SpecError(f"{self.field}: a range in a grid needs steps, such as steps = 7")


@dataclass(frozen=True, slots=True)
class Block:
    """One block: its axes, columns computed from others, constraints, how many points to draw.

    `repeats` measures every point that often, in as many passes over the block.
    """

    kind: str
    field: str
    axes: tuple[Axis, ...]
    computed: tuple[tuple[str, Expression], ...]
    where: tuple[Expression, ...]
    count: int = 0
    repeats: int = 1


def read_block(kind: str, table: Any, field: str, columns: Collection[str]) -> Block:
    """Check a block and read it; `columns` are the configuration columns that are known.

    Raises SpecError with the field path for an unknown key or a value of the wrong kind.
    """
    if not isinstance(table, Mapping):
        raise SpecError(f"{field}: need a table of columns")
    names = (*IDENTITY, *columns)
    allowed = ("shape", *names, *_OWN[kind])
    for key in table:
        if key not in allowed:
            raise SpecError(f"{field}.{key}: {unknown_name('key', key, allowed)}")
    axes: list[Axis] = []
    computed: list[tuple[str, Expression]] = []
    for key, value in table.items():
        here = f"{field}.{key}"
        if key in _OWN[kind]:
            continue
        if isinstance(value, str) and key not in (*_TEXT, "shape"):
            computed.append((key, expressions.parse(value, names, field=here)))
        else:
            axes.append(_axis(key, value, here))
    if "repeats" in table and "repeat" in table:
        raise SpecError(f"{field}.repeat: repeats = 3 stands for repeat = [0, 1, 2]; give one")
    if kind == "list":
        axes.insert(0, _points_axis(table.get("points"), f"{field}.points", names))
    _once(axes, computed, field)
    where = table.get("where", [])
    where = [where] if isinstance(where, str) else where
    if not (isinstance(where, list) and all(isinstance(w, str) for w in where)):
        raise SpecError(f'{field}.where: need an expression or a list of them: ["tile <= m"]')
    parsed = [expressions.parse(w, names, field=f"{field}.where[{i}]") for i, w in enumerate(where)]
    count = 0
    if kind in ("random", "latin_hypercube"):
        count = _whole(table.get("count"), f"{field}.count", 1)
    repeats = _whole(table.get("repeats", 1), f"{field}.repeats", 1)
    return Block(kind, field, tuple(axes), tuple(computed), tuple(parsed), count, repeats)


def _once(axes: Sequence[Axis], computed: Sequence[tuple[str, Expression]], field: str) -> None:
    seen: set[str] = set()
    for axis in axes:
        names = {axis.name} if axis.span else {name for c in axis.choices for name in c}
        for name in sorted(names & seen):
            raise SpecError(f"{field}.{name}: is given twice (shape stands for m, n and k)")
        seen |= names
    for name, _ in computed:
        if name in seen:
            raise SpecError(f"{field}.{name}: is given twice (shape stands for m, n and k)")
        seen.add(name)


def _axis(key: str, value: Any, field: str) -> Axis:
    """Axis of one key: a value, a list of values, or a range."""
    if isinstance(value, Mapping):
        span = _range(value, field)
        if span.steps:
            return Axis(field, tuple({key: v} for v in span.values()))
        return Axis(field, (), span, key)
    plain_shape = key == "shape" and isinstance(value, list) and _is_sizes(value)
    values = value if isinstance(value, list) and not plain_shape else [value]
    if not values:
        raise SpecError(f"{field}: an empty list leaves no point")
    return Axis(field, tuple(_cell(key, v, field) for v in values))


def _cell(key: str, value: Any, field: str) -> Columns:
    """Columns of one value of a key."""
    if key == "shape":
        parts = value if isinstance(value, list) else str(value).lower().split("x")
        try:
            sizes = [int(part) for part in parts]
        except (TypeError, ValueError):
            sizes = []
        if len(sizes) != 3:
            raise SpecError(f'{field}: got {value!r}, need "MxNxK" or [m, n, k]')
        return dict(zip("mnk", sizes, strict=True))
    if key in _TEXT:
        if not (isinstance(value, str) and value):
            raise SpecError(f"{field}: got {value!r}, need a name in quotes")
        return {key: value}
    if key == "energy":
        if not isinstance(value, bool):
            raise SpecError(f"{field}: got {value!r}, need true or false")
        return {key: value}
    return {key: _whole(value, field, 0)}


def _is_sizes(value: list[Any]) -> bool:
    return len(value) == 3 and all(isinstance(v, int) and not isinstance(v, bool) for v in value)


def _whole(value: Any, field: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        got = "nothing" if value is None else repr(value)
        raise SpecError(f"{field}: got {got}, need a whole number from {least}")
    return value


def _range(table: Mapping[str, Any], field: str) -> Range:
    for key in table:
        if key not in _RANGE:
            raise SpecError(f"{field}.{key}: {unknown_name('key', key, _RANGE)}")
    low = _whole(table.get("from"), f"{field}.from", 0)
    high = _whole(table.get("to"), f"{field}.to", low)
    scale = table.get("scale", "linear")
    if scale not in ("linear", "log2"):
        raise SpecError(f"{field}.scale: {unknown_name('scale', str(scale), ('linear', 'log2'))}")
    if scale == "log2" and low < 1:
        raise SpecError(f"{field}.from: got {low}, a logarithmic range begins at 1 or above")
    multiple = _whole(table.get("multiple", 1), f"{field}.multiple", 1)
    if high // multiple < -(-low // multiple):
        raise SpecError(f"{field}: no multiple of {multiple} lies from {low} to {high}")
    steps = _whole(table["steps"], f"{field}.steps", 1) if "steps" in table else 0
    return Range(low, high, steps, scale == "log2", multiple)


def _points_axis(points: Any, field: str, names: Sequence[str]) -> Axis:
    """Return the axis of a list block: one choice of several columns for each point."""
    if not (isinstance(points, list) and points):
        raise SpecError(f"{field}: need a list of tables: points = [{{m = 64, n = 64, k = 64}}]")
    found: list[Columns] = []
    for i, point in enumerate(points):
        here = f"{field}[{i}]"
        if not isinstance(point, Mapping):
            raise SpecError(f"{here}: need a table such as {{m = 64, n = 64, k = 64}}")
        merged: Columns = {}
        for key, value in point.items():
            if key not in ("shape", *names):
                raise SpecError(f"{here}.{key}: {unknown_name('key', key, ('shape', *names))}")
            if isinstance(value, list) and not _is_sizes(value):
                raise SpecError(f"{here}.{key}: one value a point; lists belong into a grid")
            merged |= _cell(key, value, f"{here}.{key}")
        found.append(merged)
    return Axis(field, tuple(found))


# ------------------------------------------------------------------------------------ drawing


def expand(block: Block, rng: np.random.Generator) -> tuple[list[Point], int]:
    """Points of a block, pass by pass, and how many of a grid or a list its constraints left out.

    Raises SpecError when the constraints are too tight, or a grid has over a million points.
    """
    points, excluded = _once_over(block, rng)
    passes = [points] + [[replace(p, repeat=i) for p in points] for i in range(1, block.repeats)]
    return [point for one in passes for point in one], excluded * block.repeats


def _once_over(block: Block, rng: np.random.Generator) -> tuple[list[Point], int]:
    """Points of one pass in order, and how many of a grid or a list its constraints left out.

    Random blocks draw until `count` different points meet the constraints. A Latin hypercube
    (McKay, Beckman and Conover 1979) has one draw in each of `count` equal shares of every axis;
    where constraints (or rounding, time and again) leave too few, a larger one is drawn and
    `count` of its points are kept at random.
    """
    if block.kind in ("grid", "list"):
        size = math.prod(len(axis.all()) for axis in block.axes)
        if size > MOST_POINTS:
            raise SpecError(f"{block.field}: {size} points, at most {MOST_POINTS}; draw at random")
        kept = [p for p in _accepted(block, itertools.product(*(a.all() for a in block.axes)))]
        return kept, size - len(kept)
    draw = _random if block.kind == "random" else _latin_hypercube
    found: dict[str, Point] = {}
    tried, size = 0, block.count
    while len(found) < block.count:
        if tried > _TRIES * block.count:
            raise SpecError(
                f"{block.field}: only {len(found)} different points of {block.count} meet the "
                f"constraints in {tried} draws; loosen `where`, widen the ranges or lower `count`"
            )
        drawn = list(_accepted(block, draw(block, size, rng)))
        tried += size
        fresh = {p.key: p for p in drawn}
        if block.kind == "random":
            found |= {key: p for key, p in fresh.items() if key not in found}
        else:
            # without constraints two shares were rounded to one point: another draw may not
            found, size = fresh, size if not block.where and tried < 20 * size else 2 * size
    points = list(found.values())
    if len(points) > block.count and block.kind == "latin_hypercube":
        order = rng.permutation(len(points))[: block.count]
        points = [points[i] for i in sorted(order)]
    return points[: block.count], 0


def _random(block: Block, size: int, rng: np.random.Generator) -> Iterator[tuple[Columns, ...]]:
    for shares in rng.random((size, len(block.axes))):
        yield tuple(axis.at(float(u)) for axis, u in zip(block.axes, shares, strict=True))


def _latin_hypercube(
    block: Block, size: int, rng: np.random.Generator
) -> Iterator[tuple[Columns, ...]]:
    strata = np.stack([rng.permutation(size) for _ in block.axes], axis=1)
    for shares in (strata + rng.random(strata.shape)) / size:
        yield tuple(axis.at(float(u)) for axis, u in zip(block.axes, shares, strict=True))


def _accepted(block: Block, drawn: Iterator[tuple[Columns, ...]]) -> Iterator[Point]:
    """Points that meet the constraints, with their computed columns filled in."""
    for parts in drawn:
        columns: Columns = {**_DEFAULTS, **{k: v for part in parts for k, v in part.items()}}
        _compute(block, columns)
        if all(_holds(block, where, columns) for where in block.where):
            yield _point(block, columns)


_DEFAULTS: Columns = {"n": 1, "k": 1, "batch": 1, "dtype": "fp32", "layout": "nn", "cache": "hot",
                      "pattern": "normal", "energy": False, "repeat": 0}  # fmt: skip


def _compute(block: Block, columns: Columns) -> None:
    """Fill in computed columns, those that need other computed ones last."""
    waiting = dict(block.computed)
    for name in waiting:
        columns.pop(name, None)
    while waiting:
        ready = [name for name, e in waiting.items() if not e.names & set(waiting)]
        if not ready:
            raise SpecError(f"{block.field}: {', '.join(waiting)} are computed from one another")
        for name in ready:
            value = _valued(f"{block.field}.{name}", waiting.pop(name), columns)
            if not (isinstance(value, int | float) and math.isfinite(value) and value % 1 == 0):
                raise SpecError(f"{block.field}.{name}: got {value!r}, need a whole number")
            columns[name] = int(value)


def _valued(field: str, expression: Expression, columns: Columns) -> Any:
    try:
        return expression.value(columns)
    except SpecError as error:
        raise SpecError(f"{field}: {error}") from None


def _holds(block: Block, where: Expression, columns: Columns) -> bool:
    return bool(_valued(f"{block.field}.where", where, columns))


def _point(block: Block, columns: Columns) -> Point:
    for name in ("kernel", "m"):
        if name not in columns:
            raise SpecError(f"{block.field}: no {name} is given")
    if columns["layout"] not in _LAYOUTS:
        raise SpecError(
            f"{block.field}.layout: {unknown_name('layout', columns['layout'], _LAYOUTS)}"
        )
    fixed = {name: columns[name] for name in IDENTITY}
    config = {name: value for name, value in columns.items() if name not in IDENTITY}
    try:
        return Point(**{**fixed, "dtype": find_dtype(fixed["dtype"]).name}, config=config)
    except SpecError as error:
        raise SpecError(f"{block.field}: {error}") from None
