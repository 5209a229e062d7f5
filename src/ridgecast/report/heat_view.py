"""Heat maps of a multiplication over two knobs: sizes, tiles, or numbers of the device.

One `predict_table` call for the whole map; a cell that cannot be is empty, with its reason in the
table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import SpecError, unknown_name
from ..hardware import Hardware, resolve
from ..ops.gemm import MAX_DIM
from ..predict import predict_table
from ..units import format_field, key_values
from .figures import Axis, Figure, Heat, Panel
from .gemm_view import config_of, op_of
from .questions import HeatQuestion
from .scaled import scaled
from .view import Rows, View, Words, plain

__all__ = ["KNOBS", "heat_view", "kernels_with", "knobs_of"]

_SIZES = ("m", "n", "k", "batch")
_STEPS = range(-6, 5)  # powers of two about the size that is asked
_TILES = {
    "tile": (1, 2, 4, 8, 12, 16, 20, 24, 28, 32), "tile_m": (32, 64, 128, 256),
    "tile_n": (32, 64, 128, 256), "tile_k": (8, 16, 32, 64, 128), "stages": (2, 3, 4, 5),
    "split_k": (1, 2, 4, 8, 16),
}  # fmt: skip
_OF_KERNEL = {
    "library": (), "tiled": ("tile",), "clblast": (),
    "cutlass_simt": ("tile_m", "tile_n", "tile_k", "stages", "split_k"),
    "cutlass_tensor": ("tile_m", "tile_n", "tile_k", "stages", "split_k"),
}  # fmt: skip
_DEVICE = ("memory.bandwidth", "rates", "l2.bandwidth", "l2.capacity", "sm_count", "clock",
           "board_power")  # fmt: skip
_CHANGES = (-50, -33, -20, -10, 0, 10, 20, 33, 50, 75, 100)  # per cent
KNOBS = (*_SIZES, *_TILES, *_DEVICE)
_SHOWN = {
    "time": ("time_s", "time"), "power": ("power_w", "power"), "energy": ("energy_j", "energy"),
    "edp": ("edp_j_s", "energy_delay"), "utilisation": ("utilisation", ""),
    "rate": ("rate_flops_per_s", "flops_per_s"),
}  # fmt: skip


def knobs_of(kernel: str) -> tuple[str, ...]:
    """Knobs that a kernel has, those of the device included."""
    return (*_SIZES, *_OF_KERNEL[kernel], *_DEVICE)


def kernels_with(knob: str) -> tuple[str, ...]:
    """Kernels that have a knob.

    >>> kernels_with("tile")
    ('tiled',)
    """
    return tuple(kernel for kernel in _OF_KERNEL if knob in knobs_of(kernel))


@dataclass(frozen=True, slots=True)
class _Knob:
    """Values that one axis takes, their names, and where the question itself stands."""

    name: str
    values: tuple[Any, ...]
    names: tuple[str, ...]
    own: int | None


def _knob(axis: str, q: HeatQuestion, device: Hardware) -> _Knob:
    name = getattr(q, axis)
    if name not in knobs_of(q.kernel):
        known = knobs_of(q.kernel)
        told = unknown_name(f"knob of kernel {q.kernel}", name, known,
                            f"Allowed: {', '.join(known)}.")  # fmt: skip
        raise SpecError(f"{axis}: {told}")
    if name in _SIZES:
        own = getattr(q, name)
        sizes = sorted({min(max(round(own * 2.0**i), 1), MAX_DIM) for i in _STEPS})
        return _Knob(name, tuple(sizes), tuple(map(str, sizes)), sizes.index(own))
    if name in _TILES:
        own = getattr(q, name)
        values = sorted({*_TILES[name], *([own] if own else [])})
        at = values.index(own) if own else None
        return _Knob(name, tuple(values), tuple(map(str, values)), at)
    known = [c for c in _CHANGES if _can(device, name, c)]
    if not known:
        raise SpecError(f"{axis}: {device.name} states no {name} to change; choose another knob")
    names = tuple(f"{c:+d} %" if c else "as is" for c in known)
    return _Knob(name, tuple(f"{c:+d}%" for c in known), names, known.index(0))


def _can(device: Hardware, name: str, change: int) -> bool:
    try:
        device.what_if({name: f"{change:+d}%"})
    except SpecError:
        return False
    return True


def heat_view(q: HeatQuestion, *, model: str | Path | None = None) -> View:
    """Map the multiplication over two knobs.

    Raises SpecError for a knob that the kernel or the device does not have, or one used twice;
    UnsupportedError, as `predict`, is a reason in the table.
    """
    if q.x == q.y:
        raise SpecError(f"y: got {q.y}, which x has already; choose two different knobs")
    work, columns = op_of(q), config_of(q)
    device = resolve(q.on)
    changes = key_values(q.what_if, "what_if")
    device = device.what_if(changes) if changes else device
    across, down = _knob("x", q, device), _knob("y", q, device)
    rows, devices = [], {}
    for b in down.values:
        for a in across.values:
            fields: dict[str, Any] = {name: getattr(work, name) for name in _SIZES}
            fields |= {"dtype": work.dtype, "layout": work.layout, **columns}
            turned = {}
            for knob, value in ((across, a), (down, b)):
                if knob.name in _DEVICE:
                    turned[knob.name] = value
                else:
                    fields[knob.name] = value
            one = device.what_if(turned) if turned else device
            devices[one.name] = one
            rows.append({"op": "gemm", "hardware": one.name, **fields})
    found = _predicted(rows, devices, q, model)
    key, dimension = _SHOWN[q.show]
    values, unit = scaled(found[key], dimension)
    if q.show == "utilisation":
        values, unit = [100.0 * v for v in values], "%"
    width = len(across.values)
    grid = [values[i : i + width] for i in range(0, len(values), width)]
    mark = None if across.own is None or down.own is None else (down.own, across.own)
    heat = Heat(down.names, across.names, grid, q.show, unit,
                "linear" if q.show in ("utilisation", "power") else "log", mark)  # fmt: skip
    shown = _rows(rows, found, across, down)
    title = f"{q.show.capitalize()} over {q.y} and {q.x}"
    panel = Panel(title, Axis(q.x), Axis(q.y), heat=heat)
    if not np.isfinite(values).any():
        reason = next((str(r) for r in found["reason"] if r), "no cell has it")
        panel = Panel(title, reason=reason)
    caption = "Each cell is predicted by itself; an empty one cannot be, and the table says why."
    figure = Figure("heat", title, caption + (" The ring is the question." if mark else ""),
                    (panel,))  # fmt: skip
    best = _best(shown, q.show)
    return View(
        "gemm", title, (figure, Words(best), Rows("cells", "Cells", shown, open=False)),
        answer={"x": q.x, "y": q.y, "show": q.show, "rows": shown},
        command=q.command(), python=_python(q), address=q.address(),
    )  # fmt: skip


def _predicted(
    rows: list[dict[str, Any]],
    devices: Mapping[str, Hardware],
    q: HeatQuestion,
    model: str | Path | None,
) -> dict[str, Any]:
    extra = {"cache": q.cache} if q.cache != "hot" else {}
    table = {
        key: np.array([r[key] for r in rows], object if isinstance(rows[0][key], str) else None)
        for key in rows[0]
    }
    table |= {k: np.full(len(rows), v, object) for k, v in extra.items()}
    if q.kernel != "library":
        table["kernel"] = np.full(len(rows), q.kernel, object)
    found: dict[str, Any] = dict(predict_table(table, model=model, level=q.level, hardware=devices))
    sizes = np.prod([np.asarray(table[n], float) for n in _SIZES], axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        found["utilisation"] = found["bound_s"] / found["time_s"]
        found["edp_j_s"] = found["energy_j"] * found["time_s"]
        found["rate_flops_per_s"] = 2.0 * sizes / found["time_s"]
    return found


def _rows(
    rows: list[dict[str, Any]], found: Mapping[str, Any], across: _Knob, down: _Knob
) -> list[dict[str, Any]]:
    keys = ("time_s", "time_low_s", "time_high_s", "power_w", "energy_j", "edp_j_s", "utilisation",
            "rate_flops_per_s", "limiter", "basis", "status", "reason")  # fmt: skip
    width = len(across.values)
    return [
        {down.name: down.names[i // width], across.name: across.names[i % width],
         **{k: plain(found[k][i]) for k in keys}}
        for i in range(len(rows))
    ]  # fmt: skip


def _best(rows: list[dict[str, Any]], show: str) -> tuple[str, ...]:
    """Say which cell is best in what is shown."""
    key = _SHOWN[show][0]
    known = [r for r in rows if r[key] is not None]
    if not known:
        return ()
    most = show in ("utilisation", "rate")
    best = (max if most else min)(known, key=lambda r: r[key])
    where = ", ".join(f"{k} {best[k]}" for k in list(best)[:2])
    text = format_field(key, best[key])
    return (f"{'Most' if most else 'Least'}: {text} at {where}.",)


def _python(q: HeatQuestion) -> str:
    return (
        "from ridgecast.report.heat_view import heat_view\n"
        "from ridgecast.report.questions import HeatQuestion\n\n"
        f"print(heat_view(HeatQuestion(**{q.asked()!r})).answer)"
    )
