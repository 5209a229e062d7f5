"""The command that calibrates: the model of a device from minutes of its own measurements."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import MeasurementError, SpecError
from ..units import parse_quantity
from . import options as o
from .output import write_json

if TYPE_CHECKING:
    from ..hardware import Hardware
    from ..measure.base import DeviceInfo, Point, Provider

__all__ = ["HARDWARE_FILE", "THIS", "calibrate", "calibrated_folder"]

THIS = "this"
HARDWARE_FILE = "hardware.toml"
# kind of device -> (number format, providers of library GEMMs in the order of trial)
_DEFAULTS = {"gpu": ("bf16", ("torch",)), "cpu": ("fp32", ("blas",))}


def calibrated_folder(name: str) -> Path:
    """Folder of a device's calibration: under XDG_DATA_HOME, else ~/.local/share."""
    home = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(home) / "ridgecast" / "calibrated" / name


def calibrate(  # noqa: PLR0913, PLR0917 - a command has as many parameters as options
    on: Annotated[
        str | None,
        typer.Option(help="`this` (this machine's CPU), or the name of the GPU that is here."),
    ] = None,
    hardware: o.UserHardware = None,
    dtype: Annotated[
        str | None, typer.Option(help="Number format: bf16 on GPUs and fp32 on CPUs by default.")
    ] = None,
    budget: Annotated[str, typer.Option(help="Time to spend.")] = "5min",
    provider: Annotated[str | None, typer.Option(help="What runs the GEMMs: torch, blas.")] = None,
    replay: Annotated[
        Path | None, typer.Option(help="Calibrate on recorded rows of the device; nothing runs.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for points and model; a default per device.")
    ] = None,
    json: o.Json = False,
) -> None:
    """Measure the points that teach the most, and fit this device's own model.

    Then `--model OUT` predicts with it; a CPU that was calibrated as `this` is a device of that
    name. Killed, it goes on where it was.
    """
    from dataclasses import replace

    from ..measure.calibrate import CalibrationOptions
    from ..measure.calibrate import calibrate as run

    seconds = parse_quantity(budget, "time", field="--budget")
    kind = "cpu" if on == THIS else "gpu"
    chosen = dtype or _DEFAULTS[kind][0]
    runner, pool = _runner(kind, provider, replay, on, chosen)
    device = runner.probe().device
    name = on or (device.hardware if device else "") or "device"
    folder = out or calibrated_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    spec, ceilings = _spec(runner, device, on, hardware, folder, seconds)
    options = CalibrationOptions(dtype=chosen, budget=seconds - ceilings.get("elapsed_s", 0.0))
    result = run(runner, folder, hardware=spec, options=options, pool=pool, progress=_tell)
    result = replace(result, ceilings=ceilings or None)
    if json:
        write_json(result)
    else:
        _show(result)


def _tell(text: str) -> None:
    """Show progress; one line a point is for terminals only."""
    passing = "s left" in text
    if not passing or sys.stderr.isatty():
        typer.echo(f"{text:<72}" + ("\r" if passing else "\n"), err=True, nl=False)


def _runner(
    kind: str, name: str | None, recording: Path | None, on: str | None, dtype: str
) -> tuple[Provider, list[Point] | None]:
    """Find the provider, and the shapes to choose from where they are recorded ones."""
    from ..measure.providers import get_provider

    if recording is not None:
        return _replay(recording, on, dtype)
    reasons: list[str] = []
    for one in (name,) if name else _DEFAULTS[kind][1]:
        found = get_provider(one)
        probe = found.probe()
        if probe.ok:
            return found, None
        reasons.append(f"{one}: {probe.reason}" + (f" (try: {probe.cure})" if probe.cure else ""))
    step = "" if kind == "cpu" else " `ridgecast calibrate --on this` calibrates this machine's CPU"
    raise MeasurementError(f"nothing to measure with: {'; '.join(reasons)}.{step}")


def _replay(path: Path, on: str | None, dtype: str) -> tuple[Provider, list[Point]]:
    import numpy as np

    from ..hardware import get
    from ..measure.providers.replay import Replay
    from ..store import import_files, select

    table = import_files(path)
    wanted = (table["dtype"] == dtype) & table["valid"] & (table["kernel"] == "library")
    names = sorted({str(v) for v in table["hardware"][wanted]})
    if on is not None:
        wanted &= table["hardware"] == get(on).name
    if not wanted.any() or (on is None and len(names) > 1):
        raise SpecError(
            f"--replay {path}: asked for {dtype} GEMMs of {on or 'one device'}, it has those of "
            f"{', '.join(names) or 'none'}; name one with --on, or another --dtype"
        )
    found = Replay(select(table, np.flatnonzero(wanted)))
    return found, found.points()


def _spec(
    runner: Provider, device: DeviceInfo | None, on: str | None, user: Path | None, folder: Path,
    budget: float,
) -> tuple[Hardware, dict[str, Any]]:  # fmt: skip
    """Spec of the device: the user's, the catalogue's, or ceilings that are measured now."""
    from ..errors import RidgecastError
    from ..hardware import get, load, resolve

    if user is not None:
        return resolve(user), {}
    known = device.hardware if device else ""
    if on and on != THIS:
        asked = get(on)
        if known and get(known).name != asked.name:
            raise SpecError(f"--on {on}: the device here is {known}; calibrate it under its name")
        return asked, {}
    if on is None and known:
        try:
            return get(known), {}
        except RidgecastError:
            pass
    from ..measure.ceilings import measure_ceilings
    from ..measure.device_file import to_hardware_toml
    from ..measure.providers import get_provider

    path = folder / HARDWARE_FILE
    if path.exists():  # a calibration that goes on keeps its ceilings
        return load(path), {}
    if device is None:
        raise MeasurementError(f"provider {runner.name} names no device")
    typer.echo(f"measuring the ceilings of {device.name}", err=True)
    begun = time.monotonic()
    # Numba, where it is installed, has bandwidths on all cores; BLAS has the library's rates
    measured_by = [get_provider("numba"), runner] if device.kind == "cpu" else runner
    found = measure_ceilings(measured_by, budget=0.15 * budget)
    text = to_hardware_toml(found, device, name=on or THIS)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return load(path), {"file": str(path), "elapsed_s": time.monotonic() - begun}


def _show(result: Any) -> None:
    """Print the report: before and after on points that the model did not use."""
    lines = [
        f"{result.device}: {result.points} points of {result.dtype} GEMM in "
        f"{result.elapsed_s:.0f} s (ended: {result.stopped_by})",
        f"on {result.tests} points that were not used:",
        f"{'':22s}{'MAPE':>9s}{'median':>9s}{'p90':>9s}{'coverage':>10s}{'interval':>10s}",
    ]
    for label, score in (
        (f"before ({result.before_basis})", result.before), ("after", result.after)
    ):  # fmt: skip
        shares = "".join(f"{100 * score[key]:8.1f}%" for key in ("mape", "median", "p90"))
        width = f"x{score['width']:.2f}"
        lines.append(f"{label:22s}{shares}{100 * score['coverage']:9.0f}%{width:>10s}")
    if result.floor is not None:
        lines.append(f"two measurements of a point differ by {100 * result.floor:.1f} % (median)")
    shown = f"--on {result.hardware}" if result.hardware == THIS else f"--model {result.out}"
    lines.append(f"predict with it: ridgecast predict gemm MxNxK --dtype {result.dtype} {shown}")
    typer.echo("\n".join(lines))
