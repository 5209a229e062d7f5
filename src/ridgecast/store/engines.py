"""Where many independent tasks run: processes of this machine, or a Ray cluster.

    outcomes(function, items)   one `Outcome` an item, as they end: its value, or why there is none

An engine never stops for one task: what raises, and what dies with its process or its node, is an
outcome too. Sweeps of the measuring harness and searches share it. Owns processes and retries;
knows nothing of what the tasks do, and keeps no file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ..errors import SpecError, unknown_name

__all__ = ["ENGINES", "Outcome", "check_engine", "outcomes", "processors", "tried"]

# name -> module with a function `run(function, items, workers, needs)`
ENGINES = {"local": "ridgecast.store.local_engine", "ray": "ridgecast.store.ray_engine"}

Task = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one item: its place among the items, its value, or the `error` as text."""

    index: int
    value: Any = None
    error: str = ""


def check_engine(name: str) -> str:
    """Return the name of an engine. Raises SpecError with the nearest names."""
    if name not in ENGINES:
        raise SpecError(unknown_name("engine", name, ENGINES, f"Allowed: {', '.join(ENGINES)}."))
    return name


def outcomes(
    function: Task,
    items: Iterable[Any],
    *,
    engine: str = "local",
    workers: int | None = None,
    needs: Mapping[str, float] | None = None,
) -> Iterator[Outcome]:
    """Run `function(item)` for each item and yield outcomes as they end, each item's once.

    `function` is one of a module, so that other processes can import it. `workers` tasks run at a
    time: by default as many as there are processors; 1 runs them in this process, one by one. For
    Ray, `needs` says what one task occupies (CPU, GPU, or node = 1: a node's processors; by default
    one CPU). Items are taken as they are needed.
    Raises SpecError for an unknown engine or a count below 1, MissingExtraError without the
    engine's library.
    """
    check_engine(engine)
    if workers is not None and (workers != int(workers) or workers < 1):
        raise SpecError(f"workers: got {workers!r}, need a whole number from 1")
    return import_module(ENGINES[engine]).run(function, items, workers, dict(needs or {}))


def tried(function: Task, index: int, item: Any) -> Outcome:
    """Call the function; what it raises becomes the outcome's error."""
    try:
        return Outcome(index, function(item))
    except Exception as error:  # any error of a task is that task's outcome
        return Outcome(index, error=f"{type(error).__name__}: {error}")


def processors() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
