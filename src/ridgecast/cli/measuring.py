"""The command that measures: one point, or a sweep file into a folder of shards."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import SpecError, unknown_name
from ..units import format_quantity, parse_quantity
from . import options as o
from .output import REFUSED, plain, write_json
from .parse import parse_shape
from .plotting import check_plot, command, save_plot

if TYPE_CHECKING:
    from ..measure.plan import Plan
    from ..measure.sweep import DryRun, Progress, Result

__all__ = ["measure"]

_OPS = ("gemm",)  # what the providers run

INTERRUPTED = 130  # as shells say it: 128 + SIGINT


def measure(  # noqa: PLR0913, PLR0917 - a command has as many parameters as options
    target: Annotated[str, typer.Argument(metavar="PLAN.toml|gemm", show_default=False)],
    shape: Annotated[str | None, typer.Argument(help="MxNxK.", show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the rows of a sweep.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell what would run, and for how long.")
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(help="Stop after this time, most informative points first: 20min."),
    ] = None,
    provider: Annotated[
        str | None, typer.Option(help="What runs the kernels: blas, numba, cuda, torch ...")
    ] = None,
    meter: Annotated[str | None, typer.Option(help="Source of power: nvml or rapl.")] = None,
    replay: Annotated[
        Path | None, typer.Option(help="Answer from this recording; nothing runs.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Measure failed and refused points again.")
    ] = False,
    mix: Annotated[
        bool, typer.Option("--mix", help="Let results of another environment into the folder.")
    ] = False,
    engine: Annotated[
        str, typer.Option(help="local, or ray: a sweep on every device of a Ray cluster.")
    ] = "local",
    dtype: o.Dtype = None,
    batch: o.Batch = None,
    layout: o.Layout = None,
    cache: Annotated[str, typer.Option(help="State of the L2 before each run.")] = "hot",
    energy: Annotated[bool, typer.Option("--energy", help="Measure energy too.")] = False,
    kernel: Annotated[
        str, typer.Option(help="library, tiled, or another of the provider's.")
    ] = "library",
    tile: o.Tile = None,
    tile_m: o.TileM = None,
    tile_n: o.TileN = None,
    tile_k: o.TileK = None,
    stages: o.Stages = None,
    split_k: o.SplitK = None,
    config: o.ConfigPairs = None,
    plot: o.Plot = None,
    json: o.Json = False,
) -> None:
    """Measure one point, or every point of a sweep file.

    A sweep resumes: the same command goes on where it was stopped or killed.
    """
    from ..measure.plan import Plan, load_plan

    check_plot(plot)
    if plot is not None and dry_run:
        raise SpecError("--plot: draws what was measured; leave out --dry-run")
    is_file = target.endswith(".toml") or Path(target).is_file()
    if not is_file and target not in _OPS:
        step = "A sweep file ends in .toml."
        raise SpecError(unknown_name("op or sweep file", target, _OPS, step))
    if is_file:
        if shape is not None:
            raise SpecError(f"got {target} and {shape}: a sweep file holds its own shapes")
        plan = load_plan(target)
    else:
        if shape is None:
            raise SpecError("need a shape: measure gemm 1024x1024x1024 --provider blas")
        sizes = {"tile": tile, "tile_m": tile_m, "tile_n": tile_n, "tile_k": tile_k}
        from ..kernels.asked import config_columns

        columns = config_columns(
            kernel, {**sizes, "stages": stages, "split_k": split_k}, config or ()
        )
        asked = {"batch": batch or 1, "layout": layout or "nn", "cache": cache, "energy": energy}
        plan = Plan((_point(shape, dtype or "fp32", columns, asked),))
    plan = replace(plan, meters=(meter,)) if meter else plan
    runner = _provider(plan, provider, replay)
    far = _far(engine, is_file and not dry_run)
    if dry_run:
        return _told(_dry(plan, out, runner), json=json)
    if not is_file:
        return _single(plan, runner, plot=plot, json=json)
    if out is None:
        raise SpecError("--out: say into which folder the rows go (or --dry-run)")
    options = _options(budget, retry_failed, mix)
    if far:
        plan, runner = _named(plan, provider, replay), engine
    return _sweep(plan, out, runner, options, plot=plot, json=json)


def _far(engine: str, sweep: bool) -> bool:
    """Whether the points go to other processes. Raises SpecError where they cannot."""
    from ..store.engines import check_engine

    if check_engine(engine) == "local":
        return False
    if not sweep:
        raise SpecError(f"--engine {engine}: for the points of a sweep file; leave it out here")
    return True


def _named(plan: Plan, provider: str | None, recording: Path | None) -> Plan:
    """Return the plan with the provider that the options name, for it is built elsewhere."""
    if recording is not None:
        return replace(plan, provider="replay", options={"recording": str(recording.resolve())})
    if provider and provider != plan.provider:
        return replace(plan, provider=provider, options={})
    return plan


def _point(shape: str, dtype: str, columns: dict[str, Any], asked: dict[str, Any]) -> Any:
    from ..dtypes import dtype as find_dtype
    from ..measure import Point
    from ..store import CONFIG_COLUMNS

    config = {name: value for name, value in columns.items() if name != "kernel"}
    for name, value in config.items():
        if name not in CONFIG_COLUMNS:
            raise SpecError(unknown_name("configuration column", name, CONFIG_COLUMNS))
        if not isinstance(value, int):
            raise SpecError(f"--config {name}: got {value!r}, need a whole number")
    kernel = str(columns["kernel"])
    return Point(kernel, **parse_shape(shape), dtype=find_dtype(dtype).name, config=config, **asked)


def _provider(plan: Plan, name: str | None, recording: Path | None) -> Any:
    from ..measure.providers import get_provider
    from ..measure.session import find_provider

    if recording is None:
        return find_provider(plan, name or "")
    if name:
        raise SpecError("--replay: the recording answers; leave out --provider")
    return get_provider("replay", recording=recording)


def _options(budget: str | None, retry_failed: bool, mix: bool) -> Any:
    from ..measure.sweep import Options

    seconds = None
    if budget is not None:
        seconds = parse_quantity(budget, "time", field="--budget")
        if seconds <= 0:
            raise SpecError(f"--budget: got {budget!r}, need a time above 0")
    return Options(budget=seconds, retry_failed=retry_failed, mix=mix)


# ---------------------------------------------------------------------------------- one point


def _single(plan: Plan, provider: Any, *, plot: Path | None, json: bool) -> None:
    """Measure the plan's one point and print it; status 4 where there is no valid time."""
    from ..measure.session import open_session

    (point,) = plan.points
    session = open_session(plan, provider)
    session = session.with_idle() if point.energy else session
    row = plain(session.row(point))
    if row.get("time_s") and point.flops:
        row["flops_per_s"] = point.flops / row["time_s"]
    if json:
        write_json(row)
    else:
        from .render import print_rows

        print_rows(_lines(row, point.energy, session.environment.record["meter_reason"]))
    if plot is not None and (row.get("time_s") or plot.suffix.lower() == ".html"):
        from ..report.measured_view import measured_view

        save_plot(measured_view(row, command=command()), plot)
    if row["status"] != "ok" or not row["valid"]:
        typer.echo(f"ridgecast: not measured: {row['reason']}", err=True)
        raise typer.Exit(REFUSED)


def _lines(row: dict[str, Any], energy: bool, why: str) -> list[dict[str, str]]:
    """Card of a row: quantity and text."""

    def quantity(key: str, dimension: str) -> str:
        return format_quantity(row.get(key), dimension)

    times = (quantity(key, "time") for key in ("time_low_s", "time_p10_s", "time_p90_s"))
    error, allowed = row.get("error_frobenius"), row.get("tolerance")
    power = "not asked for: --energy"
    if energy:
        known = quantity("energy_j", "energy") + ", " + quantity("power_w", "power")
        power = known if row.get("energy_j") else f"n/a: {why or 'see the note'}"
    samples = row.get("samples") or 0
    lines = {
        "device": f"{row['device']}, {row['provider']}, {row['kernel']} {row['dtype']}",
        "time": f"{quantity('time_s', 'time')} (median of {samples:.0f})",
        "least, 10 %, 90 %": ", ".join(times),
        "rate": quantity("flops_per_s", "flops_per_s"),
        "error": "n/a" if error is None else f"{error:.2g} of {allowed:.2g} allowed",
        "energy a run, power": power,
        "throttled samples": str(row.get("throttled_samples", "n/a")),
        "note": str(row["reason"] or ""),
    }
    return [{"quantity": name, "value": text} for name, text in lines.items() if text]


# -------------------------------------------------------------------------------------- sweeps


def _dry(plan: Plan, out: Path | None, provider: Any) -> DryRun:
    from ..measure.sweep import dry_run

    return dry_run(plan, out, provider=provider)


def _told(result: DryRun, *, json: bool) -> None:
    """Print what a run would do."""
    if json:
        row = asdict(result)
        row |= {f"{name}_s": row.pop(name) for name in ("duration", "longest")}
        return write_json(row)
    for kernel, count in result.kernels.items():
        typer.echo(f"{count} points of kernel {kernel}")
    typer.echo(
        f"{result.points} points ({result.duplicates} repeated ones dropped, {result.excluded} "
        f"left out by constraints), {result.finished} finished"
    )
    for reason, count in result.refused.items():
        typer.echo(f"{count} will be refused: {reason}")
    typer.echo(f"expected {_clock(result.duration)}, at the caps {_clock(result.longest)}")
    if result.note:
        typer.echo(result.note, err=True)
    return None


def _sweep(
    plan: Plan, out: Path, provider: Any, options: Any, *, plot: Path | None, json: bool
) -> None:  # fmt: skip
    from ..measure.spread import run_spread
    from ..measure.sweep import run_sweep

    lines = _ProgressLine()
    shared = {"options": options, "progress": lines.show}
    try:
        if isinstance(provider, str):  # the name of an engine: providers are built where they run
            result = run_spread(plan, out, engine=provider, **shared)
        else:
            result = run_sweep(plan, out, provider=provider, **shared)
    except KeyboardInterrupt:
        lines.end()
        typer.echo(f"stopped; finished points are in {out}, the same command resumes", err=True)
        raise typer.Exit(INTERRUPTED) from None
    lines.end()
    _summary(result, json=json)
    if plot is not None:
        from ..report.campaign_view import campaign_view

        save_plot(campaign_view(out), plot)
    measured = result.ok + result.failed + result.refused
    if measured and not result.ok and not result.finished_before:
        typer.echo("ridgecast: no point could be measured; the rows say why", err=True)
        raise typer.Exit(REFUSED)


def _summary(result: Result, *, json: bool) -> None:
    from ..measure.shards import read_shards

    table = read_shards(result.out) if result.points != result.remaining else {}
    reasons: dict[str, int] = {}
    if table:
        for status, reason in zip(table["status"].tolist(), table["reason"].tolist(), strict=True):
            if status != "ok":
                told = f"{status}: {reason}"
                reasons[told] = reasons.get(told, 0) + 1
    worst = dict(sorted(reasons.items(), key=lambda item: -item[1])[:5])
    if json:
        row = asdict(result)
        row["elapsed_s"] = row.pop("elapsed")
        return write_json({**row, "reasons": worst})
    typer.echo(
        f"{result.out}: {result.ok} measured ({result.invalid} not valid), {result.failed} failed, "
        f"{result.refused} refused, {result.finished_before} finished before, {result.remaining} "
        f"left; {_clock(result.elapsed)} on {result.device}, environment {result.environment}"
    )
    for reason, count in worst.items():
        typer.echo(f"{count} {reason}", err=True)
    return None


def _clock(seconds: float) -> str:
    """Duration for eyes.

    >>> _clock(3.2), _clock(200), _clock(7500)
    ('3.2 s', '3 min 20 s', '2 h 5 min')
    """
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


class _ProgressLine:
    """Progress on stderr: one line that is rewritten in a terminal, else one every 5 s."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = 0.0
        self._open = False

    def show(self, at: Progress) -> None:
        """Tell of a finished point."""
        now = time.monotonic()
        every = 0.1 if self._terminal else 5.0
        if now - self._last < every and at.done < at.total:
            return
        self._last = now
        row = at.row
        took = (
            format_quantity(row.get("time_s"), "time") if row["status"] == "ok" else row["status"]
        )
        text = (
            f"{at.done}/{at.total}  {row['kernel']} {row['m']}x{row['n']}x{row['k']} "
            f"{row['dtype']}: {took}  {_clock(at.elapsed)}, left {_clock(at.eta)}"
        )
        if self._terminal:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
            self._open = True
        else:
            typer.echo(text, err=True)

    def end(self) -> None:
        """Leave the line behind."""
        if self._open:
            sys.stderr.write("\n")
            self._open = False
