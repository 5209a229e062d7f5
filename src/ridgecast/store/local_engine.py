"""Tasks in processes of this machine; a process that dies costs its own task alone.

Processes are started afresh (spawn): copies of a process that has threads may hang. They end with
the process that started them, however it ends.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any

from .engines import Outcome, Task, processors, tried

__all__ = ["run"]

_AHEAD = 2  # tasks handed to the pool for each process, so that none waits for the next
_DIED = "its process died twice (killed, out of memory, or a crash in compiled code)"


def run(
    function: Task, items: Iterable[Any], workers: int | None, needs: Mapping[str, float]
) -> Iterator[Outcome]:
    """Yield the outcome of each item; see `engines.outcomes`. Each task occupies one process."""
    del needs
    count = workers or processors()
    if count == 1:
        return (tried(function, i, item) for i, item in enumerate(items))
    return _pooled(function, items, count)


def _pooled(function: Task, items: Iterable[Any], workers: int) -> Iterator[Outcome]:
    queue = enumerate(items)
    pool = _pool(workers)
    running: dict[Future[Outcome], tuple[int, Any]] = {}
    try:
        while True:
            broken = not _fill(pool, function, queue, running, workers * _AHEAD)
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                if isinstance(future.exception(), BrokenProcessPool):
                    broken = True
                else:
                    yield _outcome(future, running.pop(future)[0])
            if broken:  # all that were under way are lost, and any of them may be the culprit
                pool.shutdown(wait=False, cancel_futures=True)
                suspects, running = running, {}
                for future, (index, item) in suspects.items():
                    safe = future.done() and not isinstance(future.exception(), BrokenProcessPool)
                    yield _outcome(future, index) if safe else _alone(function, index, item)
                pool = _pool(workers)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _fill(
    pool: ProcessPoolExecutor,
    function: Task,
    queue: Iterator[tuple[int, Any]],
    running: dict[Future[Outcome], tuple[int, Any]],
    most: int,
) -> bool:
    """Hand tasks to the pool; whether it took them all."""
    while len(running) < most:
        task = next(queue, None)
        if task is None:
            return True
        try:
            running[pool.submit(tried, function, *task)] = task
        except BrokenProcessPool as error:
            lost: Future[Outcome] = Future()
            lost.set_exception(error)
            running[lost] = task
            return False
    return True


def _alone(function: Task, index: int, item: Any) -> Outcome:
    """Run one task in a process of its own: when that dies too, the task is to blame."""
    with _pool(1) as pool:
        future = pool.submit(tried, function, index, item)
        if isinstance(future.exception(), BrokenProcessPool):
            return Outcome(index, error=_DIED)
        return _outcome(future, index)


def _outcome(future: Future[Outcome], index: int) -> Outcome:
    """Outcome of a task that ended; what could not be sent back or left the process is an error."""
    error = future.exception()
    return Outcome(index, error=f"{type(error).__name__}: {error}") if error else future.result()


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start)


def _start() -> None:
    """In a new process: leave Ctrl-C to the parent, and end when the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
