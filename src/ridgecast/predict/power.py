"""Mean board power, and with it energy, from the work done per second and the board power.

Owns the physical basis and its few fitted numbers. With the utilisations of what is done per
second, u_f = flops / (rate time), u_b = memory_bytes / (bandwidth time), u_l the same for the L2,

    y = c_f u_f**gamma + c_b u_b + c_l u_l                 demand, as a share of what is left
    power = board_power (idle + (ceiling - idle) g(y))     g(y) = y / (1 + y**p)**(1/p)

g is a soft limit: linear for small y, 1 for large y, because a device lowers its clocks to hold
its board power. Every number is a share, so that it carries over to other devices. gamma below 1
stands for padded tiles and operand traffic that few useful operations hide. Power never falls
when any of the three utilisations rises.

**What the labels are worth.** The fitted labels are means of an averaged sensor over windows of
0.3-1 s. Such a sensor lags: a window partly shows the kernel before. Two collections of the same
points are reported to differ by 27-63 % (median) at equal latency, so errors against single labels
say more about the sensor than about the model; how much the row before explains is in the card
(`sensor_memory`), as is the error on labels that follow a kernel of like power (`mape_settled`).
Rows of kernels shorter than the device's floor are not fitted, and their intervals are calibrated
on the labels as they are: wide. Intervals cover labels, the sensor's memory included.

Knows no kernel and no time model: the caller gives operations, bytes and time. `power_fit` fits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dtypes import DTYPES
from ..dtypes import dtype as find_dtype
from ..errors import NoDataError, OutOfDomainError, SpecError
from ..hardware import Hardware, origin_of
from ..store import Table

__all__ = ["LEVELS", "MOST_IDLE", "OVERSHOOT", "Basis", "PowerModel", "cell_of", "cells",
           "gemm_work", "load_power", "utilisations"]  # fmt: skip

FloatArray = npt.NDArray[np.float64]

OVERSHOOT = 1.05
"""Highest mean power over the board power that an interval may reach. Kind: assumed, above the
largest of 144,102 sensor means on H200 and B200 (1.002 and 1.032; AIConfigurator, Apache-2.0)."""

SCHEMA_VERSION = 1
CARD = Path(__file__).parent / "trained" / "power" / "card.json"

MOST_IDLE = 0.95
"""Share of the ceiling that the power of a device which does next to nothing may take (assumed)."""

_TIME_EDGES = np.array([20e-6, 56e-6, 200e-6, 1e-3, 10e-3])  # s; the label floors are edges
_DEMAND_EDGES = np.array([0.8, 1.2, 1.6, 2.0])  # y: well below the limit ... far beyond it
LEVELS = (0.5, 0.8, 0.9, 0.95, 0.99)
# Formats without power labels take the coefficient of the format with a like multiplier (assumed).
_LIKE = {"fp8_e4m3": "fp8_block", "fp8_e5m2": "fp8_block", "int8": "fp8_block",
         "mxfp4": "nvfp4", "int4": "nvfp4"}  # fmt: skip
_DEFAULT = "bf16"


# ----------------------------------------------------------------------------------- physical basis


@dataclass(frozen=True, slots=True)
class Basis:
    """The fitted shares of one device (or of all of them pooled); all dimensionless.

    `flop` is c_f by format, `memory` c_b, `l2` c_l, as shares of (ceiling - idle) at the peak.
    `idle` is the power of a device that is busy with almost nothing, `ceiling` the level at which
    the limit holds the mean, both as shares of the board power.
    """

    idle: float
    ceiling: float
    memory: float
    l2: float
    flop: Mapping[str, float]
    gamma: float
    sharpness: float

    def coefficient(self, dtype: str) -> float:
        """c_f of a format, of the format with a like multiplier, or of any."""
        for name in (dtype, _LIKE.get(dtype, ""), _DEFAULT):
            if name in self.flop:
                return self.flop[name]
        return float(np.mean(list(self.flop.values())))

    def demand(self, u: Sequence[FloatArray], flop: Any) -> FloatArray:
        """Demand y of u = (u_f, u_b, u_l), c_f given."""
        powered = np.sqrt(u[0]) if self.gamma == 0.5 else u[0] ** self.gamma
        y = flop * powered + self.memory * u[1]
        if self.l2:
            y = y + self.l2 * u[2]
        return y

    def capped(self, ratio: float) -> Basis:
        """Return the same device under another board power, `ratio` times its own.

        Watts stay what they are: of an idle device, and of the demand at full clocks. Only the
        ceiling moves. The idle share ends at MOST_IDLE of the ceiling: such a cap cannot be held.
        """
        most = MOST_IDLE * self.ceiling
        idle = min(self.idle / ratio, most)
        scale = (self.ceiling - min(self.idle, most)) / (ratio * (self.ceiling - idle))
        flop = {name: scale * value for name, value in self.flop.items()}
        return replace(
            self, idle=idle, memory=scale * self.memory, l2=scale * self.l2, flop=flop
        )  # fmt: skip

    def share(self, demand: FloatArray) -> FloatArray:
        """Power as a share of the board power."""
        return self.idle + (self.ceiling - self.idle) * _soft_limit(demand, self.sharpness)


def _soft_limit(y: FloatArray, sharpness: float) -> FloatArray:
    """g(y) = y / (1 + y^p)^(1/p); p = 4, 8, 16 by repeated squares, without a power function."""
    if sharpness in (4.0, 8.0, 16.0):
        z = np.minimum(y, 100.0)  # g(100) is 1 to 1e-9, and 100^16 does not overflow
        power = z * z
        steps = int(np.log2(sharpness)) - 1
        for _ in range(steps):
            power = power * power
        root = 1.0 + power
        for _ in range(steps + 1):
            root = np.sqrt(root)
        return z / root
    return y / (1.0 + y**sharpness) ** (1.0 / sharpness)


def gemm_work(table: Table) -> tuple[FloatArray, FloatArray]:
    """Operations and unique bytes of the GEMMs of a table (op, m, n, k, batch, dtype), by row.

    The formulas of `ops.Gemm`, for columns: A and B in the row's format (A in its compute format
    when only the weights are stored in it), D in 16 bits or more.
    """
    m, n, k = (table[c].astype(np.float64) for c in ("m", "n", "k"))
    batch = table["batch"].astype(np.float64) if "batch" in table else 1.0
    a, b, out = (np.zeros(len(m)) for _ in range(3))
    for name in set(table["dtype"].tolist()):
        rows = table["dtype"] == name
        d = DTYPES[name]
        left = DTYPES[d.compute] if d.weight_only else d
        wide = left.bits >= 16 and left.name != "int8"
        a[rows], b[rows] = left.bytes_of(1.0), d.bytes_of(1.0)
        out[rows] = left.bytes_of(1.0) if wide else 2.0
    return 2.0 * batch * m * n * k, batch * (a * m * k + b * k * n + out * m * n)


def utilisations(
    hardware: Hardware, dtype: str, work: Sequence[Any], time: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(u_f, u_b, u_l) of work = (operations, memory bytes, L2 bytes) done in `time` [s]."""
    flops, memory_bytes, l2_bytes = (np.asarray(w, dtype=np.float64) for w in work)
    per_s = 1.0 / time
    return (
        flops * (per_s / hardware.rate(dtype)),
        memory_bytes * (per_s / hardware.memory.bandwidth),
        l2_bytes * (per_s / hardware.l2.bandwidth),
    )


# ------------------------------------------------------------------------------------------ model


@dataclass(frozen=True, slots=True)
class PowerModel:
    """Predicts the mean board power of work whose time is known, with intervals.

    `devices` holds a Basis per device with labels, `pooled` the one for every other device.
    `residuals` and `energy_residuals` hold, by "device/dtype" and for "transferred", signed log
    residuals: an array [time bin, demand bin, level, (low, high)]. `floors` is the shortest time
    [s] by device whose labels were used. `energy_factor` scales the combined half-width of an
    energy interval. `card` is provenance: data, licence, split, seed, counts, scores. `samples` are
    held-out points behind the scores, of a model that was just fitted (see `parity`).
    """

    devices: Mapping[str, Basis]
    pooled: Basis
    residuals: Mapping[str, FloatArray]
    energy_residuals: Mapping[str, FloatArray]
    floors: Mapping[str, float]
    energy_factor: float = 1.0
    card: Mapping[str, Any] = field(default_factory=dict)
    samples: tuple[dict[str, Any], ...] = ()

    @classmethod
    def load(cls, path: Path | None = None) -> PowerModel:
        """Model that ships with the package (read once), or that of a card file."""
        return _shipped() if path is None else load_power(path)

    def save(self, path: Path) -> None:
        """Write the card: JSON, to a temporary name first."""
        draft = path.with_suffix(".part")
        text = json.dumps(self.to_dict(), indent=1)
        # innermost lists on one line: a card is read by people too
        text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", _one_line, text)
        draft.write_text(text + "\n", encoding="utf-8")
        draft.replace(path)

    def basis_of(self, hardware: Hardware) -> Basis:
        """Fitted shares for a device: its own, or pooled ones with its idle power if known.

        A device with another board power than the one that it was made from is that one, capped.
        """
        found = origin_of(hardware)
        own = self.devices.get(found.name, self.pooled)
        if own is self.pooled and hardware.idle_power is not None:
            own = replace(own, idle=hardware.idle_power / found.board_power)
        ratio = hardware.board_power / found.board_power
        return own if ratio == 1.0 else own.capped(ratio)

    def predict(
        self,
        hardware: Hardware,
        dtype: str,
        flops: npt.ArrayLike,
        memory_bytes: npt.ArrayLike,
        l2_bytes: npt.ArrayLike,
        time: npt.ArrayLike,
        level: float = 0.9,
    ) -> dict[str, Any]:
        """Mean power [W] of work on one device in one format, with an interval; arrays [rows].

        `flops` are operations, `memory_bytes` the bytes to and from memory (fitted on unique
        bytes), `l2_bytes` those at the L2, `time` [s] what it takes. Returns power_w,
        power_low_w, power_high_w (arrays; NaN where time is not above 0), demand (y, from which
        `energy` finds its interval), basis (array of "learned" or "transferred") and reason.
        A device without a board power gives None for all of them, and the reason.
        Raises UnsupportedError for a format that the device lacks, OutOfDomainError for a level
        outside [0.5, 0.99].
        """
        name = find_dtype(dtype).name
        board = getattr(hardware, "board_power", None)
        if not board or not np.isfinite(board):
            return dict.fromkeys(("power_w", "power_low_w", "power_high_w", "demand", "basis")) | {
                "reason": f"{hardware.name} states no board power, which scales every prediction"
            }
        seconds = _positive(time)
        work = (flops, memory_bytes, l2_bytes)
        basis = self.basis_of(hardware)
        if basis.idle >= MOST_IDLE * basis.ceiling:
            return dict.fromkeys(("power_w", "power_low_w", "power_high_w", "demand", "basis")) | {
                "reason": f"{board:.4g} W cannot be held: {hardware.base_name} draws "
                "about as much when it does next to nothing"
            }
        u = utilisations(hardware, name, work, seconds)
        demand = basis.demand(u, basis.coefficient(name))
        share = basis.share(demand)
        learned, reason = self._standing(hardware, name, seconds)
        own = self.residuals.get(f"{hardware.name}/{name}", self.residuals["transferred"])
        low, high = _range(own, level, cell_of(seconds, demand))
        power = share * board
        return {
            "power_w": power,
            "power_low_w": power * np.exp(low),
            "power_high_w": np.minimum(power * np.exp(high), OVERSHOOT * board),
            "demand": demand,
            "basis": _BASES[learned.astype(np.intp)],
            "reason": reason,
        }

    def energy(
        self,
        hardware: Hardware,
        dtype: str,
        power: Mapping[str, Any],
        time: npt.ArrayLike,
        time_range: tuple[npt.ArrayLike, npt.ArrayLike],
        level: float = 0.9,
    ) -> dict[str, Any]:
        """Energy [J] = power x time, with an interval; `power` is what `predict` returned.

        `time_range` is the interval (low, high) [s] of the same level. The log half-widths of the
        time and of the energy at repeated times combine as the root of the sum of their squares,
        scaled by a factor that was calibrated on held-out labels. The latter half-width holds the
        power's error and how far a sustained run differs in time from a burst.
        """
        if power["power_w"] is None:
            return dict.fromkeys(("energy_j", "energy_low_j", "energy_high_j")) | {
                "reason": power["reason"]
            }
        name = find_dtype(dtype).name
        seconds = _positive(time)
        table = self.energy_residuals
        own = table.get(f"{hardware.name}/{name}", table["transferred"])
        low, high = _range(own, level, cell_of(seconds, power["demand"]))
        energy = power["power_w"] * seconds
        shorter = np.log(seconds / np.asarray(time_range[0], dtype=np.float64))
        longer = np.log(np.asarray(time_range[1], dtype=np.float64) / seconds)
        down = self.energy_factor * np.hypot(low, np.maximum(shorter, 0.0))
        up = self.energy_factor * np.hypot(high, np.maximum(longer, 0.0))
        return {
            "energy_j": energy,
            "energy_low_j": energy * np.exp(-down),
            "energy_high_j": energy * np.exp(up),
            "reason": power["reason"],
        }

    def _standing(
        self, hardware: Hardware, dtype: str, time: FloatArray
    ) -> tuple[npt.NDArray[np.bool_], str]:
        if f"{hardware.name}/{dtype}" not in self.residuals:
            known = ", ".join(k for k in self.residuals if k != "transferred")
            reason = f"no power labels for {dtype} on {hardware.name} (only {known})"
            return np.zeros(time.shape, dtype=bool), reason
        floor = self.floors[hardware.name]
        learned = time > floor
        if learned.all():
            return learned, ""
        return learned, f"kernels below {floor * 1e6:.3g} us are too short for the power sensor"

    # ------------------------------------------------------------------------------------- files

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        return {
            "schema_version": SCHEMA_VERSION,
            "what": "mean board power of GEMM",
            **self.card,
            "pooled": _plain(self.pooled),
            "devices": {name: _plain(b) for name, b in self.devices.items()},
            "floors_s": dict(self.floors),
            "levels": list(LEVELS),
            "time_edges_s": _TIME_EDGES.tolist(),
            "demand_edges": _DEMAND_EDGES.tolist(),
            "residuals": {k: np.round(v, 5).tolist() for k, v in self.residuals.items()},
            "energy_residuals": {
                k: np.round(v, 5).tolist() for k, v in self.energy_residuals.items()
            },
            "energy_factor": round(self.energy_factor, 4),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PowerModel:
        """Model from what `to_dict` wrote. Raises SpecError for another schema or lost fields."""
        version = values.get("schema_version")
        if version != SCHEMA_VERSION:
            raise SpecError(f"power card: schema_version {version!r}, need {SCHEMA_VERSION}")
        same = (values.get("levels"), values.get("time_edges_s"), values.get("demand_edges"))
        if same != (list(LEVELS), _TIME_EDGES.tolist(), _DEMAND_EDGES.tolist()):
            raise SpecError("power card: other levels or bins than this version has; fit it again")
        fitted = {"schema_version", "what", "pooled", "devices", "floors_s", "levels",
                  "time_edges_s", "demand_edges", "residuals", "energy_residuals",
                  "energy_factor"}  # fmt: skip
        try:
            tables = [
                {k: _residual_array(v) for k, v in values[name].items()}
                for name in ("residuals", "energy_residuals")
            ]
            return cls(
                devices={k: Basis(**b) for k, b in values["devices"].items()},
                pooled=Basis(**values["pooled"]),
                residuals=tables[0],
                energy_residuals=tables[1],
                floors=dict(values["floors_s"]),
                energy_factor=float(values["energy_factor"]),
                card={k: v for k, v in values.items() if k not in fitted},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SpecError(f"power card: {error!r} is missing or malformed") from error


_BASES = np.array(["transferred", "learned"], dtype=object)


@cache
def _shipped() -> PowerModel:
    return load_power(CARD)


def load_power(path: Path) -> PowerModel:
    """Read a model from its card.

    Raises NoDataError when there is no such file, SpecError when it is no such card.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise NoDataError(f"no power model at {path}: {error.strerror}") from error
    except ValueError as error:
        raise SpecError(f"{path} is not JSON: {error}") from error
    return PowerModel.from_dict(values)


def _one_line(found: re.Match[str]) -> str:
    return "[" + re.sub(r"\s*\n\s*", " ", found.group(1)) + "]"


def _plain(basis: Basis) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name in Basis.__slots__:
        value = getattr(basis, name)
        rounded = {k: round(v, 6) for k, v in value.items()} if name == "flop" else round(value, 6)
        out[name] = rounded
    return out


def _residual_array(values: Any) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    shape = (len(_TIME_EDGES) + 1, len(_DEMAND_EDGES) + 1, len(LEVELS), 2)
    if array.shape != shape or not np.isfinite(array).all():
        raise ValueError(f"residuals of shape {array.shape}, need {shape}, finite")
    return array


def _positive(time: npt.ArrayLike) -> FloatArray:
    seconds = np.asarray(time, dtype=np.float64)
    good = seconds > 0
    return seconds if good.all() else np.where(good, seconds, np.nan)


def cell_of(time: FloatArray, demand: FloatArray) -> npt.NDArray[np.intp]:
    """Index of the residual cell: time bin, then demand bin."""
    index = np.zeros(np.shape(time), dtype=np.intp)
    for edge in _TIME_EDGES:  # a handful of comparisons beats a binary search
        index += time > edge
    index *= len(_DEMAND_EDGES) + 1
    for edge in _DEMAND_EDGES:
        index += demand > edge
    return index


def _range(
    residuals: FloatArray, level: float, cell: npt.NDArray[np.intp]
) -> tuple[FloatArray, FloatArray]:
    """Signed log residuals (low, high) of each row at a level, linear between the stored ones."""
    if not LEVELS[0] <= level <= LEVELS[-1]:
        raise OutOfDomainError(
            f"level: got {level}, need {LEVELS[0]} to {LEVELS[-1]} (what was calibrated)"
        )
    flat = residuals.reshape(-1, len(LEVELS), 2)
    at = int(np.clip(np.searchsorted(LEVELS, level), 1, len(LEVELS) - 1))
    weight = (level - LEVELS[at - 1]) / (LEVELS[at] - LEVELS[at - 1])
    at_level = (1.0 - weight) * flat[:, at - 1] + weight * flat[:, at]
    return np.minimum(at_level[:, 0], 0.0)[cell], np.maximum(at_level[:, 1], 0.0)[cell]


def cells() -> tuple[int, int]:
    """How many time bins and demand bins the residuals have."""
    return len(_TIME_EDGES) + 1, len(_DEMAND_EDGES) + 1
