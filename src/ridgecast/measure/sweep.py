"""Run a plan: resumable after a kill at any moment, within a budget, one writer a folder.

    open      take the folder's lock, fold a killed run's journal, refuse another environment
    choose    what is not finished, in order; with a budget the most informative points first
    measure   protocol.measure_point; every outcome is a row, on the disk before the next point
    close     last shard, lock given back; SIGTERM and Ctrl-C end the run between two writes

Owns the loop. Knows no device and no file format.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .base import DeviceInfo, Meter, Point, Provider
from .durations import Durations
from .interrupts import Interrupts
from .plan import Plan
from .record import admit
from .sampling import choose, in_order, point_features
from .session import open_session
from .shards import ShardWriter, finished_points

__all__ = ["DryRun", "Options", "Progress", "Result", "Run", "dry_run", "run_sweep"]

_TOGETHER = 8  # points chosen at once under a budget


@dataclass(frozen=True, slots=True)
class Options:
    """How to run: `budget` in s (None: all points), shards by count and seconds.

    `retry_failed` measures failed and refused points again; `mix` lets results of another
    environment into one folder.
    """

    budget: float | None = None
    retry_failed: bool = False
    mix: bool = False
    shard_rows: int = 20
    shard_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class Progress:
    """After a point: points finished of all, the row, seconds since the start and to the end."""

    done: int
    total: int
    row: Mapping[str, Any]
    elapsed: float
    eta: float


@dataclass(frozen=True, slots=True)
class Result:
    """What a run did: points by status, those found finished and those left, and why it ended."""

    out: Path
    environment: str
    provider: str
    device: str
    points: int
    finished_before: int
    ok: int
    invalid: int  # of the ok ones, rows that broke a rule of the protocol
    failed: int
    refused: int
    remaining: int
    elapsed: float  # s
    ended_by: str  # "done" or "budget"
    duplicates: int
    excluded: int


@dataclass(frozen=True, slots=True)
class DryRun:
    """What a run would do: points, those finished, those refused, and its expected duration [s].

    `duration` learns from the rows that the folder has; `longest` is with every cap used up.
    """

    points: int
    finished: int
    refused: Mapping[str, int]
    duration: float
    longest: float
    duplicates: int
    excluded: int
    kernels: Mapping[str, int]
    note: str


def dry_run(plan: Plan, out: str | Path | None = None, *, provider: Provider) -> DryRun:
    """Tell what `run_sweep` would do; touches the device no further than the provider's probe."""
    probe = provider.probe()
    note = "" if probe.ok else f"provider {provider.name} cannot run here: {probe.reason}"
    durations = Durations(plan.points, probe.device, plan.protocol)
    finished = finished_points(out) if out else {}
    for point in plan.points:
        durations.told(point, finished.get(point.key, {}))
    waiting = [point for point in plan.points if point.key not in finished]
    refused: dict[str, int] = {}
    able: list[Point] = []
    for point in waiting:
        reason = provider.refusal(point) if probe.ok else ""
        if reason:
            refused[reason] = refused.get(reason, 0) + 1
        else:
            able.append(point)
    kernels = {p.kernel: 0 for p in plan.points}
    for point in plan.points:
        kernels[point.kernel] += 1
    return DryRun(
        points=len(plan.points),
        finished=len(plan.points) - len(waiting),
        refused=refused,
        duration=durations.total(able),
        longest=sum(durations.guess(point, caps=True) for point in able),
        duplicates=plan.duplicates,
        excluded=plan.excluded,
        kernels=kernels,
        note=note,
    )


def run_sweep(
    plan: Plan,
    out: str | Path,
    *,
    provider: Provider,
    meter: Meter | None = None,
    options: Options | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Measure what is not finished of a plan into a folder of shards; see `shards.read_shards`.

    Points that another run finished are skipped, failed ones too unless `retry_failed`. Without a
    `meter` the plan's is used, or the device's own.
    Raises MeasurementError when the provider cannot run, the device is lost, the disk is full,
    another process writes there, or the folder holds results of another environment.
    """
    options = options or Options()
    begun = time.monotonic()
    folder = Path(out)
    with (
        Interrupts() as interrupts,
        ShardWriter(folder, rows=options.shard_rows, seconds=options.shard_seconds) as writer,
    ):
        # with the lock in hand: a probe would disturb another's measurement
        session = open_session(plan, provider, meter)
        admit(folder, session.environment.record, mix=options.mix)
        session.environment.write(folder)
        writer.record_order(plan.points)
        run = Run(plan, folder, options, session.device)
        run.resume()
        idle_known = False
        for point in run.waiting(begun):
            started = time.monotonic()
            if point.energy and not idle_known:
                session, idle_known = session.with_idle(), True
            row = session.row(point, run.attempt(point))
            with interrupts.held():
                writer.append(row)
            run.told(point, row, time.monotonic() - started)
            if progress:
                progress(run.progress(row, time.monotonic() - begun))
    names = (session.environment.id, session.provider.name, session.device.name)
    return run.result(names, time.monotonic() - begun)


class Run:
    """State of one run: what is finished, what was learned of durations, and the counts.

    Knows neither provider nor device: `device` only helps to guess durations.
    """

    def __init__(
        self, plan: Plan, folder: Path, options: Options, device: DeviceInfo | None = None
    ) -> None:
        self.plan, self.folder, self.options = plan, folder, options
        self.durations = Durations(plan.points, device, plan.protocol)
        self.attempts: dict[str, int] = {}
        self.finished: set[str] = set()
        self.before = self.done = self.invalid = 0
        self.by_status: dict[str, int] = dict.fromkeys(("ok", "failed", "refused"), 0)
        self.log_ratio = np.full(len(plan.points), np.nan)
        self.index = {point.key: i for i, point in enumerate(plan.points)}
        self.ended_by = "done"

    def resume(self) -> None:
        """Take over what earlier runs finished."""
        known = finished_points(self.folder)
        for point in self.plan.points:
            row = known.get(point.key)
            if row is None:
                continue
            self.attempts[point.key] = int(row["attempt"])
            if row["status"] != "ok" and self.options.retry_failed:
                continue
            self.finished.add(point.key)
            self._learn(point, row)
        self.before = self.done = len(self.finished)

    def _learn(self, point: Point, row: Mapping[str, Any]) -> None:
        self.durations.told(point, row)
        seconds = float(row.get("time_s", np.nan))
        if row["status"] == "ok" and seconds > 0:
            guess = self.durations.run_time[point.key]
            self.log_ratio[self.index[point.key]] = np.log(seconds / guess)

    def waiting(self, begun: float) -> Iterator[Point]:
        """Points to measure, each once; under a budget until none fits into what is left."""
        if self.options.budget is None:
            yield from (p for p in in_order(self.plan.points) if p.key not in self.finished)
            return
        points = self.plan.points
        x = point_features(points)
        rng = np.random.default_rng([self.plan.seed, len(self.finished)])
        while len(self.finished) < len(points):
            left = self.options.budget - (time.monotonic() - begun)
            fits = np.array([self.durations.expected(p) <= left for p in points])
            taken = np.array([i for i, p in enumerate(points) if p.key in self.finished], np.int64)
            chosen = choose(x, taken, self.log_ratio, _TOGETHER, rng, allowed=fits)
            if not chosen:
                self.ended_by = "budget"
                return
            for point in in_order([points[i] for i in chosen]):
                left = self.options.budget - (time.monotonic() - begun)
                if self.durations.expected(point) <= left:
                    yield point

    def attempt(self, point: Point) -> int:
        """Return the number of the attempt that is next at a point, from 1."""
        return self.attempts.get(point.key, 0) + 1

    def told(self, point: Point, row: Mapping[str, Any], took: float) -> None:
        """Count a finished row and learn from it and from the seconds that it took here."""
        self.finished.add(point.key)
        self.done += 1
        self.by_status[str(row["status"])] += 1
        self.invalid += row["status"] == "ok" and not row["valid"]
        self._learn(point, {**row, "elapsed_s": took})

    def progress(self, row: Mapping[str, Any], elapsed: float) -> Progress:
        """Where the run stands; the ETA is never beyond the budget."""
        eta = self.durations.total(p for p in self.plan.points if p.key not in self.finished)
        if self.options.budget is not None:
            eta = min(eta, max(self.options.budget - elapsed, 0.0))
        return Progress(self.done, len(self.plan.points), row, elapsed, eta)

    def result(self, names: tuple[str, str, str], elapsed: float) -> Result:
        """Sum of the run by environment, provider and device of these names."""
        environment, provider, device = names
        return Result(
            out=self.folder,
            environment=environment,
            provider=provider,
            device=device,
            points=len(self.plan.points),
            finished_before=self.before,
            ok=self.by_status["ok"],
            failed=self.by_status["failed"],
            refused=self.by_status["refused"],
            invalid=self.invalid,
            remaining=len(self.plan.points) - self.done,
            elapsed=elapsed,
            ended_by=self.ended_by,
            duplicates=self.plan.duplicates,
            excluded=self.plan.excluded,
        )
