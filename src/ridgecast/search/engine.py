"""A function over many chunks of points: resumable, on this machine or on many.

    points -> chunks -> name of each: hash of (function, version, settings, seed, its points)
    chunks whose part is there are read, the others are evaluated; each result becomes a part

A part is there whole or not at all, so a run that was killed resumes with the same command, and
nothing is lost or repeated. A chunk that raises becomes rows with status "failed" and the reason;
it makes no part, so the next run tries it again. Knows nothing of what the function computes.
"""

from __future__ import annotations

import datetime
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..errors import SpecError, unknown_name
from ..store import Table, concat, length, select
from ..store.engines import check_engine, outcomes, processors
from ..store.parts import Parts, settled

__all__ = ["Function", "Progress", "run"]

Evaluate = Callable[..., Table]
_MOST_TEXT = 500  # characters of a reason


@dataclass(frozen=True, slots=True)
class Function:
    """What is evaluated: `reference` "module:function" with JSON `settings` as keyword arguments.

    `version` tells results of different code apart; by default that of ridgecast and a hash of the
    function's own file.
    """

    reference: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    version: str = ""

    def load(self) -> Evaluate:
        """Return the function. Raises SpecError when there is none of that name."""
        module, _, name = self.reference.partition(":")
        try:
            holder = vars(import_module(module)) if module and name else {}
        except ImportError as error:
            raise SpecError(f"function {self.reference!r}: {error}") from None
        found: Any = holder.get(name)
        if not callable(found):
            have = [n for n, value in holder.items() if callable(value)]
            step = "Write it as module:function."
            raise SpecError(unknown_name("function", self.reference, have, step))
        return cast("Evaluate", found)

    @classmethod
    def of(cls, given: str | Evaluate | Function) -> Function:
        """Take a reference, or a function that a module holds under its name.

        Raises SpecError for what no other process could import: lambdas, methods, partials (give
        their arguments as `settings`).
        """
        if isinstance(given, Function):
            found = given
        elif isinstance(given, str):
            found = cls(given)
        else:
            name = getattr(given, "__qualname__", "")
            found = cls(f"{getattr(given, '__module__', '')}:{name}")
            if not name.isidentifier() or found.load() is not given:
                raise SpecError(
                    f"function {given!r}: is no function of a module, so no other process could "
                    "import it; arguments that stay the same go into Function(..., settings)"
                )
        loaded = found.load()
        return found if found.version else cls(found.reference, found.settings, _version(loaded))


def _version(function: Evaluate) -> str:
    from .. import __version__

    try:
        source = Path(inspect.getsourcefile(function) or "").read_bytes()
    except (OSError, TypeError):
        source = b""
    return f"{__version__}-{hashlib.sha256(source).hexdigest()[:12]}"


@dataclass(frozen=True, slots=True)
class Progress:
    """Rows finished (read ones too) of all, and how many of them failed."""

    done: int
    total: int
    failed: int


def run(  # noqa: PLR0913 - what, where, how
    points: Table,
    evaluate: str | Evaluate | Function,
    *,
    out: str | os.PathLike[str] | None = None,
    engine: str = "local",
    chunk: int = 4096,
    workers: int | None = None,
    seed: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Table:
    """Evaluate every point; return the points' columns and the function's, in the points' order.

    `evaluate` takes a Table of up to `chunk` points and returns a Table of as many rows; with a
    `seed` also `rng`, a Generator seeded by it and by the chunk, whatever runs first. `out` is a
    folder or fsspec URL that keeps parts, None keeps none. `engine` and `workers` are those of
    `store.engines.outcomes`. Columns `status` ("ok" or "failed") and `reason` are added where the
    function gives none.
    Raises SpecError for an unknown engine, a function that cannot be imported, settings that are
    no JSON, and a chunk below 1.
    """
    check_engine(engine)
    if chunk != int(chunk) or chunk < 1:
        raise SpecError(f"chunk: got {chunk!r}, need a whole number of points from 1")
    function = Function.of(evaluate)
    points = settled(points)
    total = length(points)
    chunks = [select(points, np.arange(i, min(i + chunk, total))) for i in range(0, total, chunk)]
    names = _names(function, seed, chunks)
    parts = Parts(out) if out is not None else None
    found = _read(parts, names, chunks)
    first = {name: i for i, name in reversed(list(enumerate(names)))}  # equal chunks run once
    waiting = [i for name, i in sorted(first.items(), key=lambda item: item[1])
               if name not in found]  # fmt: skip
    if parts is not None and waiting:
        parts.note(f"search-{_digest(names)}.json", _about(function, seed, total, chunk))
    tell = _Teller(total, sum(length(found[n]) for n in names if n in found), progress)
    if engine == "local":  # no more processes than chunks
        workers = min(processors() if workers is None else workers, max(len(waiting), 1))
    items = ((function, chunks[i], seed, names[i]) for i in waiting)
    for outcome in outcomes(_evaluate, items, engine=engine, workers=workers):
        place = waiting[outcome.index]
        result = outcome.value or _failed(chunks[place], outcome.error)
        if parts is not None and not outcome.error:
            parts.write(names[place], result)
        found[names[place]] = result
        tell(length(result), bool(outcome.error))
    return concat([found[name] for name in names]) if names else dict(points)


def _evaluate(item: tuple[Function, Table, int | None, str]) -> Table:
    """One chunk, in whatever process: the points' columns, the result's, status and reason."""
    function, points, seed, name = item
    more: dict[str, Any] = dict(function.settings)
    if seed is not None:
        more["rng"] = np.random.default_rng([seed, int(name.rpartition("-")[2], 16)])
    result = function.load()(dict(points), **more)
    rows = length(points)
    if not isinstance(result, dict) or (result and length(result) != rows):
        got = f"{length(result)} rows" if isinstance(result, dict) else type(result).__name__
        raise SpecError(f"{function.reference} gave {got}, need a Table of {rows} rows")
    table = {**points, **settled(result)}
    table.setdefault("status", np.full(rows, "ok", dtype=object))
    table.setdefault("reason", np.full(rows, "", dtype=object))
    return table


def _failed(points: Table, error: str) -> Table:
    rows = length(points)
    reason = error[:_MOST_TEXT]
    return {**points, "status": np.full(rows, "failed", dtype=object),
            "reason": np.full(rows, reason, dtype=object)}  # fmt: skip


# ---------------------------------------------------------------------------------- identity


def _names(function: Function, seed: int | None, chunks: list[Table]) -> list[str]:
    """Name of each chunk's part; equal questions have equal names on any machine."""
    about = {"function": function.reference, "version": function.version, "seed": seed,
             "settings": dict(function.settings)}  # fmt: skip
    try:
        text = json.dumps(about, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SpecError(f"settings of {function.reference}: must be JSON values: {error}") from None
    return [f"part-{_digest([text, *_contents(chunk)])}" for chunk in chunks]


def _contents(points: Table) -> Iterator[str | bytes]:
    for name, column in points.items():
        yield f"\0{name}\0{column.dtype.kind}\0"
        if column.dtype.kind == "O":
            yield json.dumps(column.tolist())
        else:
            yield np.ascontiguousarray(column).astype(column.dtype.newbyteorder("<")).tobytes()


def _digest(pieces: list[str] | list[str | bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece if isinstance(piece, bytes) else piece.encode())
    return digest.hexdigest()[:20]


def _about(function: Function, seed: int | None, points: int, chunk: int) -> dict[str, Any]:
    """Say what a folder's reader wants to know of a search."""
    return {
        "schema_version": 1,
        "function": function.reference,
        "settings": dict(function.settings),
        "version": function.version,
        "seed": seed,
        "points": points,
        "chunk": chunk,
        "utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _read(parts: Parts | None, names: list[str], chunks: list[Table]) -> dict[str, Table]:
    """Parts that are there and fit their chunk; others are evaluated again."""
    if parts is None:
        return {}
    there = parts.names()
    read = parts.read(dict.fromkeys(name for name in names if name in there))
    rows = dict(zip(names, map(length, chunks), strict=True))
    return {name: table for name, table in read.items() if length(table) == rows[name]}


class _Teller:
    """Counts rows and tells of them."""

    def __init__(self, total: int, done: int, to: Callable[[Progress], None] | None) -> None:
        self._at, self._to = Progress(done, total, 0), to

    def __call__(self, rows: int, failed: bool) -> None:
        at = self._at
        self._at = Progress(at.done + rows, at.total, at.failed + rows * failed)
        if self._to:
            self._to(self._at)
