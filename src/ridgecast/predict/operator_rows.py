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
    values: dict[str, list[str]] = {}
    for name in names:
        codes, found = factorize(np.asarray(table[name])[rows])
        values[name] = [text_of(v) for v in found]
        code = code * len(found) + codes
    for one in np.unique(code):
        at = np.flatnonzero(code == one)
        rest, words = int(one), dict[str, str]()
        for name in reversed(names):
            rest, index = divmod(rest, len(values[name]))
            words[name] = values[name][index]
        for start in range(0, len(at), most):
            yield _part(cls, table, rows[at[start : start + most]], words)


def text_of(value: Any) -> str:
    """Return a cell as text; "" where it is missing."""
    return "" if value is None or (isinstance(value, float) and np.isnan(value)) else str(value)


def _part(cls: type[Op], table: Mapping[str, Any], rows: I64, words: dict[str, str]) -> Part:
    columns: dict[str, Any] = dict(words)
    some: Table = {}
    for name, info in cls.infos().items():
        if info.kind not in ("choice", "format", "flag") and name in table:
            some[name] = np.asarray(table[name])[rows]
    nothing = np.zeros(len(rows), bool)
    try:
        columns |= {name: numeric(some, name)[0] for name in some}
        op, bad, reason = cls.of_columns(columns, len(rows))
    except SpecError as error:
        return Part(rows, None, ~nothing, str(error), words)
    except RidgecastError as error:
        return Part(rows, None, nothing, str(error), words)
    return Part(rows, op, bad, reason, words)
