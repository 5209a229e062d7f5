"""Calibration: the few points of a device that teach the most, and the model made of them.

    device -> its spec (catalogue, the user's file, or measured ceilings)
           -> test points (measured twice: what the model is scored on, and the repeat floor)
           -> rounds of points: spread first, then where a model is least sure
           -> model; ends when its interval on the test points stops shrinking, or with the budget

Owns the choice of shapes, the rounds and the report. Points are measured by `sweep` into
OUT/points, so that a calibration that was killed goes on; the model folder that it leaves serves
`--model OUT`. The fit is `predict.calibrated`'s.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import MeasurementError, NoDataError, SpecError
from .base import F64, DeviceInfo, Point, Provider
from .plan import Plan
from .protocol import Protocol
from .sampling import choose, point_features
from .shards import read_shards, write_json
from .sweep import Options, Progress, run_sweep

if TYPE_CHECKING:
    from ..hardware import Hardware
    from ..predict.calibrated import CalibratedModel

__all__ = ["Calibration", "CalibrationOptions", "calibrate", "shape_pool"]

REPORT_FILE = "calibration.json"
_FORMAT = 1
_POOL = 3000  # shapes to choose from
_LONGEST = {"gpu": 0.02, "cpu": 0.05}  # s that one run may take by the bound
_SHRINKS = 0.97  # a new best of interval (its logarithm) or left-out error is below this of the old
_PATIENCE = 2  # rounds without a new best end the calibration
_FIT_TIME = 0.12  # s that a fit takes for each point and recipe, until one was timed (assumed)


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """What to measure. `budget` in seconds; `tests` points are measured twice and never learned.

    `rounds` are the numbers of points at which a model is fitted.
    """

    dtype: str = "bf16"
    budget: float = 300.0
    tests: int = 40
    rounds: tuple[int, ...] = (40, 60, 90, 130, 180, 240, 320, 420, 540)
    seed: int = 0
    protocol: Protocol = field(default_factory=lambda: Protocol(min_samples=7, time_cap=0.2))

    def __post_init__(self) -> None:
        if not self.budget > 0:
            raise SpecError(f"budget: got {self.budget} s, need more than 0")
        if self.tests < 10 or min(self.rounds) < 30:
            raise SpecError(
                f"calibration: got {self.tests} test points and rounds {self.rounds}; need at "
                "least 10 tests and 30 points"
            )


@dataclass(frozen=True, slots=True)
class Calibration:
    """What came of it. `before` and `after` are scores on the test points (`predict.scores`).

    `floor` is the median difference between two measurements of a test point; `rounds` tell points,
    median interval width and left-out error of each fit; `recipe` is the one that won.
    """

    device: str
    hardware: str
    dtype: str
    provider: str
    points: int
    tests: int
    before: dict[str, Any]
    before_basis: str
    after: dict[str, Any]
    floor: float | None
    recipe: str
    rounds: list[dict[str, Any]]
    stopped_by: str
    elapsed_s: float
    out: str
    ceilings: dict[str, Any] | None = None


def shape_pool(hardware: Hardware, dtype: str, kind: str, *, seed: int, count: int) -> list[Point]:
    """Random library GEMMs of a device: sizes uniform in their logarithm, a third ragged.

    m from 1 to 8192, n and k from 32 to 16384, at most a few hundredths of a second by the bound
    and an eighth of the memory.
    """
    from ..kernels import bound

    rng = np.random.default_rng(seed)
    found: list[Point] = []
    while len(found) < count:
        m = np.round(2.0 ** rng.uniform(0, 13, count))
        n, k = (np.round(2.0 ** rng.uniform(5, 14, count)) for _ in "nk")
        even = rng.random(count) < 2 / 3
        n, k = (np.where(even, np.ceil(x / 32) * 32, x) for x in (n, k))
        m = np.where(even & (m > 16), np.ceil(m / 16) * 16, m)
        seconds = np.asarray(bound(m, n, k, dtype=dtype, hardware=hardware))
        size = 8.0 * (m * k + k * n + m * n)  # double-precision copies of the reference included
        good = (seconds <= _LONGEST[kind]) & (size <= hardware.memory.capacity / 8)
        found += [
            Point("library", int(a), int(b), int(c), dtype=dtype)
            for a, b, c in zip(m[good], n[good], k[good], strict=True)
        ]
    return found[:count]


def calibrate(
    provider: Provider,
    out: str | Path,
    *,
    hardware: Hardware,
    options: CalibrationOptions | None = None,
    pool: Sequence[Point] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Calibration:
    """Measure what teaches the most about library GEMMs of a device and fit its model into `out`.

    `hardware` is the device's spec; `pool` replaces the shapes to choose from (a replay has only
    those that were recorded). The model goes to `out`/time and is listed in `out`/card.json beside
    those of other formats.
    Raises MeasurementError when the provider cannot run, NoDataError when too few points could be
    measured within the budget.
    """
    o = options or CalibrationOptions()
    begun = time.monotonic()
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    probe = provider.probe()
    if not probe.ok or probe.device is None:
        raise MeasurementError(f"provider {provider.name}: {probe.reason}. {probe.cure}".strip())
    shapes = list(
        pool or shape_pool(hardware, o.dtype, probe.device.kind, seed=o.seed, count=_POOL)
    )
    run = _Run(provider, probe.device, hardware, folder, o, shapes, begun, progress)
    run.measure_tests()
    model = run.learn()
    result = run.report(model)
    run.save(model)
    write_json(folder / REPORT_FILE, asdict(result))
    return result


class _Run:
    """State of one calibration: what is in the pool, what was measured, what each round gave."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts of one calibration, made in one place
        self, provider: Provider, device: DeviceInfo, hardware: Hardware, folder: Path,
        options: CalibrationOptions, pool: list[Point], begun: float,
        progress: Callable[[str], None] | None,
    ) -> None:  # fmt: skip
        self.provider, self.device, self.hardware = provider, device, hardware
        self.folder, self.o, self.pool, self.begun = folder, options, pool, begun
        self.progress = progress
        rng = np.random.default_rng(options.seed)
        count = min(options.tests, len(pool) // 4)
        if count < 5:
            raise NoDataError(f"calibration: {len(pool)} shapes to choose from, need at least 20")
        self.test = np.sort(rng.permutation(len(pool))[:count])
        self.features = point_features(pool)
        self.rows: dict[str, dict[str, float]] = {}
        self.rounds: list[dict[str, Any]] = []
        self.stopped_by = "all rounds done"
        self.fit_time = _FIT_TIME

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.o.budget - (time.monotonic() - self.begun)

    def tell(self, text: str) -> None:
        """Report progress, where anybody listens."""
        if self.progress:
            self.progress(text)

    def sweep(self, points: Sequence[Point], what: str, budget: float) -> None:
        """Measure points (those that a run before measured are there already)."""
        if budget <= 0:
            return
        plan = Plan.of(list(points), seed=self.o.seed, protocol=self.o.protocol)
        wanted = {p.key for p in points}

        def told(step: Progress) -> None:
            self.tell(f"{what}: {step.done} of {step.total} points, {self.left():.0f} s left")

        run_sweep(
            plan, self.folder / "points", provider=self.provider,
            options=Options(budget=budget), progress=told,
        )  # fmt: skip
        table = read_shards(self.folder / "points")
        for i, key in enumerate(table["point"].tolist()):
            if key in wanted and table["status"][i] == "ok" and bool(table["valid"][i]):
                self.rows[key] = {"time_s": float(table["time_s"][i])}

    def measure_tests(self) -> None:
        """Measure the test points, then once more; a recording has them once."""
        tests = [self.pool[i] for i in self.test]
        self.sweep(tests, "test points", 0.2 * self.o.budget)
        if not hasattr(self.provider, "recorded"):
            again = [replace(p, repeat=1) for p in tests if p.key in self.rows]
            self.sweep([*tests, *again], "test points again", 0.1 * self.o.budget)

    def learn(self) -> CalibratedModel:
        """Measure and fit in rounds until the interval stops shrinking. Returns the last model."""
        allowed = np.ones(len(self.pool), bool)
        allowed[self.test] = False
        taken: list[int] = []
        base = self._before()[0]
        rng = np.random.default_rng([self.o.seed, 1])
        model: CalibratedModel | None = None
        for goal in self.o.rounds:
            log_ratio = np.full(len(self.pool), np.nan)
            for i in taken:
                if self.pool[i].key in self.rows:
                    log_ratio[i] = np.log(self.rows[self.pool[i].key]["time_s"] / base[i])
            more = choose(
                self.features, np.array([*taken, *self.test], np.int64), log_ratio,
                goal - len(taken), rng, allowed=allowed,
            )  # fmt: skip
            if not more:
                self.stopped_by = "no shape is left to measure"
                break
            taken += more
            reserve = self.fit_time * goal
            points = [self.pool[i] for i in taken]
            self.sweep(points, f"round of {goal}", self.left() - reserve)
            measured = [p for p in points if p.key in self.rows]
            if len(measured) < min(self.o.rounds) // 2:
                if self.left() <= reserve:
                    break
                continue
            model = self._fit(measured)
            if self._stale() >= _PATIENCE:
                self.stopped_by = "the interval stopped shrinking"
                break
            if self.left() < self.fit_time * goal * 1.5:
                self.stopped_by = "budget"
                break
        if model is None:
            raise NoDataError(
                f"calibration: {len(self.rows)} points within {self.o.budget:.0f} s, too few for a "
                "model; raise --budget (measured points are kept)"
            )
        return model

    def _fit(self, points: Sequence[Point]) -> CalibratedModel:
        from ..predict.bundle import open_bundle
        from ..predict.calibrated import fit_calibrated

        started = time.monotonic()
        times = np.array([self.rows[p.key]["time_s"] for p in points])
        model = fit_calibrated(
            _shapes(points), times, self.o.dtype, self.hardware,
            prior=open_bundle().prior(), seed=self.o.seed,
        )  # fmt: skip
        tests = [self.pool[i] for i in self.test]
        _, low, high, _ = model.predict(_shapes(tests), self.o.dtype, self.hardware)
        width = float(np.median(high / low))
        left_out = model.card["left_out_mape"][model.card["recipe"]]
        self.rounds.append({"points": len(points), "width": width, "left_out_mape": left_out})
        self.fit_time = (time.monotonic() - started) / len(points)
        self.tell(
            f"{len(points)} points: error {100 * left_out:.1f} % on points left out, median "
            f"interval x{width:.2f}"
        )
        return model

    def _stale(self) -> int:
        """Count the rounds since the interval or the left-out error was last at a new best."""
        best = {"width": np.inf, "left_out_mape": np.inf}
        stale = 0
        for found in self.rounds:
            now = {"width": np.log(found["width"]), "left_out_mape": found["left_out_mape"]}
            stale = 0 if any(now[key] < _SHRINKS * best[key] for key in best) else stale + 1
            best = {key: min(best[key], now[key]) for key in best}
        return stale

    def _before(self) -> tuple[F64, F64, F64, str]:
        """Time, low, high [s] of the pool as predicted without any measurement of ours; basis."""
        from ..predict.bundle import open_bundle
        from ..predict.ladder import Question, answer

        shapes = _shapes(self.pool)
        times = answer(Question(self.hardware, self.o.dtype), shapes, {}, open_bundle())
        return times.time, times.low, times.high, str(times.basis[0])

    def report(self, model: CalibratedModel) -> Calibration:
        """Scores on the test points before and after, and the floor between their repeats."""
        from ..predict.scores import score

        tests = [i for i in self.test if self.pool[i].key in self.rows]
        if not tests:
            raise NoDataError("calibration: no test point could be measured; raise --budget")
        points = [self.pool[i] for i in tests]
        truth = np.array([self.rows[p.key]["time_s"] for p in points])
        before = self._before()
        after = model.predict(_shapes(points), self.o.dtype, self.hardware)
        repeats = [replace(p, repeat=1).key for p in points]
        pairs = [
            self.rows[r]["time_s"] / t
            for r, t in zip(repeats, truth, strict=True)
            if r in self.rows
        ]
        return Calibration(
            device=self.device.name,
            hardware=self.hardware.name,
            dtype=self.o.dtype,
            provider=self.provider.name,
            points=int(model.card["rows"]),
            tests=len(points),
            before=score(truth, *(x[tests] for x in before[:3])),
            before_basis=before[3],
            after=score(truth, *after[:3]),
            floor=float(np.median(np.abs(np.array(pairs) - 1.0))) if pairs else None,
            recipe=str(model.card["recipe"]),
            rounds=self.rounds,
            stopped_by=self.stopped_by,
            elapsed_s=time.monotonic() - self.begun,
            out=str(self.folder),
        )

    def save(self, model: CalibratedModel) -> None:
        """Write the model and list it, beside those of other formats that were calibrated here."""
        from ..predict.calibrated import save_calibrated

        name = f"time/{self.hardware.name}-{self.o.dtype}".replace("_", "-")
        target = self.folder / name
        target.mkdir(parents=True, exist_ok=True)
        save_calibrated(model, target)
        line = {
            "folder": name, "hardware": self.hardware.name, "dtype": self.o.dtype,
            "collection": f"calibration/{self.provider.name}", "launch": "unknown",
            "sustained": False, "rows": model.card["rows"], "licence": "own measurement",
            "files": ["points"], "scores": [],
        }  # fmt: skip
        path = self.folder / "card.json"
        card = json.loads(path.read_text()) if path.exists() else {"format": _FORMAT, "models": []}
        others = [one for one in card["models"] if one["folder"] != name]
        write_json(path, {**card, "models": [*others, line]})


def _shapes(points: Sequence[Point]) -> Any:
    from ..predict.time_model import Shapes

    columns = ([float(getattr(p, c)) for p in points] for c in ("m", "n", "k", "batch"))
    return Shapes(*(np.array(c) for c in columns))
