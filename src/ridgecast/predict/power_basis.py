"""Energy from work done: a physical basis fitted to energy-counter rows of one device.

For work of F operations and B_l bytes at each memory level that takes t at the SM clock f,

    E = t (P_idle + P_clock phi s) + s (sum_d e_d F_d + sum_l e_l B_l) + e_memory B_memory
    phi = f / f_ref        s = V^2 / V_ref^2 = (1 + kappa (phi - 1))^2

P_clock is what a busy but starved chip draws at f_ref above idle, e_d the energy of an operation of
format d, e_l of a byte at level l. Dynamic power is f C V^2 with V linear in f near the working
point, so energy a cycle, an operation and an on-chip byte goes with V^2; main memory has its own
supply. Every coefficient is 0 or more and every one has a unit that a data sheet could state.

Under a power limit P_max the clock falls until power(f) = P_max and the part of the time that the
clock bounds stretches, t(f) = t (1 - b + b f_0 / f): `PowerBasis.capped`.

This is the twin of `power`, which predicts sensor means as shares of the board power, for devices
and formats nobody metered; this one needs rows of an energy counter (`measure.energy`), and gives
joules. Owns formula, interval and card; `power_basis_fit` fits. Knows no meter.

Sources: energy per operation and byte with constant power: Choi, Bedard, Fowler, Vuduc, IPDPS
2013, doi:10.1109/IPDPS.2013.77; f C V^2: Chandrakasan, Sheng, Brodersen, IEEE J. Solid-State
Circuits 27(4), 1992, doi:10.1109/4.126534.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import NoDataError, SpecError, UnsupportedError
from .power import LEVELS

__all__ = ["BYTE_LEVELS", "PowerBasis"]

F64 = npt.NDArray[np.float64]

SCHEMA_VERSION = 1
BYTE_LEVELS = {"memory": "memory_bytes", "l2": "l2_bytes", "shared": "shared_traffic_bytes"}
"""Memory level -> column of the bytes moved through it by one run."""


@dataclass(frozen=True, slots=True)
class PowerBasis:
    """Fitted coefficients of one device: W, J per operation by format, J per byte by level.

    `voltage_slope` is kappa at `clock` [Hz], f_ref; NaN where the clocks of the rows told nothing.
    `residuals` [LEVELS, (low, high)] are signed log residuals of held-out groups. `card` is
    provenance: data, seed, counts, scores, the floor.
    """

    hardware: str
    idle_power: float
    clock_power: float
    flop_energy: Mapping[str, float]
    byte_energy: Mapping[str, float]
    voltage_slope: float
    clock: float
    residuals: F64
    card: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def voltage_factor(self, clock: npt.ArrayLike) -> F64:
        """V^2 over V_ref^2 at a clock [Hz]; NaN clocks count as the reference."""
        phi = np.asarray(clock, np.float64) / self.clock
        phi = np.where(np.isfinite(phi), phi, 1.0)
        return (1.0 + self.voltage_slope * (phi - 1.0)) ** 2

    def energy(
        self,
        dtype: str,
        flops: npt.ArrayLike,
        moved: Mapping[str, npt.ArrayLike],
        time: npt.ArrayLike,
        clock: npt.ArrayLike = np.nan,
    ) -> F64:
        """Energy [J] of one run; `moved` are bytes by level, `time` [s] at `clock` [Hz].

        Raises UnsupportedError for a format without rows, SpecError for a level without a
        coefficient.
        """
        unknown = sorted(set(moved) - set(self.byte_energy))
        if unknown:
            known = ", ".join(self.byte_energy)
            raise SpecError(f"power basis: no coefficient for bytes at {unknown}, only {known}")
        if dtype not in self.flop_energy:
            known = ", ".join(self.flop_energy)
            raise UnsupportedError(f"power basis of {self.hardware}: no rows of {dtype}; {known}")
        on_chip = self.flop_energy[dtype] * np.asarray(flops, np.float64)
        outside: Any = 0.0
        for level, count in moved.items():
            part = self.byte_energy[level] * np.asarray(count, np.float64)
            if level == "memory":
                outside = outside + part
            else:
                on_chip = on_chip + part
        s = self.voltage_factor(clock)
        phi = np.asarray(clock, np.float64) / self.clock
        constant = self.idle_power + self.clock_power * np.where(np.isfinite(phi), phi, 1.0) * s
        return constant * np.asarray(time, np.float64) + s * on_chip + outside

    def capped(
        self,
        dtype: str,
        flops: npt.ArrayLike,
        moved: Mapping[str, npt.ArrayLike],
        time: npt.ArrayLike,
        *,
        limit: float,
        clock_share: npt.ArrayLike,
        clock_range: tuple[float, float],
    ) -> dict[str, F64]:
        """Run of `time` [s] at the upper clock, held to a power `limit` [W] by its clock.

        `clock_share` (b) is the part of the time that goes with 1 / clock: 1 where operations
        bound it, 0 where memory does. `clock_range` [Hz] is (lowest, upper). Returns time_s,
        clock_hz, power_w, energy_j (arrays); power stays above the limit only where even the
        lowest clock draws more.
        """
        if not (limit > 0 and 0 < clock_range[0] <= clock_range[1]):
            raise SpecError(
                f"power limit: got {limit} W and clocks {clock_range}; need a limit above 0 and "
                "0 < lowest <= upper"
            )
        share = np.asarray(clock_share, np.float64)
        time = np.asarray(time, np.float64)
        upper = clock_range[1]

        def at(clock: F64) -> tuple[F64, F64]:
            stretched = time * (1.0 - share + share * upper / clock)
            return stretched, self.energy(dtype, flops, moved, stretched, clock)

        shape = np.broadcast_shapes(np.shape(flops), time.shape, share.shape)
        low, high = np.full(shape, clock_range[0]), np.full(shape, upper)
        seconds, joules = at(high)
        clock = np.where(joules <= limit * seconds, high, low)
        over = clock < upper
        for _ in range(40 if over.any() else 0):  # power rises with the clock: bisection
            middle = 0.5 * (low + high)
            seconds, joules = at(middle)
            above = joules > limit * seconds
            low, high = np.where(above, low, middle), np.where(above, middle, high)
        clock = np.where(over, low, clock)
        seconds, joules = at(clock)
        return {
            "time_s": seconds,
            "clock_hz": clock,
            "power_w": joules / seconds,
            "energy_j": joules,
        }

    def interval(self, energy: npt.ArrayLike, level: float = 0.9) -> tuple[F64, F64]:
        """Lower and upper energy [J] that hold a label of an unseen shape with `level`."""
        low, high = (np.interp(level, LEVELS, self.residuals[:, i]) for i in range(2))
        value = np.asarray(energy, np.float64)
        return value * np.exp(min(low, 0.0)), value * np.exp(max(high, 0.0))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` reads them back."""
        return {
            "schema_version": SCHEMA_VERSION,
            "what": "energy of GEMM from energy-counter rows",
            **self.card,
            "hardware": self.hardware,
            "idle_power_w": self.idle_power,
            "clock_power_w": self.clock_power,
            "energy_per_flop_j": dict(self.flop_energy),
            "energy_per_byte_j": dict(self.byte_energy),
            "voltage_slope": self.voltage_slope,
            "clock_hz": self.clock if np.isfinite(self.clock) else None,
            "levels": list(LEVELS),
            "residuals": np.round(self.residuals, 5).tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PowerBasis:
        """Undo `to_dict`. Raises SpecError for another schema or lost fields."""
        version = values.get("schema_version")
        if version != SCHEMA_VERSION or values.get("levels") != list(LEVELS):
            raise SpecError(f"power basis: schema_version {version!r}, need {SCHEMA_VERSION}")
        own = ("schema_version", "what", "hardware", "idle_power_w", "clock_power_w",
               "energy_per_flop_j", "energy_per_byte_j", "voltage_slope", "clock_hz", "levels",
               "residuals")  # fmt: skip
        try:
            return cls(
                hardware=str(values["hardware"]),
                idle_power=float(values["idle_power_w"]),
                clock_power=float(values["clock_power_w"]),
                flop_energy=dict(values["energy_per_flop_j"]),
                byte_energy=dict(values["energy_per_byte_j"]),
                voltage_slope=float(values["voltage_slope"]),
                clock=np.nan if values["clock_hz"] is None else float(values["clock_hz"]),
                residuals=np.asarray(values["residuals"], np.float64).reshape(len(LEVELS), 2),
                card={k: v for k, v in values.items() if k not in own},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise SpecError(f"power basis: {error!r} is missing or malformed") from error

    def save(self, path: Path) -> None:
        """Write the card as JSON, to a temporary name first."""
        draft = path.with_suffix(".part")
        draft.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> PowerBasis:
        """Read what `save` wrote. Raises NoDataError for no file, SpecError for another one."""
        try:
            return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except OSError as error:
            raise NoDataError(f"no power basis at {path}: {error.strerror}") from error
        except (ValueError, AttributeError) as error:
            if isinstance(error, SpecError):
                raise
            raise SpecError(f"{path} is not the JSON of a power basis: {error}") from error
