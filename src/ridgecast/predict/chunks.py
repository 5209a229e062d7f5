"""Chunks of a large table, worked on by all cores at once. Knows nothing of what a chunk is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from threading import Lock
from typing import TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["CHUNK", "on_all_cores", "parts_of"]

CHUNK = 16384
"""Rows at a time: enough for a call's fixed cost to vanish, few enough for a core's caches."""

_FIRST = 1024  # rows of the first chunk of several: it runs alone
T = TypeVar("T")
_ONE = Lock()


def parts_of(rows: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
    """Cut row numbers into chunks, a small one first."""
    first = _FIRST if len(rows) > CHUNK else len(rows)
    for start, end in pairwise([0, *range(first, len(rows), CHUNK), len(rows)]):
        yield rows[start:end]


def on_all_cores(work: Callable[[T], object], chunks: Iterable[T]) -> None:
    """Call `work` with each chunk: the first one alone, so that it loads what the others share.

    Every chunk then has one core: a BLAS with threads of its own would fight for the others.
    Raises what `work` raises first.
    """
    rest = iter(chunks)
    for first in rest:
        work(first)
        break
    for second in rest:
        from threadpoolctl import threadpool_limits

        # one table at a time: the limit is the process's, and restored to what it was
        with _ONE, threadpool_limits(1, user_api="blas"):
            with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                list(pool.map(work, chain((second,), rest)))
