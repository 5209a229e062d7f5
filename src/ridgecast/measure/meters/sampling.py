"""A light thread that reads a sensor at a steady pace while a window is open.

Owns the pace, the columns and what happens when a reading fails; knows no sensor.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import numpy as np

from ...errors import MeasurementError
from ..base import F64

__all__ = ["COLUMNS", "Sampler", "mean_over"]

COLUMNS = ("time", "power", "energy", "clock", "memory_clock", "temperature")
_DUTY = 0.05  # share of one host core that the thread may take when readings are slow


class Sampler:
    """Calls `read(slow)` every `period` s, and once at either end, and keeps what it returns.

    `read` returns values by column name; every `slow_every`-th call asks for the slow ones too.
    Times are s since `begin`, taken just before each reading. When a reading costs more than 5 %
    of the period, the period grows to 20 times its cost.
    """

    def __init__(
        self, read: Callable[[bool], Mapping[str, float]], *, period: float, slow_every: int = 5
    ) -> None:
        self._read, self._period, self._slow_every = read, period, slow_every
        self._rows: list[dict[str, float]] = []
        self._end, self._lock = threading.Event(), threading.Lock()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="ridgecast-meter", daemon=True)
        self._begun = 0.0

    def begin(self) -> None:
        """Take the first reading, then start the thread. Raises what the first reading raises."""
        self._begun = time.perf_counter()
        self._take(slow=True)
        self._thread.start()

    def end(self) -> tuple[float, dict[str, F64]]:
        """Stop, take the last reading; the window's length [s] and columns [readings].

        Raises MeasurementError when a reading failed on the way: the window has a hole.
        """
        self._end.set()
        duration = 0.0
        if self._error is None:
            try:
                duration = self._take(slow=True)
            except Exception as error:
                self._error = error
        self._thread.join()
        if isinstance(self._error, MeasurementError):
            raise self._error
        if self._error is not None:
            raise MeasurementError(f"the meter failed inside a window: {self._error!r}")
        rows = [row for row in self._rows if row["time"] <= duration]
        rows.sort(key=lambda row: row["time"])
        return duration, {
            name: np.array([row.get(name, np.nan) for row in rows], np.float64) for name in COLUMNS
        }

    def _take(self, *, slow: bool) -> float:
        with self._lock:  # the last reading may meet one of the thread
            at = time.perf_counter() - self._begun
            self._rows.append({"time": at, **self._read(slow)})
        return at

    def _run(self) -> None:
        count, period = 0, self._period
        next_at = time.perf_counter() + period
        while not self._end.wait(max(next_at - time.perf_counter(), 0.0)):
            count += 1
            before = time.perf_counter()
            try:
                self._take(slow=count % self._slow_every == 0)
            except Exception as error:
                self._error = error
                return
            after = time.perf_counter()
            period = max(self._period, (after - before) / _DUTY)
            next_at = max(next_at + period, after)


def mean_over(time_axis: F64, values: F64) -> float:
    """Mean over time by the trapezoidal rule; NaN readings are left out, NaN below two."""
    known = np.isfinite(values)
    t, v = time_axis[known], values[known]
    if len(t) < 2 or t[-1] <= t[0]:
        return float(v[0]) if len(v) == 1 else np.nan
    return float(np.sum(0.5 * (v[1:] + v[:-1]) * np.diff(t)) / (t[-1] - t[0]))
