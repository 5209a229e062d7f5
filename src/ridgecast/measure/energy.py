"""Energy of one run: a settled window of back-to-back runs between two readings of a counter.

    |-- settle: same load >= 1.5 s --|------ window >= 2.5 s, whole runs ------|
    ^ start()                 stop() | ^ start()                               ^ synchronize, stop()
      how coarse the counter is            |<- counter: first to last step ->|

Averaged power sensors lag by about a second, so a short window shows the kernel before it. The
counter moves in steps (20-100 ms on many boards); its slope between its first and its last step
inside the window is the power, so that the time to the next step at either end does not count. The
window grows, up to `max_window`, until the pace at which steps can be seen is `resolution` of it.
Runs are enqueued in batches, so that the host is never more than about `ahead` in front of the
device and learns how long sustained runs take (longer than bursts, at the power limit).

    energy_j = power_w * sustained_time_s                energy_dynamic_j = energy_j - idle * time

A window that breaks a rule keeps its numbers with energy_valid = false and the reasons: power still
moving, counter and integrated instant power apart by more than `agreement`, throttled by heat,
another process on the device. The power cap is no such reason: sustained load runs into it. Owns
the window; a `Meter` owns the numbers. Knows no device.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import MeasurementError, SpecError
from .base import F64, Meter, Reading, Work
from .meters.sampling import mean_over

__all__ = ["ENERGY_COLUMNS", "EnergyProtocol", "counter_power", "energy_columns", "measure_energy",
           "measure_idle"]  # fmt: skip

Row = dict[str, Any]

ENERGY_COLUMNS = (
    "energy_j", "energy_dynamic_j", "power_w", "power_instant_w", "power_spread", "power_drift",
    "idle_power_w", "window_s", "window_runs", "window_energy_j", "sustained_time_s",
    "clock_min_hz", "clock_mean_hz", "clock_max_hz", "memory_clock_hz", "temperature_c",
    "temperature_max_c", "power_limit_w", "counter_step_s", "power_resolution",
)  # fmt: skip
"""Numbers of every energy row, NaN where not known; beside them power_valid, energy_valid, the
texts energy_reason, energy_source, power_sensor, window_throttle, and other_processes."""

_LARGEST_BATCH = 50_000  # runs; launches far shorter than this are bound by the host anyway
# reasons for running slower that are how a board under sustained load, or as found, behaves
_NORMAL = frozenset({"power_cap", "board_limit", "clock_setting", "display_clock", "sync_boost"})


_SLACK = 1.5  # a single reading may come later than the usual pace that the window was sized by
_NOTED = ("runs", "loaded_s", "counter_period_s")  # facts that are no columns


@dataclass(frozen=True, slots=True)
class EnergyProtocol:
    """Durations in seconds.

    `agreement` is how far counter and integrated samples may differ, and how far the second half
    of the window may draw from the first; `resolution` the error that the counter's steps may
    leave in the power; `idle_power` [W] what `measure_idle` returned, NaN when it was not measured.
    """

    settle: float = 1.5
    window: float = 2.5
    agreement: float = 0.03
    resolution: float = 0.01
    max_window: float = 15.0
    ahead: float = 0.25
    idle_power: float = np.nan

    def __post_init__(self) -> None:
        positive = (self.window, self.agreement, self.resolution, self.ahead)
        if not (self.settle >= 0 and all(value > 0 for value in positive)):
            raise SpecError(
                f"energy protocol: got settle {self.settle}, window {self.window}, agreement "
                f"{self.agreement}, resolution {self.resolution}, ahead {self.ahead}; need "
                "settle >= 0 and the others above 0"
            )
        if self.max_window < self.window:
            raise SpecError(
                f"energy protocol: got max_window {self.max_window}, need at least the window "
                f"({self.window})"
            )


def measure_energy(
    work: Work, run_time: float, meter: Meter | None, protocol: EnergyProtocol
) -> Row:
    """Columns of an energy window over `work`, whose runs take about `run_time` [s].

    Without a meter every number is NaN with the reason, and nothing runs. Raises MeasurementError
    when the meter or the device fails inside the window.
    """
    if meter is None:
        return _nothing("no meter: power needs --meter nvml (NVIDIA GPUs) or rapl (CPU packages)")
    if not (np.isfinite(run_time) and run_time > 0):
        return _nothing(f"no energy: the time of a run is {run_time}")
    settle, loaded = _loaded(work, run_time, meter, protocol.settle, protocol.ahead)
    length = _window_length(settle, protocol)
    run_time = loaded["loaded_s"] / loaded["runs"]
    window, loaded = _loaded(work, run_time, meter, length, protocol.ahead)
    note = getattr(meter, "note", None)  # a Recorder keeps what a Replay must know
    if note is not None:
        note(loaded)
    known = {**loaded, **{name: window.facts[name] for name in loaded if name in window.facts}}
    return energy_columns(window, known["runs"], known["loaded_s"], protocol)


def measure_idle(meter: Meter, *, settle: float = 3.0, window: float = 2.5) -> float:
    """Power [W] of the device that does nothing, NaN when the meter knows none.

    Meant once a sweep, before it, with the device opened by this process: a board with an open
    context idles higher than one without. Goes into `EnergyProtocol.idle_power`.
    """
    if settle > 0:
        time.sleep(settle)
    meter.start()
    time.sleep(window)
    return _power_of(meter.stop())[0]


def _loaded(
    work: Work, run_time: float, meter: Meter, length: float, ahead: float
) -> tuple[Reading, dict[str, float]]:
    """Keep the device busy for `length` [s]: what the meter saw, `runs` and `loaded_s`.

    The first batch is on its way when the meter opens its window, and the window closes on the
    last one's end: the device is never seen waiting.
    """
    elapsed, runs = 0.0, 0
    begun = time.perf_counter()
    while not runs or elapsed < length:
        batch = min(ahead, max(length - elapsed, 0.0)) / run_time
        batch = int(min(max(batch + 0.5, 1.0), _LARGEST_BATCH))
        try:
            work.enqueue(batch)
            if not runs:
                meter.start()
            work.synchronize()
        except BaseException:
            _discard(meter)
            raise
        runs += batch
        elapsed = time.perf_counter() - begun
        run_time = elapsed / runs
    return meter.stop(), {"runs": float(runs), "loaded_s": elapsed}


def _discard(meter: Meter) -> None:
    """Close the window of a meter whose reading nobody wants."""
    with contextlib.suppress(MeasurementError):
        meter.stop()


def _window_length(settle: Reading, protocol: EnergyProtocol) -> float:
    """Window [s] in which the counter's steps leave at most `resolution` of error."""
    steps = _counter_steps(settle)
    if len(steps) < 2:
        return protocol.window
    times = settle.samples["time"]
    pace = min(float(np.median(np.diff(times))), _period(settle))  # how late a step is seen
    coarse = float(np.median(np.diff(times[steps])))
    needed = pace / protocol.resolution + 2.0 * coarse
    return min(max(protocol.window, needed), protocol.max_window)


def _counter_steps(reading: Reading) -> Any:
    """Find the samples at which the counter had moved since the one before: their indices."""
    energy = reading.samples.get("energy", np.empty(0))
    return np.flatnonzero(np.diff(energy) > 0) + 1


def _period(reading: Reading) -> float:
    """How often the counter is known to move [s]; inf where that is not known."""
    return float(reading.facts.get("counter_period_s", np.inf))


def counter_power(reading: Reading) -> tuple[float, float, slice]:
    """Slope of the counter between its first and last step in a window [W], its error, the span.

    The error is the longest time that a step may have gone unseen over the span's length. NaN and
    the whole window where the counter moved fewer than twice.
    """
    steps = _counter_steps(reading)
    if len(steps) < 2:
        return np.nan, np.nan, slice(None)
    first, last = int(steps[0]), int(steps[-1])
    times, energy = reading.samples["time"], reading.samples["energy"]
    span = float(times[last] - times[first])
    gaps = np.diff(times)
    late = min(float(max(gaps[first - 1], gaps[last - 1])), _period(reading))
    power = float(energy[last] - energy[first]) / span
    return power, late / span, slice(first, last + 1)


def _power_of(reading: Reading) -> tuple[float, float, slice]:
    """Power [W] of a window, its resolution as a share, and the samples that it spans."""
    power, error, span = counter_power(reading)
    if np.isfinite(power):
        return power, error, span
    return reading.mean_power, np.nan, slice(None)


def energy_columns(window: Reading, runs: float, loaded: float, protocol: EnergyProtocol) -> Row:
    """Columns of a window over `runs` whole runs that took `loaded` [s] back to back.

    A pure function of what the meter saw, so that a recording gives the same row.
    """
    row = dict.fromkeys(ENERGY_COLUMNS, np.nan) | _samples(window)
    power, resolution, span = _power_of(window)
    sustained = loaded / runs
    idle = protocol.idle_power
    instant = _instant(window, span)
    halves = _halves(window, span)
    steps = _counter_steps(window)
    coarse = np.diff(window.samples["time"][steps]) if len(steps) > 1 else np.array([np.nan])
    row |= {
        "energy_j": power * sustained,
        "energy_dynamic_j": (power - idle) * sustained,
        "power_w": power,
        "power_instant_w": instant,
        "power_drift": halves,
        "power_resolution": resolution,
        "idle_power_w": idle,
        "window_s": loaded,
        "window_runs": float(runs),
        "window_energy_j": window.energy,
        "sustained_time_s": sustained,
        "counter_step_s": float(np.median(coarse)),
        "window_throttle": ",".join(window.throttle),
        **{name: value for name, value in window.facts.items() if name not in _NOTED},
    }
    reasons = _faults(row, window, protocol)
    notes = [] if np.isfinite(idle) else ["idle power was not measured"]
    valid = bool(np.isfinite(power)) and not reasons
    return row | {
        "power_valid": valid,
        "energy_valid": valid,
        "energy_reason": "; ".join(reasons or (notes if valid else [])),
    }


def _faults(row: Row, window: Reading, protocol: EnergyProtocol) -> list[str]:
    """Rules that a window broke."""
    reasons: list[str] = []
    if not np.isfinite(row["power_w"]):
        reasons.append(f"no power: {window.reason or 'the meter did not say why'}")
    if row["window_s"] < protocol.window:  # a recording of another protocol
        reasons.append(f"energy window of {row['window_s']:.2f} s, need {protocol.window} s")
    if row["power_resolution"] > _SLACK * protocol.resolution:
        reasons.append(
            f"the energy counter leaves {row['power_resolution']:.1%} of error even in "
            f"{row['window_s']:.1f} s"
        )
    apart = abs(row["power_instant_w"] / row["power_w"] - 1.0)
    if window.facts.get("energy_source") == "counter" and apart > protocol.agreement:
        reasons.append(f"energy counter and integrated power differ by {apart:.1%}")
    if abs(row["power_drift"]) > protocol.agreement:
        reasons.append(f"power still moved: {row['power_drift']:+.1%} from half to half")
    hot = sorted(set(window.throttle) - _NORMAL)
    if hot:
        reasons.append(f"throttled in the energy window: {', '.join(hot)}")
    others = window.facts.get("other_processes", 0)
    if others:
        reasons.append(f"{int(others)} other process(es) on the device")
    return reasons


def _samples(window: Reading) -> Row:
    """Spread, clocks and temperatures of the samples; NaN where none were taken."""
    times = window.samples.get("time", np.empty(0))

    def column(name: str) -> F64:
        values = window.samples.get(name, np.empty(0))
        return values[np.isfinite(values)]

    power, clock, degrees = column("power"), column("clock"), column("temperature")
    row: Row = {}
    if len(power) > 1:
        row["power_spread"] = float(np.std(power, ddof=1) / np.mean(power))
    if len(clock):
        row |= {"clock_min_hz": float(clock.min()), "clock_max_hz": float(clock.max())}
        row["clock_mean_hz"] = mean_over(times, window.samples["clock"])
    if len(column("memory_clock")):
        row["memory_clock_hz"] = float(column("memory_clock").mean())
    if len(degrees):
        row |= {"temperature_c": float(degrees.mean()), "temperature_max_c": float(degrees.max())}
    return row


def _instant(window: Reading, span: slice) -> float:
    """Integrated instant power over the counter's span [W]; NaN where none is independent of it."""
    sensor: Mapping[str, Any] = window.facts
    if sensor.get("power_sensor") != "instant" or "power" not in window.samples:
        return np.nan
    return mean_over(window.samples["time"][span], window.samples["power"][span])


def _halves(window: Reading, span: slice) -> float:
    """How much more the second half of the window drew than the first, as a share."""
    if "power" not in window.samples:
        return np.nan
    times, power = window.samples["time"][span], window.samples["power"][span]
    middle = 0.5 * (times[0] + times[-1]) if len(times) else 0.0
    early, late = times <= middle, times >= middle
    first, second = mean_over(times[early], power[early]), mean_over(times[late], power[late])
    return second / first - 1.0 if first > 0 else np.nan


def _nothing(reason: str) -> Row:
    texts = dict.fromkeys(("energy_source", "power_sensor", "window_throttle"), "")
    return dict.fromkeys(ENERGY_COLUMNS, np.nan) | texts | {
        "power_valid": False,
        "energy_valid": False,
        "energy_reason": reason,
    }  # fmt: skip
