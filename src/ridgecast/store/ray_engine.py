"""Tasks on a Ray cluster; a node that dies costs nothing but the time of its tasks.

The cluster is the one that this process is connected to, else the one that RAY_ADDRESS names, else
one started on this machine. ridgecast must be installed on every node. Results come back to this
process, which alone writes files: nodes need no common disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import MissingExtraError
from .engines import Outcome, Task, tried

__all__ = ["run"]

_RETRIES = 8  # by Ray, of a task whose node or process died
_AGAIN = 2  # by us, after those
_AHEAD = 2  # tasks handed over for each that can run


def _ray_module() -> Any:
    """Return ray. Raises MissingExtraError when it is not installed."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError("the engine ray needs: pip install 'ridgecast[ray]'") from error
    return ray


def _node_processors(ray: Any) -> int:
    """Fewest processors that a living node has: nodes should be alike; 1 where none has any."""
    counts = [n["Resources"].get("CPU", 0) for n in ray.nodes() if n["Alive"]]
    return int(min((c for c in counts if c), default=1))


def run(
    function: Task, items: Iterable[Any], workers: int | None, needs: Mapping[str, float]
) -> Iterator[Outcome]:
    """Yield the outcome of each item; see `engines.outcomes`.

    A task that `needs` {"node": 1} has the processors of a node to itself.
    """
    return _run(_ray_module(), function, items, workers, needs)


def _run(
    ray: Any,
    function: Task,
    items: Iterable[Any],
    workers: int | None,
    needs: Mapping[str, float],
) -> Iterator[Outcome]:
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    try:
        asked = dict(needs) or {"CPU": 1.0}
        if asked.pop("node", 0.0):
            asked["CPU"] = float(_node_processors(ray))
        task = ray.remote(tried).options(
            num_cpus=asked.get("CPU", 0.0), num_gpus=asked.get("GPU", 0.0), max_retries=_RETRIES
        )
        yield from _drive(ray, task, function, items, (workers, asked))
    finally:
        if ours:
            ray.shutdown()


def _drive(
    ray: Any,
    task: Any,
    function: Task,
    items: Iterable[Any],
    limit: tuple[int | None, Mapping[str, float]],
) -> Iterator[Outcome]:
    queue = enumerate(items)
    running: dict[Any, tuple[int, Any, int]] = {}  # handle -> place, item, times handed over again
    while True:
        while len(running) < _window(ray, *limit):
            following = next(queue, None)
            if following is None:
                break
            running[task.remote(function, *following)] = (*following, 0)
        if not running:
            return
        ready, _ = ray.wait(list(running), num_returns=1)
        for handle in ready:
            index, item, times = running.pop(handle)
            try:
                outcome = ray.get(handle)
            except ray.exceptions.RayError as error:
                if times < _AGAIN:
                    running[task.remote(function, index, item)] = (index, item, times + 1)
                    continue
                first = (str(error).strip().splitlines() or [""])[0]
                outcome = Outcome(index, error=f"{type(error).__name__}: {first}")
            yield outcome


def _window(ray: Any, workers: int | None, needs: Mapping[str, float]) -> int:
    """How many tasks to have under way: those that can run now, and some to follow."""
    if workers:
        return workers
    have = ray.cluster_resources()
    fits = [have.get(name, 0.0) / amount for name, amount in needs.items() if amount > 0]
    return max(1, round(_AHEAD * min(fits, default=1.0)))
