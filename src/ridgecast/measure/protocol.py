"""One protocol for every provider: prepare, verify, warm up, measure, cool down.

    prepare   allocate, fill (seeded), compile             -> status "failed" and the reason
    verify    poison the output, run, compare with float64 -> valid = false when too far off
    warm up   at least 3 runs and 50 ms
    measure   batches of samples until their median is known well enough, or the time cap
    energy    a settled window of back-to-back runs (measure.energy), where asked for
    cool down close: memory is given back whatever happened

A row is always returned. Rows that break a rule keep their numbers with valid = false and the
reasons; nothing is repaired. Knows no device and no file.
"""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import MeasurementError, RidgecastError, SpecError
from .base import BANDWIDTH_KERNELS, F64, Meter, Point, Probe, Provider, Work
from .energy import EnergyProtocol, measure_energy

__all__ = ["Protocol", "Sampled", "measure_point", "take_samples"]

Row = dict[str, Any]
_BATCH = 0.02  # s of samples between two looks at the throttle state
# of a normal sample: standard error of the median times sqrt(n) over the deviation, sqrt(pi / 2)
# (Kenney and Keeping 1962), and interquartile range over the deviation
_MEDIAN_ERROR, _QUARTILES = 1.2533, 1.349


@dataclass(frozen=True, slots=True)
class Protocol:
    """How time is measured; all durations in seconds.

    Sampling stops when the standard error of the median (1.2533 s / sqrt(n) of a normal sample, s
    from the interquartile range) is below `precision` of the median and `min_samples` are there,
    else after `time_cap` or `max_samples`. Warm-up is at least `warmup_runs` runs and `warmup`
    long. Raises SpecError for impossible values.
    """

    warmup_runs: int = 3
    warmup: float = 0.05
    min_samples: int = 20
    max_samples: int = 2000
    precision: float = 0.005
    time_cap: float = 1.0
    verify: bool = True
    energy: EnergyProtocol = field(default_factory=EnergyProtocol)

    def __post_init__(self) -> None:
        if self.warmup_runs < 1 or self.min_samples < 3 or self.max_samples < self.min_samples:
            raise SpecError(
                f"protocol: got warmup_runs {self.warmup_runs}, min_samples {self.min_samples}, "
                f"max_samples {self.max_samples}; need at least 1, at least 3, at least min_samples"
            )
        if not (self.warmup >= 0 and self.precision > 0 and self.time_cap > 0):
            raise SpecError(
                f"protocol: got warmup {self.warmup}, precision {self.precision}, time_cap "
                f"{self.time_cap}; need warmup >= 0 and the others above 0"
            )


@dataclass(frozen=True, slots=True)
class Sampled:
    """Durations that count, how many were dropped as throttled, and why sampling ended."""

    times: F64
    dropped: int
    throttle: tuple[str, ...]
    stopped_by: str  # "precision", "time_cap" or "max_samples"


def measure_point(
    provider: Provider,
    point: Point,
    *,
    rng: np.random.Generator,
    protocol: Protocol | None = None,
    meter: Meter | None = None,
) -> Row:
    """Measure one point and return its row: identity, status, time, energy, flags.

    Never raises for what a point does (a refusal, a failed build, garbage, out of memory): the
    row says so. Raises MeasurementError only when the device is lost (`provider.probe` fails
    after a failure), since every later point would fail too. A provider of recorded rows (one
    with a method `recorded`) is asked for its row instead: nothing runs.
    """
    protocol = protocol or Protocol()
    op = point.kernel if point.kernel in BANDWIDTH_KERNELS else "gemm"
    row: Row = {**point.columns(), "point": point.key, "provider": provider.name, "op": op}
    row |= {"status": "failed", "valid": False, "reason": "", "time_s": np.nan}
    begun = time.perf_counter()
    try:
        refusal = provider.refusal(point)
        if refusal:
            return row | {"status": "refused", "reason": refusal}
        recorded = getattr(provider, "recorded", None)
        row |= recorded(point) if recorded else _run(provider, point, rng, protocol, meter)
    except Exception as error:  # also a driver's own exception; the sweep must go on
        row |= {"status": "failed", "valid": False, "reason": _told(error)}
    row.setdefault("elapsed_s", time.perf_counter() - begun)
    if row["status"] == "failed" and not hasattr(provider, "recorded"):
        probe = _probe(provider)
        if not probe.ok:
            raise MeasurementError(
                f"{provider.name}: the device was lost at point {point.key} "
                f"({row['reason']}); now: {probe.reason}. Finished points are kept; "
                "run the same command again to resume"
            )
    return row


def _told(error: Exception) -> str:
    """One line on an exception: ours as it is, another's with its kind and place."""
    if isinstance(error, RidgecastError):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory"
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"


def _probe(provider: Provider) -> Probe:
    try:
        return provider.probe()
    except Exception as error:  # a device that cannot even be asked is lost
        return Probe(False, _told(error))


def _run(
    provider: Provider,
    point: Point,
    rng: np.random.Generator,
    protocol: Protocol,
    meter: Meter | None,
) -> Row:
    """Prepare, measure and close, whatever happens in between."""
    work = provider.prepare(point, rng)
    try:
        return _measured(work, point, protocol, meter)
    finally:
        work.close()


def _measured(work: Work, point: Point, protocol: Protocol, meter: Meter | None) -> Row:
    """Columns of prepared work."""
    row: Row = dict(work.facts)
    notes: list[str] = []
    if protocol.verify:
        error = float(work.verify())
        row |= {"error_frobenius": error, "tolerance": work.tolerance}
        if not error <= work.tolerance:  # NaN fails too
            # garbage is not timed: it may have skipped the work
            reason = f"wrong result: relative error {error:.3g}, allowed {work.tolerance:.3g}"
            return row | {"status": "failed", "valid": False, "reason": reason}
    else:
        notes.append("not verified")
    sampled = take_samples(work, protocol, meter)
    row |= _statistics(sampled)
    if not len(sampled.times):
        reason = f"every sample was throttled ({', '.join(sampled.throttle)})"
        return row | {"status": "ok", "valid": False, "reason": reason}
    if sampled.stopped_by != "precision":
        notes.append(f"stopped by {sampled.stopped_by}")
    if point.energy:
        row |= _energy(work, row["time_s"], meter, protocol.energy)
        notes += [row.pop("energy_reason")] if row.get("energy_reason") else []
    return row | {"status": "ok", "valid": True, "reason": "; ".join(notes)}


def _energy(work: Work, run_time: float, meter: Meter | None, protocol: EnergyProtocol) -> Row:
    """Columns of the energy window; a meter that fails costs the energy, not the time."""
    try:
        return measure_energy(work, run_time, meter, protocol)
    except RidgecastError as error:
        return {"energy_j": np.nan, "power_w": np.nan, "energy_reason": f"energy: {error}"}


def take_samples(work: Work, protocol: Protocol, meter: Meter | None = None) -> Sampled:
    """Warm up, then sample in batches until the median is known to `protocol.precision`.

    Batches before or after which the meter says that the device is throttled are dropped and
    counted. Raises MeasurementError when the device's clock gives a time that cannot be.
    """
    warm_until = time.perf_counter() + protocol.warmup
    runs, last = 0, 0.0
    while runs < protocol.warmup_runs or time.perf_counter() < warm_until:
        last = float(_sampled(work, 1)[0])
        runs += 1
    batch = int(np.clip(_BATCH / max(last, 1e-7), 3, 200))
    kept: list[F64] = []
    dropped, seen, count = 0, set[str](), 0
    deadline = time.perf_counter() + protocol.time_cap
    while True:
        reasons = set(meter.throttled()) if meter else set[str]()
        times = _sampled(work, min(batch, protocol.max_samples - count))
        reasons |= set(meter.throttled()) if meter else set[str]()
        count += len(times)
        if reasons:
            seen |= reasons
            dropped += len(times)
        else:
            kept.append(times)
        stopped = _stop(kept, count, deadline, protocol)
        if stopped:
            break
    times = np.concatenate(kept) if kept else np.empty(0)
    return Sampled(times, dropped, tuple(sorted(seen)), stopped)


def _sampled(work: Work, count: int) -> F64:
    """Durations of `count` runs; raises MeasurementError for one that cannot be."""
    times = np.asarray(work.sample(count), np.float64)
    if not (len(times) and np.isfinite(times).all() and (times > 0).all()):
        raise MeasurementError(
            f"the device's clock gave {times[:3].tolist()} s for a run; need times above 0"
        )
    return times


def _median_error(times: F64) -> float:
    """Relative standard error of the median; NaN for fewer than 2 samples."""
    if len(times) < 2:
        return np.nan
    low, middle, high = np.quantile(times, (0.25, 0.5, 0.75))
    return float(_MEDIAN_ERROR * (high - low) / _QUARTILES / np.sqrt(len(times)) / middle)


def _stop(kept: list[F64], count: int, deadline: float, protocol: Protocol) -> str:
    times = np.concatenate(kept) if kept else np.empty(0)
    if len(times) >= protocol.min_samples and _median_error(times) <= protocol.precision:
        return "precision"
    if count >= protocol.max_samples:
        return "max_samples"
    # past the cap at least three samples are wanted, unless throttling eats them all
    over = time.perf_counter() - deadline
    if over > 0 and (len(times) >= 3 or over > protocol.time_cap):
        return "time_cap"
    return ""


def _statistics(sampled: Sampled) -> Row:
    """Columns of a sample: median and its relative error, deviation, quantiles in seconds."""
    times = sampled.times
    row: Row = {
        "samples": float(len(times)),
        "throttled_samples": sampled.dropped,
        "throttle_reasons": ",".join(sampled.throttle),
        "stopped_by": sampled.stopped_by,
        "median_error": _median_error(times),
    }
    names = ("time_low_s", "time_p10_s", "time_s", "time_p90_s", "time_high_s")
    if not len(times):
        return row | dict.fromkeys((*names, "time_std_s"), np.nan)
    quantiles = np.quantile(times, (0.0, 0.1, 0.5, 0.9, 1.0))
    row |= {name: float(q) for name, q in zip(names, quantiles, strict=True)}
    return row | {"time_std_s": float(np.std(times, ddof=1)) if len(times) > 1 else np.nan}
