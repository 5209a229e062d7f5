"""From rows of a table to columns of operations: rows that share their words, built at once.

Owns the reading of an operation's fields from table columns. Bad rows keep their reason and stop
nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import RidgecastError, SpecError
from ..ops.base import Op
from ..store.tables import Table, factorize, numeric

__all__ = ["Part", "op_parts", "text_of", "word_fields"]

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Part:
    """Rows [positions in the table] of one operation whose words agree.

    `op` holds arrays over `rows`; it is None where its words are refused, `reason` then says why
    for all, else for each row that `bad` marks.
    """

    rows: I64
    op: Op | None
    bad: npt.NDArray[np.bool_]
    reason: npt.NDArray[np.object_] | str
    words: Mapping[str, str]


def word_fields(cls: type[Op]) -> list[str]:
    """Names of the fields that hold words."""
    return [n for n, i in cls.infos().items() if i.kind in ("choice", "format", "flag")]


def op_parts(
    cls: type[Op], table: Mapping[str, Any], rows: I64, extra: tuple[str, ...] = (), *,
    most: int = 2**62,
) -> Iterator[Part]:  # fmt: skip
    """Split `rows` of a table by the words of `cls`, by the text columns `extra`, `most` a part."""
    names = [n for n in (*word_fields(cls), *extra) if n in table]
    code = np.zeros(len(rows), np.int64)
    for name in names:
        codes, found = factorize(np.asarray(table[name])[rows])
        _, code = np.unique(code * len(found) + codes, return_inverse=True)
    order = np.argsort(code, kind="stable")
    for at in np.split(order, np.flatnonzero(np.diff(code[order])) + 1):
        first = rows[at[0]]
        words = {name: text_of(np.asarray(table[name])[first]) for name in names}
        for start in range(0, len(at), most):
            yield _part(cls, table, rows[at[start : start + most]], words)


def text_of(value: Any) -> str:
    """Return a cell as text; "" where it is missing."""
    if value is None or str(value) in ("nan", "NaN", "NaT", "<NA>", "None"):
        return ""
    return str(value)


def _part(cls: type[Op], table: Mapping[str, Any], rows: I64, words: dict[str, str]) -> Part:
    columns: dict[str, Any] = dict(words)
    some: Table = {}
    for name, info in cls.infos().items():
        if info.kind not in ("choice", "format", "flag") and name in table:
            some[name] = np.asarray(table[name])[rows]
    nothing = np.zeros(len(rows), bool)
    unread: list[tuple[str, npt.NDArray[np.bool_]]] = []
    try:
        for name in some:
            columns[name], wrong = numeric(some, name)
            if wrong.any():
                unread.append((name, wrong))
        op, bad, reason = cls.of_columns(columns, len(rows))
        for name, wrong in unread:
            need = cls.infos()[name].need
            for i in np.flatnonzero(wrong):
                reason[i] = f"{cls.name}.{name}: got {some[name][i]!r}, need {need}"
            bad = bad | wrong
    except SpecError as error:
        return Part(rows, None, ~nothing, str(error), words)
    except RidgecastError as error:
        return Part(rows, None, nothing, str(error), words)
    return Part(rows, op, bad, reason, words)
