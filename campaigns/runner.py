"""How a campaign runs: stages of points into one folder of shards a provider, supervised.

    run()         reads the command line; --dry-run counts, else a child process measures
    supervise()   starts the child, ends one that hangs, writes the point that took a device or a
                  process along as a failed row, and goes on with the next point
    measure()     the child: stages in order, chunk by chunk, until the budget is spent
    collect()     one table a provider, and the environment records, for carrying home

Every finished point is on the disk before the next begins, so a run may be stopped at any moment
and the same command goes on. The parent opens no device.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import numpy as np  # noqa: E402 - the package is found first

from ridgecast.errors import MeasurementError, RidgecastError  # noqa: E402
from ridgecast.measure.base import DeviceInfo, Point  # noqa: E402
from ridgecast.measure.durations import run_times  # noqa: E402
from ridgecast.measure.energy import EnergyProtocol, measure_idle  # noqa: E402
from ridgecast.measure.plan import Plan  # noqa: E402
from ridgecast.measure.protocol import Protocol  # noqa: E402
from ridgecast.measure.providers import get_provider  # noqa: E402
from ridgecast.measure.sampling import in_order  # noqa: E402
from ridgecast.measure.session import find_meter  # noqa: E402
from ridgecast.measure.shards import ShardWriter, finished_points, read_rows, read_shards  # noqa: E402
from ridgecast.measure.sweep import Options, Progress, run_sweep  # noqa: E402
from ridgecast.store import length, read_table, write_table  # noqa: E402

TARGET = DeviceInfo("NVIDIA H200", "gpu", "h200_sxm")
TIME = Protocol(time_cap=0.25, precision=0.005)
SEED = 20240
# assumed, until a first run says better; seconds
PER_POINT = 0.25  # operands, capture, check against float64, warm-up and sampling of a short run
PER_ENERGY = 4.6  # settling, the window and what its whole runs add
RUNS = 14  # of a kernel at least: first ones, check, warm-up, samples
PER_VARIANT = {"triton": 1.2, "cutlass": 12.0, "cuda": 2.5}  # a processor core compiling
CORES = 12
RUN = 520.0  # one run's budget
_CHUNK = 20.0  # measured between two looks at the clock
_STALL = 240.0  # without a finished point: the child hangs
_RESTARTS = 8
# in refusals that pass: a library is compiled (providers.cutlass), the device is left alone
# (providers.torch_device)
WAITS = ("no library holds", "other process(es) compute")
_GAVE_UP = 4  # the child's exit code: nothing can be measured here


@dataclass(frozen=True)
class Rows:
    """Rows measured so far: status and time [s] by point key."""

    status: dict[str, str]
    time: dict[str, float]


Chosen = Callable[[Rows], Sequence[Point]]


@dataclass(frozen=True)
class Stage:
    """Points of one provider; `points` may be a function of the rows measured so far.

    `variants` is how many kernels must be compiled for them.
    """

    name: str
    provider: str
    points: Sequence[Point] | Chosen
    options: dict[str, Any] = field(default_factory=dict)
    variants: int = 0
    expected: int = 0  # points, where they are a function


@dataclass(frozen=True)
class Campaign:
    """A data set: its name, what it is, its stages, and how long a point's run takes [s]."""

    name: str
    title: str
    stages: Sequence[Stage]
    run_time: Callable[[Sequence[Point]], np.ndarray]
    before: Callable[[argparse.Namespace, Sequence[Stage]], None] | None = None


def bound_times(points: Sequence[Point]) -> np.ndarray:
    """Twice the speed of light on the target: what a run of a good kernel takes [s]."""
    return run_times(points, TARGET)


def run(campaign: Campaign, argv: Sequence[str] | None = None) -> int:
    """Run a campaign as the command line says; the exit code."""
    options = arguments(campaign).parse_args(argv)
    stages = [fitted(stage, options) for stage in campaign.stages]
    if options.dry_run:
        print("\n".join(estimate(campaign, stages, options)))
        return 0
    if options.build_only and campaign.before:
        campaign.before(options, stages)
        return 0
    if options.out is None:
        print("--out FOLDER says where the shards go (or --dry-run)", file=sys.stderr)
        return 2
    try:
        if options.worker:
            return measure(campaign, stages, options)
        import_rows(options)
        code = supervise(options, list(sys.argv[1:] if argv is None else argv))
        print("\n".join(collect(campaign, stages, options)))
    except RidgecastError as error:
        print(error, file=sys.stderr)
        return _GAVE_UP
    return code


def arguments(campaign: Campaign) -> argparse.ArgumentParser:
    """Command line of every campaign."""
    parser = argparse.ArgumentParser(description=campaign.title)
    add = parser.add_argument
    add("--out", type=Path, help="folder of the shards, one inside it for each provider")
    add("--budget", type=float, default=RUN, metavar="S", help="seconds to measure (%(default)g)")
    add("--dry-run", action="store_true", help="count points and expected seconds, touch nothing")
    add("--from", dest="earlier", nargs="*", type=Path, default=[], metavar="FILE",
        help="tables of earlier runs: their points are finished")  # fmt: skip
    add("--collect", type=Path, metavar="DIR", help="put one table a provider here at the end")
    add("--provider", help="measure with this provider instead (blas, numba: a trial on a CPU)")
    add("--replay", type=Path, metavar="FILE", help="answer from recorded rows instead")
    add("--stages", default="", help="only stages whose name contains this text")
    add("--limit", type=int, metavar="N", help="at most N points a stage")
    add("--largest", type=int, metavar="SIZE", help="no m, n or k above SIZE")
    add("--workers", type=int, default=max((os.cpu_count() or 2) - 4, 1), help="that compile")
    add("--libraries", type=Path, help="folder of compiled CUTLASS products")
    add("--include", type=Path, help="CUTLASS's include folder, where pip has none")
    add("--build-only", action="store_true", help="compile the CUTLASS products and stop")
    add("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser


def fitted(stage: Stage, options: argparse.Namespace) -> Stage:
    """Stage as the command line narrows it."""
    provider = options.provider or stage.provider
    if options.provider:
        stage = replace(stage, options={})
    if options.replay:
        provider = f"{provider}-replay"

    def narrowed(points: Sequence[Point]) -> list[Point]:
        most = options.largest or np.inf
        kept = [p for p in points if max(p.m, p.n, p.k) <= most]
        return kept[: options.limit]

    given = stage.points
    if callable(given):
        return replace(stage, provider=provider, points=lambda rows: narrowed(given(rows)))
    return replace(stage, provider=provider, points=narrowed(given))


def chosen(stages: Sequence[Stage], options: argparse.Namespace) -> list[Stage]:
    """Stages that --stages names."""
    return [stage for stage in stages if options.stages in stage.name]


# ------------------------------------------------------------------------------------ expected


def seconds(points: Sequence[Point], run_time: np.ndarray) -> float:
    """Return the seconds to measure points whose run takes `run_time` [s]."""
    energy = np.array([p.energy for p in points], bool)
    return float(len(points) * PER_POINT + (RUNS * run_time).sum() + energy.sum() * PER_ENERGY)


def estimate(campaign: Campaign, stages: Sequence[Stage], options: argparse.Namespace) -> list[str]:
    """Lines of --dry-run: points and expected seconds by stage, and how many runs they make."""
    lines = [campaign.title, f"{'stage':<26}{'points':>8}{'energy':>8}{'seconds':>10}"]
    total = Counter[str]()
    compiling = 0.0
    for stage in chosen(stages, options):
        if callable(stage.points):
            points, count = [], min(stage.expected, options.limit or stage.expected)
            took, energy = count * (PER_POINT + PER_ENERGY), count
        else:
            points, count = list(stage.points), len(stage.points)
            took = seconds(points, campaign.run_time(points)) if points else 0.0
            energy = sum(p.energy for p in points)
        compiling += stage.variants * PER_VARIANT.get(stage.provider, 0.0) / CORES
        total.update(points=count, energy=energy, seconds=int(took))
        lines.append(f"{stage.name:<26}{count:>8}{energy:>8}{took:>10.0f}")
    lines.append(f"{'all':<26}{total['points']:>8}{total['energy']:>8}{total['seconds']:>10}")
    runs = int(np.ceil((total["seconds"] + compiling) / options.budget))
    lines.append(
        f"compiling {compiling:.0f} s on {CORES} cores, beside the measuring where it can be; "
        f"about {runs} run(s) of {options.budget:.0f} s (assumed durations, see runner.py)"
    )
    return lines


# ------------------------------------------------------------------------------------ the parent


def import_rows(options: argparse.Namespace) -> None:
    """Take tables of earlier runs into folders that hold nothing yet."""
    for path in options.earlier:
        table = read_table(path)
        for provider in sorted(set(map(str, table["provider"].tolist()))):
            folder = options.out / provider
            if any(folder.glob("rows-*.parquet")):
                continue
            folder.mkdir(parents=True, exist_ok=True)
            rows = table["provider"] == provider
            write_table(folder / "rows-000001.parquet", {n: c[rows] for n, c in table.items()})


def supervise(options: argparse.Namespace, argv: list[str]) -> int:
    """Run children until the budget is spent; what one died of becomes a failed row."""
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the child ends too
    deadline = time.monotonic() + options.budget
    for _ in range(_RESTARTS):
        left = deadline - time.monotonic()
        (options.out / "now.json").unlink(missing_ok=True)
        command = [sys.executable, sys.argv[0], *argv, "--worker", "--budget", f"{left:.0f}"]
        child = subprocess.Popen(command, start_new_session=True)
        try:
            code = _wait(child, options.out / "now.json")
        except BaseException:
            _end(child)
            raise
        if code in (0, 2, _GAVE_UP):
            return code
        if not _blame(options.out, code) or deadline - time.monotonic() < 30:
            return 1
        time.sleep(2.0)  # the driver clears up behind the child
    return 1


def _wait(child: subprocess.Popen[bytes], beat: Path) -> int:
    """Exit code of the child; one that finishes no point for long is ended."""
    started = time.time()
    while True:
        try:
            return child.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            seen = beat.stat().st_mtime if beat.exists() else started
            if time.time() - seen > _STALL:
                _end(child)
                return child.wait()


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and the compilers that it started."""
    if hasattr(os, "killpg") and child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
    else:
        child.kill()


def _blame(out: Path, code: int) -> bool:
    """Write the point that the child was at as a failed row; False when it was at none."""
    try:
        now = json.loads((out / "now.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    folder = out / now["provider"]
    known = finished_points(folder)
    at = next((row for row in now["rows"] if row["point"] not in known), None)
    if at is None:
        return False
    reason = f"the device or the process was lost here (exit code {code})"
    row = {**at, "provider": now["provider"], "op": "gemm", "attempt": 1, "status": "failed"}
    with ShardWriter(folder) as writer:
        writer.append({**row, "valid": False, "reason": reason})
    print(f"{reason}: {at}", file=sys.stderr)
    return True


def collect(campaign: Campaign, stages: Sequence[Stage], options: argparse.Namespace) -> list[str]:
    """Write one table a provider where --collect says; lines of a short table."""
    lines = [f"{'provider':<16}{'points':>8}{'ok':>8}{'failed':>8}{'refused':>9}{'invalid':>9}"]
    for provider in dict.fromkeys(stage.provider for stage in stages):
        folder = options.out / provider
        if not finished_points(folder):
            continue
        table = read_rows(folder)
        status = Counter(map(str, table["status"].tolist()))
        invalid = int(((table["status"] == "ok") & ~table["valid"].astype(bool)).sum())
        numbers = (length(table), status["ok"], status["failed"], status["refused"], invalid)
        lines.append(
            f"{provider:<16}"
            + "".join(f"{n:>{w}}" for n, w in zip(numbers, (8, 8, 8, 9, 9), strict=True))
        )
        if options.collect:
            options.collect.mkdir(parents=True, exist_ok=True)
            write_table(options.collect / f"{campaign.name}_{provider}.parquet", table)
            if (options.out / "skipped.json").exists():
                shutil.copy(options.out / "skipped.json", options.collect)
            for path in folder.glob("environment-*.json"):
                shutil.copy(path, options.collect / f"{campaign.name}_{provider}_{path.name}")
    return lines


# ------------------------------------------------------------------------------------ the child


def measure(campaign: Campaign, stages: Sequence[Stage], options: argparse.Namespace) -> int:
    """Measure stage by stage until the budget is spent."""
    deadline = time.monotonic() + options.budget
    building = None
    if campaign.before and not options.provider and not options.replay:
        building = threading.Thread(target=campaign.before, args=(options, stages), daemon=True)
        building.start()
    reasons: list[str] = []
    for stage in chosen(stages, options):
        if building is not None and stage.provider == "cutlass":
            _join(building, deadline, options.out / "now.json")
        try:
            _Bench(campaign, stage, options).run(deadline)
        except _UnableError as error:  # the other stages may have another provider
            reasons.append(f"{stage.name}: {error}")
            print(reasons[-1], file=sys.stderr)
        if time.monotonic() > deadline:
            break
    (options.out / "skipped.json").write_text(json.dumps(reasons, indent=1), encoding="utf-8")
    return _GAVE_UP if len(reasons) == len(chosen(stages, options)) else 0


def _join(building: threading.Thread, deadline: float, beat: Path) -> None:
    """Wait for the compilers, showing that this process lives."""
    while building.is_alive() and time.monotonic() < deadline:
        beat.touch()
        building.join(5.0)


class _UnableError(Exception):
    """A stage's provider cannot run here."""


class _Bench:
    """A stage being measured: its provider, meter and protocol, and how fast it goes."""

    def __init__(self, campaign: Campaign, stage: Stage, options: argparse.Namespace) -> None:
        self.campaign, self.stage, self.options = campaign, stage, options
        self.folder = options.out / stage.provider
        self.parent = os.getppid()
        self.pace = 1.0  # seconds that points took over those expected
        if options.replay:
            self.provider = get_provider("replay", recording=options.replay)
        else:
            self.provider = get_provider(stage.provider, **self._options())
        probe = self.provider.probe()
        if not probe.ok or probe.device is None:
            raise _UnableError(f"{probe.reason} ({probe.cure})")
        self.meter = None if options.replay else find_meter((), probe.device)[0]

    def _options(self) -> dict[str, Any]:
        given = dict(self.stage.options)
        if self.stage.provider == "cutlass":
            given["include"] = self.options.include
            given["libraries"] = [self.options.libraries] if self.options.libraries else []
            given["compile_here"] = False  # half a minute each: built ahead, or refused
        return given

    def run(self, deadline: float) -> None:
        """Measure what is not finished, in the stage's order, until the deadline."""
        waiting = self._waiting()
        expected = dict(zip((p.key for p in waiting), self._expected(waiting), strict=True))
        close = self._compile_ahead(waiting)
        try:
            protocol = self._protocol(waiting, deadline)
            while waiting:
                left = deadline - time.monotonic()
                chunk: list[Point] = []
                while waiting and (
                    self.pace * sum(expected[p.key] for p in [*chunk, waiting[0]])
                    < (min(_CHUNK, left) if chunk else left)
                ):
                    chunk.append(waiting.pop(0))
                if not chunk:
                    return
                begun = time.monotonic()
                self._sweep(chunk, protocol)
                took = (time.monotonic() - begun) / sum(expected[p.key] for p in chunk)
                self.pace = 0.5 * self.pace + 0.5 * took
        finally:
            close()

    def _waiting(self) -> list[Point]:
        given = self.stage.points
        points = given(rows_of(self.options.out)) if callable(given) else given
        done = settled(self.folder)
        return [p for p in points if p.key not in done]

    def _expected(self, points: Sequence[Point]) -> list[float]:
        if not points:
            return []
        times = self.campaign.run_time(points)
        return [seconds([p], t[None]) for p, t in zip(points, times, strict=True)]

    def _compile_ahead(self, points: Sequence[Point]) -> Callable[[], None]:
        precompile = getattr(self.provider, "precompile", None)
        if precompile is None or not points:
            return lambda: None
        precompile(points, self.options.workers)
        return self.provider.close  # type: ignore[attr-defined]

    def _protocol(self, points: Sequence[Point], deadline: float) -> Protocol:
        """Protocol with the idle power, measured once where energy is asked for."""
        if self.meter is None or not any(p.energy for p in points):
            return TIME
        if self.meter.name == "clock" or deadline - time.monotonic() < 20:
            return TIME
        try:
            return replace(TIME, energy=EnergyProtocol(idle_power=measure_idle(self.meter)))
        except MeasurementError:  # each energy row says why; it is null there
            return TIME

    def _sweep(self, chunk: Sequence[Point], protocol: Protocol) -> None:
        now = self.options.out / "now.json"
        order = in_order(chunk)
        rows = [{**p.columns(), "point": p.key} for p in order]
        text = json.dumps({"provider": self.stage.provider, "rows": rows})
        now.write_text(text, encoding="utf-8")

        def beat(_: Progress) -> None:
            now.touch()
            if os.getppid() != self.parent:  # killed: nobody would end this process
                raise SystemExit(1)

        plan = Plan.of(order, name=self.campaign.name, seed=SEED, protocol=protocol)
        # what is here is not settled: a refusal for want of a library is tried again
        settings = Options(mix=True, retry_failed=True, shard_rows=500, shard_seconds=60.0)
        run_sweep(
            plan, self.folder, provider=self.provider, meter=self.meter, options=settings,
            progress=beat,
        )  # fmt: skip


def settled(folder: Path) -> set[str]:
    """Keys of points that need no further try; a refusal that passes is no answer."""
    if not finished_points(folder):
        return set()
    table = read_shards(folder)
    columns = (table[name].tolist() for name in ("point", "reason"))
    pairs = zip(*columns, strict=True)
    return {str(key) for key, reason in pairs if not any(text in str(reason) for text in WAITS)}


def rows_of(out: Path) -> Rows:
    """Status and time of every point in the folders of a campaign."""
    status: dict[str, str] = {}
    times: dict[str, float] = {}
    for folder in sorted(path for path in out.iterdir() if path.is_dir()):
        if not finished_points(folder):
            continue
        table = read_rows(folder)
        keys = list(map(str, table["point"].tolist()))
        status |= dict(zip(keys, map(str, table["status"].tolist()), strict=True))
        ok = (table["status"] == "ok") & table["valid"].astype(bool)
        found = np.where(ok, np.asarray(table["time_s"], np.float64), np.nan)
        times |= {key: float(t) for key, t in zip(keys, found, strict=True) if t > 0}
    return Rows(status, times)
