"""A sweep over many devices at once: points go out in batches, rows come back to one writer.

    here      lock, resume, batches of waiting points, every row on the disk as its batch ends
    there     a session on that device (probe, meter, environment), then protocol.measure_point

A batch whose node dies is measured again elsewhere; none of its rows had been written, so none is
lost or twice. Devices of one sweep must be alike in all but their serial number. Owns no device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import MeasurementError, SpecError
from ..store.engines import check_engine, outcomes
from .base import Point
from .interrupts import Interrupts
from .plan import Plan
from .record import Environment, admit
from .session import find_provider, open_session
from .shards import ShardWriter
from .sweep import Options, Progress, Result, Run

__all__ = ["BATCH", "measure_batch", "run_spread"]

BATCH = 8  # points of a task: opening a session is shared, little is lost with a node
_ON_GPU = ("cuda", "cutlass", "torch", "triton")  # one task a GPU; others have a node to themselves
_TOUCHES_NOTHING = ("replay",)

Work = tuple[Plan, tuple[tuple[Point, int], ...]]  # points with the number of their attempt


def run_spread(
    plan: Plan,
    out: str | Path,
    *,
    engine: str = "ray",
    workers: int | None = None,
    options: Options | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Measure what is not finished of a plan on every device of an engine, into one folder.

    As `run_sweep`, with the provider that the plan names, built where it runs. A batch that could
    not be measured at all gives rows with status "failed" and the reason.
    Raises SpecError for a plan without provider and for a budget, which needs one device's clock;
    MeasurementError when the devices are not alike, or are not those of the folder's results.
    """
    options, folder = options or Options(), Path(out)
    check_engine(engine)
    provider = find_provider(plan).name
    if options.budget is not None:
        raise SpecError(f"budget: the engine {engine} measures all points; leave the budget out")
    begun = time.monotonic()
    with (
        Interrupts() as interrupts,
        ShardWriter(folder, rows=options.shard_rows, seconds=options.shard_seconds) as writer,
    ):
        writer.record_order(plan.points)
        run = Run(plan, folder, options)
        run.resume()
        batches = list(_batches(plan, run, begun))
        known: set[str] = set()
        needs = _needs(provider)
        for outcome in outcomes(
            measure_batch, batches, engine=engine, workers=workers, needs=needs
        ):
            record, rows = outcome.value or (None, _failed(batches[outcome.index], outcome.error))
            if record is not None and record["environment"] not in known:
                admit(folder, record, mix=options.mix, apart=("device.uuid",))
                Environment(record["environment"], record).write(folder)
                known.add(record["environment"])
            for (point, _), row in zip(batches[outcome.index][1], rows, strict=True):
                with interrupts.held():
                    writer.append(row)
                run.told(point, row, float(row.get("elapsed_s") or 0.0))
                if progress:
                    progress(run.progress(row, time.monotonic() - begun))
    shown = ", ".join(sorted(known))
    return run.result((shown, provider, f"engine {engine}"), time.monotonic() - begun)


def measure_batch(work: Work) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measure points here: the environment's record and their rows.

    Raises MeasurementError when the provider cannot run here.
    """
    plan, points = work
    session = open_session(plan, find_provider(plan))
    if any(point.energy for point, _ in points):
        session = session.with_idle()
    rows: list[dict[str, Any]] = []
    for i, (point, attempt) in enumerate(points):
        try:
            rows.append(session.row(point, attempt))
        except MeasurementError as error:  # the device is lost; what was measured is not
            rows += _failed((plan, points[i:]), str(error))
            break
    return dict(session.environment.record), rows


def _batches(plan: Plan, run: Run, begun: float) -> Iterator[Work]:
    """Yield the waiting points in the order of measuring, a batch at a time."""
    short = replace(plan, points=())
    waiting = list(run.waiting(begun))
    for i in range(0, len(waiting), BATCH):
        yield short, tuple((point, run.attempt(point)) for point in waiting[i : i + BATCH])


def _needs(provider: str) -> dict[str, float]:
    if provider in _TOUCHES_NOTHING:
        return {"CPU": 1.0}
    return {"GPU": 1.0} if provider in _ON_GPU else {"node": 1.0}


def _failed(work: Work, error: str) -> list[dict[str, Any]]:
    """Rows of a batch that no device measured."""
    return [
        {**point.columns(), "point": point.key, "attempt": attempt, "status": "failed",
         "valid": False, "reason": error}
        for point, attempt in work[1]
    ]  # fmt: skip
