"""The rows of a study: which points, on which provider, resumed where an earlier run stopped.

Owns the study's own choice of points (cubes for the curves, scattered shapes for the models, energy
where there is a meter; several passes over all of them, for labels that last and for the floor)
and the way from a table or a recording to rows. Measuring is `measure.sweep`'s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MeasurementError, NoDataError, RidgecastError, SpecError, unknown_name
from ..hardware import Hardware, get, load
from ..measure.base import DeviceInfo, Point, Provider
from ..measure.energy import EnergyProtocol
from ..measure.plan import Plan
from ..measure.protocol import Protocol
from ..measure.providers import get_provider
from ..predict.sweep_features import column as column_or
from ..store import CONFIG_COLUMNS, import_files
from ..store.tables import Table, length

__all__ = ["BUDGETS", "PROVIDERS", "Collected", "collect", "find_provider", "read_rows",
           "study_points"]  # fmt: skip

PROVIDERS = ("cuda", "numba", "opencl")
"""Providers that a study may use, best first."""

TILES = (1, 2, 4, 8, 16, 32)
BUDGETS = {"quick": 55.0, "default": 330.0}  # s of measuring
_SHAPES = {"quick": 20, "default": 64}
_CUBES = {
    ("cpu", "quick"): (64, 128, 256), ("cpu", "default"): (64, 128, 192, 256, 384, 512),
    ("gpu", "quick"): (256, 512, 1024, 2048),
    ("gpu", "default"): (128, 256, 512, 1024, 1536, 2048, 4096),
}  # fmt: skip
_RANGE = {"cpu": (16.0, 512.0), "gpu": (64.0, 4096.0)}
_LONGEST = {"quick": 0.05, "default": 0.15}  # s that one run may take, by the guess below
# flop/s that a run is guessed by when points are chosen, per tile side up to 8 (assumed, low)
_GUESS = {"cpu": 1.5e8, "gpu": 3e10}
_PASSES = {"quick": 4, "default": 6}  # over all points, so that what drifts meets every point
_ENERGY_PASSES = 2  # windows of seconds repeat better than bursts
_FIRST = 0.7  # share of the budget that the first pass may take
_CEILINGS = {"quick": 6.0, "default": 20.0}  # s
_BUSY = 0.5  # load per core from which on a machine counts as busy (assumed)
DEVICE_FILE = "device.toml"
_ENERGY_SHAPES = {"quick": 2, "default": 5}


@dataclass(frozen=True, slots=True)
class Collected:
    """Measured rows and what is known of how they came to be.

    `hardware` is the device's spec: the catalogue's, or that of its measured ceilings; None where
    neither is to be had. `no_power` is the reason why rows have no power, "" where they do.
    """

    table: Table
    meta: Mapping[str, Any]
    no_power: str = ""
    hardware: Hardware | None = None


def find_provider(name: str = "", threads: int | None = None) -> Provider:
    """Build the named provider, or the best one that works here; `threads` is for CPU kernels.

    Raises MeasurementError that says why each does not, with the line that cures it.
    """
    if name and name not in PROVIDERS:
        raise SpecError(unknown_name("provider of a study", name, PROVIDERS))
    reasons: list[str] = []
    for candidate in (name,) if name else PROVIDERS:
        try:
            options = {"threads": threads} if threads and candidate == "numba" else {}
            provider = get_provider(candidate, **options)
            probe = provider.probe()
        except (RidgecastError, ImportError) as error:
            reasons.append(f"{candidate}: {error}")
            continue
        if probe.ok:
            return provider
        reasons.append(f"{candidate}: {probe.reason}. {probe.cure}".strip())
    raise MeasurementError(
        f"no provider can run the study here. {'; '.join(reasons)}. "
        "On any CPU: pip install 'ridgecast[study]'"
    )


def study_points(kind: str, size: str, *, energy: bool, seed: int = 0) -> list[Point]:
    """Points of a study on a device of `kind` (cpu or gpu); `size` is quick or default.

    Cubes and scattered shapes (log-uniform sizes, half of them multiples of 16), each with every
    tile side that is quick enough; with `energy` also energy windows on the largest cubes.
    """
    rng = np.random.default_rng(seed)
    shapes = [(s, s, s) for s in _CUBES[kind, size]]
    low, high = np.log2(_RANGE[kind])
    while len(shapes) < len(_CUBES[kind, size]) + _SHAPES[size]:
        drawn = 2.0 ** rng.uniform(low, high, 3)
        step = 16 if rng.random() < 0.5 else 1
        m, n, k = (max(step, round(float(x) / step) * step) for x in drawn)
        if (m, n, k) not in shapes:
            shapes.append((m, n, k))
    points: list[Point] = []
    limit = _LONGEST[size] * _GUESS[kind]
    for m, n, k in shapes:
        points += [
            Point("tiled", m, n, k, config={"tile": tile})
            for tile in TILES
            if 2.0 * m * n * k <= limit * min(tile, 8)
        ]
    if energy:
        for side in _CUBES[kind, size][-_ENERGY_SHAPES[size] :]:
            points += [
                Point("tiled", side, side, side, config={"tile": tile}, energy=True)
                for tile in TILES
                if 2.0 * side**3 <= 4.0 * limit * min(tile, 8)
            ]
    return points


def _protocol(size: str) -> Protocol:
    """Shorter samples than the default protocol, in several passes instead.

    On a shared machine what differs from minute to minute is larger than what differs from run to
    run: the same seconds tell more when they are spread. The floor shows what is left.
    """
    quick = size == "quick"
    return Protocol(
        min_samples=7, precision=0.01, time_cap=0.1 if quick else 0.15,
        energy=EnergyProtocol(settle=0.5 if quick else 1.5),
    )  # fmt: skip


def collect(
    out: Path,
    *,
    provider: str = "",
    quick: bool = False,
    recording: Path | None = None,
    threads: int | None = None,
    seed: int = 0,
    progress: Callable[[Any], None] | None = None,
) -> Collected:
    """Measure (or go on measuring) a study's points into `out`; return its rows.

    A killed study goes on where it stopped; the budget counts what was measured before. With
    provider "replay" the points of `recording` are answered from it.
    Raises MeasurementError when nothing can measure here.
    """
    from ..measure.session import find_meter
    from ..measure.shards import read_shards

    size = "quick" if quick else "default"
    if provider == "replay":
        if recording is None:
            raise SpecError("provider replay: say which recording with --data FOLDER or FILE")
        chosen: Provider = get_provider("replay", recording=recording)
    else:
        chosen = find_provider(provider, threads)
    probe = chosen.probe()
    device = probe.device
    if device is None:
        raise MeasurementError(f"{chosen.name}: {probe.reason}")
    _, missing = find_meter((), device)
    warnings = _busy(device)
    hardware = _spec(device, out, None if provider == "replay" else chosen, size, warnings)
    if recording is not None and provider == "replay":
        points = _recorded_points(_table_of(recording))
        _sweep(chosen, points, out, None, seed, size, progress)
    else:
        points = study_points(device.kind, size, energy=not missing, seed=seed)
        _sweep(chosen, points, out, _FIRST * BUDGETS[size], seed, size, progress)
        for turn in range(1, _PASSES[size]):
            again = _repeats(out, points, turn, seed)
            _sweep(chosen, again, out, BUDGETS[size], seed + turn, size, progress)
    table = read_shards(out)
    meta = {
        "source": "replay" if provider == "replay" else "measured here",
        "provider": chosen.name, "device": device.name, "device_kind": device.kind,
        "catalogue_name": device.hardware, "facts": dict(device.facts),
        "planned_points": len(points), "size": size, "warnings": warnings,
    }  # fmt: skip
    powered = np.isfinite(column_or(table, "energy_j", np.nan)).any()
    no_power = "" if powered else missing or "no energy point was measured"
    return Collected(table, meta, no_power, hardware)


def _busy(device: DeviceInfo) -> list[str]:
    """Warn when the machine has other work: times then scatter, and the floor shows it."""
    if device.kind != "cpu" or not hasattr(os, "getloadavg"):
        return []
    load, cores = os.getloadavg()[0], int(device.facts.get("cores") or os.cpu_count() or 1)
    if load <= _BUSY * cores:
        return []
    return [
        f"The machine was busy when the sweep began (load {load:.1f} on {cores} cores): its times "
        "scatter, see the repeat floor; run the study again on a quiet machine."
    ]


def _spec(
    device: DeviceInfo, out: Path, provider: Provider | None, size: str, warnings: list[str]
) -> Hardware | None:
    """Spec of the device: the catalogue's, or its ceilings, measured once a folder."""
    from ..measure.ceilings import measure_ceilings
    from ..measure.device_file import to_hardware_toml

    if device.hardware:
        try:
            return get(device.hardware)
        except RidgecastError:
            pass
    path = out / DEVICE_FILE
    if path.exists():
        return load(path)
    if provider is None:
        return None
    providers = [provider]
    try:
        if device.kind == "cpu":
            providers.append(get_provider("blas"))
        found = measure_ceilings(providers, budget=_CEILINGS[size])
        text = to_hardware_toml(found, device, name="this")
        out.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
        return load(path)
    except (RidgecastError, ImportError) as error:
        warnings.append(f"The device's ceilings could not be measured ({error}).")
        return None


def _sweep(
    provider: Provider, points: list[Point], out: Path, budget: float | None, seed: int,
    size: str, progress: Callable[[Any], None] | None,
) -> None:  # fmt: skip
    """Measure what is not finished of `points`, within what `out` has not spent of the budget."""
    from ..measure.sweep import Options, run_sweep

    left = None if budget is None else budget - _spent(out)
    if points and (left is None or left > 1.0):
        plan = Plan.of(points, name=f"study-{size}", seed=seed, protocol=_protocol(size))
        run_sweep(plan, out, provider=provider, options=Options(budget=left), progress=progress)


def _repeats(out: Path, points: list[Point], turn: int, seed: int) -> list[Point]:
    """Points of one more pass: those that the first one finished, in an order of its own."""
    from ..measure.shards import read_shards

    table = read_shards(out)
    finished = set(table["point"][table["status"] == "ok"].tolist())
    done = [p for p in points if p.key in finished and (turn < _ENERGY_PASSES or not p.energy)]
    order = np.random.default_rng((seed, turn)).permutation(len(done))
    return [replace(done[i], repeat=turn) for i in order.tolist()]


def _spent(out: Path) -> float:
    """Seconds that earlier runs spent on the rows that a folder has."""
    from ..measure.shards import read_shards

    try:
        table = read_shards(out)
    except NoDataError:
        return 0.0
    return float(np.nansum(column_or(table, "elapsed_s", 0.0)))


def _table_of(path: Path) -> Table:
    from ..measure.shards import read_shards

    return read_shards(path) if path.is_dir() else import_files(path)


def _recorded_points(table: Table) -> list[Point]:
    """Points of recorded rows. Raises SpecError for rows that name none."""
    points: list[Point] = []
    configs = {name: column_or(table, name, np.nan) for name in CONFIG_COLUMNS if name in table}
    for i in range(length(table)):
        config = {name: int(v[i]) for name, v in configs.items() if np.isfinite(v[i])}
        fixed: dict[str, Any] = {name: int(table[name][i]) for name in ("m", "n", "k")}
        for name in ("batch", "repeat"):
            if name in table:
                fixed[name] = int(table[name][i])
        fixed |= {
            name: str(table[name][i])
            for name in ("dtype", "layout", "cache", "pattern")
            if name in table and table[name][i] not in ("", "unknown")
        }
        energy = bool(table["energy"][i]) if "energy" in table else False
        kernel = str(table["kernel"][i]) if "kernel" in table else "library"
        points.append(Point(kernel, **fixed, config=config, energy=energy))
    return points


def read_rows(path: Path) -> Collected:
    """Rows of a file or folder that were measured elsewhere (shards, or any importer's tables).

    Raises NoDataError when there is none, SpecError for rows of several devices.
    """
    if not path.exists():
        raise NoDataError(f"{path}: no such file or folder")
    table = _table_of(path) if _is_shards(path) else import_files(path)
    names = sorted(set(map(str, table["hardware"].tolist()))) if "hardware" in table else []
    if len(names) > 1:
        raise SpecError(
            f"{path}: rows of {len(names)} devices ({', '.join(names[:4])}); a study is of one: "
            "give it the files of one device"
        )
    powered = np.isfinite(column_or(table, "energy_j", np.nan)).any()
    name = names[0] if names else ""
    try:
        hardware = get(name) if name else None
    except RidgecastError:
        hardware = load(path / DEVICE_FILE) if (path / DEVICE_FILE).is_file() else None
    meta = {"source": f"read from {path.name}", "provider": None, "device": name,
            "catalogue_name": name}  # fmt: skip
    no_power = "" if powered else "the rows hold no energy that is valid"
    return Collected(table, meta, no_power, hardware)


def _is_shards(path: Path) -> bool:
    return path.is_dir() and (any(path.glob("rows-*.parquet")) or (path / "journal.log").exists())
